"""Making a student: layers of the teacher, published shapes, students within a budget."""

from nlpkd.students.shapes import SHAPES

__all__ = ["SHAPES"]

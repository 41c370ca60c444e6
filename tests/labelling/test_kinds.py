"""Teachers that a file names: each kind with its arguments, and what is refused."""

import json

import pytest

from nlpkd import teachers
from nlpkd.labelling.kinds import KINDS, make_teacher, names_a_teacher, read_mapping

NOUL = {"type": "noul", "instructions": "Is it spam?"}
WRITTEN = [
    {"teacher": "decision", "model": "m", "question": NOUL, "base_url": "http://localhost:1", "timeout_s": 5},
    {"teacher": "zero-shot", "model": "m", "classes": ["a", "b"], "hypothesis_template": "It is {}."},
    {"teacher": "embedding", "model": "m", "descriptions": {"a": "one", "b": ["two", "three"]}, "temperature": 0.1},
    {"teacher": "chat", "model": "m", "question": "Which?", "classes": {"a": "one", "b": "two"}, "votes": 3},
]


@pytest.mark.parametrize("written", WRITTEN, ids=lambda written: written["teacher"])
def test_each_kind_is_made_of_its_arguments(tmp_path, written):
    (tmp_path / "teacher.yaml").write_text(json.dumps(written))
    read = read_mapping(tmp_path / "teacher.yaml")
    assert read == written and names_a_teacher(read)
    teacher = make_teacher(read, concurrency=3)
    made = getattr(teachers, KINDS[written["teacher"]])
    direct = made(**{name: value for name, value in written.items() if name != "teacher"})
    assert type(teacher) is made and teacher.describe() == direct.describe() and teacher.classes == direct.classes
    assert teacher.concurrency == (3 if written["teacher"] in ("decision", "chat") else 1)


def test_questions_are_no_teachers_even_where_a_label_is_called_teacher():
    assert not names_a_teacher(NOUL) and not names_a_teacher({"teacher": NOUL, "pupil": NOUL})


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ({"teacher": "oracle", "model": "m"}, "one of decision, zero-shot, embedding, chat"),
        ({"teacher": "zero-shot", "model": "m"}, "needs classes"),
        ({"teacher": "embedding", "descriptions": {"a": "x", "b": "y"}}, "needs model"),
        ({"teacher": "chat", "model": "m", "question": "?", "clases": ["a"]}, "has no 'clases'"),
        ({"teacher": "embedding", "model": "m", "descriptions": {"a": "x"}}, "two or more classes"),
    ],
)
def test_what_makes_no_teacher_is_refused(written, told):
    with pytest.raises(ValueError, match=told):
        make_teacher(written)

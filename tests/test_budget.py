"""A student by what it may cost: what is measured, which is chosen, and what is said when nothing fits."""

from __future__ import annotations

import pytest
from conftest import tiny_bert

from nlpkd import make_student
from nlpkd.benchmark import model_size_mb
from nlpkd.budget import choose_within


def test_the_deepest_student_within_the_size_is_chosen_and_the_table_said(caplog):
    teacher = tiny_bert(layers=4, hidden=32)
    sizes = {depth: model_size_mb(make_student(teacher, depth)) for depth in (4, 3, 2, 1)}
    student = make_student(teacher, max_size_mb=(sizes[2] + sizes[3]) / 2)
    assert student.config.num_hidden_layers == 2
    assert model_size_mb(student) == sizes[2]
    assert all(f"layers:{depth} {size:.1f} MB" in caplog.text for depth, size in sizes.items())
    assert make_student(teacher, max_size_mb=sizes[4]).config.num_hidden_layers == 4


def test_latency_decides_where_it_is_asked_for():
    candidates = {"deep": tiny_bert(layers=48, hidden=64), "shallow": tiny_bert(layers=1)}
    _, table = choose_within(candidates, max_latency_ms=1e6, runs=5)
    deep, shallow = table
    assert deep.latency_ms > 4 * shallow.latency_ms and deep.fits and shallow.fits
    name, _ = choose_within(candidates, max_latency_ms=deep.latency_ms / 2, runs=5)
    assert name == "shallow"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"max_size_mb": 1e-6}, r"no candidate fits max_size_mb=1e-06 .*layers:2 0\.0 MB .* Raise the budget"),
        ({"max_latency_ms": 0}, "max_latency_ms must be > 0"),
        ({"max_size_mb": 5.0, "layers": 2}, "give the teacher, and no layers"),
        ({"max_size_mb": 5.0, "checkpoint": "somewhere"}, "give the teacher, and no layers"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        make_student(tiny_bert(), **asked)
    with pytest.raises(ValueError, match="there is no budget"):
        choose_within({})

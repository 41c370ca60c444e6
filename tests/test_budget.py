"""A student by what it may cost: what is measured, which is chosen, and what is said when nothing fits."""

from __future__ import annotations

import pytest
from conftest import raw_rows, tiny_bert
from transformers import ModernBertConfig, ModernBertForSequenceClassification

from nlpkd import distill, make_student
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


def test_depths_that_make_no_student_are_left_out_and_said(caplog):
    """Only the first layer of a ModernBERT has no norm before its attention."""
    config = ModernBertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
                              intermediate_size=16, pad_token_id=0, cls_token_id=2, sep_token_id=3)  # fmt: skip
    teacher = ModernBertForSequenceClassification(config)
    with pytest.raises(ValueError, match="make no model of its kind"):
        make_student(teacher, 2)
    assert make_student(teacher, max_size_mb=1.0).config.num_hidden_layers == 4
    assert "No student of" in caplog.text and "try layers that start with 1" in caplog.text


def test_a_distillation_takes_a_budget_in_place_of_a_student(tokenizer, tmp_path):
    teacher = tiny_bert(layers=4, hidden=32)
    size = model_size_mb(make_student(teacher, 2))
    rows, held_out = raw_rows(24, seed=1), raw_rows(16, seed=2)
    settings = {"tokenizer": tokenizer, "teacher_tokenizer": tokenizer, "objectives": "hinton", "max_steps": 1,
                "teacher_check": "off", "report_to": "none", "output_dir": tmp_path, "max_size_mb": size}  # fmt: skip
    result = distill(teacher, None, rows, held_out, **settings)
    assert result.student.config.num_hidden_layers == 2 and result.report.run["student"]["name"] == "layers:2"
    with pytest.raises(ValueError, match="a budget chooses the student itself, and student='layers:3' is given too"):
        distill(teacher, "layers:3", rows, held_out, **settings)
    with pytest.raises(ValueError, match="no candidate fits"):
        distill(teacher, None, rows, held_out, **settings | {"max_size_mb": 1e-6})


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

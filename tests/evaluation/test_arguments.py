"""An argument of a measurement that can't be is refused by its name at every door, before a model is run or loaded."""

import pytest
from samples import Uncalled, tiny_bert

from nlpkd import evaluate, evaluate_student
from nlpkd.evaluation.origin import RunRecord
from nlpkd.pipeline.evaluate import MEASURING

WRONG = {
    "batch_size": [0, -1, "8", 2.5, None, True],
    "bootstrap_samples": [0, 2.5, "9", None],
    "latency_runs": [-1, 2.5, "3", None],
    "latency_batches": [[], [0], "18", 8, [1, 2.5], {1: 2}, None],
    "latency_tokens": [[], [0], 0, "18", 2.5, None],
    "seed": [-1, 2.5, "x", None],
    "training_seconds": ["12", -3, float("nan"), float("inf"), {"student": "12"}, {"studnet": 12}],
    "teacher_order": ["10", 1, [0.5, "a"], [0, 1]],
}
OF_ONE_DOOR = {
    "run": [{"seed": "x"}, {"data": "my data"}, {"settings": {"folder": object()}}, "run"],
    "text_columns": ["text", ["t"], 3],
    "teacher_tokenizer": [object()],
    "teacher_thresholds": ["0.5", 0.5, ["a", 0.5], [0.5, 1.5], [0.5, float("nan")], [0.5, 0.5]],
}


def each_of(wrong):
    return [
        pytest.param(name, value, id=f"{name}={number}")
        for name, given in wrong.items()
        for number, value in enumerate(given)
    ]


def test_every_argument_that_both_doors_take_is_tried():
    assert WRONG.keys() == MEASURING


@pytest.mark.parametrize(("name", "value"), each_of(WRONG | OF_ONE_DOOR))
def test_evaluate_student_names_it_before_a_model_is_run(name, value, make_rows, tokenizer):
    student = Uncalled(tiny_bert(1).config)
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        evaluate_student(student, None, make_rows(4), tokenizer, **{name: value})


@pytest.mark.parametrize(("name", "value"), each_of(WRONG))
def test_evaluate_names_it_before_a_model_is_loaded(name, value, tmp_path):
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        evaluate(tmp_path / "no such model", "no such rows", **{name: value})


def test_what_is_right_is_measured_and_can_be_read_again(make_rows, tokenizer, tmp_path):
    report = evaluate_student(
        tiny_bert(1), None, make_rows(4), tokenizer, batch_size=2, bootstrap_samples=1, latency_runs=1,
        latency_batches=(1,), latency_tokens=[4, 8], seed=0, training_seconds={"student": 0},
        run={"seed": 3, "own": [1]}, text_columns=["text"],
    )  # fmt: skip
    report.save(tmp_path)
    assert type(report).load(tmp_path).run == RunRecord.from_dict(report.run.to_dict())

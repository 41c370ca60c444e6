"""Claims beside a second measurement: each is judged by its own unit, and what is not judged is listed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn

from nlpkd.evaluation.evaluate import evaluate_student
from nlpkd.evaluation.records import Candidate, Interval
from nlpkd.evaluation.report import EvaluationReport
from nlpkd.pipeline.claims import Claim, report_claims

ROWS = 120
DRAWN = np.random.default_rng(0)
GOLD, NOISE, FURTHER = DRAWN.normal(size=ROWS), DRAWN.normal(size=ROWS), DRAWN.normal(size=ROWS)


class Answering(nn.Module):
    """Gives the logits that the first token of a row stands for, counted again from 0 where there are no more."""

    def __init__(self, logits: np.ndarray, problem_type: str):
        super().__init__()
        self.table = nn.Parameter(torch.tensor(logits, dtype=torch.float32))
        labels = {number: f"class {number}" for number in range(logits.shape[1])}
        self.config = SimpleNamespace(problem_type=problem_type, id2label=labels, num_labels=len(labels))

    def forward(self, input_ids):
        return self.table[input_ids[:, 0] % len(self.table)]


def measure(problem_type: str, labels: list, tokenizer: Any, held_out: bool = False, **logits: np.ndarray):
    """Measure models by their logits, `(rows, labels)` each."""
    dataset = Dataset.from_dict({"input_ids": [[row] for row in range(len(labels))], "labels": labels})
    others = dataset.map(lambda row: {"input_ids": [row["input_ids"][0] + len(labels)]})
    models: dict[str, Any] = {name: Answering(each, problem_type) for name, each in logits.items()}
    report = evaluate_student(
        models.pop("student"), models.pop("teacher", None), dataset, tokenizer, baseline=models.pop("baseline", None),
        candidates=models, threshold_dataset=others if held_out else None, bootstrap_samples=100, latency_runs=0,
    )  # fmt: skip
    return EvaluationReport.from_dict(report.to_dict())


def changed(report: EvaluationReport, change: Callable[[dict[str, Any]], Any]) -> EvaluationReport:
    """Return the report with other claims."""
    data = report.to_dict()
    change(data)
    return EvaluationReport.from_dict(data)


def wrong(claims: list[Claim]) -> list[str]:
    return [each.figure for each in claims if each.holds is False]


def scores(scale: float, tokenizer: Any, rounding: float = 0.0) -> EvaluationReport:
    """Scores of that scale, by a student and a worse baseline; `rounding` is how far other kernels answer."""
    student = scale * (GOLD + 0.1 * NOISE) * (1 + rounding)
    baseline = scale * (GOLD + 0.3 * FURTHER)
    gold = [float(each) for each in scale * GOLD]
    return measure("regression", gold, tokenizer, student=student[:, None], baseline=baseline[:, None])


@pytest.mark.parametrize("scale", [1e-3, 1e-2, 1.0, 1e5])
def test_errors_of_scores_are_judged_alike_at_any_scale(scale, tokenizer):
    claimed, measured = scores(scale, tokenizer), scores(scale, tokenizer, rounding=1e-4)
    assert wrong(report_claims(claimed, measured, "")) == []

    def quarter(data):
        for name in ("mean_squared_error", "mean_absolute_error"):
            figure = data["candidates"]["student"]["quality"][name]
            figure |= {end: value / 4 for end, value in figure.items()}

    assert wrong(report_claims(changed(claimed, quarter), measured, "")) == ["mean_squared_error", "MAE"]

    def closer(data):
        for name in ("mean_squared_error", "mean_absolute_error"):
            figure = data["comparisons"]["student_vs_baseline"][f"{name}_difference"]
            figure |= {end: value / 4 for end, value in figure.items()}

    found = wrong(report_claims(changed(claimed, closer), measured, ""))
    assert found == [f"student vs baseline: mean {name} error difference" for name in ("squared", "absolute")]


def classes(tokenizer: Any) -> EvaluationReport:
    """Three classes, a rare one among them, by student, teacher, baselines and a file."""
    labels = [row % 2 if row % 10 else 2 for row in range(ROWS)]
    logits = {
        name: np.eye(3)[labels] * strength + np.random.default_rng(seed).normal(size=(ROWS, 3))
        for seed, (name, strength) in enumerate(
            {"student": 2.0, "teacher": 3.0, "no_teacher": 1.0, "same_start": 1.0, "onnx/model.onnx": 2.0}.items()
        )
    }
    return measure("single_label_classification", labels, tokenizer, held_out=True, **logits)


@pytest.fixture(scope="module")
def report(tokenizer) -> EvaluationReport:
    return classes(tokenizer)


def test_an_honest_report_holds_and_every_figure_of_it_is_listed(report):
    claims = report_claims(report, report, "")
    assert wrong(claims) == []
    figures = {each.figure: each for each in claims}
    for judged in ("labels", "headline metric", "majority share", "ECE before the temperature"):
        assert figures[judged].holds, figures[judged]
    assert sum(figure.startswith("F1 of class") for figure in figures) == 1
    for listed in ("temperature", "ECE at the temperature", "confusion, reliability, per length, disagreements"):
        assert figures[listed].holds is None, figures[listed]


LIES = {
    "labels": lambda data: data["task"]["labels"].reverse(),
    "headline metric": lambda data: data["task"].update(headline="matthews_correlation"),
    "majority share": lambda data: data["task"].update(majority_share=0.1),
    "ECE before the temperature": lambda data: data["candidates"]["student"]["temperature_scaling"].update(
        ece_before=0.5
    ),
    "F1 of class 2, the furthest of 3 classes": lambda data: data["candidates"]["student"]["breakdown"]["per_class"][
        2
    ].update(f1=1.0),
    "teacher: F1 of class 0, the furthest of 3 classes": lambda data: data["candidates"]["teacher"]["breakdown"][
        "per_class"
    ][0].update(f1=0.1),
}


@pytest.mark.parametrize("figure", LIES)
def test_what_is_measured_again_anyway_is_judged(figure, report):
    found = wrong(report_claims(changed(report, LIES[figure]), report, ""))
    # What else follows from the headline is wrong with it.
    assert figure in found and (len(found) == 1 or figure == "headline metric")


def test_intervals_that_have_nothing_in_common_never_hold(report):
    half: dict[str, Candidate] = {}
    for name, each in report.candidates.items():
        accuracy = each.quality["accuracy"]
        near = Interval(accuracy.value + 0.001, accuracy.value + 0.001, accuracy.value + 0.001)
        half[name] = dataclasses.replace(each, quality=each.quality | {"accuracy": near})
    exact = {
        name: dataclasses.replace(
            each, quality=each.quality | {"accuracy": Interval(*3 * [each.quality["accuracy"].value])}
        )
        for name, each in report.candidates.items()
    }
    claims = report_claims(
        dataclasses.replace(report, candidates=half), dataclasses.replace(report, candidates=exact), ""
    )
    assert [each for each in wrong(claims) if each.endswith("accuracy")] == [
        "accuracy" if name == "student" else f"{name}: accuracy" for name in report.candidates
    ]


def test_figures_of_another_number_of_classes_than_were_measured_hold_nothing(report):
    student = report.candidates["student"]
    longer = dataclasses.replace(student.breakdown, per_class=3 * student.breakdown.per_class)
    claimed = report.candidates | {"student": dataclasses.replace(student, breakdown=longer)}
    claims = report_claims(dataclasses.replace(report, candidates=claimed), report, "")
    assert wrong(claims) == ["F1 by class"]


@pytest.mark.parametrize("measured_rows", [9_000, 3_000, 90_000])
def test_an_interval_beside_its_value_as_earlier_versions_made_it_holds(report, measured_rows):
    # Of 3,000 classes with 3 rows each; more rows of a class bring the low end of the interval nearer.
    ends, found = (0.638, 0.658), Interval(0.69, 0.69 - 0.052 * 9_000 / measured_rows, 0.69)

    def of(f1: Interval, rows: int) -> EvaluationReport:
        student = dataclasses.replace(report.candidates["student"], quality={"f1_macro": f1})
        task = dataclasses.replace(report.task, rows=rows)
        return dataclasses.replace(report, task=task, candidates={"student": student}, comparisons={})

    claims = report_claims(of(Interval(0.69, *ends), 9_000), of(found, measured_rows), "")
    assert {each.figure: each.holds for each in claims}["macro F1"] is True
    far = report_claims(of(Interval(0.69, 0.3, 0.32), 9_000), of(found, measured_rows), "")
    assert {each.figure: each.holds for each in far}["macro F1"] is False


def test_why_a_model_was_not_measured_again_is_said_of_its_kind(report):
    alone = dataclasses.replace(report, candidates={"student": report.candidates["student"]})
    why = {each.figure: each.why for each in report_claims(report, alone, "not re-measured: the teacher is away")}
    assert why["teacher: accuracy"] == "not re-measured: the teacher is away"
    for name in ("no_teacher", "same_start"):
        assert why[f"{name}: accuracy"] == "not re-measured: the baseline is not published with the student"
    assert why["onnx/model.onnx: accuracy"] == "not re-measured: no ONNX file, or no extra export"

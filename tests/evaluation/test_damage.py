"""A report that is read: parts that don't belong together are refused by file and field."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
from samples import tiny_report

from nlpkd.evaluation.records import Breakdown, ClassMetrics, Disagreement, LengthGroup, ReliabilityBin
from nlpkd.evaluation.report import EvaluationReport

LABELS = ["a", "b", "c"]


def whole_report():
    report = tiny_report()
    parts = Breakdown(
        confusion=[[3, 1, 0], [0, 7, 0], [0, 0, 9]],
        confusions=[[0, 1, 1]],
        per_class=[ClassMetrics(1.0, 0.75, 0.86, rows) for rows in (4, 7, 9)],
        reliability=[ReliabilityBin(0.8, 0.9, 20)],
        per_length=[LengthGroup(1, 4, 10, 0.9), LengthGroup(5, 9, 10, 0.8)],
        disagreements=[Disagreement(19, 0, 1, 0.9, 2, 0.8, 0.7)],
    )
    student = replace(report.candidates["student"], breakdown=parts)
    return replace(
        report,
        task=replace(report.task, labels=LABELS),
        run=replace(report.run, thresholds={"student": dict.fromkeys(LABELS, 0.5)}),
        candidates={"student": student, "teacher": student},
    ).to_dict()


WHOLE = whole_report()


def changed(path, value):
    """The report with another value at a path of keys and places."""
    data = copy.deepcopy(WHOLE)
    entry = data
    for key in path[:-1]:
        entry = entry[key]
    entry[path[-1]] = value
    return data


PARTS = ("candidates", "student", "breakdown")
WRONG = {
    (*PARTS, "disagreements", 0, "gold"): 99,
    (*PARTS, "disagreements", 0, "predicted"): 3,
    (*PARTS, "disagreements", 0, "teacher_predicted"): -1,
    (*PARTS, "disagreements", 0, "row"): 20,
    (*PARTS, "per_class"): 3 * WHOLE["candidates"]["student"]["breakdown"]["per_class"],
    (*PARTS, "per_class", 1, "f1"): "high",
    (*PARTS, "confusion"): [[3, 1], [0, 7]],
    (*PARTS, "confusion", 1): [0, 7],
    (*PARTS, "confusions", 0): [0, 1],
    (*PARTS, "confusions", 0, 0): 3,
    (*PARTS, "confusions", 0, 2): 5,
    (*PARTS, "reliability", 0, "rows"): 0,
    (*PARTS, "per_length"): WHOLE["candidates"]["student"]["breakdown"]["per_length"][:1],
    ("run", "thresholds", "student"): {"a": 0.5},
    ("run", "thresholds", "student", LABELS[0]): 1.5,
    ("run", "thresholds", "int8"): dict.fromkeys(LABELS, 0.5),
    ("run", "seed"): "x",
    ("task", "rows"): 0,
    ("task", "labels"): 7,
    ("comparisons", "student_vs_teacher"): {"accuracy_difference": 3},
    ("seeds", "int8"): {},
    ("candidates", "teacher", "quality"): [],
    ("candidates", "teacher", "latency"): {"batch": 1},
}


def test_a_whole_report_is_read():
    assert EvaluationReport.from_dict(WHOLE).to_dict() == WHOLE


@pytest.mark.parametrize("path", WRONG, ids=lambda path: ".".join(map(str, path)))
def test_what_does_not_fit_is_refused_by_file_and_field(path, tmp_path):
    data = changed(path, WRONG[path])
    (tmp_path / "report.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="damaged") as refused:
        EvaluationReport.load(tmp_path)
    told = str(refused.value)
    assert str(tmp_path / "report.json") in told
    # A student with another number of lengths than others is told of at the other one.
    assert all(key in told for key in path if isinstance(key, str) and key != "student")


def test_candidates_that_control_characters_alone_tell_apart_are_refused():
    data = copy.deepcopy(WHOLE)
    data["candidates"]["teacher\x00"] = data["candidates"]["teacher"]
    with pytest.raises(ValueError, match="called alike"):
        EvaluationReport.from_dict(data)

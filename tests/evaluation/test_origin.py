"""The headline figure and the share of the teacher's: one in verdict, tiles, charts and card, whatever it is."""

from __future__ import annotations

import html
import math
from dataclasses import replace
from fractions import Fraction

import pytest
from samples import tiny_report

from nlpkd.evaluation.html_report import render_page
from nlpkd.evaluation.origin import headline_figure, headline_name, keeps, retention
from nlpkd.evaluation.records import AGREEMENT, METRIC_NAMES, ONNX_RUNTIME, Candidate, Comparison, Interval
from nlpkd.evaluation.report import EvaluationReport
from nlpkd.hub.model_card import build_model_card


def report_of(metric: str, student: float, teacher: float) -> EvaluationReport:
    """A report of which the headline metric is all that was measured, and an ONNX file of student and teacher each."""

    def candidate(value: float, agreement: float | None, runtime: str) -> Candidate:
        interval = Interval(value, value - 0.1, value + 0.1)
        agreeing = None if agreement is None else Interval(agreement, agreement - 0.01, agreement + 0.01)
        quality = {} if metric == AGREEMENT else {metric: interval}
        return Candidate(quality, agreeing, 1000, 0.5, runtime=runtime)

    started = tiny_report()
    return replace(
        started,
        task=replace(started.task, headline=metric),
        candidates={
            "teacher": candidate(teacher, None, ONNX_RUNTIME),
            "student": candidate(student, 0.8123, "torch"),
            "onnx/model_int8.onnx": candidate(student - 0.05, 0.7654, ONNX_RUNTIME),
        },
        comparisons={} if metric == AGREEMENT else {"student_vs_teacher": Comparison({})},
    )


@pytest.mark.parametrize("metric", [*METRIC_NAMES, AGREEMENT])
def test_every_headline_is_shown_by_verdict_card_and_page(metric, tmp_path):
    report = report_of(metric, 0.6321, 0.7)
    student = "0.812" if metric == AGREEMENT else "0.632"
    file = "0.765 [0.755, 0.775]" if metric == AGREEMENT else "0.582 [0.482, 0.682]"
    name = headline_name(metric)
    assert name and student in report.verdict() and headline_figure(report.candidates["student"], metric)
    report.save(tmp_path)
    assert EvaluationReport.load(tmp_path).verdict() == report.verdict()
    card = build_model_card(report, model_name="alice/student").content
    # The teacher's file is none of the student's.
    assert [line for line in card.splitlines() if " MB" in line and line.startswith("- ")] == [
        f"- onnx/model_int8.onnx: {name} {file}, 0.5 MB"
    ]
    alone = replace(report, candidates={name: report.candidates[name] for name in ("teacher", "student")})
    assert "ONNX Runtime" not in build_model_card(alone, model_name="alice/student").content
    pytest.importorskip("matplotlib", reason="needs the extra `report`")
    page = html.unescape(render_page(report))
    assert f"<dt>{name}</dt><dd>{student}</dd>" in page
    assert "Quality against cost" in page


@pytest.mark.parametrize(("teacher", "kept"), [(0.7, "90.3 %"), (0.0, "n/a"), (-0.7, "n/a"), (math.nan, "n/a")])
def test_of_a_teacher_that_is_not_above_zero_no_share_is_kept(teacher, kept):
    report = report_of("pearson", 0.6321, teacher)
    assert f"The student keeps {kept} of the teacher's Pearson correlation" in report.verdict()
    assert (retention(0.6321, teacher) is None) == (kept == "n/a")
    pytest.importorskip("matplotlib", reason="needs the extra `report`")
    assert html.unescape(render_page(report)).count("of the teacher's Pearson") == (1 if kept == "n/a" else 2)


def ties(least: Fraction, most_rows: int) -> list[tuple[int, int, int]]:
    """All counts of right answers of which the one is exactly that share of the other, on up to so many rows."""
    step = least.denominator
    return [
        (own * least.numerator // step, own, rows)
        for rows in range(1, most_rows + 1)
        for own in range(step, rows + 1, step)
    ]


@pytest.mark.parametrize("least", [0.95, 0.98, 0.99])
def test_exactly_the_share_that_is_asked_for_is_enough_and_one_answer_less_is_not(least):
    exact = Fraction(str(least))
    for right, own, rows in ties(exact, 500):
        assert Fraction(right, rows) / Fraction(own, rows) == exact
        assert keeps(retention(right / rows, own / rows), least), (right, own, rows)
        assert not keeps(retention((right - 1) / rows, own / rows), least), (right - 1, own, rows)
    many = 1_000_000
    assert not keeps(retention((least * many - 1) / many, 1.0), least) and not keeps(math.nan, least)
    assert not keeps(retention(1.0, 0.0), least)

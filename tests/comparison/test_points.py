"""The Pareto front and the budget's choice, beside naive loops over every pair of models."""

from __future__ import annotations

import math
import random

import pytest

from nlpkd.comparison.points import Limits, Point, pareto_front, pick
from nlpkd.evaluation.records import Interval


def point(name, value, ms, size_mb=1.0, teacher=0.9):
    return Point(
        str(name), Interval(value, value - 0.02, value + 0.02), ms, ms / 2, size_mb, value / teacher, [value], ""
    )


def drawn(seed, count=12):
    """Models on a coarse grid, so that many are as good or as fast as another."""
    generator = random.Random(seed)
    return [
        point(number, generator.randrange(5) / 5, generator.randrange(1, 6), generator.randrange(1, 6))
        for number in range(count)
    ]


@pytest.mark.parametrize("seed", range(40))
def test_the_front_is_what_no_other_model_beats(seed):
    points = drawn(seed)
    expected = set()
    for one in points:
        beaten = False
        for other in points:
            as_good = other.quality.value >= one.quality.value and other.text_to_label_ms <= one.text_to_label_ms
            better = other.quality.value > one.quality.value or other.text_to_label_ms < one.text_to_label_ms
            beaten = beaten or (as_good and better)
        if not beaten:
            expected.add(one.name)
    front = pareto_front(points)
    assert {each.name for each in front} == expected and len(front) == len(expected)
    assert [each.text_to_label_ms for each in front] == sorted(each.text_to_label_ms for each in front)


@pytest.mark.parametrize("seed", range(40))
def test_a_budget_picks_the_best_that_fits_and_a_retention_alone_the_fastest(seed):
    generator = random.Random(seed)
    points = drawn(seed)
    for _ in range(8):
        limits = Limits(
            max_latency_ms=generator.choice([None, 2.0, 3.5]),
            max_size_mb=generator.choice([None, 2.0, 3.5]),
            min_retention=generator.choice([None, 0.5, 0.9]),
        )
        best = None
        for each in points:
            if limits.max_latency_ms is not None and each.text_to_label_ms > limits.max_latency_ms:
                continue
            if limits.max_size_mb is not None and each.size_mb > limits.max_size_mb:
                continue
            if limits.min_retention is not None and each.quality.value / 0.9 < limits.min_retention:
                continue
            order = (-each.quality.value, each.text_to_label_ms)
            if limits.max_latency_ms is None and limits.max_size_mb is None:
                order = order[::-1]
            if best is None or order < best[0]:
                best = (order, each)
        if limits == Limits():
            best = None
        assert pick(points, limits) == (best and best[1])


def test_a_model_without_a_figure_is_neither_on_the_front_nor_picked():
    points = [point("nan", math.nan, 0.1), point("known", 0.5, 1.0)]
    assert [each.name for each in pareto_front(points)] == ["known"]
    assert pick(points, Limits(max_latency_ms=5.0)).name == "known"
    assert pick(points[:1], Limits(max_latency_ms=5.0)) is None and pareto_front(points[:1]) == []


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["max_latency_ms", "max_size_mb", "min_retention"])
def test_a_limit_that_is_none_is_refused(name, limit):
    with pytest.raises(ValueError, match=f"{name} must be .*above 0"):
        Limits(**{name: limit})


@pytest.mark.parametrize("percentage", [98, 1.01])
def test_a_retention_that_is_no_share_is_refused(percentage):
    with pytest.raises(ValueError, match="min_retention must be a share above 0 and at most 1, such as 0.98 for 98 %"):
        Limits(min_retention=percentage)
    assert Limits(min_retention=1.0).min_retention == 1.0


def test_a_model_that_keeps_exactly_the_share_that_is_asked_for_is_within_the_budget():
    # 19 right of 26 rows where the teacher has 20: the quotient of both accuracies is a digit below 0.95.
    model = point("model", 19 / 26, 1.0, teacher=20 / 26)
    assert model.retention < 0.95 and Limits(min_retention=0.95).allow(model)
    assert not Limits(min_retention=0.95).allow(point("model", 18 / 26, 1.0, teacher=20 / 26))

"""Intervals: they hold their value, stay where the metric can be, and all models have the same resamples."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nlpkd.evaluation.figures.intervals import (
    INTERVAL_PROTOCOL,
    bootstrap_weights,
    interval_of,
    moved_to,
)
from nlpkd.evaluation.records import AGREEMENT, Interval
from nlpkd.evaluation.scoring import task_scoring
from nlpkd.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL

DRAWN = np.random.default_rng(0)


def rows_of(task, classes, rows_a_class, right):
    """Logits and gold of rows, each right by a chance; of several labels the classes get rarer and rarer."""
    gold = np.repeat(np.arange(classes), rows_a_class)
    if task == REGRESSION:
        return DRAWN.normal(size=(len(gold), 1)) + gold[:, None], gold.astype(float)
    if task == MULTI_LABEL:
        gold = np.minimum(DRAWN.geometric(0.4, size=len(gold)) - 1, classes - 1)
    said = np.where(DRAWN.random(len(gold)) < right, gold, DRAWN.integers(classes, size=len(gold)))
    logits, known = np.where(np.eye(classes)[said] == 1, 4.0, -4.0), np.eye(classes)[gold]
    return logits, known if task == MULTI_LABEL else gold


def intervals_of(task, logits, gold):
    scoring = task_scoring(task, None)
    resampled = scoring.resampled(logits, gold, samples=200, seed=42)
    return {name: interval_of(value, resampled[name]) for name, value in scoring.metrics(logits, gold).items()}


@pytest.mark.parametrize("task", [SINGLE_LABEL, MULTI_LABEL, REGRESSION])
@pytest.mark.parametrize(("classes", "rows_a_class"), [(2, 1), (2, 40), (60, 1), (60, 2), (12, 6)])
@pytest.mark.parametrize("right", [0.6, 1.0])
def test_an_interval_holds_its_value(task, classes, rows_a_class, right):
    for name, found in intervals_of(task, *rows_of(task, classes, rows_a_class, right)).items():
        assert found.low <= found.value <= found.high, name


@pytest.mark.parametrize("task", [SINGLE_LABEL, MULTI_LABEL])
def test_a_perfect_model_has_no_uncertain_f1_be_a_label_as_rare_as_it_may(task):
    gold = np.repeat(np.arange(5), [290, 200, 5, 4, 1])
    found = intervals_of(
        task, np.where(np.eye(5)[gold] == 1, 5.0, -5.0), np.eye(5)[gold] if task == MULTI_LABEL else gold
    )
    assert {name: each for name, each in found.items() if name.startswith("f1_")} == dict.fromkeys(
        (name for name in found if name.startswith("f1_")), Interval(1.0, 1.0, 1.0)
    )
    # Few rows with any label at all: those resamples that have none say nothing of it.
    few = np.zeros((300, 2))
    few[0, 0] = 1.0
    assert intervals_of(MULTI_LABEL, np.where(few == 1, 5.0, -5.0), few)["f1_macro"] == Interval(1.0, 1.0, 1.0)


def test_the_protocol_says_on_which_side_of_its_value_a_resampled_macro_f1_lies():
    logits, gold = rows_of(SINGLE_LABEL, 60, 3, 0.7)
    scoring = task_scoring(SINGLE_LABEL, None)
    measured, resampled = scoring.metrics(logits, gold), scoring.resampled(logits, gold, samples=200, seed=0)
    assert resampled["f1_macro"].mean() < measured["f1_macro"] - 0.01
    assert "lowers a macro F1 of classes with few rows" in INTERVAL_PROTOCOL and "lies low" in INTERVAL_PROTOCOL


@pytest.mark.parametrize(
    ("metric", "task", "least", "most"),
    [
        ("accuracy", SINGLE_LABEL, 0.0, 1.0),
        ("f1_macro", MULTI_LABEL, 0.0, 1.0),
        (AGREEMENT, SINGLE_LABEL, 0.0, 1.0),
        (AGREEMENT, REGRESSION, -1.0, 1.0),
        ("pearson", REGRESSION, -1.0, 1.0),
        ("matthews_correlation", SINGLE_LABEL, -1.0, 1.0),
        ("mean_absolute_error", REGRESSION, 0.0, math.inf),
    ],
)
def test_a_moved_interval_keeps_its_width_within_what_the_metric_can_be(metric, task, least, most):
    ends = [max(least, -3.0), min(most, 3.0)]
    for value in np.linspace(*ends, 9):
        for first in np.linspace(*ends, 5):
            found = moved_to(Interval(first, max(least, first - 0.3), min(most, first + 0.2)), value, metric, task)
            assert least <= found.low <= found.value == value <= found.high <= most
    middle = sum(ends) / 2
    moved = moved_to(Interval(middle, middle - 0.2, middle + 0.1), middle + 0.1, metric, task)
    assert (moved.low, moved.high) == pytest.approx((middle - 0.1, middle + 0.2))


def test_a_bootstrap_without_a_seed_is_refused():
    with pytest.raises(ValueError, match="needs a seed"):
        next(bootstrap_weights(3, 2, None))

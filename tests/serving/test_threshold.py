"""The threshold of a cascade: it keeps its promise, and is found where there is one."""

import math

import numpy as np
import pytest
from scipy.stats import beta

from nlpkd.serving.threshold import CERTAINTY, candidates, choose_threshold, fewest_rows, lower_bound


def test_the_bound_is_the_beta_quantile_and_without_failures_a_root():
    assert lower_bound(96, 100) == pytest.approx(beta.ppf(0.05, 96, 5))
    assert lower_bound(149, 149) == pytest.approx(0.05 ** (1 / 149))
    assert lower_bound(0, 50) == 0 == lower_bound(0, 0)


@pytest.mark.parametrize("target", [0.8, 0.95, 0.98])
def test_the_fewest_rows_show_the_target_with_one_failure_and_one_row_less_does_not(target):
    rows = fewest_rows(target)
    assert beta.ppf(0.05, rows - 1, 2) >= target > beta.ppf(0.05, rows - 2, 2)


def test_the_threshold_is_the_lowest_before_the_first_failure():
    generator = np.random.default_rng(0)
    confidences = generator.uniform(0.5, 1, 2000)
    right = generator.uniform(size=2000) < confidences
    curve = choose_threshold(confidences, right, None, 0.9)
    assert curve
    for each in curve:
        answered = confidences >= each["threshold"]
        assert each["answered"] == pytest.approx(answered.mean())
        assert each["found"] == pytest.approx(right[answered].mean())
        assert each["low"] == pytest.approx(beta.ppf(0.05, right[answered].sum(), (~right[answered]).sum() + 1))
        assert each["low"] >= 0.9
    assert [each["answered"] for each in curve] == sorted(each["answered"] for each in curve)


@pytest.mark.parametrize("distinct", [400, 20, 1])
def test_no_threshold_lies_where_the_last_digits_of_a_confidence_decide(distinct):
    generator = np.random.default_rng(0)
    confidences = np.resize(generator.uniform(0.5, 1, distinct), 400)
    computed = [confidences + generator.normal(size=400) * 1e-8 for _ in range(2)]
    curve = choose_threshold(computed[0], np.ones(400, dtype=bool), None, 0.9)
    assert curve[-1]["answered"] == 1.0
    for each in curve:
        assert ((computed[0] >= each["threshold"]) == (computed[1] >= each["threshold"])).all()


@pytest.mark.parametrize("kind", ["agreement", "accuracy"])
def test_over_200_random_splits_the_target_is_broken_as_rarely_as_promised(kind):
    generator = np.random.default_rng(3)
    confidences = generator.uniform(0.5, 1, 100_000)
    right = generator.uniform(size=100_000) < confidences
    teacher = generator.uniform(size=100_000) < 0.97
    broken = chosen = 0
    for _ in range(200):
        rows = generator.integers(100_000, size=600)
        otherwise = None if kind == "agreement" else teacher
        curve = choose_threshold(confidences[rows], right[rows], None if otherwise is None else otherwise[rows], 0.9)
        if curve:
            chosen += 1
            answered = confidences >= curve[-1]["threshold"]
            truth = right[answered] if otherwise is None else np.where(answered, right, otherwise)
            broken += truth.mean() < 0.9
    assert chosen >= 100
    assert broken <= 200 * 0.05 + 3 * math.sqrt(200 * 0.05 * 0.95)


def test_too_few_rows_and_impossible_targets_are_refused():
    confidences, right = np.full(20, 0.9), np.ones(20, dtype=bool)
    with pytest.raises(ValueError, match=r"at least 236 rows, and there are 20"):
        choose_threshold(confidences, right, None, 0.98)
    assert choose_threshold(np.full(300, 0.9), np.zeros(300, dtype=bool), None, 0.98) == []


@pytest.mark.parametrize("target", [0.5, 0.8, 0.94, 0.98])
@pytest.mark.parametrize("rows", [300, 872, 2500])
def test_thresholds_are_tried_where_one_more_failure_shows_the_target(target, rows):
    confidences, right = np.linspace(0.5, 1, rows), np.ones(rows, dtype=bool)
    *tried, last = (round(each["answered"] * rows) for each in candidates(confidences, right, None, target, CERTAINTY))
    assert last == rows and tried == sorted(tried) and len(tried) <= 50
    assert min(rows / 4, fewest_rows(target)) <= tried[0] <= max(rows / 3, fewest_rows(target))
    for count in tried:
        failures = max(each for each in range(count) if lower_bound(count - each, count) >= target)
        assert lower_bound(count - 1 - failures, count - 1) < target


def test_a_few_disagreements_among_the_surest_texts_do_not_end_the_search():
    # The surest texts agree in 97 %, which is well above the target.
    generator = np.random.default_rng(5)
    shares = []
    for _ in range(50):
        confidences = generator.uniform(0.5, 1, 1000) ** 0.1
        right = generator.uniform(size=1000) < np.minimum(confidences, 0.97)
        curve = choose_threshold(confidences, right, None, 0.9)
        shares.append(curve[-1]["answered"] if curve else 0.0)
    assert min(shares) > 0.5

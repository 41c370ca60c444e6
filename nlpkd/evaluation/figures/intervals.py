"""Bootstrap resamples of rows, and the 95 % intervals that are made of them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from scipy.sparse import csr_array
from scipy.stats import rankdata

from nlpkd.evaluation.records import AGREEMENT, Interval
from nlpkd.tasks import REGRESSION

INTERVAL_PROTOCOL = (
    "95 % intervals: percentile bootstrap over the {rows:,} rows, {samples:,} resamples, seed {seed}, the same "
    "resamples for every candidate; resampling inflates a calibration error, so that its interval lies high, and "
    "lowers a macro F1 of classes with few rows, since a class loses more by rows that are not drawn than it gains by "
    "those that are drawn twice, so that its interval lies low; an interval beside its value is widened to it"
)
"""What a report says of its intervals."""


_SHARES = ("accuracy", "f1_macro", "f1_micro", "f1_weighted", "expected_calibration_error", AGREEMENT)


_RANGES = {
    **dict.fromkeys(_SHARES, (0.0, 1.0)),
    **dict.fromkeys(("matthews_correlation", "pearson", "spearman"), (-1.0, 1.0)),
    **dict.fromkeys(("mean_squared_error", "mean_absolute_error"), (0.0, math.inf)),
}


def interval_of(value: float, resampled: np.ndarray) -> Interval:
    """Make the percentile interval of a value, which it always holds.

    Args:
        value: on all rows.
        resampled: the same function of each resample's rows, `(samples,)`; NaN of those that don't define it.

    Returns:
        The value between the 2.5th and the 97.5th percentile, or where it lies beside them up to itself.
    """
    known = resampled[~np.isnan(resampled)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (value, value)
    return Interval(float(value), float(min(low, value)), float(max(high, value)))


def moved_to(interval: Interval, value: float, metric: str, problem_type: str | None) -> Interval:
    """Move an interval to another value, such as the mean over seeds, within what the metric can be.

    Args:
        interval: of a figure.
        value: that it is moved to.
        metric: of both, `agreement` too.
        problem_type: the task, by which an agreement is a share or a correlation.

    Returns:
        The interval, as wide as it was, cut where the metric ends.
    """
    if metric == AGREEMENT and problem_type == REGRESSION:
        metric = "pearson"
    least, most = _RANGES.get(metric, (-math.inf, math.inf))
    ends = np.array([interval.low, interval.high]) + (value - interval.value)
    low, high = np.clip(ends, least, most)
    return Interval(value, float(np.minimum(low, value)), float(np.maximum(high, value)))


def bootstrap_totals(counts: np.ndarray | csr_array, samples: int, seed: int) -> np.ndarray:
    """Sum each resample's counts.

    Args:
        counts: `(rows, k)`.
        samples: how many resamples.
        seed: of the draw.

    Returns:
        The sums `(samples, k)`.
    """
    columns, rows = counts.T, counts.shape[0]
    return np.stack([columns @ weights for weights in bootstrap_weights(rows, samples, seed)])


def bootstrap_weights(rows: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Draw rows with replacement, as many as there are, again and again, and count how often each was drawn.

    Args:
        rows: how many rows there are.
        samples: how many resamples.
        seed: of the draw.

    Yields:
        Counts as floats, `(rows,)`.

    Raises:
        ValueError: when `samples` is below 1, or there is no seed: two models would be measured on other rows.
    """
    if seed is None:
        raise ValueError("a bootstrap needs a seed, so that all models have the same resamples: found seed=None")
    if samples < 1:
        raise ValueError(f"a bootstrap needs at least 1 resample, found samples={samples}")
    generator = np.random.default_rng(seed)
    for _ in range(samples):
        yield np.bincount(generator.integers(rows, size=rows), minlength=rows).astype(np.float64)


def resampled_correlation(
    first: np.ndarray, second: np.ndarray, *, samples: int, seed: int, ranked: bool = False
) -> np.ndarray:
    """Correlate two columns on each resample.

    Args:
        first: numbers `(rows,)`.
        second: likewise.
        samples: how many resamples.
        seed: of the draw.
        ranked: whether their ranks are correlated (Spearman) instead of themselves (Pearson).

    Returns:
        Correlations `(samples,)`, 0 where one side is constant.
    """
    drawn = bootstrap_weights(len(first), samples, seed)
    if not ranked:
        return np.array([_weighted_correlation(first, second, weights) for weights in drawn])
    # The same number has the same place in the order of every resample.
    own, other = (rankdata(each, method="dense").astype(np.int64) - 1 for each in (first, second))
    ranks = ((_weighted_ranks(own, weights), _weighted_ranks(other, weights), weights) for weights in drawn)
    return np.array([_weighted_correlation(*each) for each in ranks])


def _weighted_correlation(first: np.ndarray, second: np.ndarray, weights: np.ndarray) -> float:
    """Return the Pearson correlation of rows that occur `weights` times, 0 where one side is constant."""
    drawn = weights > 0
    if np.ptp(first[drawn]) == 0 or np.ptp(second[drawn]) == 0:
        return 0.0
    total = weights.sum()
    first, second = first - weights @ first / total, second - weights @ second / total
    return float(weights @ (first * second) / np.sqrt((weights @ first**2) * (weights @ second**2)))


def _weighted_ranks(places: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return each row's mean rank in a resample, `(rows,)`, given its place among the distinct values."""
    counts = np.bincount(places, weights=weights)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]

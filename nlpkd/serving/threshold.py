"""The lowest probability of a student at which what it answers by itself is shown to be good enough."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import takewhile

import numpy as np
from scipy.special import bdtrik, betaincinv

from nlpkd.evaluation.records import percent

CERTAINTY = 0.95

_STEPS = 50

_FIRST_SHARE = 0.25

_ROUNDING = 1e-5


def lower_bound(successes: int, trials: int, certainty: float = CERTAINTY) -> float:
    """Return the one-sided exact bound of Clopper and Pearson (1934) on a share; 0.0 of no trials."""
    if successes == 0:
        return 0.0
    return float(betaincinv(successes, trials - successes + 1, 1 - certainty))


def fewest_rows(target: float, certainty: float = CERTAINTY) -> int:
    """Return how many answered rows can show a target with one failure among them."""
    rows = math.ceil(math.log(1 - certainty) / math.log(target)) if target < 1 else 0
    while target < 1 and lower_bound(rows - 1, rows, certainty) < target:
        rows += 1
    return rows


def refuse_too_few_rows(rows: int, target: float, certainty: float = CERTAINTY) -> None:
    """Refuse rows that can't show a target, whatever is answered on them.

    Args:
        rows: how many there are.
        target: the least share.
        certainty: one minus the level of a test.

    Raises:
        ValueError: if there are too few.
    """
    least = fewest_rows(target, certainty)
    if rows < least or target >= 1:
        raise ValueError(
            f"a target of {percent(target, 2)} with {percent(certainty, 0)} certainty needs at least "
            f"{least or 'infinitely many'} rows, and there are {rows}: give more rows, or a lower target"
        )


def choose_threshold(
    confidences: np.ndarray,
    right: np.ndarray,
    otherwise: np.ndarray | None,
    target: float,
    certainty: float = CERTAINTY,
) -> list[dict[str, float]]:
    """Find the lowest threshold at which a target holds.

    Candidates are tested from the strictest on, each at the whole level, until one fails: fixed-sequence testing, as
    in Angelopoulos et al. (2021), "Learn then Test", arXiv:2110.01052. Which shares of the rows are candidates is
    settled by the confidences alone, before anything is known of right and wrong.

    Args:
        confidences: of the student, `(rows,)`.
        right: whether its answer is as it should be, `(rows,)`.
        otherwise: whether the answer of the large model is, `(rows,)`, where the target is on all rows; None where it
            is on the rows that the student answers.
        target: the least share.
        certainty: one minus the level of each test.

    Returns:
        The candidates that hold, the strictest first, as `CascadeRecord.curve` has them; none if the first fails.

    Raises:
        ValueError: if there are too few rows to show the target.
    """
    refuse_too_few_rows(len(confidences), target, certainty)
    found = candidates(confidences, right, otherwise, target, certainty)
    return list(takewhile(lambda each: each["low"] >= target, found))


def candidates(
    confidences: np.ndarray, right: np.ndarray, otherwise: np.ndarray | None, target: float, certainty: float
) -> Iterator[dict[str, float]]:
    """Go through the thresholds that `choose_threshold` tries, the strictest first.

    Args:
        confidences: as there, like all others.
        right: likewise.
        otherwise: likewise.
        target: likewise.
        certainty: likewise.

    Yields:
        What `CascadeRecord.curve` has of each.
    """
    ordered = np.sort(confidences)[::-1]
    rows = len(ordered)
    counts = _counts(rows, target, certainty) if otherwise is None else _steps(np.arange(1, rows + 1))
    for count in counts:
        threshold = _threshold_below(ordered[count - 1], ordered)
        answered = confidences >= threshold
        successes = right[answered] if otherwise is None else np.where(answered, right, otherwise)
        low = lower_bound(int(successes.sum()), len(successes), certainty)
        found = {"threshold": threshold, "answered": float(answered.mean()), "found": float(successes.mean())}
        yield found | {"low": low}


def _counts(rows: int, target: float, certainty: float) -> np.ndarray:
    """Return how many texts are answered at each candidate, where the target is on these.

    Each is the fewest texts that show the target with one failure more. They begin with a quarter of the rows, where
    there are enough: of few texts two failures would end the search, however good all others are.
    """
    failures = np.floor(bdtrik(1 - certainty, np.arange(rows + 1), 1 - target))
    more = np.flatnonzero(np.diff(np.nan_to_num(failures, nan=-1.0)) > 0) + 1
    first = max(fewest_rows(target, certainty), _FIRST_SHARE * rows)
    return np.unique(np.append(_steps(more[more >= first]), rows))


def _steps(counts: np.ndarray) -> np.ndarray:
    """Return some of many counts, the first and the last among them."""
    return counts[np.unique(np.linspace(0, len(counts) - 1, _STEPS).round().astype(int))] if len(counts) else counts


def _threshold_below(least_sure: float, confidences: np.ndarray) -> float:
    """Return a threshold halfway from the least confidence of those to be answered to the next one.

    The last digits of a text's confidence depend on the texts beside it: asked alone it has to stay above.
    """
    above = confidences >= least_sure - _ROUNDING
    least, others = confidences[above].min(), confidences[~above]
    return float((least + others.max()) / 2 if len(others) else least - _ROUNDING)

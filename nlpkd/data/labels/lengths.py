"""Whether the length of a text goes with its label, so that batches of like lengths would have like labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nlpkd.tasks import is_unlabelled

UNGROUPED_ABOVE = 0.2
"""Share of the lengths' variance that goes with the label, above which batches are drawn from rows of all lengths."""


def length_share(lengths: Sequence[int] | np.ndarray, labels: Any) -> float:
    """Compute which share of the variance of the lengths goes with the label.

    Of c classes on n rows the squared correlation ratio without what chance gives, 1 - (1 - eta^2) (n - 1) / (n - c),
    where eta^2 = sum_c n_c (m_c - m)^2 / sum_i (l_i - m)^2, with m_c the mean length of the n_c rows of a class and m
    that of all rows (Kelley 1935, "An Unbiased Correlation Ratio Measure"); of several labels a row the largest one of
    a label; of scores the squared Pearson correlation.

    Args:
        lengths: of the rows.
        labels: class ids `(rows,)`, zeros and ones `(rows, labels)`, or scores `(rows,)`; unlabelled rows are left
            out.

    Returns:
        A number up to 1; 0 where there are no more rows than classes.
    """
    sizes, gold = np.asarray(lengths, dtype=np.float64), np.asarray(labels)
    known = ~is_unlabelled(gold)
    sizes, gold = sizes[known], gold[known]
    if len(sizes) < 2 or np.ptp(sizes) == 0:
        return 0.0
    if gold.ndim == 2:
        return max(length_share(sizes, column.astype(np.int64)) for column in gold.T)
    if gold.dtype.kind == "f":
        return float(np.corrcoef(sizes, gold)[0, 1] ** 2) if np.ptp(gold) else 0.0
    _, places = np.unique(gold, return_inverse=True)
    counts, sums = np.bincount(places), np.bincount(places, weights=sizes)
    within = ((sizes - (sums / counts)[places]) ** 2).sum() / ((sizes - sizes.mean()) ** 2).sum()
    rows, classes = len(sizes), len(counts)
    return float(1 - within * (rows - 1) / (rows - classes)) if rows > classes else 0.0

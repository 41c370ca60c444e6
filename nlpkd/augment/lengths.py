"""Rows drawn so that they are as long as other texts are."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import numpy as np
from datasets import Dataset

from nlpkd.augment.words import words_of
from nlpkd.data.columns import each_text
from nlpkd.data.rows import refuse_other_than_dataset
from nlpkd.utils.field_types import plain_arguments

logger = logging.getLogger(__name__)


BINS = 20


FILLED = 0.9


@plain_arguments
def follow_lengths(rows: Dataset, texts: Iterable[str], columns: Sequence[str], seed: int = 42) -> Dataset:
    """Draw rows whose lengths are spread as those of other texts, such as unlabelled text of the field.

    Lengths are numbers of words, in bins by the twentieths of the texts' own. As many rows are drawn as there can be
    while nine tenths of them are still found in their bins.

    Args:
        rows: to draw from, without replacement.
        texts: whose lengths are followed.
        columns: of the rows' texts; the lengths of pairs are those of both texts together.
        seed: seeds the draws.

    Returns:
        The rows drawn, in their order.

    Raises:
        ValueError: if there are no texts, a table or one text in their place, or hardly any row is as long as they
            are.
    """
    refuse_other_than_dataset(rows, "rows")
    names = list(each_text(columns, "columns"))
    wanted = np.array([len(words_of(text)) for text in each_text(texts, "texts") if text.strip()])
    if not len(wanted):
        raise ValueError("there are no texts whose lengths could be followed: give some")
    found = np.zeros(len(rows), dtype=int)
    for column in names:
        found += np.array([len(words_of(text)) for text in rows[column]], dtype=int)
    # Equal quantiles are one edge, so that no bin is empty of texts.
    edges = np.unique(np.quantile(wanted, np.arange(1, BINS) / BINS))
    shares = np.bincount(np.searchsorted(edges, wanted), minlength=len(edges) + 1) / len(wanted)
    bins = np.searchsorted(edges, found)
    # Rows longer or shorter than any text are of no bin.
    bins[(found < wanted.min()) | (found > wanted.max())] = len(shares)
    there = np.bincount(bins, minlength=len(shares) + 1)[: len(shares)]
    # The largest number of rows of which nine tenths are found; that share never grows with the number.
    low, high = 0, len(rows)
    while low < high:
        middle = (low + high + 1) // 2
        enough = np.minimum(there, shares * middle).sum() >= FILLED * middle
        low, high = (middle, high) if enough else (low, middle - 1)
    counts = np.minimum(there, np.floor(shares * low + 0.5).astype(int))
    if not counts.sum():
        raise ValueError(
            f"the rows have {found.min()} to {found.max()} words and the texts whose lengths they should follow "
            f"{wanted.min()} to {wanted.max()}: give more copies, or other texts"
        )
    generator = np.random.default_rng(seed)
    chosen = [
        generator.choice(np.flatnonzero(bins == place), count, replace=False) for place, count in enumerate(counts)
    ]
    logger.info("%d of %d rows follow the lengths of %d texts", counts.sum(), len(rows), len(wanted))
    return rows.select(np.sort(np.concatenate(chosen)))

"""Rows that something is fitted on, apart from those that the figures are of."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np
from datasets import Dataset

from nlpkd.data.collator import flat_numbers
from nlpkd.data.columns import DOCUMENT
from nlpkd.data.rows import count_texts, has_unlabelled
from nlpkd.data.text_classification import TextClassificationData
from nlpkd.tasks import REGRESSION

logger = logging.getLogger(__name__)


def apart_from(held_out: Dataset, measured: Dataset) -> Dataset:
    """Leave out the held-out rows that a student reads as it reads a measured row, whatever their labels.

    Args:
        held_out: tokenised rows; of windows a text goes or stays as a whole.
        measured: likewise.

    Returns:
        The other held-out rows; itself where none is a measured one, or where nobody tokenised them.
    """
    if not all("input_ids" in rows.column_names for rows in (held_out, measured)):
        return held_out
    known = set(_as_read(measured))
    shared = np.fromiter((row in known for row in _as_read(held_out)), dtype=bool, count=len(held_out))
    if DOCUMENT in held_out.column_names:
        documents = np.asarray(held_out[DOCUMENT][:])
        shared = ~np.isin(documents, documents[~shared])
    return held_out.select(np.flatnonzero(~shared)) if shared.any() else held_out


def rows_to_fit(data: TextClassificationData, measured: str) -> Dataset | None:
    """Choose the rows of a run to fit thresholds or temperatures on.

    Args:
        data: the splits.
        measured: the name of the one that is measured.

    Returns:
        The validation rows that are not measured ones, with a warning where some are; None where there are none, where
        some have no label, and where the task has neither thresholds nor temperatures.
    """
    if measured == "validation" or "validation" not in data or data.problem_type == REGRESSION:
        return None
    validation = data["validation"]
    if has_unlabelled(validation):
        return None
    rows = apart_from(validation, data[measured])
    if len(rows) < len(validation):
        logger.warning(
            "%d of %d validation rows are %s rows too: no thresholds or temperatures are fitted on these.",
            count_texts(validation) - count_texts(rows),
            count_texts(validation),
            measured,
        )
    return rows if len(rows) else None


def _as_read(rows: Dataset) -> Iterator[bytes]:
    """Give what a student reads of each row, its tokens."""
    column = rows.select_columns("input_ids").with_format("arrow")[:]["input_ids"]
    flat = flat_numbers(column)
    tokens: Sequence[np.ndarray]
    if flat is None or flat.lengths is None:
        tokens = [np.asarray(row) for row in column.to_pylist()]
    else:
        tokens = np.split(flat.values, flat.lengths.cumsum()[:-1])
    return (row.astype(np.int64).tobytes() for row in tokens)

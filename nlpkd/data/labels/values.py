"""Columns of labels as arrays, without a Python object for each number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from nlpkd.data.collator import flat_numbers


def label_values(rows: Any, column: str) -> np.ndarray:
    """Read a column of labels.

    Args:
        rows: a data set, which is read without its format, or rows that give a column as a list.
        column: its name.

    Returns:
        Numbers `(rows,)`, or `(rows, labels)` where each row has as many; else what each row has, `(rows,)` objects.
    """
    if not isinstance(rows, Dataset):
        return as_numbers(rows[column])
    flat = flat_numbers(rows.select_columns(column).with_format("arrow")[:][column])
    values = None if flat is None else flat.stacked()
    return as_numbers(rows.with_format(None)[column][:]) if values is None else values


def as_numbers(values: Sequence[Any]) -> np.ndarray:
    """Make an array of rows' values: numbers where they stack, else `(rows,)` objects."""
    try:
        array = np.asarray(values)
    except ValueError:
        # Lists of several lengths.
        array = np.empty(0, dtype=object)
    return array if array.dtype.kind in "biuf" else np.fromiter(values, dtype=object, count=len(values))

"""Soft labels that the data bring along, of an API or of voting people, as a teacher's logits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from nlpkd.data.columns import TEACHER_LOGITS
from nlpkd.data.labels.classes import Classes
from nlpkd.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL

PROBABILITY_FLOOR = 1e-6
"""Smaller probabilities are raised to this before the logarithm is taken."""


_ROUNDING = 1e-3


def add_soft_labels(
    rows: Dataset,
    column: str,
    id2label: Mapping[int, str],
    split: str = "train",
    problem_type: str = SINGLE_LABEL,
) -> Dataset:
    """Turn a column of soft labels into the column `teacher_logits`, which a trainer takes for a teacher.

    A row's value is a list with a number for each label in the order of the ids, a mapping from label names to
    numbers, or a list of `{"label": .., "score": ..}` as a transformers pipeline gives; each also as JSON in a string.
    Numbers are probabilities or votes: they are divided by their sum, except that of probabilities which sum to less
    than 1 (the top k of an API) the rest is spread evenly over the labels that are not named. The logits are the
    logarithms, of at least 1e-6. Of a multi-label task the numbers are probabilities, one a label (0 for a label that
    is not named), and the logits log(p / (1 - p)); of a regression the value is the score.

    Args:
        rows: the rows.
        column: of the soft labels; it is removed.
        id2label: the labels' names by id.
        split: name for the errors.
        problem_type: the task.

    Returns:
        The rows with `teacher_logits`, float32 `(labels,)` each, which carries the labels' names.

    Raises:
        ValueError: if there is no such column, or a value is not what it should be; row and value are named.
    """
    if column not in rows.column_names:
        raise ValueError(f"The {split} split has no column {column!r}; its columns are {rows.column_names}.")
    ids = {name: number for number, name in id2label.items()}

    def logits(value: Any, row: int) -> dict[str, list[float]]:
        try:
            if problem_type == REGRESSION:
                return {TEACHER_LOGITS: [_finite(float(value))]}
            probabilities = _numbers(value, ids) if problem_type == MULTI_LABEL else _probabilities(value, ids)
            if problem_type == MULTI_LABEL:
                if probabilities.max() > 1:
                    raise ValueError("its numbers must be probabilities")
                bounded = np.clip(probabilities, PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
                return {TEACHER_LOGITS: (np.log(bounded) - np.log1p(-bounded)).tolist()}
        except (TypeError, ValueError, KeyError, OverflowError, RecursionError) as error:
            raise ValueError(
                f"Row {row} of the {split} split has the soft label {value!r:.120} in column {column!r}: {error}. "
                f"Give a number for each of {list(ids)}, a mapping from them, or a list of label and score."
            ) from None
        return {TEACHER_LOGITS: np.log(np.maximum(probabilities, PROBABILITY_FLOOR)).tolist()}

    features = rows.features.copy()
    del features[column]
    features[TEACHER_LOGITS] = Classes.of(id2label).vector_feature
    return rows.map(
        logits, input_columns=column, with_indices=True, remove_columns=column, features=features, desc="Soft labels"
    )


def _finite(value: float) -> float:
    if not np.isfinite(value):
        raise ValueError("it must be finite")
    return value


def _probabilities(value: Any, ids: Mapping[str, int]) -> np.ndarray:
    """Read votes or probabilities, `(labels,)`, that sum to 1."""
    numbers, named = _numbers(value, ids), _named(value)
    total = numbers.sum()
    if not total > 0:
        raise ValueError("its numbers must not all be 0")
    free = [number for name, number in ids.items() if named is not None and name not in named]
    if free and total < 1 - _ROUNDING:
        numbers[free] = (1 - total) / len(free)
    return numbers / numbers.sum()


def _numbers(value: Any, ids: Mapping[str, int]) -> np.ndarray:
    """Read one number a label, `(labels,)`, 0 for a label that is not named."""
    numbers, named = np.zeros(len(ids)), _named(value)
    if named is not None:
        unknown = sorted(named.keys() - ids.keys())
        if unknown:
            raise ValueError(f"there is no label {unknown[0]!r}")
        for name, number in named.items():
            numbers[ids[name]] = number
    else:
        value = json.loads(value) if isinstance(value, str) else value
        if len(value) != len(ids):
            raise ValueError(f"it has {len(value)} numbers for {len(ids)} labels")
        numbers[:] = value
    if not np.isfinite(numbers).all() or (numbers < 0).any():
        raise ValueError("its numbers must be finite and not negative")
    return numbers


def _named(value: Any) -> dict[str, Any] | None:
    """Read a mapping from names to numbers in any of its forms; None for a plain list."""
    if isinstance(value, str):
        value = json.loads(value)
    if isinstance(value, Sequence) and value and isinstance(value[0], Mapping):
        value = {entry["label"]: entry["score"] for entry in value}
    if not isinstance(value, Mapping):
        return None
    # Arrow gives every row all the names that any row has, with None for its own gaps.
    return {str(name): number for name, number in value.items() if number is not None}

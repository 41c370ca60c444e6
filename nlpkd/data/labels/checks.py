"""Labels that are none of a task: refused by row, before anything learns or measures them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Value

from nlpkd.data.labels.regression import refuse_mark_among_scores
from nlpkd.data.labels.values import as_numbers, label_values
from nlpkd.data.rows import RowSample, with_column
from nlpkd.tasks import MULTI_LABEL, REGRESSION, UNLABELLED


def with_marks_as_nan(rows: Dataset, column: str) -> Dataset:
    """Mark rows without a score by NaN alone, as `nlpkd.load_text_classification` does.

    Args:
        rows: of a regression task.
        column: of the scores; one of anything but numbers is passed through.

    Returns:
        The rows, or others with NaN in place of -100 and of empty cells.

    Raises:
        ValueError: if -100 may be one of the scores.
    """
    values = rows.select_columns(column).with_format("arrow")[:][column]
    kind = values.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
        return rows
    scores = pc.fill_null(values.cast(pa.float32(), safe=False), math.nan).to_numpy()
    marked = scores == UNLABELLED
    if not (values.null_count or marked.any()):
        return rows
    refuse_mark_among_scores(np.unique(scores).tolist(), column)
    return with_column(rows, column, np.where(marked, np.float32(math.nan), scores), Value("float32"))


def refuse_other_labels(rows: Dataset | RowSample, column: str, task: str, num_labels: int, split: str) -> None:
    """Refuse rows whose labels are not those of a task.

    Args:
        rows: with a format or without.
        column: of the labels.
        task: the problem type.
        num_labels: of the model.
        split: name for the message.

    Raises:
        ValueError: for the first row whose label is neither of the task nor the mark of an unlabelled row.
    """
    wrong = np.flatnonzero(~_fitting(rows, column, task, num_labels))
    if not wrong.size:
        return
    place, number = int(wrong[0]), int(wrong[0])
    if isinstance(rows, RowSample):
        value, number = rows[column][place], rows.numbers[place]
    else:
        value = rows.with_format(None)[place][column]
    noun, advice = "score" if task == REGRESSION else "label", _advice(value, task, num_labels)
    raise ValueError(f"row {number} of the {split} set has {noun} {value!r:.80} in column {column!r}{advice}")


def _fitting(rows: Dataset | RowSample, column: str, task: str, num_labels: int) -> np.ndarray:
    """Check of each row whether its label is of a task: booleans `(rows,)`."""
    values = rows[column] if isinstance(rows, RowSample) else label_values(rows, column)
    if isinstance(values, np.ndarray) and values.dtype != object:
        return _are_labels(values, task, num_labels)
    # One by one, since they differ in type or in shape.
    return np.array([_are_labels(as_numbers([value]), task, num_labels)[0] for value in values])


def _are_labels(values: np.ndarray, task: str, num_labels: int) -> np.ndarray:
    """Check numbers `(rows,)` or `(rows, labels)`: of a task are ids, zeros and ones, or scores, and marks."""
    dimensions, kinds = {MULTI_LABEL: (2, "biuf"), REGRESSION: (1, "iuf")}.get(task, (1, "biu"))
    if values.dtype.kind not in kinds or values.ndim != dimensions:
        return np.zeros(len(values), dtype=bool)
    if task == REGRESSION:
        return ~(np.abs(values) > np.finfo(np.float32).max)
    if task == MULTI_LABEL:
        whole = np.isin(values, (0, 1)).all(axis=1) | (values == UNLABELLED).all(axis=1)
        return whole & (values.shape[1] == num_labels)
    return (values == UNLABELLED) | ((values >= 0) & (values < num_labels))


def _advice(value: Any, task: str, num_labels: int) -> str:
    if task == MULTI_LABEL:
        cells = value if isinstance(value, list) else []
        odd = next((f" (place {place} holds {cell!r})" for place, cell in enumerate(cells) if cell not in (0, 1)), "")
        return (
            f"{odd}, and the task is {task} with {num_labels} labels: give a 0 or 1 for each label, or {UNLABELLED} "
            "for each of them where nobody labelled the row, or load with nlpkd.load_text_classification, whose "
            "soft_label_column takes probabilities"
        )
    if task == REGRESSION:
        return (
            f", which is no finite float32, and the task is {task}: give one score a row, NaN where a row is "
            "unlabelled, or load with nlpkd.load_text_classification"
        )
    if isinstance(value, (list, float)):
        return (
            ", which is no class id: cast ids to int64 (rows.cast_column), give a 0 or 1 for each label and set "
            f"config.problem_type={MULTI_LABEL!r}, or load the data with nlpkd.load_text_classification"
        )
    if isinstance(value, int):
        return f"; the student has labels 0..{num_labels - 1} ({UNLABELLED}: unlabelled)"
    return (
        ", which is no number: load the data with nlpkd.load_text_classification, which numbers names, and give "
        f"{UNLABELLED} where a row is unlabelled"
    )

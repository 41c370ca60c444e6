"""Label order: teacher, student and data must mean the same class by the same index."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset

from nlpkd.data.rows import makes_batches
from nlpkd.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL, UNLABELLED, task_of

logger = logging.getLogger(__name__)


_GENERIC = re.compile(r"(label[_ ]?)?\d+", re.IGNORECASE)


def is_generic(id2label: Mapping[int, str]) -> bool:
    """Check whether label names carry no meaning (`LABEL_0`, `1`), as many checkpoints have them."""
    return all(_GENERIC.fullmatch(str(name)) for name in id2label.values())


def telling_names(id2label: Mapping[int, str]) -> list[str]:
    """Return the label names in the order of their ids, none where they carry no meaning."""
    return [] if is_generic(id2label) else [str(id2label[number]) for number in range(len(id2label))]


def align_names(source: Mapping[int, str], target: Mapping[int, str]) -> list[int] | None:
    """Find for each label of `target` the index that `source` gives it.

    Args:
        source: id2label of a teacher or a dataset.
        target: id2label to follow.

    Returns:
        `order` with source[order[k]] the same name as target[k], letter case and outer spaces aside; None where
        either has generic names, so that names say nothing.

    Raises:
        ValueError: if the numbers of labels differ, or the names contradict each other.
    """
    if len(source) != len(target):
        raise ValueError(
            f"different numbers of labels: {len(source)} ({_listed(source)}) and {len(target)} ({_listed(target)})"
        )
    for names in (source, target):
        if sorted(names) != list(range(len(names))):
            raise ValueError(f"label ids must count from 0 without gaps, got {_listed(names)}: mend config.id2label")
    if is_generic(source) or is_generic(target):
        return None
    index = {_plain(name): k for k, name in source.items()}
    wanted = [_plain(target[k]) for k in range(len(target))]
    if len(index) != len(source) or set(index) != set(wanted):
        raise ValueError(
            f"label names contradict each other: {_listed(source)} and {_listed(target)}. If they mean the same, set "
            "config.id2label of one model to the other's names, in its own order"
        )
    return [index[name] for name in wanted]


def _plain(name: object) -> str:
    return str(name).strip().casefold()


def _listed(id2label: Mapping[int, str]) -> str:
    return ", ".join(f"{k}: {id2label[k]!r}" for k in sorted(id2label))


_LABEL_COLUMNS = ("labels", "label", "label_ids")


def label_column(dataset: Any) -> str | None:
    """Return the name of the column of a data set that holds gold labels, or None."""
    return next((name for name in _LABEL_COLUMNS if name in (getattr(dataset, "column_names", None) or ())), None)


def class_names_of(rows: Any) -> list[str] | None:
    """Read the names that rows have for their classes, in the order of their ids; None where they have none."""
    if makes_batches(rows):
        return rows.names
    column = label_column(rows)
    feature = rows.features[column] if isinstance(rows, Dataset) and column is not None else None
    return feature.names if isinstance(feature, ClassLabel) else None


def adopt_label_names(student_config: Any, *datasets: Any) -> None:
    """Name the labels of a student as its rows name their classes, where its own names carry no meaning.

    Args:
        student_config: its `id2label` and `label2id` are set; None is passed over.
        *datasets: each a `datasets.Dataset`, a `TextStream`, or a mapping of them; the first one with names that carry
            a meaning is followed, anything else is passed over.
    """
    for rows in datasets:
        if isinstance(rows, dict):
            adopt_label_names(student_config, *rows.values())
            continue
        id2label = dict(enumerate(class_names_of(rows) or ()))
        if student_config is None or len(id2label) != len(student_config.id2label):
            continue
        if is_generic(student_config.id2label) and not is_generic(id2label):
            student_config.id2label, student_config.label2id = id2label, {name: k for k, name in id2label.items()}


def align_labels_to_student(rows: Any, student_config: Any, split: str) -> Any:
    """Renumber the labels of rows to the ids of the student, by name, and check that they are in range.

    Args:
        rows: a `datasets.Dataset` or a `TextStream`, or several by name; anything else, and rows without labels, are
            passed through.
        student_config: its `id2label` is followed where both have names that carry a meaning.
        split: name for messages.

    Returns:
        The rows, or others with changed ids where the same names come in another order.

    Raises:
        ValueError: if there are no rows, names contradict each other, or a label is out of range.
    """
    if isinstance(rows, dict):
        return {name: align_labels_to_student(each, student_config, name) for name, each in rows.items()}
    if hasattr(rows, "__len__") and len(rows) == 0:
        raise ValueError(f"the {split} set has no rows")
    column = label_column(rows)
    if student_config is None or not (makes_batches(rows) or (isinstance(rows, Dataset) and column is not None)):
        return rows
    # Which of the rows' classes is each of the student's, by name?
    order, names = None, class_names_of(rows)
    if names is not None:
        try:
            order = align_names(dict(enumerate(names)), student_config.id2label)
        except ValueError as error:
            raise ValueError(f"labels of the {split} set and of the student: {error}") from None
    # Are the labels of the student's task, and in range? A stream's are checked where its file is read.
    task = task_of(student_config) or SINGLE_LABEL
    if column is not None and task == SINGLE_LABEL:
        _refuse_out_of_range(rows, column, student_config.num_labels, split)
    elif column is not None:
        _refuse_other_targets(rows, column, task, student_config.num_labels, split)
    if order is None or order == sorted(order):
        return rows
    # The ids change, and the names with them.
    logger.warning("The %s set's label ids follow the student's names: %s.", split, student_config.id2label)
    if column is None:
        return rows.with_class_order(order)
    places = {UNLABELLED: UNLABELLED} | {source: place for place, source in enumerate(order)}
    feature = ClassLabel(names=[student_config.id2label[place] for place in range(len(order))])
    ids = [places[value] for value in rows[column][:]]
    return rows.remove_columns(column).add_column(column, ids, feature=feature)


def _refuse_out_of_range(dataset: Dataset, column: str, num_labels: int, split: str) -> None:
    values = np.asarray(dataset[column][:])
    if values.dtype.kind not in "biuf":
        raise ValueError(
            f"column {column!r} of the {split} set holds labels that are no numbers, such as {values.tolist()[0]!r}: "
            "load the data with nlpkd.load_text_classification, which numbers them"
        )
    bad = np.flatnonzero((values != UNLABELLED) & ((values < 0) | (values >= num_labels)))
    if bad.size:
        raise ValueError(
            f"row {bad[0]} of the {split} set has label {values[bad[0]]} in column {column!r}; the student has labels "
            f"0..{num_labels - 1} ({UNLABELLED}: unlabelled)"
        )


def _refuse_other_targets(dataset: Dataset, column: str, task: str, num_labels: int, split: str) -> None:
    first = np.asarray(dataset[0][column], dtype=object if isinstance(dataset[0][column], str) else None)
    if task == MULTI_LABEL and first.shape != (num_labels,):
        raise ValueError(
            f"the task is {task} with {num_labels} labels, and row 0 of the {split} set has {dataset[0][column]!r} in "
            f"column {column!r}: give a 0 or 1 for each label, or load with nlpkd.load_text_classification"
        )
    if task == REGRESSION and (first.shape or first.dtype.kind not in "fiu"):
        raise ValueError(
            f"the task is {task}, and row 0 of the {split} set has {dataset[0][column]!r} in column {column!r}: give "
            "one score a row, or load with nlpkd.load_text_classification"
        )

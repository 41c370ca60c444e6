"""Label order: teacher, student and data must mean the same class by the same index."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, IterableDataset, LargeList, List, Value

from nlpkd.data.columns import INTEGER, LABEL_COLUMNS, TEACHER_LOGITS
from nlpkd.data.labels.checks import refuse_other_labels, with_marks_as_nan
from nlpkd.data.labels.classes import Classes, rename_classes
from nlpkd.data.labels.values import label_values
from nlpkd.data.rows import formatted_as, is_plain, makes_batches, sample_rows, with_column
from nlpkd.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL, UNLABELLED, task_of

logger = logging.getLogger(__name__)


def telling_names(id2label: Mapping[int, str]) -> list[str]:
    """Return the label names in the order of their ids, none where they carry no meaning."""
    classes = Classes.of(id2label)
    return [] if classes.is_generic else list(classes.names)


_LOOKED_AT = 256
"""Rows of what is no plain data set in which labels out of range are looked for."""


def label_column(dataset: Any) -> str | None:
    """Return the name of the column of a data set that holds gold labels, or None.

    Raises:
        ValueError: if several could be it; a column of texts, such as the labels' names, is none beside numbers.
    """
    columns = getattr(dataset, "column_names", None) or ()
    found = [name for name in LABEL_COLUMNS if name in columns]
    if len(found) > 1 and isinstance(dataset, Dataset):
        found = [name for name in found if getattr(dataset.features[name], "dtype", None) != "string"] or found[:1]
    if len(found) > 1:
        raise ValueError(
            f"the rows have several columns of labels, {found}, of which a batch can hold one: keep one of them "
            "(rows.remove_columns)"
        )
    return found[0] if found else None


def classes_of(rows: Any) -> Classes | None:
    """Read the classes that rows name, in the order of their ids; None where they have no names."""
    if makes_batches(rows):
        return Classes.of(rows.names)
    column = label_column(rows)
    return Classes.of_feature(rows.features[column]) if isinstance(rows, Dataset) and column is not None else None


def adopt_label_names(student_config: Any, *datasets: Any) -> bool:
    """Take from rows what a student's config leaves open: names of labels, and whether there are several a row.

    Args:
        student_config: its `id2label` and `label2id` are set where its own names carry no meaning, and its
            `problem_type` where it has none and the rows have zeros and ones for each label; None is passed over.
        *datasets: each a `datasets.Dataset`, a `TextStream`, or a mapping of them; the first one with names that carry
            a meaning is followed, anything else is passed over.

    Returns:
        Whether it took names.
    """
    took = False
    for rows in datasets:
        if isinstance(rows, dict):
            took |= adopt_label_names(student_config, *rows.values())
            continue
        own, classes = Classes.of_config(student_config), classes_of(rows)
        if own is not None and task_of(student_config) is None and _are_zeros_and_ones(rows, len(own)):
            logger.warning("The rows' labels are zeros and ones, one a label: the student's task is %s.", MULTI_LABEL)
            student_config.problem_type = MULTI_LABEL
        if own is None or classes is None or len(classes) != len(own):
            continue
        # Names of the same numbers in another order are followed, and not taken over.
        if own.is_generic and not classes.is_generic and own.positions_in(classes) is None:
            rename_classes(student_config, classes)
            took = True
    return took


def name_classes(loaded: Any, names: Sequence[str], may_lack: bool = False) -> Any:
    """Name the classes of rows whose labels are numbers, as their user does.

    Args:
        loaded: a `TextClassificationData`.
        names: of the classes in the order of their numbers; none pass it through.
        may_lack: whether rows that have names themselves may lack some of these, as rows to measure on may.

    Returns:
        It with these names; rows that have names themselves keep their order, and must have the same ones.

    Raises:
        ValueError: if there are more or fewer classes than names, two have one name, or the rows have other names.
    """
    if not names:
        return loaded
    own, numbered = Classes.of(loaded.id2label), _are_numbers(loaded)
    try:
        if loaded.problem_type == REGRESSION:
            raise ValueError("a score has no classes to name")
        wanted = Classes.of(names)
        if "" in wanted.names:
            raise ValueError("one of the classes has no name")
        known = Classes.of(list(map(str, range(len(own))))) if numbered else own
        if may_lack and not numbered:
            wanted.positions_of(known)
        else:
            known.positions_in(wanted)
    except ValueError as error:
        raise ValueError(f"label_names {list(names)} are not those of the rows: {error}") from None
    if not numbered:
        return loaded
    splits = {split: _renamed(rows, wanted) for split, rows in loaded.splits.items()}
    return replace(loaded, splits=splits, id2label=wanted.id2label)


def name_numbers(loaded: Any, names: Sequence[str]) -> Any:
    """Name the classes of rows whose labels are numbers; warn where rows have other names, and keep these.

    Args:
        loaded: a `TextClassificationData`.
        names: of the classes in the order of their numbers; none pass it through, and so do scores.

    Returns:
        It with these names, or as it is.

    Raises:
        ValueError: if there are more or fewer classes than names, or two have one name.
    """
    if names and loaded.problem_type != REGRESSION:
        if _are_numbers(loaded):
            return name_classes(loaded, names)
        try:
            Classes.of(names).positions_of(Classes.of(loaded.id2label))
        except ValueError as error:
            logger.warning("label_names %s are not those of the rows, which keep their own: %s.", list(names), error)
    return loaded


def _are_numbers(loaded: Any) -> bool:
    own = Classes.of(loaded.id2label)
    return own.is_generic or all(map(INTEGER.fullmatch, own.names))


def _renamed(rows: Any, classes: Classes) -> Any:
    """Name the classes of a data set's columns, or of a stream, by their ids."""
    if makes_batches(rows):
        return rows.with_classes(classes.names, range(len(classes)))
    features = rows.features.copy()
    for column in [name for name, own in _named_columns(rows).items() if own is not None]:
        single = isinstance(features[column], ClassLabel)
        features[column] = ClassLabel(names=list(classes.names)) if single else classes.vector_feature
    return rows.cast(features)


def ask_for_label_names(student_config: Any, rows: Any) -> None:
    """Say that nobody named the classes, where a student is about to answer LABEL_0."""
    own, classes = Classes.of_config(student_config), classes_of(rows)
    if own is not None and own.is_generic and classes is not None and classes.is_generic:
        logger.warning(
            "Nothing names the labels, so that the student will answer %s. To name them, give their names in this "
            "order: label_names=[...], or --label-names NAME,NAME.",
            " or ".join(classes.names[:3]) + (", ..." if len(classes) > 3 else ""),
        )


def align_labels_to_student(rows: Any, student_config: Any, split: str, classes: Classes | None = None) -> Any:
    """Renumber the labels of rows to the ids of the student, by name, and check that they are in range.

    Args:
        rows: of any kind, or several by name. A `datasets.Dataset` and a `TextStream` are looked through as a whole,
            of others some rows; rows without labels are passed through.
        student_config: its `id2label` is followed where both have names that carry a meaning.
        split: name for messages.
        classes: what is followed where the student has no config, such as the training rows' classes.

    Returns:
        The rows, or others with changed ids where the same names come in another order.

    Raises:
        ValueError: if there are no rows, names contradict each other, or a label is out of range.
    """
    if isinstance(rows, dict):
        return {name: align_labels_to_student(each, student_config, name, classes) for name, each in rows.items()}
    if hasattr(rows, "__len__") and len(rows) == 0:
        raise ValueError(f"the {split} set has no rows")
    if rows is None or student_config is None:
        return rows if rows is None else align_rows(rows, classes, split)
    # Names come first: where classes have some, who reads the error knows no ids.
    student_classes = Classes.of_config(student_config)
    _orders(rows, student_classes, split)
    # Rows that are no plain data set are looked at here and there.
    whole = makes_batches(rows) or is_plain(rows)
    seen = rows if whole else sample_rows(rows, _LOOKED_AT)
    column = label_column(seen)
    if column is None and not makes_batches(rows):
        return rows
    # Are the labels of the student's task, and in range? A stream's are checked where its file is read.
    task = task_of(student_config) or SINGLE_LABEL
    if student_config.num_labels is None:
        raise ValueError("the student's config.id2label is None: name each label, such as {0: 'no', 1: 'yes'}")
    if column is not None and task == REGRESSION and is_plain(rows):
        rows = seen = with_marks_as_nan(rows, column)
    if column is not None:
        refuse_other_labels(seen, column, task, student_config.num_labels, split)
    if is_plain(rows) and column is not None and rows.features[column] == Value("bool"):
        rows = formatted_as(rows.with_format(None).cast_column(column, Value("int64")), rows)
    return align_rows(rows, student_classes, split)


def align_rows(rows: Any, classes: Classes | None, split: str) -> Any:
    """Put what rows hold of classes, gold labels and a teacher's logits, into the order of a model's, by name.

    Args:
        rows: of any kind; what carries no names is passed through.
        classes: the model's; None passes the rows through.
        split: name for messages.

    Returns:
        The rows, or others with changed columns where names come in another order. Gold labels of one class a row may
        lack some of the classes.

    Raises:
        ValueError: if the rows have classes that the model has not.
    """
    for column, (own, order) in _orders(rows, classes, split).items():
        if classes is None or order is None or (len(own) == len(classes) and order == sorted(order)):
            continue
        single = column is None or isinstance(rows.features[column], ClassLabel)
        logger.warning("The %s set's label ids follow the student's names: %s.", split, classes.id2label)
        if column is None:
            rows = rows.with_classes(classes.names, order)
        elif not is_plain(rows):
            # What a transform, or who reads a stream, makes of the ids can't be followed.
            raise ValueError(
                f"the {split} set names its classes {list(own.names)} in column {column!r}, and the student "
                f"{list(classes.names)}: rows with a transform, or that can only be iterated, can't be renumbered. "
                "Give the student's config the data's order (id2label, label2id), or cast the column to the student's"
            )
        elif single:
            values = rows.with_format(None)[column][:]
            ids = [order[value] if value in range(len(order)) else value for value in values]
            rows = with_column(rows, column, ids, ClassLabel(names=list(classes.names)))
        else:
            rows = _with_permuted_column(rows, column, order, classes)
    return rows


def _orders(rows: Any, classes: Classes | None, split: str) -> dict[str | None, tuple[Classes, list[int] | None]]:
    """Return the classes that rows name, by column, and the place of each in a model's; None where names tell none."""
    held = {None: classes_of(rows)} if makes_batches(rows) else _named_columns(rows)
    found: dict[str | None, tuple[Classes, list[int] | None]] = {}
    for column, own in held.items():
        if classes is None or own is None:
            continue
        single = column is None or isinstance(rows.features[column], ClassLabel)
        try:
            found[column] = own, classes.positions_of(own) if single else classes.positions_in(own)
        except ValueError as error:
            raise ValueError(f"labels of the {split} set and of the student: {error}") from None
    return found


def _named_columns(rows: Any) -> dict[str, Classes | None]:
    """Return the classes that a data set's columns of labels and of a teacher's logits name."""
    features = getattr(rows, "features", None) if isinstance(rows, (Dataset, IterableDataset)) else None
    columns = {label_column(rows), TEACHER_LOGITS} & set(features or ())
    return {str(column): Classes.of_feature(features[column]) for column in columns}  # type: ignore[index]


def _with_permuted_column(rows: Dataset, column: str, order: list[int], classes: Classes) -> Dataset:
    features = rows.features.copy()
    features[column] = classes.vector_feature

    def permuted(values: Any) -> dict[str, Any]:
        return {column: np.asarray(values, dtype=np.float32)[:, order]}

    plain = rows.with_format(None).map(
        permuted, input_columns=column, batched=True, features=features, desc=f"Ordering {column}"
    )
    return formatted_as(plain, rows)


def _are_zeros_and_ones(rows: Any, num_labels: int) -> bool:
    """Check whether rows have a 0 or 1 for each label, more than one of them."""
    column = label_column(rows) if isinstance(rows, Dataset) and len(rows) else None
    if column is None or num_labels < 2 or not isinstance(rows.features[column], (List, LargeList)):
        return False
    values = label_values(rows, column)
    return values.ndim == 2 and values.shape[1] == num_labels and bool(np.isin(values, (0, 1, UNLABELLED)).all())

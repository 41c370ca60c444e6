"""The task that labels make, and splits with the column "labels" for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from datasets import Dataset, DatasetDict, LargeList, List, Value

from nlpkd.data.columns import INTEGER
from nlpkd.data.labels.classes import Classes
from nlpkd.data.labels.multi_label import encode_multi_label, parse_json_list
from nlpkd.data.labels.regression import encode_scores, parse_number
from nlpkd.data.labels.single_label import encode_labels
from nlpkd.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL, TASKS


@dataclass(frozen=True)
class Targets:
    """Splits with the column "labels", and what it means.

    Attributes:
        splits: "labels" is a ClassLabel (single label), float32 `(labels,)` of zeros and ones (multi-label), or a
            float32 score (regression).
        problem_type: the task.
        names: of the labels in the order of their ids; of a score `["LABEL_0"]`.
    """

    splits: DatasetDict
    problem_type: str
    names: list[str]


def encode_targets(
    splits: DatasetDict,
    column: str | Sequence[str],
    problem_type: str | None = None,
    names: Sequence[str] = (),
    may_lack: bool = False,
) -> Targets:
    """Settle the task, and encode the labels in the column "labels" of every split.

    Several columns, lists, and lists written as JSON are multi-label: lists of names, of ids, or of a 0 or 1 for each
    label; a column for each label holds 0 and 1, or true and false. Numbers with a fraction are scores (regression).
    All else is one class a row; see `nlpkd.data.labels.encode_labels`. An unlabelled training row is -100, alone or in
    a list; NaN too for a score.

    Args:
        splits: the splits, "train" among them.
        column: the label's column, or one a label.
        problem_type: the task, where it should not be read from the values.
        names: of the labels in the order of their ids, as a model has them; the data's own if not given.
        may_lack: whether the rows may lack all of these classes but one, as rows to measure on may.

    Returns:
        The splits, the task and the names.

    Raises:
        ValueError: if a label is missing, of a wrong kind, or unknown; it names split, row, column and value.
    """
    if problem_type is not None and problem_type not in TASKS:
        raise ValueError(f"problem_type={problem_type!r} is no task: use one of {', '.join(TASKS)}")
    task = problem_type or read_task(splits["train"], column)
    if task == MULTI_LABEL:
        known = [] if not names or Classes.of(names).is_generic else names
        encoded, names = encode_multi_label(splits, column, known)
        return Targets(encoded, task, list(names))
    if not isinstance(column, str):
        raise ValueError(f"several label columns {list(column)} are a multi-label task, and problem_type is {task!r}")
    if task == REGRESSION:
        return Targets(encode_scores(splits, column), task, ["LABEL_0"])
    encoded, label = encode_labels(splits, column, names=names, may_lack=may_lack)
    return Targets(encoded, task, list(label.names))


def read_task(train: Dataset, column: str | Sequence[str]) -> str:
    """Read the task from the labels; see `encode_targets`.

    Args:
        train: the training rows.
        column: the label's column, or one a label.

    Returns:
        The problem type.
    """
    if not isinstance(column, str):
        return MULTI_LABEL
    feature = train.features.get(column)
    if isinstance(feature, (List, LargeList)):
        return MULTI_LABEL
    if not isinstance(feature, Value):
        return SINGLE_LABEL
    values = [value for value in train[column][:] if value is not None]
    if feature.dtype in ("string", "large_string"):
        if values and all(value.lstrip().startswith("[") and parse_json_list(value) is not None for value in values):
            return MULTI_LABEL
        numbers = [parse_number(value) for value in values if not INTEGER.fullmatch(value)]
        return REGRESSION if numbers and None not in numbers else SINGLE_LABEL
    if feature.dtype.startswith("float"):
        return SINGLE_LABEL if all(value != value or float(value).is_integer() for value in values) else REGRESSION
    return SINGLE_LABEL

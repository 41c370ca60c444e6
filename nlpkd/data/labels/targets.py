"""The task that labels make, and splits with the column "labels" for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from datasets import Dataset, DatasetDict

from nlpkd.data.labels.kind import read_kind
from nlpkd.data.labels.multi_label import encode_multi_label
from nlpkd.data.labels.regression import encode_scores
from nlpkd.data.labels.single_label import encode_labels
from nlpkd.tasks import MULTI_LABEL, REGRESSION, TASKS


@dataclass(frozen=True)
class Targets:
    """Splits with the column "labels", and what it means.

    Attributes:
        splits: "labels" is a ClassLabel (single label), float32 `(labels,)` of zeros and ones (multi-label), or a
            float32 score (regression).
        problem_type: the task.
        names: of the labels in the order of their ids; of a score `["LABEL_0"]`.
        reason: why the values make this task; empty where they were not asked.
    """

    splits: DatasetDict
    problem_type: str
    names: list[str]
    reason: str = ""


def encode_targets(
    splits: DatasetDict,
    column: str | Sequence[str],
    problem_type: str | None = None,
    names: Sequence[str] = (),
    may_lack: bool = False,
    column_named: bool = False,
) -> Targets:
    """Settle the task, and encode the labels in the column "labels" of every split.

    Several columns, lists, and texts of lists are multi-label: lists of names, of ids, or of a 0 or 1 for each label;
    a column for each label holds 0 and 1, or true and false. Numbers of which any has a fraction are scores
    (regression). All else is one class a row; see `nlpkd.data.labels.kind.read_kind` and
    `nlpkd.data.labels.encode_labels`. An unlabelled training row is -100, alone or in a list; of scores also NaN, or
    no value.

    Args:
        splits: the splits, "train" among them.
        column: the label's column, or one a label.
        problem_type: the task, where it should not be read from the values.
        names: of the labels in the order of their ids, as a model has them; the data's own if not given.
        may_lack: whether the rows may lack all of these classes but one, as rows to measure on may.
        column_named: whether the user named the column, so that any number of classes is meant.

    Returns:
        The splits, the task and the names.

    Raises:
        ValueError: if a label is missing, of a wrong kind, or unknown; it names split, row, column and value.
    """
    if problem_type is not None and problem_type not in TASKS:
        raise ValueError(f"problem_type={problem_type!r} is no task: use one of {', '.join(TASKS)}")
    task, reason = problem_type or MULTI_LABEL, ""
    if problem_type is None and isinstance(column, str):
        kind = read_kind(splits["train"], column, names=names)
        task, reason = kind.task, kind.reason
    if task == MULTI_LABEL:
        encoded, names = encode_multi_label(splits, column, names, column_named)
        return Targets(encoded, task, list(names), reason)
    if not isinstance(column, str):
        raise ValueError(f"several label columns {list(column)} are a multi-label task, and problem_type is {task!r}")
    if task == REGRESSION:
        return Targets(encode_scores(splits, column), task, ["LABEL_0"], reason)
    encoded, label = encode_labels(splits, column, names=names, may_lack=may_lack, column_named=column_named)
    return Targets(encoded, task, list(label.names), reason)


def read_task(train: Dataset, column: str | Sequence[str]) -> str:
    """Read the task from the labels; see `nlpkd.data.labels.kind.read_kind`.

    Args:
        train: the training rows.
        column: the label's column, or one a label.

    Returns:
        The problem type.
    """
    return read_kind(train, column).task if isinstance(column, str) else MULTI_LABEL

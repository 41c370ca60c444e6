"""Labels into class ids, 0/1 vectors, scores."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import ClassLabel, Dataset, DatasetDict, LargeList, List, Value

from nlpkd.data.columns import INTEGER, MAX_CLASSES
from nlpkd.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL, TASKS, UNLABELLED

logger = logging.getLogger(__name__)


_LARGEST = torch.finfo(torch.float32).max


_YES_NO = {"1": 1, "true": 1, "1.0": 1, "0": 0, "false": 0, "0.0": 0}


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
    splits: DatasetDict, column: str | Sequence[str], problem_type: str | None = None, names: Sequence[str] = ()
) -> Targets:
    """Settle the task, and give every split the column "labels" in place of the label columns.

    Several columns, lists, and lists written as JSON are multi-label: lists of names, of ids, or of a 0 or 1 for each
    label; a column for each label holds 0 and 1, or true and false. Numbers with a fraction are scores (regression).
    All else is one class a row; see `nlpkd.data.labels.encode_labels`. An unlabelled training row is -100, alone or in
    a list; NaN too for a score.

    Args:
        splits: the splits, "train" among them.
        column: the label's column, or one a label.
        problem_type: the task, where it should not be read from the values.
        names: of a multi-label task's labels in the order of their ids, as a teacher has them; sorted if not given.

    Returns:
        The splits, the task and the names.

    Raises:
        ValueError: if a label is missing, of a wrong kind, or unknown; it names split, row, column and value.
    """
    if problem_type is not None and problem_type not in TASKS:
        raise ValueError(f"problem_type={problem_type!r} is no task: use one of {', '.join(TASKS)}")
    task = problem_type or read_task(splits["train"], column)
    if task == MULTI_LABEL:
        return _encode_several(splits, column, names)
    if not isinstance(column, str):
        raise ValueError(f"several label columns {list(column)} are a multi-label task, and problem_type is {task!r}")
    if task == REGRESSION:
        return _encode_scores(splits, column)
    encoded, label = encode_labels(splits, column)
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
        if values and all(value.lstrip().startswith("[") and _json_list(value) is not None for value in values):
            return MULTI_LABEL
        numbers = [_number(value) for value in values if not INTEGER.fullmatch(value)]
        return REGRESSION if numbers and None not in numbers else SINGLE_LABEL
    if feature.dtype.startswith("float"):
        return SINGLE_LABEL if all(value != value or float(value).is_integer() for value in values) else REGRESSION
    return SINGLE_LABEL


def _encode_scores(splits: DatasetDict, column: str) -> Targets:
    encoded = {}
    for split, data in splits.items():
        scores = []
        for row, value in enumerate(data[column][:]):
            score = _number(value)
            if score == UNLABELLED and split == "train":
                score = math.nan
            if score is None or abs(score) > _LARGEST or (math.isnan(score) and split != "train"):
                raise ValueError(
                    f"Row {row} of the {split} split has the score {value!r:.80} (column {column!r}), which is no "
                    f"finite float32: mend or remove such rows ({UNLABELLED} in train: the teacher alone gives it)."
                )
            scores.append(score)
        if split == "train" and len({score for score in scores if score == score}) < 2:
            raise ValueError(f"All train rows have the same score (column {column!r}): there is nothing to learn.")
        encoded[split] = data.remove_columns(column).add_column("labels", scores, feature=Value("float32"))
    return Targets(DatasetDict(encoded), REGRESSION, ["LABEL_0"])


def _encode_several(splits: DatasetDict, column: str | Sequence[str], names: Sequence[str]) -> Targets:
    """Turn lists, or a column for each label, into zeros and ones."""
    where = f"column {column!r}" if isinstance(column, str) else f"columns {list(column)}"
    read = {split: _lists(data, split, column) for split, data in splits.items()}
    known = [row for row in read["train"] if not _is_unlabelled(row)]
    if not any(known):
        raise ValueError(f"No train row has any label ({where}), and the labels settle what they are.")
    hot = not isinstance(column, str) or _is_zeros_and_ones(known)
    own = list(column) if not isinstance(column, str) else _own_names(known, hot, where)
    if hot and isinstance(column, str) and len(names) == len(own):
        own = list(names)
    names = list(names) or own
    if unknown := sorted(set(own) - set(names)):
        raise ValueError(f"Labels {unknown[:5]} of the data ({where}) are none of the teacher's, {names[:20]}.")
    if len(names) > MAX_CLASSES:
        raise ValueError(f"There are {len(names)} different labels ({where}): is this the column of the labels?")
    places = {name: names.index(name) for name in own}
    encoded = {}
    for split, rows in read.items():
        targets = []
        for number, row in enumerate(rows):
            if _is_unlabelled(row) and split == "train":
                targets.append([float(UNLABELLED)] * len(names))
                continue
            try:
                chosen = _chosen(row, own, hot)
            except ValueError as error:
                raise ValueError(
                    f"Row {number} of the {split} split has the labels {row!r:.120} ({where}): {error}."
                ) from None
            targets.append([float(place in {places[name] for name in chosen}) for place in range(len(names))])
        data = splits[split].remove_columns([column] if isinstance(column, str) else list(column))
        encoded[split] = data.add_column("labels", targets, feature=List(Value("float32"), length=len(names)))
    return Targets(DatasetDict(encoded), MULTI_LABEL, names)


def _lists(data: Dataset, split: str, column: str | Sequence[str]) -> list[list[Any]]:
    """Read each row's labels as a list: of names, of ids, or of a 0 or 1 for each label."""
    if not isinstance(column, str):
        return [[_zero_or_one(value) for value in row.values()] for row in data.select_columns(list(column))]
    feature = data.features[column]
    inner = feature.feature if isinstance(feature, (List, LargeList)) else None
    rows = []
    for number, value in enumerate(data[column][:]):
        row = _json_list(value) if isinstance(value, str) else value
        if not isinstance(row, list):
            raise ValueError(
                f"Row {number} of the {split} split has {value!r:.120} for labels (column {column!r}): use a list, "
                "empty where no label applies, or a column for each label."
            )
        if isinstance(inner, ClassLabel):
            row = [inner.names[each] if each is not None and 0 <= each < inner.num_classes else each for each in row]
        rows.append([int(each) if isinstance(each, (bool, float)) and each in (0, 1) else each for each in row])
    return rows


def _is_unlabelled(row: list[Any]) -> bool:
    return len(row) > 0 and all(str(each) == str(UNLABELLED) for each in row)


def _is_zeros_and_ones(rows: Sequence[list[Any]]) -> bool:
    lengths = {len(row) for row in rows}
    return len(lengths) == 1 and lengths != {1} and all(each in (0, 1) for row in rows for each in row)


def _own_names(rows: Sequence[list[Any]], hot: bool, where: str) -> list[str]:
    """Name the labels of a list column: numbered ones LABEL_0, ..., others in sorted order."""
    if hot:
        return [f"LABEL_{number}" for number in range(len(rows[0]))]
    found = {each for row in rows for each in row}
    if all(isinstance(each, str) for each in found):
        return sorted(found)
    if all(isinstance(each, int) and each >= 0 for each in found):
        return [f"LABEL_{number}" for number in range(max(found) + 1)]
    raise ValueError(
        f"The labels ({where}) are neither names, nor ids from 0 up, nor a 0 or 1 for each label: found "
        f"{sorted(map(repr, found))[:8]}."
    )


def _chosen(row: list[Any], own: Sequence[str], hot: bool) -> set[str]:
    """Name the labels that apply to a row."""
    if hot:
        if len(row) != len(own) or any(each not in (0, 1) for each in row):
            raise ValueError(f"use a 0 or 1 for each of the {len(own)} labels")
        return {name for name, each in zip(own, row, strict=True) if each == 1}
    chosen = {own[each] if isinstance(each, int) and 0 <= each < len(own) else each for each in row}
    if unknown := sorted(map(repr, chosen - set(own))):
        raise ValueError(f"{unknown[0]} is no label of the train split, which has {list(own)[:20]}")
    return chosen


def _zero_or_one(value: Any) -> Any:
    return _YES_NO.get(str(value).strip().lower(), value)


def _json_list(value: str) -> list[Any] | None:
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) else None


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


LONGEST_NAME = 1000
"""Letters of a class's name."""


def encode_labels(
    splits: DatasetDict, column: str, numbers: Sequence[int] | None = None, labelled_rows: int | None = None
) -> tuple[DatasetDict, ClassLabel]:
    """Give every split the column "labels" with the class ids, the names settled by the train split.

    Names of a ClassLabel are kept; strings get ids in sorted order; integers 0..C-1 without names stay and are named
    "LABEL_0"..; other integers (stars, -1 and 1) get ids in ascending order and their digits as names. A test split
    whose labels are all hidden (-1 or null, as GLUE has them) is dropped with a warning.

    Args:
        splits: the splits, "train" among them.
        column: the label's column.
        numbers: of train's rows, for the errors, where they are examples of a larger set; 0, 1, ... if None.
        labelled_rows: of that set; those of train if None.

    Returns:
        The splits with "labels" in place of ``column``, and the feature that all of them share.

    Raises:
        ValueError: labels that are missing, of a wrong kind, unknown in train, or that make no classes; it names the
            split, the row and the value.
    """
    rows: dict[str, Sequence[int]] = {split: range(len(data)) for split, data in splits.items()}
    rows |= {} if numbers is None else {"train": numbers}
    values = {split: _label_values(data, rows[split], split, column) for split, data in splits.items()}
    if "test" in values and all(value in (None, -1) for value in values["test"]):
        logger.warning("The test split is not used: its labels are hidden (all of them are -1 or null).")
        del values["test"]
    labelled = [value for value in values["train"] if str(value) != str(UNLABELLED)]
    if not labelled:
        raise ValueError(f"No train row has a label (column {column!r}), and the labels settle what the classes are.")
    others = {value for value in labelled if isinstance(value, int) and value != -1}
    # -1 is a class beside 1 alone, but beside 0..C-1 it is a label that is missing.
    hidden = (None,) if others and others != set(range(len(others))) else (None, -1)
    for split, labels in values.items():
        marks = () if split == "train" else (UNLABELLED, str(UNLABELLED))
        _refuse_missing(labels, rows[split], hidden + marks, split, column)
    feature = splits["train"].features[column]
    if isinstance(feature, ClassLabel):
        names, ids = feature.names, _ids_of_names(feature.names)
        if len(set(labelled)) < 2:
            raise ValueError(_too_few(column, labelled[0]))
    else:
        names, ids = _settle_classes(labelled, column, labelled_rows or len(labelled))
    ids = ids | {str(UNLABELLED): UNLABELLED}
    shared = ClassLabel(names=list(names))
    encoded = {}
    for split, labels in values.items():
        for row, value in zip(rows[split], labels, strict=True):
            if str(value) not in ids:
                raise ValueError(
                    f"Label {value!r:.80} (row {row} of the {split} split, column {column!r}) is not a label of the "
                    f"train split, which has {list(names)[:20]}."
                )
        data = splits[split].remove_columns(column)
        encoded[split] = data.add_column("labels", [ids[str(value)] for value in labels], feature=shared)
    return DatasetDict(encoded), shared


def _ids_of_names(names: Sequence[str]) -> dict[str, int]:
    """Map names to ids, and the ids' digits too where no name is made of digits."""
    ids = {str(number): number for number in range(len(names))} if not any(map(INTEGER.fullmatch, names)) else {}
    return ids | {name: number for number, name in enumerate(names)}


def _label_values(data: Dataset, rows: Sequence[int], split: str, column: str) -> list[Any]:
    """Read labels as names or integers: ClassLabel ids by name, booleans as "True", 2.0 as 2, "2" as 2."""
    if column not in data.column_names:
        raise ValueError(f"The {split} split has no column {column!r}; its columns are {data.column_names}.")
    feature, values = data.features[column], data[column][:]
    if isinstance(feature, ClassLabel):
        for row, value in zip(rows, values, strict=True):
            if value not in (None, UNLABELLED) and not -1 <= value < feature.num_classes:
                raise ValueError(
                    f"Label {value} (row {row} of the {split} split, column {column!r}) is outside "
                    f"0..{feature.num_classes - 1}, the range of its names {feature.names[:20]}."
                )
        return [feature.names[value] if value is not None and value >= 0 else value for value in values]
    kind = feature.dtype if isinstance(feature, Value) else type(feature).__name__
    if kind == "bool":
        return [None if value is None else str(value) for value in values]
    if kind in ("string", "large_string"):
        return _names_or_integers(values, rows, split, column)
    if kind.startswith("float"):
        for row, value in zip(rows, values, strict=True):
            if value is not None and value == value and not float(value).is_integer():
                raise ValueError(
                    f"Label {value} (row {row} of the {split} split, column {column!r}) is a score, not a class: make "
                    "classes of the scores, or set problem_type='regression'."
                )
        return [None if value is None or value != value else int(value) for value in values]
    if kind.startswith(("int", "uint")):
        return values
    if kind == "null":
        return values
    raise ValueError(
        f"Labels in column {column!r} of the {split} split are {kind}: use strings or integers, one a row."
    )


def _names_or_integers(
    values: Sequence[str | None], rows: Sequence[int], split: str, column: str
) -> list[str | int | None]:
    for row, value in zip(rows, values, strict=True):
        if value is not None and len(value) > LONGEST_NAME:
            raise ValueError(
                f"Label {value!r:.80} (row {row} of the {split} split, column {column!r}) has {len(value)} letters: "
                "is this the text column? Name the label's column with label_column."
            )
    numeric = all(value is None or INTEGER.fullmatch(value) for value in values)
    return [int(value) if numeric and value is not None else value for value in values]


def _refuse_missing(
    labels: Sequence[Any], rows: Sequence[int], hidden: tuple[Any, ...], split: str, column: str
) -> None:
    for row, value in zip(rows, labels, strict=True):
        if value in hidden or (isinstance(value, str) and not value.strip()):
            raise ValueError(
                f"Row {row} of the {split} split has no label (column {column!r}, value {value!r:.80}): remove such "
                "rows, or give the class a name if it is one."
            )


def _settle_classes(labels: Sequence[Any], column: str, rows: int) -> tuple[list[str], dict[str, int]]:
    """Settle names and ids of classes from the train labels, all strings or all integers."""
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise ValueError(_too_few(column, classes[0]))
    if len(classes) > MAX_CLASSES or (len(classes) > 20 and len(classes) > rows / 2):
        raise ValueError(
            f"Column {column!r} has {len(classes)} different labels in {rows} rows, such as "
            f"{classes[0]!r:.80}: is this the text column, or an id? Name the label's column with label_column."
        )
    if isinstance(classes[0], str):
        folded: dict[str, str] = {}
        for name in classes:
            twin = folded.setdefault(name.strip().casefold(), name)
            if twin != name:
                raise ValueError(
                    f"Labels {twin!r:.80} and {name!r:.80} of column {column!r} differ only in case or blanks."
                )
        names = classes
    elif classes == list(range(len(classes))):
        names = [f"LABEL_{value}" for value in classes]
    else:
        names = [str(value) for value in classes]
    return names, {str(value): number for number, value in enumerate(classes)} | _ids_of_names(names)


def _too_few(column: str, value: object) -> str:
    return f"All train rows have the same label {value!r:.80} (column {column!r}): there is nothing to classify."

"""One class a row: names and ids of the classes."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Value

from nlpkd.data.columns import MAX_CLASSES
from nlpkd.data.labels.classes import NamesOfModel, plain_name, refuse_look_alikes
from nlpkd.data.labels.kind import LabelKind, is_missing, number_of, read_kind, whole_number
from nlpkd.tasks import REGRESSION, UNLABELLED

logger = logging.getLogger(__name__)


LONGEST_NAME = 1000
"""Letters of a class's name."""


def encode_labels(
    splits: DatasetDict,
    column: str,
    numbers: Sequence[int] | None = None,
    labelled_rows: int | None = None,
    names: Sequence[str] = (),
    may_lack: bool = False,
    column_named: bool = False,
) -> tuple[DatasetDict, ClassLabel]:
    """Encode labels as class ids in the column "labels" of every split; the train split settles the names.

    Names of a ClassLabel are kept; texts get ids in sorted order; whole numbers 0..C-1 without names stay and are
    named "LABEL_0"..; others (stars, -1 and 1, scores that are asked for as classes) get ids in ascending order and
    their digits as names. Other splits may have the ids of a ClassLabel or of a model in place of names, where no name
    is a number in any spelling. Where a model's names are given and the labels are among them, the classes are the
    model's, and the rows may lack some, or be text that nobody labelled (all of them -100, or all of them missing).
    Numbers that may be ids, or count from 1, are refused.

    Args:
        splits: the splits, "train" among them.
        column: the label's column.
        numbers: of train's rows, for the errors, where they are examples of a larger set; 0, 1, ... if None.
        labelled_rows: of that set; those of train if None.
        names: of a model's classes in the order of their ids.
        may_lack: whether the rows may lack all of these classes but one, as rows to measure on may.
        column_named: whether the user named the column, so that any number of classes is meant.

    Returns:
        The splits with "labels" in place of ``column``, and the feature that all of them share.

    Raises:
        ValueError: labels that are missing, of a wrong kind, unknown in train, or that make no classes; it names the
            split, the row and the value.
    """
    # Every label as a name or an integer, as train has them.
    rows: dict[str, Sequence[int]] = {split: range(len(data)) for split, data in splits.items()}
    rows |= {} if numbers is None else {"train": numbers}
    kind = read_kind(splits["train"], column, rows["train"], names, one_class=True)
    values = {split: _label_values(data, rows[split], split, column, kind) for split, data in splits.items()}
    if names and all(map(is_missing, values["train"])):
        values["train"] = [UNLABELLED] * len(values["train"])
    # No row may lack its label, but for train rows that are marked.
    labelled = [value for value in values["train"] if str(value) != str(UNLABELLED)]
    feature = splits["train"].features[column]
    if not labelled and not names and not isinstance(feature, ClassLabel):
        raise ValueError(
            f"No train row has a label (column {column!r}), and the labels settle what the classes are: label some, "
            "name the classes of the teacher (config.id2label), or give label_names."
        )
    _refuse_missing(values, rows, column, kind)
    # The train rows settle names and ids of the classes, or a model that has the same ones.
    every = [value for split in values.values() for value in split]
    known = None if isinstance(feature, ClassLabel) else _ids_of_a_model(labelled, every, names, column)
    partly = known and len(labelled) < len(values["train"])
    if len(set(labelled)) == 1 and not may_lack and not partly:
        raise ValueError(_too_few(column, labelled[0]))
    ordered = isinstance(feature, ClassLabel) or known is not None
    named_by_user = bool(names) and not isinstance(names, NamesOfModel)
    if isinstance(feature, ClassLabel):
        names, ids = feature.names, _ids_of_names(feature.names)
    elif known:
        names, ids = known
    else:
        _refuse_other_columns(labelled, column, labelled_rows or len(labelled), column_named)
        names, ids = _settle_classes(labelled, column)
    ids = ids | {str(UNLABELLED): UNLABELLED}
    # All splits get these ids.
    shared = ClassLabel(names=list(names))
    encoded = {}
    for split, labels in values.items():
        unknown = next((row for row, value in enumerate(labels) if str(value) not in ids), None)
        if unknown is not None:
            _refuse_unknown(
                labels[unknown], f"row {rows[split][unknown]} of the {split} split", column, names, ordered
            )
        data = splits[split].remove_columns(column)
        encoded[split] = data.add_column("labels", [ids[str(value)] for value in labels], feature=shared)
    counted = {whole_number(value) for value in every if str(value) not in names} - {None, UNLABELLED}
    if ordered and not named_by_user and counted and 0 not in counted:
        _refuse_counted(counted, names, column)
    if labelled and not may_lack:
        tell_lacking(encoded["train"]["labels"][:], names, "train")
    return DatasetDict(encoded), shared


def _refuse_unknown(value: Any, where: str, column: str, names: Sequence[str], ordered: bool) -> None:
    """Refuse a label that train has not; `ordered` where something says the order of the names."""
    refuse_look_alikes([*names, str(value)], f"column {column!r} ({where})")
    advice = "."
    if whole_number(value) is not None and not ordered and not _has_numbers(names):
        advice = (
            ": nothing says which number is which. Write the names, or give label_names in the order of the numbers."
        )
    raise ValueError(
        f"Label {value!r:.80} ({where}, column {column!r}) is not a label of the train split, which has "
        f"{list(names)[:20]}{advice}"
    )


def tell_lacking(labels: Sequence[int], names: Sequence[str], split: str) -> None:
    """Warn of classes that no row of a split has.

    Args:
        labels: ids of the rows' classes.
        names: of all classes by id.
        split: what the rows are called.
    """
    lacking = sorted(set(range(len(names))).difference(labels))
    if lacking:
        listed = ", ".join(repr(names[number]) for number in lacking[:10]) + (", .." if len(lacking) > 10 else "")
        logger.warning("%d of the %d classes have no %s row: %s.", len(lacking), len(names), split, listed)


def _ids_of_a_model(
    labelled: Sequence[Any], values: Sequence[Any], names: Sequence[str], column: str
) -> tuple[list[str], dict[str, int]] | None:
    """Find a model's ids for labels that are all among its names, or are ids of it; None where neither is so.

    Raises:
        ValueError: if they may be ids, or count the classes from 1.
    """
    if not names:
        return None
    index = {plain_name(name): number for number, name in enumerate(names)}
    ids = {text: index[plain] for text in set(map(str, values)) if (plain := plain_name(text)) in index}
    one_spelling = len({ids.get(str(value)) for value in labelled}) == len(set(map(str, labelled)))
    if one_spelling and all(str(value) in ids for value in labelled):
        return list(names), _ids_of_names(names) | ids
    # Ids without names are checked against gold labels, not taken for the model's names.
    if all(isinstance(value, int) and 0 <= value < len(names) for value in labelled):
        if labelled and 0 not in values:
            _refuse_counted(set(labelled), names, column)
        return [f"LABEL_{number}" for number in range(len(names))], {
            str(number): number for number in range(len(names))
        }
    return None


def _refuse_counted(numbers: Collection[Any], names: Sequence[str], column: str) -> None:
    raise ValueError(
        f"The labels of column {column!r} are the numbers {sorted(numbers)[:20]}, without 0 and without {len(names)}, "
        f"and the classes are {list(names)[:20]}: they may be ids from 0 up of some of the classes, or count the "
        "classes from 1. Write the names of the classes in the column."
    )


def _ids_of_names(names: Sequence[str]) -> dict[str, int]:
    """Map names in an order that is known to ids, and the ids' digits too where no name is a number itself."""
    ids = {str(number): number for number in range(len(names))} if not _has_numbers(names) else {}
    return ids | {name: number for number, name in enumerate(names)}


def _has_numbers(names: Sequence[str]) -> bool:
    return any(number_of(name) is not None for name in names)


def _label_values(data: Dataset, rows: Sequence[int], split: str, column: str, kind: LabelKind) -> list[Any]:
    """Read names or numbers: ClassLabel ids by name, booleans as "True", 2.0 as 2; texts of numbers by their kind."""
    if column not in data.column_names:
        raise ValueError(f"The {split} split has no column {column!r}; its columns are {data.column_names}.")
    feature, values = data.features[column], data[column][:]
    # A ClassLabel names its ids itself.
    if isinstance(feature, ClassLabel):
        for row, value in zip(rows, values, strict=True):
            if value not in (None, UNLABELLED) and not -1 <= value < feature.num_classes:
                raise ValueError(
                    f"Label {value} (row {row} of the {split} split, column {column!r}) is outside "
                    f"0..{feature.num_classes - 1}, the range of its names {feature.names[:20]}."
                )
        return [feature.names[value] if value is not None and value >= 0 else value for value in values]
    # Everything else by each value's own type: names, booleans and gaps, whole numbers; scores where train has them.
    labels: list[Any] = []
    integers, scores = kind.whole and not kind.padded, kind.task == REGRESSION
    for row, value in zip(rows, values, strict=True):
        score = number_of(value) if scores and whole_number(value) != UNLABELLED else None
        if score is not None and math.isfinite(score):
            labels.append(score)
        elif isinstance(value, str):
            if len(value) > LONGEST_NAME:
                raise ValueError(
                    f"Label {value!r:.80} (row {row} of the {split} split, column {column!r}) has {len(value)} "
                    f"letters: is this the text column? A class's name has {LONGEST_NAME} at most."
                )
            number = whole_number(value)
            labels.append(value if number is None or not (integers or number == UNLABELLED) else number)
        elif isinstance(value, bool) or is_missing(value):
            labels.append(str(value) if isinstance(value, bool) else None)
        elif whole_number(value) is not None:
            labels.append(whole_number(value))
        elif number_of(value) is not None:
            raise ValueError(
                f"Label {value} (row {row} of the {split} split, column {column!r}) is a score, not a class: make "
                "classes of the scores, or set problem_type='regression'."
            )
        else:
            told = feature.dtype if isinstance(feature, Value) else type(feature).__name__
            raise ValueError(
                f"Labels in column {column!r} of the {split} split are {told}: use strings or integers, one a row."
            )
    return labels


def _refuse_missing(
    values: Mapping[str, Sequence[Any]], rows: Mapping[str, Sequence[int]], column: str, kind: LabelKind
) -> None:
    """Refuse rows without a label, but for train rows that are marked, and held-out rows all of which are."""
    numbers = {whole_number(value) for value in values["train"] if kind.whole or isinstance(value, int)}
    others = {number for number in numbers if number is not None} - {-1, UNLABELLED}
    # -1 is a class beside 1 alone, and beside others below 0 or with a fraction; else it is a label that is missing.
    a_class = others == {1} or min(others, default=0) < 0 or kind.task == REGRESSION
    hidden: set[Any] = set() if a_class else {-1, *({"-1"} if kind.whole else ())}
    for split, labels in values.items():
        may = split == "train" or all(str(value) == str(UNLABELLED) for value in labels)
        marks = hidden if may else {*hidden, UNLABELLED, str(UNLABELLED)}
        advice = "give such rows a label, leave them out"
        if split == "train":
            advice = f"remove such rows, mark those that the teacher alone labels with {UNLABELLED}"
        for row, value in zip(rows[split], labels, strict=True):
            if value in marks or is_missing(value, kind.whole):
                raise ValueError(
                    f"Row {row} of the {split} split has no label (column {column!r}, value {value!r:.80}): "
                    f"{advice}, or give the class a name if it is one."
                )


def _refuse_other_columns(labels: Sequence[Any], column: str, rows: int, named: bool) -> None:
    """Refuse a column with too many classes for one of labels; if a user named it, only one with a class a row."""
    classes = sorted(set(labels))
    if len(classes) <= 20 or (len(classes) < rows if named else len(classes) <= min(MAX_CLASSES, rows / 2)):
        return
    advice = "Name the label's column with label_column."
    if named:
        advice = "Name another with label_column, or give its classes as a datasets.ClassLabel."
    raise ValueError(
        f"Column {column!r} has {len(classes)} different labels in {rows} rows, such as {classes[0]!r:.80}: is this "
        f"the text column, or an id? {advice}"
    )


def _settle_classes(labels: Sequence[Any], column: str) -> tuple[list[str], dict[str, int]]:
    """Settle names and ids of classes from the train labels, all strings or all integers."""
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise ValueError(_too_few(column, classes[0]))
    if isinstance(classes[0], str):
        refuse_look_alikes(classes, f"column {column!r}")
        numbers = [whole_number(name) for name in classes]
        pairs = zip(classes, numbers, strict=True)
        if twins := [name for name, number in pairs if number is not None and numbers.count(number) > 1]:
            raise ValueError(f"Labels {twins[:2]} of column {column!r} are the same number: write it one way.")
        names = classes
    elif classes == list(range(len(classes))):
        names = [f"LABEL_{value}" for value in classes]
    else:
        names = [str(value) for value in classes]
    if names == ["False", "True"]:
        return names, _ids_of_names(names)
    # Names that were merely sorted have no order that ids could count in.
    ids = {str(value): number for number, value in enumerate(classes)}
    return names, ids | {name: number for number, name in enumerate(names)}


def _too_few(column: str, value: object) -> str:
    return f"All train rows have the same label {value!r:.80} (column {column!r}): there is nothing to classify."

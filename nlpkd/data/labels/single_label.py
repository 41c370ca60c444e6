"""One class a row: names and ids of the classes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Value

from nlpkd.data.columns import INTEGER, MAX_CLASSES
from nlpkd.tasks import UNLABELLED

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
) -> tuple[DatasetDict, ClassLabel]:
    """Encode labels as class ids in the column "labels" of every split; the train split settles the names.

    Names of a ClassLabel are kept; strings get ids in sorted order; integers 0..C-1 without names stay and are named
    "LABEL_0"..; other integers (stars, -1 and 1) get ids in ascending order and their digits as names. Where a model's
    names are given and the labels are among them, the classes are the model's, and the rows may lack some. A test
    split whose labels are all hidden (-1 or null, as GLUE has them) is dropped with a warning.

    Args:
        splits: the splits, "train" among them.
        column: the label's column.
        numbers: of train's rows, for the errors, where they are examples of a larger set; 0, 1, ... if None.
        labelled_rows: of that set; those of train if None.
        names: of a model's classes in the order of their ids.
        may_lack: whether the rows may lack all of these classes but one, as rows to measure on may.

    Returns:
        The splits with "labels" in place of ``column``, and the feature that all of them share.

    Raises:
        ValueError: labels that are missing, of a wrong kind, unknown in train, or that make no classes; it names the
            split, the row and the value.
    """
    # Every label as a name or an integer.
    rows: dict[str, Sequence[int]] = {split: range(len(data)) for split, data in splits.items()}
    rows |= {} if numbers is None else {"train": numbers}
    values = {split: _label_values(data, rows[split], split, column) for split, data in splits.items()}
    if "test" in values and all(value in (None, -1) for value in values["test"]):
        logger.warning("The test split is not used: its labels are hidden (all of them are -1 or null).")
        del values["test"]
    # No row may lack its label, but for train rows that are marked, and held-out rows all of which are.
    labelled = [value for value in values["train"] if str(value) != str(UNLABELLED)]
    feature = splits["train"].features[column]
    if not labelled and not isinstance(feature, ClassLabel):
        raise ValueError(f"No train row has a label (column {column!r}), and the labels settle what the classes are.")
    others = {value for value in labelled if isinstance(value, int) and value != -1}
    # -1 is a class beside 1 alone, but beside 0..C-1 it is a label that is missing.
    hidden = (None,) if others and others != set(range(len(others))) else (None, -1)
    for split, labels in values.items():
        may = split == "train" or all(str(value) == str(UNLABELLED) for value in labels)
        marks = () if may else (UNLABELLED, str(UNLABELLED))
        _refuse_missing(labels, rows[split], hidden + marks, split, column)
    # The train rows settle names and ids of the classes.
    if len(set(labelled)) == 1 and not may_lack:
        raise ValueError(_too_few(column, labelled[0]))
    if isinstance(feature, ClassLabel):
        names, ids = feature.names, _ids_of_names(feature.names)
    elif known := _ids_of_a_model(labelled, [value for split in values.values() for value in split], names, may_lack):
        names, ids = known
    else:
        names, ids = _settle_classes(labelled, column, labelled_rows or len(labelled))
    ids = ids | {str(UNLABELLED): UNLABELLED}
    # All splits get these ids.
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


def _ids_of_a_model(
    labelled: Sequence[Any], values: Sequence[Any], names: Sequence[str], may_be_ids: bool
) -> tuple[list[str], dict[str, int]] | None:
    """Find a model's ids for labels that are all among its names, or are ids of it; None where neither is so."""
    if not names:
        return None
    index = {name.strip().casefold(): number for number, name in enumerate(names)}
    ids = {str(value): index[folded] for value in values if (folded := str(value).strip().casefold()) in index}
    one_spelling = len({ids.get(str(value)) for value in labelled}) == len(set(map(str, labelled)))
    if one_spelling and all(str(value) in ids for value in labelled):
        return list(names), _ids_of_names(names) | ids
    # Ids without names are checked against gold labels, not taken for the model's names.
    if all(isinstance(value, int) and 0 <= value < len(names) for value in labelled):
        return [f"LABEL_{number}" for number in range(len(names))], {
            str(number): number for number in range(len(names))
        }
    return None


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

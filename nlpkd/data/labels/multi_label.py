"""Several labels a row, or none: zeros and ones, one a label."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, LargeList, List

from nlpkd.data.columns import MAX_CLASSES
from nlpkd.data.labels.classes import Classes, plain_name, refuse_look_alikes
from nlpkd.data.labels.kind import is_missing, is_padded, parse_list, whole_number
from nlpkd.tasks import UNLABELLED

NAMES, IDS, ZEROS_AND_ONES = "names", "ids", "zeros and ones"
"""How a split's lists tell their labels."""


_IDS_PER_LABEL = 10
"""Of many ids from 0 up at least one in so many occurs, or they are no ids."""


class _Labels:
    """The labels of a task.

    Attributes:
        names: in the order of the targets.
        ordered: what the ids 0, 1, ... of rows mean, and the places of zeros and ones; None where nothing says it.

    Args:
        names: as above.
        ordered: as above.
        of_holder: whether a model or the user named them, so that rows may write them in another case.
    """

    def __init__(self, names: list[str], ordered: list[str] | None, of_holder: bool = False):
        self.names, self.ordered = names, ordered
        self._places = {name: place for place, name in enumerate(names)}
        alike = {plain_name(name): place for place, name in enumerate(names)}
        self._alike = alike if of_holder and len(alike) == len(names) else {}

    def place_of(self, name: str) -> int | None:
        """Return the place of a label among the targets, by its name."""
        place = self._places.get(name)
        return self._alike.get(plain_name(name)) if place is None and self._alike else place


def encode_multi_label(
    splits: DatasetDict, column: str | Sequence[str], names: Sequence[str] = (), column_named: bool = False
) -> tuple[DatasetDict, list[str]]:
    """Turn lists, or a column for each label, into zeros and ones.

    Each split tells its labels in its own way: by names, by ids, or by a 0 or 1 for each label. Ids, and the places of
    zeros and ones, are those of the train split's `ClassLabel`; else those of the names that are given; else those of
    train's own ids. Where train has names in no order, they are refused.

    Args:
        splits: the splits, "train" among them.
        column: the column of the lists, or one a label; see `encode_targets`.
        names: of the labels in the order of their ids, as a teacher has them; the data's own if they only count.
        column_named: whether the user named the column, so that any number of labels is meant.

    Returns:
        The splits with "labels", float32 `(labels,)` each, in place of the columns, which carries the labels'
        names; and these names.

    Raises:
        ValueError: if a row's labels can't be read, or are unknown; it names split, row and value.
    """
    where = f"column {column!r}" if isinstance(column, str) else f"columns {list(column)}"
    # Every row's labels as a list, however they are written, and what the train rows and the names say of them.
    read = {split: _lists(data, split, column, bool(names)) for split, data in splits.items()}
    labels = _settle_labels(splits["train"], read["train"], column, names, where, column_named)
    if not column_named:
        _refuse_many(len(labels.names), where)
    # Zeros and ones, in the order of the names.
    encoded, train_form = {}, None
    for split in sorted(read, key="train".__ne__):
        rows = _numbers_as_such(read[split], labels.names)
        form = ZEROS_AND_ONES
        if isinstance(column, str):
            form = _form_of(rows, labels, train_form, f"{split} split ({where})")
        train_form = train_form or form
        may_lack = split == "train" or all(map(_is_unlabelled, rows))
        targets = []
        for number, row in enumerate(rows):
            if _is_unlabelled(row) and may_lack:
                targets.append([float(UNLABELLED)] * len(labels.names))
                continue
            if _is_unlabelled(row):
                raise ValueError(
                    f"Row {number} of the {split} split has no labels ({where}, {UNLABELLED}): give such rows labels, "
                    "or leave them out."
                )
            try:
                places = _places(row, labels, form)
            except ValueError as error:
                raise ValueError(
                    f"Row {number} of the {split} split has the labels {row!r:.120} ({where}): {error}."
                ) from None
            targets.append([float(place in places) for place in range(len(labels.names))])
        data = splits[split].remove_columns([column] if isinstance(column, str) else list(column))
        encoded[split] = data.add_column("labels", targets, feature=Classes.of(labels.names).vector_feature)
    return DatasetDict({split: encoded[split] for split in splits}), labels.names


def number_in_lists(data: Dataset, split: str, column: str, names: Collection[str]) -> int | None:
    """Find a number in lists that tell their labels by ids, or by zeros and ones.

    Args:
        data: the rows.
        split: name for the errors.
        column: of the lists.
        names: of the labels; a number that is one of them is a name.

    Returns:
        The first one; None where the lists hold names.
    """
    rows = _numbers_as_such(_lists(data, split, column, named=True), names)
    values = (each for row in rows if not _is_unlabelled(row) for each in row)
    return next((each for each in values if not isinstance(each, str) and str(each) not in names), None)


def _lists(data: Dataset, split: str, column: str | Sequence[str], named: bool) -> list[list[Any]]:
    """Read each row's labels as a list: of names, of ids, or of a 0 or 1 for each label."""
    if not isinstance(column, str):
        return [[_zero_or_one(value) for value in row.values()] for row in data.select_columns(list(column))]
    names, values = _names_of_feature(data, column), data[column][:]
    nobody = named and split == "train" and all(map(is_missing, values))
    rows = []
    for number, value in enumerate(values):
        row = parse_list(value) if isinstance(value, str) else value
        if nobody or whole_number(value) == UNLABELLED:
            row = [UNLABELLED]
        if not isinstance(row, list):
            raise ValueError(
                f"Row {number} of the {split} split has {value!r:.120} for labels (column {column!r}): use a list, "
                "empty where no label applies, or a column for each label."
            )
        if names is not None:
            row = [names[each] if each is not None and 0 <= each < len(names) else each for each in row]
        odd = next((each for each in row if isinstance(each, (list, dict)) or is_missing(each)), "")
        if odd != "" or "" in row:
            raise ValueError(
                f"Row {number} of the {split} split has a list of labels (column {column!r}) that holds {odd!r:.80}: "
                "give names, ids from 0 up, or a 0 or 1 for each label, and leave out what is no label."
            )
        rows.append([int(each) if isinstance(each, float) and each.is_integer() else each for each in row])
    return rows


def _names_of_feature(data: Dataset, column: str) -> list[str] | None:
    """Return the names of a column of lists of a `ClassLabel`."""
    feature = data.features[column]
    inner = feature.feature if isinstance(feature, (List, LargeList)) else None
    return list(inner.names) if isinstance(inner, ClassLabel) else None


def _refuse_many(count: int, where: str) -> None:
    if count > MAX_CLASSES:
        raise ValueError(
            f"There are {count} different labels ({where}): is this the column of the labels? Name it with "
            "label_column."
        )


def _settle_labels(
    train: Dataset,
    rows: Sequence[list[Any]],
    column: str | Sequence[str],
    names: Sequence[str],
    where: str,
    column_named: bool,
) -> _Labels:
    """Settle which labels there are and what ids mean: by a `ClassLabel`, by names that are given, or by the rows."""
    rows = [row for row in rows if not _is_unlabelled(row)]
    given = [] if not names or Classes.of(names).is_generic else list(names)
    ordered = _names_of_feature(train, column) if isinstance(column, str) else list(column)
    if not any(rows) and not given and ordered is None:
        raise ValueError(f"No train row has any label ({where}), and the labels settle what they are.")
    found = {each for row in rows for each in row if isinstance(each, str)}
    refuse_look_alikes(sorted(found), where)
    if not given and ordered is None:
        return _own_labels(rows, len(names), where, column_named)
    labels = _Labels(given or list(ordered or ()), ordered or given, bool(given))
    rows = _numbers_as_such(rows, labels.names)
    own = {each for row in rows for each in row if isinstance(each, str)} if isinstance(column, str) else set(column)
    if unknown := sorted(name for name in own if labels.place_of(name) is None):
        raise ValueError(f"Labels {unknown[:5]} of the data ({where}) are none of the teacher's, {labels.names[:20]}.")
    return labels


def _own_labels(rows: Sequence[list[Any]], count: int, where: str, column_named: bool) -> _Labels:
    """Settle the labels of lists that nothing names: numbered ones LABEL_0, ..., others in sorted order."""
    numbers = _numbers_as_such(rows, ())
    values = {each for row in numbers for each in row}
    # Texts of numbers that do not count from 0 are names, such as years.
    texts = any(isinstance(each, str) for row in rows for each in row)
    if _are_zeros_and_ones(numbers):
        own = [f"LABEL_{number}" for number in range(len(numbers[0]))]
    elif all(isinstance(each, int) and each >= 0 for each in values) and (
        not texts or max(values) < max(count, len(values))
    ):
        largest = max(values)
        if not column_named:
            _refuse_many(largest + 1, where)
        if largest >= max(MAX_CLASSES, _IDS_PER_LABEL * len(values)):
            raise ValueError(
                f"The labels of the train split ({where}) are ids up to {largest}, of which only {len(values)} occur: "
                "ids count the labels from 0. Is this the column of the labels? Write their names as texts, or give "
                "label_names."
            )
        own = [f"LABEL_{number}" for number in range(max(count, largest + 1))]
    else:
        _form_of(rows, _Labels([], None), None, f"train split ({where})")
        return _Labels(sorted({each for row in rows for each in row}), None)
    return _Labels(own, own)


def _form_of(rows: Sequence[list[Any]], labels: _Labels, train_form: str | None, where: str) -> str:
    """Tell by a split's values how its lists tell their labels."""
    rows = [row for row in rows if not _is_unlabelled(row)]
    values = {each for row in rows for each in row}
    known = all(labels.place_of(str(each)) is not None for each in values)
    if _are_zeros_and_ones(rows):
        form = ZEROS_AND_ONES
        if len(rows[0]) == 2 and all(row == [0, 1] and not isinstance(row[0], bool) for row in rows):
            # These may be the ids of two labels as well.
            if labels.ordered is not None and len(labels.ordered) != 2:
                form = IDS
            elif train_form != ZEROS_AND_ONES:
                raise ValueError(
                    f"Every row of the {where} has the labels [0, 1], which are the ids of both labels, or a 0 for "
                    "the first and a 1 for the second: write the names."
                )
    elif known or all(isinstance(each, str) for each in values):
        return NAMES
    elif all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in values):
        form = IDS
    else:
        raise ValueError(
            f"The labels of the {where} are neither names, nor ids from 0 up, nor a 0 or 1 for each label: found "
            f"{sorted(map(repr, values))[:8]}."
        )
    if labels.ordered is None:
        raise ValueError(
            f"The labels of the {where} are {form}, and the train rows have the names {labels.names[:20]}: nothing "
            "says which number is which. Write the names, or give label_names in the order of the numbers."
        )
    return form


def _are_zeros_and_ones(rows: Sequence[list[Any]]) -> bool:
    lengths = {len(row) for row in rows}
    return len(lengths) == 1 and lengths.isdisjoint({0, 1}) and all(each in (0, 1) for row in rows for each in row)


def _is_unlabelled(row: list[Any]) -> bool:
    return len(row) > 0 and all(str(each) == str(UNLABELLED) for each in row)


def _numbers_as_such(rows: Sequence[list[Any]], names: Collection[str]) -> list[list[Any]]:
    """Read texts as whole numbers, where all of them are such and none is a label's name."""
    texts = {each for row in rows if not _is_unlabelled(row) for each in row}
    numbers = {text: whole_number(text) for text in texts if isinstance(text, str) and not is_padded(text)}
    if len(numbers) < len(texts) or None in numbers.values() or not texts.isdisjoint(names):
        return list(rows)
    return [[numbers.get(each, each) for each in row] for row in rows]


def _places(row: Sequence[Any], labels: _Labels, form: str) -> set[int]:
    """Return the places of the labels that apply to a row."""
    if form != NAMES:
        ordered = labels.ordered or []
        written = f"use a 0 or 1 for each of the {len(ordered)} labels"
        if form == ZEROS_AND_ONES:
            if len(row) != len(ordered) or any(each not in (0, 1) for each in row):
                raise ValueError(written)
            row = [number for number, each in enumerate(row) if each == 1]
        elif len(set(row)) < len(row) and set(row) <= {0, 1}:
            raise ValueError(f"an id comes twice; where they are zeros and ones, {written}")
        if wrong := [each for each in row if not 0 <= each < len(ordered)]:
            raise ValueError(
                f"{wrong[0]} is no label of the train split, which has the ids 0 to {len(ordered) - 1}; where they "
                f"are zeros and ones, {written}"
            )
        row = [ordered[each] for each in row]
    places = {str(name): labels.place_of(str(name)) for name in row}
    if unknown := sorted(repr(name) for name, place in places.items() if place is None):
        raise ValueError(f"{unknown[0]} is no label of the train split, which has {labels.names[:20]}")
    return {place for place in places.values() if place is not None}


def _zero_or_one(value: Any) -> Any:
    number = {"true": 1, "false": 0}.get(str(value).strip().lower(), whole_number(value))
    return number if number in (0, 1) else value

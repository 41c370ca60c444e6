"""Several labels a row, or none: zeros and ones, one a label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, LargeList, List

from nlpkd.data.columns import MAX_CLASSES
from nlpkd.data.labels.classes import Classes, refuse_look_alikes
from nlpkd.data.labels.kind import is_missing, parse_list, whole_number
from nlpkd.tasks import UNLABELLED


def encode_multi_label(
    splits: DatasetDict, column: str | Sequence[str], names: Sequence[str] = (), column_named: bool = False
) -> tuple[DatasetDict, list[str]]:
    """Turn lists, or a column for each label, into zeros and ones.

    Args:
        splits: the splits, "train" among them.
        column: the column of the lists, or one a label; see `encode_targets`.
        names: of the labels in the order of their ids, as a teacher has them; the data's own if not given.
        column_named: whether the user named the column, so that any number of labels is meant.

    Returns:
        The splits with "labels", float32 `(labels,)` each, in place of the columns, which carries the labels'
        names; and these names.

    Raises:
        ValueError: if a row's labels can't be read, or are unknown; it names split, row and value.
    """
    where = f"column {column!r}" if isinstance(column, str) else f"columns {list(column)}"
    # Every row's labels as a list, however they are written.
    read = {split: _lists(data, split, column, bool(names)) for split, data in splits.items()}
    known = [row for row in read["train"] if not _is_unlabelled(row)]
    if not known and names:
        # Nobody labelled a train row: the labels are those that were named.
        known = [[int(number == place) for number in range(len(names))] for place in range(len(names))]
        others = [row for split, rows in read.items() if split != "train" for row in rows]
        if not _is_zeros_and_ones([row for row in others if not _is_unlabelled(row)]):
            known = [[name] for name in names]
    if not any(known):
        raise ValueError(f"No train row has any label ({where}), and the labels settle what they are.")
    # Which labels are there? The train rows say, and a teacher in which order.
    hot = not isinstance(column, str) or _is_zeros_and_ones(known)
    own = list(column) if not isinstance(column, str) else _own_names(known, hot, where)
    if hot and isinstance(column, str) and len(names) == len(own):
        own = list(names)
    names = list(names) or own
    if unknown := sorted(set(own) - set(names)):
        raise ValueError(f"Labels {unknown[:5]} of the data ({where}) are none of the teacher's, {names[:20]}.")
    if len(names) > MAX_CLASSES and not column_named:
        raise ValueError(
            f"There are {len(names)} different labels ({where}): is this the column of the labels? Name it with "
            "label_column."
        )
    # Zeros and ones, in the order of the names.
    places = {name: names.index(name) for name in own}
    encoded = {}
    for split, rows in read.items():
        may_lack = split == "train" or all(map(_is_unlabelled, rows))
        targets = []
        for number, row in enumerate(rows):
            if _is_unlabelled(row) and may_lack:
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
        encoded[split] = data.add_column("labels", targets, feature=Classes.of(names).vector_feature)
    return DatasetDict(encoded), names


def _lists(data: Dataset, split: str, column: str | Sequence[str], named: bool) -> list[list[Any]]:
    """Read each row's labels as a list: of names, of ids, or of a 0 or 1 for each label."""
    if not isinstance(column, str):
        return [[_zero_or_one(value) for value in row.values()] for row in data.select_columns(list(column))]
    feature = data.features[column]
    inner = feature.feature if isinstance(feature, (List, LargeList)) else None
    values = data[column][:]
    nobody = named and split == "train" and all(map(is_missing, values))
    rows = []
    for number, value in enumerate(values):
        row = parse_list(value) if isinstance(value, str) else value
        if nobody or (split == "train" and whole_number(value) == UNLABELLED):
            row = [UNLABELLED]
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
    """Return the labels of a list column: numbered ones LABEL_0, ..., others in sorted order."""
    if hot:
        return [f"LABEL_{number}" for number in range(len(rows[0]))]
    nested = next((each for row in rows for each in row if isinstance(each, (list, dict))), None)
    if nested is not None:
        raise ValueError(f"A list of labels ({where}) holds {nested!r:.80}: give names, ids from 0 up, or a 0 or 1.")
    found = {each for row in rows for each in row}
    if all(isinstance(each, str) for each in found):
        refuse_look_alikes(sorted(found), where)
        return sorted(found)
    if all(isinstance(each, int) and each >= 0 for each in found):
        return [f"LABEL_{number}" for number in range(max(found) + 1)]
    raise ValueError(
        f"The labels ({where}) are neither names, nor ids from 0 up, nor a 0 or 1 for each label: found "
        f"{sorted(map(repr, found))[:8]}."
    )


def _chosen(row: list[Any], own: Sequence[str], hot: bool) -> set[str]:
    """Return the names of the labels that apply to a row."""
    if hot:
        if len(row) != len(own) or any(each not in (0, 1) for each in row):
            raise ValueError(f"use a 0 or 1 for each of the {len(own)} labels")
        return {name for name, each in zip(own, row, strict=True) if each == 1}
    chosen = {own[each] if isinstance(each, int) and 0 <= each < len(own) else each for each in row}
    if unknown := sorted(map(repr, chosen - set(own))):
        raise ValueError(f"{unknown[0]} is no label of the train split, which has {list(own)[:20]}")
    return chosen


def _zero_or_one(value: Any) -> Any:
    number = {"true": 1, "false": 0}.get(str(value).strip().lower(), whole_number(value))
    return number if number in (0, 1) else value

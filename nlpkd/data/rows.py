"""Questions to rows of any kind: a data set that is all there, or a `TextStream`."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from nlpkd.data.columns import DOCUMENT, RESERVED
from nlpkd.data.labels.values import label_values
from nlpkd.data.streaming import TextStream
from nlpkd.tasks import is_unlabelled
from nlpkd.utils.randomness import random_state_kept

logger = logging.getLogger(__name__)

_HASHED_ROWS = 10_000


def makes_batches(rows: Any) -> bool:
    """Check whether rows come in batches of their own making, and not by their number."""
    return isinstance(rows, TextStream)


def is_plain(rows: Any) -> bool:
    """Check whether rows are always the same and can be read column by column: a data set without a transform."""
    return type(rows) is Dataset and rows.format["type"] != "custom"


def visible_columns(rows: Any) -> list[str]:
    """Return the columns that a row shows: those of a data set's format, or of a first row; none where unknown."""
    if not is_plain(rows):
        return [] if rows is None or isinstance(rows, TextStream) else sample_rows(rows, 1).column_names
    shown = rows.format
    return rows.column_names if shown["type"] is None or shown["output_all_columns"] else list(shown["columns"])


def formatted_as(rows: Dataset, other: Dataset, more: Sequence[str] = ()) -> Dataset:
    """Give a data set the format of another.

    Args:
        rows: with the other's columns.
        other: whose format it is to have.
        more: further columns to show, where the format names those that it shows.

    Returns:
        The data set.
    """
    shown = other.format
    columns = None if shown["type"] is None else [*shown["columns"], *more]
    options = shown["format_kwargs"] | {"output_all_columns": shown["output_all_columns"]}
    return rows.with_format(shown["type"], columns=columns, **options)


def with_column(rows: Dataset, column: str, values: Any, feature: Any) -> Dataset:
    """Return rows with other values in a column, in the format that they had."""
    # Added first, since rows without a column have no length.
    name = RESERVED + column
    plain = rows.with_format(None).add_column(name, values, feature=feature).remove_columns(column)
    return formatted_as(plain.rename_column(name, column), rows)


def refuse_splits(rows: Any, name: str, *, mapping: bool = False) -> None:
    """Refuse several splits where the rows of one are asked for.

    Args:
        rows: what was given.
        name: of the argument.
        mapping: whether it may be a mapping all the same, of rows by name.

    Raises:
        ValueError: if it has splits.
    """
    splits = getattr(rows, "splits", None if mapping else rows)
    if isinstance(splits, dict):
        raise ValueError(
            f"{name} must be the rows of one split, got {type(rows).__name__} with {sorted(splits)}: give one of "
            "them, such as data['train']"
        )


def refuse_other_than_dataset(rows: Any, name: str) -> None:
    """Refuse rows that are not all there, several times over, by their number and by their columns.

    Args:
        rows: what was given.
        name: of the argument.

    Raises:
        ValueError: for what is no `datasets.Dataset`.
    """
    refuse_splits(rows, name)
    if not isinstance(rows, Dataset):
        raise ValueError(
            f"{name} must be a datasets.Dataset, which is read several times, got {type(rows).__name__}: make one of "
            "its rows, such as Dataset.from_list(list(rows))"
        )


class RowSample:
    """Some rows that were read one by one, by their number and by their columns, as a `datasets.Dataset` is asked.

    Args:
        rows: as they were read; tensors and arrays stay what they are in a row, and are lists in a column.
        numbers: where each of them lies among all rows.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], numbers: Sequence[int]):
        self.rows, self.numbers = list(rows), list(numbers)
        self.column_names = list(self.rows[0]) if self.rows else []

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, str):
            return [value.tolist() if hasattr(value, "tolist") else value for value in (row[key] for row in self.rows)]
        # A collator may take a row apart.
        return dict(self.rows[key])


def sample_rows(rows: Any, count: int) -> RowSample:
    """Read some rows of any kind: a data set with a transform, a torch data set, a list, or what can only be iterated.

    Args:
        rows: mappings by position, or an iterable of them.
        count: how many rows to read at most.

    Returns:
        Rows from all over, the same ones each time; the first ones of an iterable. None of an iterator, which would
        lose them, and none of rows that are no mappings.
    """
    # What makes rows as they are read may draw random numbers.
    with random_state_kept():
        if hasattr(rows, "__len__") and hasattr(rows, "__getitem__"):
            drawn = np.random.default_rng(0).permutation(len(rows))[:count] if count > 1 else range(min(1, len(rows)))
            numbers = sorted(map(int, drawn))
            read = [rows[number] for number in numbers]
        else:
            found = iter(rows)
            read = [] if found is rows else list(islice(found, count))
            numbers = list(range(len(read)))
    return RowSample(read if all(isinstance(row, Mapping) for row in read) else [], numbers)


def count_rows(rows: Any) -> int | None:
    """Count the rows of an epoch, on all processes together; None where nobody knows before it ends."""
    if isinstance(rows, TextStream):
        return rows.num_rows
    return len(rows) if hasattr(rows, "__len__") else None


def count_texts(rows: Any) -> int:
    """Count the texts that rows are of: the rows themselves, but for windows."""
    windows = DOCUMENT in (getattr(rows, "column_names", None) or ())
    return len(set(rows[DOCUMENT][:])) if windows else count_rows(rows) or 0


def list_lengths(rows: Dataset, column: str) -> np.ndarray:
    """Count what each row holds in a column of lists, without making Python's numbers of it.

    Args:
        rows: of any format.
        column: such as "input_ids".

    Returns:
        Counts `(rows,)`.
    """
    return pc.list_value_length(rows.select_columns(column).with_format("arrow")[:][column]).to_numpy()


def random_access(rows: Any, first: int) -> Any:
    """Return rows that can be read in any order: the first ones of a stream, all others as they are.

    Args:
        rows: of any kind.
        first: how many rows to read of a stream.

    Returns:
        A data set of a stream; `rows` itself where it is anything else.
    """
    return rows.head(first) if isinstance(rows, TextStream) else rows


def describe_rows(rows: Any, columns: Sequence[str], split: str) -> dict[str, Any]:
    """Describe rows by hashes of their columns: other rows are described otherwise.

    Args:
        rows: of any kind; a stream is described by its size and its first rows.
        columns: of them, that matter; names that they have no column of are passed over.
        split: how a refusal calls the rows, such as "training".

    Returns:
        Sizes and hashes by what a refusal calls them.
    """
    told: dict[str, Any] = {f"{split} rows": count_rows(rows)}
    if makes_batches(rows):
        # Read as a whole it would take long: its size and its first rows stand for it.
        told[f"bytes of the {split} file"] = rows.path.stat().st_size
    rows = random_access(rows, first=_HASHED_ROWS)
    if not isinstance(rows, Dataset):
        return told
    read = sorted(set(columns) & set(rows.column_names))
    return told | {f"the {split} rows' {name}": digest for name, digest in _hash_columns(rows, read).items()}


def hash_rows(rows: Dataset, columns: Sequence[str]) -> str:
    """Hash the values of some columns, whatever the columns are called.

    Args:
        rows: the rows.
        columns: which ones, in an order that counts.

    Returns:
        A SHA-256, in hexadecimal digits.
    """
    digests = _hash_columns(rows, list(columns))
    return hashlib.sha256("".join(digests[name] for name in columns).encode()).hexdigest()


def _hash_columns(rows: Dataset, columns: list[str]) -> dict[str, str]:
    """Hash the values of columns, however they are stored."""
    digests = {name: hashlib.sha256() for name in columns}
    for table in rows.select_columns(columns).with_format("arrow").iter(_HASHED_ROWS):
        for name, digest in digests.items():
            array = table.column(name).combine_chunks()
            while pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type):
                digest.update(pc.list_value_length(array).to_numpy(zero_copy_only=False).astype(np.int64).data)
                array = pc.list_flatten(array)
            if pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_boolean(array.type):
                wide = np.int64 if not pa.types.is_floating(array.type) else np.float64
                digest.update(np.ascontiguousarray(array.to_numpy(zero_copy_only=False), dtype=wide).data)
            else:
                digest.update(json.dumps(array.to_pylist(), default=repr).encode())
    return {name: digest.hexdigest() for name, digest in digests.items()}


_READ_FOR_EACH = 4


def sample_of_classes(rows: Any, size: int) -> Dataset | RowSample:
    """Return rows that can be read in any order and by column: of a stream as many of each class.

    Args:
        rows: of any kind.
        size: how many rows to read of a stream; of what is no plain data set four times as many.

    Returns:
        A data set of a stream, a plain data set itself, and a sample of all other rows.
    """
    if isinstance(rows, TextStream):
        return rows.sample(size)
    return rows if is_plain(rows) else sample_rows(rows, _READ_FOR_EACH * size)


def texts_of(rows: Any, columns: Sequence[str]) -> Iterable[str]:
    """Read all texts of rows.

    Args:
        rows: of any kind.
        columns: of the texts.

    Returns:
        The texts, those of a pair one by one.
    """
    return rows.raw_texts() if isinstance(rows, TextStream) else (text for name in columns for text in rows[name])


def unlabelled_rows(rows: Dataset) -> np.ndarray:
    """Check of each row whether nobody labelled it, so that the teacher alone does.

    Args:
        rows: rows with the column "labels" of any task.

    Returns:
        booleans `(rows,)`.
    """
    return is_unlabelled(label_values(rows, "labels"))


def has_unlabelled(rows: Any) -> bool:
    """Check whether any row has no gold label."""
    return rows.summary.num_unlabelled > 0 if isinstance(rows, TextStream) else bool(unlabelled_rows(rows).any())


def labelled_rows(rows: Any) -> Any:
    """Leave out the rows without a gold label."""
    if isinstance(rows, TextStream):
        return rows.labelled()
    flags = unlabelled_rows(rows)
    return rows.select(np.flatnonzero(~flags)) if flags.any() else rows


def class_counts(rows: Any, names: Sequence[str]) -> list[int]:
    """Count the rows of each class.

    Args:
        rows: of a single-label task.
        names: of the classes, in the order of the counts; of a data set the order of its ids.

    Returns:
        One count a class.
    """
    if isinstance(rows, TextStream):
        return [rows.summary.class_counts[name] for name in names]
    counts = Counter(rows["labels"][:])
    return [counts[number] for number in range(len(names))]


def measured_split(splits: Mapping[str, Any]) -> str:
    """Return the name of the split that a report is of: the test rows, or else the validation rows.

    Args:
        splits: by name.

    Raises:
        ValueError: if there are neither.
    """
    for name in ("test", "validation"):
        if name in splits:
            return name
    raise ValueError(
        "there are no held-out rows, which a training is measured on: give validation=, or validation_split=0.1"
    )

"""Training rows that are read as they are needed: a file larger than memory, grouped by length in a shuffle buffer."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetDict, DatasetInfo, Features, Value
from torch.utils.data import IterableDataset, get_worker_info
from transformers.utils.logging import tqdm

from nlpkd.data.arguments import DataArguments
from nlpkd.data.columns import BLANK, MAX_CLASSES, ROW, Columns
from nlpkd.data.files.readers import class_names, stream_rows
from nlpkd.data.files.tables import to_column
from nlpkd.data.files.unchanged import FileState, file_state, unchanged_rows
from nlpkd.data.labels import encode_labels
from nlpkd.data.labels.kind import read_kind
from nlpkd.data.labels.lengths import UNGROUPED_ABOVE, length_share
from nlpkd.tasks import SINGLE_LABEL, UNLABELLED

BUFFER_ROWS = 10_000
"""Rows that are in memory at a time, among which lengths are grouped and order is shuffled."""


_CHECKED_ROWS = 100


class Encoder(Protocol):
    """Turns columns of texts into tokens."""

    def __call__(self, batch: Mapping[str, list]) -> Mapping[str, list]:
        """Return the rows' token columns and `length`."""

    def truncated(self, batch: Mapping[str, list]) -> Mapping[str, int]:
        """Count the rows that lose tokens, by the prefix of the tokenizer's columns."""


@dataclass(frozen=True)
class FileSummary:
    """A file of labelled text that was read through once.

    Attributes:
        rows_by_label: rows of each label, as the file writes it.
        ids: class id of each label, as the file writes it; -100 where a row has none.
        names: names of the classes by id.
        truncated: rows that lose tokens, by the prefix of the tokenizer's columns.
        state: of the file before it was read.
        reason: why the labels are classes; empty where the values were not asked.
        held_out: the splits that are read whole, with the file's class ids in the column "labels".
    """

    rows_by_label: Mapping[Any, int]
    ids: Mapping[Any, int]
    names: list[str]
    truncated: Mapping[str, int]
    state: FileState
    reason: str = ""
    held_out: DatasetDict = field(default_factory=DatasetDict)

    @property
    def num_rows(self) -> int:
        """Rows of the file."""
        return sum(self.rows_by_label.values())

    @property
    def class_counts(self) -> dict[str, int]:
        """Rows of each class, by its name."""
        rows: Counter[int] = Counter()
        for label, count in self.rows_by_label.items():
            rows[self.ids[label]] += count
        return {name: rows[number] for number, name in enumerate(self.names)}

    @property
    def num_unlabelled(self) -> int:
        """Rows without a label."""
        return self.num_rows - sum(self.class_counts.values())

    def with_classes(self, names: Sequence[str], places: Sequence[int]) -> FileSummary:
        """Renumber the classes.

        Args:
            names: of all classes, in their new order.
            places: the new id of each class by the id that it has here.

        Returns:
            The same rows with the other class ids.
        """
        new = {UNLABELLED: UNLABELLED, **dict(enumerate(places))}
        return replace(self, ids={label: new[number] for label, number in self.ids.items()}, names=list(names))


class TextStream(IterableDataset):
    """Tokenised rows of a file, read anew in every epoch.

    A buffer of rows is shuffled and sorted by length into batches, whose order is shuffled: batches of like lengths, a
    pure function of seed, epoch and file. Rows that make no whole batch wait for the next buffer; those left at the
    end of an epoch are its last batch, or with several processes are left out. Rows further apart than a buffer never
    meet: shuffle a file that is sorted by label.

    A stream does not change but for its epoch: `batched`, `labelled` and `with_classes` return another one.

    Args:
        path: a jsonl, csv, tsv or parquet file.
        columns: of text and label.
        encode: turns columns of texts into token columns and `length`.
        summary: what the file holds, by `summarize_file`.
        buffer_rows: rows in memory at a time.

    Raises:
        ValueError: if `buffer_rows` is less than 1.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        columns: Columns,
        encode: Encoder,
        summary: FileSummary,
        *,
        buffer_rows: int = BUFFER_ROWS,
    ):
        if buffer_rows < 1:
            raise ValueError(f"buffer_rows must be at least 1, got {buffer_rows}")
        self.path, self.columns, self.encode, self.summary = Path(path), columns, encode, summary
        self.buffer_rows, self.labelled_only, self.epoch = buffer_rows, False, 0
        self.batch_size, self.num_processes, self.process_index, self.seed = 1, 1, 0, 42

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        columns: Columns,
        encode: Encoder,
        asked: DataArguments | None = None,
        held_out: Mapping[str, Dataset] | None = None,
    ) -> TextStream:
        """Read a file through once, and make a stream of it; see `summarize_file`."""
        summary = summarize_file(Path(path), columns, encode, asked or DataArguments(), held_out or {})
        return cls(path, columns, encode, summary)

    @property
    def names(self) -> list[str]:
        """Names of the classes by id."""
        return self.summary.names

    @property
    def num_rows(self) -> int:
        """Rows of an epoch on all processes together."""
        return self.summary.num_rows - (self.summary.num_unlabelled if self.labelled_only else 0)

    def __len__(self) -> int:
        step = self.batch_size * self.num_processes
        return self.num_rows if self.num_processes == 1 else self.num_rows // step * self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if get_worker_info() is not None:
            raise ValueError("a stream is read by the training process itself: set dataloader_num_workers=0")
        generator = np.random.default_rng((self.seed, self.epoch))
        rows = self._rows_of_file()
        waiting: list[Mapping[str, Any]] = []
        step = self.batch_size * self.num_processes
        while buffer := list(islice(rows, max(self.buffer_rows, step))):
            # Shuffle the buffer into batches of like lengths; what makes no whole batch waits for the next buffer.
            buffer = waiting + buffer
            encoded = self._encoded(buffer)
            batches, rest = _grouped(encoded["length"], encoded["labels"], step, generator)
            waiting = [buffer[row] for row in rest]
            # Each process takes its part of every batch.
            for batch in batches:
                own = batch[self.process_index * self.batch_size : (self.process_index + 1) * self.batch_size]
                yield from ({name: values[row] for name, values in encoded.items()} for row in own)
        if waiting and self.num_processes == 1:
            encoded = self._encoded(waiting)
            yield from ({name: values[row] for name, values in encoded.items()} for row in range(len(waiting)))

    def batched(self, batch_size: int, num_processes: int = 1, process_index: int = 0, seed: int = 42) -> TextStream:
        """Group the rows into batches, one after the other.

        Args:
            batch_size: rows of a batch on one process.
            num_processes: that share the rows out.
            process_index: which of them this is.
            seed: of the order.

        Returns:
            The stream of this process's rows.
        """
        return self._with(batch_size=batch_size, num_processes=num_processes, process_index=process_index, seed=seed)

    def labelled(self) -> TextStream:
        """Leave out the rows that have no label."""
        return self._with(labelled_only=True)

    def with_classes(self, names: Sequence[str], places: Sequence[int]) -> TextStream:
        """Renumber the classes; see `FileSummary.with_classes`."""
        return self._with(summary=self.summary.with_classes(names, places))

    def head(self, rows: int) -> Dataset:
        """Read the first rows, encoded, as a data set."""
        return Dataset.from_dict(self._encoded(list(islice(self._rows_of_file(), rows)))).remove_columns(ROW)

    def sample(self, rows: int) -> Dataset:
        """Read the first rows of every class, as equally often as the file allows, encoded, as a data set.

        Args:
            rows: how many in all, rounded up to as many of each class.

        Returns:
            The rows, none of them without a label; of a file without labels the first rows.
        """
        share, counts = -(-rows // len(self.names)), self.summary.class_counts
        if not any(counts.values()):
            return self.head(rows)
        left = {number: min(share, counts[name]) for number, name in enumerate(self.names)}
        chosen: list[Mapping[str, Any]] = []
        wanted, file = sum(left.values()), self._rows_of_file()
        while len(chosen) < wanted:
            row = next(file)
            if left.get(self._label_of(row)):
                left[self._label_of(row)] -= 1
                chosen.append(row)
        return Dataset.from_dict(self._encoded(chosen)).remove_columns(ROW)

    def raw_texts(self) -> Iterator[str]:
        """Read all texts, in the file's order."""
        return (row[name] for row in self._file_rows() for name in self.columns.texts)

    def _with(self, **attributes: Any) -> TextStream:
        stream = copy.copy(self)
        vars(stream).update(attributes)
        return stream

    def _label_of(self, row: Mapping[str, Any]) -> int:
        return self.summary.ids[_label_in(row, self.columns)]

    def _file_rows(self) -> Iterator[Mapping[str, Any]]:
        return unchanged_rows(self.path, self.summary.state, self.columns.names.__contains__)

    def _rows_of_file(self) -> Iterator[Mapping[str, Any]]:
        for number, row in enumerate(self._file_rows()):
            if not self.labelled_only or self._label_of(row) != UNLABELLED:
                yield {**row, ROW: number}

    def _encoded(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, list]:
        tokens: dict[str, list] = dict(self.encode({name: [row[name] for row in rows] for name in self.columns.texts}))
        return tokens | {"labels": [self._label_of(row) for row in rows], ROW: [row[ROW] for row in rows]}


def summarize_file(
    path: Path, columns: Columns, encode: Encoder, asked: DataArguments, held_out: Mapping[str, Dataset]
) -> FileSummary:
    """Read a file through: check every row, count its label, and settle the classes.

    Args:
        path: a jsonl, csv, tsv or parquet file.
        columns: of texts and label.
        encode: tells how many rows lose tokens.
        asked: whether the task and the label's column are named, and a model's label names.
        held_out: the other splits, whose labels settle the classes together with the file's, as those of splits that
            are all read whole do.

    Returns:
        What the file holds.

    Raises:
        ValueError: if there are no rows, a text is missing or empty, or a label is no class; it names row, column and
            value.
    """
    if not isinstance(columns.label, str):
        raise ValueError("a stream has one class a row: read several label columns whole, without streaming")
    # Labels are told apart by kind too: True and 1 are equal, and a file must not mix them.
    first: dict[tuple[type, Any], int] = {}
    rows_by_label: Counter[Any] = Counter()
    truncated: Counter[str] = Counter()
    stream, state = stream_rows(path, columns.names.__contains__), file_state(path)
    rows = enumerate(tqdm(stream, desc=f"Checking {path.name}", disable=None))
    while batch := list(islice(rows, _CHECKED_ROWS)):
        for number, row in batch:
            label = _checked_label(path, columns, number, row)
            first.setdefault((type(label), label), number)
            rows_by_label[label] += 1
            if len(first) > MAX_CLASSES + 1 and asked.label_column is None:
                raise ValueError(
                    f"Column {columns.label!r} of {path} has more than {MAX_CLASSES} different labels in {number + 1} "
                    "rows: name the label's column with label_column."
                )
        truncated.update(encode.truncated({name: [row[name] for _, row in batch] for name in columns.texts}))
    if not first:
        raise ValueError(f"{path} has no rows.")
    # One row of each label stands for all of them where the classes are settled.
    examples = _examples(path, columns, first)
    labelled_rows = sum(count for label, count in rows_by_label.items() if str(label) != str(UNLABELLED))
    numbers = list(first.values())
    try:
        kind = read_kind(examples, columns.label, numbers, asked.label_names, asked.problem_type is not None)
        if kind.task != SINGLE_LABEL and asked.problem_type is None:
            found = kind.reason[0].upper() + kind.reason[1:]
            raise ValueError(f"{found}, and a stream has one class a row: read the file whole, without streaming")
        encoded, feature = encode_labels(
            DatasetDict(train=examples, **held_out),
            columns.label,
            numbers,
            labelled_rows,
            names=asked.label_names,
            column_named=asked.label_column is not None,
        )
    except ValueError as error:
        # The label of a held-out row may be what is wrong.
        raise ValueError(str(error) if held_out else f"{path}: {error}") from None
    ids = dict(zip(examples[columns.label], encoded.pop("train")["labels"], strict=True))
    reason = kind.reason if asked.problem_type is None else ""
    return FileSummary(rows_by_label, ids, list(feature.names), truncated, state, reason, encoded)


def _checked_label(path: Path, columns: Columns, number: int, row: Mapping[str, Any]) -> Any:
    """Check a row's texts, and return its label; None where it is missing."""
    for name in columns.texts:
        value = row.get(name)
        if not isinstance(value, str) or BLANK.fullmatch(value):
            raise ValueError(f"Row {number} of {path}, column {name!r}, has no text: {value!r:.80}.")
    label = _label_in(row, columns)
    if isinstance(label, (list, dict)):
        raise ValueError(f"Row {number} of {path} has the label {label!r:.80}: a stream has one a row.")
    return label


def _label_in(row: Mapping[str, Any], columns: Columns) -> Any:
    """Return a row's label as the file writes it; None where it has none."""
    label = row.get(columns.label)  # type: ignore[arg-type]
    return label if label == label else None


def _examples(path: Path, columns: Columns, first: Mapping[tuple[type, Any], int]) -> Dataset:
    """Make a row of each label, with the class names that a parquet file brings along."""
    column: Any = columns.label
    labels = to_column([label for _, label in first], column, path, first.values())
    texts = {name: pa.array(["-"] * len(labels)) for name in columns.texts}
    names = class_names(path, column)
    if names is None:
        return Dataset(pa.table(texts | {column: labels}))
    classes = ClassLabel(names=names)
    features = Features(dict.fromkeys(texts, Value("string")) | {column: classes})
    table = pa.table(texts | {column: labels.cast(classes.pa_type)})
    return Dataset(table, info=DatasetInfo(features=features))


def column_names(path: str | os.PathLike[str]) -> list[str]:
    """Return the names of a file's columns: of JSON lines the keys of all rows, since a row may lack some.

    Args:
        path: a jsonl, csv, tsv or parquet file.

    Returns:
        The names, those that `nlpkd.data.files.readers.read_table` gives.

    Raises:
        ValueError: if the file can't be read or has no rows.
    """
    path = Path(path)
    rows = stream_rows(path, may_read=lambda _: False, tell=True)
    first = next(rows, None)
    if first is None:
        raise ValueError(f"{path} has no rows.")
    if path.suffix.lower() != ".jsonl":
        return list(first)
    others = tqdm(rows, desc=f"Reading the columns of {path.name}", disable=None)
    return list(dict.fromkeys([*first, *(name for row in others for name in row)]))


def _grouped(
    lengths: Sequence[int], labels: Sequence[int], batch_size: int, generator: np.random.Generator
) -> tuple[list[list[int]], list[int]]:
    """Put rows into batches of like lengths, and return those that are left over, drawn from all lengths alike.

    Where the length goes with the label, batches are drawn from rows of all lengths.
    """
    order = generator.permutation(len(lengths))
    whole = len(order) // batch_size * batch_size
    kept, rest = order[:whole], order[whole:]
    if length_share(lengths, labels) <= UNGROUPED_ABOVE:
        kept = kept[np.argsort(np.asarray(lengths)[kept], kind="stable")]
    batches = kept.reshape(-1, batch_size)
    return generator.permutation(batches).tolist(), rest.tolist()

"""Training rows that are read as they are needed: a file larger than memory, grouped by length in a shuffle buffer."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetDict, DatasetInfo, Features, Value
from torch.utils.data import IterableDataset, get_worker_info
from transformers.utils.logging import tqdm

from nlpkd.data.columns import BLANK, MAX_CLASSES, Columns, find_columns
from nlpkd.data.labels import encode_labels
from nlpkd.data.sources import class_names, stream_rows, to_column
from nlpkd.tasks import UNLABELLED

ROW = "__row__"
"""Of a row: its number, in what it was read from."""


BUFFER_ROWS = 10_000
"""Rows that are in memory at a time, among which lengths are grouped and order is shuffled."""


_CHECKED_ROWS = 100


class Encoder(Protocol):
    """Turns columns of texts into tokens."""

    def __call__(self, batch: Mapping[str, list]) -> Mapping[str, list]:
        """Give the rows' token columns and `length`."""

    def truncated(self, batch: Mapping[str, list]) -> Mapping[str, int]:
        """Count the rows that lose tokens, by the prefix of the tokenizer's columns."""


class TextStream(IterableDataset):
    """Tokenised rows of a file, read anew in every epoch.

    A buffer of rows is shuffled and sorted by length into batches, whose order is shuffled: batches of like lengths, a
    pure function of seed, epoch and file. Rows that make no whole batch wait for the next buffer; those left at the
    end of an epoch are its last batch, or with several processes are left out. Rows further apart than a buffer never
    meet: shuffle a file that is sorted by label.

    Attributes:
        num_rows: rows of the file.
        num_unlabelled: those that have no label.
        names: of the classes.
        truncated: rows that lose tokens, by the prefix of the tokenizer's columns.

    Args:
        path: a jsonl, csv, tsv or parquet file.
        columns: of text and label.
        encode: turns columns of texts into token columns and `length`.
        buffer_rows: rows in memory at a time.

    Raises:
        ValueError: if a text is missing or empty, or a label is no class; it names row, column and value. The file is
            read through and tokenised once for that.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        columns: Columns,
        encode: Encoder,
        *,
        buffer_rows: int = BUFFER_ROWS,
    ):
        if buffer_rows < 1:
            raise ValueError(f"buffer_rows must be at least 1, got {buffer_rows}")
        if not isinstance(columns.label, str):
            raise ValueError("a stream has one class a row: read several label columns whole, without streaming")
        self.path, self.columns, self.encode = Path(path), columns, encode
        self.buffer_rows, self.labelled_only, self.epoch = buffer_rows, False, 0
        self.batches_of(1)
        self.truncated: Counter[str] = Counter()
        self._counts: Counter[Any] = Counter()
        first = self._check()
        self.num_rows = self._counts.total()
        self._examples = self._example_of_each(first)
        self.names, self._ids = self._classes(list(first.values()))
        self.num_unlabelled = sum(rows for value, rows in self._counts.items() if self._ids[value] == UNLABELLED)

    @property
    def texts(self) -> list[str]:
        """The columns of the texts."""
        return [self.columns.text] + ([self.columns.text_pair] if self.columns.text_pair else [])

    @property
    def class_counts(self) -> dict[str, int]:
        """Rows of each class, by its name."""
        rows: Counter[int] = Counter()
        for value, count in self._counts.items():
            rows[self._ids[value]] += count
        return {name: rows[number] for number, name in enumerate(self.names)}

    def batches_of(self, batch_size: int, num_processes: int = 1, process_index: int = 0, seed: int = 42) -> None:
        """Say what batches the rows will be put into, one after the other.

        Args:
            batch_size: rows of a batch on one process.
            num_processes: that share the rows out.
            process_index: which of them this is.
            seed: of the order.
        """
        self.batch_size, self.num_processes, self.process_index, self.seed = (
            batch_size, num_processes, process_index, seed,
        )  # fmt: skip

    def __len__(self) -> int:
        rows = self.num_rows - (self.num_unlabelled if self.labelled_only else 0)
        return rows if self.num_processes == 1 else rows // (self.batch_size * self.num_processes) * self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if get_worker_info() is not None:
            raise ValueError("a stream is read by the training process itself: set dataloader_num_workers=0")
        generator = np.random.default_rng((self.seed, self.epoch))
        rows = self._labelled_rows()
        waiting: list[Mapping[str, Any]] = []
        step = self.batch_size * self.num_processes
        while buffer := list(islice(rows, max(self.buffer_rows, step))):
            buffer = waiting + buffer
            made = self._encoded(buffer)
            batches, rest = _grouped(made["length"], step, generator)
            waiting = [buffer[row] for row in rest]
            for batch in batches:
                own = batch[self.process_index * self.batch_size : (self.process_index + 1) * self.batch_size]
                yield from ({name: values[row] for name, values in made.items()} for row in own)
        if waiting and self.num_processes == 1:
            made = self._encoded(waiting)
            yield from ({name: values[row] for name, values in made.items()} for row in range(len(waiting)))

    def labelled(self) -> TextStream:
        """Give the rows that have a label."""
        stream = copy.copy(self)
        stream.labelled_only = True
        return stream

    def follow(self, order: Sequence[int]) -> None:
        """Renumber the classes: the one that is `order[k]` here becomes k."""
        places = {UNLABELLED: UNLABELLED} | {source: place for place, source in enumerate(order)}
        self._ids = {value: places[number] for value, number in self._ids.items()}
        self.names = [self.names[source] for source in order]

    def head(self, rows: int) -> Dataset:
        """Give the first rows, encoded, as a data set."""
        return Dataset.from_dict(self._encoded(list(islice(self._labelled_rows(), rows)))).remove_columns(ROW)

    def example_of_each_class(self) -> Dataset:
        """Give a row of each label, as the file has it, with the names of its classes."""
        return self._examples

    def raw_texts(self) -> Iterator[str]:
        """Give all texts, in the file's order."""
        return (row[name] for row in stream_rows(self.path) for name in self.texts)

    def _labelled_rows(self) -> Iterator[Mapping[str, Any]]:
        for number, row in enumerate(stream_rows(self.path)):
            if not self.labelled_only or self._ids[row[self.columns.label]] != UNLABELLED:  # type: ignore[index]
                yield {**row, ROW: number}

    def _encoded(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, list]:
        made: dict[str, list] = dict(self.encode({name: [row[name] for row in rows] for name in self.texts}))
        made["labels"] = [self._ids[row[self.columns.label]] for row in rows]  # type: ignore[index]
        return made | {ROW: [row[ROW] for row in rows]}

    def _check(self) -> dict[tuple[type, Any], int]:
        """Read the file through: check every row, count its label, and give the first row of every kind and label."""
        first: dict[tuple[type, Any], int] = {}
        rows = enumerate(tqdm(stream_rows(self.path), desc=f"Checking {self.path.name}", disable=None))
        while batch := list(islice(rows, _CHECKED_ROWS)):
            for number, row in batch:
                label = self._checked_label(number, row)
                first.setdefault((type(label), label), number)
                self._counts[label] += 1
                if len(first) > MAX_CLASSES + 1:
                    raise ValueError(
                        f"Column {self.columns.label!r} of {self.path} has more than {MAX_CLASSES} different labels "
                        f"in {number + 1} rows: name the label's column with label_column."
                    )
            self.truncated.update(
                self.encode.truncated({name: [row[name] for _, row in batch] for name in self.texts})
            )
        if not first:
            raise ValueError(f"{self.path} has no rows.")
        return first

    def _checked_label(self, number: int, row: Mapping[str, Any]) -> Any:
        """Give a row's label, None where it is missing."""
        for name in self.texts:
            value = row.get(name)
            if not isinstance(value, str) or BLANK.fullmatch(value):
                raise ValueError(f"Row {number} of {self.path}, column {name!r}, has no text: {value!r:.80}.")
        label = row.get(self.columns.label)  # type: ignore[arg-type]
        if isinstance(label, (list, dict)):
            raise ValueError(f"Row {number} of {self.path} has the label {label!r:.80}: a stream has one a row.")
        return label if label == label else None

    def _example_of_each(self, first: Mapping[tuple[type, Any], int]) -> Dataset:
        column: Any = self.columns.label
        labels = to_column([label for _, label in first], column, self.path, first.values())
        columns = {name: pa.array(["-"] * len(labels)) for name in self.texts}
        names = class_names(self.path, column)
        if names is None:
            return Dataset(pa.table(columns | {column: labels}))
        classes = ClassLabel(names=names)
        features = Features(dict.fromkeys(columns, Value("string")) | {column: classes})
        table = pa.table(columns | {column: labels.cast(classes.pa_type)})
        return Dataset(table, info=DatasetInfo(features=features))

    def _classes(self, rows: Sequence[int]) -> tuple[list[str], dict[Any, int]]:
        """Settle names and ids of the classes by the examples and their rows in the file."""
        column: Any = self.columns.label
        labelled = sum(count for value, count in self._counts.items() if str(value) != str(UNLABELLED))
        try:
            encoded, label = encode_labels(DatasetDict(train=self._examples), column, rows, labelled)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None
        return list(label.names), dict(zip(self._examples[column], encoded["train"]["labels"], strict=True))


def columns_of_file(path: str | os.PathLike[str], text: Any, text_pair: Any, label: Any) -> Columns:
    """Find the columns of a file by its first row; see `nlpkd.data.columns.find_columns`."""
    first = next(stream_rows(path), None)
    if first is None:
        raise ValueError(f"{path} has no rows.")
    return find_columns(list(first), text, text_pair, label)


def _grouped(
    lengths: Sequence[int], batch_size: int, generator: np.random.Generator
) -> tuple[list[list[int]], list[int]]:
    """Put rows into batches of like lengths, and give those that are left over, drawn from all lengths alike."""
    order = generator.permutation(len(lengths))
    whole = len(order) // batch_size * batch_size
    kept, rest = order[:whole], order[whole:]
    batches = kept[np.argsort(np.asarray(lengths)[kept], kind="stable")].reshape(-1, batch_size)
    return generator.permutation(batches).tolist(), rest.tolist()

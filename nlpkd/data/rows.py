"""Questions to rows of any kind: a data set that is all there, or a `TextStream`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from datasets import Dataset

from nlpkd.data.columns import DOCUMENT
from nlpkd.data.streaming import TextStream
from nlpkd.tasks import UNLABELLED


def makes_batches(rows: Any) -> bool:
    """Check whether rows come in batches of their own making, and not by their number."""
    return isinstance(rows, TextStream)


def is_plain(rows: Any) -> bool:
    """Check whether rows are always the same and can be read column by column: a data set without a transform."""
    return type(rows) is Dataset and rows.format["type"] != "custom"


def visible_columns(rows: Any) -> list[str]:
    """Return the columns that a row shows: those of a data set's format where it names some; none where unknown."""
    if not isinstance(rows, Dataset):
        return list(getattr(rows, "column_names", None) or ())
    shown = rows.format
    return rows.column_names if shown["type"] is None or shown["output_all_columns"] else list(shown["columns"])


def count_rows(rows: Any) -> int:
    """Count the rows of an epoch, on all processes together."""
    return rows.num_rows if isinstance(rows, TextStream) else len(rows)


def count_texts(rows: Any) -> int:
    """Count the texts that rows are of: the rows themselves, but for windows."""
    windows = DOCUMENT in (getattr(rows, "column_names", None) or ())
    return len(set(rows[DOCUMENT][:])) if windows else count_rows(rows)


def random_access(rows: Any, first: int) -> Any:
    """Return rows that can be read in any order: the first ones of a stream, all others as they are.

    Args:
        rows: of any kind.
        first: how many rows to read of a stream.

    Returns:
        A data set of a stream; `rows` itself where it is anything else.
    """
    return rows.head(first) if isinstance(rows, TextStream) else rows


def sample_of_classes(rows: Any, size: int) -> Any:
    """Return rows that can be read in any order: of a stream as many of each class, all others as they are.

    Args:
        rows: of any kind.
        size: how many rows to read of a stream.

    Returns:
        A data set of a stream; `rows` itself where it is anything else.
    """
    return rows.sample(size) if isinstance(rows, TextStream) else rows


def texts_of(rows: Any, columns: Sequence[str]) -> Iterable[str]:
    """Read all texts of rows.

    Args:
        rows: of any kind.
        columns: of the texts.

    Returns:
        The texts, those of a pair one by one.
    """
    return rows.raw_texts() if isinstance(rows, TextStream) else (text for name in columns for text in rows[name])


def unlabelled_rows(rows: Dataset) -> list[bool]:
    """Check of each row whether nobody labelled it, so that the teacher alone does.

    Args:
        rows: rows with the column "labels" of any task.

    Returns:
        A flag a row.
    """
    flags = []
    for value in rows["labels"][:]:
        first = value[0] if isinstance(value, list) else value
        flags.append(first == UNLABELLED or first != first)
    return flags


def has_unlabelled(rows: Any) -> bool:
    """Check whether any row has no gold label."""
    return rows.summary.num_unlabelled > 0 if isinstance(rows, TextStream) else any(unlabelled_rows(rows))


def labelled_rows(rows: Any) -> Any:
    """Leave out the rows without a gold label."""
    if isinstance(rows, TextStream):
        return rows.labelled()
    flags = unlabelled_rows(rows)
    return rows.select([number for number, flag in enumerate(flags) if not flag]) if any(flags) else rows


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

"""A file that is read several times, and must be the same one each time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from nlpkd.data.files.readers import stream_rows
from nlpkd.data.files.tables import MayRead
from nlpkd.utils.field_types import with_home

FileState: TypeAlias = tuple[int, int]
"""Bytes of a file, and when it was written, in nanoseconds."""


_ROWS_AT_ONCE = 100


def file_state(path: str | os.PathLike[str]) -> FileState:
    """Return what tells a file from itself before it was written to."""
    found = Path(with_home(path)).stat()
    return found.st_size, found.st_mtime_ns


def unchanged_rows(path: str | os.PathLike[str], state: FileState, may_read: MayRead) -> Iterator[dict[str, Any]]:
    """Read a file row by row, as long as nobody writes to it.

    Args:
        path: as for `nlpkd.data.files.readers.stream_rows`.
        state: of the file when it was checked.
        may_read: as for `stream_rows`.

    Returns:
        The rows; each was read before the file was looked at again.

    Raises:
        ValueError: if the file has changed, or can't be read.
    """
    rows = stream_rows(path, may_read)
    batch: list[dict[str, Any]] | None = None
    while batch != []:
        try:
            batch = list(islice(rows, _ROWS_AT_ONCE))
        finally:
            # First of all, since half a line of a changed file is an error too, and not what is wrong.
            _refuse_changed(path, state)
        yield from batch


def _refuse_changed(path: str | os.PathLike[str], state: FileState) -> None:
    if not Path(with_home(path)).exists() or file_state(path) != state:
        raise ValueError(
            f"{path} has changed since it was checked: it may have rows that nobody checked, and lack others. Start "
            "again, with a copy that nothing writes to."
        )

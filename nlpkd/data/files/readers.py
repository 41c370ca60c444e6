"""File formats: each is read row by row, and a file is read whole by collecting its rows."""

from __future__ import annotations

import codecs
import csv
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from datasets import ClassLabel

from nlpkd.data.columns import BLANK, HALF
from nlpkd.data.files.tables import MayRead, check_names, feature_of, table_of
from nlpkd.utils.field_types import with_home

logger = logging.getLogger(__name__)


SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")


LARGEST_FILE = 2**31 - 2
"""Bytes of a csv or tsv file that can be read whole, and letters of a cell: Arrow counts them in 32 bits."""


_DELIMITERS = {".csv": ",", ".tsv": "\t"}


_ROWS_AT_ONCE = 10_000


_ESCAPED_HALF = re.compile(rb"\\u[dD][89a-fA-F]")


def stream_rows(
    path: str | os.PathLike[str], may_read: MayRead = lambda _: True, *, tell: bool = False
) -> Iterator[dict[str, Any]]:
    """Read a file row by row, in memory that does not grow with it.

    Args:
        path: a jsonl, csv, tsv (quotes are plain characters) or parquet file; values as `read_table` gives them.
        may_read: whether a column of a name may be one that is read; what others hold is given as it is.
        tell: whether the log says which columns are left out, as it does where a file is read whole.

    Returns:
        The rows, a key for each column.

    Raises:
        ValueError: a file that is missing, of another kind, or unreadable; the row or line is named.
    """
    path = _existing_file(path)
    suffix = path.suffix.lower()
    if suffix == ".json":
        raise ValueError(f"A '.json' file can't be streamed ({path}): use one of .jsonl, .csv, .tsv, .parquet.")
    if suffix == ".parquet":
        return _parquet_rows(path)
    if suffix == ".jsonl":
        return _json_lines(path, may_read)
    return _rows_of_cells(path, tell)


def read_table(path: str | os.PathLike[str], may_read: MayRead) -> pa.Table:
    """Read a file whole. Every cell of a csv or tsv file is a text, so that no "NA" turns into a missing value.

    Args:
        path: a csv, tsv (quotes are plain characters, as GLUE has them), json (an array, or a line a row), jsonl or
            parquet file.
        may_read: see `nlpkd.data.files.tables.held_columns`.

    Returns:
        The columns; a key that a JSON row lacks is null there.

    Raises:
        ValueError: a file that is missing, of another kind, empty or unreadable; the row or line is named.
    """
    path = _existing_file(path)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        with _parquet_errors(path):
            check_names(pa.parquet.read_schema(path).names, path)
            return pa.parquet.read_table(path)
    if suffix in _DELIMITERS:
        return _table_of_cells(path)
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8).strip()
    if not content:
        raise ValueError(f"{path} is empty.")
    is_array = suffix == ".json" and content.startswith(b"[")
    return table_of(_json_array(path, content) if is_array else list(_json_lines(path, may_read)), path, may_read)


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """Read plain text, a text a line; lines of blanks are passed over.

    Args:
        path: a txt file.

    Returns:
        The texts.

    Raises:
        ValueError: a file that is missing, not UTF-8, or without any text.
    """
    path = _existing_file(path, (".txt",))
    try:
        with path.open(encoding="utf-8-sig") as lines:
            texts = [line.rstrip("\n") for line in lines if not BLANK.fullmatch(line)]
    except UnicodeDecodeError:
        raise _not_utf8(path) from None
    if not texts:
        raise ValueError(f"{path} is empty.")
    return texts


def class_names(path: str | os.PathLike[str], column: str) -> list[str] | None:
    """Read the names of a column's classes, which a parquet file of `datasets` brings along.

    Args:
        path: a file that `stream_rows` reads.
        column: the label's column.

    Returns:
        The names by id, or None where the file has none.

    Raises:
        ValueError: if the column is of a type that no data set can hold.
    """
    path = Path(with_home(path))
    if path.suffix.lower() != ".parquet":
        return None
    schema = pa.parquet.read_schema(path)
    feature = feature_of(schema, column, path) if column in schema.names else None
    return feature.names if isinstance(feature, ClassLabel) else None


def _existing_file(path: str | os.PathLike[str], suffixes: Sequence[str] = SUFFIXES) -> Path:
    path = Path(with_home(path))
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder: pass a file in it, or datasets.load_from_disk(...) where save_to_disk made it."
        )
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"Unknown file type {path.suffix!r} of {path}: use one of {', '.join(suffixes)}.")
    if not path.is_file():
        raise ValueError(f"File not found: {path} (from {Path.cwd()}).")
    return path


def _not_utf8(path: Path) -> ValueError:
    """Describe the first byte of a file that is not UTF-8."""
    start = 0
    with path.open("rb") as lines:
        for line in lines:
            try:
                line.decode()
            except UnicodeDecodeError as error:
                start += error.start
                break
            start += len(line)
    return ValueError(f"{path} is not UTF-8 (byte {start}): save it as UTF-8.")


# csv and tsv


def _cells(path: Path, tell: bool = False) -> Iterator[list[str]]:
    """Read the header and then the rows, each of as many cells as the header; empty lines are passed over.

    Where several columns have no name they are left out, since nothing could say which of them it reads.
    """
    delimiter = _DELIMITERS[path.suffix.lower()]
    # Quotes of a tsv are plain characters, as GLUE has them.
    quoting: Any = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    # Cells may be as long as they are; the limit is one of the process, so it is never lowered.
    csv.field_size_limit(max(csv.field_size_limit(), LARGEST_FILE))
    header, named = list[str](), list[int]()
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
            for cells in filter(None, reader):
                if not header:
                    if not any(map(str.strip, cells)):
                        continue
                    header, named = cells, [place for place, name in enumerate(cells) if name.strip()]
                    if len(header) - len(named) < 2:
                        named = list(range(len(header)))
                    elif tell:
                        logger.warning("%s: %d columns without a name are left out.", path, len(header) - len(named))
                    check_names([header[place] for place in named], path)
                    if len(header) == 1:
                        _refuse_other_delimiter(path, delimiter)
                elif len(cells) != len(header):
                    raise ValueError(
                        f"Line {reader.line_num} of {path} has {len(cells)} cells, and the header has {len(header)}: "
                        f"put a text that holds {delimiter!r} in quotes (csv), or check that it is the right file."
                    )
                yield cells if len(named) == len(header) else [cells[place] for place in named]
    except UnicodeDecodeError:
        raise _not_utf8(path) from None
    except csv.Error as error:
        unclosed = "a quote is opened and never closed" if "unexpected end" in str(error) else str(error)
        raise ValueError(f"{path} can't be read at line {reader.line_num}: {unclosed}.") from error
    if not header:
        raise ValueError(f"{path} is empty.")


def _refuse_other_delimiter(path: Path, delimiter: str) -> None:
    """Refuse a file of one column whose name, and the lines below, hold what separates columns elsewhere."""
    with path.open(encoding="utf-8-sig") as lines:
        header, *below = islice(filter(str.strip, lines), 6)
    for other in sorted({*_DELIMITERS.values(), ";", "|"} - {delimiter}):
        if 0 < header.count(other) <= "".join(below).count(other):
            raise ValueError(
                f"{path} seems to be separated by {other!r}, and a {path.suffix} file is read by {delimiter!r}: save "
                f"it so, such as by pandas.read_csv({path.name!r}, sep={other!r}).to_csv('NEW.csv', index=False)."
            )


def _rows_of_cells(path: Path, tell: bool) -> Iterator[dict[str, str]]:
    cells = _cells(path, tell)
    header = next(cells)
    return (dict(zip(header, row, strict=True)) for row in cells)


def _table_of_cells(path: Path) -> pa.Table:
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise ValueError(
            f"{path} has {size} bytes, and {LARGEST_FILE} is the most that is read whole: write the file as "
            "parquet, or, to train on it, stream it (streaming=True)."
        )
    cells = _cells(path, tell=True)
    header = next(cells)
    tables = [pa.table([pa.array([], pa.string())] * len(header), names=header)]
    while rows := list(islice(cells, _ROWS_AT_ONCE)):
        tables.append(pa.table([pa.array(column, pa.string()) for column in zip(*rows, strict=True)], names=header))
    return pa.concat_tables(tables)


# JSON


def _integer(digits: str) -> int | Decimal:
    try:
        return int(digits)
    except ValueError:
        # Of thousands of digits, which no column holds; whether anything reads it is not known here.
        return Decimal(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r:.80} comes twice")
    return found


_JSON = json.JSONDecoder(parse_int=_integer, object_pairs_hook=_object)


def _json_array(path: Path, content: bytes) -> list[Any]:
    try:
        return _JSON.decode(content.decode())
    except UnicodeDecodeError:
        raise _not_utf8(path) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error


def _json_lines(path: Path, may_read: MayRead) -> Iterator[dict[str, Any]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not line.strip():
                continue
            try:
                row = _JSON.decode(line.decode())
            except UnicodeDecodeError:
                raise _not_utf8(path) from None
            except (ValueError, RecursionError) as error:
                raise ValueError(f"Line {number} of {path} is not a JSON value: {error}.") from error
            if not isinstance(row, dict):
                raise ValueError(
                    f"Line {number} of {path} is a {type(row).__name__}, not an object like {{'text': ..}}."
                )
            if _ESCAPED_HALF.search(line):
                _refuse_halves(row, number, path, may_read)
            yield row


def _refuse_halves(row: Mapping[str, Any], number: int, path: Path, may_read: MayRead) -> None:
    check_names(list(row), path)
    for name, value in row.items():
        if not may_read(name):
            continue
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"Line {number} of {path}, column {name!r}, holds {HALF}; found {value!r:.80}."
            ) from error


# Parquet


@contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a readable parquet file: {error}") from error


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    with _parquet_errors(path), pa.parquet.ParquetFile(path) as file:
        check_names(file.schema_arrow.names, path)
        for batch in file.iter_batches(batch_size=1000):
            yield from batch.to_pylist()

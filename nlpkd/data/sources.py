"""Reading labelled text from files, the Hub, or rows in memory, with nothing guessed about its values."""

from __future__ import annotations

import codecs
import csv
import io
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from datasets import ClassLabel, Dataset, DatasetDict, Features, load_dataset

logger = logging.getLogger(__name__)


Rows: TypeAlias = Dataset | pd.DataFrame | Sequence[Mapping[str, Any]]
"""Rows in memory."""


Source: TypeAlias = str | os.PathLike[str] | DatasetDict | Rows


SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}


LARGEST_FILE = 2**31 - 2
"""Bytes of a csv or tsv file that can be read whole, and letters of a cell: Arrow counts them in 32 bits."""


_HALF = "half of a character (a lone surrogate such as \\ud83d): remove it"


_ESCAPED_HALF = re.compile(rb"\\u[dD][89a-fA-F]")


_UNFIT = (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError, OverflowError)
"""What Arrow raises of a value that it can't hold."""


def read_splits(
    train: Source,
    validation: Source | None = None,
    test: Source | None = None,
    dataset_config: str | None = None,
    dataset_revision: str | None = None,
) -> tuple[DatasetDict, str]:
    """Read the sources of up to three splits.

    Args:
        train: a csv, tsv (quotes are plain characters, as GLUE has them), json, jsonl or parquet file, a Hub id
            (``id`` or ``id@revision``), a Dataset, a DatasetDict (it and the Hub bring their other splits), a pandas
            DataFrame or a list of dicts.
        validation: the validation rows, the same kinds; wins over what ``train`` brings.
        test: the test rows, the same kinds; wins over what ``train`` brings.
        dataset_config: the configuration of the Hub dataset that ``train`` names.
        dataset_revision: the branch, tag or commit of the Hub dataset that ``train`` names.

    Returns:
        The splits, untouched, under "train", "validation" and "test", and a name for the record.

    Raises:
        ValueError: a source that is missing, empty, unreadable or of an unknown kind.
        ConnectionError: the Hub can't be reached.
    """
    if not _is_hub_id(train) and (dataset_config or dataset_revision):
        raise ValueError(
            "dataset_config and dataset_revision belong to a Hub dataset, but train is not a Hub id: leave them out."
        )
    splits = _train_splits(_read(train, dataset_config, dataset_revision))
    for role, source in (("validation", validation), ("test", test)):
        if source is not None:
            splits[role] = _one_split(_read(source), role)
    for role, split in splits.items():
        if len(split) == 0:
            raise ValueError(f"The {role} split has no rows: check its source.")
    names = dict.fromkeys(name_of(source) for source in (train, validation, test) if source is not None)
    return DatasetDict({role: split.with_format(None) for role, split in splits.items()}), ", ".join(names)


def stream_rows(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Read a file row by row, in memory that does not grow with it.

    Args:
        path: a jsonl, csv, tsv (quotes are plain characters) or parquet file; values as `read_splits` gives them.

    Yields:
        The rows, a key for each column.

    Raises:
        ValueError: a file that is missing, of another kind, or unreadable; the row or line is named.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"File not found: {path} (from {Path.cwd()}).")
    reader = {".jsonl": _stream_json_lines, ".csv": _stream_csv, ".tsv": _stream_tsv, ".parquet": _stream_parquet}
    if path.suffix.lower() not in reader:
        raise ValueError(f"A {path.suffix!r} file can't be streamed ({path}): use one of {', '.join(reader)}.")
    return reader[path.suffix.lower()](path)


def class_names(path: str | os.PathLike[str], column: str) -> list[str] | None:
    """Read the names of a column's classes, which a parquet file of `datasets` brings along.

    Args:
        path: a file that `stream_rows` reads.
        column: the label's column.

    Returns:
        The names by id, or None where the file has none.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() != ".parquet":
        return None
    feature = Features.from_arrow_schema(pa.parquet.read_schema(path)).get(column)
    return feature.names if isinstance(feature, ClassLabel) else None


def to_column(values: Sequence[Any], name: str, source: Path | str, rows: Iterable[int] | None = None) -> pa.Array:
    """Turn values into a column of one type.

    Args:
        values: of the column.
        name: its name, for the error.
        source: where it is from, for the error.
        rows: the values' rows there; 0, 1, ... if None.

    Returns:
        The column.

    Raises:
        ValueError: if the values differ in kind, or one can't be held; the row is named.
    """
    try:
        return pa.array(values)
    except _UNFIT as error:
        numbered = dict(zip(range(len(values)) if rows is None else rows, values, strict=True))
        raise ValueError(f"Column {name!r} of {source}: {_odd_value(numbered) or error}") from error


def _stream_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if line.strip():
                row = _json_value(line, number, path)
                if not isinstance(row, dict):
                    raise ValueError(f"Line {number} of {path} is a {type(row).__name__}, not an object.")
                if _ESCAPED_HALF.search(line):
                    _refuse_halves(row, number, path)
                yield row


def _refuse_halves(row: Mapping[str, Any], number: int, path: Path) -> None:
    for name, value in row.items():
        try:
            json.dumps({name: value}, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"Line {number} of {path}, column {name!r}, holds {_HALF}; found {value!r:.80}."
            ) from error


def _cells(lines: Iterable[str], delimiter: str, quoted: bool) -> Any:
    """Read rows of cells, as long as they may be; the limit is one of the process, so it is never lowered."""
    csv.field_size_limit(max(csv.field_size_limit(), LARGEST_FILE))
    return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, strict=True)


def _stream_delimited(path: Path, delimiter: str, quoted: bool) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            cells = _cells(lines, delimiter, quoted)
            header: list[str] = next((row for row in cells if row), [])
            _check_names(header, path)
            for row in cells:
                if row and len(row) != len(header):
                    raise ValueError(
                        f"Line {cells.line_num} of {path} has {len(row)} cells, and the header has {len(header)}."
                    )
                if row:
                    yield dict(zip(header, row, strict=True))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}): save it as UTF-8.") from error
    except csv.Error as error:
        raise ValueError(f"{path} can't be read: {error}.") from error


def _stream_csv(path: Path) -> Iterator[dict[str, Any]]:
    return _stream_delimited(path, ",", quoted=True)


def _stream_tsv(path: Path) -> Iterator[dict[str, Any]]:
    return _stream_delimited(path, "\t", quoted=False)


def _stream_parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with pa.parquet.ParquetFile(path) as file:
            _check_names(file.schema_arrow.names, path)
            for batch in file.iter_batches(batch_size=1000):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a readable parquet file: {error}") from error


def _train_splits(data: Dataset | DatasetDict) -> dict[str, Dataset]:
    if isinstance(data, Dataset):
        return {"train": data}
    splits = {}
    for role, names in SPLIT_NAMES.items():
        found = [name for name in names if name in data]
        if len(found) > 1:
            raise ValueError(f"Several splits could be the {role} split: {found}. Keep one in the DatasetDict.")
        if found:
            splits[role] = data[found[0]]
    if "train" not in splits:
        raise ValueError(f"There is no 'train' split; found {sorted(data)}. Pass the split you want as train=.")
    unused = sorted(set(data) - {name for names in SPLIT_NAMES.values() for name in names})
    if unused:
        logger.warning("Splits not used: %s. Pass one as validation= or test= if you need it.", ", ".join(unused))
    return splits


def _one_split(data: Dataset | DatasetDict, role: str) -> Dataset:
    if isinstance(data, Dataset):
        return data
    found = [name for name in SPLIT_NAMES[role] if name in data] or list(data)
    if len(found) != 1:
        raise ValueError(f"Can't tell which split is the {role} split: {sorted(data)}. Pass one Dataset as {role}=.")
    return data[found[0]]


def _is_hub_id(source: Source) -> bool:
    """Tell a Hub id from a path: an id is at most ``user/name``, without a file's suffix, and names nothing local."""
    if not isinstance(source, str):
        return False
    looks_local = source.startswith((".", "~", "/")) or "\\" in source or source.count("/") > 1
    return not (looks_local or Path(source).exists() or Path(source).suffix.lower() in (*READERS, ".txt", ".xlsx"))


def name_of(source: Source) -> str:
    """Name a source for a record: a Hub id, or a file without its folder."""
    if not isinstance(source, (str, os.PathLike)):
        return "in-memory data"
    return str(source) if _is_hub_id(source) else Path(source).name


def _read(
    source: Source, dataset_config: str | None = None, dataset_revision: str | None = None
) -> Dataset | DatasetDict:
    if isinstance(source, (Dataset, DatasetDict)):
        return source
    if isinstance(source, pd.DataFrame):
        return _from_frame(source)
    if isinstance(source, (list, tuple)):
        return Dataset(_table(list(source), "the list"))
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(
            f"Can't read data from a {type(source).__name__}: pass a path, a Hub id, a Dataset, a DatasetDict, a "
            "DataFrame of pandas, or a list of dicts."
        )
    return _from_hub(str(source), dataset_config, dataset_revision) if _is_hub_id(source) else _from_file(Path(source))


def _from_frame(frame: pd.DataFrame) -> Dataset:
    repeated = sorted({str(name) for name in frame.columns[frame.columns.duplicated()]})
    if repeated or not all(isinstance(name, str) for name in frame.columns):
        raise ValueError(
            f"The columns of the DataFrame, {list(frame.columns)}, must be different strings: name them with "
            "frame.columns = [...]."
        )
    _check_names(list(frame.columns), "The DataFrame")
    try:
        return Dataset(pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata())
    except _UNFIT as error:
        for name, column in frame.items():
            to_column(column.astype(object).where(column.notna(), None).tolist(), str(name), "the DataFrame")
        raise ValueError(
            f"The DataFrame can't be read: {' '.join(map(str, error.args))}: make it one type."
        ) from error


def _from_hub(name: str, dataset_config: str | None, dataset_revision: str | None) -> DatasetDict:
    repo, _, named_revision = name.partition("@")
    if named_revision and dataset_revision and named_revision != dataset_revision:
        raise ValueError(
            f"Two revisions of {repo}: {named_revision!r} in its id and dataset_revision={dataset_revision!r}. "
            "Give one."
        )
    try:
        return load_dataset(repo, dataset_config, revision=named_revision or dataset_revision)
    except ConnectionError as error:
        raise ConnectionError(
            f"The Hugging Face Hub can't be reached, so the dataset {repo!r} can't be loaded ({error}). Without a "
            "network: `make demo`, or your own files with --train_file FILE --validation_file FILE."
        ) from error
    except FileNotFoundError as error:
        raise ValueError(f"{repo!r} is neither a file here nor a dataset you can read on the Hub: {error}") from error


def _from_file(path: Path) -> Dataset:
    path = path.expanduser()
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder: pass a file in it, or datasets.load_from_disk(...) where save_to_disk made it."
        )
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"Unknown file type {path.suffix!r} of {path}: use one of {', '.join(READERS)}.")
    if not path.is_file():
        raise ValueError(f"File not found: {path} (from {Path.cwd()}).")
    return Dataset(reader(path))


def _check_names(names: Sequence[str], path: Path | str) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{path} has columns with the same name: {repeated}. Rename them.")
    if odd := [name for name in names if "\0" in name]:
        raise ValueError(f"{path} has columns with a NUL byte in their name: {odd}. Is it a text file? Rename them.")
    if odd := [name for name in names if _is_half(name)]:
        raise ValueError(f"{path} has a column whose name, {odd[0]!r:.80}, holds {_HALF}.")


def _is_half(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def _utf8(path: Path) -> bytes:
    """Read a text file, checked to be UTF-8, without its byte order mark."""
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    if not content.strip():
        raise ValueError(f"{path} is empty.")
    try:
        content.decode()
    except UnicodeDecodeError as error:
        position = error.start + path.stat().st_size - len(content)
        raise ValueError(f"{path} is not UTF-8 (byte {position}): save it as UTF-8.") from error
    return content


def _delimited(path: Path, delimiter: str, quote: str | bool) -> pa.Table:
    """Read every cell as the text it is, so that no "null" or "NA" turns into a missing value."""
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(
            f"{path} has {path.stat().st_size} bytes, and {LARGEST_FILE} is the most that is read whole: stream train "
            "rows (streaming=True), or write the file as parquet."
        )
    content = _utf8(path)
    lines = io.TextIOWrapper(io.BytesIO(content), "utf-8", newline="")
    try:
        header = next(row for row in _cells(lines, delimiter, bool(quote)) if row)
    except csv.Error as error:
        raise ValueError(f"The header of {path} can't be read: {error}.") from error
    _check_names(header, path)
    try:
        return pa.csv.read_csv(
            pa.BufferReader(content + b"\n"),
            # One block, since no row may cross blocks; one thread, since only that gives row numbers in errors.
            pa.csv.ReadOptions(
                column_names=header, skip_rows_after_names=1, block_size=len(content) + 1, use_threads=False
            ),
            pa.csv.ParseOptions(delimiter=delimiter, quote_char=quote, newlines_in_values=bool(quote)),
            pa.csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False),
        )
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} can't be read (the header is row 1): {str(error)[:300]}") from error


def _csv(path: Path) -> pa.Table:
    return _delimited(path, ",", quote='"')


def _tsv(path: Path) -> pa.Table:
    return _delimited(path, "\t", quote=False)


def _json(path: Path) -> pa.Table:
    content = _utf8(path).strip()
    if not content.startswith(b"["):
        return _json_lines(path)
    try:
        rows = _JSON.decode(content.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error
    return _table(rows, path)


def _json_lines(path: Path) -> pa.Table:
    lines = enumerate(_utf8(path).split(b"\n"), 1)
    return _table([_json_value(line, number, path) for number, line in lines if line.strip()], path)


def _json_value(line: bytes, number: int, path: Path) -> Any:
    try:
        return _JSON.decode(line.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"Line {number} of {path} is not a JSON value: {error}.") from error


def _integer(digits: str) -> int:
    try:
        return int(digits)
    except ValueError:
        raise ValueError(f"the number {digits:.20}... has {len(digits)} digits") from None


_JSON = json.JSONDecoder(parse_int=_integer)


def _table(rows: list[Any], path: Path | str) -> pa.Table:
    """Turn JSON rows into columns; a key that a row lacks is null there."""
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"Row {number} of {path} is a {type(row).__name__}, not an object like {{'text': ..}}.")
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: to_column([row.get(name) for row in rows], name, path) for name in names}
    _check_names(list(columns), path)
    return pa.table(columns)


def _odd_value(values: Mapping[int, Any]) -> str | None:
    """Name the first value, of those by row, that no column can hold, or whose kind differs from those before it."""
    kinds: dict[str, int] = {}
    for row, value in values.items():
        if isinstance(value, str) and _is_half(value):
            return f"row {row} holds {_HALF}; found {value!r:.80}."
        try:
            pa.array([value])
        except _UNFIT as error:
            return f"row {row} holds {_shown(value)}, which no column can: {error}."
        if value is not None:
            kinds.setdefault(type(value).__name__, row)
    if len(kinds) > 1:
        found = " and ".join(f"{kind} (row {row})" for kind, row in kinds.items())
        return f"its values mix {found}: make them one type."
    return None


def _shown(value: Any) -> str:
    try:
        return f"{value!r:.80}"
    except ValueError:
        return "an integer of thousands of digits"


def _parquet(path: Path) -> pa.Table:
    try:
        _check_names(pa.parquet.read_schema(path).names, path)
        return pa.parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a readable parquet file: {error}") from error


READERS: dict[str, Callable[[Path], pa.Table]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".json": _json,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}

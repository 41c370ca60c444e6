"""Tables of rows: columns of one type each, and data sets of them, without columns that nobody reads or can hold."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
import pyarrow as pa
from datasets import Dataset, Features

from nlpkd.data.columns import HALF, has_half

logger = logging.getLogger(__name__)


UNFIT = (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError, OverflowError)
"""What Arrow raises of a value that it can't hold."""


MayRead: TypeAlias = Callable[[str], bool]
"""Whether a column of a name may be one that is read."""


def held_columns(make: Mapping[str, Callable[[], Any]], may_read: MayRead) -> dict[str, Any]:
    """Make columns, and leave out those that can't be made and that nothing reads, with a warning.

    Args:
        make: makes each column, by its name; a ValueError says why it can't be made.
        may_read: whether a column of a name may be one that is read.

    Returns:
        What was made, by name.

    Raises:
        ValueError: for a column that may be read, and where no column is left.
    """
    made, refused = {}, dict[str, ValueError]()
    for name, column in make.items():
        try:
            made[name] = column()
        except ValueError as error:
            if may_read(name):
                raise
            refused[name] = error
    if refused and not made:
        raise next(iter(refused.values()))
    for reason in refused.values():
        logger.warning("A column is left out. %s", reason)
    return made


def dataset_of(table: pa.Table, source: Path | str, may_read: MayRead) -> Dataset:
    """Make a data set of a table.

    Args:
        table: the columns.
        source: where they are from, for errors.
        may_read: see `held_columns`.

    Returns:
        The data set.

    Raises:
        ValueError: if a column that may be read is of a type that no data set can hold.
    """
    make = {name: partial(feature_of, table.schema, name, source) for name in table.column_names}
    return Dataset(table.select(list(held_columns(make, may_read))))


def feature_of(schema: pa.Schema, name: str, source: Path | str) -> Any:
    """Tell what `datasets` makes of a column.

    Args:
        schema: of a table or a file.
        name: of the column.
        source: where it is from, for the error.

    Returns:
        The feature.

    Raises:
        ValueError: if no data set can hold the column.
    """
    field = schema.field(name)
    try:
        return Features.from_arrow_schema(pa.schema([field], schema.metadata))[name]
    except ValueError as error:
        raise ValueError(
            f"Column {name!r} of {source} is of the type {field.type}, which a data set can't hold: make text or "
            "numbers of it."
        ) from error


def table_of_frame(frame: pd.DataFrame, may_read: MayRead) -> pa.Table:
    """Turn a DataFrame into columns, without its index.

    Args:
        frame: its columns are called by different texts.
        may_read: see `held_columns`.

    Returns:
        The columns.

    Raises:
        ValueError: if a column that may be read can't be made; see `to_column`.
    """
    make = {str(name): partial(_column_of_frame, frame, str(name)) for name in frame.columns}
    return pa.table(held_columns(make, may_read))


def _column_of_frame(frame: pd.DataFrame, name: str) -> pa.ChunkedArray:
    try:
        return pa.Table.from_pandas(frame[[name]], preserve_index=False).column(0)
    except (*UNFIT, pa.ArrowException, TypeError) as error:
        column = frame[name]
        to_column(column.astype(object).where(column.notna(), None).tolist(), name, "the DataFrame")
        raise ValueError(
            f"The DataFrame can't be read: {' '.join(map(str, error.args))}: make it one type."
        ) from error


def table_of(rows: Sequence[Any], source: Path | str, may_read: MayRead) -> pa.Table:
    """Turn rows, each a dict, into columns; a key that a row lacks is null there.

    Args:
        rows: the rows.
        source: where they are from, for errors.
        may_read: see `held_columns`.

    Returns:
        The columns.

    Raises:
        ValueError: if a row is no dict, or a column that may be read can't be made; see `to_column`.
    """
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"Row {number} of {source} is a {type(row).__name__}, not an object like {{'text': ..}}.")
    names = dict.fromkeys(name for row in rows for name in row)
    check_names(list(names), source)

    def column(name: str) -> pa.Array:
        return to_column([row.get(name) for row in rows], name, source)

    return pa.table(held_columns({name: partial(column, name) for name in names}, may_read))


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
    except UNFIT as error:
        missing = [isinstance(value, float) and value != value for value in values]
        if any(missing):
            # Rows that pandas hands out have NaN for a text that is missing.
            known = [None if gone else value for value, gone in zip(values, missing, strict=True)]
            return to_column(known, name, source, rows)
        numbered = dict(zip(range(len(values)) if rows is None else rows, values, strict=True))
        raise ValueError(f"Column {name!r} of {source}: {_odd_value(numbered) or error}") from error


def check_names(names: Sequence[str], source: Path | str) -> None:
    """Refuse columns whose names are no texts, repeat or can't be written.

    Args:
        names: of the columns.
        source: where they are from, for the error.

    Raises:
        ValueError: a name that is no text, two columns of one name, a NUL byte in a name, or half of a character.
    """
    if odd := [name for name in names if not isinstance(name, str)]:
        raise ValueError(f"{source} has columns whose names are no texts: {odd[:5]!r:.80}. Rename them.")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{source} has columns with the same name: {repeated}. Rename them.")
    if odd := [name for name in names if "\0" in name]:
        raise ValueError(f"{source} has columns with a NUL byte in their name: {odd}. Is it a text file? Rename them.")
    if odd := [name for name in names if has_half(name)]:
        raise ValueError(f"{source} has a column whose name, {odd[0]!r:.80}, holds {HALF}.")


def _odd_value(values: Mapping[int, Any]) -> str | None:
    """Describe the first value, of those by row, that no column can hold, or whose kind differs from those before."""
    kinds: dict[str, int] = {}
    for row, value in values.items():
        if isinstance(value, str) and has_half(value):
            return f"row {row} holds {HALF}; found {value!r:.80}."
        try:
            pa.array([value])
        except UNFIT as error:
            reason = str(error).replace("Decimal precision", "digits of a number")
            return f"row {row} holds {_shortened(value)}, which no column can: {reason}."
        if value is not None:
            kinds.setdefault(type(value).__name__, row)
    if len(kinds) > 1:
        found = " and ".join(f"{kind} (row {row})" for kind, row in kinds.items())
        return f"its values mix {found}: make them one type."
    return None


def _shortened(value: Any) -> str:
    try:
        # Numbers of thousands of digits in a JSON file are read as decimals.
        return f"{value!r:.80}".replace("Decimal('", "")
    except ValueError:
        return "an integer of thousands of digits"

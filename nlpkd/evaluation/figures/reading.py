"""Parsed JSON as records, by the types of their fields; an error names the field it is about."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from numbers import Integral, Real
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")

LARGEST_NUMBER = 1e18
"""Above any figure of a report: whoever divides or draws a larger one runs over."""


_KINDS: dict[Any, type] = {int: Integral, float: Real, str: str, bool: bool}


@contextmanager
def within(part: Any) -> Iterator[None]:
    """Put the name of a part before the message of an error about it.

    Args:
        part: a field's name, a key, or a place in a list.
    """
    try:
        yield
    except (TypeError, OverflowError) as error:
        raise type(error)(f"{part}: {error}") from error


def build_record(kind: type[T], entry: Mapping[str, Any]) -> T:
    """Build a record and the records in it from parsed JSON, by the types of the fields.

    Args:
        kind: the record's dataclass.
        entry: values by the names of its fields; other keys are left out. Where a number is expected, null is NaN.

    Returns:
        The record.

    Raises:
        TypeError: when the entry is no mapping, or lacks a field.
    """
    if not isinstance(entry, Mapping):
        raise TypeError(f"expected an object with the entries of {kind.__name__}, found {entry!r:.100}")
    values, wanted = {}, get_type_hints(kind)
    for name in wanted:
        if name in entry:
            with within(name):
                values[name] = as_type(wanted[name], entry[name])
    return kind(**values)


def as_type(wanted: Any, value: Any, largest: float = LARGEST_NUMBER) -> Any:
    """Turn a JSON value into what a field's type says, a record too; finite numbers are `largest` at most."""
    inner = get_args(wanted)
    if NoneType in inner:
        kinds = [each for each in inner if each is not NoneType and isinstance(value, get_origin(each) or object)]
        return None if value is None else as_type((kinds or inner)[-1], value, largest)
    if isinstance(wanted, type) and is_dataclass(wanted):
        return build_record(wanted, value)
    if get_origin(wanted) is list:
        if not isinstance(value, (list, tuple)):
            raise TypeError(f"expected a list, found {value!r:.100}")
        return list(_each_as_type(inner[0], enumerate(value), largest).values())
    if get_origin(wanted) is dict:
        if not isinstance(value, Mapping):
            raise TypeError(f"expected an object, found {value!r:.100}")
        return _each_as_type(inner[1], value.items(), largest)
    if wanted is float and value is None:
        return math.nan
    if not isinstance(value, _KINDS.get(wanted, object)) or (isinstance(value, bool) and wanted in (int, float)):
        raise TypeError(f"expected {wanted.__name__}, found {value!r:.100}")
    if isinstance(value, Real) and math.isfinite(value) and abs(float(value)) > largest:
        raise OverflowError(f"{value!r:.100} is no figure")
    return value


def _each_as_type(wanted: Any, values: Iterable[tuple[Any, Any]], largest: float) -> dict[Any, Any]:
    found = {}
    for key, value in values:
        with within(key):
            found[key] = as_type(wanted, value, largest)
    return found

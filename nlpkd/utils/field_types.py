"""Values of settings held against the types that their fields declare."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import fields
from functools import cache
from numbers import Integral, Real
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints


def check_field_types(settings: Any, skipped: Collection[str] = ()) -> None:
    """Refuse settings of another type than their fields have, such as the text "False", which counts as true.

    None passes, since defaults are resolved later. So does what is no text, number, switch or list of them.

    Args:
        settings: an instance of a dataclass.
        skipped: names of fields that are checked elsewhere.

    Raises:
        ValueError: if a value has another type; it names the field.
    """
    kind: Any = type(settings)
    hints = _hints(kind)
    for field in fields(settings):
        value = getattr(settings, field.name, None)
        if value is not None and field.name not in skipped and not _fits(value, hints[field.name]):
            raise ValueError(f"{field.name} must be {_described(hints[field.name])}, got {field.name}={value!r:.80}")


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, each) for each in get_args(hint) if each is not type(None))
    if get_origin(hint) in (list, Sequence):
        return isinstance(value, (list, tuple)) and all(_fits(each, get_args(hint)[0]) for each in value)
    if hint is bool:
        return not isinstance(value, str) and bool(value in (True, False))
    if hint in (int, float):
        return isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
    return isinstance(value, (str, os.PathLike)) if hint is str else True


def _described(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_described(each) for each in get_args(hint) if each is not type(None))
    if get_origin(hint) in (list, Sequence):
        return f"a list, each {_described(get_args(hint)[0])}"
    known = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}
    return known.get(hint, str(hint))


def are_numbers(*values: Any) -> bool:
    """Check whether all values are numbers, so that they can be held against bounds; NaN is none."""
    return all(_fits(value, float) and value == value for value in values)

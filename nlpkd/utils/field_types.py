"""Values of settings held against the types that their fields declare."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
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
    names = [field.name for field in fields(settings) if field.name not in skipped]
    check_types({name: getattr(settings, name, None) for name in names}, _hints(kind))


def check_types(values: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Refuse values of other types than their hints, as `check_field_types` does.

    Args:
        values: by name.
        hints: by name, of `typing.get_type_hints`.

    Raises:
        ValueError: if a value has another type; it is named.
    """
    for name, value in values.items():
        if value is not None and not _fits(value, hints[name]):
            raise ValueError(f"{name} must be {_described(hints[name])}, got {name}={value!r:.80}")


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, each) for each in get_args(hint) if each is not type(None))
    if get_origin(hint) in (list, Sequence):
        return isinstance(value, (list, tuple)) and all(_fits(each, get_args(hint)[0]) for each in value)
    if get_origin(hint) is Mapping:
        return isinstance(value, Mapping) and all(_fits(each, get_args(hint)[1]) for each in value.values())
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
    if get_origin(hint) is Mapping:
        return f"a mapping, each value {_described(get_args(hint)[1])}"
    known = {Any: "anything", bool: "True or False", int: "a whole number", float: "a number", str: "a text"}
    return known.get(hint, str(hint))


def are_numbers(*values: Any) -> bool:
    """Check whether all values are numbers, so that they can be held against bounds; NaN is none."""
    return all(_fits(value, float) and value == value for value in values)


def check_counts(least: int = 1, /, **counts: Any) -> None:
    """Refuse numbers of things that are not whole, or too small.

    Args:
        least: the smallest one.
        **counts: by name.

    Raises:
        ValueError: for the first one; it is named.
    """
    for name, value in counts.items():
        if not (_fits(value, int) and value >= least):
            raise ValueError(f"{name} must be a whole number of at least {least}, got {name}={value!r:.80}")

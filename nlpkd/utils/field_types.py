"""Values of settings in plain form, held against the types that their fields declare, and numbers against bounds."""

from __future__ import annotations

import inspect
import math
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, fields
from functools import cache, wraps
from numbers import Integral, Real
from pathlib import Path
from types import UnionType
from typing import Any, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

LARGEST = 2**63 - 1
"""Of whole numbers: what torch, numpy, and Arrow count with."""

# How annotations call what may be a path.
_PLACE = re.compile(r"\b(?:Path|PathLike|Source)\b")


def plain_numbers(value: Any) -> Any:
    """Return a setting with Python's numbers for numpy's, which no JSON and few checks of types know.

    Args:
        value: a number, a list, tuple or array of them, or a mapping to these or to such mappings; anything else
            stays what it is.

    Returns:
        The same in Python's types; an array becomes a list.
    """
    if type(value) is dict:
        return {name: plain_numbers(each) for name, each in value.items()}
    return _plain(value)


def _plain(value: Any) -> Any:
    # Not into mappings of a list, which are rows.
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value


def with_home(place: Any) -> Any:
    """Return a path with the home folder for its `~`, which no shell expands in `--output-dir=~/x` or in a file.

    Args:
        place: a path, a Hub id, or a list, tuple or mapping of them; anything else stays what it is.

    Returns:
        The same. `~name` stays where a file is called so, or no user is.
    """
    # Not into mappings of a list, which are rows.
    if type(place) in (list, tuple):
        return type(place)(with_home(each) if isinstance(each, (str, Path)) else each for each in place)
    if type(place) is dict:
        return {name: with_home(each) if isinstance(each, (str, Path)) else each for name, each in place.items()}
    if not isinstance(place, (str, Path)) or not str(place).startswith("~"):
        return place
    written = str(place)
    own = written == "~" or written.startswith("~/")
    return place if not own and os.path.lexists(written) else type(place)(os.path.expanduser(written))


def plain_arguments(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Let a function of the user's settings take numpy's numbers as Python's, and `~` in paths as the home folder.

    See `plain_numbers` and `with_home`. What may be a path is annotated as `Path`, `PathLike` or `Source`.
    """
    parameters = inspect.signature(function).parameters.values()
    places = {each.name for each in parameters if _PLACE.search(str(each.annotation))}
    by_place = [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]

    @wraps(function)
    def with_plain_arguments(*args: Parameters.args, **keywords: Parameters.kwargs) -> Result:
        def plain(name: str, value: Any) -> Any:
            return with_home(plain_numbers(value)) if name in places else plain_numbers(value)

        plain_keywords: Any = {name: plain(name, value) for name, value in keywords.items()}
        plain_args: Any = map(plain, [*by_place, *[""] * len(args)], args)
        return function(*plain_args, **plain_keywords)

    return with_plain_arguments


def plain_fields(settings: Any) -> None:
    """Turn numpy's numbers in the fields of settings into Python's; see `plain_numbers`.

    Args:
        settings: an instance of a dataclass, changed in place even where it is frozen: its `__post_init__` calls this.
    """
    for field in fields(settings):
        object.__setattr__(settings, field.name, plain_numbers(getattr(settings, field.name, None)))


def check_field_types(settings: Any, skipped: Collection[str] = (), may_be_infinite: Collection[str] = ()) -> None:
    """Refuse settings of another type than their fields have, such as the text "False", which counts as true.

    Numbers are finite. None passes, since defaults are resolved later. So does what is no text, number, switch or list
    of them. Numbers of numpy become Python's.

    Args:
        settings: an instance of a dataclass.
        skipped: names of fields that are checked elsewhere.
        may_be_infinite: names of fields that may be infinite, or whose bounds are checked elsewhere.

    Raises:
        ValueError: if a value has another type, or is not finite; it names the field.
    """
    plain_fields(settings)
    kind: Any = type(settings)
    names = [field.name for field in fields(settings) if field.name not in skipped]
    check_types({name: getattr(settings, name, None) for name in names}, _hints(kind), may_be_infinite)


def refuse_none(settings: Any, skipped: Collection[str] = ()) -> None:
    """Refuse None where neither a field's type nor its default is it; a switch that is None is off.

    Args:
        settings: an instance of a dataclass.
        skipped: names of fields that are resolved or checked elsewhere.

    Raises:
        ValueError: for the first such field; it is named, with its default.
    """
    kind: Any = type(settings)
    for field in fields(settings):
        hint = _hints(kind)[field.name]
        default: Any = field.default if field.default_factory is MISSING else field.default_factory()
        free = field.name in skipped or default is None or {bool, type(None)} & {hint, *get_args(hint)}
        if not free and getattr(settings, field.name) is None:
            raise ValueError(
                f"{field.name} must be {_described(hint)}, got {field.name}=None: leave it out for {default!r}"
            )


def check_types(values: Mapping[str, Any], hints: Mapping[str, Any], may_be_infinite: Collection[str] = ()) -> None:
    """Refuse values of other types than their hints, as `check_field_types` does.

    Args:
        values: by name.
        hints: by name, of `typing.get_type_hints`.
        may_be_infinite: names of those that may be infinite.

    Raises:
        ValueError: if a value has another type, or is not finite; it is named.
    """
    for name, value in values.items():
        if value is not None and not _fits(value, hints[name]):
            raise ValueError(f"{name} must be {_described(hints[name])}, got {name}={value!r:.80}")
    check_finite({name: value for name, value in values.items() if name not in may_be_infinite})


def check_finite(values: Mapping[str, Any]) -> None:
    """Refuse numbers that are not finite, and whole ones that are larger than anything that is counted.

    Args:
        values: by name; what is no number, and no list of them, passes.

    Raises:
        ValueError: for the first one; it is named.
    """
    for name, value in values.items():
        for each in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(each, Integral) and abs(int(each)) > LARGEST:
                raise ValueError(f"{name} must be at most {LARGEST}, got {name}={value!r:.80}")
            if isinstance(each, Real) and not math.isfinite(each):
                raise ValueError(f"{name} must be a finite number, got {name}={value!r:.80}")


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
    """Refuse numbers of things that are not whole, too small, or larger than anything that is counted.

    Args:
        least: the smallest one.
        **counts: by name.

    Raises:
        ValueError: for the first one; it is named.
    """
    for name, value in counts.items():
        if not (_fits(value, int) and least <= value <= LARGEST):
            most = "" if not _fits(value, int) or value < least else f" and at most {LARGEST}"
            raise ValueError(f"{name} must be a whole number of at least {least}{most}, got {name}={value!r:.80}")


def check_share(name: str, value: Any, *, none: bool = False, whole: bool = False) -> None:
    """Refuse what is no share, such as a percentage.

    Args:
        name: of the argument.
        value: its value; None passes.
        none: whether it may be 0.
        whole: whether it may be 1.

    Raises:
        ValueError: if it is no number in these bounds; it is named.
    """
    if value is None or (are_numbers(value) and (0 < value < 1 or (none and value == 0) or (whole and value == 1))):
        return
    bounds = f"{'of at least' if none else 'above'} 0 and {'at most' if whole else 'below'} 1"
    raise ValueError(f"{name} must be a share {bounds}, such as 0.98 for 98 %, got {name}={value!r:.80}")

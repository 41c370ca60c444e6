"""Which values the settings of objectives can have."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral
from typing import Any, NamedTuple

from nlpkd.utils.field_types import are_numbers


class Limit(NamedTuple):
    """What a setting can be.

    Attributes:
        allows: tells of a value whether it can be had.
        words: the same in words, after "must be".
    """

    allows: Callable[[Any], bool]
    words: str


def numbers(allows: Callable[[float], bool], words: str) -> Limit:
    """Limit a setting to numbers of which something holds; NaN is none."""
    return Limit(lambda value: are_numbers(value) and allows(value), words)


def one_of(*choices: str) -> Limit:
    """Limit a setting to some words."""
    return Limit(lambda value: isinstance(value, str) and value in choices, f"one of {choices}")


def counts(value: Any) -> bool:
    """Check whether a value is a whole number from 1 on."""
    return isinstance(value, Integral) and int(value) >= 1


BOOL = Limit(lambda value: isinstance(value, bool), "True or False")
POSITIVE = numbers(lambda value: value > 0, "> 0")
NOT_NEGATIVE = numbers(lambda value: value >= 0, ">= 0")
POSITIVE_INT = Limit(counts, "a whole number >= 1")
FINITE_WEIGHT = numbers(lambda value: 0 <= value < math.inf, ">= 0 and finite")

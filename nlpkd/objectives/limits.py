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
        told: the same in words, after "must be".
    """

    allows: Callable[[Any], bool]
    told: str


def numbers(allows: Callable[[float], bool], told: str) -> Limit:
    """Limit a setting to numbers of which something holds; NaN is none."""
    return Limit(lambda value: are_numbers(value) and allows(value), told)


def one_of(*choices: str) -> Limit:
    """Limit a setting to some words."""
    return Limit(lambda value: isinstance(value, str) and value in choices, f"one of {choices}")


def counts(value: Any) -> bool:
    """Check whether a value is a whole number from 1 on."""
    return isinstance(value, Integral) and int(value) >= 1


A_SWITCH = Limit(lambda value: isinstance(value, bool), "True or False")
POSITIVE = numbers(lambda value: value > 0, "> 0")
NOT_NEGATIVE = numbers(lambda value: value >= 0, ">= 0")
A_COUNT = Limit(counts, "a whole number >= 1")
A_WEIGHT = numbers(lambda value: 0 <= value < math.inf, ">= 0 and finite")

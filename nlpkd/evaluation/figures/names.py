"""Names of candidates: a reader can tell each from all others."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

_TAKEN = ("teacher", "student", "baseline")


def shown_name(name: str) -> str:
    """Return what a reader sees of a name: no letters that can't be seen, no blanks but single ones between words."""
    letters = unicodedata.normalize("NFKC", name)
    seen = (each for each in letters if each.isspace() or unicodedata.category(each) not in ("Cc", "Cf"))
    return " ".join("".join(seen).split())


def told_apart(names: Mapping[str, str]) -> dict[str, str]:
    """Number names that a reader would take for earlier ones.

    Args:
        names: what each is to be called, by what it is called now.

    Returns:
        What each is called, no two of them alike.
    """
    chosen: dict[str, str] = {}
    seen: set[str] = set()
    for name, wanted in names.items():
        called, number = wanted, 1
        while shown_name(called) in seen:
            number += 1
            called = f"{wanted} ({number})"
        chosen[name] = called
        seen.add(shown_name(called))
    return chosen


def check_candidate_names(further: Mapping[str, Any]) -> None:
    """Refuse further candidates without names, with the name of a model with an argument of its own, or names alike.

    Args:
        further: the candidates by name.

    Raises:
        ValueError: if they are no mapping, or a name is no text, can't be seen, is taken, or looks like another one.
    """
    if not isinstance(further, Mapping):
        raise ValueError(f"candidates must be models by name, such as {{'int8': model}}, got {further!r:.80}")
    if unseen := [name for name in further if not isinstance(name, str) or not shown_name(name)]:
        raise ValueError(f"names of candidates must be texts that can be seen, got {ascii(unseen)}")
    if taken := [name for name in further if shown_name(name) in _TAKEN]:
        raise ValueError(f"further candidates can't be called {ascii(taken)}: these names have arguments of their own")
    by_shown: dict[str, list[str]] = {}
    for name in further:
        by_shown.setdefault(shown_name(name), []).append(name)
    if alike := next((names for names in by_shown.values() if len(names) > 1), None):
        raise ValueError(f"the candidates {ascii(alike)} look alike to a reader: call one of them otherwise")

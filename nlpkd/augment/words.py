"""The words of a text: what stands between blanks, and of scripts without blanks each sign."""

from __future__ import annotations

import re

_SIGNS = (
    r"\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Tibetan, Burmese, Khmer
    r"\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # Japanese
    r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese
)

_VOWELS = r"\u0e40-\u0e44\u0ec0-\u0ec4"
"""Of Thai and Lao, written before their consonant."""

# Marks and punctuation belong to the sign before them.
_WORD = re.compile(rf"[{_VOWELS}]?[{_SIGNS}][^\w\s]*|[^\s{_SIGNS}]+")


def word_spans(text: str) -> list[tuple[int, int]]:
    """Return where the words of a text begin and end, in order."""
    return [match.span() for match in _WORD.finditer(text)]


def words_of(text: str) -> list[str]:
    """Return the words of a text, in order."""
    return [match.group() for match in _WORD.finditer(text)]

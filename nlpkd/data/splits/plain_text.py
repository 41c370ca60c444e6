"""What is left of a text for a reader who minds neither case nor blanks: by it texts are called equal."""

from __future__ import annotations

import re
import unicodedata

import pyarrow as pa
import pyarrow.compute as pc

INVISIBLE = (
    r"\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    r"\u202a-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff"
)
"""What Unicode shows nothing for (Default_Ignorable_Code_Point), control characters, and the blank of Braille."""


_UNSEEN = re.compile(rf"[\s{INVISIBLE}]+")


_UNSEEN_ASCII = r"[\x00-\x20\x7f]+"


def plain_text(text: str) -> str:
    """Return a text without case, blanks, invisible characters and differences of Unicode form.

    Args:
        text: any text.

    Returns:
        The same text for all that differ in these alone.
    """
    # A mark may reach its letter only where what stood between them is gone, and folding takes composed letters apart.
    seen = _UNSEEN.sub("", unicodedata.normalize("NFKC", text))
    folded = unicodedata.normalize("NFKC", seen).casefold()
    # The capital of Turkish "ı" is I, and the small letter of İ is i, which folding keeps apart.
    return unicodedata.normalize("NFKC", folded.replace("i\u0307", "i").replace("ı", "i"))


def plain_texts(texts: pa.Array) -> pa.Array:
    """Apply `plain_text` to a column, to texts of ASCII without a Python object for each.

    Args:
        texts: of the type `large_string`, without nulls.

    Returns:
        The plain texts, likewise.
    """
    plain = pc.ascii_lower(pc.replace_substring_regex(texts, _UNSEEN_ASCII, ""))
    others = pc.invert(pc.string_is_ascii(texts))
    folded = [plain_text(text) for text in texts.filter(others).to_pylist()]
    return pc.replace_with_mask(plain, others, pa.array(folded, pa.large_string()))

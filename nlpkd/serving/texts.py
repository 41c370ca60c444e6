"""What a classifier is called with: a text, a pair of texts, or several of either."""

from __future__ import annotations

from types import GeneratorType, NoneType
from typing import Any

from nlpkd.data.columns import HALF, has_half, values_of

READING = (
    "truncation", "max_length", "add_special_tokens", "padding", "padding_side", "pad_to_multiple_of",
    "return_token_type_ids", "return_attention_mask",
)  # fmt: skip
"""Settings of a call that say how its texts are read; they are the tokenizer's."""


_A_TEXT = 'a text is a string, or a pair as {"text": .., "text_pair": ..}'


def as_texts(inputs: Any) -> Any:
    """Return inputs as the pipeline of transformers takes them.

    Args:
        inputs: a text, a pair as `{"text": .., "text_pair": ..}`, or several of either: a list, a tuple, a column of
            numpy, pandas or datasets, anything to go through; or a generator.

    Returns:
        One text or pair as it is, several that are all there as a list, of a generator a generator.

    Raises:
        ValueError: for what is neither; it names the type, and the place among several.
    """
    if isinstance(inputs, (str, dict)):
        return _checked(inputs, "")
    if isinstance(inputs, GeneratorType):
        return (_checked(each, f" at place {place}") for place, each in enumerate(inputs))
    several = list(values_of(inputs, f"{_A_TEXT}, or several in a list or a column"))
    return [_checked(each, f" at place {place} of {len(several)}") for place, each in enumerate(several)]


def _checked(text: Any, place: str) -> Any:
    """Return a text or a pair as it is; refuse what is neither."""
    if isinstance(text, dict):
        if not isinstance(text.get("text"), str) or not isinstance(text.get("text_pair"), (str, NoneType)):
            raise ValueError(f"{_A_TEXT}; got {text!r:.80}{place}")
        if unknown := sorted(map(str, text.keys() - {"text", "text_pair"})):
            raise ValueError(f"{_A_TEXT}; got {unknown} beside them{place}")
    elif not isinstance(text, (str, list)):
        raise ValueError(f"{_A_TEXT}; got {type(text).__name__}{place}")
    if any(has_half(each) for each in _parts(text)):
        raise ValueError(f"a text holds {HALF}; got {text!r:.80}{place}")
    return text


def _parts(text: Any) -> list[str]:
    """Return the texts of a text, of a pair, or of a list as transformers takes it."""
    parts = list(text.values()) if isinstance(text, dict) else text if isinstance(text, list) else [text]
    return [part for part in parts if isinstance(part, str)]

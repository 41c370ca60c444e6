"""What a classifier is called with: a text, a pair of texts, or several of either."""

from __future__ import annotations

from collections.abc import Iterable
from types import GeneratorType
from typing import Any

_A_TEXT = 'a text is a string, or a pair as {"text": .., "text_pair": ..}'


def as_texts(inputs: Any) -> Any:
    """Return inputs as the pipeline of transformers takes them.

    Args:
        inputs: a text, a pair as `{"text": .., "text_pair": ..}`, or several of either: a list, a tuple, a column of
            numpy, pandas or datasets, anything to go through; or a generator.

    Returns:
        One text or pair as it is, several that are all there as a list, a generator as it is.

    Raises:
        ValueError: for what is neither; it names the type, and the place among several.
    """
    if isinstance(inputs, (str, dict, GeneratorType)):
        return inputs
    tables = hasattr(inputs, "columns") or hasattr(inputs, "column_names")
    if isinstance(inputs, bytes) or not isinstance(inputs, Iterable) or tables:
        raise ValueError(f"{_A_TEXT}, or several in a list or a column; got {type(inputs).__name__}")
    # Columns of numpy, pandas and torch, and of arrow, have values of their own, which these turn into Python's.
    as_list = getattr(inputs, "tolist", None) or getattr(inputs, "to_pylist", None)
    several = list(inputs if as_list is None else as_list())
    for place, each in enumerate(several):
        if not isinstance(each, (str, dict, list)):
            raise ValueError(f"{_A_TEXT}; got {type(each).__name__} at place {place} of {len(several)}")
    return several

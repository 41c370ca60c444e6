"""What a classifier is called with: a text, a pair of texts, or several of either."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def as_texts(inputs: Any) -> Any:
    """Return inputs as the pipeline of transformers takes them.

    Args:
        inputs: a text, a pair as `{"text": .., "text_pair": ..}`, or several of either: a list, a tuple, a column of
            numpy, pandas or datasets, a generator.

    Returns:
        One text or pair as it is, several that are all there as a list, a generator as it is.

    Raises:
        ValueError: for what is neither; it names the type, and the place among several.
    """
    if hasattr(inputs, "tolist"):
        inputs = inputs.tolist()
    if isinstance(inputs, (str, dict)) or (hasattr(inputs, "__iter__") and not isinstance(inputs, Sequence)):
        return inputs
    if isinstance(inputs, bytes) or not isinstance(inputs, Sequence):
        raise ValueError(
            f'a text is a string, or a pair as {{"text": .., "text_pair": ..}}; got {type(inputs).__name__}'
        )
    several = list(inputs)
    for place, each in enumerate(several):
        if not isinstance(each, (str, dict, list)):
            raise ValueError(
                f'texts are strings, or pairs as {{"text": .., "text_pair": ..}}; got {type(each).__name__} at place '
                f"{place} of {len(several)}"
            )
    return several

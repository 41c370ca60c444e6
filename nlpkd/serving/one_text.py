"""Tokenise one text without what a batch needs, which takes longer than a small model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.tokenization_utils_tokenizers import TokenizersBackend

OneText = Callable[[str], dict[str, np.ndarray]]


def one_text(tokenizer: PreTrainedTokenizerBase, inputs: Sequence[str]) -> OneText | None:
    """Return a function that tokenises a text as `tokenizer(text, truncation=True)` does, but sooner.

    Args:
        tokenizer: the tokenizer; what is changed in it later, the function does not follow.
        inputs: the names that the model reads.

    Returns:
        From a text to int64 arrays `(1, seq)` by these names, zeros for segments that the tokenizer does not give.
        None of a tokenizer that adds code of its own to that of the tokenizers library.
    """
    kind = type(tokenizer)
    if not isinstance(tokenizer, TokenizersBackend) or kind._encode_plus is not TokenizersBackend._encode_plus:
        return None
    if kind.__call__ is not PreTrainedTokenizerBase.__call__:
        return None
    # The call leaves its truncation in the backend, of which other calls may make another.
    has_segments = "token_type_ids" in tokenizer("", truncation=True)
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    # No copy has it.
    backend.encode_special_tokens = tokenizer.backend_tokenizer.encode_special_tokens

    def read(text: str) -> dict[str, np.ndarray]:
        encoded = backend.encode(text)
        segments = encoded.type_ids if has_segments else [0] * len(encoded.ids)
        made = {"input_ids": encoded.ids, "attention_mask": encoded.attention_mask, "token_type_ids": segments}
        return {name: np.array([made[name]], dtype=np.int64) for name in inputs}

    return read

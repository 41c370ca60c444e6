"""Hashes of tensors, tokenizers and values, and what differs between two records of them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

_HASH = re.compile(r"[0-9a-f]{64}")


def hash_tensor(tensor: Tensor) -> str:
    """Hash a tensor: type, shape and bytes, wherever it is."""
    return hash_tensors([("", tensor)])


def hash_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Hash tensors with their names, in this order."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any] | None:
    """Read all that decides which ids a tokenizer gives, as `tokenizer.json` has it.

    Args:
        tokenizer: any tokenizer.

    Returns:
        Vocabulary, merges, normaliser, splitting, special and added tokens. Padding and truncation are None, since
        every call of a tokenizer sets them anew. None of a tokenizer that is written in Python.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return None if backend is None else without_limits(json.loads(backend.to_str()))


def without_limits(file: Mapping[str, Any]) -> dict[str, Any]:
    """Leave padding and truncation out of what a `tokenizer.json` has, as `tokenizer_state` does."""
    return {**file, "padding": None, "truncation": None}


def hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash a tokenizer's `tokenizer_state`; of one written in Python its class and vocabulary."""
    state = tokenizer_state(tokenizer)
    return hash_value([type(tokenizer).__name__, tokenizer.get_vocab()] if state is None else state)


def hash_value(value: Any) -> str:
    """Hash what JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], place: str) -> list[str]:
    """Describe what differs between two fingerprints, with both values unless they are hashes.

    Args:
        theirs: those kept on disk, by what a refusal calls them.
        ours: those of this call.
        place: what a refusal calls the place where they were kept.

    Returns:
        A phrase for each difference.
    """
    names = [name for name in sorted({*theirs, *ours}) if theirs.get(name) != ours.get(name)]
    pairs = [(name, theirs.get(name), ours.get(name)) for name in names]
    return [
        name if any(_HASH.fullmatch(str(value)) for value in values) else
        f"{name} ({values[0]} in {place}, {values[1]} here)"
        for name, *values in pairs
    ]  # fmt: skip

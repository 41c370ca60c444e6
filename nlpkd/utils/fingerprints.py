"""Hashes of weights, configs, tokenizers."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

_HASH = re.compile(r"[0-9a-f]{64}")


# What a configuration says without any influence on the outputs, or what is fingerprinted elsewhere.
NO_INFLUENCE = {
    "_name_or_path", "architectures", "dtype", "id2label", "label2id", "output_attentions", "output_hidden_states",
    "problem_type", "return_dict", "transformers_version", "use_cache",
}  # fmt: skip


def hash_weights(model: nn.Module) -> str:
    """Hash a model's parameters and buffers: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_configuration(model: nn.Module) -> str:
    """Hash a model's class and its settings: configurations of transformers, adapters, and plain values of others."""
    told: dict[str, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, PreTrainedModel):
            settings = module.config.to_dict().items()
            told[f"configuration of {name}"] = {key: value for key, value in settings if key not in NO_INFLUENCE}
        elif hasattr(module, "base_layer"):
            # How strong an adapter is, and whether it is on, is in no weight.
            names = ("scaling", "active_adapters", "disable_adapters")
            told[f"adapter of {name}"] = [getattr(module, attribute, None) for attribute in names]
    for name, module in _down_to_transformers(model):
        told[f"{name}class"] = type(module).__name__
        if not isinstance(module, PreTrainedModel):
            plain = {key: value for key, value in vars(module).items() if _is_plain(value) and not key.startswith("_")}
            told |= {f"{name}{key}": plain[key] for key in plain if key != "training"}
    return hash_value(told)


def _down_to_transformers(model: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """List modules, but not those within a transformers model, which its configuration tells all about."""
    yield name, model
    if not isinstance(model, PreTrainedModel):
        for child, module in model.named_children():
            yield from _down_to_transformers(module, f"{name}{child}.")


def _is_plain(value: Any) -> bool:
    return all(map(_is_plain, value)) if isinstance(value, tuple) else isinstance(value, (bool, int, float, str))


def tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any] | None:
    """Read all that decides which ids a tokenizer gives, as `tokenizer.json` has it.

    Args:
        tokenizer: any tokenizer.

    Returns:
        Vocabulary, merges, normaliser, splitting, special and added tokens. Padding and truncation are None, since
        every call of a tokenizer sets them anew. None of a tokenizer that is written in Python.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return None if backend is None else json.loads(backend.to_str()) | {"padding": None, "truncation": None}


def hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash a tokenizer's `tokenizer_state`; of one written in Python its class and size."""
    state = tokenizer_state(tokenizer)
    return hash_value([type(tokenizer).__name__, len(tokenizer)] if state is None else state)


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

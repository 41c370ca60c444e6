"""Hashes of weights, configs, tokenizers."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Mapping
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
    """Hash a model's parameters and buffers, those too that no state dict has: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in (dict(model.named_buffers()) | model.state_dict()).items():
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_configuration(model: nn.Module) -> str:
    """Hash what a model computes with its weights: the classes of all modules, their settings, kernels, adapters.

    Args:
        model: any module.

    Returns:
        A hash of its configurations and classes, of plain values and functions that its modules hold, of the attention
        kernel, and of the source of what is somebody's own. Hooks are not told.
    """
    told: dict[str, Any] = {}
    for name, module in model.named_modules():
        told[f"class of {name}"] = _code(type(module))
        if isinstance(module, PreTrainedModel):
            settings = module.config.to_dict().items()
            told[f"configuration of {name}"] = {key: value for key, value in settings if key not in NO_INFLUENCE}
            # nlpkd's own kernel computes what the one computes that it stands for.
            told[f"attention of {name}"] = str(module.config._attn_implementation).removeprefix("nlpkd_")
            continue
        if hasattr(module, "base_layer"):
            # How strong an adapter is, and whether it is on, is in no weight.
            names = ("scaling", "active_adapters", "disable_adapters")
            told[f"adapter of {name}"] = [getattr(module, attribute, None) for attribute in names]
        for key, value in vars(module).items():
            if key.startswith("_") or key in ("training", "gradient_checkpointing"):
                continue
            if _is_plain(value):
                told[f"{name}.{key}"] = value
            elif inspect.isroutine(value):
                told[f"{name}.{key}"] = _code(value)
    return hash_value(told)


def _code(named: Any) -> str:
    """Name a class or function; one of no library together with its source, which may change under its name."""
    if (getattr(named, "__module__", None) or "").split(".")[0] in ("torch", "transformers", "peft", "nlpkd"):
        return named.__qualname__
    try:
        return f"{named.__qualname__} {inspect.getsource(named)}"
    except (OSError, TypeError):
        function = getattr(getattr(named, "forward", named), "__code__", None)
        return f"{named.__qualname__} {getattr(function, 'co_code', b'').hex()} {getattr(function, 'co_consts', ())}"


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

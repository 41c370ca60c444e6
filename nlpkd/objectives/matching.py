"""Whether a model shows the layers that a preset matches, tried on two short texts before a training."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from nlpkd.models.capture import Capture
from nlpkd.models.inference import placement
from nlpkd.models.structure import without_adapter
from nlpkd.objectives.base import FEATURES
from nlpkd.objectives.presets import resolve
from nlpkd.utils.processes import decided_by_main_process
from nlpkd.utils.randomness import random_state_kept

_LENGTHS = (6, 9)
"""Tokens of the texts. Of one alone a size could be another one's by chance."""


_TOKENS = 16
"""Tokens that they consist of."""


def shows_layers(models: Iterable[nn.Module], preset: str) -> bool:
    """Check whether models give what a preset matches of their layers, which no config tells of a family.

    Args:
        models: of transformers, in an adapter's wrapper too; left as they are.
        preset: a name of `nlpkd.objectives.PRESETS`.

    Returns:
        False where a family's layers are not shown as transformers' encoders show theirs. True too of models whose
        weights are not in this process, or that can't be copied, which can't be tried.
    """
    kinds = {kind for stage in resolve(preset) for each in stage.objectives for kind in each.needs & FEATURES}
    # Of weights that are loaded by one process alone the others could not say.
    return not kinds or decided_by_main_process(lambda: all(_shows(model, kinds) for model in models))


def _shows(model: nn.Module, kinds: Iterable[str]) -> bool:
    tensors = [*model.parameters(), *model.buffers()]
    if any(each.is_meta or hasattr(each, "ds_id") for each in tensors):
        return True
    try:
        # A copy of the modules, not of the weights, since BigBird's attention stays what a short text made of it.
        tried = copy.deepcopy(model, {id(each): each for each in tensors}).eval()
    except Exception:
        # Modules of one's own raise whatever they like.
        return True
    config: Any = without_adapter(model).config
    try:
        with random_state_kept(placement(model)[0]), torch.no_grad():
            layers = frozenset(range(1, config.num_hidden_layers + 1))
            capture = Capture(tried, dict.fromkeys(kinds, layers), "model")
            for length in _LENGTHS:
                ids = _text(config, length).to(placement(model)[0])
                capture(tried, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, RuntimeError, ValueError):
        return False
    return True


def _text(config: Any, length: int) -> torch.Tensor:
    """Return the ids of a text without padding, `(1, length)`, that ends as decoders want it to."""
    pad, end = (getattr(config, name, None) for name in ("pad_token_id", "eos_token_id"))
    size = getattr(config, "vocab_size", _TOKENS)
    words = [token for token in range(min(_TOKENS, size)) if token not in (pad, end)]
    # The default of a family's config may lie beyond a vocabulary of one's own.
    last = end if isinstance(end, int) and 0 <= end < size else words[-1]
    return torch.tensor([[*words[: length - 1], last]])

"""Whether a model in memory is what its config makes: once it is saved, it is read back by that alone."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoModelForSequenceClassification, PreTrainedModel

_AUTO = AutoModelForSequenceClassification.__name__

_NAMED = 4
"""How many weights a message names."""


def refuse_unreadable(model: nn.Module) -> None:
    """Refuse a model that would lose parameters when it is saved and read back, such as one with a head of one's own.

    Args:
        model: given in memory.

    Raises:
        ValueError: if it would; it names them.
    """
    if lost := lost_when_read_back(model):
        if getattr(model, "base_model", None) is model:
            raise ValueError(
                f"a {type(model).__name__} does not classify texts, since it has no head: load it with {_AUTO}"
            )
        raise ValueError(
            f"the {type(model).__name__} in memory could not be read back once it is saved: {lost}. Give a model "
            f"whose config says all of it (merge an adapter into it; register a class of your own with {_AUTO}), or "
            "train it with DistillationTrainer, which takes any module, and save and load it yourself"
        )


def lost_when_read_back(model: nn.Module) -> str | None:
    """Compare a model's weights by name and shape with those that `from_pretrained` would look for.

    Buffers that the model has beyond them, such as class weights for a loss of its own, don't count. No memory is
    taken, and no random number.

    Args:
        model: any module.

    Returns:
        What differs, in words; None where nothing does, or nobody can tell: of a module without a config, and of
        weights that are quantised or split up.
    """
    if not isinstance(model, PreTrainedModel) or _stored_otherwise(model):
        return None
    config, kind = copy.deepcopy(model.config), type(model)
    own_code = bool(kind._auto_class) or _AUTO in (getattr(config, "auto_map", None) or {})
    if not own_code and type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return f"{_AUTO} knows no {type(config).__name__}"
    try:
        with torch.device("meta"):
            made: Any = kind(config) if own_code else AutoModelForSequenceClassification.from_config(config)
    except Exception:  # Code of the Hub may raise anything where tensors have no values.
        return None
    own, wanted = _shapes(model), _shapes(made)
    for name, _ in model.named_buffers():
        if name not in wanted:
            own.pop(name, None)
    if own == wanted:
        return None
    there, lacking = _listed(own.items() - wanted.items()), _listed(wanted.items() - own.items())
    return f"its config is that of a {type(made).__name__} with {lacking}, and it has {there}"


def _stored_otherwise(model: PreTrainedModel) -> bool:
    quantised = getattr(model, "hf_quantizer", None) is not None
    return quantised or any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(each.shape) for name, each in model.state_dict().items() if isinstance(each, Tensor)}


def _listed(weights: Iterable[tuple[str, tuple[int, ...]]]) -> str:
    named = [f"{name} {shape}" for name, shape in sorted(weights)]
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    return f"{', '.join(named[:_NAMED])}{more}" if named else "nothing else"

"""A student made of some of its teacher's layers."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from nlpkd.models.structure import layer_stack


def copy_layers(teacher: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """Copy a teacher's embeddings, some of its layers, its pooler and its head.

    Args:
        teacher: a classifier of transformers without an adapter.
        layers: the layers by number, counted from 1, in ascending order.

    Returns:
        A float32 model in train mode on the teacher's device that shares no memory with the teacher. Of a teacher
        whose layers share their weights (ALBERT) it runs them fewer times.

    Raises:
        ValueError: if the teacher is no plain model of transformers, has no single stack of layers, or its layers
            differ in their parts, so that these make no model of its kind.
    """
    if not isinstance(teacher, PreTrainedModel) or any(hasattr(module, "base_layer") for module in teacher.modules()):
        raise ValueError(
            f"{type(teacher).__name__} is no transformers model, or has an adapter inside, so that its layers are not "
            "those of a plain student: merge the adapter first (peft's merge_and_unload), or pass a checkpoint instead"
        )
    # The config of a model that is shallower.
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = len(layers)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[layer - 1] for layer in layers]
    # The weights by their new names, and a model that takes them.
    shared = getattr(config, "num_hidden_groups", None) == 1
    weights = teacher.state_dict() if shared else _renumbered_weights(teacher, layers)
    with torch.random.fork_rng():
        student = type(teacher)(config).float()
    if differing := sorted(weights.keys() ^ student.state_dict().keys()):
        raise ValueError(
            f"layers {list(layers)} of {type(teacher).__name__} make no model of its kind, since its layers differ in "
            f"their parts ({', '.join(differing)}): try layers that start with 1, as in 'layers:1,3,5', or a "
            "checkpoint"
        )
    student.load_state_dict(weights)
    return student.to(teacher.device).train()


def _renumbered_weights(teacher: PreTrainedModel, layers: Sequence[int]) -> dict[str, torch.Tensor]:
    """Return the teacher's weights without the layers not chosen, the others numbered anew."""
    prefix, source = layer_stack(teacher), teacher.state_dict()
    weights = {name: tensor for name, tensor in source.items() if not name.startswith(prefix)}
    for position, layer in enumerate(layers):
        old, new = f"{prefix}{layer - 1}.", f"{prefix}{position}."
        weights |= {new + name[len(old) :]: tensor for name, tensor in source.items() if name.startswith(old)}
    return weights

"""A student made of some of its teacher's layers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from nlpkd.data.labels.classes import forget_thresholds
from nlpkd.models.structure import layer_stack

_NOT_BY_LAYER = {"architectures", "training", "layer_idx", "layer_id", "layer_index", "layer_number", "seed"}
"""Lists of a config that may have as many entries as there are layers, and what a module keeps of its place.

BigBird's seed is the layer's number, by which random blocks are drawn."""


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
    config = config_of_layers(teacher.config, layers)
    # The weights by their new names, and a model that takes them.
    shared = getattr(config, "num_hidden_groups", None) == 1
    weights, prefix = teacher.state_dict(), "" if shared else layer_stack(teacher)
    if not shared:
        weights = renumbered(weights, prefix, layers)
    with torch.random.fork_rng():
        student = type(teacher)(config).float()
    _refuse_other_parts(teacher, weights, student.state_dict(), layers)
    student.load_state_dict(weights)
    if not shared:
        _refuse_other_settings(teacher, student, prefix, layers)
    return student.to(teacher.device).train()


def _refuse_other_parts(
    teacher: PreTrainedModel,
    weights: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    layers: Sequence[int],
) -> None:
    """Refuse layers whose weights are not those, by name and shape, that a model of so many layers has.

    Raises:
        ValueError: with the names of what differs.
    """
    if differing := sorted(weights.keys() ^ expected.keys()):
        raise ValueError(
            f"layers {list(layers)} of {type(teacher).__name__} make no model of its kind, since its layers differ in "
            f"their parts ({', '.join(differing)}): try layers that start with 1, as in 'layers:1,3,5', or a "
            "checkpoint"
        )
    if other := sorted(name for name, tensor in weights.items() if tensor.shape != expected[name].shape):
        name = other[0]
        raise ValueError(
            f"layers {list(layers)} of {type(teacher).__name__} make no model of its kind, since weights beside its "
            f"layers depend on how many there are ({name} is {tuple(weights[name].shape)}, and of {len(layers)} "
            f"layers {tuple(expected[name].shape)}): choose 'width:0.67', 'bilstm' or a checkpoint"
        )


def config_of_layers(config: PreTrainedConfig, layers: Sequence[int]) -> PreTrainedConfig:
    """Return a copy of a config for some layers: lists with an entry for each layer are cut as the weights are.

    Args:
        config: of a model, whose thresholds are left out.
        layers: the layers by number, counted from 1, in ascending order.

    Returns:
        The copy.

    Raises:
        ValueError: if the family has no plain number of layers.
    """
    depth, cut = config.num_hidden_layers, copy.deepcopy(config)
    # Of as many labels as layers these would be cut as well.
    forget_thresholds(cut)
    for name, entries in list(vars(cut).items()):
        if isinstance(entries, (list, tuple)) and len(entries) == depth and name not in _NOT_BY_LAYER:
            setattr(cut, name, [entries[layer - 1] for layer in layers])
    if isinstance(getattr(config, "attention_types", None), list):
        # GPT-Neo's short form, which its list by layer is made of.
        cut.attention_types = [[[kind], 1] for kind in cut.attention_layers]
    try:
        cut.num_hidden_layers = len(layers)
    except NotImplementedError as error:
        raise ValueError(
            f"a {config.model_type} has no plain number of layers to leave some out ({error}): choose a checkpoint, "
            "or a small model such as 'bilstm'"
        ) from error
    return cut


def _refuse_other_settings(
    teacher: PreTrainedModel, student: PreTrainedModel, prefix: str, layers: Sequence[int]
) -> None:
    """Refuse a student whose layers are set up in another way than the teacher's of which they have the weights.

    Raises:
        ValueError: if a number, flag or word differs that a module of a layer keeps; which layer it is does not count.
    """
    ours, theirs = ([*model.get_submodule(prefix[:-1]).children()] for model in (student, teacher))
    for layer, copied in zip(layers, ours, strict=True):
        original = theirs[layer - 1]
        for name, module in copied.named_modules():
            kept, found = vars(original.get_submodule(name)), vars(module)
            for setting in found.keys() - _NOT_BY_LAYER:
                if isinstance(found[setting], (bool, int, float, str)) and found[setting] != kept.get(setting):
                    raise ValueError(
                        f"layer {layer} of {type(teacher).__name__} has {name}.{setting}={kept.get(setting)!r}, and "
                        f"as a student's layer would have {found[setting]!r}, since the config has no entry for each "
                        "layer: try layers that start with 1, as in 'layers:1,3,5', or a checkpoint"
                    )


def renumbered(source: Mapping[str, torch.Tensor], prefix: str, layers: Sequence[int]) -> dict[str, torch.Tensor]:
    """Return a model's weights without the layers not chosen, the others numbered anew.

    Args:
        source: the weights by name.
        prefix: what the names of the layers' weights start with, by `layer_stack`.
        layers: the layers by number, counted from 1, in ascending order.

    Returns:
        The weights by their new names.
    """
    weights = {name: tensor for name, tensor in source.items() if not name.startswith(prefix)}
    for position, layer in enumerate(layers):
        old, new = f"{prefix}{layer - 1}.", f"{prefix}{position}."
        weights |= {new + name[len(old) :]: tensor for name, tensor in source.items() if name.startswith(old)}
    return weights

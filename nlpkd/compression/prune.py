"""Prune what matters least on data: feed-forward neurons and attention heads."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlpkd.compression.record import CompressionRecord, new_failure, record_of
from nlpkd.data.collator import DistillationCollator
from nlpkd.data.rows import labelled_rows
from nlpkd.models.padding import refuse_unknown_padding
from nlpkd.models.reshaped import rebuild, reshape_linears
from nlpkd.models.structure import (
    HEADS_IN,
    HEADS_OUT,
    axes_following,
    forward_arguments,
    refuse_other_than_plain,
    size_name,
    top_indices,
)
from nlpkd.utils.field_types import check_share, plain_arguments


@plain_arguments
def prune_neurons(
    model: PreTrainedModel,
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    keep: float | None = None,
    intermediate_size: int | None = None,
    max_rows: int = 2000,
    batch_size: int = 32,
) -> tuple[PreTrainedModel, CompressionRecord]:
    r"""Remove the feed-forward neurons that the loss depends on least, the same number in every layer.

    The importance of neuron j is the first-order change of the loss when it is taken out,

        I_j = E_x | sum_t a_tj(x) dL(x) / da_tj(x) |

    with a_tj what the layer's second matrix reads of it at token t: the Taylor criterion of Molchanov et al. (2017),
    "Pruning Convolutional Neural Networks for Resource Efficient Inference", arXiv:1611.06440, equation 8, with the
    sum over tokens where they have the mean over positions, so that a row counts as in `prune_heads`.

    Args:
        model: a classifier; left as it is.
        dataset: tokenised rows with gold labels in the order of the model's, as `load_text_classification` gives them.
        tokenizer: pads the rows.
        keep: share of neurons to keep, in (0, 1).
        intermediate_size: instead, how many a layer keeps.
        max_rows: rows drawn for the mean.
        batch_size: rows of a forward and backward pass.

    Returns:
        A copy that is a plain checkpoint with a smaller `config.intermediate_size` (`hidden_dim` of a DistilBERT),
        and the record.

    Raises:
        ValueError: if not exactly one size is given, it is not smaller than the model's, no row has a label, or the
            family has no feed-forward layers that follow its config.
    """
    refuse_other_than_plain(model, "model")
    units = neurons(model)
    count = _count(units.count, "intermediate_size", keep, intermediate_size)
    rows = labelled_rows(dataset)
    (importance,) = measure_importance(model, [units], rows, tokenizer, max_rows=max_rows, batch_size=batch_size)
    smaller = keep_neurons(model, {layer: top_indices(values, count) for layer, values in importance.items()})
    details = {"intermediate_size": [units.count, count], "rows": min(max_rows, len(rows))}
    return smaller, record_of("prune_neurons", "Molchanov et al. 2017, arXiv:1611.06440", model, smaller, **details)


@plain_arguments
def prune_heads(
    model: PreTrainedModel,
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    keep: float | None = None,
    heads: int | None = None,
    max_rows: int = 2000,
    batch_size: int = 32,
) -> tuple[PreTrainedModel, CompressionRecord]:
    r"""Remove the attention heads that the loss depends on least, the same number in every layer.

    The importance of head h is Michel et al.'s (2019), "Are Sixteen Heads Really Better than One?", arXiv:1905.10650,
    equation 2,

        I_h = E_x | Att_h(x)' dL(x) / dAtt_h(x) |

    with Att_h what the output projection reads of the head. They rank heads across layers, after dividing by each
    layer's norm; here heads compete within their layer.

    What comes out is a plain checkpoint where the config has a `head_dim` beside `num_attention_heads` (Llama, Qwen3,
    Mistral, Gemma, NomicBERT, EuroBERT, GTE); heads that share keys and values go together. The config of BERT and
    its relatives fixes a head's width to hidden_size / num_attention_heads, so that no plain checkpoint can have fewer
    heads: they become a `ReshapedForSequenceClassification`, which loads by the same `from_pretrained` after
    `import nlpkd`. To stay plain, prune neurons, or make a narrower student (`nlpkd.students.narrow.narrow_student`).

    Args:
        model: a classifier; left as it is.
        dataset: tokenised rows with gold labels in the order of the model's, as `load_text_classification` gives them.
        tokenizer: pads the rows.
        keep: share of heads to keep, in (0, 1).
        heads: instead, how many a layer keeps.
        max_rows: rows drawn for the mean.
        batch_size: rows of a forward and backward pass.

    Returns:
        A copy with fewer heads, and the record.

    Raises:
        ValueError: if not exactly one size is given, it is not smaller than the model's, no row has a label, or the
            family's attention can't have fewer heads.
    """
    refuse_other_than_plain(model, "model")
    units, total = heads_of(model), model.config.num_attention_heads
    count = _count(total, "heads", keep, heads)
    if count % units.parts:
        raise ValueError(f"{units.parts} heads share keys and values and go together: {count} is no multiple")
    rows = labelled_rows(dataset)
    (importance,) = measure_importance(model, [units], rows, tokenizer, max_rows=max_rows, batch_size=batch_size)
    kept = {layer: top_indices(values, count // units.parts) for layer, values in importance.items()}
    smaller = keep_heads(model, kept)
    details = {"heads": [total, count], "rows": min(max_rows, len(rows))}
    return smaller, record_of("prune_heads", "Michel et al. 2019, arXiv:1905.10650", model, smaller, **details)


@dataclass(frozen=True)
class Units:
    """What a model's layers can have fewer of.

    Attributes:
        count: how many of them a layer has.
        readers: for each layer the name of the linear layer that reads them, each unit as many inputs side by side.
        axes: for each parameter that runs over them the axis.
        parts: of how many parts a unit consists, whose importance is added up: heads that share keys and values.
    """

    count: int
    readers: Mapping[str, str]
    axes: Mapping[str, int]
    parts: int = 1


def neurons(model: PreTrainedModel) -> Units:
    """Find the feed-forward neurons of a model.

    Args:
        model: a classifier.

    Returns:
        The neurons.

    Raises:
        ValueError: if the family has no feed-forward layers that follow its config.
    """
    width = getattr(model.config, size_name(model.config, "intermediate_size"), None)
    if not isinstance(width, int):
        raise ValueError(f"the config of {type(model).__name__} has no intermediate_size to reduce: prune it first")
    axes = {name: found for name, found in axes_following(model, intermediate_size=width + 1).items() if found}
    readers = {
        _layer(name): name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and axes.get(f"{name}.weight") == [1] and module.in_features == width
    }
    if not readers or any(_layer(name) not in readers or len(found) > 1 for name, found in axes.items()):
        raise ValueError(f"{type(model).__name__} has feed-forward layers other than two or three matrices a layer")
    return Units(width, readers, {name: found[0] for name, found in axes.items()})


def heads_of(model: PreTrainedModel) -> Units:
    """Find the attention heads of a model; those that share keys and values are one unit.

    Args:
        model: a classifier.

    Returns:
        The heads.

    Raises:
        ValueError: if the family's attention can't have fewer heads.
    """
    total = getattr(model.config, "num_attention_heads", 0)
    groups = getattr(model.config, "num_key_value_heads", None) or total
    axes = _axes_of_heads(model, total, groups) if _has_head_dim(model) else _axes_by_name(model)
    readers = {
        _layer(name): name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and axes.get(f"{name}.weight") == 1
    }
    if len(axes) < 4 * len(readers) or not readers:
        raise ValueError(
            f"the attention of {type(model).__name__} has no matrices of its own for queries, keys, values and "
            "output: prune its neurons instead"
        )
    return Units(groups, readers, axes, total // groups)


def keep_neurons(model: PreTrainedModel, kept: Mapping[str, Tensor]) -> PreTrainedModel:
    """Copy a model with some of its feed-forward neurons.

    Args:
        model: a classifier; left as it is.
        kept: for each layer of `neurons` the numbers of those to keep, `(count,)`.

    Returns:
        A plain checkpoint with a smaller `config.intermediate_size`.
    """
    units, weights = neurons(model), model.state_dict()
    for name, axis in units.axes.items():
        # An axis has the neurons once, or once for the gate too: its second half.
        chosen = kept[_layer(name)].to(weights[name].device)
        parts = [part.index_select(axis, chosen) for part in weights[name].split(units.count, dim=axis)]
        weights[name] = torch.cat(parts, dim=axis)
    config = copy.deepcopy(model.config)
    setattr(config, size_name(config, "intermediate_size"), len(next(iter(kept.values()))))
    return rebuild(model, config, weights)


def keep_heads(model: PreTrainedModel, kept: Mapping[str, Tensor]) -> PreTrainedModel:
    """Copy a model with some of its attention heads.

    Args:
        model: a classifier; left as it is.
        kept: for each layer of `heads_of` the numbers of those to keep, `(count,)`.

    Returns:
        A plain checkpoint, or a `ReshapedForSequenceClassification`; see `prune_heads`.

    Raises:
        ValueError: if a model of this family can't be loaded, or can't run, with so many heads.
    """
    units, weights = heads_of(model), model.state_dict()
    for name, axis in units.axes.items():
        parts = weights[name].chunk(units.count, dim=axis)
        weights[name] = torch.cat([parts[number] for number in kept[_layer(name)].tolist()], dim=axis)
    groups = len(next(iter(kept.values())))
    count = groups * units.parts
    if _has_head_dim(model):
        smaller = _with_heads(model, weights, count, groups)
    else:
        smaller = _reshaped(model, weights, units.axes, count)
    if (failure := new_failure(model, smaller)) is not None:
        raise ValueError(f"{type(model).__name__} can't run with fewer heads: prune its neurons instead") from failure
    return smaller


def _count(width: int, name: str, keep: float | None, asked: int | None) -> int:
    if (keep is None) == (asked is None):
        raise ValueError(f"give either keep (a share) or {name} (a number), and not both")
    check_share("keep", keep)
    count = max(1, round(width * keep)) if keep is not None else asked
    if count is None or not 1 <= count < width:
        raise ValueError(f"{name}={count} must be at least 1 and fewer than the model's {width}")
    return count


def _layer(name: str) -> str:
    """Return the part of a parameter's name that tells its layer: up to its last number."""
    found = re.match(r".*\.\d+\.", name)
    return found[0] if found else ""


def measure_importance(
    model: PreTrainedModel,
    kinds: Sequence[Units],
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_rows: int = 2000,
    batch_size: int = 32,
) -> list[dict[str, Tensor]]:
    """Compute E_x |dL(x)/dm_u| for each unit u of some kinds, with m_u = 1 a factor on what a layer reads of it.

    Args:
        model: a classifier; left as it is.
        kinds: of units.
        dataset: tokenised rows with gold labels in the order of the model's.
        tokenizer: pads the rows.
        max_rows: rows drawn for the mean.
        batch_size: rows of a forward and backward pass.

    Returns:
        For each kind the importance by layer, `(units,)`.

    Raises:
        ValueError: if no row has a label, or the model does not keep the texts of a batch apart, would take padding
            for text, or does not use all its layers.
    """
    refuse_unknown_padding(model, tokenizer, "model", batch_size)
    rows = labelled_rows(dataset)
    if not len(rows):
        raise ValueError("the rows have no gold labels, and importance is measured by the loss: give labelled rows")
    chosen = rows.shuffle(seed=0).select(range(min(max_rows, len(rows))))
    # A copy, since hooks and the loss leave traces.
    probe = copy.deepcopy(model).eval().requires_grad_(False)
    masks: dict[str, Tensor] = {}

    def masked(reader: str, count: int) -> Callable[[nn.Module, tuple[Any, ...]], Tensor]:
        def scale(module: nn.Module, inputs: tuple[Any, ...]) -> Tensor:
            states = inputs[0]  # (batch, seq, width)
            if states.dim() != 3:
                raise ValueError(f"{type(model).__name__} packs the tokens of a batch: load it with other attention")
            # Layers that share their weights share the mask.
            if reader not in masks:
                masks[reader] = states.new_ones(len(states), 1, count, requires_grad=True)
            return states * masks[reader].repeat_interleave(states.shape[-1] // count, dim=-1)

        return scale

    counts = {reader: units.count * units.parts for units in kinds for reader in units.readers.values()}
    for reader, count in counts.items():
        probe.get_submodule(reader).register_forward_pre_hook(masked(reader, count))
    sums = {reader: torch.zeros(count, device=model.device) for reader, count in counts.items()}
    accepted = forward_arguments(probe)
    batches: Any = DataLoader(
        chosen,  # type: ignore[arg-type]
        batch_size=batch_size,
        collate_fn=DistillationCollator(tokenizer),
        # Without one of its own a loader draws from the global generator.
        generator=torch.Generator(),
    )
    for batch in batches:
        masks.clear()
        inputs = {name: tensor.to(model.device) for name, tensor in batch.items() if name in accepted}
        # The loss is a mean over rows that do not know of each other, so each row's gradient is its own.
        loss = probe(**inputs).loss * len(batch["labels"])
        for reader, slope in zip(masks, torch.autograd.grad(loss, [*masks.values()], allow_unused=True), strict=True):
            if slope is None:
                raise ValueError(f"the loss of {type(model).__name__} doesn't depend on {reader}: take layers of it")
            sums[reader] += slope.squeeze(1).float().abs().sum(dim=0)
    means = {reader: total / len(chosen) for reader, total in sums.items()}
    return [
        {layer: means[reader].view(units.count, units.parts).sum(dim=1) for layer, reader in units.readers.items()}
        for units in kinds
    ]


def _has_head_dim(model: PreTrainedModel) -> bool:
    """Check whether a family's config gives a head's width."""
    return isinstance(getattr(model.config, "head_dim", None), int)


def _axes_of_heads(model: PreTrainedModel, total: int, groups: int) -> dict[str, int]:
    """Find the axes that run over heads, in a family whose config gives a head's width."""
    more = {"num_attention_heads": 2 * total}
    if hasattr(model.config, "num_key_value_heads"):
        more["num_key_value_heads"] = 2 * groups
    sizes = {total * model.config.head_dim, groups * model.config.head_dim}
    return {
        name: found[0]
        for name, found in axes_following(model, **more).items()
        if len(found) == 1 and model.get_parameter(name).shape[found[0]] in sizes
    }


def _axes_by_name(model: PreTrainedModel) -> dict[str, int]:
    """Find the axes that run over heads, in BERT and its relatives."""
    places = ((HEADS_OUT, 0), (HEADS_IN, 1))
    names = [name for name, _ in model.named_parameters()]
    return {name: axis for pattern, axis in places for name in names if pattern.search(name)}


def _with_heads(model: PreTrainedModel, weights: Mapping[str, Tensor], count: int, groups: int) -> PreTrainedModel:
    config: Any = copy.deepcopy(model.config)
    if hasattr(config, "num_key_value_heads"):
        config.num_key_value_heads = groups
    config.num_attention_heads = count
    try:
        type(config)(**config.to_dict())
    except StrictDataclassError as error:
        raise ValueError(
            f"a {type(model).__name__} can't be loaded with {count} heads: choose a number that divides its "
            f"hidden_size, {config.hidden_size}"
        ) from error
    return rebuild(model, config, weights)


def _reshaped(
    model: PreTrainedModel, weights: Mapping[str, Tensor], axes: Mapping[str, int], count: int
) -> PreTrainedModel:
    shapes = {
        name.removesuffix(".weight"): [*reversed(weights[name].shape)] for name in axes if name.endswith(".weight")
    }
    smaller = reshape_linears(model, shapes, weights)
    smaller.config.num_attention_heads = count
    return smaller

"""Run a model for its outputs alone: in eval mode, where it is, by a copy that gives the same outputs sooner.

Of a classifier that reads the first token alone, the last layer can leave the others out, while it is trained too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nlpkd.models.attention import CAPTURING_SDPA
from nlpkd.models.ensemble import TeacherEnsemble
from nlpkd.models.reshaped import ReshapedForSequenceClassification
from nlpkd.models.structure import foreign_hook, without_adapter


def inference_copy(model: nn.Module, device_type: str, first_token: bool) -> nn.Module:
    """Copy a frozen model's modules, not its weights, into what gives the same outputs sooner.

    Args:
        model: whose weights no longer change.
        device_type: where it runs.
        first_token: let the last layer give the first token alone; see `FirstTokenOnly`. Hooks and modules
            that the model is given later, the copy does not have.

    Returns:
        A copy that shares the weights, but within autocast those of linear layers, which are cast once to its dtype,
        as autocast would on every batch, and that runs nlpkd's attention where it ran sdpa: the same outputs but for
        rounding. The model itself where it is not transformers' own or can't be copied; an ensemble of such copies.
    """
    if isinstance(model, TeacherEnsemble):
        return model.with_members([inference_copy(member, device_type, first_token) for member in model.members])
    first_token = first_token and reads_first_token(model)
    casts = torch.is_autocast_enabled(device_type)
    if not isinstance(model, PreTrainedModel):
        return model
    # transformers' sdpa waits for a GPU in every forward pass, to learn whether the batch has padding; in bf16 on the
    # CPU the plain products of short texts are sooner.
    own_attention = model.config._attn_implementation == "sdpa" and (casts or device_type != "cpu")
    if not (first_token or casts or own_attention):
        return model
    # deepcopy takes what its memo has instead of copying it.
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    if casts:
        parts = [(module, tensor) for module in model.modules() for tensor in module.parameters(recurse=False)]
        elsewhere = {id(tensor) for module, tensor in parts if type(module) is not nn.Linear}
        dtype = torch.get_autocast_dtype(device_type)
        for _, tensor in parts:
            if id(tensor) not in elsewhere and tensor.dtype == torch.float32:
                shared[id(tensor)] = nn.Parameter(tensor.detach().to(dtype), requires_grad=False)
    try:
        copied = copy.deepcopy(model, shared)
    except Exception:
        # Weights that a parametrisation computes, or modules of one's own that raise whatever they like.
        return model
    if first_token:
        first_token_only(copied)
    if own_attention:
        copied.set_attn_implementation(CAPTURING_SDPA)
    return copied


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode without gradients, and restore the training flag of every module.

    Args:
        model: any module.

    Yields:
        Nothing.
    """
    with in_eval_mode(model), torch.inference_mode():
        yield


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode, and restore the training flag of every module.

    Args:
        model: any module.

    Yields:
        Nothing.
    """
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode, and restore training flags, weights and buffers, whatever its passes do to them.

    Args:
        model: any module; of its weights those that are trained are copied, for frozen ones stay as they are.

    Yields:
        Nothing.
    """
    stores: list[Any] = [store for module in model.modules() for store in (module._parameters, module._buffers)]
    kept = [(store, dict(store)) for store in stores]
    values_of = [each for _, known in kept for each in known.values() if each is not None]
    tensors = [each for each in values_of if each.requires_grad or not isinstance(each, nn.Parameter)]
    values = [tensor.detach().clone() for tensor in tensors]
    try:
        with in_eval_mode(model):
            yield
    finally:
        for store, known in kept:
            store.clear()
            store.update(known)
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                if not torch.equal(tensor, value):
                    tensor.copy_(value)


def placement(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Return where a model is and in which dtype, judged by its first parameter.

    Args:
        model: any module.

    Returns:
        Device and dtype; cpu and float32 for a module without parameters.
    """
    parameter = next(model.parameters(), torch.empty(0))
    return parameter.device, parameter.dtype


class _FirstTokenBertLayer(nn.Module):
    """A last layer of BERT's kind: every token is attended to, and the first one alone goes on.

    Args:
        layer: the whole layer, whose modules it shares under their own names.
    """

    def __init__(self, layer: Any):
        super().__init__()
        self.attention, self.intermediate, self.output = layer.attention, layer.intermediate, layer.output
        self.train(layer.training)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *cross_attention: Any, **kwargs: Any
    ) -> Tensor:
        """Turn `(batch, seq, hidden)` into `(batch, 1, hidden)`."""
        mixed, _ = self.attention.self(hidden_states, attention_mask=attention_mask, **kwargs)
        first = self.attention.output(mixed[:, :1].contiguous(), hidden_states[:, :1])
        return self.output(self.intermediate(first), first)


class _FirstTokenDistilBertLayer(nn.Module):
    """The same of DistilBERT, whose attention ends with a product for every token."""

    def __init__(self, layer: Any):
        super().__init__()
        self.attention, self.sa_layer_norm = layer.attention, layer.sa_layer_norm
        self.ffn, self.output_layer_norm = layer.ffn, layer.output_layer_norm
        self.train(layer.training)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Turn `(batch, seq, hidden)` into `(batch, 1, hidden)`."""
        mixed, _ = self.attention(hidden_states, attention_mask=attention_mask, **kwargs)
        first = self.sa_layer_norm(mixed[:, :1] + hidden_states[:, :1])
        # Not by chunks: one token may be no multiple of their length.
        return self.output_layer_norm(self.ffn.ff_chunk(first) + first)


_ENCODERS = ("Bert", "Camembert", "Electra", "Roberta", "XLMRoberta")


_LAYERS: dict[str, tuple[str, str, Any]] = {
    f"{family}ForSequenceClassification": ("encoder.layer", f"{family}Layer", _FirstTokenBertLayer)
    for family in _ENCODERS
}


_LAYERS["DistilBertForSequenceClassification"] = ("transformer.layer", "TransformerBlock", _FirstTokenDistilBertLayer)
"""Classifiers whose head reads the first token of the last layer: where their layers are, and of which class."""


class FirstTokenOnly:
    """A classifier whose last layer gives the first token alone: the same logits but for rounding.

    Of a layer's products, in multiples of hidden^2 a token, queries, keys and values are 3 of 12 (DistilBERT: and the
    attention's output, 4); the others are left to one token of the text. The parameters and their names in the state
    dict stay. Asked for hidden states, such a model leaves the last one out.

    Args:
        layers: the classifier's layers, changed in place.
        last: what stands for the last of them.
    """

    def __init__(self, layers: nn.ModuleList, last: nn.Module):
        self.layers, self.whole = layers, layers[-1]
        layers[-1] = last

    def end(self) -> None:
        """Put the model's whole last layer back."""
        self.whole.training = self.layers[-1].training
        self.layers[-1] = self.whole


def first_token_only(model: nn.Module) -> FirstTokenOnly | None:
    """Let a classifier's last layer give the first token alone, if nothing of it reads another.

    Args:
        model: a classifier of BERT, CamemBERT, DistilBERT, ELECTRA, RoBERTa or XLM-RoBERTa, in an adapter's wrapper or
            reshaped too; any other is left alone.

    Returns:
        What ends it; None where the model was left alone.
    """
    inner: Any = _without_shapes(without_adapter(model))
    if not reads_first_token(inner):
        return None
    where, _, kind = _LAYERS[type(inner).__name__]
    layers = inner.base_model.get_submodule(where)
    return FirstTokenOnly(layers, kind(layers[-1]))


def reads_first_token(model: nn.Module) -> bool:
    """Check whether transformers' own head reads the first token alone of transformers' own last layer.

    Decoders, replaced heads, poolers or last layers, models with hooks of somebody's own, and configs that ask for
    hidden states or attention maps do not count. A reshaped classifier is what it was made of.
    """
    model = _without_shapes(model)
    if not isinstance(model, PreTrainedModel) or not _own(model) or type(model).__name__ not in _LAYERS:
        return False
    config: Any = model.config
    if getattr(config, "is_decoder", False) or config.output_hidden_states or config.output_attentions:
        return False
    where, name, _ = _LAYERS[type(model).__name__]
    layers: Any = model.base_model.get_submodule(where)
    if not len(layers) or type(layers[-1]).__name__ != name or not _own(layers[-1]):
        return False
    # peft keeps what it trains beside an adapter in a wrapper.
    head: Any = model.classifier
    head = getattr(head, "original_module", head)
    pooler = getattr(model.base_model, "pooler", None)
    if not (type(head) is nn.Linear or _own(head)) or not (pooler is None or _own(pooler)):
        return False
    # What is inside of the last layer sees one token; whoever hooks onto it, and not around it, asks for just that.
    inside = set(layers[-1].modules()) - {layers[-1], layers[-1].attention}
    return foreign_hook(model, but=inside) is None


def _without_shapes(model: nn.Module) -> nn.Module:
    return model.base if isinstance(model, ReshapedForSequenceClassification) else model


def _own(module: nn.Module) -> bool:
    """Check whether a module's class is transformers' own."""
    return type(module).__module__.split(".")[0] == "transformers"

"""Classifiers that read the first token alone, and what their last layer can leave out for that."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from nlpkd.models.reshaped import ReshapedForSequenceClassification
from nlpkd.models.structure import foreign_hook, without_adapter


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

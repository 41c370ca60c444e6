"""Compute a classifier's last layer for the first token alone, where its head reads no other."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from nlpkd.capture import without_adapter


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
        first = self.attention.output(mixed[:, :1], hidden_states[:, :1])
        return self.output(self.intermediate(first), first)


class _FirstTokenDistilBertLayer(nn.Module):
    """The same of DistilBERT."""

    def __init__(self, layer: Any):
        super().__init__()
        self.attention, self.sa_layer_norm = layer.attention, layer.sa_layer_norm
        self.ffn, self.output_layer_norm = layer.ffn, layer.output_layer_norm
        self.train(layer.training)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Turn `(batch, seq, hidden)` into `(batch, 1, hidden)`."""
        mixed, _ = self.attention(hidden_states, attention_mask=attention_mask, **kwargs)
        first = self.sa_layer_norm(mixed[:, :1] + hidden_states[:, :1])
        return self.output_layer_norm(self.ffn(first) + first)


_ENCODERS = ("Bert", "Camembert", "Electra", "Roberta", "XLMRoberta")
_LAYERS: dict[str, tuple[str, Any]] = {
    f"{family}ForSequenceClassification": ("encoder.layer", _FirstTokenBertLayer) for family in _ENCODERS
}
_LAYERS["DistilBertForSequenceClassification"] = ("transformer.layer", _FirstTokenDistilBertLayer)
"""Classifiers whose head reads the first token of the last layer, and where their layers are."""


class FirstTokenOnly:
    """A classifier whose last layer gives the first token alone: the same logits but for rounding.

    Of a layer's products, in multiples of hidden^2 a token, queries, keys and values are 3 of 12; the other 9 are
    left to one token of the text. The names of the state dict and the parameters stay. Hidden states of the last
    layer can't be had of it.

    Args:
        layers: the classifier's layers, changed in place.
        last: what stands for the last of them.
    """

    def __init__(self, layers: nn.ModuleList, last: nn.Module):
        self.layers, self.whole = layers, layers[-1]
        layers[-1] = last

    def end(self) -> None:
        """Give the model its last layer back."""
        self.layers[-1] = self.whole


def first_token_only(model: nn.Module) -> FirstTokenOnly | None:
    """Let a classifier's last layer give the first token alone, if it is of a family whose head reads no other.

    Args:
        model: a classifier of BERT, CamemBERT, DistilBERT, ELECTRA, RoBERTa or XLM-RoBERTa, in an adapter's wrapper
            too; any other is left alone.

    Returns:
        What ends it; None where the model was left alone.
    """
    inner: Any = without_adapter(model)
    if not reads_first_token(inner):
        return None
    where, kind = _LAYERS[type(inner).__name__]
    layers = inner.base_model.get_submodule(where)
    return FirstTokenOnly(layers, kind(layers[-1]))


def reads_first_token(model: nn.Module) -> bool:
    """Say whether a classifier is of a family whose head reads the first token alone, and no decoder."""
    known = isinstance(model, PreTrainedModel) and type(model).__name__ in _LAYERS
    return known and not getattr(model.config, "is_decoder", False)

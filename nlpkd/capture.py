"""Run a model and keep hidden states, attention maps and Q/K/V of the layers asked for, and no others, under sdpa."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

CAPTURING_SDPA = "nlpkd_sdpa"
"""The attention implementation that records; without a recording in progress it is sdpa and nothing else."""

Wanted = Mapping[str, frozenset[int]]
"""Kind of output (`"hidden_states"`, `"attentions"`, `"queries"`, `"keys"`, `"values"`) -> layers, counted 1..L."""

_RECORDED = ("attentions", "queries", "keys", "values")


@dataclass
class CapturedOutput:
    """What an objective is given of a model.

    Attributes:
        logits: `(batch, labels)`.
        hidden_states: entry k is layer k, entry 0 the embeddings, `(batch, seq, hidden)`; None where not asked for.
        attentions: entry k - 1 is layer k, softmax(QK'/sqrt(d)) before dropout, `(batch, heads, seq, seq)`.
        queries: entry k - 1 is layer k, `(batch, heads, seq, head)`.
        keys: as `queries`.
        values: as `queries`.
    """

    logits: Tensor
    hidden_states: tuple[Tensor | None, ...] | None = None
    attentions: tuple[Tensor | None, ...] | None = None
    queries: tuple[Tensor | None, ...] | None = None
    keys: tuple[Tensor | None, ...] | None = None
    values: tuple[Tensor | None, ...] | None = None


@dataclass
class _Recording:
    wanted: Wanted
    depth: int = 0
    kept: dict[str, dict[int, Any]] = field(default_factory=lambda: {kind: {} for kind in _RECORDED})

    def add(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> None:
        # Counted by calls, since some families share one attention module between layers.
        self.depth += 1
        kept = {"queries": query, "keys": key, "values": value, "attentions": (query, key, mask, scaling)}
        for kind, layers in self.wanted.items():
            if kind in kept and self.depth in layers:
                self.kept[kind][self.depth] = kept[kind]

    def layers(self, kind: str) -> tuple[Tensor | None, ...] | None:
        kept = self.kept[kind]
        if kind == "attentions":
            # Computed here, after the forward: activation checkpointing recomputes what the forward computed.
            kept = {layer: attention_probabilities(*recorded) for layer, recorded in kept.items()}
        return tuple(kept.get(layer) for layer in range(1, self.depth + 1)) if kept else None


_recording: ContextVar[_Recording | None] = ContextVar("nlpkd_recording", default=None)


def attention_probabilities(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """Compute the attention map that sdpa uses and does not return.

    Args:
        query: `(batch, heads, seq, head)`.
        key: `(batch, key heads, seq, head)`, as many heads or a divisor (grouped queries).
        mask: boolean (True attends) or additive, broadcastable to `(batch, heads, seq, seq)`, or None.
        scaling: factor on QK', 1/sqrt(head) if None.

    Returns:
        softmax(scaling * QK' + mask) in float32, `(batch, heads, seq, seq)`; padded keys have probability 0.
    """
    if key.shape[1] != query.shape[1]:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = (query @ key.transpose(-1, -2)).float() * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    return scores.softmax(dim=-1)


def _capturing_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    recording = _recording.get()
    if recording is not None:
        if kwargs.get("position_bias") is not None:
            raise ValueError(
                f"{type(module).__name__} adds a position bias to its attention scores, which is not recorded: load "
                "the model with attn_implementation='eager', or drop the attention objectives"
            )
        mask = attention_mask
        if mask is None and (getattr(module, "is_causal", True) if is_causal is None else is_causal):
            # Without padding a causal model passes no mask: sdpa hides the future by a flag.
            mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
        recording.add(query, key, value, mask, scaling)
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, is_causal=is_causal, **kwargs
    )


AttentionInterface.register(CAPTURING_SDPA, _capturing_sdpa)
# Without a mask function of the same name transformers passes no mask at all, and padding is attended in silence.
AttentionMaskInterface.register(CAPTURING_SDPA, sdpa_mask)


@contextmanager
def _record(wanted: Wanted) -> Iterator[_Recording]:
    recording = _Recording(wanted)
    token = _recording.set(recording)
    try:
        yield recording
    finally:
        _recording.reset(token)


class Capture:
    """One model's forward pass on a collated batch, keeping what the objectives want of it.

    Args:
        model: the model, not wrapped. It is switched from sdpa to a recording sdpa where attention maps or Q/K/V are
            wanted; an eager model gives its own maps.
        wanted: kinds and layers.
        role: `"student"` or `"teacher"`, for the errors.
        prefix: `"teacher_"` where the model reads columns of its own, made with its own tokenizer.

    Raises:
        ValueError: if the model can't give what is wanted.
    """

    def __init__(self, model: nn.Module, wanted: Wanted, role: str, prefix: str = ""):
        self.wanted = {kind: layers for kind, layers in wanted.items() if layers}
        self.prefix = prefix
        # Several teachers together read columns of several tokenizers, which no signature can name.
        names = getattr(model, "columns", None) or inspect.signature(model.forward).parameters
        self.arguments = {name for name in names if "label" not in name}
        self.depth: int | None = None
        self.options: dict[str, Any] = {}
        if not self.wanted:
            return
        if not isinstance(model, PreTrainedModel):
            raise ValueError(
                f"the objectives need {sorted(self.wanted)} of the {role}, and {type(model).__name__} is no "
                "transformers PreTrainedModel, of which only logits can be had: use objectives on logits"
            )
        self.depth = model.config.num_hidden_layers
        if "hidden_states" in self.wanted:
            self.options["output_hidden_states"] = sorted(self.wanted["hidden_states"])
        if not self.wanted.keys().isdisjoint(_RECORDED):
            self._prepare_attention(model, role)

    def _prepare_attention(self, model: PreTrainedModel, role: str) -> None:
        implementation = model.config._attn_implementation
        if implementation == "sdpa":
            model.set_attn_implementation(CAPTURING_SDPA)
        elif implementation == "eager" and self.wanted.keys().isdisjoint({"queries", "keys", "values"}):
            self.options["output_attentions"] = True
        elif implementation == "eager":
            raise ValueError(
                f"the objectives need queries, keys or values of the {role}, which eager attention does not give: "
                "load it with attn_implementation='sdpa', or match attention maps or hidden states instead"
            )
        elif implementation != CAPTURING_SDPA:
            raise ValueError(
                f"the {role} runs attention by {implementation!r}, which gives no attention maps: load it with "
                "attn_implementation='sdpa' (or 'eager'), or drop the attention objectives"
            )

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Select what the model's forward takes of a batch, labels excepted."""
        own = {name[len(self.prefix) :]: value for name, value in batch.items() if name.startswith(self.prefix)}
        return {name: value for name, value in own.items() if name in self.arguments}

    def __call__(self, model: nn.Module, batch: Mapping[str, Any]) -> CapturedOutput:
        """Run the model once.

        Args:
            model: the model of the constructor, or what wraps it now (DDP, a compiled module).
            batch: the collated batch.

        Returns:
            Logits, and per kind a tuple over layers with None where nothing was asked for.

        Raises:
            RuntimeError: if the model did not give what was wanted.
        """
        with _record(self.wanted) as recording:
            outputs = model(**self.inputs(batch), **self.options)
        if isinstance(outputs, Tensor):
            return CapturedOutput(logits=outputs)
        captured = CapturedOutput(
            logits=outputs["logits"] if isinstance(outputs, Mapping) else outputs[0],
            **{kind: recording.layers(kind) for kind in _RECORDED},
        )
        if "hidden_states" in self.wanted:
            wanted = self.wanted["hidden_states"]
            captured.hidden_states = tuple(s if k in wanted else None for k, s in enumerate(outputs.hidden_states))
        if "output_attentions" in self.options:
            wanted = self.wanted["attentions"]
            captured.attentions = tuple(
                m if k in wanted else None for k, m in enumerate(outputs.attentions or (), start=1)
            )
        self._check(captured)
        return captured

    def _check(self, captured: CapturedOutput) -> None:
        for kind, layers in self.wanted.items():
            first = 0 if kind == "hidden_states" else 1
            found = getattr(captured, kind) or ()
            depth = len(found) - 1 + first
            if depth != self.depth or any(found[layer - first] is None for layer in layers):
                raise RuntimeError(
                    f"layers {sorted(layers)} of {self.depth} were asked for {kind}, and the model gave {depth}: "
                    "this family does not run its attention through transformers' attention interface"
                )

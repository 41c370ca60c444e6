"""Run a model and keep hidden states, attention maps and Q/K/V of the layers asked for, and no others, under sdpa."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from nlpkd.dropout import QuickDropout

CAPTURING_SDPA = "nlpkd_sdpa"
"""The attention implementation that records, and that runs the plain products where dropout is a quick one.

Without either it is sdpa and nothing else."""

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
        text_at: the token that stands for each text, `(batch,)`: of a decoder the last real one. None: the first.
    """

    logits: Tensor
    hidden_states: tuple[Tensor | None, ...] | None = None
    attentions: tuple[Tensor | None, ...] | None = None
    queries: tuple[Tensor | None, ...] | None = None
    keys: tuple[Tensor | None, ...] | None = None
    values: tuple[Tensor | None, ...] | None = None
    text_at: Tensor | None = None


def without_adapter(model: nn.Module) -> nn.Module:
    """Give the transformers model inside of a peft adapter's wrapper; any other model as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def _recomputes(model: nn.Module) -> bool:
    """Say whether activation checkpointing is on, that of transformers or that of FSDP."""
    return any(
        getattr(module, "gradient_checkpointing", False) or isinstance(module, CheckpointWrapper)
        for module in model.modules()
    )


def is_causal(model: nn.Module) -> bool:
    """Say whether a token sees only those before it, so that a text's last token alone has read it all."""
    return any(getattr(module, "is_causal", False) is True for module in model.modules())


@dataclass
class _Recording:
    wanted: Wanted
    at_once: bool
    depth: int = 0
    kept: dict[str, dict[int, Any]] = field(default_factory=lambda: {kind: {} for kind in _RECORDED})

    def add(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None
    ) -> Tensor | None:
        """Keep what is wanted of the next layer; give its map where it was computed."""
        # Counted by calls, since some families share one attention module between layers.
        self.depth += 1
        kept: dict[str, Any] = {"queries": query, "keys": key, "values": value}
        kept["attentions"] = (query, key, mask, scaling)
        if self.at_once and self.depth in self.wanted.get("attentions", ()):
            kept["attentions"] = attention_probabilities(query, key, mask, scaling)
        for kind, layers in self.wanted.items():
            if kind in kept and self.depth in layers:
                self.kept[kind][self.depth] = kept[kind]
        return kept["attentions"] if isinstance(kept["attentions"], Tensor) else None

    def layers(self, kind: str) -> tuple[Tensor | None, ...] | None:
        kept = self.kept[kind]
        if kind == "attentions" and not self.at_once:
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
        softmax(scaling * QK' + mask) in float32, `(batch, heads, seq, seq)`; padded keys have probability 0, and so
        has the whole row of a query to which a boolean mask leaves no key.
    """
    if key.shape[1] != query.shape[1]:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    # Scaled before the product, which could leave float16's range.
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = (query @ key.transpose(-1, -2)).float()
    if mask is not None and mask.dtype == torch.bool:
        # Rows without any key come out as 0, as they do of sdpa.
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(dim=-1).masked_fill(~mask, 0.0)
    if mask is not None:
        scores = scores + mask
    return scores.softmax(dim=-1)


def _capturing_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    recording, biased = _recording.get(), kwargs.get("position_bias") is not None
    if recording is not None and biased:
        raise ValueError(
            f"{type(module).__name__} adds a position bias to its attention scores, which is not recorded: load "
            "the model with attn_implementation='eager', or drop the attention objectives"
        )
    dropping: Any = getattr(module, "dropout", None)
    quick = isinstance(dropping, QuickDropout) and module.training and not biased
    mask, attention = attention_mask, None
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if mask is None and causal and (quick or recording is not None):
        # Without padding a causal model passes no mask: sdpa hides the future by a flag.
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    if recording is not None:
        attention = recording.add(query, key, value, mask, scaling)
    if quick and attention is None:
        attention = attention_probabilities(query, key, mask, scaling)
    if attention is not None:
        # sdpa would compute the same map once more.
        if value.shape[1] != query.shape[1]:
            value = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
        attention = attention.to(value.dtype)
        mixed = (dropping(attention) if quick else F.dropout(attention, dropout)) @ value
        return mixed.transpose(1, 2).contiguous(), None
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
    )


AttentionInterface.register(CAPTURING_SDPA, _capturing_sdpa)
# Without a mask function of the same name transformers passes no mask at all, and padding is attended in silence.
AttentionMaskInterface.register(CAPTURING_SDPA, sdpa_mask)


class _BeforeDropout(TorchFunctionMode):
    """Keeps attention maps as they go into dropout, since eager attention returns what comes out of it."""

    def __init__(self) -> None:
        super().__init__()
        self.maps: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.dropout and args[0].dim() == 4:
            self.maps.append(args[0])
        return func(*args, **(kwargs or {}))


@contextmanager
def _record(wanted: Wanted, at_once: bool) -> Iterator[_Recording]:
    recording = _Recording(wanted, at_once)
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
        inner = without_adapter(model)
        # Several teachers together read columns of several tokenizers, which no signature can name.
        names = getattr(model, "columns", None) or inspect.signature(inner.forward).parameters
        self.arguments = {name for name in names if "label" not in name}
        self.depth: int | None = None
        self.causal = is_causal(inner)
        # Keys and values of all layers are kept for a next token, which a classifier never asks for.
        self.options: dict[str, Any] = {"use_cache": False} if "use_cache" in names else {}
        if not self.wanted:
            return
        if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
            raise ValueError(
                f"the objectives need {sorted(self.wanted)} of the {role}, whose adapter puts a prompt of its own "
                "before the tokens: use objectives on logits, or an adapter that leaves the tokens alone, such as LoRA"
            )
        if not isinstance(inner, PreTrainedModel):
            raise ValueError(
                f"the objectives need {sorted(self.wanted)} of the {role}, and {type(model).__name__} is no "
                "transformers PreTrainedModel, of which only logits can be had: use objectives on logits"
            )
        self.depth = inner.config.num_hidden_layers
        if "hidden_states" in self.wanted:
            self.options["output_hidden_states"] = sorted(self.wanted["hidden_states"])
        if not self.wanted.keys().isdisjoint(_RECORDED):
            self._prepare_attention(inner, role)

    def _prepare_attention(self, model: PreTrainedModel, role: str) -> None:
        implementation = model.config._attn_implementation
        if implementation == "sdpa":
            model.set_attn_implementation(CAPTURING_SDPA)
        elif implementation == "eager" and self.wanted.keys().isdisjoint({"queries", "keys", "values"}):
            self.options["output_attentions"] = True
        elif implementation == "eager":
            advice = "load it with attn_implementation='sdpa', or match"
            if not model._supports_sdpa:
                advice = f"{type(model).__name__} has no other attention: match"
            raise ValueError(
                f"the objectives need queries, keys or values of the {role}, which eager attention does not give: "
                f"{advice} attention maps (AttentionMSELoss on probabilities, AttentionKLLoss) or hidden states "
                "instead"
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

    def text_at(self, batch: Mapping[str, Any]) -> Tensor | None:
        """Find the token that stands for each text, `(batch,)`: a decoder's last real one; None: the first."""
        if not self.causal:
            return None
        inputs = self.inputs(batch)
        mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
        return (mask.long() * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1)

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
        before = _BeforeDropout()
        dropped = model.training and "output_attentions" in self.options
        # Activation checkpointing runs a layer again without a recording, which then has to do the same as before.
        at_once = "attentions" in self.wanted and not (torch.is_grad_enabled() and _recomputes(model))
        with _record(self.wanted, at_once) as recording, before if dropped else nullcontext():
            outputs = model(**self.inputs(batch), **self.options)
        if isinstance(outputs, Tensor):
            return CapturedOutput(logits=outputs)
        captured = CapturedOutput(logits=outputs["logits"] if isinstance(outputs, Mapping) else outputs[0])
        for kind in _RECORDED:
            setattr(captured, kind, recording.layers(kind))
        if "hidden_states" in self.wanted:
            wanted = self.wanted["hidden_states"]
            states = getattr(outputs, "hidden_states", None) or ()
            captured.hidden_states = tuple(s if k in wanted else None for k, s in enumerate(states))
            captured.text_at = self.text_at(batch)
        if "output_attentions" in self.options:
            wanted = self.wanted["attentions"]
            maps = before.maps or outputs.attentions or ()
            captured.attentions = tuple(m if k in wanted else None for k, m in enumerate(maps, start=1))
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
                    "this family does not show its layers as transformers' encoders do; use objectives on logits"
                )

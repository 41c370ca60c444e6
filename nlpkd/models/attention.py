"""Attention that records what objectives read of it, an implementation of its own among transformers'."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

_LEVELS = 2**16


class QuickDropout(nn.Dropout):
    """`nn.Dropout` whose masks come from a quarter of the random numbers.

    An element is dropped with probability round(65536 p) / 65536, which is within 8e-6 of p, and else divided by one
    minus that probability, so that the mean stays. torch's CPU generator, seeded and resumed as ever, gives 64 bits at
    a time, which make four elements. Where that probability is 0 or 1, and beside the CPU, it is `nn.Dropout`.

    Args:
        p: probability of dropping an element.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Drop elements of a tensor of any shape while training."""
        drawn = round(self.p * _LEVELS)
        if not self.training or input.device.type != "cpu" or not 0 < drawn < _LEVELS:
            return super().forward(input)
        count = input.numel()
        words = torch.empty(-(-count // 4), dtype=torch.int64, device="cpu").random_(-(2**63), None)
        kept = words.view(torch.int16)[:count].view(input.shape) >= drawn - _LEVELS // 2
        return input * kept.to(input.dtype).mul_(_LEVELS / (_LEVELS - drawn))


CAPTURING_SDPA = "nlpkd_sdpa"
"""The attention implementation that records, and that runs the plain products where these are sooner.

They are with a quick dropout, and in bf16 on the CPU without dropout where there are few scores. Else it is sdpa."""


_FEW_SCORES = 2**21
"""Scores (texts x heads x queries x keys) up to which the plain products in bf16 beat the CPU's fused kernel.

That has a fixed cost for each text and head. More scores than that, 8 MB in float32, leave the processor's caches."""


_VECTOR = 16
"""Keys below which torch's softmax on the CPU goes through the scores one by one."""


Wanted = Mapping[str, frozenset[int]]
"""Kind of output (`"hidden_states"`, `"attentions"`, `"queries"`, `"keys"`, `"values"`) -> layers, counted 1..L."""


_RECORDED = ("attentions", "queries", "keys", "values")


@dataclass
class _Recording:
    wanted: Wanted
    at_once: bool
    depth: int = 0
    kept: dict[str, dict[int, Any]] = field(default_factory=lambda: {kind: {} for kind in _RECORDED})

    def add(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None
    ) -> Tensor | None:
        """Keep what is wanted of the next layer; return its map where it was computed."""
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
        hidden = ~mask
        scores = scores.masked_fill_(hidden, torch.finfo(scores.dtype).min)
        # Rows without any key come out as 0, as they do of sdpa.
        return _softmax(scores).masked_fill(hidden, 0.0)
    if mask is not None:
        scores = scores + mask
    return _softmax(scores)


def _softmax(scores: Tensor) -> Tensor:
    """Compute the softmax over keys, of few ones beside keys of probability 0 that let the CPU work in vectors."""
    keys = scores.shape[-1]
    if scores.device.type != "cpu" or keys >= _VECTOR:
        return scores.softmax(dim=-1)
    return F.pad(scores, (0, _VECTOR - keys), value=-torch.inf).softmax(dim=-1)[..., :keys]


def _plain_is_sooner(query: Tensor, value: Tensor) -> bool:
    few = query.shape[:-1].numel() * value.shape[-2] <= _FEW_SCORES
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else value.dtype
    return few and value.device.type == "cpu" and dtype == torch.bfloat16


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
    if recording is not None and recording.wanted.keys().isdisjoint(_RECORDED):
        recording = None
    if recording is not None and biased:
        raise ValueError(
            f"{type(module).__name__} adds a position bias to its attention scores, which is not recorded: load "
            "the model with attn_implementation='eager', or drop the attention objectives"
        )
    dropping: Any = getattr(module, "dropout", None)
    quick = isinstance(dropping, QuickDropout) and module.training and not biased
    plain = quick or (not biased and not dropout and _plain_is_sooner(query, value))
    mask, attention = attention_mask, None
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if mask is None and causal and (plain or recording is not None):
        # Without padding a causal model passes no mask: sdpa hides the future by a flag.
        seen = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
        mask = seen.tril(key.shape[2] - query.shape[2])
    if recording is not None:
        attention = recording.add(query, key, value, mask, scaling)
    if plain and attention is None:
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


def _mask_without_waiting(**options: Any) -> Tensor | None:
    """Make sdpa's mask; on a GPU even where nothing is padded, since asking the GPU would wait for it."""
    if torch.device(options.get("device", "cpu")).type != "cpu":
        options |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return sdpa_mask(**options)


# Without a mask function of the same name transformers passes no mask at all, and padding is attended in silence.
AttentionMaskInterface.register(CAPTURING_SDPA, _mask_without_waiting)


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

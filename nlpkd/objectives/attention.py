"""Objectives on attention maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nlpkd.models.layers import LayerSpec
from nlpkd.objectives.base import LayerObjective, attention_heads, token_mask
from nlpkd.objectives.limits import one_of


class AttentionObjective(LayerObjective):
    """An objective that holds attention head against attention head."""

    def bind(self, student_config: Any, teacher_config: Any) -> None:
        """Resolve the layer map and compare head counts; see `Objective.bind`."""
        super().bind(student_config, teacher_config)
        ours, theirs = attention_heads(student_config), attention_heads(teacher_config)
        if ours != theirs:
            raise ValueError(
                f"{type(self).__name__} matches head with head, and the student has {ours} heads a layer, the teacher "
                f"{theirs}: make the student of the teacher's layers (layers:N), or use SelfAttentionRelationLoss or "
                "hidden states (objectives='dynabert'), which need no equal heads"
            )


class AttentionMSELoss(AttentionObjective):
    """Mean squared error between attention maps of matched layers.

    mean over pairs (s, t), heads and pairs (i, j) of real tokens of one text of (A_student[s] - A_teacher[t])^2,
    `(batch, heads, seq, seq)`: TinyBERT's attention distillation (Jiao et al. 2020, "TinyBERT: Distilling BERT for
    Natural Language Understanding", arXiv:1909.10351, equation 7). The paper matches the scores QK'/sqrt(d) before the
    softmax (`on="scores"`); the probabilities do not depend on a row's additive constant. Padding is left out. The
    maps are taken before dropout.

    Args:
        layers: layer map.
        weight: factor of this objective in the sum.
        on: `"probabilities"` or `"scores"`.

    Raises:
        ValueError: if `on` is neither.
    """

    citation = "Jiao et al. (2020), TinyBERT: Distilling BERT for Natural Language Understanding, arXiv:1909.10351"
    settings = ("on",)
    limits = {**AttentionObjective.limits, "on": one_of("probabilities", "scores")}
    fixed_by_bind = (*AttentionObjective.fixed_by_bind, "on")

    def __init__(self, layers: LayerSpec = "uniform", weight: float = 1.0, on: str = "probabilities"):
        super().__init__(layers, weight)
        self.on = on

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """What the maps are made of; see `Objective`."""
        return frozenset({"queries", "keys"} if self.on == "scores" else {"attentions"})

    def count(self, batch: Mapping[str, Any]) -> Tensor:
        """Count pairs of real tokens of the same text."""
        return token_mask(batch).sum(dim=1).square().sum()

    def compare(self, position: int, student: Any, teacher: Any, batch: Mapping[str, Any]) -> Tensor:
        """Sum over pairs of real tokens, mean over heads."""
        mask = token_mask(batch)  # (batch, seq)
        both = mask[:, :, None] * mask[:, None, :]  # (batch, seq, seq)
        ours, theirs = (
            self._map(outputs, layer) for outputs, layer in zip((student, teacher), self.pairs[position], strict=True)
        )  # (batch, heads, seq, seq)
        return ((ours - theirs).square().mean(dim=1) * both).sum()

    def _map(self, outputs: Any, layer: int) -> Tensor:
        if self.on == "probabilities":
            return outputs.attentions[layer - 1].float()
        query, key = outputs.queries[layer - 1], outputs.keys[layer - 1]
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        return (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5


class AttentionKLLoss(AttentionObjective):
    """Kullback-Leibler divergence between attention maps of matched layers.

    mean over pairs (s, t), heads and real query tokens i of sum_j A_teacher[t](i, j) * (log A_teacher[t](i, j) -
    log A_student[s](i, j)), `(batch, heads, seq, seq)`, over real keys j: the self-attention distribution transfer of
    MiniLM (Wang et al. 2020, "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained
    Transformers", arXiv:2002.10957, section 3.1), which matches the last layers (`layers="last"`). Probabilities below
    1e-12 count as 1e-12.

    Args:
        layers: layer map.
        weight: factor of this objective in the sum.
    """

    needs = frozenset({"attentions"})
    citation = "Wang et al. (2020), MiniLM: Deep Self-Attention Distillation, arXiv:2002.10957"

    def count(self, batch: Mapping[str, Any]) -> Tensor:
        """Count real tokens."""
        return token_mask(batch).sum()

    def compare(self, position: int, student: Any, teacher: Any, batch: Mapping[str, Any]) -> Tensor:
        """Sum over real query tokens and real keys, mean over heads."""
        ours_layer, theirs_layer = self.pairs[position]
        mask = token_mask(batch)
        both = (mask[:, None, :, None] * mask[:, None, None, :]).bool()  # (batch, 1, seq, seq)
        ours, theirs = (
            torch.where(both, outputs.attentions[layer - 1].float(), 1.0).clamp(min=1e-12)
            for outputs, layer in ((student, ours_layer), (teacher, theirs_layer))
        )  # (batch, heads, seq, seq), 1 and so without effect where padded
        return (theirs * (theirs.log() - ours.log())).sum(dim=(2, 3)).mean(dim=1).sum()

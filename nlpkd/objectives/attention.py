"""Objectives on attention maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nlpkd.objectives.base import LayerObjective, token_mask


class AttentionMSELoss(LayerObjective):
    """Mean squared error between attention maps of matched layers.

    mean over pairs (s, t), heads and pairs (i, j) of real tokens of one text of (A_student[s] - A_teacher[t])^2,
    `(batch, heads, seq, seq)`: TinyBERT's attention distillation (Jiao et al. 2020, "TinyBERT: Distilling BERT for
    Natural Language Understanding", arXiv:1909.10351, equation 7). The paper matches the scores before the softmax;
    here it is the probabilities, which do not depend on a row's additive constant, and padding is left out. The maps
    are taken before dropout.

    Args:
        layers: layer map.
        weight: factor of this objective in the sum.
    """

    needs = frozenset({"attentions"})
    citation = "Jiao et al. (2020), TinyBERT: Distilling BERT for Natural Language Understanding, arXiv:1909.10351"

    def bind(self, student_config: Any, teacher_config: Any) -> None:
        """Resolve the layer map and compare head counts; see `Objective.bind`."""
        super().bind(student_config, teacher_config)
        ours, theirs = student_config.num_attention_heads, teacher_config.num_attention_heads
        if ours != theirs:
            raise ValueError(
                f"AttentionMSELoss matches head with head, and the student has {ours} heads a layer, the teacher "
                f"{theirs}: make the student of the teacher's layers (layers:N), or match hidden states instead"
            )
        if any(0 in pair for pair in self.pairs):
            raise ValueError(f"layer 0 is the embedding output and has no attention map: got {self.pairs}")

    def count(self, batch: Mapping[str, Any]) -> Tensor:
        """Count pairs of real tokens of the same text."""
        return token_mask(batch).sum(dim=1).square().sum()

    def total(self, student: Any, teacher: Any, batch: Mapping[str, Any]) -> Tensor:
        """Sum over pairs of real tokens, mean over layer pairs and heads."""
        mask = token_mask(batch)  # (batch, seq)
        both = mask[:, :, None] * mask[:, None, :]  # (batch, seq, seq)
        per_pair = []
        for student_layer, teacher_layer in self.pairs:
            ours = student.attentions[student_layer - 1].float()  # (batch, heads, seq, seq)
            theirs = teacher.attentions[teacher_layer - 1].float()
            per_pair.append(((ours - theirs).square().mean(dim=1) * both).sum())
        return torch.stack(per_pair).mean()

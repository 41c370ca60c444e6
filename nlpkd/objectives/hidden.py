"""Objectives on hidden states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nlpkd.layers import LayerSpec
from nlpkd.objectives.base import LayerObjective, token_mask


class HiddenStateMSELoss(LayerObjective):
    """Mean squared error between hidden states of matched layers.

    mean over pairs (s, t), real tokens and hidden units of (H_student[s] W - H_teacher[t])^2, `(batch, seq, hidden)`,
    padding left out: TinyBERT's hidden-state distillation (Jiao et al. 2020, "TinyBERT: Distilling BERT for Natural
    Language Understanding", arXiv:1909.10351, equation 8). W is learned where the widths differ, one a pair (the
    paper's code shares one between all layers), and absent where they are equal.

    Args:
        layers: layer map; explicit pairs may name layer 0, the embedding output.
        weight: factor of this objective in the sum.
    """

    needs = frozenset({"hidden_states"})
    citation = "Jiao et al. (2020), TinyBERT: Distilling BERT for Natural Language Understanding, arXiv:1909.10351"

    def __init__(self, layers: LayerSpec = "uniform", weight: float = 1.0):
        super().__init__(layers, weight)
        self.projections = nn.ModuleList()

    def bind(self, student_config: Any, teacher_config: Any) -> None:
        """Resolve the layer map and build projections where the widths differ; see `Objective.bind`."""
        super().bind(student_config, teacher_config)
        narrow, wide = student_config.hidden_size, teacher_config.hidden_size
        if narrow != wide:
            self.projections.extend(nn.Linear(narrow, wide, bias=False) for _ in self.pairs)

    def count(self, batch: Mapping[str, Any]) -> Tensor:
        """Count real tokens."""
        return token_mask(batch).sum()

    def total(self, student: Any, teacher: Any, batch: Mapping[str, Any]) -> Tensor:
        """Sum over real tokens, mean over pairs and hidden units."""
        mask = token_mask(batch)  # (batch, seq)
        per_pair = []
        for position, (student_layer, teacher_layer) in enumerate(self.pairs):
            state = student.hidden_states[student_layer].float()  # (batch, seq, student hidden)
            if self.projections:
                state = self.projections[position](state)  # (batch, seq, teacher hidden)
            error = (state - teacher.hidden_states[teacher_layer].float()).square().mean(dim=-1)  # (batch, seq)
            per_pair.append((error * mask).sum())
        return torch.stack(per_pair).mean()

"""Objectives on how features are distributed over a text, and how they change from layer to layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nlpkd.models.layers import LayerSpec
from nlpkd.objectives.base import LayerObjective, token_mask
from nlpkd.objectives.hidden import ProjectedObjective
from nlpkd.objectives.limits import one_of


class FeatureDistributionLoss(LayerObjective):
    """Maximum mean discrepancy between the neurons of matched layers: neuron selectivity transfer.

    A neuron's sample is its activations over the real tokens of a text, scaled to norm 1. The value is the mean over
    pairs (s, t) and rows of the squared discrepancy mean_ij k(u_i, u_j) + mean_ij k(v_i, v_j) - 2 mean_ij k(u_i, v_j)
    between the student's neurons u and the teacher's v, `(batch, seq, hidden)`: Huang and Wang 2017, "Like What You
    Like: Knowledge Distill via Neuron Selectivity Transfer", arXiv:1707.01219, equation 5. The kernel is k(x, y) =
    (x'y)^2 (`"polynomial"`, their best) or x'y (`"linear"`). The widths may differ. The work is that of seq x seq
    matrices, not hidden x hidden, since the mean of (u_i'v_j)^2 is an inner product of the matrices mean_i u_i u_i'
    and mean_j v_j v_j'.

    Args:
        layers: layer map; explicit pairs may name layer 0, the embedding output.
        weight: factor of this objective in the sum.
        kernel: `"polynomial"` or `"linear"`.

    Raises:
        ValueError: if there is no such kernel.
    """

    needs = frozenset({"hidden_states"})
    citation = "Huang and Wang (2017), Like What You Like: Neuron Selectivity Transfer, arXiv:1707.01219"
    settings = ("kernel",)
    limits = {**LayerObjective.limits, "kernel": one_of("polynomial", "linear")}

    def __init__(self, layers: LayerSpec = "uniform", weight: float = 1.0, kernel: str = "polynomial"):
        super().__init__(layers, weight)
        self.kernel = kernel

    def compare(self, position: int, student: Any, teacher: Any, batch: Mapping[str, Any]) -> Tensor:
        """Sum over rows."""
        mask = token_mask(batch)[:, :, None]  # (batch, seq, 1)
        means = []
        for outputs, layer in zip((student, teacher), self.pairs[position], strict=True):
            neurons = F.normalize(outputs.hidden_states[layer].float() * mask, dim=1)  # (batch, seq, hidden)
            if self.kernel == "linear":
                means.append(neurons.mean(dim=2))  # (batch, seq)
            else:
                means.append((neurons @ neurons.transpose(1, 2)).float() / neurons.shape[2])  # (batch, seq, seq)
        ours, theirs = means
        return (ours - theirs).square().sum()


class GramLoss(ProjectedObjective):
    """Squared error between the flows of matched layers: how one layer's units relate to the next matched layer's.

    The flow from layer k to layer l is G = H_k' H_l / n over the n real tokens of a text, `(hidden, hidden)`. The
    value is the mean over neighbouring pairs (s, t), (s', t') of the layer map, rows and entries of (G_student(s, s')
    - G_teacher(t, t'))^2: Yim et al. 2017, "A Gift from Knowledge Distillation: Fast Optimization, Network
    Minimization and Transfer Learning", CVPR 2017, equations 1 and 2. Where the widths differ, the student's states
    are projected first.

    Args:
        layers: layer map of at least two pairs, layer 0 (the embedding output) included where pairs name it.
        weight: factor of this objective in the sum.
    """

    citation = "Yim et al. (2017), A Gift from Knowledge Distillation, CVPR 2017"

    def bind(self, student_config: Any, teacher_config: Any) -> None:
        """Resolve the layer map, of two pairs at least; see `Objective.bind`."""
        super().bind(student_config, teacher_config)
        if len(self.pairs) < 2 or self.layer_scores is not None:
            raise ValueError(
                f"GramLoss relates neighbouring pairs of layers, and layers={self.layers!r} gives {self.pairs}: name "
                "at least two pairs, such as '0:0,1:2'"
            )

    def total(self, student: Any, teacher: Any, batch: Mapping[str, Any]) -> Tensor:
        """Sum over rows, mean over neighbouring pairs and entries."""
        flows = range(len(self.pairs) - 1)
        return torch.stack([self.compare(position, student, teacher, batch) for position in flows]).mean()

    def compare(self, position: int, student: Any, teacher: Any, batch: Mapping[str, Any]) -> Tensor:
        """Sum over rows, mean over entries, for the flow from one pair of layers to the next."""
        mask = token_mask(batch)[:, :, None]
        tokens = mask.sum(dim=1, keepdim=True).clamp(min=1)  # (batch, 1, 1)
        here, there = self.states(position, student, teacher), self.states(position + 1, student, teacher)
        ours, theirs = (
            ((first * mask).transpose(1, 2) @ (second * mask)).float() / tokens
            for first, second in zip(here, there, strict=True)
        )  # (batch, hidden, hidden)
        return (ours - theirs).square().mean(dim=(1, 2)).sum()

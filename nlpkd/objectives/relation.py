"""Objectives on how the tokens of a text relate in queries, keys and values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nlpkd.models.layers import LayerSpec
from nlpkd.objectives.base import LayerObjective, attention_heads, token_mask
from nlpkd.objectives.limits import Limit, counts

_HEADS = Limit(lambda heads: heads is None or counts(heads), "a whole number >= 1, or None")


class SelfAttentionRelationLoss(LayerObjective):
    """Kullback-Leibler divergence between self-attention relations of matched layers.

    The queries of all heads side by side, `(batch, seq, width)`, are cut anew into R relation heads Q_a of width d =
    width / R; their relation is softmax(Q_a Q_a' / sqrt(d)), `(batch, R, seq, seq)`; likewise for keys and values. The
    value is the sum over queries, keys and values of the mean over pairs (s, t), relation heads and real tokens i of
    KL(relation_teacher(i, .) || relation_student(i, .)), over real tokens: Wang et al. 2021, "MiniLMv2: Multi-Head
    Self-Attention Relation Distillation for Compressing Pretrained Transformers", arXiv:2012.15828, equations 4 and 5.
    Head counts and widths may differ, as long as R divides both widths. The paper matches one layer of each model, the
    students' last; of a 12-layer teacher it takes the last.

    Args:
        layers: layer map.
        weight: factor of this objective in the sum.
        relation_heads: R; the paper has 48 for base-sized teachers. None: the most, up to 48, that divides both
            widths.

    Raises:
        ValueError: if `relation_heads` is not positive.
    """

    needs = frozenset({"queries", "keys", "values"})
    citation = "Wang et al. (2021), MiniLMv2: Multi-Head Self-Attention Relation Distillation, arXiv:2012.15828"
    settings = ("relation_heads",)
    limits = {**LayerObjective.limits, "relation_heads": _HEADS}
    fixed_by_bind = (*LayerObjective.fixed_by_bind, "relation_heads")

    def __init__(self, layers: LayerSpec = "last", weight: float = 1.0, relation_heads: int | None = None):
        super().__init__(layers, weight)
        self.relation_heads = relation_heads
        self.heads: int | None = None

    def bind(self, student_config: Any, teacher_config: Any) -> None:
        """Resolve the layer map and settle the number of relation heads; see `Objective.bind`."""
        super().bind(student_config, teacher_config)
        widths = {width for config in (student_config, teacher_config) for width in _widths(config, self.needs)}
        common = math.gcd(*widths)
        heads = self.relation_heads or self.default_heads(student_config, teacher_config, common)
        if common % heads:
            raise ValueError(
                f"{type(self).__name__}: {heads} relation heads do not divide the widths "
                f"{sorted(widths)} of {sorted(self.needs)}: choose a divisor of {common}"
            )
        self.heads = heads

    def default_heads(self, student_config: Any, teacher_config: Any, common: int) -> int:
        """Choose the number of relation heads where none was asked for: the most, up to 48, that divides `common`."""
        return max(heads for heads in range(1, 49) if common % heads == 0)

    def count(self, batch: Mapping[str, Any]) -> Tensor:
        """Count real tokens."""
        return token_mask(batch).sum()

    def compare(self, position: int, student: Any, teacher: Any, batch: Mapping[str, Any]) -> Tensor:
        """Sum over real tokens and kinds, mean over relation heads."""
        ours, theirs = self.pairs[position]
        mask = token_mask(batch)
        parts = []
        for kind in sorted(self.needs):
            student_log = self._relation(getattr(student, kind)[ours - 1], mask)  # (batch, R, seq, seq)
            teacher_log = self._relation(getattr(teacher, kind)[theirs - 1], mask)
            per_token = (teacher_log.exp() * (teacher_log - student_log)).sum(dim=-1).mean(dim=1)  # (batch, seq)
            parts.append((per_token * mask).sum())
        return torch.stack(parts).sum()

    def _relation(self, heads: Tensor, mask: Tensor) -> Tensor:
        """Compute the log of the relation among the tokens of vectors `(batch, heads, seq, head)`."""
        joined = heads.transpose(1, 2).flatten(2)  # (batch, seq, width)
        if self.heads is not None and joined.shape[-1] % self.heads:
            # Some families' attention has another width than the config's hidden size says, as MobileBERT's.
            raise ValueError(
                f"{type(self).__name__}: {self.heads} relation heads do not divide a width of "
                f"{joined.shape[-1]}: choose relation_heads that divides it"
            )
        cut = joined.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (batch, R, seq, width / R)
        scores = (cut @ cut.transpose(-1, -2)).float() * cut.shape[-1] ** -0.5
        return scores.masked_fill(mask[:, None, None, :] == 0, torch.finfo(scores.dtype).min).log_softmax(dim=-1)

    def config(self) -> dict[str, Any]:
        """Describe this objective for the run record and the card, with the number of heads once it is settled."""
        return super().config() | {"relation_heads": self.heads or self.relation_heads}


class ValueRelationLoss(SelfAttentionRelationLoss):
    """Kullback-Leibler divergence between value relations of matched layers.

    mean over pairs (s, t), heads and real tokens i of KL between softmax(V V' / sqrt(d))(i, .) of the teacher and of
    the student, `(batch, heads, seq, seq)`: the value relation of MiniLM (Wang et al. 2020, "MiniLM: Deep
    Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers", arXiv:2002.10957, section
    3.2). The paper uses the attention heads; where student and teacher have other numbers of them, `relation_heads`
    cuts the values anew as MiniLMv2 does.

    Args:
        layers: layer map.
        weight: factor of this objective in the sum.
        relation_heads: None: the attention heads where both models have as many, else as in SelfAttentionRelationLoss.
    """

    needs = frozenset({"values"})
    citation = "Wang et al. (2020), MiniLM: Deep Self-Attention Distillation, arXiv:2002.10957"

    def default_heads(self, student_config: Any, teacher_config: Any, common: int) -> int:
        """Choose the attention heads where both models have as many."""
        ours, theirs = attention_heads(student_config), attention_heads(teacher_config)
        return ours if ours == theirs else super().default_heads(student_config, teacher_config, common)


def _widths(config: Any, kinds: frozenset[str]) -> set[int]:
    """Return the widths of a model's queries, keys and values, all heads side by side."""
    heads = attention_heads(config)
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    return {head * (heads if kind == "queries" else shared) for kind in kinds}

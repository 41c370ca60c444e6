"""The contract that every objective keeps, and what they share."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nlpkd.layers import LayerSpec, map_layers

FEATURES = frozenset({"hidden_states", "attentions", "queries", "keys", "values"})
"""Kinds of output that belong to a layer and to tokens."""

KINDS = FEATURES | {"logits", "labels"}
"""All that an objective may need."""


class Objective(nn.Module):
    """One term of the loss, on what student and teacher gave for a batch.

    A subclass says what it `needs`, computes `total` and `count`, and never holds a model. Its value is total / count:
    the trainer divides the total of every micro-batch of every process by the count of the whole optimizer step, so
    that a result does not depend on padding, batch split, number of processes or accumulation.

    Args:
        weight: factor of this objective in the sum, >= 0.

    Raises:
        ValueError: if the weight is negative.
    """

    needs: ClassVar[frozenset[str]]
    citation: ClassVar[str] = ""
    teacher_needed: ClassVar[bool] = True

    def __init__(self, weight: float = 1.0):
        super().__init__()
        if not weight >= 0:
            raise ValueError(f"{type(self).__name__}: weight must be >= 0, got {weight}")
        self.weight = weight

    @property
    def name(self) -> str:
        """The name in logs and records: `ForwardKLLoss` is `forward_kl`."""
        words = re.findall(r"[A-Z]+(?=[A-Z][a-z]|$)|[A-Z][a-z0-9]*", type(self).__name__.removesuffix("Loss"))
        return "_".join(words).lower()

    def bind(self, student_config: Any, teacher_config: Any) -> None:
        """Resolve layers, build projections, and refuse what can't match; called once, by the trainer.

        Args:
            student_config: the student's `PretrainedConfig`, or None for a plain module.
            teacher_config: the teacher's; None without one (cached columns).

        Raises:
            ValueError: if this objective can't work on this pair or task.
        """
        problem_type = getattr(student_config, "problem_type", None)
        if problem_type not in (None, "single_label_classification"):
            raise ValueError(f"{type(self).__name__} is for single-label classification, the task is {problem_type!r}")

    def wants(self) -> tuple[dict[str, frozenset[int]], dict[str, frozenset[int]]]:
        """Say, after `bind`, which layers of student and teacher are needed, by kind."""
        return {}, {}

    @abstractmethod
    def count(self, batch: Mapping[str, Any]) -> Tensor:
        """Count what the mean of this objective runs over in a batch: a float32 scalar, from the batch alone."""

    @abstractmethod
    def total(self, student: Any, teacher: Any, batch: Mapping[str, Any]) -> Tensor:
        """Sum this objective over a batch, unweighted: a float32 scalar.

        Args:
            student: the student's outputs (`CapturedOutput`, or any transformers `ModelOutput`).
            teacher: the teacher's, or None.
            batch: the collated batch: `attention_mask` (batch, seq), `labels` (batch,), ...
        """

    def forward(self, student: Any, teacher: Any, batch: Mapping[str, Any]) -> Tensor:
        """Compute the mean of this objective over one batch, unweighted: a float32 scalar."""
        count = self.count(batch)
        return self.total(student, teacher, batch) / torch.where(count == 0, torch.ones_like(count), count)

    def config(self) -> dict[str, Any]:
        """Describe this objective for the run record and the card."""
        return {"name": self.name, "class": type(self).__name__, "weight": self.weight, "citation": self.citation}


class LayerObjective(Objective):
    """An objective that matches layers of the student with layers of the teacher.

    Args:
        layers: a layer map (`"uniform"`, `"last"`, `"first"`, pairs); see `nlpkd.layers.map_layers`.
        weight: factor of this objective in the sum.
    """

    def __init__(self, layers: LayerSpec = "uniform", weight: float = 1.0):
        super().__init__(weight)
        self.layers = layers
        self.pairs: list[tuple[int, int]] = []

    def bind(self, student_config: Any, teacher_config: Any) -> None:
        """Resolve the layer map; see `Objective.bind`."""
        super().bind(student_config, teacher_config)
        needed = sorted(self.needs & FEATURES)
        for role, config in (("student", student_config), ("teacher", teacher_config)):
            if getattr(config, "num_hidden_layers", None) is None:
                raise ValueError(
                    f"{type(self).__name__} matches {needed} and the {role} has none to give (no model with layers): "
                    "pass a transformers model, or use objectives on logits"
                )
        self.pairs = map_layers(self.layers, student_config.num_hidden_layers, teacher_config.num_hidden_layers)

    def wants(self) -> tuple[dict[str, frozenset[int]], dict[str, frozenset[int]]]:
        """Say which layers are needed, by kind."""
        kinds = self.needs & FEATURES
        student, teacher = (frozenset(side) for side in zip(*self.pairs, strict=True))
        return dict.fromkeys(kinds, student), dict.fromkeys(kinds, teacher)

    def config(self) -> dict[str, Any]:
        """Describe this objective for the run record and the card."""
        return super().config() | {"layers": [list(pair) for pair in self.pairs] or self.layers}


def token_mask(batch: Mapping[str, Any]) -> Tensor:
    """Give 1.0 for every real token and 0.0 for padding, float32 `(batch, seq)`."""
    if "attention_mask" in batch:
        return batch["attention_mask"].float()
    return torch.ones_like(batch["input_ids"], dtype=torch.float32)


def rows(batch: Mapping[str, Any]) -> Tensor:
    """Count the rows of a batch: a float32 scalar."""
    first = next(value for value in batch.values() if isinstance(value, Tensor))
    return torch.tensor(float(first.shape[0]), device=first.device)

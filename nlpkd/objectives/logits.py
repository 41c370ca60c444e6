"""Objectives on logits: gold labels and the teacher's soft targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nlpkd.objectives.base import Objective, rows


class CrossEntropyLoss(Objective):
    """Cross-entropy of the student against the gold labels.

    -log p_student(label), mean over labelled rows (weighted by class where `class_weights` are given, as
    `torch.nn.CrossEntropyLoss` does). Rows with label -100 are left out.

    Args:
        weight: factor of this objective in the sum.
        class_weights: one weight a class, in the order of the label ids.
        label_smoothing: share of the target spread evenly over the classes, 0 <= s < 1 (Szegedy et al. 2016,
            "Rethinking the Inception Architecture for Computer Vision", section 7).

    Raises:
        ValueError: if the smoothing is out of range.
    """

    needs = frozenset({"logits", "labels"})
    teacher_needed = False

    def __init__(
        self, weight: float = 1.0, class_weights: Sequence[float] | None = None, label_smoothing: float = 0.0
    ):
        super().__init__(weight)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        self.label_smoothing = label_smoothing
        self.class_weights: Tensor | None
        weights = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def bind(self, student_config: Any, teacher_config: Any) -> None:
        """Check the number of class weights; see `Objective.bind`."""
        super().bind(student_config, teacher_config)
        labels = getattr(student_config, "num_labels", None)
        if self.class_weights is not None and labels is not None and len(self.class_weights) != labels:
            raise ValueError(f"got {len(self.class_weights)} class weights for {labels} labels: give one a label")

    def count(self, batch: Mapping[str, Any]) -> Tensor:
        """Count labelled rows, by class weight."""
        labels = _labels(batch)
        labelled = labels != -100
        if self.class_weights is None:
            return labelled.sum().float()
        return self.class_weights[labels.clamp(min=0)][labelled].sum()

    def total(self, student: Any, teacher: Any, batch: Mapping[str, Any]) -> Tensor:
        """Sum over labelled rows; student logits `(batch, labels)`."""
        return F.cross_entropy(
            student.logits.float(),
            _labels(batch),
            weight=self.class_weights,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )

    def config(self) -> dict[str, Any]:
        """Describe this objective for the run record and the card."""
        weights = None if self.class_weights is None else self.class_weights.tolist()
        return super().config() | {"class_weights": weights, "label_smoothing": self.label_smoothing}


class ForwardKLLoss(Objective):
    """Forward Kullback-Leibler divergence from the teacher's softened distribution to the student's.

    T^2 * sum_c p_teacher(c) * (log p_teacher(c) - log p_student(c)), both softmax(logits / T), summed over classes,
    mean over all rows, labelled or not. The factor T^2 keeps the gradient's size independent of T (Hinton, Vinyals and
    Dean 2015, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, section 2). They minimise the
    cross-entropy with the soft targets; the divergence has the same gradient and is 0 for a perfect student.

    Args:
        temperature: T > 0.
        weight: factor of this objective in the sum.

    Raises:
        ValueError: if the temperature is not positive.
    """

    needs = frozenset({"logits"})
    citation = "Hinton, Vinyals and Dean (2015), Distilling the Knowledge in a Neural Network, arXiv:1503.02531"

    def __init__(self, temperature: float = 2.0, weight: float = 1.0):
        super().__init__(weight)
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, got {temperature}")
        self.temperature = temperature

    def count(self, batch: Mapping[str, Any]) -> Tensor:
        """Count rows."""
        return rows(batch)

    def total(self, student: Any, teacher: Any, batch: Mapping[str, Any]) -> Tensor:
        """Sum over rows and classes; both logits `(batch, labels)`."""
        student_log = (student.logits.float() / self.temperature).log_softmax(dim=-1)
        teacher_log = (teacher.logits.float() / self.temperature).log_softmax(dim=-1)
        return F.kl_div(student_log, teacher_log, reduction="sum", log_target=True) * self.temperature**2

    def config(self) -> dict[str, Any]:
        """Describe this objective for the run record and the card."""
        return super().config() | {"temperature": self.temperature}


def _labels(batch: Mapping[str, Any]) -> Tensor:
    if "labels" not in batch:
        raise ValueError("the batch has no labels, which CrossEntropyLoss needs: give a labelled dataset, or drop it")
    return batch["labels"]

"""Objectives on hard labels: gold ones, and the teacher's decisions."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from nlpkd.objectives.base import Objective, labels_of
from nlpkd.objectives.limits import Limit, numbers
from nlpkd.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL, is_unlabelled

GivenWeights: TypeAlias = Sequence[float] | Mapping[str, float] | None
"""Class weights in the order of the label ids, or by name."""


class CrossEntropyLoss(Objective):
    """Cross-entropy of the student against the gold labels.

    -log p_student(label), mean over labelled rows (weighted by class where `class_weights` are given, as
    `torch.nn.CrossEntropyLoss` does). Rows that `nlpkd.tasks.is_unlabelled` tells are left out. Multi-label tasks have
    the binary cross-entropy of each label, mean over labels and labelled rows (class weights multiply the positive
    part, as `pos_weight` of `torch.nn.BCEWithLogitsLoss`); regression the squared error, mean over labelled rows.

    Args:
        weight: factor of this objective in the sum.
        class_weights: one weight a class: a list in the order of the student's label ids, a mapping from their names,
            or `TextClassificationData.class_weights`, which know their names.
        label_smoothing: share of the target spread evenly over the classes, 0 <= s < 1 (Szegedy et al. 2016,
            "Rethinking the Inception Architecture for Computer Vision", section 7).

    Raises:
        ValueError: if the smoothing is out of range, or class weights are no numbers, negative or all 0.
    """

    needs = frozenset({"logits", "labels"})
    teacher_needed = False
    tasks = frozenset({SINGLE_LABEL, MULTI_LABEL, REGRESSION})
    limits: ClassVar[Mapping[str, Limit]] = {
        **Objective.limits, "label_smoothing": numbers(lambda share: 0 <= share < 1, "in [0, 1)"),
    }  # fmt: skip
    fixed_by_bind = ("class_weights",)

    def __init__(self, weight: float = 1.0, class_weights: GivenWeights = None, label_smoothing: float = 0.0):
        super().__init__(weight)
        self._run_smoothing = 0.0
        self.label_smoothing = label_smoothing
        self._class_weights: Tensor | None
        self.register_buffer("_class_weights", None, persistent=False)
        self._given: GivenWeights = None
        self.weigh_classes(class_weights)

    @property
    def label_smoothing(self) -> float:
        """The share of the target that is spread: its own, or where that is 0 that of the run."""
        return self._own_smoothing or self._run_smoothing

    @label_smoothing.setter
    def label_smoothing(self, label_smoothing: float) -> None:
        self._own_smoothing = label_smoothing

    def smooth_by_run(self, label_smoothing: float) -> None:
        """Set what holds in a run where this has no label smoothing of its own, `label_smoothing_factor`.

        Raises:
            ValueError: if it is out of range.
        """
        limit = self.limits["label_smoothing"]
        if not limit.allows(label_smoothing):
            raise ValueError(f"label_smoothing_factor must be {limit.words}, got {label_smoothing!r:.80}")
        self._run_smoothing = label_smoothing

    @property
    def class_weights(self) -> Tensor | None:
        """One weight a class, in the student's order once it is known; None weighs all alike."""
        return self._class_weights

    @class_weights.setter
    def class_weights(self, class_weights: GivenWeights) -> None:
        self.weigh_classes(class_weights)

    def weigh_classes(self, class_weights: GivenWeights) -> None:
        """Set the class weights; those that have names are put in the student's order when it is known."""
        if class_weights is None:
            self._given, self._class_weights = None, None
            return
        names = list(class_weights) if isinstance(class_weights, Mapping) else []
        values = list(class_weights.values()) if isinstance(class_weights, Mapping) else class_weights
        try:
            weights = torch.as_tensor(values, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError):
            weights = torch.empty(0)
        fit = weights.ndim == 1 and weights.isfinite().all() and (weights >= 0).all() and weights.any()
        if not fit or not all(isinstance(name, str) for name in names):
            raise ValueError(
                f"class_weights={class_weights!s:.80}: give one number a class, each at least 0 and not all 0, as a "
                "list or as a mapping from their names ('balanced' is of distill and train_teacher)"
            )
        self._given, self._class_weights = class_weights, weights

    def again(self, **settings: Any) -> Objective:
        """Make the same anew, with class weights and smoothing as they were given; see `Objective.again`."""
        return super().again(**{"class_weights": self._given, "label_smoothing": self._own_smoothing} | settings)

    def bind(self, student_config: Any, teacher_config: Any) -> None:
        """Put the class weights in the student's order and check their number; see `Objective.bind`."""
        super().bind(student_config, teacher_config)
        labels = getattr(student_config, "num_labels", None)
        if isinstance(self._given, Mapping):
            # Here, since it brings datasets, without which the presets are listed.
            from nlpkd.data.labels.classes import Classes

            classes = Classes.of_config(student_config)
            if classes is None:
                raise ValueError(
                    f"class_weights are of {sorted(self._given)}, and the student's config names no classes: give a "
                    "list in the order of its label ids"
                )
            names = list(classes.names)
            if sorted(self._given) != sorted(names):
                raise ValueError(f"class_weights are of {sorted(self._given)}, and the student's classes are {names}")
            self._class_weights = torch.tensor([self._given[name] for name in names], dtype=torch.float32)
        elif in_order_of := getattr(self._given, "in_order_of", None):
            # Weights that know their classes, as those of loaded data do.
            self._class_weights = torch.tensor(in_order_of(student_config), dtype=torch.float32)
        if self.class_weights is not None and labels is not None and len(self.class_weights) != labels:
            raise ValueError(f"got {len(self.class_weights)} class weights for {labels} labels: give one a label")
        if self.task == REGRESSION and (self.class_weights is not None or self.label_smoothing):
            raise ValueError("class_weights and label_smoothing are for classes, the task is regression: drop them")

    def count(self, batch: Mapping[str, Any]) -> Tensor:
        """Count labelled rows, by class weight."""
        labelled = self._labelled(batch)
        if self.class_weights is None or self.task != SINGLE_LABEL:
            return labelled.sum().float()
        return self.class_weights[labels_of(batch, self).clamp(min=0)][labelled].sum()

    def total(self, student: Any, teacher: Any, batch: Mapping[str, Any]) -> Tensor:
        """Sum over labelled rows; student logits `(batch, labels)`."""
        logits, labels = student.logits.float(), labels_of(batch, self)
        if self.task == SINGLE_LABEL:
            return F.cross_entropy(
                logits, labels, weight=self.class_weights, reduction="sum", label_smoothing=self.label_smoothing
            )
        labelled = self._labelled(batch)
        labels = labels.float().reshape(logits.shape)
        # Filled before the loss, since a NaN times zero stays NaN in the gradient.
        labels = torch.where(labelled[:, None], labels, 0.0)
        if self.task == REGRESSION:
            errors = (logits - labels).square()
        else:
            labels = labels * (1 - self.label_smoothing) + self.label_smoothing / 2
            errors = F.binary_cross_entropy_with_logits(
                logits, labels, reduction="none", pos_weight=self.class_weights
            )
        return (errors.mean(dim=-1) * labelled).sum()

    def _labelled(self, batch: Mapping[str, Any]) -> Tensor:
        return ~is_unlabelled(labels_of(batch, self))

    def config(self) -> dict[str, Any]:
        """Describe this objective for the run record and the card."""
        weights = None if self.class_weights is None else self.class_weights.tolist()
        return super().config() | {"class_weights": weights, "label_smoothing": self.label_smoothing}


def with_gold_settings(objectives: Sequence[Objective], class_weights: GivenWeights = None) -> list[Objective]:
    """Apply a run's class weights to the cross-entropies that have none of their own.

    Args:
        objectives: not bound yet; left as they are.
        class_weights: one weight a class, as `CrossEntropyLoss` takes them.

    Returns:
        The objectives; in place of a cross-entropy that takes the weights a copy that has them.

    Raises:
        ValueError: if the weights are out of range.
    """
    applied = []
    for objective in objectives:
        if class_weights is not None and isinstance(objective, CrossEntropyLoss) and objective.class_weights is None:
            objective = copy.deepcopy(objective)
            objective.weigh_classes(class_weights)
        applied.append(objective)
    return applied


class TeacherLabelLoss(Objective):
    """Cross-entropy of the student against the teacher's decision: hard distillation.

    -log p_student(argmax_c p_teacher(c)), mean over all rows, labelled or not; rows of which the teacher is less sure
    than `threshold` add 0. The "hard-label distillation" of Touvron et al. 2021, "Training data-efficient image
    transformers and distillation through attention", arXiv:2012.12877, section 4; with a threshold, the pseudo-labels
    of FixMatch (Sohn et al. 2020, arXiv:2001.07685, equation 4, where the mean is over all rows too). Multi-label
    tasks have the binary form, mean over labels, with a decision and a confidence for each label: a teacher with
    `config.thresholds` gives the labels above them, as `load(...)(text, decide=True)` and reports do. Several teachers
    go by `TeacherEnsemble.thresholds`. Columns kept without their teacher have the threshold 0.5.

    Args:
        weight: factor of this objective in the sum.
        threshold: least probability that the teacher must give its decision, 0 <= threshold <= 1.

    Raises:
        ValueError: if the threshold is out of range.
    """

    needs = frozenset({"logits"})
    citation = "Touvron et al. (2021), Training data-efficient image transformers & distillation, arXiv:2012.12877"
    settings = ("threshold",)
    limits: ClassVar[Mapping[str, Limit]] = {
        **Objective.limits, "threshold": numbers(lambda least: 0 <= least <= 1, "in [0, 1]"),
    }  # fmt: skip
    tasks = frozenset({SINGLE_LABEL, MULTI_LABEL})

    def __init__(self, weight: float = 1.0, threshold: float = 0.0):
        super().__init__(weight)
        self.threshold = threshold

    def total(self, student: Any, teacher: Any, batch: Mapping[str, Any]) -> Tensor:
        """Sum over rows; both logits `(batch, labels)`."""
        ours, theirs = student.logits.float(), teacher.logits.float()
        if self.task == MULTI_LABEL:
            least = getattr(teacher, "least_logits", None)
            given = theirs > (0.0 if least is None else least)
            sure = torch.where(given, theirs, -theirs).sigmoid() >= self.threshold
            errors = F.binary_cross_entropy_with_logits(ours, given.float(), reduction="none")
            return (errors * sure).mean(dim=-1).sum()
        confidence, decision = theirs.softmax(dim=-1).max(dim=-1)
        errors = F.cross_entropy(ours, decision, reduction="none")
        return (errors * (confidence >= self.threshold)).sum()

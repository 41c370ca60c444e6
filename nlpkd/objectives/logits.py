"""Objectives on the teacher's soft targets: divergences between the two distributions over classes, and logits."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from nlpkd.objectives.base import Objective, labels_of
from nlpkd.objectives.limits import BOOL, NOT_NEGATIVE, Limit, numbers, one_of
from nlpkd.objectives.temperature import Temperature, TemperatureSetting
from nlpkd.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL, is_unlabelled

logger = logging.getLogger(__name__)


class SoftTargetObjective(Objective):
    """A divergence between the softened distributions of student and teacher: T^2 * D, mean over all rows.

    Both distributions are softmax(logits / T); T^2 keeps the gradient's size independent of T (Hinton et al. 2015).
    Multi-label tasks have a distribution over yes and no for each label, and the sum over labels.

    Args:
        temperature: T > 0, or a `Temperature` that moves.
        weight: factor of this objective in the sum.
        standardize: replace each row's logits by their z-score, over the classes with the unbiased standard deviation,
            before the temperature (Sun et al. 2024, "Logit Standardization in Knowledge Distillation",
            arXiv:2403.01731, equation 9): the student need not copy the teacher's range. Of two classes only the sign
            is left, and a warning says so.
        teacher_errors: what to do where the teacher's first class is not the gold label: `"keep"` learns it anyway,
            `"skip"` counts the row as 0, `"shift"` swaps the teacher's logits of the two classes (the probability
            shift of Wen, Lai and Qian 2019, "Preparing Lessons: Improve Knowledge Distillation with Better
            Supervision", arXiv:1911.07471). Unlabelled rows are kept.
        confidence_weighting: multiply each row by the teacher's highest probability (at T = 1); in multi-label tasks
            by the mean over labels of the probability of yes or no, whichever is likelier.

    Raises:
        ValueError: if a setting is out of range.
    """

    temperature = TemperatureSetting()
    settings: ClassVar[tuple[str, ...]] = ("temperature", "standardize", "teacher_errors", "confidence_weighting")
    limits: ClassVar[Mapping[str, Limit]] = {
        **Objective.limits,
        "standardize": BOOL,
        "teacher_errors": one_of("keep", "skip", "shift"),
        "confidence_weighting": BOOL,
    }
    tasks = frozenset({SINGLE_LABEL, MULTI_LABEL})

    def __init__(
        self,
        temperature: float | Temperature = 2.0,
        weight: float = 1.0,
        *,
        standardize: bool = False,
        teacher_errors: str = "keep",
        confidence_weighting: bool = False,
    ):
        super().__init__(weight)
        self.temperature = temperature
        self.standardize = standardize
        self.teacher_errors = teacher_errors
        self.confidence_weighting = confidence_weighting

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Logits, and gold labels where the teacher's errors are not kept; see `Objective`."""
        return frozenset({"logits"}) if self.teacher_errors == "keep" else frozenset({"logits", "labels"})

    @property
    def couples_rows(self) -> bool:  # type: ignore[override]
        """Whether the temperature of a row depends on the rows beside it; see `Objective`."""
        return self.temperature.couples_rows

    def bind(self, student_config: Any, teacher_config: Any) -> None:
        """Refuse options that the task has no meaning for; see `Objective.bind`."""
        super().bind(student_config, teacher_config)
        if self.task == MULTI_LABEL and (self.standardize or self.teacher_errors != "keep"):
            raise ValueError(
                f"{type(self).__name__}: standardize and teacher_errors={self.teacher_errors!r} are for one label a "
                "row, the task is multi-label: drop them"
            )
        if self.standardize and getattr(student_config, "num_labels", None) == 2:
            logger.warning(
                "%s: of two classes logit standardisation keeps the sign alone (both z-scores are +-0.71): the "
                "teacher's confidence is lost. standardize=False learns more here.",
                type(self).__name__,
            )

    def total(self, student: Any, teacher: Any, batch: Mapping[str, Any]) -> Tensor:
        """Sum over rows and classes; both logits `(batch, labels)`."""
        ours, theirs = student.logits.float(), teacher.logits.float()
        if self.teacher_errors == "shift":
            theirs = _shifted(theirs, labels_of(batch, self))
        temperature = self.temperature.of(ours, theirs, self.progress)
        scores = [_z_scores(logits) if self.standardize else logits for logits in (ours, theirs)]
        per_row = self.divergence(scores[0] / temperature, scores[1] / temperature, batch)  # (batch,)
        if isinstance(temperature, Tensor):
            temperature = temperature.squeeze(-1)
        return (per_row * temperature**2 * self._row_weights(theirs, batch)).sum()

    @abstractmethod
    def divergence(self, student: Tensor, teacher: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Compare softened logits `(batch, labels)` row by row: `(batch,)`."""

    def log_distributions(self, *logits: Tensor) -> list[Tensor]:
        """Compute log-probabilities, `(batch, classes)`, or `(batch, labels, 2)` for multi-label tasks."""
        if self.task == MULTI_LABEL:
            logits = tuple(torch.stack([each, torch.zeros_like(each)], dim=-1) for each in logits)
        return [each.log_softmax(dim=-1) for each in logits]

    def _row_weights(self, teacher: Tensor, batch: Mapping[str, Any]) -> Tensor | float:
        weights: Tensor | float = 1.0
        if self.confidence_weighting and self.task == MULTI_LABEL:
            weights = teacher.abs().sigmoid().mean(dim=-1)
        elif self.confidence_weighting:
            weights = teacher.softmax(dim=-1).amax(dim=-1)
        if self.teacher_errors == "skip":
            labels = labels_of(batch, self)
            weights = weights * ((teacher.argmax(dim=-1) == labels) | is_unlabelled(labels))
        return weights


class ForwardKLLoss(SoftTargetObjective):
    """Forward Kullback-Leibler divergence from the teacher's softened distribution to the student's.

    T^2 * sum_c p_teacher(c) * (log p_teacher(c) - log p_student(c)), both softmax(logits / T), summed over classes,
    mean over all rows, labelled or not. The factor T^2 keeps the gradient's size independent of T (Hinton, Vinyals and
    Dean 2015, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, section 2). They minimise the
    cross-entropy with the soft targets; the divergence has the same gradient and is 0 for a perfect student.

    Args:
        temperature: see `SoftTargetObjective`, as for the other arguments.
        weight: factor of this objective in the sum.
        standardize: learn from z-scores of the logits.
        teacher_errors: `"keep"`, `"skip"` or `"shift"` rows that the teacher gets wrong.
        confidence_weighting: weigh rows by the teacher's confidence.
    """

    citation = "Hinton, Vinyals and Dean (2015), Distilling the Knowledge in a Neural Network, arXiv:1503.02531"

    def divergence(self, student: Tensor, teacher: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Compare row by row; see `SoftTargetObjective`."""
        return _kl(*reversed(self.log_distributions(student, teacher)))


class ReverseKLLoss(SoftTargetObjective):
    """Reverse Kullback-Leibler divergence: the student avoids what the teacher thinks unlikely.

    T^2 * sum_c p_student(c) * (log p_student(c) - log p_teacher(c)), both softmax(logits / T), summed over classes,
    mean over all rows: the direction of Gu et al. 2024, "MiniLLM: Knowledge Distillation of Large Language Models",
    arXiv:2306.08543, equation 1, here for one distribution over classes.

    Args:
        temperature: see `SoftTargetObjective`, as for the other arguments.
        weight: factor of this objective in the sum.
        standardize: learn from z-scores of the logits.
        teacher_errors: `"keep"`, `"skip"` or `"shift"` rows that the teacher gets wrong.
        confidence_weighting: weigh rows by the teacher's confidence.
    """

    citation = "Gu et al. (2024), MiniLLM: Knowledge Distillation of Large Language Models, arXiv:2306.08543"

    def divergence(self, student: Tensor, teacher: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Compare row by row; see `SoftTargetObjective`."""
        return _kl(*self.log_distributions(student, teacher))


class JSDLoss(SoftTargetObjective):
    """Generalised Jensen-Shannon divergence: between forward and reverse, and bounded.

    T^2 * (b * KL(p_teacher || m) + (1 - b) * KL(p_student || m)), m = b * p_teacher + (1 - b) * p_student, both
    softmax(logits / T), summed over classes, mean over all rows: Agarwal et al. 2024, "On-Policy Distillation of
    Language Models: Learning from Self-Generated Mistakes", arXiv:2306.13649, equation 1. b = 1/2 is the
    Jensen-Shannon divergence.

    Args:
        temperature: see `SoftTargetObjective`, as for the options.
        weight: factor of this objective in the sum.
        beta: b, 0 < b < 1.
        **options: `standardize`, `teacher_errors`, `confidence_weighting`.

    Raises:
        ValueError: if b is out of range.
    """

    citation = "Agarwal et al. (2024), On-Policy Distillation of Language Models, arXiv:2306.13649"
    settings = (*SoftTargetObjective.settings, "beta")
    limits = {
        **SoftTargetObjective.limits,
        "beta": numbers(lambda b: 0 < b < 1, "between 0 and 1 (ForwardKLLoss and ReverseKLLoss are its ends)"),
    }

    def __init__(
        self, temperature: float | Temperature = 2.0, weight: float = 1.0, *, beta: float = 0.5, **options: Any
    ):
        super().__init__(temperature, weight, **options)
        self.beta = beta

    def divergence(self, student: Tensor, teacher: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Compare row by row; see `SoftTargetObjective`."""
        ours, theirs = self.log_distributions(student, teacher)
        mixture = torch.logaddexp(theirs + math.log(self.beta), ours + math.log1p(-self.beta))
        return self.beta * _kl(theirs, mixture) + (1 - self.beta) * _kl(ours, mixture)


class DecoupledKDLoss(SoftTargetObjective):
    """Decoupled knowledge distillation: the target class, and the others among themselves, weighed apart.

    T^2 * (alpha * KL(b_teacher || b_student) + beta * KL(q_teacher || q_student)), b = (p(target), 1 - p(target)), q
    the distribution over the other classes, both from softmax(logits / T), mean over all rows: Zhao et al. 2022,
    "Decoupled Knowledge Distillation", arXiv:2203.08679, equation 7. The target is the gold label, of unlabelled rows
    the teacher's first class. Of two classes there is one other class, q is 1 and its part 0; a warning says so.

    Args:
        temperature: see `SoftTargetObjective`, as for the options.
        weight: factor of this objective in the sum.
        alpha: weight of the target class's part, >= 0.
        beta: weight of the other classes' part, >= 0.
        **options: `standardize`, `teacher_errors`, `confidence_weighting`.

    Raises:
        ValueError: if alpha or beta is negative.
    """

    needs = frozenset({"logits", "labels"})
    citation = "Zhao et al. (2022), Decoupled Knowledge Distillation, arXiv:2203.08679"
    settings = (*SoftTargetObjective.settings, "alpha", "beta")
    limits = {**SoftTargetObjective.limits, "alpha": NOT_NEGATIVE, "beta": NOT_NEGATIVE}
    tasks = frozenset({SINGLE_LABEL})

    def __init__(
        self,
        temperature: float | Temperature = 2.0,
        weight: float = 1.0,
        *,
        alpha: float = 1.0,
        beta: float = 2.0,
        **options: Any,
    ):
        super().__init__(temperature, weight, **options)
        self.alpha, self.beta = alpha, beta

    def bind(self, student_config: Any, teacher_config: Any) -> None:
        """Warn where there are two classes; see `Objective.bind`."""
        super().bind(student_config, teacher_config)
        if getattr(student_config, "num_labels", None) == 2:
            logger.warning(
                "DecoupledKDLoss: of two classes the part of the other classes is 0, and beta does nothing: it is "
                "alpha * ForwardKLLoss here."
            )

    def divergence(self, student: Tensor, teacher: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Compare row by row; see `SoftTargetObjective`."""
        labels = labels_of(batch, self)
        target = torch.where(is_unlabelled(labels), teacher.argmax(dim=-1), labels)
        hit = F.one_hot(target, teacher.shape[-1]).bool()
        binary, others = [], []
        for logits in (teacher, student):
            rest = logits.masked_fill(hit, torch.finfo(logits.dtype).min)  # (batch, labels)
            pair = torch.stack([logits[hit], rest.logsumexp(dim=-1)], dim=-1)  # (batch, 2)
            binary.append(pair.log_softmax(dim=-1))
            others.append(rest.log_softmax(dim=-1))
        return self.alpha * _kl(*binary) + self.beta * _kl(*others)


class LogitMSELoss(Objective):
    """Squared error between logits.

    mean over all rows and labels of (z_student - z_teacher)^2, `(batch, labels)`: Ba and Caruana 2014, "Do Deep Nets
    Really Need to be Deep?", arXiv:1312.6184, equation 1, where it is half the sum over labels. The soft targets of
    regression are just these. Unlike a divergence it sees a constant added to all of a row's logits.

    Args:
        weight: factor of this objective in the sum.
    """

    needs = frozenset({"logits"})
    citation = "Ba and Caruana (2014), Do Deep Nets Really Need to be Deep?, arXiv:1312.6184"
    tasks = frozenset({SINGLE_LABEL, MULTI_LABEL, REGRESSION})

    def total(self, student: Any, teacher: Any, batch: Mapping[str, Any]) -> Tensor:
        """Sum over rows, mean over labels; both logits `(batch, labels)`."""
        return (student.logits.float() - teacher.logits.float()).square().mean(dim=-1).sum()


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities, `(batch, ..., classes)`, summed over all but the rows: `(batch,)`."""
    return (p.exp() * (p - q)).flatten(1).sum(dim=1)


def _z_scores(logits: Tensor) -> Tensor:
    return (logits - logits.mean(dim=-1, keepdim=True)) / (logits.std(dim=-1, keepdim=True) + 1e-7)


def _shifted(teacher: Tensor, labels: Tensor) -> Tensor:
    """Swap the logits of the first class and of the gold label."""
    first = teacher.argmax(dim=-1)
    gold = torch.where(is_unlabelled(labels), first, labels)
    index = torch.arange(teacher.shape[-1], device=teacher.device).expand_as(teacher)
    index = index.scatter(1, first[:, None], gold[:, None]).scatter(1, gold[:, None], first[:, None])
    return teacher.gather(1, index)

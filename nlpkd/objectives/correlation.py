"""Objectives on how student and teacher rank: correlations of their distributions."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from nlpkd.objectives.base import Objective
from nlpkd.objectives.limits import NOT_NEGATIVE, Limit
from nlpkd.objectives.temperature import Temperature, TemperatureSetting
from nlpkd.tasks import SINGLE_LABEL

logger = logging.getLogger(__name__)


class DISTLoss(Objective):
    """One minus the correlation of student and teacher, over the classes of a row and over the rows of a class.

    T^2 * (beta * mean_i (1 - r(p_student[i, :], p_teacher[i, :])) + gamma * mean_c (1 - r(p_student[:, c],
    p_teacher[:, c]))), p = softmax(logits / T), `(batch, labels)`: Huang et al. 2022, "Knowledge Distillation from A
    Stronger Teacher", arXiv:2205.10536, equations 8 to 10. The second part runs over the micro-batch, and one row
    alone has none. Of two classes the first part carries no information (r is +-1) and is left out; a warning says so.

    Args:
        temperature: T > 0, or a `Temperature` that moves; the paper has 1 on large data.
        weight: factor of this objective in the sum.
        beta: weight of the part between classes, >= 0.
        gamma: weight of the part within classes, >= 0.

    Raises:
        ValueError: if beta or gamma is negative.
    """

    needs = frozenset({"logits"})
    citation = "Huang et al. (2022), Knowledge Distillation from A Stronger Teacher, arXiv:2205.10536"
    settings = ("temperature", "beta", "gamma")
    limits: ClassVar[Mapping[str, Limit]] = {**Objective.limits, "beta": NOT_NEGATIVE, "gamma": NOT_NEGATIVE}
    tasks = frozenset({SINGLE_LABEL})
    couples_rows = True
    temperature = TemperatureSetting()

    def __init__(
        self,
        temperature: float | Temperature = 1.0,
        weight: float = 1.0,
        *,
        beta: float = 1.0,
        gamma: float = 1.0,
    ):
        super().__init__(weight)
        self.temperature = temperature
        self.beta, self.gamma = beta, gamma

    def bind(self, student_config: Any, teacher_config: Any) -> None:
        """Warn where there are two classes; see `Objective.bind`."""
        super().bind(student_config, teacher_config)
        if getattr(student_config, "num_labels", None) == 2:
            logger.warning(
                "DISTLoss: of two classes the correlation over classes is always +-1 and carries no information: only "
                "the part over the rows of a class (gamma) is used."
            )

    def total(self, student: Any, teacher: Any, batch: Mapping[str, Any]) -> Tensor:
        """Multiply the value on this batch by its rows; both logits `(batch, labels)`."""
        ours, theirs = student.logits.float(), teacher.logits.float()
        temperature = self.temperature.of(ours, theirs, self.progress)
        ours, theirs = ((logits / temperature).softmax(dim=-1) for logits in (ours, theirs))
        # The gradient's size is held independent of T by the batch's mean T where each row has its own.
        factor = temperature**2 if isinstance(temperature, float | int) else temperature.square().mean()
        value = ours.sum() * 0.0
        if ours.shape[1] > 2:
            value = value + self.beta * (1 - _correlation(ours, theirs)).mean()
        if len(ours) > 1:
            value = value + self.gamma * (1 - _correlation(ours.T, theirs.T)).mean()
        return value * factor * len(ours)


def _correlation(first: Tensor, second: Tensor) -> Tensor:
    """Compute Pearson's correlation of each row, `(rows, columns)` -> `(rows,)`."""
    first, second = (each - each.mean(dim=-1, keepdim=True) for each in (first, second))
    norms = first.norm(dim=-1) * second.norm(dim=-1)
    return (first * second).sum(dim=-1) / norms.clamp(min=1e-12)

"""Objectives that a discriminator judges."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nlpkd.models.layers import LayerSpec
from nlpkd.objectives.examples import ExampleObjective
from nlpkd.objectives.limits import NOT_NEGATIVE, POSITIVE_INT


class AdversarialLoss(ExampleObjective):
    """A discriminator learns to tell student from teacher, and the student to be taken for the teacher.

    mean over rows of -log D(x_teacher) - log(1 - D(x_student)), D a perceptron of one hidden layer on one vector a
    text, `(batch, width)`. Minimising it trains D; on its way to the student the gradient is turned round and
    multiplied by `reversal`, so that one backward pass trains both: Ganin and Lempitsky 2015, "Unsupervised Domain
    Adaptation by Backpropagation", arXiv:1409.7495, section 3; adversarial distillation is Xu, Hsu and Huang 2018,
    "Training Shallow and Thin Networks for Acceleration via Knowledge Distillation with Conditional Adversarial
    Networks", arXiv:1709.00513. A discriminator that can't tell them apart gives 2 log 2. Where the widths differ, the
    student's vector is projected first, and the projection is trained against D too.

    Args:
        layers: layer map for `on="hidden_states"`.
        weight: factor of this objective in the sum; it scales both sides.
        on: `"hidden_states"` (the first token's, of a decoder the last's) or `"logits"`.
        reversal: factor of the turned gradient, >= 0.
        width: of the discriminator's hidden layer.

    Raises:
        ValueError: if reversal is negative or the width not positive.
    """

    citation = "Xu, Hsu and Huang (2018), Training Shallow and Thin Networks ..., arXiv:1709.00513"
    settings = (*ExampleObjective.settings, "reversal", "width")
    limits = {**ExampleObjective.limits, "reversal": NOT_NEGATIVE, "width": POSITIVE_INT}
    fixed_by_bind = (*ExampleObjective.fixed_by_bind, "width")

    def __init__(
        self,
        layers: LayerSpec = "last",
        weight: float = 1.0,
        on: str = "hidden_states",
        reversal: float = 1.0,
        width: int = 128,
    ):
        super().__init__(layers, weight, on)
        self.reversal, self.width = reversal, width
        self.projection: nn.Module = nn.Identity()
        self.discriminator: nn.Module = nn.Identity()

    def bind(self, student_config: Any, teacher_config: Any) -> None:
        """Build the discriminator; see `Objective.bind`."""
        super().bind(student_config, teacher_config)
        ours, theirs = self.widths(student_config, teacher_config)
        self.projection = nn.Linear(ours, theirs) if ours != theirs else nn.Identity()
        # Norms keep the two sides on one scale, so that D must look at more than the vectors' length.
        self.discriminator = nn.Sequential(
            nn.LayerNorm(theirs), nn.Linear(theirs, self.width), nn.GELU(), nn.Linear(self.width, 1)
        )

    def relate(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Sum over rows."""
        student = _Reversal.apply(self.projection(student).float(), self.reversal)
        ours, theirs = (self.discriminator(vectors).float() for vectors in (student, teacher))  # (batch, 1)
        return F.softplus(-theirs).sum() + F.softplus(ours).sum()


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, vectors: Tensor, factor: float) -> Tensor:
        context.factor = factor
        return vectors.view_as(vectors)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient * -context.factor, None

"""The loss of a training: its objectives weighed together, and a loss function of the user's own beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import SequenceClassifierOutput

from nlpkd.models.capture import CapturedOutput
from nlpkd.objectives.objective_set import ObjectiveSet
from nlpkd.tasks import UNLABELLED


class DistillationLoss:
    """The weighted sum of total / count over all objectives, on one micro-batch.

    Args:
        objectives: bound to student and teacher.
        own: `compute_loss_func` of `Trainer`, which is called with the student's logits, the labels and the number of
            labelled rows, and added with weight 1; None without one.
        device: where counts of no objectives are made.
    """

    def __init__(self, objectives: ObjectiveSet, own: Callable[..., Tensor] | None, device: torch.device):
        self.objectives, self.own, self.device = objectives, own, device

    @property
    def names(self) -> list[str]:
        """The parts by name."""
        return self.objectives.names + ["compute_loss_func"] * (self.own is not None)

    def counts(self, batch: Mapping[str, Any]) -> Tensor:
        """Count what each part's mean runs over in a collated batch: `(parts,)`."""
        counts = self.objectives.counts(batch) if len(self.objectives) else torch.zeros(0, device=self.device)
        if self.own is not None:
            counts = torch.cat([counts, (batch["labels"] != UNLABELLED).sum()[None]])
        return counts

    def __call__(
        self,
        student: CapturedOutput,
        teacher: CapturedOutput | None,
        batch: Mapping[str, Any],
        counts: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute the loss on one micro-batch.

        Args:
            student: the student's outputs.
            teacher: the teacher's, if the objectives need them.
            batch: the collated batch.
            counts: of each part over the whole optimizer step, `(parts,)`; None for the mean over this batch.

        Returns:
            The weighted sum, a scalar, and the parts unweighted, `(parts,)`.
        """
        counts = self.counts(batch) if counts is None else counts
        of_objectives = counts[: len(self.objectives)]
        parts = self.objectives.parts(student, teacher, batch, of_objectives)
        loss: Any = self.objectives.weigh(parts, batch, of_objectives)
        if self.own is not None:
            outputs = SequenceClassifierOutput(logits=student.logits)
            parts.append(self.own(outputs, batch.get("labels"), num_items_in_batch=counts[-1]))
            loss = loss + parts[-1]
        return loss, torch.stack(parts)

"""Several teachers as one: the average of what they say, whatever their families, tokenizers and label orders."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nlpkd.config import check_ensemble
from nlpkd.data.labels.classes import thresholds_of
from nlpkd.models.capture import Capture
from nlpkd.models.structure import unwrapped
from nlpkd.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL, task_of


class TeacherEnsemble(nn.Module):
    """Several teachers as one module that gives logits for a collated batch.

    With `average="probabilities"` these are the logarithm of the weighted mean of softmax(logits), at temperature 1
    whatever the objectives' temperature; of a multi-label task the logit of the weighted mean of sigmoid(logits). A
    teacher that is sure counts for more than in the weighted mean of `average="logits"`, and the scale of a teacher's
    logits for less. The values of a regression are averaged either way.

    Attributes:
        members: the teachers.
        captures: for each, what runs it on the columns that it reads.
        orders: for each, order[k], its index of the student's label k; None where nothing is known.
        task: the problem type, by the first teacher whose config says it.

    Args:
        teachers: one or more models that give as many logits.
        weights: one a teacher, >= 0, of which only the ratios count; equal ones if None.
        average: `"probabilities"` or `"logits"`.

    Raises:
        ValueError: if there is no teacher, they have other numbers of labels, or average or weights are out of range.
    """

    weights: Tensor

    def __init__(
        self, teachers: Sequence[nn.Module], weights: Sequence[float] | None = None, average: str = "probabilities"
    ):
        super().__init__()
        if not teachers:
            raise ValueError("there is no teacher in the list: give at least one model")
        check_ensemble(average, weights)
        if weights is not None and len(weights) != len(teachers):
            raise ValueError(f"there are {len(weights)} ensemble_weights for {len(teachers)} teachers: give one each")
        _refuse_other_outputs(teachers)
        self.average = average
        self.members = nn.ModuleList([unwrapped(each, "teacher") for each in teachers])
        given = torch.tensor([1.0] * len(teachers) if weights is None else [float(weight) for weight in weights])
        self.register_buffer("weights", given / given.sum())
        self.task = next(filter(None, (task_of(getattr(each, "config", None)) for each in teachers)), SINGLE_LABEL)
        self.orders: list[list[int] | None] = [None] * len(teachers)
        self.read([""] * len(teachers))

    def __len__(self) -> int:
        return len(self.members)

    @property
    def names(self) -> list[str]:
        """What messages and measurements call each teacher."""
        several = [f"teacher {number} of {len(self)}" for number in range(1, len(self) + 1)]
        return several if len(self) > 1 else ["teacher"]

    def read(self, prefixes: Sequence[str]) -> None:
        """Set the prefix of the columns that each teacher reads; see `nlpkd.data.tokenization.column_prefixes`."""
        self.captures = [
            Capture(member, {}, "teacher", prefix) for member, prefix in zip(self.members, prefixes, strict=True)
        ]

    def with_members(self, members: Sequence[nn.Module]) -> TeacherEnsemble:
        """Copy the ensemble, with other modules of the same signatures in its members' places.

        Args:
            members: one for each teacher.

        Returns:
            The copy, which has this ensemble's weights and follows its label orders, but not what `read` and `task`
            are given later.
        """
        copied = copy.copy(self)
        # Buffers, among them the label orders, stay one dictionary for both.
        copied._modules = dict(self._modules)
        copied.members = nn.ModuleList(members)
        return copied

    def reorder(self, member: int, order: Sequence[int] | None) -> None:
        """Set the label order of one teacher; the identity costs nothing."""
        self.orders[member] = None if order is None else list(order)
        identity = order is None or list(order) == list(range(len(order)))
        # A buffer, so that it is where the logits are and no step waits for a copy.
        index = None if identity else torch.tensor(order, device=self.weights.device)
        self.register_buffer(f"order_{member}", index)

    @property
    def columns(self) -> set[str]:
        """The columns of a batch that any of the teachers reads."""
        return {capture.prefix + name for capture in self.captures for name in capture.arguments}

    def forward(self, **batch: Any) -> Tensor:
        """Run every teacher on its own columns.

        Args:
            **batch: of a collated batch, `columns`.

        Returns:
            The average in the student's label order, float32 `(batch, labels)`.

        Raises:
            ValueError: if the batch has no column that a teacher reads.
        """
        logits = []
        for number, (member, capture) in enumerate(zip(self.members, self.captures, strict=True)):
            if not capture.inputs(batch):
                raise ValueError(
                    f"teacher {number + 1} of {len(self)} reads {capture.prefix}input_ids, and the batch has "
                    f"{sorted(batch)}: load the data with load_text_classification(..., teacher_tokenizer=[...])"
                )
            given, order = capture(member, batch).logits, getattr(self, f"order_{number}", None)
            logits.append(given if order is None else given[:, order])
        return self.mean(logits)

    def mean(self, logits: Sequence[Tensor]) -> Tensor:
        """Average the teachers' logits.

        Args:
            logits: of each teacher, in the student's label order, `(batch, labels)`.

        Returns:
            The average as logits, float32 `(batch, labels)`; of one teacher its own logits.
        """
        if len(self) == 1:
            return logits[0].float()
        stacked = torch.stack([each.float() for each in logits])  # (teachers, batch, labels)
        weights = self.weights.float()[:, None, None]
        if self.average == "logits" or self.task == REGRESSION:
            return (weights * stacked).sum(dim=0)
        if self.task == MULTI_LABEL:
            yes, no = ((F.logsigmoid(each) + weights.log()).logsumexp(dim=0) for each in (stacked, -stacked))
            return yes - no
        return (stacked.log_softmax(dim=-1) + weights.log()).logsumexp(dim=0)

    def thresholds(self, orders: Sequence[Sequence[int] | None] | None = None) -> list[float] | None:
        """Return the thresholds by which several labels are given: for each label the teachers' own if they agree.

        Where they differ it is their weighted mean, as the probabilities are averaged; 0.5 counts for a teacher that
        has none.

        Args:
            orders: for each teacher its index of each of the student's labels; `orders` of the ensemble if None.

        Returns:
            One a label, in the student's label order; None where no teacher has any.

        Raises:
            ValueError: if a teacher's are not of its labels.
        """
        given = self.orders if orders is None else orders
        own = [
            thresholds_of(getattr(each, "config", None), order)
            for each, order in zip(self.members, given, strict=True)
        ]
        width = next((len(each) for each in own if each is not None), None)
        if width is None:
            return None
        known = np.array([[0.5] * width if each is None else each for each in own])
        mean = np.average(known, axis=0, weights=self.weights.double().cpu().numpy())
        # Rounding must not part equal ones.
        return mean.clip(known.min(axis=0), known.max(axis=0)).tolist()


def _refuse_other_outputs(teachers: Sequence[nn.Module]) -> None:
    """Refuse teachers whose logits can't be averaged, as far as their configs say how many they have."""
    counts = [getattr(getattr(each, "config", None), "num_labels", None) for each in teachers]
    if len({count for count in counts if count is not None}) > 1:
        told = ", ".join(f"teacher {number} has {count or '?'}" for number, count in enumerate(counts, start=1))
        raise ValueError(
            f"teachers are averaged label by label, and they have other numbers of labels: {told}. Take teachers of "
            "the same labels"
        )


def as_ensemble(teacher: nn.Module) -> TeacherEnsemble:
    """See any teacher as an ensemble, so that members, names, label orders and the average are asked for one way.

    Args:
        teacher: a model or an ensemble.

    Returns:
        The ensemble; of a model an ensemble of it alone, whose average is the model's own logits.
    """
    return teacher if isinstance(teacher, TeacherEnsemble) else TeacherEnsemble([teacher])


def as_one_teacher(
    teacher: nn.Module | Sequence[nn.Module] | None,
    weights: Sequence[float] | None = None,
    average: str = "probabilities",
) -> nn.Module | None:
    """Make an ensemble of a list of several teachers.

    Args:
        teacher: a model, a list of them, or None.
        weights: of a list, see `TeacherEnsemble`.
        average: likewise.

    Returns:
        The teacher; a list of one is that one, with layers to give.

    Raises:
        ValueError: if the list is empty, or weights or average do not fit it.
    """
    several: list[Any] = list(teacher) if isinstance(teacher, (list, tuple)) else [] if teacher is None else [teacher]
    if not isinstance(teacher, (list, tuple)):
        return None if teacher is None else unwrapped(several[0], "teacher")
    ensemble = TeacherEnsemble(several, weights, average)
    return ensemble if len(ensemble) > 1 else ensemble.members[0]

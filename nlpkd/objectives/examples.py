"""Objectives on how the examples of a batch relate to each other; student and teacher may cut texts differently."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nlpkd.models.layers import LayerSpec
from nlpkd.objectives.base import LayerObjective, Objective, text_state
from nlpkd.objectives.limits import POSITIVE, POSITIVE_INT, Limit, one_of
from nlpkd.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL


class ExampleObjective(LayerObjective):
    """An objective on one vector a text: the state of its first token (of a decoder the last), or the logits.

    Args:
        layers: layer map for `on="hidden_states"`.
        weight: factor of this objective in the sum.
        on: `"hidden_states"` or `"logits"`.

    Raises:
        ValueError: if `on` is neither.
    """

    settings: ClassVar[tuple[str, ...]] = ("on",)
    limits: ClassVar[Mapping[str, Limit]] = {**LayerObjective.limits, "on": one_of("hidden_states", "logits")}
    fixed_by_bind: ClassVar[tuple[str, ...]] = (*LayerObjective.fixed_by_bind, "on")
    tasks = frozenset({SINGLE_LABEL, MULTI_LABEL, REGRESSION})

    def __init__(self, layers: LayerSpec = "last", weight: float = 1.0, on: str = "hidden_states"):
        super().__init__(layers, weight)
        self.on = on

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """What is read alone; see `Objective`."""
        return frozenset({self.on})

    def bind(self, student_config: Any, teacher_config: Any) -> None:
        """Resolve the layer map where states are read; see `Objective.bind`."""
        if self.on == "hidden_states":
            super().bind(student_config, teacher_config)
        else:
            Objective.bind(self, student_config, teacher_config)
            self.pairs = [(0, 0)]

    @property
    def matches_tokens(self) -> bool:
        """One token stands for the whole text in both models."""
        return False

    def required_layers(self) -> tuple[dict[str, frozenset[int]], dict[str, frozenset[int]]]:
        """Return which layers are needed, by kind."""
        return super().required_layers() if self.on == "hidden_states" else ({}, {})

    def widths(self, student_config: Any, teacher_config: Any) -> tuple[int, int]:
        """Return the widths of the vectors of student and teacher.

        Raises:
            ValueError: if nothing says how many logits there are.
        """
        if self.on == "hidden_states":
            return student_config.hidden_size, teacher_config.hidden_size
        # The teacher's logits are in the student's order, so there are as many.
        teachers = teacher_config if isinstance(teacher_config, list) else [teacher_config]
        labels = [getattr(config, "num_labels", None) for config in (student_config, *teachers)]
        number = next(filter(None, [*labels, self.num_labels]), None)
        if number is None:
            raise ValueError(
                f"{type(self).__name__}(on='logits') is built for a number of labels, which neither a config of "
                "student or teacher nor the rows tell: give rows whose labels have names (ClassLabel), or use "
                "RelationalDistanceLoss(on='logits'), which needs no number"
            )
        return number, number

    def compare(self, position: int, student: Any, teacher: Any, batch: Mapping[str, Any]) -> Tensor:
        """Read the vectors and hand them to `relate`."""
        vectors = []
        for outputs, layer in zip((student, teacher), self.pairs[position], strict=True):
            on_logits = self.on == "logits"
            vectors.append(outputs.logits if on_logits else text_state(outputs, outputs.hidden_states[layer]))
        return self.relate(vectors[0].float(), vectors[1].float())

    def config(self) -> dict[str, Any]:
        """Describe this objective for the run record and the card; it has no layers where it reads logits."""
        return super().config() | ({} if self.on == "hidden_states" else {"layers": None})

    @abstractmethod
    def relate(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Sum over rows, of vectors `(batch, width)`: a float32 scalar."""


class RelationalDistanceLoss(ExampleObjective):
    """Huber error between the distances of examples, as student and teacher see them.

    mean over pairs i != j of a batch of l(d_student(i, j), d_teacher(i, j)), d(i, j) = |x_i - x_j| / mean over pairs
    of |x_i - x_j|, l the Huber error with delta 1, x `(batch, width)`; the widths may differ: Park et al. 2019,
    "Relational Knowledge Distillation", arXiv:1904.05068, equations 4 to 6 (their code's mean has the pairs i = j too,
    which are 0). The pairs are those of the micro-batch.

    Args:
        layers: layer map for `on="hidden_states"`.
        weight: factor of this objective in the sum.
        on: `"hidden_states"` (the first token's, of a decoder the last's) or `"logits"`.
    """

    citation = "Park et al. (2019), Relational Knowledge Distillation, arXiv:1904.05068"
    couples_rows = True

    def relate(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Multiply the value on this batch by its rows."""
        if len(student) < 2:
            return student.sum() * 0.0
        ours, theirs = (_distances(vectors) for vectors in (student, teacher))
        return F.smooth_l1_loss(ours, theirs) * len(student)


class RelationalAngleLoss(ExampleObjective):
    """Huber error between the angles that three examples make, as student and teacher see them.

    mean over triples of distinct i, j, k of a batch of l(cos_student(i, j, k), cos_teacher(i, j, k)), cos(i, j, k) =
    <x_i - x_j, x_k - x_j> / (|x_i - x_j| |x_k - x_j|), l the Huber error with delta 1, x `(batch, width)`; the widths
    may differ: Park et al. 2019, "Relational Knowledge Distillation", arXiv:1904.05068, equations 7 to 9 (their code's
    mean has all triples). The triples are those of the micro-batch; memory grows with the cube of its rows.

    Args:
        layers: layer map for `on="hidden_states"`.
        weight: factor of this objective in the sum.
        on: `"hidden_states"` (the first token's, of a decoder the last's) or `"logits"`.
    """

    citation = "Park et al. (2019), Relational Knowledge Distillation, arXiv:1904.05068"
    couples_rows = True
    fewest_rows = 3

    def relate(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Multiply the value on this batch by its rows."""
        number = len(student)
        if number < self.fewest_rows:
            return student.sum() * 0.0
        ours, theirs = (_angles(vectors) for vectors in (student, teacher))
        apart = ~torch.eye(number, dtype=torch.bool, device=student.device)
        distinct = apart[:, :, None] & apart[:, None, :] & apart[None, :, :]  # (j, i, k)
        return F.smooth_l1_loss(ours[distinct], theirs[distinct]) * number


class ContrastiveLoss(ExampleObjective):
    """Contrastive distillation: of a batch's examples, a student's vector must pick its own teacher's.

    mean over rows i of -log(exp(a_i . b_i / tau) / sum_j exp(a_i . b_j / tau)), a = the student's and b = the
    teacher's vector, `(batch, width)`, each through a learned linear map and scaled to norm 1: after Tian et al. 2020,
    "Contrastive Representation Distillation", arXiv:1910.10699, section 3.1. They draw thousands of negatives from a
    memory bank; here they are the rest of the micro-batch, as in Sun et al. 2020, "Contrastive Distillation on
    Intermediate Representations for Language Model Compression", arXiv:2009.14167. A batch of one row gives 0.

    Args:
        layers: layer map for `on="hidden_states"`.
        weight: factor of this objective in the sum.
        on: `"hidden_states"` (the first token's, of a decoder the last's) or `"logits"`.
        temperature: tau > 0.
        width: of the space that both are mapped to.

    Raises:
        ValueError: if tau or the width is not positive.
    """

    citation = "Tian et al. (2020), Contrastive Representation Distillation, arXiv:1910.10699"
    settings = (*ExampleObjective.settings, "temperature", "width")
    limits = {**ExampleObjective.limits, "temperature": POSITIVE, "width": POSITIVE_INT}
    fixed_by_bind: ClassVar[tuple[str, ...]] = (*ExampleObjective.fixed_by_bind, "width")
    couples_rows = True

    def __init__(
        self,
        layers: LayerSpec = "last",
        weight: float = 1.0,
        on: str = "hidden_states",
        temperature: float = 0.1,
        width: int = 128,
    ):
        super().__init__(layers, weight, on)
        self.temperature, self.width = temperature, width
        self.maps = nn.ModuleList()

    def bind(self, student_config: Any, teacher_config: Any) -> None:
        """Build the maps; see `Objective.bind`."""
        super().bind(student_config, teacher_config)
        widths = self.widths(student_config, teacher_config)
        self.maps = nn.ModuleList(nn.Linear(width, self.width) for width in widths)

    def relate(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Sum over rows."""
        ours, theirs = (
            F.normalize(mapping(vectors).float(), dim=-1)
            for mapping, vectors in zip(self.maps, (student, teacher), strict=True)
        )
        scores = (ours @ theirs.T).float() / self.temperature  # (batch, batch)
        return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device), reduction="sum")


def _distances(vectors: Tensor) -> Tensor:
    """Compute the distances between all pairs of different rows, divided by their mean: `(rows * (rows - 1),)`."""
    apart = ~torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    squared = (vectors[:, None] - vectors[None]).square().sum(dim=-1)[apart]
    # Clamped before the root, whose gradient at 0 (the same text twice) is infinite.
    distances = squared.clamp(min=1e-12).sqrt()
    return distances / distances.mean()


def _angles(vectors: Tensor) -> Tensor:
    """Compute cos(i, j, k) as `(j, i, k)`."""
    directions = F.normalize(vectors[None] - vectors[:, None], dim=-1, eps=1e-6)  # (j, i, width)
    return (directions @ directions.transpose(1, 2)).float()

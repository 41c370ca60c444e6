"""Objectives on hidden states, token by token."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from nlpkd.models.layers import LayerSpec
from nlpkd.objectives.base import LayerObjective, text_state, token_mask


class ProjectedObjective(LayerObjective):
    """An objective on hidden states that maps the student's to the teacher's width where they differ.

    Args:
        layers: layer map; explicit pairs may name layer 0, the embedding output.
        weight: factor of this objective in the sum.
    """

    needs = frozenset({"hidden_states"})

    def __init__(self, layers: LayerSpec = "uniform", weight: float = 1.0):
        super().__init__(layers, weight)
        self.projections = nn.ModuleList()

    def bind(self, student_config: Any, teacher_config: Any) -> None:
        """Resolve the layer map and build projections where the widths differ; see `Objective.bind`."""
        super().bind(student_config, teacher_config)
        narrow, wide = student_config.hidden_size, teacher_config.hidden_size
        pairs = self.pairs if narrow != wide else []
        self.projections = nn.ModuleList(nn.Linear(narrow, wide, bias=False) for _ in pairs)

    def states(self, position: int, student: Any, teacher: Any) -> tuple[Tensor, Tensor]:
        """Return a pair of layers' hidden states, the student's projected: float32 `(batch, seq, teacher hidden)`."""
        ours, theirs = self.pairs[position]
        state = student.hidden_states[ours].float()
        if self.projections:
            state = self.projections[position](state).float()
        return state, teacher.hidden_states[theirs].float()


class TokenObjective(ProjectedObjective):
    """An objective on the hidden states of each real token."""

    def count(self, batch: Mapping[str, Any]) -> Tensor:
        """Count real tokens."""
        return token_mask(batch).sum()

    def compare(self, position: int, student: Any, teacher: Any, batch: Mapping[str, Any]) -> Tensor:
        """Sum over real tokens."""
        return (self.distance(*self.states(position, student, teacher)) * token_mask(batch)).sum()

    @abstractmethod
    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare states `(batch, seq, hidden)` token by token: `(batch, seq)`."""


class HiddenStateMSELoss(TokenObjective):
    """Mean squared error between hidden states of matched layers.

    mean over pairs (s, t), real tokens and hidden units of (H_student[s] W - H_teacher[t])^2, `(batch, seq, hidden)`,
    padding left out: TinyBERT's hidden-state distillation (Jiao et al. 2020, "TinyBERT: Distilling BERT for Natural
    Language Understanding", arXiv:1909.10351, equation 8). W is learned where the widths differ, one a pair (the
    paper's code shares one between all layers), and absent where they are equal.

    Args:
        layers: layer map; explicit pairs may name layer 0, the embedding output.
        weight: factor of this objective in the sum.
    """

    citation = "Jiao et al. (2020), TinyBERT: Distilling BERT for Natural Language Understanding, arXiv:1909.10351"

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Average the squared error over hidden units."""
        return (student - teacher).square().mean(dim=-1)


class EmbeddingMSELoss(HiddenStateMSELoss):
    """Mean squared error between embedding outputs (layer 0).

    mean over real tokens and hidden units of (E_student W - E_teacher)^2, `(batch, seq, hidden)`: TinyBERT's
    embedding-layer distillation (Jiao et al. 2020, arXiv:1909.10351, equation 9). The embeddings are those after their
    layer norm and dropout, which the first layer reads.

    Args:
        weight: factor of this objective in the sum.
    """

    def __init__(self, weight: float = 1.0):
        super().__init__([(0, 0)], weight)


class HiddenStateCosineLoss(TokenObjective):
    """One minus the cosine between hidden states of matched layers.

    mean over pairs (s, t) and real tokens of 1 - cos(H_student[s] W, H_teacher[t]), `(batch, seq, hidden)`, padding
    left out: DistilBERT's alignment of directions (Sanh et al. 2019, "DistilBERT, a distilled version of BERT",
    arXiv:1910.01108, section 2), which matches the last layers.

    Args:
        layers: layer map; explicit pairs may name layer 0, the embedding output.
        weight: factor of this objective in the sum.
    """

    citation = "Sanh et al. (2019), DistilBERT, a distilled version of BERT, arXiv:1910.01108"

    def __init__(self, layers: LayerSpec = "last", weight: float = 1.0):
        super().__init__(layers, weight)

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute 1 - cosine."""
        return 1 - F.cosine_similarity(student, teacher, dim=-1)


class PatientLoss(ProjectedObjective):
    """Squared distance between normalised [CLS] states of matched layers.

    mean over pairs (s, t) and rows of || h_student[s] / |h_student[s]| - h_teacher[t] / |h_teacher[t]| ||^2, h the
    state of the first token (of a decoder the last), `(batch, hidden)`: Sun et al. 2019, "Patient Knowledge
    Distillation for BERT Model Compression", arXiv:1908.09355, equation 7, where it is the sum over pairs. As in the
    paper, `"uniform"` and `"first"` leave out the student's last layer, which the soft targets train. Where the widths
    differ, h_student is projected first.

    Args:
        layers: layer map.
        weight: factor of this objective in the sum.
    """

    citation = "Sun et al. (2019), Patient Knowledge Distillation for BERT Model Compression, arXiv:1908.09355"

    @property
    def matches_tokens(self) -> bool:
        """One token stands for the whole text in both models."""
        return False

    def match(self, student_depth: int, teacher_depth: int) -> list[tuple[int, int]]:
        """Leave out the student's last layer; see `LayerObjective.match`."""
        pairs = super().match(student_depth, teacher_depth)
        inner = [pair for pair in pairs if pair[0] < student_depth]
        return inner if self.layers in ("uniform", "first") and inner else pairs

    def compare(self, position: int, student: Any, teacher: Any, batch: Mapping[str, Any]) -> Tensor:
        """Sum over rows."""
        both = zip((student, teacher), self.states(position, student, teacher), strict=True)
        ours, theirs = (F.normalize(text_state(outputs, states), dim=-1) for outputs, states in both)
        return (ours - theirs).square().sum()

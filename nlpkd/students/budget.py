"""The student of a teacher with the most weights that a budget of time or size allows."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from nlpkd.compression.low_rank import factorize_embeddings
from nlpkd.evaluation.benchmark import choose_within
from nlpkd.students.kinds import KINDS, all_depths, build_student, merge_adapter
from nlpkd.utils.processes import decided_by_main_process

logger = logging.getLogger(__name__)


def student_within(
    teacher: PreTrainedModel,
    *,
    max_latency_ms: float | None = None,
    max_size_mb: float | None = None,
    embedding_size: int | None = None,
    fits: Callable[[str, Any], bool] = lambda name, config: True,
) -> str:
    """Choose the student of a teacher that fits a budget: of those that do, the one with the most weights in use.

    Candidates are all numbers of its layers, the narrower shapes of `nlpkd.students.SHAPES`, a BiLSTM, a
    TextCNN and a bag of vectors; those of which no student of this teacher can be made are left out. Weights in use
    are those beside embedding tables, of which a text reads a few rows.

    Args:
        teacher: the model to start from.
        max_latency_ms: see `make_student`; measured by the main process, whose choice all processes take.
        max_size_mb: likewise.
        embedding_size: of the students' factorised embeddings, where they have such ones.
        fits: says of a candidate's name and config whether it may be chosen, such as whether its objectives can match
            it.

    Returns:
        The student, as in `"layers:3"`, for `make_student`.

    Raises:
        ValueError: if nothing fits.
    """

    def choose() -> str:
        candidates = make_candidates(teacher, embedding_size, fits)
        return choose_within(candidates, max_latency_ms=max_latency_ms, max_size_mb=max_size_mb)[0]

    return decided_by_main_process(choose)


def make_candidates(
    teacher: PreTrainedModel, embedding_size: int | None, fits: Callable[[str, Any], bool]
) -> dict[str, PreTrainedModel]:
    """Make every student that can be made and may be chosen.

    Args:
        teacher: the model to start from.
        embedding_size: see `student_within`.
        fits: see `student_within`.

    Returns:
        The students by name, the one with the most weights in use first.

    Raises:
        ValueError: if there is none.
    """
    teacher = merge_adapter(teacher)
    depths = all_depths(teacher)
    candidates: dict[str, PreTrainedModel] = {}
    reasons: dict[str, str] = {}
    for kind in KINDS:
        for name in kind.candidates(teacher) if embedding_size is None or kind.has_layers else ():
            try:
                student = build_student(teacher, name)
                if embedding_size is not None:
                    student, _ = factorize_embeddings(student, rank=embedding_size)
                candidates[name] = student
            except ValueError as error:
                reasons[name] = str(error)
    if missing := [name for name in depths if name in reasons]:
        logger.warning("No student can be made of %s: %s", ", ".join(missing), reasons[missing[0]])
    candidates = {name: model for name, model in candidates.items() if fits(name, model.config)}
    if not candidates:
        unmatched = "there is no student of this teacher that the objectives can match: use objectives on logits"
        raise ValueError(reasons.get(depths[0], unmatched))
    return dict(sorted(candidates.items(), key=lambda each: _weights_in_use(each[1]), reverse=True))


def _weights_in_use(model: PreTrainedModel) -> int:
    """Count the weights beside embedding tables."""
    tables = {
        parameter for part in model.modules() if isinstance(part, nn.Embedding) for parameter in part.parameters()
    }
    return sum(parameter.numel() for parameter in model.parameters() if parameter not in tables)

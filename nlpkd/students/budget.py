"""The student of a teacher with the most weights that a budget of time or size allows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from nlpkd.compression.low_rank import factorize_embeddings
from nlpkd.evaluation.benchmark import measure_latency, model_size_mb
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


@dataclass(frozen=True)
class Measured:
    """What a candidate costs.

    Attributes:
        name: of the candidate.
        size_mb: its weights file in 10^6 bytes.
        latency_ms: median of one forward pass.
        fits: whether both are within the budget.
    """

    name: str
    size_mb: float
    latency_ms: float
    fits: bool


def choose_within(
    candidates: Mapping[str, PreTrainedModel],
    *,
    max_latency_ms: float | None = None,
    max_size_mb: float | None = None,
    batch: int = 1,
    tokens: int = 32,
    runs: int = 30,
) -> tuple[str, list[Measured]]:
    """Measure candidates, say what each costs, and choose the first that fits.

    Args:
        candidates: models by name, the most capable first.
        max_latency_ms: the most that the median forward pass may take on this machine, with torch's threads as set.
        max_size_mb: the most that the weights file may take, in 10^6 bytes.
        batch: sequences of a forward pass.
        tokens: tokens of a sequence.
        runs: timed passes; see `measure_latency`.

    Returns:
        The name of the choice, and what was measured of each candidate.

    Raises:
        ValueError: if there is no budget, or nothing fits; the table is in the message.
    """
    limits = {"max_latency_ms": max_latency_ms, "max_size_mb": max_size_mb}
    for name, limit in limits.items():
        if limit is not None and not limit > 0:
            raise ValueError(f"{name} must be > 0, got {limit}")
    if all(limit is None for limit in limits.values()):
        raise ValueError("there is no budget: give max_latency_ms or max_size_mb")
    times = measure_latency(candidates, batches=(batch,), tokens=tokens, runs=runs)
    table = []
    for name, model in candidates.items():
        size_mb, latency_ms = model_size_mb(model), times[name][0].p50_ms
        fits = (max_size_mb is None or size_mb <= max_size_mb) and (
            max_latency_ms is None or latency_ms <= max_latency_ms
        )
        table.append(Measured(name, size_mb, latency_ms, fits))
    shown = "; ".join(f"{row.name} {row.size_mb:.1f} MB {row.latency_ms:.2f} ms" for row in table)
    asked = " and ".join(f"{name}={limit}" for name, limit in limits.items() if limit is not None)
    chosen = next((row.name for row in table if row.fits), None)
    if chosen is None:
        raise ValueError(
            f"no candidate fits {asked} (batch {batch}, {tokens} tokens): {shown}. Raise the budget, or trim the "
            "vocabulary, which makes it smaller"
        )
    logger.warning("%s fits %s (batch %d, %d tokens), of: %s.", chosen, asked, batch, tokens, shown)
    return chosen, table


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
        raise ValueError(next((reasons[name] for name in depths[:1] or reasons if name in reasons), unmatched))
    return dict(sorted(candidates.items(), key=lambda each: _weights_in_use(each[1]), reverse=True))


def _weights_in_use(model: PreTrainedModel) -> int:
    """Count the weights beside embedding tables."""
    tables = {
        parameter for part in model.modules() if isinstance(part, nn.Embedding) for parameter in part.parameters()
    }
    return sum(parameter.numel() for parameter in model.parameters() if parameter not in tables)

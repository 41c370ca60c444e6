"""Choose a student by what it may cost: measure candidates on this machine, and take the first that fits."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedModel

from nlpkd.benchmark import measure_latency, model_size_mb

logger = logging.getLogger(__name__)


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

"""The models of a frontier as points: which are on the Pareto front, and which one a budget picks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nlpkd.evaluation.origin import keeps
from nlpkd.evaluation.records import Interval
from nlpkd.utils.field_types import are_numbers, check_share


@dataclass(frozen=True)
class Point:
    """One model of a frontier.

    Args:
        name: of the student as it was asked for, such as `"layers:3"`.
        quality: the headline metric, the mean over seeds, with its 95 % interval over the rows.
        text_to_label_ms: median milliseconds from one plain text to its label, tokenising included.
        pass_ms: median milliseconds of the model's pass alone, of one text of 32 tokens.
        size_mb: of the file that is deployed, in 10^6 bytes.
        retention: share of the teacher's metric; None where that is not above 0.
        seeds: the metric of each seed.
        file: what is deployed, a model's folder or an ONNX file, in the frontier's folder; the teacher as it was
            given.
    """

    name: str
    quality: Interval
    text_to_label_ms: float
    pass_ms: float
    size_mb: float
    retention: float | None
    seeds: list[float]
    file: str


@dataclass(frozen=True)
class Limits:
    """What a budget allows; None for anything.

    Args:
        max_latency_ms: the most that a text may take from text to label, at the median.
        max_size_mb: the most that the file may take, in 10^6 bytes.
        min_retention: the least share of the teacher's metric to keep.
    """

    max_latency_ms: float | None = None
    max_size_mb: float | None = None
    min_retention: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_latency_ms", "max_size_mb"):
            limit = getattr(self, name)
            if limit is not None and not (are_numbers(limit) and 0 < limit < math.inf):
                raise ValueError(f"{name} must be above 0, got {limit!r:.80}")
        check_share("min_retention", self.min_retention, whole=True)

    def allow(self, point: Point) -> bool:
        """Check whether a model is within the budget."""
        return (
            (self.max_latency_ms is None or point.text_to_label_ms <= self.max_latency_ms)
            and (self.max_size_mb is None or point.size_mb <= self.max_size_mb)
            and (self.min_retention is None or keeps(point.retention, self.min_retention))
        )

    def to_text(self) -> str:
        """Name the limits that are set; empty where there are none."""
        return ", ".join(f"{name}={limit:g}" for name, limit in vars(self).items() if limit is not None)


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """Find the models that no other beats: none is as fast and as good, and better in one of both.

    Args:
        points: the models.

    Returns:
        Those on the front, the fastest first. One whose metric is NaN is not among them.
    """
    known = [point for point in points if math.isfinite(point.quality.value)]
    front: list[Point] = []
    for point in sorted(known, key=lambda each: (each.text_to_label_ms, -each.quality.value)):
        best = front[-1] if front else None
        equal = best is not None and _place(best) == _place(point)
        if best is None or equal or point.quality.value > best.quality.value:
            front.append(point)
    return front


def pick(points: Sequence[Point], limits: Limits) -> Point | None:
    """Choose a model by a budget.

    Args:
        points: the models.
        limits: the budget.

    Returns:
        Of those within it the best one; where only a retention is asked for, the fastest. None where no limit is set,
        or nothing is within the budget.
    """
    fitting = [point for point in points if limits.allow(point) and math.isfinite(point.quality.value)]
    if not (limits.to_text() and fitting):
        return None
    if limits.max_latency_ms is None and limits.max_size_mb is None:
        return min(fitting, key=_place)
    return min(fitting, key=lambda each: (-each.quality.value, each.text_to_label_ms))


def _place(point: Point) -> tuple[float, float]:
    return point.text_to_label_ms, -point.quality.value

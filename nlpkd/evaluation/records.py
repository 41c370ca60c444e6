"""The measured part of an evaluation report: candidates, comparisons and spreads over seeds, as dataclasses."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from nlpkd.evaluation.figures.reading import build_record

# C0 and C1 but for tabs and line feeds, and what turns the direction of writing round.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

METRIC_NAMES = {
    "accuracy": "accuracy",
    "f1_macro": "macro F1",
    "f1_micro": "micro F1",
    "matthews_correlation": "MCC",
    "expected_calibration_error": "ECE",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "mean_absolute_error": "MAE",
}
"""Metrics that tables show, and what they are called there."""


AGREEMENT = "agreement"
"""`TaskRecord.headline` where no measured row has a gold label, but a teacher's answer."""


BASELINES = {
    "no_teacher": "the same shape trained without a teacher",
    "same_start": "the same start trained without a teacher",
    "baseline": "the undistilled baseline",
}
"""Candidates that learn from gold labels alone, and what sentences call them.

`no_teacher` starts from the pre-trained backbone: what one has without a teacher. `same_start` starts as the student
does: what the losses add. `baseline` is one of which nobody says how it started.
"""


DECISIONS = {
    "held-out": "thresholds chosen on the held-out rows",
    "report": "the thresholds that the student's report has for it",
    "config": "the thresholds in its config",
    "0.5": "0.5 for each label",
}
"""Rules by which models give labels where a row may have several (`Candidate.decides_by`), and their names."""


ONNX_RUNTIME = "onnxruntime"
"""`Candidate.runtime` of an ONNX file."""


@dataclass(frozen=True)
class Interval:
    """A measured value with its 95 % interval.

    Args:
        value: the value on all rows.
        low: lower end of the interval.
        high: upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{format_number(self.value)} [{format_number(self.low)}, {format_number(self.high)}]"


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass.

    Args:
        batch: sequences in the batch.
        tokens: tokens in each sequence.
        threads: CPU threads torch used.
        p50_ms: median in milliseconds.
        p95_ms: 95th percentile in milliseconds.
        p99_ms: 99th percentile in milliseconds, None where it was not recorded.
    """

    batch: int
    tokens: int
    threads: int
    p50_ms: float
    p95_ms: float
    p99_ms: float | None = None


@dataclass(frozen=True)
class TemperatureScaling:
    """A temperature fitted on held-out rows, and what it does to the calibration error on the measured ones.

    Args:
        temperature: that the logits are divided by.
        rows: held-out rows of the fit.
        ece_before: expected calibration error of the logits as they are.
        ece_after: of the scaled logits.
    """

    temperature: float
    rows: int
    ece_before: float
    ece_after: float


@dataclass(frozen=True)
class ClassMetrics:
    """How well one class is told.

    Args:
        precision: share of the rows predicted as this class that are of it.
        recall: share of the rows of this class that are predicted as it.
        f1: harmonic mean of both.
        rows: rows of the class.
    """

    precision: float
    recall: float
    f1: float
    rows: float


@dataclass(frozen=True)
class ReliabilityBin:
    """One bin of a reliability diagram.

    Args:
        confidence: mean confidence of its decisions.
        accuracy: share of them that is right.
        rows: number of decisions.
    """

    confidence: float
    accuracy: float
    rows: int


@dataclass(frozen=True)
class LengthGroup:
    """The headline metric on texts of similar length.

    Args:
        shortest: tokens of the shortest text.
        longest: tokens of the longest one.
        rows: number of texts.
        value: the metric on them, None where it says nothing of them, such as a correlation of one.
    """

    shortest: int
    longest: int
    rows: int
    value: float | None


@dataclass(frozen=True)
class Disagreement:
    """A row on which a model and its teacher differ.

    Args:
        row: its number in the measured data.
        gold: gold class id.
        predicted: class id that the model predicts.
        probability: that the model gives it.
        teacher_predicted: class id that the teacher predicts.
        teacher_probability: that the teacher gives it.
        distance: total variation of both distributions, 1/2 * sum over classes |p - q|.
    """

    row: int
    gold: int
    predicted: int
    probability: float
    teacher_predicted: int
    teacher_probability: float
    distance: float


@dataclass(frozen=True)
class Breakdown:
    """A candidate's quality in parts; None for what its task does not have, or was not measured.

    Args:
        confusion: rows by gold class and predicted class.
        confusions: of many classes `[gold id, predicted id, rows]` of the commonest wrong predictions.
        per_class: each class or label, in order.
        reliability: the bins of the calibration error that have decisions.
        per_length: groups of texts by length, the shortest first.
        disagreements: the rows where it differs most from the teacher, the largest difference first.
    """

    confusion: list[list[int]] | None = None
    confusions: list[list[int]] | None = None
    per_class: list[ClassMetrics] | None = None
    reliability: list[ReliabilityBin] | None = None
    per_length: list[LengthGroup] | None = None
    disagreements: list[Disagreement] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the parts that were measured."""
        return {name: part for name, part in asdict(self).items() if part is not None}


_WHERE_KNOWN = ("runtime", "file_sha256", "decides_by")


@dataclass(frozen=True)
class Candidate:
    """What was measured of one model.

    Args:
        quality: metric name -> value with interval; the calibration error is one of them. Empty where no row has a
            gold label.
        agreement: share of rows with the teacher's predicted label, None without a teacher and for the teacher.
        parameters: number of parameters, None of a teacher of which only answers are known.
        size_mb: size of the weights file in 10^6 bytes, likewise.
        latency: one entry a batch size and length.
        text_to_label_ms: median milliseconds from one plain text to its label, tokenising included; None where the
            rows' texts are not known.
        training_seconds: wall time of the training, None where unknown.
        flops: floating-point operations of one pass over one sequence, as `RunRecord.flops_protocol` says; None where
            they can't be counted.
        memory_mb: 10^6 bytes that answering takes, as `RunRecord.memory_protocol` says; None where not measured.
        temperature_scaling: of `nlpkd.evaluation.calibration`, None where no temperature was fitted.
        breakdown: the quality by class, confidence and length.
        runtime: what runs it, `"torch"`, `"onnxruntime"`, or of several teachers both; None where not recorded.
        file_sha256: of an ONNX file that was measured, of several teachers' files one after another.
        decides_by: in a multi-label task the rule by which it gives labels, a key of `DECISIONS`; None where not
            recorded. `RunRecord.thresholds` has the thresholds.
    """

    quality: dict[str, Interval]
    agreement: Interval | None
    parameters: int | None
    size_mb: float | None
    latency: list[Latency] = field(default_factory=list)
    text_to_label_ms: float | None = None
    training_seconds: float | None = None
    flops: float | None = None
    memory_mb: float | None = None
    temperature_scaling: TemperatureScaling | None = None
    breakdown: Breakdown = field(default_factory=Breakdown)
    runtime: str | None = None
    file_sha256: str | None = None
    decides_by: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, the last three where they are known."""
        entry = asdict(self) | {"breakdown": self.breakdown.to_dict()}
        return {key: value for key, value in entry.items() if value is not None or key not in _WHERE_KNOWN}


@dataclass(frozen=True)
class Comparison:
    """The student beside another candidate on the same rows.

    Args:
        differences: metric name -> the student's value minus the other's, with its paired interval.
        mcnemar_p: p value of McNemar's exact test, None where the task has no right and wrong.
        student_only_correct: rows that the student alone has right.
        other_only_correct: rows that the other alone has right.
        retention: the student's headline metric over the teacher's, None where that is not above 0.
        gap: with `no_teacher` alone, the teacher's headline metric minus the other's.
        gap_closed: (student - other) / (teacher - other) in the headline metric, its interval over the resamples
            where the gap is above 0; None where there is no gap to close, since the gap's interval reaches 0.
    """

    differences: dict[str, Interval]
    mcnemar_p: float | None = None
    student_only_correct: int | None = None
    other_only_correct: int | None = None
    retention: float | None = None
    gap: Interval | None = None
    gap_closed: Interval | None = None

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any], other: str) -> Comparison:
        """Build a comparison from JSON; `other` is the candidate that the student is compared with."""
        suffix = "_difference"
        differences = {key.removesuffix(suffix): each for key, each in entry.items() if key.endswith(suffix)}
        counted = {"other_only_correct": entry.get(f"{other}_only_correct")}
        return build_record(cls, {**entry, **counted, "differences": differences})

    def to_dict(self, other: str) -> dict[str, Any]:
        """Return the differences by metric, and what else was measured."""
        tested = {
            "mcnemar_p": self.mcnemar_p,
            "student_only_correct": self.student_only_correct,
            f"{other}_only_correct": self.other_only_correct,
        }
        return {
            **{f"{metric}_difference": asdict(each) for metric, each in self.differences.items()},
            **{name: value for name, value in tested.items() if value is not None},
            **({"retention": self.retention} if other == "teacher" or self.retention is not None else {}),
            **({"gap": asdict(self.gap)} if self.gap else {}),
            **({"gap_closed": self.gap_closed and asdict(self.gap_closed)} if self.gap else {}),
        }


@dataclass(frozen=True)
class SeedSpread:
    """A metric over runs that differ in their seed alone.

    Args:
        values: one a seed.
        mean: of the values.
        sd: sample standard deviation (n - 1), None for one value.
    """

    values: list[float]
    mean: float
    sd: float | None


def without_controls(value: Any) -> Any:
    """Strike the control characters, which a terminal obeys, out of all strings; tabs and line feeds stay.

    Bytes of a path that are no UTF-8, which no file of ours could hold, are written as escapes.

    Args:
        value: parsed JSON, such as that of somebody else's report.

    Returns:
        The same, keys included.
    """
    if isinstance(value, Mapping):
        return {without_controls(key): without_controls(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_controls(entry) for entry in value]
    plain = isinstance(value, str)
    return _CONTROLS.sub("", value).encode("utf-8", "backslashreplace").decode("utf-8") if plain else value


def strict_json(value: Any) -> Any:
    """Return a value as strict JSON types: tuples become lists, keys strings, NaN and infinity None."""
    if isinstance(value, Mapping):
        return {str(key): strict_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict_json(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def format_number(value: float | None, spec: str = ".3f") -> str:
    """Format a number; "n/a" for None, NaN and infinity; where the digits would not show one, two that do."""
    if value is None or not math.isfinite(value):
        return "n/a"
    return format(value, ".2g" if spec == ".3f" and 0 < abs(value) < 0.0005 else spec)


def percent(share: float | None, digits: int = 1) -> str:
    """Format a share as "98.4 %"; "n/a" for None, NaN and infinity."""
    return "n/a" if share is None or not math.isfinite(share) else f"{100 * share:.{digits}f} %"

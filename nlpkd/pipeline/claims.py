"""Figures that were claimed, beside those that were measured again: each judged by one rule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from nlpkd.evaluation.metrics import IN_SCORES
from nlpkd.evaluation.origin import headline_figure, headline_name
from nlpkd.evaluation.records import (
    BASELINES,
    METRIC_NAMES,
    ONNX_RUNTIME,
    Breakdown,
    Candidate,
    ClassMetrics,
    Comparison,
    Interval,
    format_number,
)
from nlpkd.evaluation.report import EvaluationReport
from nlpkd.evaluation.report_text import listed, one_line
from nlpkd.utils.disk.files import weights_sha256

TOLERANCE = 0.005
"""How far a share or a correlation may lie from its claim on the same rows: other kernels and precisions move some.

An error in the unit of the scores may lie as far in shares of itself, or a quarter of its interval's half-width.
"""


NOT_AGAIN = "not re-measured"
"""Why a figure is not judged that was not measured again."""


_FEWEST_ROWS = 30


_UNMEASURED = Candidate(quality={}, agreement=None, parameters=None, size_mb=None)


@dataclass(frozen=True)
class Claim:
    """One figure: what was claimed, and what was found.

    Attributes:
        figure: its name.
        claimed: as it stands in the report or card.
        measured: likewise, of the second measurement.
        holds: whether the claim holds; None for a figure that is reported and not judged.
        why: the rule it was judged by.
    """

    figure: str
    claimed: str
    measured: str
    holds: bool | None
    why: str


def weights_claim(claimed: EvaluationReport, folder: Path) -> Claim:
    """Judge whether the weights are those that were measured, by their SHA-256."""
    stated, found = claimed.run.student.weights_sha256 or {}, weights_sha256(folder)
    shown, again = (
        " ".join(str(digest)[:12] for _, digest in sorted(each.items())) or "n/a" for each in (stated, found)
    )
    if not stated:
        return Claim("weights", shown, again, None, "no hash was claimed")
    return Claim("weights", shown, again, stated == found, "SHA-256 of each file")


@dataclass(frozen=True)
class MeasuredRows:
    """The rows of both measurements.

    Attributes:
        stated: how many the report names.
        measured: how many were measured again.
        known: whether these are the report's, by the SHA-256 of texts and labels; None where one has none.
    """

    stated: int | None
    measured: int
    known: bool | None

    @classmethod
    def of(cls, claimed: EvaluationReport, measured: EvaluationReport) -> MeasuredRows:
        """Compare the rows of two reports."""
        stated, found = (each.run.data.evaluated_sha256 for each in (claimed, measured))
        known = None if stated is None or found is None else stated == found
        return cls(claimed.task.rows, measured.task.rows or 0, known)

    @property
    def same(self) -> bool:
        """Whether figures of both must be the same: by the SHA-256 of the rows, or else by their number."""
        return self.stated == self.measured if self.known is None else self.known


def rows_claim(claimed: EvaluationReport, measured: EvaluationReport, same_data: bool) -> Claim:
    """Judge the rows, where they or the data set are those that the report names."""
    rows = MeasuredRows.of(claimed, measured)
    why = "of the same data set" if same_data else "these rows were given"
    if rows.known is not None:
        why = "SHA-256 of texts and labels" if rows.known else "other rows than the report's (SHA-256)"
    holds = rows.same and rows.stated == rows.measured
    judged = same_data or rows.known
    return Claim("rows", str(rows.stated), str(rows.measured), holds if judged else None, why)


def report_claims(claimed: EvaluationReport, measured: EvaluationReport, no_teacher: str) -> list[Claim]:
    """Judge what was measured again; all else the report claims stands beside it, not judged."""
    rows, no_teacher = MeasuredRows.of(claimed, measured), no_teacher or NOT_AGAIN
    counted_alike = claimed.run.flops_protocol == measured.run.flops_protocol
    claims = _task_claims(claimed, measured, rows)
    # What was measured by thresholds that nothing keeps can't be measured again; the student's files have its own.
    fitted, found = claimed.run.thresholds, measured.run.thresholds
    unkept = {name for name, each in fitted.items() if each not in (fitted.get("student"), found.get(name))}
    for name, before in claimed.candidates.items():
        now = measured.candidates.get(name, _UNMEASURED)
        if not counted_alike:
            now = replace(now, flops=None)
        if name == "teacher":
            # It may have been measured in half precision, which no report says.
            now = replace(now, size_mb=None)
        if name in unkept:
            now = replace(now, quality={}, breakdown=Breakdown())
        if "teacher" in unkept:
            now = replace(now, agreement=None)
        why = no_teacher if name in measured.candidates or name == "teacher" else _why_not(name, before)
        title = "" if name == "student" else f"{name}: "
        claims += _candidate_claims(title, before, now, rows, why)
        claims += _part_claims(title, measured.task.labels, before, now, rows, why)
    teacher, student = (measured.candidates.get(name, _UNMEASURED) for name in ("teacher", "student"))
    gold = headline_figure(teacher, measured.task.headline)
    headline = gold.value if gold else math.nan
    for name, paired in claimed.comparisons.items():
        other = name.removeprefix("student_vs_")
        again = Comparison({}) if other in unkept else measured.comparisons.get(name, Comparison({}))
        claims += _comparison_claims(other, paired, again, rows, headline, student.quality)
        claims += _gap_claims(claimed, other, paired)
    for name, spreads in claimed.seeds.items():
        for key, spread in spreads.items():
            figure = f"{name}: {METRIC_NAMES.get(key, key)}, mean ± sd of {len(spread.values)} seeds"
            stated = f"{format_number(spread.mean)} ± {format_number(spread.sd)}"
            claims.append(Claim(figure, stated, "n/a", None, f"{NOT_AGAIN}: one seed is published"))
    return claims


def _task_claims(claimed: EvaluationReport, measured: EvaluationReport, rows: MeasuredRows) -> list[Claim]:
    """Judge what the report says of labels and rows; of other rows all of it may differ."""
    before, now = claimed.task, measured.task
    names = [list(map(one_line, each.labels)) for each in (before, now)]
    stated, found = (headline_name(one_line(each.headline)) for each in (before, now))
    why, alike = "follows from the rows", (names[0] == names[1] if names[0] else None, stated == found)
    claims = [
        Claim("labels", listed(names[0]) or "n/a", listed(names[1]), alike[0] if rows.same else None, why),
        Claim("headline metric", stated, found, alike[1] if rows.same else None, why),
    ]
    for key in ("majority_share", "labels_a_row", "score_mean", "score_sd"):
        value, again = getattr(before, key), getattr(now, key)
        if value is not None:
            near = 1e-6 * max(abs(again or 0.0), TOLERANCE) if rows.same else math.inf
            claim = _figure(key.replace("_", " "), value, again, ".4g", near, why, NOT_AGAIN)
            claims.append(claim if rows.same else replace(claim, holds=None))
    return claims


def _why_not(name: str, candidate: Candidate) -> str:
    """Say why a candidate other than student and teacher was not measured again."""
    if candidate.runtime == ONNX_RUNTIME or name.endswith(".onnx"):
        return f"{NOT_AGAIN}: no ONNX file, or no extra export"
    return f"{NOT_AGAIN}: {'the baseline' if name in BASELINES else 'this model'} is not published with the student"


def _candidate_claims(title: str, before: Candidate, now: Candidate, rows: MeasuredRows, why: str) -> list[Claim]:
    """Judge one model's figures; `why` says why one was not measured again."""
    claims = [
        _metric(title + METRIC_NAMES.get(key, key), claim, found, rows, why, unit=found if key in IN_SCORES else None)
        for key, claim in before.quality.items()
        for found in [now.quality.get(key)]
    ]
    if before.agreement is not None:
        claims.append(_metric(f"{title}agreement with the teacher", before.agreement, now.agreement, rows, why))
    claims += [
        _figure(f"{title}parameters", before.parameters, now.parameters, ",", 0, "equal", why),
        _figure(f"{title}MB", before.size_mb, now.size_mb, ".1f", 0.1, "to 0.1 MB", why),
    ]
    if before.file_sha256 is not None:
        found = now.file_sha256
        holds = None if found is None else found == before.file_sha256
        shown = (before.file_sha256[:12], (found or "n/a")[:12])
        claims.append(Claim(f"{title}file", *shown, holds, why if found is None else "SHA-256 of the file"))
    if before.flops is not None:
        allowed = 0.01 * before.flops
        claims.append(_figure(f"{title}FLOPs", before.flops, now.flops, ",", allowed, "to 1 %", NOT_AGAIN))
    timed = {(entry.batch, entry.tokens): entry.p50_ms for entry in now.latency}
    for entry in before.latency:
        figure = f"{title}ms, batch {entry.batch}, {entry.tokens} tokens, p50"
        again = format_number(timed.get((entry.batch, entry.tokens)), ".2f")
        claims.append(Claim(figure, f"{entry.p50_ms:.2f}", again, None, "another machine"))
    if before.text_to_label_ms is not None:
        stated, again = (format_number(each.text_to_label_ms, ".2f") for each in (before, now))
        claims.append(Claim(f"{title}ms from text to label, p50", stated, again, None, "another machine"))
    fitted = before.temperature_scaling
    others = {"memory, MB": before.memory_mb, "training, s": before.training_seconds}
    if fitted:
        others |= {"temperature": fitted.temperature, "ECE at the temperature": fitted.ece_after}
    return claims + [
        Claim(title + figure, format_number(value), "n/a", None, NOT_AGAIN)
        for figure, value in others.items()
        if value is not None
    ]


def _part_claims(
    title: str, labels: list[str], before: Candidate, now: Candidate, rows: MeasuredRows, why: str
) -> list[Claim]:
    """Judge what the report says of a model beside the figures of the table: of them the furthest F1 of a class."""
    claims, parts = [], before.breakdown
    if before.temperature_scaling:
        stated, found = before.temperature_scaling.ece_before, now.quality.get("expected_calibration_error")
        claims.append(bare_value(f"{title}ECE before the temperature", stated, found, rows, why))
    classes, again = parts.per_class or [], now.breakdown.per_class or []
    if classes and again and len(classes) != len(again):
        counts = f"{len(classes)} classes", f"{len(again)} classes"
        claims.append(Claim(f"{title}F1 by class", *counts, False, "as many as the model has"))
    elif classes and not (again and rows.same):
        why = "follows from the rows" if again else why
        claims.append(Claim(f"{title}F1 by class", f"{len(classes)} classes", "n/a", None, why))
    elif classes:
        by_class = list(zip(classes, again, strict=True))
        allowed = [_f1_moves(new, _allowed(rows.measured) * rows.measured) for _, new in by_class]
        beyond = [
            abs(old.f1 - new.f1) / most if math.isfinite(old.f1) else -1.0
            for (old, new), most in zip(by_class, allowed, strict=True)
        ]
        at = max(range(len(by_class)), key=beyond.__getitem__)
        figure = f"{title}F1 of {one_line(labels[at])}, the furthest of {len(by_class)} classes"
        old, new = by_class[at]
        claims.append(_figure(figure, old.f1, new.f1, ".3f", allowed[at], f"to {allowed[at]:.3g}", why))
    if others := [part.replace("_", " ") for part in parts.to_dict() if part != "per_class"]:
        claims.append(Claim(f"{title}{', '.join(others)}", "in the report", "n/a", None, "parts of the quality"))
    return claims


def _f1_moves(measured: ClassMetrics, rows: float) -> float:
    """Return how far a class's F1, 2 hits / (its rows + those predicted as it), moves at most with so many rows."""
    predicted = measured.recall * measured.rows / measured.precision if measured.precision > 0 else 0.0
    return 2 * rows / max(measured.rows + predicted, 1.0)


def _comparison_claims(
    other: str,
    before: Comparison,
    now: Comparison,
    rows: MeasuredRows,
    headline: float,
    quality: Mapping[str, Interval],
) -> list[Claim]:
    """Judge how the student, of this quality, compares with another: both may move, so twice as much is allowed."""
    title, allowed, claims = f"student vs {other}", 2 * _allowed(rows.measured), []
    for key, paired in before.differences.items():
        figure = f"{title}: {key.replace('_', ' ')} difference"
        unit = quality.get(key) if key in IN_SCORES else None
        claims.append(_metric(figure, paired, now.differences.get(key), rows, NOT_AGAIN, unit=unit, models=2))
    # A count moves with the rows, a share of the teacher's metric with that metric, a p value with all of them.
    figures: dict[str, tuple[str, float | None]] = {
        "mcnemar p": ("mcnemar_p", None),
        "student only correct": ("student_only_correct", rows.measured),
        f"{other} only correct": ("other_only_correct", rows.measured),
        "retention": ("retention", 1 / headline if headline > 0 else math.nan),
    }
    for name, (key, scale) in figures.items():
        figure, claim, again = f"{title}: {name}", getattr(before, key), getattr(now, key)
        if claim is not None and (scale is None or not rows.same):
            claims.append(Claim(figure, format_number(claim), format_number(again), None, "follows from the rows"))
        elif claim is not None and scale is not None:
            limit = allowed * scale
            claims.append(_figure(figure, claim, again, ".4g", limit, f"to {limit:.3g}", NOT_AGAIN))
    return claims


def _gap_claims(claimed: EvaluationReport, other: str, paired: Comparison) -> list[Claim]:
    """Judge the gap to the teacher and the share that is closed by the figures of the report that they follow from."""
    metric, claims = claimed.task.headline, []
    values = [
        found.quality[metric].value
        if (found := claimed.candidates.get(name)) and metric in found.quality
        else math.nan
        for name in ("student", other, "teacher")
    ]
    student, baseline, teacher = values
    follows = {
        "gap to the teacher": (paired.gap, teacher - baseline),
        "share of the gap closed": (paired.gap_closed, (student - baseline) / (teacher - baseline or math.nan)),
    }
    for name, (claim, expected) in follows.items():
        if claim is not None:
            within = claim.low <= claim.value <= claim.high and abs(claim.value - expected) <= 1e-6
            holds = within if math.isfinite(expected) else None
            why = "follows from the report's own figures"
            claims.append(Claim(f"student vs {other}: {name}", str(claim), format_number(expected), holds, why))
    return claims


def bare_value(
    title: str, value: float, found: Interval | None, rows: MeasuredRows, missing: str = NOT_AGAIN
) -> Claim:
    """Judge a share or a correlation that was stated without an interval."""
    claim = _metric(title, Interval(value, math.nan, math.nan), found, rows, missing)
    return replace(claim, claimed=format_number(value))


def _metric(
    title: str,
    claim: Interval,
    found: Interval | None,
    rows: MeasuredRows,
    missing: str = NOT_AGAIN,
    *,
    unit: Interval | None = None,
    models: int = 1,
) -> Claim:
    """Judge a value with its interval; `unit` is a measured figure in whose unit it is, None of shares."""
    if found is None:
        return Claim(title, str(claim), "n/a", None, missing)
    if not math.isfinite(claim.value):
        return Claim(title, str(claim), format_number(found.value), None, "no number was claimed")
    if not math.isfinite(found.value):
        return Claim(title, str(claim), format_number(found.value), False, "no number was measured")
    measured_rows = rows.measured
    stated_rows = measured_rows if rows.same else rows.stated or measured_rows
    # The half-width that as many rows as claimed would give; the claim itself may say anything.
    ratio = measured_rows / stated_rows
    expected = _half_width(found) * math.sqrt(ratio)
    floor = _allowed(min(measured_rows, stated_rows), unit)
    # What resampling takes off a macro F1 goes with the rows themselves instead of their root.
    if _is_absurd(claim, _half_width(found) * max(ratio, math.sqrt(ratio)), floor):
        why = f"{stated_rows} rows give no such interval: about ± {expected:.3g}"
        return Claim(title, str(claim), format_number(found.value), False, why)
    if min(claim.low, claim.value) > found.high or max(claim.high, claim.value) < found.low:
        return Claim(title, str(claim), str(found), False, "the intervals have nothing in common")
    if rows.same:
        allowed = models * _allowed(measured_rows, unit)
        why = f"same {'rows' if rows.known else 'number of rows'}, to {allowed:.3g}"
    elif stated_rows < _FEWEST_ROWS:
        return Claim(title, str(claim), str(found), None, f"{stated_rows} rows were measured: too few to tell")
    else:
        allowed = max(floor, math.hypot(_half_width(found), min(_half_width(claim, expected), 1.5 * expected)))
        told = "other rows" if rows.stated == measured_rows else f"{measured_rows} rows for {rows.stated}"
        why = f"{told}: both intervals, to {allowed:.3g}"
    return Claim(title, str(claim), str(found), abs(claim.value - found.value) <= allowed, why)


def _half_width(interval: Interval, default: float = 0.0) -> float:
    width = interval.high - interval.low
    return width / 2 if math.isfinite(width) else default


def _is_absurd(claim: Interval, expected: float, floor: float) -> bool:
    """Check whether a claimed interval is far wider than the rows give, upside down, or far from its value."""
    half = _half_width(claim, expected)
    # Earlier versions did not widen an interval to its value: it may lie beside it, by as much as one now is wide.
    outside = max(claim.low - claim.value, claim.value - claim.high)
    return half < 0 or half > 3 * expected + floor or outside > 2 * max(half, expected) + floor


def _figure(
    title: str, claim: float | None, found: float | None, spec: str, allowed: float, why: str, missing: str
) -> Claim:
    if not (isinstance(claim, (int, float)) and math.isfinite(claim)):
        return Claim(title, "n/a", "n/a" if found is None else format(found, spec), None, "no number was claimed")
    if found is None or math.isnan(found):
        return Claim(title, format(claim, spec), "n/a", None, missing)
    return Claim(title, format(claim, spec), format(found, spec), abs(claim - found) <= allowed, why)


def _allowed(rows: int, unit: Interval | None = None) -> float:
    """Return how far a figure may lie from its claim on the same rows, in the unit of a measured one or of shares."""
    if unit is None:
        return max(TOLERANCE, 2 / rows)
    return max(TOLERANCE * abs(unit.value), _half_width(unit) / 4)

"""Figures that were claimed, beside those that were measured again: each judged by one rule."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, parse_eval_result_entries
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from yaml import YAMLError

from nlpkd.evaluation.records import METRIC_NAMES, Candidate, Comparison, Interval, format_number
from nlpkd.evaluation.report import EvaluationReport
from nlpkd.evaluation.report_text import one_line
from nlpkd.hub.eval_results import RESULTS_FILES, RESULTS_FOLDER
from nlpkd.hub.model_card import CARD_METRICS
from nlpkd.utils.files import explain_damage, weights_sha256
from nlpkd.utils.yaml_files import parse_yaml, read_yaml

TOLERANCE = 0.005
"""How far a metric may lie from its claim on the same rows: other kernels and precisions move single rows."""


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


def rows_claim(stated: int | None, found: int | None, same_data: bool) -> Claim:
    """Judge the number of rows, where the data are those that the report names."""
    why = "of the same data set" if same_data else "these rows were given"
    return Claim("rows", str(stated), str(found), stated == found if same_data else None, why)


def report_claims(claimed: EvaluationReport, measured: EvaluationReport, no_teacher: str) -> list[Claim]:
    """Judge what was measured again; all else the report claims stands beside it, not judged."""
    rows, no_teacher = (claimed.task.rows, measured.task.rows or 0), no_teacher or NOT_AGAIN
    counted_alike = claimed.run.flops_protocol == measured.run.flops_protocol
    claims: list[Claim] = []
    # The student's thresholds alone are in a config, by which its files decide too.
    fitted = claimed.run.thresholds
    unkept = {name for name, each in fitted.items() if each != fitted["student"]}
    for name, before in claimed.candidates.items():
        now = measured.candidates.get(name, _UNMEASURED)
        if not counted_alike:
            now = replace(now, flops=None)
        if name == "teacher":
            # It may have been measured in half precision, which no report says.
            now = replace(now, size_mb=None)
        if name in unkept:
            now = replace(now, quality={})
        if "teacher" in unkept:
            now = replace(now, agreement=None)
        known = name in measured.candidates or name == "teacher"
        why = no_teacher if known else f"{NOT_AGAIN}: no ONNX file, or no extra export"
        claims += _candidate_claims("" if name == "student" else f"{name}: ", before, now, rows, why)
    teacher = measured.candidates.get("teacher")
    gold = teacher.quality.get(measured.task.headline) if teacher else None
    headline = gold.value if gold else math.nan
    for name, paired in claimed.comparisons.items():
        other = name.removeprefix("student_vs_")
        again = Comparison({}) if other in unkept else measured.comparisons.get(name, Comparison({}))
        claims += _comparison_claims(other, paired, again, rows, headline)
        claims += _gap_claims(claimed, other, paired)
    for name, spreads in claimed.seeds.items():
        for key, spread in spreads.items():
            figure = f"{name}: {METRIC_NAMES.get(key, key)}, mean ± sd of {len(spread.values)} seeds"
            stated = f"{format_number(spread.mean)} ± {format_number(spread.sd)}"
            claims.append(Claim(figure, stated, "n/a", None, f"{NOT_AGAIN}: one seed is published"))
    return claims


def _candidate_claims(
    title: str, before: Candidate, now: Candidate, rows: tuple[int | None, int], why: str
) -> list[Claim]:
    """Judge one model's figures; `why` says why one was not measured again."""
    claims = [
        _metric(title + METRIC_NAMES.get(key, key), claim, now.quality.get(key), rows, why)
        for key, claim in before.quality.items()
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
    temperature = before.temperature_scaling.temperature if before.temperature_scaling else None
    others = {"memory, MB": before.memory_mb, "training, s": before.training_seconds, "temperature": temperature}
    return claims + [
        Claim(title + figure, format_number(value), "n/a", None, NOT_AGAIN)
        for figure, value in others.items()
        if value is not None
    ]


def _comparison_claims(
    other: str, before: Comparison, now: Comparison, rows: tuple[int | None, int], headline: float
) -> list[Claim]:
    """Judge how the student compares with another candidate: both may move, so that twice as much is allowed."""
    title, allowed, claims = f"student vs {other}", 2 * _allowed(rows[1]), []
    for key, paired in before.differences.items():
        figure = f"{title}: {key.replace('_', ' ')} difference"
        claims.append(_metric(figure, paired, now.differences.get(key), rows, NOT_AGAIN, allowed))
    # A count moves with the rows, a share of the teacher's metric with that metric, a p value with all of them.
    figures: dict[str, tuple[str, float | None]] = {
        "mcnemar p": ("mcnemar_p", None),
        "student only correct": ("student_only_correct", rows[1]),
        f"{other} only correct": ("other_only_correct", rows[1]),
        "retention": ("retention", 1 / headline if headline > 0 else math.nan),
    }
    for name, (key, scale) in figures.items():
        figure, claim, again = f"{title}: {name}", getattr(before, key), getattr(now, key)
        if claim is not None and (scale is None or rows[0] != rows[1]):
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


def card_claims(claimed: EvaluationReport, measured: EvaluationReport, folder: Path) -> list[Claim]:
    """Judge the figures of the card's `model-index`."""
    card = folder / "README.md"
    if not card.is_file():
        return []
    with explain_damage(card, "its metadata can't be checked"):
        try:
            # First what the metadata stands for: a few lines can name billions of values.
            block = REGEX_YAML_BLOCK.search(card.read_text(encoding="utf-8"))
            metadata = parse_yaml(block[2], card) if block else None
            results = ModelCard.load(card, ignore_metadata_errors=True).data.eval_results or []
            unread = not results and "model-index" in (metadata or {})
        except YAMLError as error:
            raise ValueError(str(error)) from error
    if unread:
        return [Claim("card: model-index", "figures", "n/a", None, "it can't be read")]
    metrics = {_spelling(name): key for key, names in CARD_METRICS.items() for name in (key, *names)}
    claims, rows = [], (claimed.task.rows, measured.task.rows or 0)
    for result in results:
        key = metrics.get(_spelling(result.metric_type))
        title = f"card: {one_line(METRIC_NAMES[key] if key else result.metric_type)}"
        found = measured.candidates["student"].quality.get(key or "")
        if found is None:
            claims.append(Claim(title, one_line(result.metric_value), "n/a", None, "not measured here"))
            continue
        with explain_damage(card, f"the value of {one_line(result.metric_type)} in its metadata is no number"):
            value = float(result.metric_value)
        claims.append(_bare_value(title, value, found, rows))
    return claims


def leaderboard_claims(claimed: EvaluationReport, measured: EvaluationReport, folder: Path) -> list[Claim]:
    """Judge the figures for leaderboards of the Hub that nlpkd wrote: those whose notes name the headline metric."""
    headline, claims = claimed.task.headline, []
    for path in sorted(folder.glob(RESULTS_FILES)):
        title = f"{RESULTS_FOLDER}/{one_line(path.name)}"
        with explain_damage(path, "its figures can't be checked"):
            entries = parse_eval_result_entries(read_yaml(path))
            values = [float(entry.value) for entry in entries if entry.notes == METRIC_NAMES[headline]]
        found, rows = (
            measured.candidates["student"].quality.get(headline),
            (claimed.task.rows, measured.task.rows or 0),
        )
        claims += [_bare_value(title, value, found, rows) for value in values]
    return claims


def _bare_value(title: str, value: float, found: Interval | None, rows: tuple[int | None, int]) -> Claim:
    """Judge a value that was stated without an interval."""
    return replace(_metric(title, Interval(value, math.nan, math.nan), found, rows), claimed=format_number(value))


def _spelling(name: Any) -> str:
    """Return a metric's name without what spellings of it differ in."""
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def _metric(
    title: str,
    claim: Interval,
    found: Interval | None,
    rows: tuple[int | None, int],
    missing: str = NOT_AGAIN,
    allowed: float | None = None,
) -> Claim:
    """Judge a value with its interval."""
    if found is None:
        return Claim(title, str(claim), "n/a", None, missing)
    if not math.isfinite(claim.value):
        return Claim(title, str(claim), format_number(found.value), None, "no number was claimed")
    if not math.isfinite(found.value):
        return Claim(title, str(claim), format_number(found.value), False, "no number was measured")
    stated_rows, measured_rows = rows[0] or rows[1], rows[1]
    # The half-width that as many rows as claimed would give; the claim itself may say anything.
    expected = _half_width(found) * math.sqrt(measured_rows / stated_rows)
    floor = _allowed(min(rows[1], stated_rows))
    if _is_absurd(claim, expected, floor):
        why = f"{stated_rows} rows give no such interval: about ± {expected:.3f}"
        return Claim(title, str(claim), format_number(found.value), False, why)
    if rows[0] == measured_rows:
        allowed = allowed or _allowed(measured_rows)
        why = f"same number of rows, to {allowed:.3f}"
    elif stated_rows < _FEWEST_ROWS:
        return Claim(title, str(claim), str(found), None, f"{stated_rows} rows were measured: too few to tell")
    else:
        allowed = max(floor, math.hypot(_half_width(found), min(_half_width(claim, expected), 1.5 * expected)))
        why = f"{measured_rows} rows for {rows[0]}: both intervals, to {allowed:.3f}"
    return Claim(title, str(claim), str(found), abs(claim.value - found.value) <= allowed, why)


def _half_width(interval: Interval, default: float = 0.0) -> float:
    width = interval.high - interval.low
    return width / 2 if math.isfinite(width) else default


def _is_absurd(claim: Interval, expected: float, floor: float) -> bool:
    """Check whether a claimed interval is far wider than the rows give, upside down, or far from its value."""
    half = _half_width(claim, expected)
    # A calibration error is biased upwards by resampling, so that it may lie beside its interval.
    outside = max(claim.low - claim.value, claim.value - claim.high)
    return half < 0 or half > 3 * expected + floor or outside > 2 * half + floor


def _figure(
    title: str, claim: float | None, found: float | None, spec: str, allowed: float, why: str, missing: str
) -> Claim:
    if not (isinstance(claim, (int, float)) and math.isfinite(claim)):
        return Claim(title, "n/a", "n/a" if found is None else format(found, spec), None, "no number was claimed")
    if found is None or math.isnan(found):
        return Claim(title, format(claim, spec), "n/a", None, missing)
    return Claim(title, format(claim, spec), format(found, spec), abs(claim - found) <= allowed, why)


def _allowed(rows: int) -> float:
    return max(TOLERANCE, 2 / rows)

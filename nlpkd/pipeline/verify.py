"""Does a published student keep what its report and card claim? Download it, measure it again, compare."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, metadata_load, snapshot_download
from yaml import YAMLError

from nlpkd.data.labels.classes import Classes
from nlpkd.data.sources import Source
from nlpkd.evaluation.benchmark import model_size_mb
from nlpkd.evaluation.origin import DataRecord
from nlpkd.evaluation.records import METRIC_NAMES, Candidate, Comparison, Interval, format_number
from nlpkd.evaluation.report import JSON_NAME, EvaluationReport
from nlpkd.evaluation.report_text import markdown_table, one_line
from nlpkd.hub.client import limit_hub_requests
from nlpkd.hub.model_card import CARD_METRICS, hub_id
from nlpkd.hub.push import PUSH_ALLOW_PATTERNS
from nlpkd.models.loading import load_config, split_revision
from nlpkd.models.onnx_classifier import weights_sha256
from nlpkd.pipeline.evaluate import evaluate
from nlpkd.utils.files import explain_damage

TOLERANCE = 0.005
"""How far a metric may lie from its claim on the same rows: other kernels and precisions move single rows."""


_AGAIN = "not re-measured"


_FEWEST_ROWS = 30


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


@dataclass(frozen=True)
class Verification:
    """What became of a student's claims.

    Attributes:
        model: the student, with the commit where it came from the Hub.
        claims: figure by figure.
        quality: the figures without which the student's quality is not known.
    """

    model: str
    claims: list[Claim]
    quality: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether no claim was found wrong."""
        return all(claim.holds is not False for claim in self.claims)

    def _judged(self) -> list[Claim]:
        return [claim for claim in self.claims if claim.holds is not None]

    def to_markdown(self) -> str:
        """Write a row a figure, and the conclusion.

        Returns:
            A Markdown document.
        """
        words = {True: "holds", False: "DOES NOT HOLD", None: "not judged"}
        rows = [[each.figure, each.claimed, each.measured, words[each.holds], each.why] for each in self.claims]
        wrong = [claim.figure for claim in self.claims if claim.holds is False]
        judged = len(self._judged())
        conclusion = f"{len(wrong)} of {judged} claims do not hold: {', '.join(wrong)}." if wrong else (
            f"All {judged} judged claims hold."
        )  # fmt: skip
        if judged < len(self.claims) and not wrong:
            conclusion += f" {len(self.claims) - judged} further figures are not judged"
            unknown = [name for name in self.quality if not any(each.figure == name for each in self._judged())]
            conclusion += f", {', '.join(unknown)} among them: nothing is known of that." if unknown else "."
        table = markdown_table(["figure", "claimed", "measured", "verdict", "because"], rows)
        return f"# Claims of {self.model}\n\n{table}\n\n{conclusion}\n"


def verify(
    model: str | Path,
    data: Source | None = None,
    *,
    revision: str | None = None,
    teacher: str | Path | None = None,
    trust_remote_code: bool = False,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | Sequence[str] | None = None,
    max_length: int | None = None,
    window_stride: int | None = None,
    dataset_config: str | None = None,
    dataset_revision: str | None = None,
    split: str | None = None,
    **measuring: Any,
) -> Verification:
    """Measure a student again and compare with the figures of its `report.json` and its card.

    On as many rows as the report's a metric must come out the same but for `TOLERANCE` (or two rows, where that is
    more); on another number of rows its interval and the measured one must agree: the difference of both values is at
    most the root of the squared half-widths' sum. A claimed interval that is far wider than what so many rows give is
    refused. The weights must have the claimed SHA-256, parameters must be equal, the size of the weights to 0.1 MB,
    operations to 1 %. Latencies depend on the machine: both are shown, and not judged. Nor is what can't be measured
    again: a baseline, further seeds, a teacher that is not on the Hub.

    Args:
        model: a Hub id (`id@revision` too), of which only what a push may hold is downloaded, or a folder. ONNX files
            in its folder `onnx` are measured where the report has them.
        data: labelled rows; the data set of the Hub that the report names, if None.
        revision: branch, tag or commit on the Hub.
        teacher: a path or Hub id; the report's, if None, where it is on the Hub and its labels have names.
        trust_remote_code: run the model repository's own code.
        text_column: the column of the text.
        text_pair_column: the column of the second text.
        label_column: the column of the label, or several with a 0 or 1 for each label.
        max_length: longest text in tokens; the report's, if None.
        window_stride: tokens that the windows of long texts share; the report's, if None.
        dataset_config: configuration of a Hub data set; of the report's, the report's if None.
        dataset_revision: revision of a Hub data set, likewise.
        split: which one to measure on, likewise.
        **measuring: further arguments of `nlpkd.evaluate_student`.

    Returns:
        Each claim with its verdict.

    Raises:
        ValueError: without a report, without a quality that it claims, or without data to measure on.
    """
    limit_hub_requests()
    name, commit = split_revision(str(model)) if revision is None else (str(model), revision)
    folder = Path(name)
    if not folder.is_dir():
        folder = Path(snapshot_download(name, revision=commit, allow_patterns=PUSH_ALLOW_PATTERNS))
        name = f"{name} at {folder.name}"
    if not (folder / JSON_NAME).is_file():
        raise ValueError(f"{name} has no {JSON_NAME}, so it claims nothing that can be measured again")
    claimed = EvaluationReport.load(folder)
    headline = claimed.task.headline
    if headline not in METRIC_NAMES or headline not in claimed.candidates["student"].quality:
        raise ValueError(
            f"the report of {name} claims no {METRIC_NAMES.get(headline, headline)} of its student, which its verdict "
            "rests on: there is nothing to verify"
        )
    about = claimed.run.data
    source, options = (data, {}) if data is not None else _named_data(about, name)
    asked = {"dataset_config": dataset_config, "dataset_revision": dataset_revision, "split": split}
    options |= {option: value for option, value in asked.items() if value is not None}
    missing = ""
    if teacher is None:
        teacher, missing = _named_teacher(claimed, folder, trust_remote_code)
    measured = evaluate(
        folder,
        source,
        teacher=teacher,
        candidates=_onnx_files(claimed, folder),
        trust_remote_code=trust_remote_code,
        text_column=text_column,
        text_pair_column=text_pair_column,
        label_column=label_column,
        max_length=max_length or about.max_length,
        window_stride=window_stride or about.window_stride,
        **options,
        **measuring,
    )
    # A model on disk, which saved again might be smaller or larger.
    student = replace(measured.candidates["student"], size_mb=model_size_mb(folder))
    measured = replace(measured, candidates=measured.candidates | {"student": student})
    claims = [
        _weights_claim(claimed, folder),
        _rows_claim(claimed.task.rows, measured.task.rows, same_data=data is None),
        *_report_claims(claimed, measured, missing),
        *_card_claims(claimed, measured, folder),
    ]
    return Verification(name, claims, (METRIC_NAMES[headline],))


def _named_data(about: DataRecord, name: str) -> tuple[str, dict[str, Any]]:
    """Return the data set of the Hub that a report names, and how to load it."""
    known, revision = split_revision(str(about.name or ""))
    found = hub_id(known)
    if found is None:
        raise ValueError(
            f"the report of {name} was measured on {about.name or 'unnamed data'}, which is no data set of the "
            "Hub: give the same rows (--data)"
        )
    return found, {
        "dataset_config": about.config,
        "dataset_revision": about.revision or revision,
        "split": about.split,
    }


def _named_teacher(claimed: EvaluationReport, folder: Path, trust_remote_code: bool) -> tuple[str | None, str]:
    """Return the report's teacher, or why it can't be measured again."""
    about = claimed.run.teacher
    name, revision = hub_id(about.name), about.revision
    if name is None:
        return None, f"{_AGAIN}: the teacher, {about.name or 'unnamed'}, is not on the Hub (--teacher)"
    try:
        theirs: Any = load_config(name, revision=revision, trust_remote_code=trust_remote_code)
        ours: Any = load_config(folder, trust_remote_code=trust_remote_code)
        order = Classes.of(ours.id2label).positions_in(Classes.of(theirs.id2label))
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())
        return None, f"{_AGAIN}: {said}"
    if order is None:
        return None, f"{_AGAIN}: the names of the labels of {name} or of the student do not tell their order"
    return (f"{name}@{revision}" if revision else name), ""


def _onnx_files(claimed: EvaluationReport, folder: Path) -> dict[str, Path]:
    """Find the student's ONNX files that the report has as candidates, by their names in it."""
    if not (find_spec("onnxruntime") and find_spec("onnx")):
        return {}
    names = {
        name: file
        for file in sorted((folder / "onnx").glob("*.onnx"))
        for name in (f"onnx/{file.name}", file.name, file.stem, file.stem.removeprefix("model_"))
    }
    return {name: names[name] for name in claimed.candidates if name in names}


def _weights_claim(claimed: EvaluationReport, folder: Path) -> Claim:
    """Judge whether the weights are those that were measured, by their SHA-256."""
    stated, found = claimed.run.student.weights_sha256 or {}, weights_sha256(folder)
    shown, again = (
        " ".join(str(digest)[:12] for _, digest in sorted(each.items())) or "n/a" for each in (stated, found)
    )
    if not stated:
        return Claim("weights", shown, again, None, "no hash was claimed")
    return Claim("weights", shown, again, stated == found, "SHA-256 of each file")


def _rows_claim(stated: int | None, found: int | None, same_data: bool) -> Claim:
    """Judge the number of rows, where the data are those that the report names."""
    why = "of the same data set" if same_data else "these rows were given"
    return Claim("rows", str(stated), str(found), stated == found if same_data else None, why)


def _report_claims(claimed: EvaluationReport, measured: EvaluationReport, no_teacher: str) -> list[Claim]:
    """Judge what was measured again; all else the report claims stands beside it, not judged."""
    rows, no_teacher = (claimed.task.rows, measured.task.rows or 0), no_teacher or _AGAIN
    counted_alike = claimed.run.flops_protocol == measured.run.flops_protocol
    claims: list[Claim] = []
    for name, before in claimed.candidates.items():
        now = measured.candidates.get(name)
        if now is not None and not counted_alike:
            now = replace(now, flops=None)
        if now is not None and name == "teacher":
            # It may have been measured in half precision, which no report says.
            now = replace(now, size_mb=math.nan)
        if now is not None and name != "student" and name in claimed.run.thresholds:
            # The student's thresholds alone are in a config.
            now = replace(now, quality={})
        why = no_teacher if now is not None or name == "teacher" else f"{_AGAIN}: no ONNX file, or no extra export"
        claims += _candidate_claims("" if name == "student" else f"{name}: ", before, now, rows, why)
    teacher = measured.candidates.get("teacher")
    headline = teacher.quality[measured.task.headline].value if teacher else math.nan
    for name, paired in claimed.comparisons.items():
        other = name.removeprefix("student_vs_")
        claims += _comparison_claims(other, paired, measured.comparisons.get(name), rows, headline)
    for name, spreads in claimed.seeds.items():
        for key, spread in spreads.items():
            figure = f"{name}: {METRIC_NAMES.get(key, key)}, mean ± sd of {len(spread.values)} seeds"
            stated = f"{format_number(spread.mean)} ± {format_number(spread.sd)}"
            claims.append(Claim(figure, stated, "n/a", None, f"{_AGAIN}: one seed is published"))
    return claims


def _candidate_claims(
    title: str, before: Candidate, now: Candidate | None, rows: tuple[int | None, int], why: str
) -> list[Claim]:
    """Judge one model's figures; `why` says why one was not measured again."""
    claims = [
        _metric(title + METRIC_NAMES.get(key, key), claim, now.quality.get(key) if now else None, rows, why)
        for key, claim in before.quality.items()
    ]
    if before.agreement is not None:
        found = now.agreement if now else None
        claims.append(_metric(f"{title}agreement with the teacher", before.agreement, found, rows, why))
    counted = (now.parameters, now.size_mb, now.flops) if now else (None, None, None)
    claims += [
        _figure(f"{title}parameters", before.parameters, counted[0], ",", 0, "equal", why),
        _figure(f"{title}MB", before.size_mb, counted[1], ".1f", 0.1, "to 0.1 MB", why),
    ]
    if before.flops is not None:
        allowed = 0.01 * before.flops
        claims.append(_figure(f"{title}FLOPs", before.flops, counted[2], ",", allowed, "to 1 %", _AGAIN))
    timed = {(entry.batch, entry.tokens): entry for entry in now.latency} if now else {}
    for entry in before.latency:
        again = timed.get((entry.batch, entry.tokens))
        figure = f"{title}ms, batch {entry.batch}, {entry.tokens} tokens, p50"
        shown = f"{again.p50_ms:.2f}" if again else "n/a"
        claims.append(Claim(figure, f"{entry.p50_ms:.2f}", shown, None, "another machine"))
    temperature = before.temperature_scaling.temperature if before.temperature_scaling else None
    others = {"memory, MB": before.memory_mb, "training, s": before.training_seconds, "temperature": temperature}
    stated = {figure: value for figure, value in others.items() if value is not None}
    return claims + [
        Claim(title + figure, format_number(value), "n/a", None, _AGAIN) for figure, value in stated.items()
    ]


def _comparison_claims(
    other: str, before: Comparison, now: Comparison | None, rows: tuple[int | None, int], headline: float
) -> list[Claim]:
    """Judge how the student compares with another candidate: both may move, so that twice as much is allowed."""
    title, allowed = f"student vs {other}", 2 * _allowed(rows[1])
    claims = [
        _metric(f"{title}: {key.replace('_', ' ')} difference", claim, again, rows, _AGAIN, allowed)
        for key, claim in before.differences.items()
        for again in [now.differences.get(key) if now else None]
    ]
    # A count moves with the rows, a share of the teacher's metric with that metric.
    scales: dict[str, float] = {"student only correct": rows[1], f"{other} only correct": rows[1]}
    scales["retention"] = 1 / headline if headline > 0 else math.nan
    figures = {
        "mcnemar p": "mcnemar_p",
        "student only correct": "student_only_correct",
        f"{other} only correct": "other_only_correct",
        "retention": "retention",
    }
    for name, key in figures.items():
        figure, claim, again = f"{title}: {name}", getattr(before, key), getattr(now, key) if now else None
        if claim is None:
            continue
        if name == "mcnemar p" or rows[0] != rows[1]:
            claims.append(Claim(figure, format_number(claim), format_number(again), None, "follows from the rows"))
        else:
            limit = allowed * scales[name]
            claims.append(_figure(figure, claim, again, ".4g", limit, f"to {limit:.3g}", _AGAIN))
    return claims


def _card_claims(claimed: EvaluationReport, measured: EvaluationReport, folder: Path) -> list[Claim]:
    """Judge the figures of the card's `model-index`."""
    card = folder / "README.md"
    if not card.is_file():
        return []
    with explain_damage(card, "its metadata can't be checked"):
        try:
            results = ModelCard.load(card, ignore_metadata_errors=True).data.eval_results or []
            unread = not results and "model-index" in (metadata_load(card) or {})
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
        # A card states no interval.
        judged = _metric(title, Interval(value, math.nan, math.nan), found, rows)
        claims.append(replace(judged, claimed=format_number(value)))
    return claims


def _spelling(name: Any) -> str:
    """Return a metric's name without what spellings of it differ in."""
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def _metric(
    title: str,
    claim: Interval,
    found: Interval | None,
    rows: tuple[int | None, int],
    missing: str = _AGAIN,
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


def _figure(title: str, claim: float, found: float | None, spec: str, allowed: float, why: str, missing: str) -> Claim:
    if not (isinstance(claim, (int, float)) and math.isfinite(claim)):
        return Claim(title, "n/a", "n/a" if found is None else format(found, spec), None, "no number was claimed")
    if found is None or math.isnan(found):
        return Claim(title, format(claim, spec), "n/a", None, missing)
    return Claim(title, format(claim, spec), format(found, spec), abs(claim - found) <= allowed, why)


def _allowed(rows: int) -> float:
    return max(TOLERANCE, 2 / rows)

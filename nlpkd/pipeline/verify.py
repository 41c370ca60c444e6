"""Does a published student keep what its report and card claim? Download it, measure it again, compare."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, snapshot_download
from yaml import YAMLError

from nlpkd.data.labels.classes import Classes
from nlpkd.data.sources import Source
from nlpkd.evaluation.benchmark import model_size_mb
from nlpkd.evaluation.origin import DataRecord
from nlpkd.evaluation.records import METRIC_NAMES, Candidate, Comparison, Interval, format_number
from nlpkd.evaluation.report import JSON_NAME, EvaluationReport
from nlpkd.evaluation.report_text import markdown_table
from nlpkd.hub.client import limit_hub_requests
from nlpkd.hub.model_card import CARD_METRICS, hub_id
from nlpkd.hub.push import PUSH_ALLOW_PATTERNS
from nlpkd.models.loading import load_config, split_revision
from nlpkd.pipeline.evaluate import evaluate
from nlpkd.utils.files import explain_damage

TOLERANCE = 0.005
"""How far a metric may lie from its claim on the same rows: other kernels and precisions move single rows."""


_AGAIN = "not re-measured"


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
    """

    model: str
    claims: list[Claim]

    @property
    def holds(self) -> bool:
        """Whether no claim was found wrong."""
        return all(claim.holds is not False for claim in self.claims)

    def to_markdown(self) -> str:
        """Write a row a figure, and the conclusion.

        Returns:
            A Markdown document.
        """
        words = {True: "holds", False: "DOES NOT HOLD", None: "not judged"}
        rows = [[each.figure, each.claimed, each.measured, words[each.holds], each.why] for each in self.claims]
        wrong = [claim.figure for claim in self.claims if claim.holds is False]
        judged = sum(claim.holds is not None for claim in self.claims)
        conclusion = f"{len(wrong)} of {judged} claims do not hold: {', '.join(wrong)}." if wrong else (
            f"All {judged} judged claims hold."
        )  # fmt: skip
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
    more); on another number of rows it must lie in its claimed interval. Parameters must be equal, the size of the
    weights to 0.1 MB, operations to 1 %. Latencies depend on the machine: both are shown, and not judged. Nor is what
    can't be measured again: a baseline, further seeds, a teacher that is not on the Hub.

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
        ValueError: without a report, or without data to measure on.
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
    claims = [*_report_claims(claimed, measured, missing), *_card_claims(claimed, measured, folder)]
    return Verification(name, claims)


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
    """Judge the figures of the card's `model-index`, by the intervals of the report."""
    card = folder / "README.md"
    results = None
    if card.is_file():
        with explain_damage(card, "its metadata can't be checked"):
            try:
                results = ModelCard.load(card, ignore_metadata_errors=True).data.eval_results
            except YAMLError as error:
                raise ValueError(str(error)) from error
    metrics = {metric: key for key, (metric, _) in CARD_METRICS.items()}
    claims, rows = [], (claimed.task.rows, measured.task.rows or 0)
    for result in results or []:
        key = metrics.get(result.metric_type)
        if key not in claimed.candidates["student"].quality:
            continue
        stated = claimed.candidates["student"].quality[key]
        with explain_damage(card, f"the value of {result.metric_type} in its metadata is no number"):
            claim = Interval(float(result.metric_value), stated.low, stated.high)
        claims.append(_metric(f"card: {METRIC_NAMES[key]}", claim, measured.candidates["student"].quality[key], rows))
    return claims


def _metric(
    title: str,
    claim: Interval,
    found: Interval | None,
    rows: tuple[int | None, int],
    missing: str = _AGAIN,
    allowed: float | None = None,
) -> Claim:
    if found is None:
        return Claim(title, str(claim), "n/a", None, missing)
    if not math.isfinite(claim.value):
        return Claim(title, str(claim), format_number(found.value), None, "no number was claimed")
    if rows[0] == rows[1]:
        allowed = allowed or _allowed(rows[1])
        holds, why = abs(claim.value - found.value) <= allowed, f"same number of rows, to {allowed:.3f}"
    else:
        holds, why = claim.low <= found.value <= claim.high, f"{rows[1]} rows for {rows[0]}: in the claimed interval"
    return Claim(title, str(claim), format_number(found.value), holds and math.isfinite(found.value), why)


def _figure(title: str, claim: float, found: float | None, spec: str, allowed: float, why: str, missing: str) -> Claim:
    if found is None or math.isnan(found):
        return Claim(title, format(claim, spec), "n/a", None, missing)
    return Claim(title, format(claim, spec), format(found, spec), abs(claim - found) <= allowed, why)


def _allowed(rows: int) -> float:
    return max(TOLERANCE, 2 / rows)

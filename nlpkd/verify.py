"""Does a published student keep what its report and card claim? Download it, measure it again, compare."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, snapshot_download

from nlpkd.benchmark import model_size_mb
from nlpkd.compare import evaluate
from nlpkd.hub import PUSH_ALLOW_PATTERNS
from nlpkd.loading import split_revision
from nlpkd.model_card import CARD_METRICS, hub_id
from nlpkd.report import JSON_NAME, METRIC_NAMES, EvaluationReport, Interval, markdown_table
from nlpkd.sources import Source

TOLERANCE = 0.005
"""How far a metric may lie from its claim on the same rows: other kernels and precisions move single rows."""


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
    **measuring: Any,
) -> Verification:
    """Measure a student again and compare with the figures of its `report.json` and its card.

    On as many rows as the report's a metric must come out the same but for `TOLERANCE` (or two rows, where that is
    more); on another number of rows it must lie in its claimed interval. Parameters must be equal, the size of the
    weights to 0.1 MB. Latencies depend on the machine: both are shown, and not judged.

    Args:
        model: a Hub id (`id@revision` too), of which only what a push may hold is downloaded, or a folder.
        data: labelled rows; the data set of the Hub that the report names, if None.
        revision: branch, tag or commit on the Hub.
        teacher: a path or Hub id; the agreement with it is judged too.
        trust_remote_code: run the model repository's own code.
        text_column: the column of the text.
        text_pair_column: the column of the second text.
        label_column: the column of the label, or several with a 0 or 1 for each label.
        max_length: longest text in tokens; the report's, if None.
        window_stride: tokens that the windows of long texts share; the report's, if None.
        **measuring: further arguments of `nlpkd.evaluate_student`.

    Returns:
        Each claim with its verdict.

    Raises:
        ValueError: without a report, or without data to measure on.
    """
    name, commit = split_revision(str(model)) if revision is None else (str(model), revision)
    folder = Path(name)
    if not folder.is_dir():
        patterns: dict[str, Any] = {"allow_patterns": PUSH_ALLOW_PATTERNS, "ignore_patterns": ["*.onnx"]}
        folder = Path(snapshot_download(name, revision=commit, **patterns))
        name = f"{name} at {folder.name}"
    if not (folder / JSON_NAME).is_file():
        raise ValueError(f"{name} has no {JSON_NAME}, so it claims nothing that can be measured again")
    claimed = EvaluationReport.load(folder)
    about = claimed.run.get("data") or {}
    source, options = (data, {}) if data is not None else _named_data(about, name)
    measured = evaluate(
        folder,
        source,
        teacher=teacher,
        trust_remote_code=trust_remote_code,
        text_column=text_column,
        text_pair_column=text_pair_column,
        label_column=label_column,
        max_length=max_length or about.get("max_length"),
        window_stride=window_stride or about.get("window_stride"),
        **options,
        **measuring,
    )
    return Verification(name, [*_report_claims(claimed, measured, folder), *_card_claims(claimed, measured, folder)])


def _named_data(about: dict[str, Any], name: str) -> tuple[str, dict[str, Any]]:
    """Give the data set of the Hub that a report names, and how to load it."""
    found = hub_id(about.get("name"))
    if found is None:
        raise ValueError(
            f"the report of {name} was measured on {about.get('name') or 'unnamed data'}, which is no data set of the "
            "Hub: give the same rows (--data)"
        )
    named = {"dataset_config": "config", "dataset_revision": "revision", "split": "split"}
    return found, {option: about.get(key) for option, key in named.items()}


def _report_claims(claimed: EvaluationReport, measured: EvaluationReport, folder: Path) -> list[Claim]:
    before, now = claimed.candidates["student"], measured.candidates["student"]
    rows = claimed.task.get("rows"), measured.task["rows"]
    claims = [
        _metric(METRIC_NAMES.get(key, key), claim, now.quality[key], rows)
        for key, claim in before.quality.items()
        if key in now.quality
    ]
    if before.agreement is not None and now.agreement is not None:
        claims.append(_metric("agreement with the teacher", before.agreement, now.agreement, rows))
    size = model_size_mb(folder)
    claims += [
        Claim(
            "parameters", f"{before.parameters:,}", f"{now.parameters:,}", before.parameters == now.parameters, "equal"
        ),
        Claim("MB", f"{before.size_mb:.1f}", f"{size:.1f}", abs(before.size_mb - size) < 0.1, "to 0.1 MB"),
    ]
    timed = {(entry.batch, entry.tokens): entry for entry in now.latency}
    for entry in before.latency:
        again = timed.get((entry.batch, entry.tokens))
        title = f"ms, batch {entry.batch}, {entry.tokens} tokens, p50"
        found = f"{again.p50_ms:.2f}" if again else "n/a"
        claims.append(Claim(title, f"{entry.p50_ms:.2f}", found, None, "another machine"))
    return claims


def _card_claims(claimed: EvaluationReport, measured: EvaluationReport, folder: Path) -> list[Claim]:
    """Judge the figures of the card's `model-index`, by the intervals of the report."""
    card = folder / "README.md"
    results = ModelCard.load(card, ignore_metadata_errors=True).data.eval_results if card.is_file() else None
    metrics = {metric: key for key, (metric, _) in CARD_METRICS.items()}
    claims, rows = [], (claimed.task.get("rows"), measured.task["rows"])
    for result in results or []:
        key = metrics.get(result.metric_type)
        if key not in claimed.candidates["student"].quality:
            continue
        stated = claimed.candidates["student"].quality[key]
        claim = Interval(float(result.metric_value), stated.low, stated.high)
        claims.append(_metric(f"card: {METRIC_NAMES[key]}", claim, measured.candidates["student"].quality[key], rows))
    return claims


def _metric(title: str, claim: Interval, found: Interval, rows: tuple[int | None, int]) -> Claim:
    if rows[0] == rows[1]:
        allowed = max(TOLERANCE, 2 / rows[1])
        holds, why = abs(claim.value - found.value) <= allowed, f"same number of rows, to {allowed:.3f}"
    else:
        holds, why = claim.low <= found.value <= claim.high, f"{rows[1]} rows for {rows[0]}: in the claimed interval"
    return Claim(title, str(claim), f"{found.value:.3f}", holds and math.isfinite(found.value), why)

"""Does a published student keep what its report and card claim? Download it, measure it again, compare."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, parse_eval_result_entries, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from yaml import YAMLError

from nlpkd.data.arguments import DataArguments
from nlpkd.data.labels.classes import Classes
from nlpkd.data.sources import Source
from nlpkd.evaluation.origin import DataRecord, headline_figure, headline_name
from nlpkd.evaluation.records import AGREEMENT, METRIC_NAMES
from nlpkd.evaluation.report import JSON_NAME, EvaluationReport
from nlpkd.evaluation.report_text import markdown_table, one_line
from nlpkd.hub.eval_results import RESULTS_FILES, RESULTS_FOLDER
from nlpkd.hub.model_card import CARD_METRICS, hub_id
from nlpkd.hub.push import PUSH_ALLOW_PATTERNS
from nlpkd.models.loading import check_place, load_config, split_revision
from nlpkd.pipeline.claims import (
    NOT_AGAIN,
    Claim,
    MeasuredRows,
    bare_value,
    report_claims,
    rows_claim,
    weights_claim,
)
from nlpkd.pipeline.evaluate import MEASURING, evaluate
from nlpkd.utils.disk.files import explain_damage
from nlpkd.utils.disk.yaml_files import parse_yaml, read_yaml
from nlpkd.utils.field_types import plain_arguments
from nlpkd.utils.hub_requests import HubUnreachableError, limit_hub_requests


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

    def cells(self, everything: bool = True) -> tuple[list[str], list[list[str]]]:
        """Return the table: its header, and a row a figure; without `everything` a row a figure that is judged."""
        words = {True: "holds", False: "DOES NOT HOLD", None: "not judged"}
        shown = self.claims if everything else self._judged()
        rows = [[each.figure, each.claimed, each.measured, words[each.holds], each.why] for each in shown]
        return ["figure", "claimed", "measured", "verdict", "because"], rows

    def verdict(self) -> str:
        """Say in words how many claims hold."""
        wrong = [claim.figure for claim in self.claims if claim.holds is False]
        judged = len(self._judged())
        conclusion = f"{len(wrong)} of {judged} claims do not hold: {', '.join(wrong)}." if wrong else (
            f"All {judged} judged claims hold."
        )  # fmt: skip
        if judged < len(self.claims) and not wrong:
            conclusion += f" {len(self.claims) - judged} further figures are not judged"
            unknown = [name for name in self.quality if not any(each.figure == name for each in self._judged())]
            conclusion += f", {', '.join(unknown)} among them: nothing is known of that." if unknown else "."
        return conclusion

    def to_markdown(self, everything: bool = True) -> str:
        """Write a row a figure, and the conclusion.

        Args:
            everything: also the figures that are not judged.

        Returns:
            A Markdown document.
        """
        return f"# Claims of {self.model}\n\n{markdown_table(*self.cells(everything))}\n\n{self.verdict()}\n"


@plain_arguments
def verify(
    model: str | Path,
    data: Source | None = None,
    *,
    revision: str | None = None,
    teacher: str | Path | None = None,
    split: str | None = None,
    trust_remote_code: bool = False,
    **keywords: Any,
) -> Verification:
    """Measure a student again and compare with the figures of its `report.json` and its card.

    On the report's rows, told by the SHA-256 of texts and labels or else by their number, a metric must come out the
    same but for 0.005 (or two rows, where that is more), an error of scores but for 0.005 of itself (or a quarter of
    its interval's half-width). On other rows its interval and the measured one must agree: the difference of both
    values is at most the root of the squared half-widths' sum. A claimed interval that is far wider than what so many
    rows give is refused, and so is one that has nothing in common with the measured one.
    The weights must have the claimed SHA-256, parameters must be equal, the size of the weights to 0.1 MB,
    operations to 1 %. Latencies depend on the machine: both are shown, and not judged. Nor is what can't be measured
    again: a baseline, further seeds, a teacher that is not on the Hub.

    Args:
        model: a Hub id (`id@revision` too), of which only what a push may hold is downloaded, or a folder. ONNX files
            in its folder `onnx` are measured where the report has them.
        data: labelled rows; the data set of the Hub that the report names, if None.
        revision: branch, tag or commit on the Hub.
        teacher: a path or Hub id; the report's, if None, where it is on the Hub and its labels have names.
        split: which one to measure on; of the data set that the report names, the report's if None.
        trust_remote_code: run the model repository's own code.
        **keywords: further arguments of `nlpkd.evaluate`: how the rows are read, by the fields of
            `nlpkd.data.arguments.DataArguments`, and how they are measured. `max_length` and `window_stride` are the
            report's where they are None, and so are configuration and revision of the data set that it names.

    Returns:
        Each claim with its verdict.

    Raises:
        ValueError: where nothing is at the path, without a report, without a quality that it claims, without data to
            measure on, or for an unknown argument.
    """
    DataArguments.split_of(verify, keywords, MEASURING, "one of evaluate")
    # What is claimed.
    limit_hub_requests()
    name, commit = split_revision(str(model)) if revision is None else (str(model), revision)
    folder = Path(name)
    if folder.is_file():
        raise ValueError(f"{name} is a file: give the folder that a run left, or a Hub id (USER/NAME)")
    if not folder.is_dir():
        check_place(name if isinstance(model, str) else folder)
        wanted = [*PUSH_ALLOW_PATTERNS, RESULTS_FILES]
        try:
            folder = Path(snapshot_download(name, revision=commit, allow_patterns=wanted))
        except LocalEntryNotFoundError as error:
            # huggingface_hub takes the missing connection for offline mode, and would say how to leave that.
            unreachable = isinstance(error.__cause__, HubUnreachableError)
            raise (OSError(f"{name} can't be downloaded: {error.__cause__}") if unreachable else error) from error
        name = f"{name} at {folder.name}"
    if not (folder / JSON_NAME).is_file():
        raise ValueError(f"{name} has no {JSON_NAME}, so it claims nothing that can be measured again")
    claimed = EvaluationReport.load(folder)
    headline = claimed.task.headline
    known = headline in METRIC_NAMES or headline == AGREEMENT
    if not known or headline_figure(claimed.candidates["student"], headline) is None:
        raise ValueError(
            f"the report of {name} claims no {headline_name(headline)} of its student, which its verdict "
            "rests on: there is nothing to verify"
        )
    # Measure the same again, on the data and beside the teacher that the report names.
    about = claimed.run.data
    source, options = (data, {}) if data is not None else _named_data(about, name)
    options |= {"max_length": about.max_length, "window_stride": about.window_stride}
    options |= {option: value for option, value in {"split": split, **keywords}.items() if value is not None}
    missing = ""
    if teacher is None:
        teacher, missing = _named_teacher(claimed, folder, trust_remote_code)
    measured = evaluate(
        folder,
        source,
        teacher=teacher,
        candidates=_onnx_files(claimed, folder),
        trust_remote_code=trust_remote_code,
        **options,
    )
    # Judge every claim.
    claims = [
        weights_claim(claimed, folder),
        rows_claim(claimed, measured, same_data=data is None),
        *report_claims(claimed, measured, missing),
        *card_claims(claimed, measured, folder),
        *leaderboard_claims(claimed, measured, folder),
    ]
    return Verification(name, claims, (headline_name(headline),))


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
    claims, rows = [], MeasuredRows.of(claimed, measured)
    for result in results:
        key = metrics.get(_spelling(result.metric_type))
        title = f"card: {one_line(METRIC_NAMES[key] if key else result.metric_type)}"
        found = measured.candidates["student"].quality.get(key or "")
        if found is None:
            claims.append(Claim(title, one_line(result.metric_value), "n/a", None, "not measured here"))
            continue
        with explain_damage(card, f"the value of {one_line(result.metric_type)} in its metadata is no number"):
            value = float(result.metric_value)
        claims.append(bare_value(title, value, found, rows))
    return claims


def leaderboard_claims(claimed: EvaluationReport, measured: EvaluationReport, folder: Path) -> list[Claim]:
    """Judge the figures for leaderboards of the Hub that nlpkd wrote: those whose notes name the headline metric."""
    headline, claims = claimed.task.headline, []
    for path in sorted(folder.glob(RESULTS_FILES)):
        title = f"{RESULTS_FOLDER}/{one_line(path.name)}"
        with explain_damage(path, "its figures can't be checked"):
            entries = parse_eval_result_entries(read_yaml(path))
            values = [float(entry.value) for entry in entries if entry.notes == headline_name(headline)]
        found, rows = headline_figure(measured.candidates["student"], headline), MeasuredRows.of(claimed, measured)
        claims += [bare_value(title, value, found, rows) for value in values]
    return claims


def _spelling(name: Any) -> str:
    """Return a metric's name without what spellings of it differ in."""
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


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
    if about.models:
        return None, f"{NOT_AGAIN}: one teacher is measured, and there are {len(about.models)}"
    name, revision = hub_id(about.name), about.revision
    if name is None:
        return None, f"{NOT_AGAIN}: the teacher, {about.name or 'unnamed'}, is not on the Hub (--teacher)"
    try:
        theirs: Any = load_config(name, revision=revision, trust_remote_code=trust_remote_code)
        ours: Any = load_config(folder, trust_remote_code=trust_remote_code)
        order = Classes.of(ours.id2label).positions_in(Classes.of(theirs.id2label))
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())
        return None, f"{NOT_AGAIN}: {said}"
    if order is None:
        return None, f"{NOT_AGAIN}: the names of the labels of {name} or of the student do not tell their order"
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

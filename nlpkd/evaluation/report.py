"""The measured result of a distillation: `EvaluationReport`, to and from JSON, and as Markdown."""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from nlpkd.evaluation import report_text
from nlpkd.evaluation.figures.damage import check_parts, check_thresholds
from nlpkd.evaluation.figures.reading import as_type, within
from nlpkd.evaluation.origin import RunRecord, TaskRecord, headline_figure, headline_name
from nlpkd.evaluation.records import (
    Candidate,
    Comparison,
    SeedSpread,
    strict_json,
    without_controls,
)
from nlpkd.evaluation.report_text import code_block, escape_markdown, markdown_table
from nlpkd.utils.disk.files import digest_of, weights_sha256, write_together
from nlpkd.utils.disk.links import inside, is_snapshot

logger = logging.getLogger(__name__)

SCHEMA = 1


JSON_NAME = "report.json"


MARKDOWN_NAME = "report.md"


PAGE_NAME = "report.html"


@dataclass(frozen=True)
class EvaluationReport:
    """Everything measured of a student, its teacher and its baseline, and how.

    Args:
        task: the task, its labels, and how the gold labels are distributed.
        run: what made the figures, and the protocols of the measurement.
        candidates: what was measured, by name; `"student"` is always there.
        comparisons: `student_vs_no_teacher`, `student_vs_same_start`, `student_vs_baseline` and `student_vs_teacher`,
            each where there is such a candidate.
        seeds: `aggregate_seeds` of several runs, by candidate and metric.
    """

    task: TaskRecord
    run: RunRecord
    candidates: dict[str, Candidate]
    comparisons: dict[str, Comparison]
    seeds: dict[str, dict[str, SeedSpread]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as strict JSON types: a NaN or infinity becomes None.

        Returns:
            `{"schema", "task", "run", "candidates", "comparisons", "seeds"}`.
        """
        data = {
            "schema": SCHEMA,
            "task": self.task.to_dict(),
            "run": self.run.to_dict(),
            "candidates": {name: candidate.to_dict() for name, candidate in self.candidates.items()},
            "comparisons": {name: paired.to_dict(_other(name)) for name, paired in self.comparisons.items()},
            "seeds": {
                name: {metric: asdict(each) for metric, each in spreads.items()}
                for name, spreads in self.seeds.items()
            },
        }
        return strict_json(data)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EvaluationReport:
        """Build a report from what `to_dict` gave.

        Args:
            data: the parsed JSON.

        Returns:
            The report.

        Raises:
            ValueError: when it is not a report, one of another schema, or one with a part that is not as it must be,
                or does not fit the others; the part is named.
        """
        if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, Mapping) else type(data).__name__
            raise ValueError(f'expected an evaluation report with "schema": {SCHEMA}, found {found!r}: evaluate again')
        required = ("task", "run", "candidates", "comparisons")
        if missing := [key for key in required if not isinstance(data.get(key), Mapping)]:
            raise ValueError(f"the evaluation report lacks {missing} (objects): it is damaged, evaluate again")
        if "student" not in data["candidates"]:
            raise ValueError(f'the report has no candidate "student", found {sorted(data["candidates"])}')
        # Names in a report of the Hub are a stranger's.
        plain = without_controls(data)
        if len(plain["candidates"]) < len(data["candidates"]):
            raise ValueError(f"candidates of the report are called alike, found {ascii(sorted(data['candidates']))}")
        try:
            with within("task"):
                task = TaskRecord.from_dict(plain["task"])
                task.check()
            with within("run"):
                run = RunRecord.from_dict(plain["run"])
                run.check()
            with within("candidates"):
                candidates = as_type(dict[str, Candidate], plain["candidates"])
            with within("seeds"):
                seeds = as_type(dict[str, dict[str, SeedSpread]], plain.get("seeds") or {})
            comparisons = {}
            for name, entry in plain["comparisons"].items():
                with within(f"comparisons: {name}"):
                    comparisons[name] = Comparison.from_dict(entry, _other(name))
            report = cls(task, run, candidates, comparisons, seeds)
            check_parts(task, candidates, {"run: thresholds": run.thresholds, "seeds": seeds})
            check_thresholds(run.thresholds, len(set(task.labels)))
            headline, student = report.task.headline, report.candidates["student"]
            if headline_figure(student, headline) is None and not report.run.incomplete:
                raise ValueError(f"the report claims no {headline_name(headline)} of its student")
            # What can't be shown is no report.
            report.to_markdown()
        except (LookupError, TypeError, AttributeError, ArithmeticError, AssertionError) as error:
            raise ValueError(f"a part of the report is damaged ({error!r:.300}): evaluate again") from error
        return report

    def is_like(self, other: EvaluationReport) -> bool:
        """Check whether another report is of the same kinds of models, and both say that they measure them alike."""
        measured = self.run.measurement_sha256
        alike = measured is not None and measured == other.run.measurement_sha256
        return alike and self.candidates.keys() == other.candidates.keys() and self.run.data.is_like(other.run.data)

    def save(self, directory: str | Path, page: str | None = None) -> Path:
        """Write `report.json` and `report.md`, and a page as `report.html`: all of them are replaced, or none.

        Args:
            directory: where to, made if missing.
            page: by `nlpkd.evaluation.html_report.make_page`; None takes away the one of an earlier report.

        Returns:
            The path of the JSON file.

        Raises:
            OSError: if the disk is full.
        """
        directory = Path(directory)
        files = {} if page is None else {PAGE_NAME: page.encode(errors="backslashreplace")}
        files[MARKDOWN_NAME] = self.to_markdown().encode(errors="backslashreplace")
        files[JSON_NAME] = (json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n").encode()
        write_together(directory, files)
        if page is None:
            (directory / PAGE_NAME).unlink(missing_ok=True)
        return directory / JSON_NAME

    @classmethod
    def load(cls, path: str | Path) -> EvaluationReport:
        """Read a saved report.

        Args:
            path: the JSON file, or the directory it lies in.

        Returns:
            The report.

        Raises:
            FileNotFoundError: when there is no such file.
            ValueError: when it is not a report of this schema.
        """
        path = Path(path)
        path = path / JSON_NAME if path.is_dir() else path
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} can't be read as an evaluation report: {error}") from error

    @classmethod
    def load_beside(cls, folder: Path) -> EvaluationReport | None:
        """Read the report of the model in a folder.

        Args:
            folder: the model's.

        Returns:
            The report; None without one, or, with a warning, where it is of other weights or files than the folder's.

        Raises:
            ValueError: when its `report.json` is not a report of this schema.
        """
        if not (folder / JSON_NAME).is_file():
            return None
        report = cls.load(folder)
        if report.is_of(folder):
            return report
        told = "%s is not used: it was measured of other weights or files than those beside it."
        logger.warning(told, folder / JSON_NAME)
        return None

    def is_of(self, folder: Path) -> bool:
        """Check whether it was measured of the weights and the files in a folder.

        Args:
            folder: a model's.

        Returns:
            False where it names other weights or another file; what it does not name or the folder lacks is passed.
        """
        found = weights_sha256(folder)
        return (not found or self._names(found)) and not self._stale(folder, missing=False)

    def is_of_all(self, folder: Path) -> bool:
        """Check whether all weights and files that it names are in a folder, and no others in their place."""
        return self._names(weights_sha256(folder)) and not self._stale(folder, missing=True)

    def refuse_other_weights(self, folder: Path) -> None:
        """Refuse to say what was measured of other weights or files than those in a folder.

        Args:
            folder: a model's.

        Raises:
            ValueError: if it names others, or such as are not there.
        """
        # What is in the Hub's cache is nobody's to change.
        copied = "in a copy of your own: " if is_snapshot(folder) else ""
        own = "FOLDER" if copied else folder
        if not self._names(weights_sha256(folder)):
            raise ValueError(
                f"the report was measured of other weights than those in {folder}: {copied}measure these (`nlpkd "
                f"evaluate {own} --data DATA --output-dir {own}`), or delete its {JSON_NAME}"
            )
        if stale := self._stale(folder, missing=True):
            raise ValueError(
                f"the report has figures of {', '.join(sorted(stale))}, and that file is another one in {folder} by "
                f"now, or is not there: {copied}`nlpkd export {own}` takes them out, or delete its {JSON_NAME}"
            )

    def without_stale(self, folder: Path) -> EvaluationReport:
        """Leave out what was measured of files that are other ones in a folder by now, or are not there.

        Args:
            folder: the model's.

        Returns:
            A report of the others; itself where there are none.
        """
        stale = self._stale(folder, missing=True) - {"student"}
        if not stale:
            return self

        def kept(entries: Mapping[str, Any]) -> dict[str, Any]:
            return {name: entry for name, entry in entries.items() if _other(name) not in stale}

        student = replace(self.run.student, files_sha256=kept(self._own_files()) or None)
        return replace(
            self,
            run=replace(self.run, student=student, thresholds=kept(self.run.thresholds)),
            candidates=kept(self.candidates),
            comparisons=kept(self.comparisons),
            seeds=kept(self.seeds),
        )

    def _names(self, weights: dict[str, str]) -> bool:
        """Check whether it was measured of these weights, as far as it says."""
        return not self.run.student.weights_sha256 or self.run.student.weights_sha256 == weights

    def _stale(self, folder: Path, *, missing: bool) -> set[str]:
        """Name the candidates whose files are other ones in a folder by now, or, if `missing` is set, not there."""
        stale = set()
        for name, files in self._own_files().items():
            for file, digest in files.items():
                path = inside(folder, file)
                if digest_of(path) != digest if path.is_file() else missing:
                    stale.add(name)
        return stale

    def _own_files(self) -> dict[str, dict[str, str]]:
        """Return the SHA-256 of each of the student's files that were measured, by candidate and path."""
        if self.run.student.files_sha256 is not None:
            return self.run.student.files_sha256
        # Earlier versions noted no paths, but called what is shipped by its own.
        return {
            name: {name: candidate.file_sha256}
            for name, candidate in self.candidates.items()
            if candidate.file_sha256 and PurePosixPath(name).match("onnx/*.onnx")
        }

    def verdict(self) -> str:
        """Return in two sentences what the student kept and saved, and whether distilling paid.

        Returns:
            Plain text, with the missing comparisons named as missing.
        """
        told = report_text.verdict(self.task, self.candidates, self.comparisons)
        return f"{told} {report_text.INCOMPLETE}" if self.run.incomplete else told

    def table(self) -> str:
        """Lay the candidates out as a Markdown table, a row each.

        Returns:
            The table, ending without a newline; of several lengths it has the latency of the first.
        """
        return markdown_table(*report_text.candidate_cells(self.candidates, escape_markdown))

    def to_markdown(self) -> str:
        """Write the report for a reader: verdict, table, seeds, tests, protocol, and what made it.

        Returns:
            A Markdown document.
        """
        # What was measured.
        task = escape_markdown(report_text.task_sentence(self.task))
        parts = ["# Evaluation report", self.verdict(), task, self.table()]
        if self.seeds:
            cells = report_text.seeds_cells(self.seeds, escape_markdown)
            parts += ["## Over several seeds, mean ± sample sd", markdown_table(*cells)]
        if grid := report_text.latency_cells(self.candidates, escape_markdown):
            parts += ["## Latency, p50 / p95 / p99 ms", markdown_table(*grid)]
        if fitted := report_text.temperature_lines(self.candidates):
            parts += ["## Temperature scaling", _bullets(fitted)]
        tests = report_text.paired_test_lines(self.comparisons)
        parts += ["## Paired tests", _bullets(tests) or "There was nothing to compare the student with."]

        # How it was measured, and on what.
        how = [*report_text.decision_lines(self.candidates), *self.run.protocols()]
        parts += ["## Protocol", _bullets(how) or "Not recorded.", "## What made these figures"]
        parts.append(_bullets(f"{name}: {text}" for name, text in report_text.origin_lines(self.run)))
        parts.append(code_block(self.run.command) if self.run.command else "The command was not recorded.")
        return "\n\n".join(parts) + "\n"


def aggregate_seeds(reports: Sequence[EvaluationReport]) -> dict[str, dict[str, SeedSpread]]:
    """Put the figures of runs that differ in their seed alone side by side.

    Args:
        reports: one report a seed, with the same candidates on the same rows.

    Returns:
        Values, mean and standard deviation by candidate and metric for `EvaluationReport.seeds`, the agreement and
        the share of the gap closed included.

    Raises:
        ValueError: when there is no report, or candidates, task or rows differ between them.
    """
    if not reports:
        raise ValueError("there is no report to aggregate: give one a seed")
    first = reports[0]
    for number, report in enumerate(reports[1:], start=2):
        if report.task != first.task or set(report.candidates) != set(first.candidates):
            raise ValueError(
                f"report {number} can't be aggregated with report 1: found task {report.task.to_dict()} with "
                f"candidates {sorted(report.candidates)}, expected {first.task.to_dict()} with "
                f"{sorted(first.candidates)}"
            )
    seeds = {name: _spreads([report.candidates[name] for report in reports]) for name in first.candidates}
    paired = [report.comparisons.get("student_vs_no_teacher") for report in reports]
    closed = [each.gap_closed.value for each in paired if each and each.gap_closed]
    if "student" in seeds and len(closed) == len(reports):
        seeds["student"]["gap_closed"] = _spread(closed)
    return seeds


def _spreads(candidates: Sequence[Candidate]) -> dict[str, SeedSpread]:
    """Return each metric's spread over one candidate of several runs."""
    values = {key: [candidate.quality[key].value for candidate in candidates] for key in candidates[0].quality}
    agreements = [candidate.agreement.value for candidate in candidates if candidate.agreement]
    if len(agreements) == len(candidates):
        values["agreement"] = agreements
    return {key: _spread(numbers) for key, numbers in values.items()}


def _spread(values: list[float]) -> SeedSpread:
    return SeedSpread(values, statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def _other(comparison: str) -> str:
    """Return whom a comparison such as `student_vs_teacher` is with."""
    return comparison.removeprefix("student_vs_")


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {escape_markdown(line)}" for line in lines)

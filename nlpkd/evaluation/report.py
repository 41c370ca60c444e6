"""The measured result of a distillation: `EvaluationReport`, to and from JSON, and as Markdown."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nlpkd.utils.files import write_atomic

SCHEMA = 1


JSON_NAME = "report.json"


MARKDOWN_NAME = "report.md"


PROTOCOLS = ("interval_protocol", "latency_protocol", "flops_protocol", "memory_protocol")
"""Entries of `EvaluationReport.run` that say how something was measured."""


_NO_BASELINE = "No undistilled baseline was evaluated: this report can't say what the distillation itself added."


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
        return f"{_number(self.value)} [{_number(self.low)}, {_number(self.high)}]"


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
class Candidate:
    """What was measured of one model.

    Args:
        quality: metric name -> value with interval; the calibration error is one of them.
        agreement: share of rows with the teacher's predicted label, None without a teacher and for the teacher.
        parameters: number of parameters.
        size_mb: size of the weights file in 10^6 bytes.
        latency: one entry a batch size and length.
        training_seconds: wall time of the training, None where unknown.
        flops: floating-point operations of one pass over one sequence, as `run["flops_protocol"]` says; None where
            they can't be counted.
        memory_mb: 10^6 bytes that answering takes, as `run["memory_protocol"]` says; None where not measured.
        temperature_scaling: `{"temperature", "rows", "ece_before", "ece_after"}` of `nlpkd.evaluation.calibration`,
            None where no temperature was fitted.
        breakdown: what `nlpkd.evaluation.scoring.Scoring.breakdown` gives, with `per_length` and `disagreements`
            beside it.
    """

    quality: dict[str, Interval]
    agreement: Interval | None
    parameters: int
    size_mb: float
    latency: list[Latency] = field(default_factory=list)
    training_seconds: float | None = None
    flops: float | None = None
    memory_mb: float | None = None
    temperature_scaling: dict[str, float] | None = None
    breakdown: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationReport:
    """Everything measured of a student, its teacher and its baseline, and how.

    Args:
        task: `problem_type`, `labels` (names in order), `rows`, `headline` (the metric that the verdict rests on), and
            how the gold labels are distributed: `majority_share`, `labels_a_row`, or `score_mean` and `score_sd`.
        run: what made the figures: `command`, `date`, `seed`, `versions`, `machine`, `teacher`, `student`, `data`,
            `objectives`, `settings`, protocols; each optional.
        candidates: what was measured, by name; `"student"` is always there.
        comparisons: `student_vs_baseline` and `student_vs_teacher`, each where there is such a candidate.
        seeds: `aggregate_seeds` of several runs: `{candidate: {metric: {"values", "mean", "sd"}}}`.
    """

    task: dict[str, Any]
    run: dict[str, Any]
    candidates: dict[str, Candidate]
    comparisons: dict[str, Any]
    seeds: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Give the report as strict JSON types: a NaN or infinity becomes None.

        Returns:
            `{"schema", "task", "run", "candidates", "comparisons", "seeds"}`.
        """
        return _strict({"schema": SCHEMA, **asdict(self)})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EvaluationReport:
        """Build a report from what `to_dict` gave.

        Args:
            data: the parsed JSON.

        Returns:
            The report.

        Raises:
            ValueError: when it is not a report, or one of another schema.
        """
        if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, Mapping) else type(data).__name__
            raise ValueError(f'expected an evaluation report with "schema": {SCHEMA}, found {found!r}: evaluate again')
        missing = [
            key for key in ("task", "run", "candidates", "comparisons") if not isinstance(data.get(key), Mapping)
        ]
        if missing:
            raise ValueError(f"the evaluation report lacks {missing} (objects): it is damaged, evaluate again")
        if "student" not in data["candidates"]:
            raise ValueError(f'the report has no candidate "student", found {sorted(data["candidates"])}')
        try:
            candidates = {name: _candidate(entry) for name, entry in data["candidates"].items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"a candidate of the report is damaged ({error!r}): evaluate again") from error
        return cls(
            task=dict(data["task"]),
            run=dict(data["run"]),
            candidates=candidates,
            comparisons=dict(data["comparisons"]),
            seeds=dict(data.get("seeds") or {}),
        )

    def save(self, directory: str | Path) -> Path:
        """Write `report.json` and `report.md`, each replaced as a whole or not at all.

        Args:
            directory: where to, made if missing.

        Returns:
            The path of the JSON file.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        write_atomic(directory / MARKDOWN_NAME, self.to_markdown().encode())
        write_atomic(directory / JSON_NAME, (json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n").encode())
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
        except ValueError as error:
            raise ValueError(f"{path} can't be read as an evaluation report: {error}") from error

    def verdict(self) -> str:
        """Say in two sentences what the student kept and saved, and whether distilling paid.

        Returns:
            Plain text, with the missing comparisons named as missing.
        """
        student, teacher = self.candidates["student"], self.candidates.get("teacher")
        headline = self.task.get("headline", "accuracy")
        name, value = METRIC_NAMES[headline], student.quality[headline].value
        if teacher is None:
            article = "an" if name.startswith("a") else "a"
            opening = f"The student has {article} {name} of {_number(value)}; no teacher was evaluated beside it."
        else:
            gold = teacher.quality[headline].value
            kept = _number(100 * value / gold if gold else None, ".1f")
            opening = f"The student keeps {kept} % of the teacher's {name} ({_number(value)} against {_number(gold)})"
            opening += ", with " + _ratio(
                teacher.parameters, student.parameters, "fewer parameters", "more parameters"
            )
            times = _latency(teacher, 1), _latency(student, 1)
            if times[0] and times[1]:
                opening += f", {_ratio(times[0].p50_ms, times[1].p50_ms, 'faster', 'slower')} at batch 1"
            opening += "."
        paired = self.comparisons.get("student_vs_baseline")
        return f"{opening} {_NO_BASELINE if not paired else _gain(paired, headline)}"

    def table(self) -> str:
        """Lay the candidates out as a Markdown table, a row each.

        Returns:
            The table, ending without a newline; of several lengths it has the latency of the first.
        """
        return markdown_table(*self.cells())

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Give what the table of candidates holds.

        Returns:
            The header, and a row a candidate.
        """
        batches = sorted({entry.batch for candidate in self.candidates.values() for entry in candidate.latency})
        counted = any(candidate.flops for candidate in self.candidates.values())
        columns = _columns(candidate.quality for candidate in self.candidates.values())
        header = ["candidate", *columns.values(), "agreement with the teacher", "parameters", "MB"]
        header += ["GFLOPs"] if counted else []
        weighed = any(candidate.memory_mb is not None for candidate in self.candidates.values())
        header += ["memory, MB"] if weighed else []
        header += [f"batch {batch}, p50 / p95 ms" for batch in batches]
        timed = any(candidate.training_seconds is not None for candidate in self.candidates.values())
        header += ["training s"] if timed else []
        rows = [
            [
                name,
                *(str(candidate.quality[key]) if key in candidate.quality else "n/a" for key in columns),
                str(candidate.agreement) if candidate.agreement else "n/a",
                f"{candidate.parameters:,}",
                f"{candidate.size_mb:.1f}",
                *([_number(candidate.flops and candidate.flops / 1e9)] if counted else []),
                *([_number(candidate.memory_mb, ".0f")] if weighed else []),
                *(_milliseconds(_latency(candidate, batch)) for batch in batches),
                *([_number(candidate.training_seconds, ".0f")] if timed else []),
            ]
            for name, candidate in self.candidates.items()
        ]
        return header, rows

    def latency_cells(self) -> tuple[list[str], list[list[str]]] | None:
        """Give every latency where sequences of several lengths were timed.

        Returns:
            A header and a row a batch size and length, p50 / p95 / p99 in ms; None for a single length.
        """
        timed = {name: candidate.latency for name, candidate in self.candidates.items() if candidate.latency}
        grid = list(dict.fromkeys((entry.batch, entry.tokens) for entries in timed.values() for entry in entries))
        if len({tokens for _, tokens in grid}) < 2:
            return None
        by_name = [{(each.batch, each.tokens): each for each in entries} for entries in timed.values()]
        rows = [
            [str(batch), str(tokens), *(_percentiles(entries.get((batch, tokens))) for entries in by_name)]
            for batch, tokens in grid
        ]
        return ["batch", "tokens", *timed], rows

    def temperature_lines(self) -> list[str]:
        """Say of each candidate with a fitted temperature what it does to the calibration error.

        Returns:
            A sentence each.
        """
        return [
            f"{name}: dividing its logits by {_number(fitted['temperature'], '.2f')} takes its ECE from "
            f"{_number(fitted['ece_before'])} to {_number(fitted['ece_after'])} (fitted on {fitted['rows']} rows)"
            for name, candidate in self.candidates.items()
            if (fitted := candidate.temperature_scaling)
        ]

    def about(self) -> str:
        """Say in a sentence what the task is and what was evaluated on."""
        task = self.task
        labels = ", ".join(map(str, task.get("labels", [])))
        return (
            f"Task: {task.get('problem_type', 'n/a')}, labels {labels}; {task.get('rows', 'n/a')} rows evaluated"
            f"{_distribution(task)}."
        )

    def to_markdown(self) -> str:
        """Write the report for a reader: verdict, table, seeds, tests, protocol, and what made it.

        Returns:
            A Markdown document.
        """
        parts = ["# Evaluation report", self.verdict(), self.about(), self.table()]
        if self.seeds:
            parts += ["## Over several seeds, mean ± sample sd", _seeds_table(self.seeds)]
        if grid := self.latency_cells():
            parts += ["## Latency, p50 / p95 / p99 ms", markdown_table(*grid)]
        if lines := self.temperature_lines():
            parts += ["## Temperature scaling", "\n".join(f"- {line}" for line in lines)]
        tests = [
            f"- McNemar (exact): {paired['student_only_correct']} rows only the student has right, "
            f"{paired[f'{other}_only_correct']} only the {other}; p = {_number(paired['mcnemar_p'], '.2g')}."
            for other in ("baseline", "teacher")
            if "mcnemar_p" in (paired := self.comparisons.get(f"student_vs_{other}") or {})
        ]
        parts += ["## Paired tests", "\n".join(tests) or "There was nothing to compare the student with."]
        protocol = [f"- {self.run[key]}" for key in PROTOCOLS if self.run.get(key)]
        parts += [
            "## Protocol",
            "\n".join(protocol) or "Not recorded.",
            "## What made these figures",
            _origin(self.run),
        ]
        return "\n\n".join(parts) + "\n"


def aggregate_seeds(reports: Sequence[EvaluationReport]) -> dict[str, Any]:
    """Put the figures of runs that differ in their seed alone side by side.

    Args:
        reports: one report a seed, with the same candidates on the same rows.

    Returns:
        `{candidate: {metric: {"values", "mean", "sd"}}}` for `EvaluationReport.seeds`, the agreement included; `sd` is
        the sample standard deviation (n - 1), None for one report.

    Raises:
        ValueError: when there is no report, or candidates, task or rows differ between them.
    """
    if not reports:
        raise ValueError("there is no report to aggregate: give one a seed")
    first = reports[0]
    for number, report in enumerate(reports[1:], start=2):
        if report.task != first.task or set(report.candidates) != set(first.candidates):
            raise ValueError(
                f"report {number} can't be aggregated with report 1: found task {report.task} with candidates "
                f"{sorted(report.candidates)}, expected {first.task} with {sorted(first.candidates)}"
            )
    return {name: _seed_entry([report.candidates[name] for report in reports]) for name in first.candidates}


def _gain(paired: Mapping[str, Any], headline: str) -> str:
    """Say what distilling added to the undistilled baseline, and whether the rows can tell."""
    difference = paired[f"{headline}_difference"]
    if headline == "accuracy":
        test, significant = f", McNemar p = {_number(paired['mcnemar_p'], '.2g')}", paired["mcnemar_p"] < 0.05
    else:
        test, significant = "", difference["low"] > 0 or difference["high"] < 0
    points = {end: _number(100 * value, "+.1f") for end, value in difference.items()}
    doubt = "" if significant else ": on these rows not significant at the 5 % level"
    return (
        f"Against the undistilled baseline its {METRIC_NAMES[headline]} is {points['value']} points (95 % interval "
        f"{points['low']} to {points['high']}{test}){doubt}."
    )


def _columns(measured: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Give the metrics to show, by name: those that any candidate has."""
    known = {key for quality in measured for key in quality}
    return {key: name for key, name in METRIC_NAMES.items() if key in known}


def _distribution(task: Mapping[str, Any]) -> str:
    if "labels_a_row" in task:
        return f", with {_number(task['labels_a_row'], '.2f')} labels each on average"
    if "score_mean" in task:
        return f", their scores {_number(task['score_mean'])} ± {_number(task['score_sd'])} (standard deviation)"
    return f", {_number(task.get('majority_share'), '.1%')} of them with the commonest label"


def _seed_entry(candidates: list[Candidate]) -> dict[str, Any]:
    values = {key: [candidate.quality[key].value for candidate in candidates] for key in candidates[0].quality}
    agreements = [candidate.agreement.value for candidate in candidates if candidate.agreement]
    if len(agreements) == len(candidates):
        values["agreement"] = agreements
    return {
        key: {
            "values": numbers,
            "mean": statistics.fmean(numbers),
            "sd": statistics.stdev(numbers) if len(numbers) > 1 else None,
        }
        for key, numbers in values.items()
    }


def _candidate(entry: Mapping[str, Any]) -> Candidate:
    agreement = entry["agreement"]
    return Candidate(
        quality={name: Interval(**_numbers(interval)) for name, interval in entry["quality"].items()},
        agreement=None if agreement is None else Interval(**_numbers(agreement)),
        parameters=entry["parameters"],
        size_mb=entry["size_mb"],
        latency=[Latency(**(_numbers(latency) | {"p99_ms": latency.get("p99_ms")})) for latency in entry["latency"]],
        training_seconds=entry.get("training_seconds"),
        flops=entry.get("flops"),
        memory_mb=entry.get("memory_mb"),
        temperature_scaling=entry.get("temperature_scaling"),
        breakdown=dict(entry.get("breakdown") or {}),
    )


def _numbers(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: math.nan if value is None else value for key, value in entry.items()}


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _strict(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _latency(candidate: Candidate, batch: int) -> Latency | None:
    return next((entry for entry in candidate.latency if entry.batch == batch), None)


def _milliseconds(latency: Latency | None) -> str:
    return f"{latency.p50_ms:.2f} / {latency.p95_ms:.2f}" if latency else "n/a"


def _number(value: float | None, spec: str = ".3f") -> str:
    return "n/a" if value is None or not math.isfinite(value) else format(value, spec)


def _ratio(before: float, after: float, better: str, worse: str) -> str:
    if not (before > 0 and after > 0):
        return f"n/a x {better}"
    return f"{before / after:.1f} x {better}" if before >= after else f"{after / before:.1f} x {worse}"


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """Lay cells out as a Markdown table.

    Args:
        header: a name a column.
        rows: a cell a column each.

    Returns:
        The table, ending without a newline.
    """
    lines = [header, ["---"] * len(header), *rows]
    escaped = [[" ".join(cell.replace("|", "\\|").split()) for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _percentiles(latency: Latency | None) -> str:
    return f"{_milliseconds(latency)} / {_number(latency.p99_ms, '.2f')}" if latency else "n/a"


def _seeds_table(seeds: Mapping[str, Any]) -> str:
    columns = _columns(seeds.values()) | {"agreement": "agreement"}
    cells = {
        name: [
            f"{_number(metrics[key]['mean'])} ± {_number(metrics[key]['sd'])} (n = {len(metrics[key]['values'])})"
            if key in metrics
            else "n/a"
            for key in columns
        ]
        for name, metrics in seeds.items()
    }
    return markdown_table(["candidate", *columns.values()], [[name, *row] for name, row in cells.items()])


def _origin(run: Mapping[str, Any]) -> str:
    keys = ("date", "seed", "teacher", "student", "data", "versions", "machine", "settings")
    lines = [f"- {key}: {_flat(run[key])}" for key in keys if run.get(key) is not None]
    lines += [f"- objective: {_flat(objective)}" for objective in run.get("objectives") or []]
    command = f"```\n{run['command']}\n```" if run.get("command") else "The command was not recorded."
    return "\n".join(lines) + "\n\n" + command


def _flat(value: Any) -> str:
    return ", ".join(f"{key} {entry}" for key, entry in value.items()) if isinstance(value, Mapping) else str(value)

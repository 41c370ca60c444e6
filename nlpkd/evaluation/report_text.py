"""An evaluation report in words and tables: verdict, tables of candidates, latencies and seeds, what made it."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple
from typing import Any

from nlpkd.evaluation.origin import RunRecord, TaskRecord, headline_figure, headline_name, retention
from nlpkd.evaluation.records import (
    AGREEMENT,
    BASELINES,
    DECISIONS,
    METRIC_NAMES,
    Candidate,
    Comparison,
    Interval,
    Latency,
    SeedSpread,
    format_number,
    percent,
    without_controls,
)

Cells = tuple[list[str], list[list[str]]]
"""A table: its header, and its rows."""


_NO_BASELINE = "No undistilled baseline was evaluated: this report can't say what the distillation itself added."


INCOMPLETE = "This report is incomplete, since measuring failed: `nlpkd evaluate` makes a whole one."


LABELS_SHOWN = 20


_CORRELATIONS = ("pearson", "spearman", "matthews_correlation")


_ORIGIN = ("date", "seed", "teacher", "student", "data", "versions", "machine", "settings")


def verdict(task: TaskRecord, candidates: Mapping[str, Candidate], comparisons: Mapping[str, Comparison]) -> str:
    """Return a sentence on what the student kept and saved, and one on what it gained over each baseline."""
    opening = _kept(task, candidates, comparisons.get("student_vs_teacher"))
    if task.headline not in candidates["student"].quality:
        return opening
    gains = [
        _gain(paired, task.headline, baseline)
        for name, baseline in BASELINES.items()
        if (paired := comparisons.get(f"student_vs_{name}"))
    ]
    return " ".join([opening, *(gains or [_NO_BASELINE]), *_unequal_rules(candidates)])


def short_verdict(task: TaskRecord, candidates: Mapping[str, Candidate], comparisons: Mapping[str, Comparison]) -> str:
    """Return one sentence on what the student kept and saved, and on what it gained over the first baseline."""
    opening = _kept(task, candidates, comparisons.get("student_vs_teacher"))
    if task.headline not in candidates["student"].quality:
        return opening
    for name, baseline in BASELINES.items():
        if paired := comparisons.get(f"student_vs_{name}"):
            metric = headline_name(task.headline)
            told = f"{opening[:-1]}; against {baseline} its {metric} is {_points(paired, task.headline)}."
            return " ".join([told, *_unequal_rules(candidates)])
    told = f"{opening[:-1]}; no undistilled baseline was evaluated, so that the gain of distilling is unknown."
    return " ".join([told, *_unequal_rules(candidates)])


def _unequal_rules(candidates: Mapping[str, Candidate]) -> list[str]:
    """Return what figures of several labels say less of, where chosen thresholds are compared with 0.5."""
    called = {"teacher": "the teacher", **BASELINES}
    chosen: dict[bool, list[str]] = {True: [], False: []}
    for name in ("student", *called):
        if name in candidates and (rule := candidates[name].decides_by):
            chosen[rule != "0.5"].append(called.get(name, "the student"))
    if "the student" not in chosen[True] + chosen[False] or not all(chosen.values()):
        return []
    by_chosen, by_half = (" and ".join(names) for names in chosen.values())
    return [
        f"But they decide by different rules, {by_chosen} by chosen thresholds and {by_half} by 0.5: what parts them "
        "may be the thresholds. Measure with held-out rows (`nlpkd evaluate --held-out`), which chooses thresholds "
        "for all of them."
    ]


def _kept(task: TaskRecord, candidates: Mapping[str, Candidate], paired: Comparison | None) -> str:
    """Return what the student kept of the teacher, and how much smaller and faster it is."""
    student, teacher = candidates["student"], candidates.get("teacher")
    figure = headline_figure(student, task.headline)
    if figure is None:
        return "The student was not measured."
    if task.headline == AGREEMENT:
        return (
            f"No evaluated row has a gold label, so that agreement with the teacher is all that this report can know: "
            f"the student and the teacher agree on {figure}. How often either is right is unknown."
        )
    name, value = headline_name(task.headline), figure.value
    gold = None if teacher is None else headline_figure(teacher, task.headline)
    if teacher is None:
        article = "an" if name.startswith("a") else "a"
        return f"The student has {article} {name} of {format_number(value)}; no teacher was evaluated beside it."
    reference = math.nan if gold is None else gold.value
    # More than all of it, by the rows' chance alone, is no gain.
    doubt = ""
    if paired is not None and value > reference and task.headline in paired.differences:
        doubt = "" if _significant(paired, task.headline) else "; on these rows not significantly more"
    against = f"({format_number(value)} against {format_number(reference)}{doubt})"
    told = f"The student keeps {percent(retention(value, reference))} of the teacher's {name} {against}"
    if teacher.parameters is not None and student.parameters is not None:
        told += f", with {_ratio(teacher.parameters, student.parameters, 'fewer parameters', 'more parameters')}"
    times = _latency(teacher, 1), _latency(student, 1)
    if times[0] and times[1]:
        told += f", {_ratio(times[0].p50_ms, times[1].p50_ms, 'faster', 'slower')} at batch 1"
    if teacher.text_to_label_ms and student.text_to_label_ms:
        faster = _ratio(teacher.text_to_label_ms, student.text_to_label_ms, "faster", "slower")
        told += f", {faster} from text to label"
    return f"{told}."


def task_sentence(task: TaskRecord) -> str:
    """Tell the task, and how many rows with which labels were evaluated."""
    if task.labels_a_row is not None:
        labelled = f", with {format_number(task.labels_a_row, '.2f')} labels each on average"
    elif task.score_mean is not None:
        spread = f"{format_number(task.score_mean)} ± {format_number(task.score_sd)}"
        labelled = f", their scores {spread} (standard deviation)"
    elif task.headline == AGREEMENT:
        labelled = ", none of them with a gold label"
    else:
        labelled = f", {percent(task.majority_share)} of them with the commonest label"
    rows = format_number(task.rows, ",")
    told = f"Task: {task.problem_type or 'n/a'}, labels {listed(task.labels)}; {rows} rows evaluated{labelled}."
    return f"{told} {task.one_class_note()}".rstrip()


def listed(labels: Sequence[Any]) -> str:
    """List labels, the first ones of many."""
    more = len(labels) - LABELS_SHOWN
    return ", ".join(map(str, labels[:LABELS_SHOWN])) + (f" and {more:,} more" if more > 0 else "")


def candidate_cells(candidates: Mapping[str, Candidate], shown: Callable[[str], str] = str) -> Cells:
    """Return the table of candidates, a row each, as `shown`; of several lengths it has the latency of the first."""
    measured = candidates.values()
    metrics = _metrics_shown(candidate.quality for candidate in measured)
    batches = sorted({entry.batch for candidate in measured for entry in candidate.latency})
    # A column that nobody has a figure for is left out.
    counted = any(candidate.flops for candidate in measured)
    weighed = any(candidate.memory_mb is not None for candidate in measured)
    read = any(candidate.text_to_label_ms is not None for candidate in measured)
    timed = any(candidate.training_seconds is not None for candidate in measured)
    header = ["candidate", *metrics.values(), "agreement with the teacher", "parameters", "MB"]
    header += ["GFLOPs"] if counted else []
    header += ["memory, MB"] if weighed else []
    header += ["text to label, p50 ms"] if read else []
    header += [f"batch {batch}, p50 / p95 ms" for batch in batches]
    header += ["training s"] if timed else []
    rows = [
        [
            shown(name),
            *(str(candidate.quality[key]) if key in candidate.quality else "n/a" for key in metrics),
            str(candidate.agreement) if candidate.agreement else "n/a",
            format_number(candidate.parameters, ","),
            format_number(candidate.size_mb, ".1f"),
            *([format_number(candidate.flops and candidate.flops / 1e9)] if counted else []),
            *([format_number(candidate.memory_mb, ".0f")] if weighed else []),
            *([format_number(candidate.text_to_label_ms, ".2f")] if read else []),
            *(_milliseconds(_latency(candidate, batch)) for batch in batches),
            *([format_number(candidate.training_seconds, ".0f")] if timed else []),
        ]
        for name, candidate in candidates.items()
    ]
    return header, rows


def summary_cells(task: TaskRecord, candidates: Mapping[str, Candidate]) -> Cells:
    """Return the table of candidates in so few columns that it fits 80 letters: the headline metric alone, no p95."""
    agreed = str if task.headline == AGREEMENT else lambda agreement: format_number(agreement.value)
    columns: dict[str, Callable[[Candidate], str]] = {
        METRIC_NAMES.get(task.headline, ""): lambda each: str(each.quality.get(task.headline, "n/a")),
        "agree": lambda each: agreed(each.agreement) if each.agreement else "n/a",
        "params": lambda each: format_number(each.parameters and each.parameters / 1e6, ".1f") + " M",
        "MB": lambda each: format_number(each.size_mb, ".1f"),
        "RAM MB": lambda each: format_number(each.memory_mb, ".0f"),
        "ms": lambda each: format_number(each.latency[0].p50_ms if each.latency else None, ".2f"),
        "train s": lambda each: format_number(each.training_seconds, ".0f"),
    }
    cells = {name: [cell(each) for each in candidates.values()] for name, cell in columns.items()}
    # A column that nobody has a figure for is left out.
    shown = {name: column for name, column in cells.items() if any(not cell.startswith("n/a") for cell in column)}
    return ["candidate", *shown], [list(row) for row in zip(candidates, *shown.values(), strict=True)]


def seeds_sentence(task: TaskRecord, seeds: Mapping[str, Mapping[str, SeedSpread]]) -> str:
    """Return mean ± sample standard deviation of the headline metric and of the gap closed, candidate by candidate."""
    told = [f"{name} {_spread(spreads[task.headline])}" for name, spreads in seeds.items() if task.headline in spreads]
    if "gap_closed" in seeds.get("student", {}):
        told.append(f"share of the gap closed {_spread(seeds['student']['gap_closed'])}")
    return f"Over several seeds, mean ± sample sd: {', '.join(told)}."


def latency_cells(candidates: Mapping[str, Candidate], shown: Callable[[str], str] = str) -> Cells | None:
    """Return p50 / p95 / p99 in ms by batch size and length, a column a candidate, as `shown`; None for one length."""
    timed = {name: candidate.latency for name, candidate in candidates.items() if candidate.latency}
    grid = list(dict.fromkeys((entry.batch, entry.tokens) for entries in timed.values() for entry in entries))
    if len({tokens for _, tokens in grid}) < 2:
        return None
    by_name = [{(each.batch, each.tokens): each for each in entries} for entries in timed.values()]
    rows = [
        [str(batch), str(tokens), *(_percentiles(entries.get((batch, tokens))) for entries in by_name)]
        for batch, tokens in grid
    ]
    return ["batch", "tokens", *map(shown, timed)], rows


def seeds_cells(seeds: Mapping[str, Mapping[str, SeedSpread]], shown: Callable[[str], str] = str) -> Cells:
    """Return mean ± sample standard deviation of each metric, a row a candidate, as `shown`."""
    metrics = _metrics_shown(seeds.values()) | {"agreement": "agreement"}
    if any("gap_closed" in spreads for spreads in seeds.values()):
        metrics["gap_closed"] = "share of the gap closed"
    rows = [
        [shown(name), *(_spread(spreads[key]) if key in spreads else "n/a" for key in metrics)]
        for name, spreads in seeds.items()
    ]
    return ["candidate", *metrics.values()], rows


def temperature_lines(candidates: Mapping[str, Candidate]) -> list[str]:
    """Return a sentence on each fitted temperature, and on what it does to the calibration error."""
    return [
        f"{name}: dividing its logits by {format_number(fitted.temperature, '.2f')} takes its ECE from "
        f"{format_number(fitted.ece_before)} to {format_number(fitted.ece_after)} (fitted on {fitted.rows:,} rows)"
        for name, candidate in candidates.items()
        if (fitted := candidate.temperature_scaling)
    ]


def decision_lines(candidates: Mapping[str, Candidate]) -> list[str]:
    """Return a sentence on the rules by which the candidates give labels, where a row may have several."""
    rules: dict[str, list[str]] = {}
    for name, candidate in candidates.items():
        if candidate.decides_by:
            rules.setdefault(candidate.decides_by, []).append(name)
    told = "; ".join(f"{', '.join(names)}: {DECISIONS.get(rule, rule)}" for rule, names in rules.items())
    return [f"A label is given where its probability is above its threshold. {told}"] if told else []


def paired_test_lines(comparisons: Mapping[str, Comparison]) -> list[str]:
    """Return a sentence on each paired test."""
    return [
        f"McNemar (exact): {paired.student_only_correct} rows only the student has right, "
        f"{paired.other_only_correct} only the {other}; p = {format_number(paired.mcnemar_p, '.2g')}."
        for other in (*BASELINES, "teacher")
        if (paired := comparisons.get(f"student_vs_{other}")) and paired.mcnemar_p is not None
    ]


def origin_lines(run: RunRecord) -> list[tuple[str, str]]:
    """Return what made the figures, as names and texts; the command is not among them."""
    recorded = run.to_dict()
    # Each of several teachers is in their name.
    recorded.get("teacher", {}).pop("models", None)
    lines = [(key, flat(recorded[key])) for key in _ORIGIN if recorded.get(key) is not None]
    return lines + [("objective", flat(objective)) for objective in run.objectives]


def flat(value: Any) -> str:
    """Return a mapping as `key value, key (key value)` without its empty entries, a fraction with six digits.

    Numbers of rows are written as everywhere, other whole numbers, such as seeds, as they are.
    """
    if isinstance(value, Mapping):
        told = {key: entry for key, entry in value.items() if entry not in (None, "", {})}
        told |= {key: f"{n:,}" for key, n in told.items() if str(key).endswith("_rows") and isinstance(n, int)}
        return ", ".join(f"{k} ({flat(v)})" if isinstance(v, Mapping) else f"{k} {flat(v)}" for k, v in told.items())
    return str(float(f"{value:.6g}") if isinstance(value, float) else value)


def one_line(value: Any) -> str:
    """Return a value as text of one line, without control characters."""
    return " ".join(without_controls(str(value)).split())


def escape_markdown(value: Any) -> str:
    """Escape what somebody named so that it stays text in Markdown and HTML, but for `|`: tables see to theirs."""
    escaped = html.escape(one_line(value), quote=False)
    # An underscore between letters stands for itself.
    return re.sub(r"([\\`*\[\]~$]|(?<!\w)_|_(?!\w))", r"\\\1", escaped)


def code_block(code: str, language: str = "") -> str:
    """Return a fenced block that no fence in the code can end."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", code)), default=0))
    return f"{fence}{language}\n{without_controls(code)}\n{fence}"


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


def _gain(paired: Comparison, headline: str, baseline: str) -> str:
    """Return what the student has over a baseline, and how much of the gap to the teacher that closes."""
    metric = headline_name(headline)
    return f"Against {baseline} its {metric} is {_points(paired, headline)}.{_gap_closed(paired, headline)}"


def _points(paired: Comparison, headline: str) -> str:
    """Return the difference in the headline metric, and whether the rows can tell."""
    difference, test = paired.differences[headline], ""
    if headline == "accuracy":
        assert paired.mcnemar_p is not None
        test = f", McNemar p = {format_number(paired.mcnemar_p, '.2g')}"
    value, interval = _in_words(difference, headline)
    doubt = "" if _significant(paired, headline) else ": on these rows not significant at the 5 % level"
    return f"{value} ({interval}{test}){doubt}"


def _in_words(difference: Interval, headline: str) -> tuple[str, str]:
    """Return a difference and its interval: in points, of a correlation as it is."""
    scale, form, unit = (1, "+.3f", "") if headline in _CORRELATIONS else (100, "+.1f", " points")
    value, low, high = (
        format_number(scale * each, form) for each in (difference.value, difference.low, difference.high)
    )
    return f"{value}{unit}", f"95 % interval {low} to {high}"


def _significant(paired: Comparison, headline: str) -> bool:
    """Check whether a difference is more than chance explains: by McNemar's test of accuracy, else by its interval."""
    if headline == "accuracy" and paired.mcnemar_p is not None:
        return paired.mcnemar_p < 0.05
    difference = paired.differences[headline]
    return difference.low > 0 or difference.high < 0


def _gap_closed(paired: Comparison, headline: str) -> str:
    """Return how much of the gap between no teacher and the teacher is closed; nothing where it is unknown."""
    metric = headline_name(headline)
    if paired.gap is None:
        return ""
    if paired.gap_closed is None:
        value, interval = _in_words(paired.gap, headline)
        return (
            f" There is no gap to close: the teacher's {metric} is {value} from what the same shape has without a "
            f"teacher ({interval})."
        )
    value, low, high = (format_number(100 * each, ".0f") for each in astuple(paired.gap_closed))
    return f" It closes {value} % (95 % interval {low} to {high}) of the gap to the teacher."


def _metrics_shown(measured: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the metrics that any candidate has, with their names."""
    known = {key for quality in measured for key in quality}
    return {key: name for key, name in METRIC_NAMES.items() if key in known}


def _spread(spread: SeedSpread) -> str:
    return f"{format_number(spread.mean)} ± {format_number(spread.sd)} (n = {len(spread.values)})"


def _latency(candidate: Candidate, batch: int) -> Latency | None:
    return next((entry for entry in candidate.latency if entry.batch == batch), None)


def _milliseconds(latency: Latency | None) -> str:
    return f"{latency.p50_ms:.2f} / {latency.p95_ms:.2f}" if latency else "n/a"


def _percentiles(latency: Latency | None) -> str:
    return f"{_milliseconds(latency)} / {format_number(latency.p99_ms, '.2f')}" if latency else "n/a"


def _ratio(before: float, after: float, better: str, worse: str) -> str:
    if not (before > 0 and after > 0):
        return f"n/a x {better}"
    return f"{before / after:.1f} x {better}" if before >= after else f"{after / before:.1f} x {worse}"

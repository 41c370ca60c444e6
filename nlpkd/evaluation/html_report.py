"""`report.html`: an evaluation report as one page that needs no network, with charts and, on request, examples."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nlpkd.evaluation import report_text
from nlpkd.evaluation.figures.reading import as_type
from nlpkd.evaluation.origin import headline_figure, headline_name, retention
from nlpkd.evaluation.records import Breakdown, format_number, percent
from nlpkd.evaluation.report import PAGE_NAME, EvaluationReport
from nlpkd.utils.disk.files import explain_damage, numbered_folders
from nlpkd.utils.packages import how_to_install

logger = logging.getLogger(__name__)


PAGE_PACKAGES = ("matplotlib", "jinja2")
"""What the extra `report` installs."""


_CLASSES_SHOWN = 40


_WORST_CLASSES = 20


_TIMES = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


_TRADEOFFS = "With 95 % intervals; up and to the left is better."


_TRAINING = "Each part of the loss is unweighted, averaged over the steps since the point before."


_RELIABILITY = (
    "On the dashed line a classifier is right as often as its confidence says; larger points have more rows."
)


_GROUPS = "Lengths are tokens as the student reads them."


_MANY_CLASSES = f" Of all classes these are the {_WORST_CLASSES} with the student's lowest F1."


@dataclass(frozen=True)
class Curves:
    """What a training logged.

    Attributes:
        title: which training; empty for the only one.
        values: `(step, value)` points by the value's name, such as `loss/forward_kl`.
    """

    title: str
    values: dict[str, list[tuple[int, float]]]


def training_curves(folder: str | Path) -> list[Curves]:
    """Read what the trainings in a run's folder logged, stage after stage.

    Args:
        folder: a run's output directory; a Hub id, or a folder without a `trainer_state.json`, has none.

    Returns:
        The losses and evaluations of each training that logged more than one.
    """
    folder = Path(folder)
    stages = list(numbered_folders(folder, "stage").values())
    found: list[Curves] = []
    for place in [*stages, folder]:
        trained = [*numbered_folders(place, "checkpoint").values(), place]
        states = [path for each in trained if (path := each / "trainer_state.json").is_file()]
        if states:
            title = f"stage {len(found) + 1}" if stages else ""
            try:
                with explain_damage(states[-1], "the page has no curves of it"):
                    history = json.loads(states[-1].read_text(encoding="utf-8"))["log_history"]
                    found.append(Curves(title, _logged(history)))
            except ValueError as error:
                logger.warning("%s", error)
    return [curves for curves in found if curves.values]


def fill_template(template: str, **values: Any) -> str:
    """Write a page from its template.

    Args:
        template: its name in the folder `templates`.
        **values: what it shows; everything that somebody named in it is escaped.

    Returns:
        The page.

    Raises:
        ModuleNotFoundError: without the extra `report`.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from nlpkd.evaluation.charts import DARK, LIGHT

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(light=LIGHT, dark=DARK, **values)


def render_page(
    report: EvaluationReport, *, curves: Sequence[Curves] = (), texts: Mapping[int, str] | None = None
) -> str:
    """Write a report as an HTML page.

    Args:
        report: what was measured.
        curves: what the trainings logged.
        texts: texts by row number: those rows of the student's largest disagreements with its teacher are shown.

    Returns:
        The page; everything that somebody named in it is escaped.

    Raises:
        ModuleNotFoundError: without the extra `report`.
    """
    header, rows = report_text.candidate_cells(report.candidates)
    origin = [("command", report.run.command)] if report.run.command else []
    return fill_template(
        PAGE_NAME,
        title=f"{report.run.data.name}: evaluation" if report.run.data.name else "Evaluation report",
        report=report,
        about=report_text.task_sentence(report.task),
        temperatures=report_text.temperature_lines(report.candidates),
        tiles=_tiles(report),
        header=header,
        rows=rows,
        latency=report_text.latency_cells(report.candidates),
        sections=_chart_sections(report, curves),
        confusions=_confusions(report),
        examples=_examples(report, texts or {}),
        protocols=[*report_text.decision_lines(report.candidates), *report.run.protocols()],
        origin=origin + report_text.origin_lines(report.run),
    )


def make_page(
    report: EvaluationReport, *, curves: Sequence[Curves] = (), texts: Mapping[int, str] | None = None
) -> str | None:
    """Write a report as an HTML page, as `render_page` does; without the extra `report` say that it is skipped.

    Args:
        report: what was measured.
        curves: as for `render_page`.
        texts: likewise.

    Returns:
        The page, None where it was skipped.
    """
    if any(find_spec(module) is None for module in PAGE_PACKAGES):
        logger.warning("%s is skipped, its charts need the extra `report`: %s", PAGE_NAME, how_to_install("report"))
        return None
    return render_page(report, curves=curves, texts=texts)


def _logged(history: Iterable[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    values: dict[str, list[tuple[int, float]]] = {}
    for entry in history:
        for name, value in entry.items():
            wanted = name == "loss" or name.startswith(("loss/", "eval_")) and not name.endswith(_TIMES)
            if wanted and isinstance(value, (int, float)) and math.isfinite(value):
                values.setdefault(name, []).append((as_type(float, entry["step"]), float(value)))
    return {name: points for name, points in values.items() if len(points) > 1}


def _tiles(report: EvaluationReport) -> list[tuple[str, str]]:
    """Return the few figures to see first: what was kept, and what was saved."""
    student, teacher = report.candidates["student"], report.candidates.get("teacher")
    headline, tiles = report.task.headline, []
    own = headline_figure(student, headline)
    if own:
        tiles.append((format_number(own.value), headline_name(headline)))
    if teacher is None:
        return tiles
    gold = headline_figure(teacher, headline)
    if own and gold and (kept := retention(own.value, gold.value)) is not None:
        tiles.append((percent(kept), f"of the teacher's {headline_name(headline)}"))
    if student.text_to_label_ms and teacher.text_to_label_ms:
        faster = teacher.text_to_label_ms / student.text_to_label_ms
        tiles.append((f"{faster:.1f} x", "the teacher's speed, text to label"))
    elif student.latency and teacher.latency:
        tiles.append((f"{teacher.latency[0].p50_ms / student.latency[0].p50_ms:.1f} x", "the teacher's speed"))
    if teacher.size_mb and student.size_mb is not None:
        tiles.append((percent(student.size_mb / teacher.size_mb, 0), "of its size"))
    if student.agreement and student.agreement is not own:
        tiles.append((f"{student.agreement.value:.3f}", "agreement with it"))
    return tiles


@dataclass(frozen=True)
class _Section:
    """Charts under one title; a legend where colours tell candidates, and a table with what ticks cut short."""

    title: str
    note: str
    charts: list[str]
    legend: bool = False
    table: report_text.Cells | None = None


def _chart_sections(report: EvaluationReport, curves: Sequence[Curves]) -> list[_Section]:
    """Draw what there is to draw."""
    from nlpkd.evaluation import charts

    labels = [str(label) for label in report.task.labels]
    parts = {name: candidate.breakdown for name, candidate in report.candidates.items()}
    confusions, reliabilities = [], []
    titles = charts.shortened(list(parts), charts.TITLE_LENGTH)
    for number, (title, (name, own)) in enumerate(zip(titles, parts.items(), strict=True)):
        if own.confusion is not None:
            confusions.append(charts.confusion(name, title, number, own.confusion, labels))
        if own.reliability:
            reliabilities.append(charts.reliability(name, title, number, own.reliability))
    trainings = [
        _Section(f"Training, {each.title}" if each.title else "Training", _TRAINING, charts.curves(each.values))
        for each in curves
    ]
    sections = [
        _Section("Quality against cost", _TRADEOFFS, _tradeoffs(report), True),
        *trainings,
        _Section("Confusion", "Rows of each gold label by what was predicted.", confusions),
        _Section("Reliability", _RELIABILITY, reliabilities),
        _Section(
            "By class and by length",
            _GROUPS + (_MANY_CLASSES if len(labels) > _CLASSES_SHOWN else ""),
            _groups(report, parts, labels),
            True,
            _class_cells(parts, labels),
        ),
    ]
    return [section for section in sections if section.charts]


def _tradeoffs(report: EvaluationReport) -> list[str]:
    from nlpkd.evaluation import charts

    headline = report.task.headline
    points = [
        vars(figure)
        | {"name": name, "size": candidate.size_mb, "latency": candidate.latency, "read": candidate.text_to_label_ms}
        for name, candidate in report.candidates.items()
        if (figure := headline_figure(candidate, headline)) and candidate.size_mb is not None
    ]
    drawn: list[str] = []
    if not points:
        return drawn
    if all(point["read"] for point in points):
        drawn.append(
            charts.tradeoff(
                [point | {"cost": point["read"]} for point in points],
                "ms from text to label, p50 (one text)",
                headline_name(headline),
            )
        )
    elif all(point["latency"] for point in points):
        first = points[0]["latency"][0]
        axis = f"ms a pass, p50 (batch {first.batch}, {first.tokens} tokens)"
        timed = [point | {"cost": point["latency"][0].p50_ms} for point in points]
        drawn.append(charts.tradeoff(timed, axis, headline_name(headline)))
    sized = [point | {"cost": point["size"]} for point in points]
    return [*drawn, charts.tradeoff(sized, "MB on disk", headline_name(headline))]


def _groups(report: EvaluationReport, parts: Mapping[str, Breakdown], labels: Sequence[str]) -> list[str]:
    """Draw F1 by class, of many the worst, and the headline metric by length, where every candidate has them."""
    from nlpkd.evaluation import charts

    drawn = []
    if shown := _classes_shown(parts):
        scores = {name: [own.per_class[place].f1 for place in shown] for name, own in parts.items() if own.per_class}
        drawn.append(charts.by_group([labels[place] for place in shown], scores, "F1"))
    by_length = {name: own.per_length for name, own in parts.items() if own.per_length}
    if len(by_length) == len(parts):
        groups = [f"{entry.shortest} to {entry.longest}" for entry in by_length["student"]]
        values = {name: [entry.value for entry in entries] for name, entries in by_length.items()}
        if any(value is not None for own in values.values() for value in own):
            drawn.append(charts.by_group(groups, values, headline_name(report.task.headline)))
    return drawn


def _classes_shown(parts: Mapping[str, Breakdown]) -> list[int]:
    """Return the classes whose F1 is shown, of many the student's worst; none where a candidate has no figures."""
    if not all(own.per_class for own in parts.values()):
        return []
    classes = parts["student"].per_class or []
    if len(classes) <= _CLASSES_SHOWN:
        return list(range(len(classes)))
    # Of no rows there is nothing to be told.
    known = [place for place, each in enumerate(classes) if each.rows]
    return sorted(known, key=lambda place: classes[place].f1)[:_WORST_CLASSES]


def _class_cells(parts: Mapping[str, Breakdown], labels: Sequence[str]) -> report_text.Cells | None:
    """Return the F1 of the shown classes as a table, which has their names in full."""
    rows = [
        [
            str(number),
            labels[place],
            format_number((parts["student"].per_class or [])[place].rows, ",.0f"),
            *(format_number(own.per_class[place].f1) for own in parts.values() if own.per_class),
        ]
        for number, place in enumerate(_classes_shown(parts), start=1)
    ]
    return (["", "class", "rows", *parts], rows) if rows else None


def _confusions(report: EvaluationReport) -> list[tuple[str, str, str, str]]:
    """Return the student's commonest confusions: gold class, predicted class, rows, share of the gold class's rows."""
    own, labels = report.candidates["student"].breakdown, report.task.labels
    classes = own.per_class or []
    return [
        (labels[gold], labels[predicted], f"{rows:,}", percent(rows / classes[gold].rows))
        for gold, predicted, rows in own.confusions or []
    ]


def _examples(report: EvaluationReport, texts: Mapping[int, str]) -> list[dict[str, Any]]:
    labels = report.task.labels
    return [
        {
            "text": texts[entry.row],
            "row": entry.row,
            "gold": labels[entry.gold],
            "student": f"{labels[entry.predicted]} ({entry.probability:.2f})",
            "teacher": f"{labels[entry.teacher_predicted]} ({entry.teacher_probability:.2f})",
        }
        for entry in report.candidates["student"].breakdown.disagreements or []
        if entry.row in texts
    ]

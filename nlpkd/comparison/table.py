"""A frontier as a record, a table and a page: `frontier.json`, `frontier.md`, `frontier.svg`, `report.html`."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from nlpkd.comparison.points import Limits, Point, pareto_front, pick
from nlpkd.evaluation.figures.reading import as_type
from nlpkd.evaluation.html_report import PAGE_PACKAGES, fill_template
from nlpkd.evaluation.origin import column_name, headline_name
from nlpkd.evaluation.records import format_number, percent, strict_json
from nlpkd.evaluation.report import PAGE_NAME
from nlpkd.evaluation.report_text import code_block, escape_markdown, flat, markdown_table, one_line
from nlpkd.utils.disk.files import explain_damage, write_atomic
from nlpkd.utils.packages import how_to_install

logger = logging.getLogger(__name__)

SCHEMA = 1


JSON_NAME, MARKDOWN_NAME, PICTURE_NAME = "frontier.json", "frontier.md", "frontier.svg"


_HOW = (
    "Quality is the mean over the seeds. Its 95 % interval covers the choice of the measured rows: it is the first "
    "seed's, moved to the mean.",
    "Times are medians of one text at a time, all models in turn in one process. From text to label includes "
    "tokenising. A model is on the front if no other is at least as fast and as good, and better in one of the two.",
)


@dataclass(frozen=True)
class FrontierReport:
    """Students of one teacher beside it.

    Args:
        metric: the headline metric, a key of `nlpkd.evaluation.records.METRIC_NAMES` or `"agreement"`.
        rows: how many rows it was measured on.
        points: the models, the teacher first.
        failed: why a student could not be made, by its name.
        limits: the budget.
        run: what made the figures: command, date, versions, machine, threads.
        output_dir: where it was saved.
    """

    metric: str
    rows: int
    points: list[Point]
    failed: dict[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    run: dict[str, Any] = field(default_factory=dict)
    output_dir: Path | None = None

    @property
    def front(self) -> list[str]:
        """The names of the models on the Pareto front, the fastest first."""
        return [point.name for point in pareto_front(self.points)]

    @property
    def picked(self) -> Point | None:
        """The budget's choice; None without a budget, and where nothing is within it."""
        return pick(self.points, self.limits)

    @property
    def metric_name(self) -> str:
        """The metric as sentences have it."""
        return headline_name(self.metric)

    def verdict(self) -> str:
        """Return in words what the budget picks, or what there is to pick from, and which students failed."""
        asked, found = self.limits.to_text(), self.picked
        if found is not None:
            told = f"Within {asked}: {found.name}, {self._kept(found)}. It is in {found.file}."
        elif asked:
            told = f"Nothing is within {asked}."
        else:
            told = "On the front, the fastest first: " + ", ".join(self.front) + "."
        why = "; ".join(f"{name} ({reason})" for name, reason in self.failed.items())
        return f"{told} Failed: {why}." if why else told

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Return the table: its header, and a row a model."""
        teacher, front, picked = self.points[0], set(self.front), self.picked
        several = any(len(point.seeds) > 1 for point in self.points)
        header = ["model", self.metric_name, *(["sd over seeds"] if several else []), "of the teacher's"]
        header += ["text to label, ms", "times faster", "pass alone, ms", "MB", "times smaller", "on the front"]
        rows = [
            [
                point.name,
                str(point.quality),
                *([_spread(point.seeds)] if several else []),
                percent(point.retention),
                format_number(point.text_to_label_ms, ".2f"),
                format_number(teacher.text_to_label_ms / point.text_to_label_ms, ".1f"),
                format_number(point.pass_ms, ".2f"),
                format_number(point.size_mb, ".1f"),
                format_number(teacher.size_mb / point.size_mb, ".1f"),
                "picked" if point == picked else "yes" if point.name in front else "",
            ]
            for point in self.points
        ]
        return header, rows

    def summary_cells(self) -> tuple[list[str], list[list[str]]]:
        """Return the table in so few columns that it fits 80 letters."""
        header, rows = self.cells()
        shown = {"model": "model", self.metric_name: column_name(self.metric), "of the teacher's": "kept"}
        shown |= {"text to label, ms": "ms", "MB": "MB", "times faster": "faster", "on the front": "front"}
        places = [header.index(name) for name in shown]
        return list(shown.values()), [[row[place] for place in places] for row in rows]

    def to_markdown(self) -> str:
        """Write the frontier for a reader: what is picked, the table, how it was measured."""
        header, rows = self.cells()
        table = markdown_table(header, [[escape_markdown(name), *figures] for name, *figures in rows])
        lines = [f"- {escape_markdown(line)}" for line in self._lines()]
        parts = ["# Frontier", escape_markdown(self.verdict()), table, "\n".join(lines)]
        parts += [code_block(str(self.run["command"]))] if self.run.get("command") else []
        return "\n\n".join(parts) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Return the frontier as strict JSON types.

        Returns:
            `{"schema", "metric", "rows", "points", "front", "picked", "failed", "limits", "run"}`.
        """
        picked = self.picked
        entries = {"metric": self.metric, "rows": self.rows, "points": [asdict(point) for point in self.points]}
        entries |= {"front": self.front, "picked": picked and picked.name, "failed": self.failed}
        return strict_json({"schema": SCHEMA, **entries, "limits": vars(self.limits), "run": self.run})

    @classmethod
    def load(cls, folder: str | Path) -> FrontierReport:
        """Read a saved frontier.

        Args:
            folder: where it was saved.

        Returns:
            The frontier.

        Raises:
            FileNotFoundError: where there is none.
            ValueError: if the file is none of this schema.
        """
        path = Path(folder) / JSON_NAME
        with explain_damage(path, "run nlpkd frontier again, which trains no finished student anew"):
            entry = json.loads(path.read_text(encoding="utf-8"))
            if entry["schema"] != SCHEMA:
                raise ValueError(f'expected "schema": {SCHEMA}, found {entry["schema"]!r}')
            kinds = {"metric": str, "rows": int, "points": list[Point], "failed": dict[str, str], "limits": Limits}
            kept = {name: as_type(kind, entry[name]) for name, kind in kinds.items()}
            if not kept["points"] or not all(
                each.text_to_label_ms > 0 and each.size_mb > 0 for each in kept["points"]
            ):
                raise ValueError("expected points with times and sizes above 0")
            return cls(**kept, run=as_type(dict[str, Any], entry["run"]), output_dir=Path(folder))

    def save(self, folder: Path) -> None:
        """Write JSON and Markdown, and with the extra `report` picture and page, each as a whole or not at all.

        Args:
            folder: where to.
        """
        write_atomic(folder / MARKDOWN_NAME, self.to_markdown().encode(errors="backslashreplace"))
        write_atomic(folder / JSON_NAME, (json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n").encode())
        if any(find_spec(module) is None for module in PAGE_PACKAGES):
            told = "%s and %s are skipped, they need the extra `report`: %s"
            logger.warning(told, PICTURE_NAME, PAGE_NAME, how_to_install("report"))
            return
        from nlpkd.comparison.picture import draw
        from nlpkd.evaluation.charts import standalone

        drawing = draw(self.points, self.metric_name, picked=self.picked, limits=self.limits)
        write_atomic(folder / PICTURE_NAME, standalone(drawing, self._title()).encode())
        write_atomic(folder / PAGE_NAME, self._page(drawing).encode(errors="backslashreplace"))

    def _page(self, drawing: str) -> str:
        header, rows = self.cells()
        return fill_template(
            "frontier.html",
            title=self._title(),
            verdict=self.verdict(),
            header=header,
            rows=rows,
            drawing=drawing,
            lines=self._lines(),
            command=self.run.get("command"),
        )

    def _title(self) -> str:
        return f"Students of {one_line(self.run.get('teacher', 'a teacher'))}: {self.metric_name} against time"

    def _kept(self, point: Point) -> str:
        faster = self.points[0].text_to_label_ms / point.text_to_label_ms
        kept, time_ms = percent(point.retention), format_number(point.text_to_label_ms, ".2f")
        told = f"with {kept} of the teacher's {self.metric_name} in {time_ms} ms from text to label"
        return f"{told} ({faster:.1f} times as fast) and {point.size_mb:.1f} MB"

    def _lines(self) -> list[str]:
        made = ("date", "teacher", "data", "versions", "machine")
        told = [f"{name}: {flat(self.run[name])}" for name in made if self.run.get(name)]
        return [f"{self.rows:,} rows were measured.", *_HOW, *told]


def _spread(values: list[float]) -> str:
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return f"{format_number(deviation)} (n = {len(values)})"

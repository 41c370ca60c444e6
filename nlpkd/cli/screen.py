"""What a run shows on the terminal: its phases, its result in a small table, and the commands to type next."""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import sys
import textwrap
import time
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from nlpkd.evaluation import report_text
from nlpkd.evaluation.records import without_controls
from nlpkd.evaluation.report import MARKDOWN_NAME, EvaluationReport
from nlpkd.utils.provenance import as_command, as_options

if TYPE_CHECKING:
    from rich.console import Console

    from nlpkd.comparison.table import FrontierReport
    from nlpkd.pipeline.verify import Verification

_FILES = {
    MARKDOWN_NAME: "the whole report",
    "frontier.md": "the whole table",
    "frontier.svg": "its picture",
    "report.html": "the same with charts",
    "README.md": "the model card",
    "eval_results.json": "its metrics",
    "compression.json": "what was done to it",
    "tuning.json": "all trials",
    "cascade.json": "all thresholds",
    "export.json": "how they compare with PyTorch",
}

_STARTED = time.time() - 1
"""About when this process began; a second less, since a file system's clock may be behind."""

OF_TRAINING_ROWS = ("soft_label_column", "streaming", "problem_type", "label_names")
"""What no command that measures takes: there the model settles the task and the names of the labels."""

OF_THE_HUB = ("dataset_config", "dataset_revision")

_WIDTH = 80

_COLUMNS = {
    "agree": "share of equal answers with the teacher",
    "MB": "the weights",
    "RAM MB": "memory while it answers",
    "ms": "median time of a forward pass of one text",
}


def show_phases() -> None:
    """Show on standard error when each part of a run starts and ends, and what the run warns of, a line each."""
    logger = logging.getLogger("nlpkd")
    logger.handlers = [logging.StreamHandler()]
    # Some libraries give the root logger a handler, which would say it all again, or with a name before it.
    logger.propagate = False
    logging.getLogger("nlpkd.utils.progress").setLevel(logging.INFO)


def hide_bars_of_weights() -> None:
    """Show no bars of weights that are read and written, of which a run has dozens; downloads keep theirs."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as of_transformers

    shown = not are_progress_bars_disabled()
    of_transformers.disable_progress_bar()
    if shown:
        enable_progress_bars()


def show_report(report: EvaluationReport, verdict: str | None = None) -> None:
    """Print what a report found: a table that fits 80 columns, and the verdict in one sentence.

    What is no terminal gets plain text, a sentence a line. Of several processes the main one prints.

    Args:
        report: what was measured; its `to_markdown` has the rest.
        verdict: another sentence than the report's own.
    """
    if (console := _console()) is None:
        return

    # The candidates, and what was asked for beyond them.
    summary = report_text.summary_cells(report.task, report.candidates)
    _show_table(console, *summary, bold="student")
    if grid := report_text.latency_cells(report.candidates):
        _show_table(console, *grid, title="p50 / p95 / p99, ms", folded=len(grid[0]))
    explained = [f"{name}: {meaning}." for name, meaning in _COLUMNS.items() if name in summary[0]]
    console.print(f"\n{' '.join(['In brackets: 95 % intervals.', *explained])}", style="dim")
    if report.seeds:
        console.print(report_text.seeds_sentence(report.task, report.seeds))
    for line in (
        *report_text.decision_lines(report.candidates),
        *report_text.temperature_lines(report.candidates),
    ):
        console.print(without_controls(line))

    verdict = verdict or report_text.short_verdict(report.task, report.candidates, report.comparisons)
    console.print(f"\n{verdict}")
    if report.run.incomplete:
        console.print(report_text.INCOMPLETE)


def show_frontier(report: FrontierReport) -> None:
    """Print a frontier as `show_report` prints a report.

    Args:
        report: the students side by side; its `to_markdown` has the rest.
    """
    picked = report.picked
    header, rows = report.summary_cells()
    explained = (
        f"In brackets: 95 % intervals. kept: share of the teacher's {report.metric_name}. "
        "ms: median time from text to label. MB: the file. faster: times as fast as the teacher. "
        "front: no other model beats it in quality and time."
    )
    show_table(header, rows, report.verdict(), explained=explained, bold=picked.name if picked else None)


def show_verification(verification: Verification, everything: bool = True) -> None:
    """Print what became of each claim: a table that fits the terminal, Markdown elsewhere.

    Args:
        verification: the claims and what was measured.
        everything: also the figures that are not judged; else how many there are.
    """
    console, (header, rows) = _console(), verification.cells(everything)
    hidden = len(verification.claims) - len(rows)
    told = "--unjudged shows the figures that are not judged, and why." if hidden else ""
    if console is None or not console.is_terminal:
        typer.echo("\n".join(filter(None, [verification.to_markdown(everything), told])))
        return
    title = f"Claims of {verification.model}"
    show_table(header, rows, verification.verdict(), explained=told, title=title, folded=5)


def show_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], verdict: str = "", *, explained: str = "", **shown: Any
) -> None:
    """Print a table that fits 80 columns, what its columns mean, and the verdict; nothing beside the main process.

    Args:
        header: a name a column.
        rows: a cell a column each; without any there is no table.
        verdict: what was found, in one sentence; none where more is printed.
        explained: of the columns.
        **shown: `bold`, `title` and `folded` of the table.
    """
    if (console := _console()) is None:
        return
    if rows:
        _show_table(console, header, rows, **shown)
    if explained:
        console.print(f"\n{without_controls(explained)}", style="dim")
    if verdict:
        console.print(f"\n{without_controls(verdict)}")


def _console() -> Console | None:
    """Return where a run's result is printed, plain where that is no terminal; None beside the main process."""
    from accelerate import PartialState
    from rich.console import Console

    if not PartialState().is_main_process:
        return None
    terminal = sys.stdout.isatty()
    return Console(force_terminal=terminal, highlight=False, markup=False, emoji=False, soft_wrap=not terminal)


def _show_table(
    console: Console,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str | None = None,
    bold: str | None = None,
    folded: int = 1,
) -> None:
    """Print a table no wider than the terminal: where there is room for all else, its first columns are folded."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, title=title, title_style="dim")
    for number, name in enumerate(header):
        whole = number >= folded and console.width >= _WIDTH
        table.add_column(without_controls(name), justify="right" if number else "left", overflow="fold", no_wrap=whole)
    for row in rows:
        table.add_row(*without_controls(list(row)), style="bold" if row[0] == bold else None)
    console.print()
    console.print(table, soft_wrap=False)


def show_item(name: str, text: str) -> None:
    """Print a name and a text beside it, which is folded under itself on a terminal."""
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    typer.echo(textwrap.fill(name + text, columns, subsequent_indent=" " * len(name), break_long_words=False))


def show_files(what: str, folder: str | Path, *following: Sequence[Any]) -> None:
    """Print where a run left its files, and commands that may come next, each a line that a shell takes as it stands.

    Args:
        what: is in the folder, such as "The student is".
        folder: the folder; of a report's files those that this run wrote are named.
        *following: commands without the program, each as its words.
    """
    if (console := _console()) is None:
        return
    places = {name: Path(folder) / name for name in _FILES}
    # What an earlier run left may be of another model.
    new = [name for name, path in places.items() if path.is_file() and path.stat().st_mtime >= _STARTED]
    written = [f"{name} ({_FILES[name]})" for name in new]
    beside = f", with {', '.join(written)}" if written else ""
    console.print(f"\n{what} in {without_controls(str(folder))}{beside}.")
    if following:
        commands = [f"{shlex.join(_program())} {as_command(*words)}" for words in following]
        typer.echo("\nNext:\n" + "\n".join(f"  {command}" for command in commands))


def after_distilling(folder: str | Path, given: Mapping[str, Any]) -> list[list[Any]]:
    """Return the commands that go on from a distilled student.

    Args:
        folder: the student's.
        given: arguments of `nlpkd.distill` or `nlpkd.evaluate`, of which teacher and held-out rows are repeated where
            a command line can name them.

    Returns:
        Words of `try`, `export` (unless `ship` wrote the files) and `push` (unless the run pushed).
    """
    teacher, rows = given.get("teacher"), held_out_rows(given)
    # It shows whole texts.
    shown = held_out_rows({**given, "window_stride": None})
    if isinstance(teacher, (list, tuple)) and len(teacher) == 1:
        teacher = teacher[0]
    beside = ["--teacher", teacher] if isinstance(teacher, (str, Path)) else []
    # What was shipped is exported already.
    export = [] if given.get("ship") else [["export", folder, "--int8", *rows]]
    push = [] if given.get("push_to_hub") else [["push", folder, "--repo-id", repository_of(folder)]]
    return [["try", folder, *beside, *shown], *export, *push]


def repository_of(folder: str | Path) -> str:
    """Return a repository's id that the Hub takes, by the name of a folder, with a user's name to fill in."""
    plain = unicodedata.normalize("NFKD", Path(folder).resolve().name).encode("ascii", "ignore").decode()
    name = re.sub(r"[-.]*-[-.]*|\.{2,}", "-", re.sub(r"[^\w.-]+", "-", plain))[:96].lstrip("-.")
    name = re.sub(r"(\.git|[-.])+$", "", name)
    return f"USER/{name or 'student'}"


def held_out_rows(given: Mapping[str, Any]) -> list[Any]:
    """Return the options that name rows to measure on and how they are read; none where a command line can't."""
    from nlpkd.data.arguments import DataArguments
    from nlpkd.teachers.base import LabelingTeacher

    given = {name: value for name, value in given.items() if value != getattr(DataArguments, name, None)}
    source, others = given.get("data"), given.get("test") or given.get("validation")
    train = given.get("train")
    on_the_hub = isinstance(train, str) and not Path(train).exists()
    # A part that is held out by its labels, or a data set of the Hub, which has held-out rows of its own.
    unlabelled = "soft_label_column" in given or isinstance(given.get("teacher"), LabelingTeacher)
    held_out = "validation_split" in given and not unlabelled
    if source is None and others is None and (held_out or (on_the_hub and "validation_split" not in given)):
        source = train
    names = reading(*OF_TRAINING_ROWS, *((*OF_THE_HUB, "validation_split") if source is None else ()))
    source = source or others
    return as_options({"data": source}, "data") + as_options(given, *names) if isinstance(source, (str, Path)) else []


def reading(*without: str) -> list[str]:
    """Return the names of the options that say how rows are read.

    Args:
        *without: those of them that the command has not.
    """
    from nlpkd.data.arguments import DataArguments

    names = [*(field.name for field in fields(DataArguments)), "trust_remote_code"]
    return [name for name in names if name not in without]


def _program() -> list[str]:
    """Return how this program is started here: by its name where the shell finds it, else by the path to it."""
    script = shutil.which("nlpkd")
    beside = Path(sys.executable).with_name("nlpkd")
    if script is not None and (not beside.exists() or os.path.samefile(script, beside)):
        return ["nlpkd"]
    return [str(beside)] if beside.exists() else [sys.executable, "-m", "nlpkd"]

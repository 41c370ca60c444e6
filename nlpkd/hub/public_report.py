"""A report as others may see it: without what belongs to the machine it was made on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nlpkd.evaluation.figures.names import told_apart
from nlpkd.evaluation.origin import RunRecord, TaskRecord
from nlpkd.evaluation.records import without_controls
from nlpkd.evaluation.report import EvaluationReport
from nlpkd.utils.secrets import without_tokens

# How a path begins that leads to a place of its own: a file URL or none, then ~, a drive, a slash, or any way up.
_START = r"""(?:file://(?:localhost)?)?(?:~[\w.-]*[/\\]|[A-Za-z]:[/\\]|/|\\\\|(?:[^\s"'=,:(\[/\\]+[/\\])*\.\.[/\\])"""


_QUOTED_PATH = re.compile(rf"""(["']){_START}(?:[^"'/\\\n]+[/\\])*([^"'/\\\n]+)[/\\]?\1""")


_PATH = re.compile(rf"""(?<![^\s"'=,:(\[]){_START}(?:[^\s"'/\\]+[/\\])*([^\s"'/\\]+)[/\\]?""")


def public_report(report: EvaluationReport) -> EvaluationReport:
    """Take out of a report what belongs to the machine it was made on.

    Args:
        report: The report as it was saved.

    Returns:
        The same report, each absolute path reduced to `./` and its last part, access tokens and control characters
        struck out. Candidates that are called alike then are numbered.
    """
    report = replace(report, task=TaskRecord.from_dict(without_controls(report.task.to_dict())))
    names = told_apart({name: _without_paths(name) for name in report.candidates})

    def called(entries: Mapping[str, Any]) -> dict[str, Any]:
        return {names.get(name, name): entry for name, entry in entries.items()}

    recorded = report.run.to_dict()
    if report.run.student.files_sha256:
        recorded["student"] = recorded["student"] | {"files_sha256": called(report.run.student.files_sha256)}
    run = RunRecord.from_dict(_without_paths(recorded))
    # Labels are called as in the task.
    run = replace(run, thresholds=without_controls(called(report.run.thresholds)))
    return replace(report, run=run, candidates=called(report.candidates), seeds=called(report.seeds))


def _without_paths(value: Any) -> Any:
    if isinstance(value, Mapping):
        names = told_apart({key: _without_paths(str(key)) for key in value})
        return {names[key]: _without_paths(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_paths(entry) for entry in value]
    if not isinstance(value, str):
        return value
    return _PATH.sub(r"./\1", _QUOTED_PATH.sub(r"\1./\2\1", without_tokens(without_controls(value))))

"""What no measurement gives: parts of a report that don't belong together, as a stranger's can have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NoReturn

from nlpkd.evaluation.origin import TaskRecord
from nlpkd.evaluation.records import Breakdown, Candidate


def check_parts(task: TaskRecord, candidates: Mapping[str, Candidate], named: Mapping[str, Iterable[str]]) -> None:
    """Check that what a report says of its candidates fits its labels, its rows and each other.

    Args:
        task: with the labels and the number of rows.
        candidates: by name.
        named: candidates that other parts name, by what those are called.

    Raises:
        ValueError: naming the first part that does not fit.
    """
    if task.rows is not None and task.rows < 1:
        _refuse("task: rows", f"{task.rows} rows", "at least 1")
    for part, names in named.items():
        if unknown := sorted(set(names) - set(candidates)):
            _refuse(part, f"{unknown}", f"the candidates are {sorted(candidates)}")
    lengths = candidates["student"].breakdown.per_length
    for name, candidate in candidates.items():
        title, own = f"candidates: {name}: breakdown", candidate.breakdown
        _check_breakdown(title, own, len(task.labels), task.rows)
        if own.per_length is not None and lengths is not None and len(own.per_length) != len(lengths):
            _refuse(f"{title}: per_length", f"{len(own.per_length)} groups", f"the student has {len(lengths)}")


def check_thresholds(thresholds: Mapping[str, Mapping[str, float]], labels: int) -> None:
    """Check that each candidate has a threshold a label, which a probability can be above.

    Args:
        thresholds: by candidate and label.
        labels: how many there are.

    Raises:
        ValueError: naming the candidate that has another number of them, or one that is no probability.
    """
    for name, each in thresholds.items():
        if len(each) != labels:
            _refuse(f"run: thresholds: {name}", f"{len(each)} thresholds", f"there are {labels} labels")
        for label, cut in each.items():
            if not 0 <= cut <= 1:
                _refuse(f"run: thresholds: {name}: {label}", f"{cut}", "from 0 to 1")


def _check_breakdown(title: str, own: Breakdown, labels: int, rows: int | None) -> None:
    """Check the parts of one candidate's quality against the number of labels and of rows."""
    if own.confusion is not None and {labels, *map(len, own.confusion)} != {len(own.confusion)}:
        _refuse(f"{title}: confusion", f"{len(own.confusion)} rows of {_lengths(own.confusion)}", _count(labels))
    if own.per_class is not None and len(own.per_class) != labels:
        _refuse(f"{title}: per_class", f"{len(own.per_class)} classes", _count(labels))
    for place, entry in enumerate(own.confusions or []):
        part = f"{title}: confusions: {place}"
        if len(entry) != 3 or own.per_class is None:
            _refuse(part, f"{entry}", "a gold id, a predicted id and their rows, beside figures by class")
        _check_ids(part, {"gold": entry[0], "predicted": entry[1]}, labels)
        if not 1 <= entry[2] <= own.per_class[entry[0]].rows:
            _refuse(part, f"{entry[2]} rows", f"the class has {own.per_class[entry[0]].rows:g}")
    for place, each in enumerate(own.reliability or []):
        if each.rows < 1:
            _refuse(f"{title}: reliability: {place}: rows", f"{each.rows}", "at least 1")
    for place, wrong in enumerate(own.disagreements or []):
        part = f"{title}: disagreements: {place}"
        given = {"gold": wrong.gold, "predicted": wrong.predicted, "teacher_predicted": wrong.teacher_predicted}
        _check_ids(part, given, labels)
        if wrong.row < 0 or (rows is not None and wrong.row >= rows):
            _refuse(f"{part}: row", f"{wrong.row}", f"there are {rows} rows, counted from 0")


def _check_ids(part: str, ids: Mapping[str, int], labels: int) -> None:
    for field, number in ids.items():
        if not 0 <= number < labels:
            _refuse(f"{part}: {field}", f"class id {number}", _count(labels))


def _lengths(rows: Iterable[list[int]]) -> str:
    return " and ".join(map(str, sorted({len(row) for row in rows}))) or "none"


def _count(labels: int) -> str:
    return f"there are {labels} labels"


def _refuse(part: str, found: str, expected: str) -> NoReturn:
    raise ValueError(f"a part of the report is damaged ({part}: found {found}, {expected}): evaluate again")

"""Students of one teacher one after another, measured side by side: how small can it be, and what does that cost?"""

from __future__ import annotations

import inspect
import logging
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from nlpkd.comparison.plan import FrontierPlan
from nlpkd.comparison.points import Limits, Point
from nlpkd.comparison.student import TEACHER, FrontierStudent, in_one_line
from nlpkd.comparison.table import FrontierReport
from nlpkd.compression.int8 import INT8_FILE
from nlpkd.data.arguments import DataArguments
from nlpkd.data.rows import measured_split
from nlpkd.data.sources import Source
from nlpkd.data.text_classification import load_text_classification
from nlpkd.evaluation.benchmark import describe_environment, measure_latency, measure_text_to_label
from nlpkd.evaluation.figures.intervals import moved_to
from nlpkd.evaluation.origin import headline_figure, headline_name, retention
from nlpkd.evaluation.records import AGREEMENT, Candidate, Interval
from nlpkd.evaluation.report import EvaluationReport
from nlpkd.models.limits import refuse_other_than_name
from nlpkd.models.source import ModelSource
from nlpkd.pipeline.distill import distill
from nlpkd.pipeline.dry_run import Plan
from nlpkd.pipeline.jobs.roles import Teachers
from nlpkd.utils.disk.locks import only_run, refuse_unfit_folder
from nlpkd.utils.field_types import plain_arguments
from nlpkd.utils.provenance import command_line, now
from nlpkd.utils.randomness import check_num_seeds

logger = logging.getLogger(__name__)

DEFAULT_STUDENTS = ("teacher", "layers:4", "layers:3", "layers:2", "bilstm", "static")

REFERENCE = "teacher in PyTorch"
"""What everything is compared with."""

_TIMED_TEXTS = 100

_OF_ALL_STUDENTS = ("teacher", "train", "validation", "test", "ship", "objectives")
"""Arguments of a frontier that are those of every student."""


_NOT_HERE = {
    "args": "give single settings, such as num_train_epochs=3",
    "push_to_hub": "push the student that you pick: nlpkd push",
    "resume_from_checkpoint": "a run again goes on where it stopped",
    "student": "name them as students",
    "teacher_revision": "write the teacher as id@revision",
    "soft_label_column": "the students learn from a teacher",
    "window_stride": "a text of several windows takes as many passes, so that its time would be wrong",
}


_SHARED = (
    "teacher", "validation", "test", "validation_split", "dataset_config", "dataset_revision", "text_column",
    "text_pair_column", "label_column", "label_names", "problem_type", "trust_remote_code", "ship", "num_seeds",
    "output_dir",
)  # fmt: skip
"""Arguments that no student has of its own: all are measured on the same rows beside the same teacher."""


@plain_arguments
def frontier(
    teacher: str | Path,
    train: Source,
    validation: Source | None = None,
    test: Source | None = None,
    *,
    students: Sequence[str] = DEFAULT_STUDENTS,
    only: Sequence[str] = (),
    ship: bool = False,
    objectives: str | None = None,
    num_seeds: int = 1,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    max_latency_ms: float | None = None,
    max_size_mb: float | None = None,
    min_retention: float | None = None,
    output_dir: str | Path = "frontier",
    **keywords: Any,
) -> FrontierReport:
    """Distil a teacher into several students, and put quality against time and size into one table and one picture.

    Each student is in `output_dir/students/NAME`, as `nlpkd.distill` leaves it. `frontier.json`, `frontier.md`,
    `frontier.svg` and `report.html` (the latter two with the extra `report`) are beside that folder. A run again goes
    on: finished students are kept, one that was cut short resumes from its last checkpoint, one that failed is tried
    again. A student that fails is named, and the others go on. What the teacher gives on the training rows is kept
    once for all students whose objectives need its logits alone; one that `overrides` gives other rows keeps its own.

    Args:
        teacher: a path or Hub id (`id@revision` too).
        train: labelled text; see `nlpkd.load_text_classification`.
        validation: held-out rows; measured where there is no test set.
        test: rows that nothing was chosen on.
        students: as `nlpkd.distill` takes them; `"teacher"` is the teacher as it is, which `ship` makes smaller.
        only: those of the students that are made now; all of them if empty.
        ship: compare what is deployed: the vocabulary trimmed, unless `vocabulary="whole"`, and 8 bits; see
            `nlpkd.distill`.
        objectives: a preset for all students; if None each has what suits it, as for `nlpkd.distill`.
        num_seeds: seeds to train each student with; the first one's is what is timed, and deployed.
        overrides: settings of single students, such as `{"static": {"learning_rate": 1e-2}}`; none that changes the
            rows they are measured on, or the teacher.
        max_latency_ms: picks the best student that takes no longer from text to label, at the median.
        max_size_mb: likewise, the most that its file may take.
        min_retention: the least share of the teacher's headline metric that the picked student has; without the
            other two the fastest such student is picked.
        output_dir: where all of it goes.
        **keywords: further arguments of `nlpkd.distill`, fields of `nlpkd.data.arguments.DataArguments`
            (`text_column`, `max_length`, ...) and of `DistillationConfig` (`num_train_epochs`, ...).

    Returns:
        The frontier, saved.

    Raises:
        ValueError: if an argument does not fit, a finished student in the folder was made otherwise, or no student
            could be made.
    """
    limits, out = Limits(max_latency_ms, max_size_mb, min_retention), Path(output_dir)
    settings = {"teacher": teacher, "train": train, "validation": validation, "test": test, "ship": ship}
    settings |= {"objectives": objectives, **keywords}
    check_num_seeds(num_seeds, keywords.get("seed") or 0)
    with only_run(out):
        made, texts = _students(out, students, only, settings, overrides or {})

        # The students, one after another.
        for number, student in enumerate(made, start=1):
            if student.is_made(only):
                logger.warning("Student %d of %d: %s, in %s.", number, len(made), student.name, student.folder)
                student.make(num_seeds, out / "teacher_cache")

        # All that is finished side by side.
        failed = {student.name: student.error for student in made if student.error}
        finished = [student for student in made if student.finished]
        if not finished:
            raise ValueError(f"no student was made: {'; '.join(f'{name}: {why}' for name, why in failed.items())}")
        report = _compare(finished, texts, settings, out, limits, failed)
        report.save(out)
    return report


def plan_frontier(*arguments: Any, **keywords: Any) -> FrontierPlan:
    """Plan a frontier: load what each student needs, train some steps in a temporary directory, and say what all take.

    Args:
        *arguments: those of `frontier`, with its defaults.
        **keywords: likewise.

    Returns:
        The plan, of what is not finished; a student that can't be made is named in it.

    Raises:
        ValueError: if an argument does not fit, a finished student in the folder was made otherwise, or none can be
            made.
    """
    bound = inspect.signature(frontier).bind(*arguments, **keywords)
    bound.apply_defaults()
    given = bound.arguments
    Limits(given["max_latency_ms"], given["max_size_mb"], given["min_retention"])
    only, num_seeds = given["only"], given["num_seeds"]
    check_num_seeds(num_seeds, given["keywords"].get("seed") or 0)
    settings = {name: given[name] for name in _OF_ALL_STUDENTS} | given["keywords"]
    plans: dict[str, Plan | str] = {}
    out, overrides = Path(given["output_dir"]), given["overrides"] or {}
    refuse_unfit_folder(out)
    for student in _students(out, given["students"], only, settings, overrides)[0]:
        left = num_seeds - student.finished
        if student.name != TEACHER and student.is_made(only) and left > 0:
            try:
                plans[student.name] = student.plan(left)
            except Exception as error:
                plans[student.name] = in_one_line(error)
    refused = [f"{name}: {why}" for name, why in plans.items() if isinstance(why, str)]
    if refused and len(refused) == len(plans):
        raise ValueError(f"no student can be made: {'; '.join(refused)}")
    return FrontierPlan(plans)


def _students(
    out: Path,
    names: Sequence[str],
    only: Sequence[str],
    settings: Mapping[str, Any],
    overrides: Mapping[str, Mapping[str, Any]],
) -> tuple[list[FrontierStudent], _MeasuredTexts]:
    """Return the students that are asked for, each with its arguments, and what all of them are timed on.

    Students that can't be right are refused, and a teacher or rows that can't be read: no student could be made.
    """
    teacher, own = settings["teacher"], inspect.signature(distill).parameters
    refuse_other_than_name(teacher, "the teacher")
    if ModelSource.of(teacher).is_onnx:
        raise ValueError(
            f"a frontier compares with the teacher in PyTorch, and {str(teacher)!r} is a file: give its folder"
        )
    _check_overrides(overrides, settings)
    for given in (settings, *overrides.values()):
        for name in _NOT_HERE.keys() & given.keys():
            raise ValueError(f"frontier takes no {name}: {_NOT_HERE[name]}")
        DataArguments.split_of_training(distill, {name: each for name, each in given.items() if name not in own})
    if PartialState().num_processes > 1:
        raise ValueError("frontier runs in one process: launch `nlpkd distill` for each student instead")
    folders = _folders(out, names, only, overrides)
    made = [FrontierStudent.of(name, folder, settings, overrides.get(name, {})) for name, folder in folders.items()]
    return made, _MeasuredTexts.of(settings)


def _check_overrides(overrides: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]) -> None:
    """Refuse settings of single students by which these would be measured otherwise than the others."""
    shared = {*_SHARED}
    # What held-out rows are drawn from.
    if settings["test"] is None and settings["validation"] is None:
        shared |= {"train"}
    for student, own in overrides.items():
        if not isinstance(own, Mapping):
            raise ValueError(f"overrides of {student!r} must be settings by name, found {own!r}")
        if taken := sorted(shared & own.keys()):
            raise ValueError(
                f"overrides of {student!r} have {', '.join(taken)}, and all students are measured on the same rows "
                "beside the same teacher: give it for all of them"
            )


def _refuse_other_rows(reports: Mapping[str, EvaluationReport]) -> None:
    """Refuse to compare students that were measured on different rows."""
    measured = {
        name: (report.task.rows, report.run.data.split, report.run.data.evaluated_sha256)
        for name, report in reports.items()
    }
    if len(set(measured.values())) > 1:
        found = ", ".join(
            f"{name} on {rows} of {split}, SHA-256 {str(digest):.12}"
            for name, (rows, split, digest) in measured.items()
        )
        raise ValueError(
            f"the students were measured on different rows ({found}), so nothing can be compared: choose another "
            "output_dir, and give the measured rows for all of them"
        )


def _folders(out: Path, students: Sequence[str], only: Sequence[str], overrides: Mapping[str, Any]) -> dict[str, Path]:
    """Return each student's folder; refuse names that are not among the students."""
    if isinstance(students, str) or not students or not all(isinstance(name, str) for name in students):
        raise ValueError(f"students must be a list of names, such as ['layers:3', 'static'], got {students!r}")
    if not isinstance(only, (list, tuple)):
        raise ValueError(f"only must be a list of students, such as ['layers:3'], got {only!r:.80}")
    for given, names in {"only": only, "overrides": overrides}.items():
        if unknown := sorted(set(names) - set(students)):
            raise ValueError(f"{given} names {unknown}, and the students are {list(students)}")
    folders = {name: out / "students" / re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.") for name in students}
    if len(set(folders.values())) < len(students):
        raise ValueError(f"two of the students {list(students)} would have one folder: leave one out")
    return folders


def _compare(
    students: Sequence[FrontierStudent],
    texts: _MeasuredTexts,
    given: Mapping[str, Any],
    out: Path,
    limits: Limits,
    failed: dict[str, str],
) -> FrontierReport:
    """Put the teacher and all finished students side by side: quality as their reports have it, times anew."""
    # What is compared of each: its report, the file that is deployed, and its times.
    reports = {student.name: EvaluationReport.load(student.folder) for student in students}
    _refuse_other_rows(reports)
    deployed = {student.name: INT8_FILE if given["ship"] else "student" for student in students}
    files = {each.name: each.folder / INT8_FILE if given["ship"] else each.folder for each in students}
    text_to_label_ms, pass_ms = _times_together({REFERENCE: given["teacher"], **files}, texts, given)

    # The teacher and each student as a point; several seeds move the first one's interval to their mean.
    first = reports[students[0].name]
    metric = first.task.headline
    reference = _quality(first.candidates["teacher"], metric)

    def point(name: str, candidate: Candidate, seeds: list[float], file: str) -> Point:
        found = _quality(candidate, metric)
        mean = statistics.fmean(seeds or [found.value])
        return Point(
            name=name,
            quality=moved_to(found, mean, metric, first.task.problem_type),
            text_to_label_ms=text_to_label_ms[name],
            pass_ms=pass_ms[name],
            size_mb=candidate.size_mb or math.nan,
            retention=retention(mean, reference.value),
            seeds=seeds or [found.value],
            file=file,
        )

    points = [point(REFERENCE, first.candidates["teacher"], [], str(given["teacher"]))]
    for name, report in reports.items():
        spread = report.seeds.get(deployed[name], {}).get(metric)
        candidate, file = report.candidates[deployed[name]], files[name].relative_to(out).as_posix()
        points.append(point(name, candidate, spread.values if spread else [], file))
    run = {"command": command_line(), "date": now(), "teacher": first.run.teacher.name, "data": first.run.data.name}
    return FrontierReport(metric, first.task.rows or 0, points, failed, limits, run | describe_environment(), out)


def _quality(candidate: Candidate, metric: str) -> Interval:
    """Return the headline metric; without gold labels the agreement, which the teacher has with itself."""
    figure = headline_figure(candidate, metric)
    if figure is None and metric != AGREEMENT:
        raise ValueError(f"a report claims no {headline_name(metric)} of one of its models: measure it again")
    return figure or Interval(1.0, 1.0, 1.0)


@dataclass(frozen=True)
class _MeasuredTexts:
    """Some texts that the students are measured on, and the most tokens that are read of each."""

    texts: list[tuple[str, ...]]
    max_length: int

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> _MeasuredTexts:
        """Read them as the teacher reads them."""
        source = ModelSource.of(given["teacher"], None, bool(given.get("trust_remote_code")))
        data_args, _ = DataArguments.split_keywords(given)
        asked = Teachers([source], [source.tokenizer()], None).fill_in_task_and_names(data_args)
        splits = [given[split] for split in ("train", "validation", "test")]
        data = load_text_classification(*splits, tokenizer=source.tokenizer(), data_args=asked)
        rows = data[measured_split(data.splits)]
        chosen = rows.select(np.linspace(0, len(rows) - 1, num=min(_TIMED_TEXTS, len(rows)), dtype=int))
        return cls(list(zip(*(chosen[column][:] for column in data.text_columns), strict=True)), data.max_length)


def _times_together(
    models: Mapping[str, Any], measured: _MeasuredTexts, given: Mapping[str, Any]
) -> tuple[dict[str, float], dict[str, float]]:
    """Time all models in turn on the measured texts, from text to label and by the pass alone."""
    trust = bool(given.get("trust_remote_code"))
    sources = {name: ModelSource.of(each, None, trust) for name, each in models.items()}
    tokenizers = {name: source.tokenizer() for name, source in sources.items()}
    max_tokens = {name: int(min(each.model_max_length, measured.max_length)) for name, each in tokenizers.items()}
    # All of them, one process, one after another in turn.
    loaded = {name: source.classifier() for name, source in sources.items()}
    read = measure_text_to_label(loaded, tokenizers, measured.texts, max_tokens=max_tokens, runs=_TIMED_TEXTS)
    passed = measure_latency(loaded, tokenizers, batches=(1,), runs=_TIMED_TEXTS)
    return read, {name: entries[0].p50_ms for name, entries in passed.items()}

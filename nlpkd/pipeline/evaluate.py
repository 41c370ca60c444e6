"""Saved models side by side on labelled rows: any number of them, by path or Hub id, into one report."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset

from nlpkd.data.arguments import OF_A_SOURCE, DataArguments
from nlpkd.data.label_names import align_rows
from nlpkd.data.labels.classes import Classes
from nlpkd.data.rows import count_texts, hash_rows
from nlpkd.data.sources import FITTED_SPLITS, MEASURED_SPLITS, Source, has_splits, refuse_as_output
from nlpkd.data.splits.learned import count_remembered, learned_entries
from nlpkd.data.text_classification import TextClassificationData, load_rows_for_model
from nlpkd.data.tokenization import same_tokenizer
from nlpkd.data.windows import whole_texts
from nlpkd.evaluation.benchmark import loaded_size_mb
from nlpkd.evaluation.evaluate import evaluate_student
from nlpkd.evaluation.figures.names import check_candidate_names
from nlpkd.evaluation.html_report import PAGE_PACKAGES
from nlpkd.evaluation.inputs.arguments import check_measuring
from nlpkd.evaluation.memory import add_memory, check_memory
from nlpkd.evaluation.records import BASELINES
from nlpkd.evaluation.report import JSON_NAME, EvaluationReport
from nlpkd.evaluation.scoring import DISAGREEMENTS
from nlpkd.hub.saving import save_report
from nlpkd.models.limits import refuse_other_than_name
from nlpkd.models.loading import split_revision
from nlpkd.models.onnx_classifier import model_folder
from nlpkd.models.source import ModelSource
from nlpkd.tasks import SINGLE_LABEL, task_of
from nlpkd.utils.disk.files import weights_sha256
from nlpkd.utils.disk.full_disk import nearest_existing_folder
from nlpkd.utils.disk.locks import LOCK, only_writer, refuse_unfit_folder
from nlpkd.utils.field_types import plain_arguments, with_home
from nlpkd.utils.packages import require
from nlpkd.utils.progress import phase, quiet
from nlpkd.utils.provenance import command_line, now

logger = logging.getLogger(__name__)

LATENCY_GRID: dict[str, Any] = {"latency_batches": (1, 8, 32), "latency_tokens": (16, 64, 128), "latency_runs": 100}
"""Batch sizes, lengths and timed passes of a latency grid, as arguments of `evaluate`."""


MEASURING = {
    "teacher_order", "training_seconds", "batch_size", "bootstrap_samples", "latency_batches", "latency_tokens",
    "latency_runs", "seed",
}  # fmt: skip
"""Arguments of `evaluate_student` that are a caller's: the others are made here."""


_ARGUMENTS = ("teacher", "student", "baseline")


_ROLES = ("teacher", "student", *BASELINES)


@plain_arguments
def evaluate(
    student: str | Path,
    data: Source,
    *,
    teacher: str | Path | None = None,
    baseline: str | Path | None = None,
    candidates: Mapping[str, str | Path] | None = None,
    held_out: Source | None = None,
    output_dir: str | Path | None = None,
    examples: int = 0,
    memory: bool = False,
    split: str | None = None,
    trust_remote_code: bool = False,
    show: Callable[[EvaluationReport], None] | None = None,
    **keywords: Any,
) -> EvaluationReport:
    """Measure a saved student, and beside it its teacher, its baseline and any further models, on labelled rows.

    Args:
        student: a path or Hub id (`id@revision`), or an ONNX file in a model's folder.
        data: labelled rows; see `load_text_classification`.
        teacher: the teacher, likewise.
        baseline: the undistilled baseline, likewise.
        candidates: further models by name, likewise.
        held_out: other labelled rows, to fit each model's temperature on, or the thresholds of a multi-label one; of
            several splits "validation", else "test", and never the measured one. Rows that are measured too are left
            out. Without it a teacher decides by the thresholds that the student's report chose for it, if any.
        output_dir: where to save `report.json`, `report.md` and, with the extra `report`, `report.html`; no folder
            with the whole report of a training, which says more. Where it is the student's own, the thresholds that
            were chosen for it are kept in its `config.json`.
        examples: how many texts (20 at most) to show on `report.html` on which student and teacher of a single-label
            task disagree most; they stay on this machine, a push leaves them out.
        memory: measure what each model takes while it answers, in a process of its own; see `nlpkd.evaluation.memory`.
        split: the name of the one to measure on. If None "test", else "validation", else the only one that is made to
            measure on by its name (`test_matched`, `dev`, ...); "train" where there is no other.
        trust_remote_code: run the model repositories' own code.
        show: called with the report as soon as all is measured, before it is saved.
        **keywords: how the rows are read, by the fields of `nlpkd.data.arguments.DataArguments` (`text_column`,
            `label_column`, `max_length`, ...); and further arguments of `evaluate_student`, such as `latency_tokens`.

    Returns:
        The report.

    Raises:
        ValueError: if an argument is unknown or can't be, models or data do not fit, or all held-out rows are
            measured.
    """
    data_args, measuring = DataArguments.split_of(evaluate, keywords, MEASURING, "one of evaluate_student")
    # What can be refused before anything is measured.
    check_candidate_names(candidates or {})
    if memory:
        check_memory()
    if output_dir is not None:
        refuse_as_output(Path(output_dir) / JSON_NAME, data=data, held_out=held_out)
        _check_writable(Path(output_dir))
        _refuse_to_replace_a_training(Path(output_dir))

    beside = {"teacher": teacher, "baseline": baseline}
    given: dict[str, Any] = {"student": student} | {name: each for name, each in beside.items() if each is not None}
    given |= candidates or {}
    check_measuring(given, **measuring)
    for name, each in given.items():
        refuse_other_than_name(each, name, "save a model first, or measure it with nlpkd.evaluate_student")

    # The models, and the rows as each of their tokenizers reads them.
    sources = {name: ModelSource.of(each, None, trust_remote_code) for name, each in given.items()}
    with phase("Loading models and rows"):
        models: dict[str, Any] = {name: source.classifier() for name, source in sources.items()}
        tokenizers = {name: source.tokenizer() for name, source in sources.items()}
        tokenizer = tokenizers["student"]
        config: Any = models["student"].config
        if examples:
            _check_examples(examples, models, output_dir)
        others = {name: each for name, each in tokenizers.items() if not same_tokenizer(tokenizer, each)}
        load = partial(
            load_rows_for_model,
            config=config,
            tokenizer=tokenizer,
            teacher_tokenizer=[others.get("teacher"), *(each for name, each in others.items() if name != "teacher")],
        )
        rows, split, loaded = load(data, data_args=data_args, splits=[split] if split else MEASURED_SPLITS)
        digest = hash_rows(rows, [*loaded.text_columns, "labels"])
        folders = {name: source.folder for name, source in sources.items()}
        learned = count_remembered(rows, loaded.text_columns, split, folders)
        # In their own order, in which every model finds them whatever the student calls them.
        with quiet("nlpkd.data"):
            rows = align_rows(rows, Classes.of(loaded.id2label).counted, split)
        fitted, fitted_from = None, {}
        if held_out is not None:
            # The configuration, the revision and the part are those of `data` alone.
            others_own: dict[str, Any] = dict.fromkeys(OF_A_SOURCE)
            other_args = replace(data_args, **others_own)
            measured = {split} - {"train"} if _same(data, held_out) else set()
            splits = [each for each in FITTED_SPLITS if each not in measured]
            fitted, fitted_split, other = load(held_out, data_args=other_args, splits=splits)
            fitted_from = {"held_out": other.name, "held_out_split": fitted_split if has_splits(held_out) else None}

    # What is measured, for the record. Of a file the name is its last part alone, and may hold an @.
    in_full = isinstance(data, str) and data == loaded.name
    weights = weights_sha256(Path(sources["student"].name))
    name, revision = split_revision(loaded.name) if in_full else (loaded.name, None)
    run: dict[str, Any] = {
        "command": command_line(),
        "date": now(),
        **{role: sources[role].describe() for role in ("student", "teacher") if role in sources},
        "data": {
            "name": name,
            "config": data_args.dataset_config,
            "revision": revision or data_args.dataset_revision,
            "split": split if has_splits(data) or data_args.validation_split is not None else None,
            **fitted_from,
            "evaluated_rows": count_texts(rows),
            "evaluated_sha256": digest,
            **learned_entries(learned.get("student"), *([learned["teacher"]] if "teacher" in learned else [])),
            **loaded.reading,
        },
    }
    if weights:
        run["student"]["weights_sha256"] = weights
    if "teacher" in sources:
        measuring = _settled(_folder(student), config, run["teacher"]) | measuring
    with phase(f"Measuring {', '.join(models)} on {run['data']['evaluated_rows']:,} rows"):
        report = evaluate_student(
            models["student"],
            models.get("teacher"),
            rows,
            tokenizer,
            baseline=models.get("baseline"),
            candidates={name: model for name, model in models.items() if name not in _ARGUMENTS},
            teacher_tokenizer=others.get("teacher"),
            candidate_tokenizers={name: each for name, each in others.items() if name != "teacher"},
            threshold_dataset=fitted,
            student_files=[name for name in candidates or {} if _folder(given[name]) == _folder(student)],
            text_columns=loaded.text_columns,
            size_mb={name: loaded_size_mb(source, models[name]) for name, source in sources.items()},
            run=run,
            **measuring,
        )
    # Said and saved though the memory can't be measured, since all else takes long to measure again.
    own = output_dir is not None and _folder(student) == Path(output_dir).resolve()
    finish = partial(_finish, show=show, output_dir=output_dir, logs=student, own=own)
    texts = {} if output_dir is None else _texts(rows, loaded, report, examples)
    try:
        report = add_memory(report, sources) if memory else report
    except BaseException:
        finish(report, texts=texts)
        raise
    return finish(report, texts=texts)


def _finish(
    report: EvaluationReport,
    show: Callable[[EvaluationReport], None] | None,
    output_dir: str | Path | None,
    logs: str | Path,
    own: bool,
    texts: Mapping[int, str],
) -> EvaluationReport:
    """Show a report and save it; what hinders the one does not hinder the other. Return it as it was saved."""
    try:
        if show is not None:
            show(report)
    finally:
        if output_dir is not None:
            try:
                with only_writer(output_dir, wait=True):
                    report = save_report(report, output_dir, card=False, own=own, logs=logs, texts=texts)
            except BaseException:
                if show is None:
                    logger.error(
                        "The report could not be saved in %s. It says:\n\n%s", output_dir, report.to_markdown()
                    )
                raise
    return report


def _same(data: Source, held_out: Source) -> bool:
    """Check whether both are one source, by its name or as an object."""
    if isinstance(data, (str, os.PathLike)) and isinstance(held_out, (str, os.PathLike)):
        return os.fspath(data) == os.fspath(held_out)
    return data is held_out


def _folder(model: str | Path) -> Path:
    """Return the folder whose config a model has."""
    return (model_folder(Path(model)) if Path(model).is_file() else Path(model)).resolve()


def _settled(student: Path, config: Any, teacher: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return what the report beside a student has of this very teacher, as arguments of `evaluate_student`.

    That is the label order that the training settled, and the thresholds that were chosen. Both are of the labels as
    the report has them, of which the student's config may have another order by now.
    """
    report = EvaluationReport.load_beside(student)
    if report is None or not report.run.teacher.is_of(teacher):
        return {}
    names, chosen = report.task.labels, report.run.thresholds.get("teacher", {})
    settled: dict[str, list[Any] | None] = {
        "teacher_order": report.run.teacher.label_order,
        "teacher_thresholds": [chosen[name] for name in names] if set(chosen) == set(names) else None,
    }
    classes = Classes.of_config(config)
    places = (None if classes is None else classes.positions_in(Classes.of(names))) or range(len(names))
    return {name: [own[place] for place in places] for name, own in settled.items() if own}


def name_models(entries: Sequence[str], **roles: str | None) -> dict[str, str]:
    """Name the models of a command line.

    A model is called as `NAME=PATH` says, else by the last part of its path, without a file's suffix: of `teacher`,
    `student` and `baseline` this is its role. Where none is the student, the only other model without a name is, or,
    beside a teacher, the first of them.

    Args:
        entries: paths or Hub ids, each perhaps as `NAME=PATH`.
        **roles: those that have an option of their own, such as `teacher`; None where it was not given.

    Returns:
        Path or id by name, `student` among them.

    Raises:
        ValueError: if an entry lacks name or path, nobody can say which model is the student, or two models have one
            name.
    """
    split = [entry.partition("=") if not Path(entry).exists() else ("", "", entry) for entry in entries]
    for entry, (name, equals, path) in zip(entries, split, strict=True):
        if equals and not (name and path):
            raise ValueError(f"{entry!r} is no NAME=PATH: give both, or a path alone")
    given = [(name, with_home(path)) if equals else ("", name or path) for name, equals, path in split]
    named = [(name or _last_part(path), path) for name, path in given]
    models = {role: path for role, path in roles.items() if path is not None}
    known = {*models, *(name for name, _ in named)}
    if "student" not in known:
        student = _student(given, named, "teacher" in known)
        named[student] = ("student", named[student][1])
    for name, path in named:
        if name in models:
            raise ValueError(f"two models are called {name!r}: {models[name]} and {path}; name one as NAME=PATH")
        models[name] = path
    return models


def _student(given: Sequence[tuple[str, str]], named: Sequence[tuple[str, str]], teacher: bool) -> int:
    """Return which entry is the student where none is called so; a single model is, whatever its folder is called."""
    free = [at for at, (name, _) in enumerate(given) if not name and (len(given) == 1 or named[at][0] not in _ROLES)]
    paths = [path for _, path in given]
    if not free:
        raise ValueError(f"none of {paths} is the student: give one without a name, or as student=PATH")
    if len(free) > 1 and not teacher:
        raise ValueError(
            f"which of {[paths[at] for at in free]} is the student? Name it as student=PATH, and a teacher as "
            "teacher=PATH"
        )
    return free[0]


def _last_part(path: str) -> str:
    known = Path(path.partition("@")[0] if not Path(path).exists() else path)
    return known.stem if known.is_file() else known.resolve().name


def _check_writable(folder: Path) -> None:
    """Refuse a folder for a report that can't be made or written to, or that a run is writing to."""
    refuse_unfit_folder(folder)
    try:
        # What is refused leaves nothing behind, and where no lock was ever made nobody holds one.
        there = nearest_existing_folder(folder)
        with only_writer(folder) if (folder / LOCK).exists() else nullcontext(), tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ValueError(f"output_dir={str(folder)!r} can't be written to ({error}): choose another folder") from error


def _refuse_to_replace_a_training(folder: Path) -> None:
    """Refuse a folder with the whole report of a training of what is in it, which a new report would replace."""
    report = EvaluationReport.load_beside(folder)
    if report is not None and report.run.objectives and not report.run.incomplete:
        raise ValueError(
            f"{folder / JSON_NAME} says how the student was trained, and measures {', '.join(report.candidates)}: a "
            "report of an evaluation would replace it. Choose another output_dir"
        )


def _check_examples(examples: int, models: Mapping[str, Any], output_dir: str | Path | None) -> None:
    """Refuse to be asked for examples that there can't be."""
    if not 0 < examples <= DISAGREEMENTS:
        raise ValueError(f"examples must lie in 1..{DISAGREEMENTS}, found {examples}")
    if output_dir is None or "teacher" not in models:
        raise ValueError("examples are shown on report.html where a teacher disagrees: give a teacher and output_dir")
    if (task := task_of(models["student"].config)) not in (None, SINGLE_LABEL):
        raise ValueError(f"examples are of single-label tasks, and the student's is {task}: leave them out")
    for package in PAGE_PACKAGES:
        require(package, extra="report")


def _texts(rows: Dataset, loaded: TextClassificationData, report: EvaluationReport, examples: int) -> dict[int, str]:
    """Look up the texts that the student's largest disagreements with its teacher are on."""
    found = (report.candidates["student"].breakdown.disagreements or [])[:examples]
    if not found:
        return {}
    texts = whole_texts(rows)
    parts = [texts[column][:] for column in loaded.text_columns]
    return {entry.row: "\n".join(str(part[entry.row]) for part in parts) for entry in found}

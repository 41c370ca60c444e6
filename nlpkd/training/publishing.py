"""What a training leaves for readers: its record, the card, pushes to the Hub."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from huggingface_hub import run_as_future
from torch import nn
from transformers import SchedulerType

from nlpkd.config import DistillationConfig
from nlpkd.data.label_names import label_column
from nlpkd.data.rows import count_texts, describe_rows, hash_rows
from nlpkd.data.text_classification import TextClassificationData
from nlpkd.evaluation.evaluate import evaluate_student
from nlpkd.evaluation.report import EvaluationReport
from nlpkd.hub.model_card import hub_id
from nlpkd.hub.push import push_student
from nlpkd.hub.saving import save_report
from nlpkd.models.ensemble import TeacherEnsemble
from nlpkd.objectives.objective_set import ObjectiveSet
from nlpkd.utils.fingerprints import hash_value
from nlpkd.utils.object_hashes import hash_configuration, hash_in_run, hash_weights

logger = logging.getLogger(__name__)


def describe_training(
    args: DistillationConfig, objectives: ObjectiveSet, teacher: nn.Module | None, steps: int
) -> dict[str, Any]:
    """Describe a training for a report.

    Args:
        args: the settings.
        objectives: what is trained on.
        teacher: the teacher, if there is one.
        steps: optimizer steps that are done.

    Returns:
        Seed, objectives and settings, as `EvaluationReport.run` has them.
    """
    settings = {
        "learning_rate": args.learning_rate,
        "num_train_epochs": args.num_train_epochs,
        "steps": steps,
        "batch_size": args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "processes": args.world_size,
        "warmup_steps": args.warmup_steps,
        "lr_scheduler_type": SchedulerType(args.lr_scheduler_type).value,
        "weight_decay": args.weight_decay,
    }
    if isinstance(teacher, TeacherEnsemble):
        settings |= {"ensemble_average": args.ensemble_average, "ensemble_weights": teacher.weights.tolist()}
    settings["mixed_precision"] = "bf16" if args.bf16 else "fp16" if args.fp16 else "no"
    described = [objective.config() for objective in objectives]
    return {"seed": args.seed, "objectives": described, "settings": settings}


def describe_data(
    data: TextClassificationData, split: str, rows: Dataset, origin: Mapping[str, Any]
) -> dict[str, Any]:
    """Describe the rows of a training and of its measurement for a report.

    Args:
        data: all of them.
        split: that is measured.
        rows: of that split, with the student's labels.
        origin: where they come from: `data`, `dataset_config`, `dataset_revision` and `evaluated_source`; of rows that
            a teacher labelled also `unanswered_rows`, by split.

    Returns:
        Entries of `nlpkd.evaluation.origin.DataRecord`.
    """
    return {
        "name": origin["data"],
        "config": origin["dataset_config"],
        "revision": origin["dataset_revision"],
        "split": split,
        "evaluated_source": origin["evaluated_source"],
        "train_rows": count_texts(data["train"]),
        "evaluated_rows": count_texts(data[split]),
        "evaluated_sha256": hash_rows(rows, [*data.text_columns, "labels"]),
        "truncated_rows": data.truncated,
        "unanswered_rows": origin.get("unanswered_rows", {}).get(split),
        "other_labeller": list(data.other_labellers.get(split, ())),
        **data.reading,
    }


def measurement_sha256(splits: Mapping[str, Any], teacher: nn.Module | None, settings: Mapping[str, Any]) -> str:
    """Hash all that figures depend on beside the student and its baselines: others are measured otherwise.

    Args:
        splits: the rows that are measured, and those that thresholds and temperatures are fitted on, each with all of
            its columns; None for what is not there.
        teacher: that is measured beside them, and agreed with.
        settings: how it is measured, the order that the teacher gives the labels included.

    Returns:
        A SHA-256, in hexadecimal digits.
    """
    rows = {name: describe_rows(each, each.column_names, name) for name, each in splits.items() if each is not None}
    told = None if teacher is None else [hash_weights(teacher), hash_in_run(hash_configuration, teacher)]
    return hash_value({"rows": rows, "teacher": told, "settings": dict(settings)})


def card_facts(
    language: str | list[str] | None = None,
    license: str | None = None,
    tags: str | list[str] | None = None,
    model_name: str | None = None,
    finetuned_from: str | None = None,
    tasks: str | list[str] | None = None,
    dataset_tags: str | list[str] | None = None,
    dataset: str | list[str] | None = None,
    dataset_args: str | list[str] | None = None,
) -> dict[str, Any]:
    """Turn the arguments of `Trainer.create_model_card` into entries of a report's `run`, which the card is made from.

    Args:
        language: the texts' language.
        license: the student's license.
        tags: further tags.
        model_name: refused: a card bears the name of its repository.
        finetuned_from: id of the base model on the Hub.
        tasks: `"text-classification"`, if any.
        dataset_tags: id of the data set on the Hub.
        dataset: its name for readers; of one without a tag its name.
        dataset_args: its configuration.

    Returns:
        The entries, without those that are not known.

    Raises:
        ValueError: if the card can't say it.
    """
    if model_name is not None:
        raise ValueError(
            "model_name can't be set: the card's code loads the model by its repository; set hub_model_id"
        )
    if set(_listed(tasks)) - {"text-classification"}:
        raise ValueError(f"tasks={tasks!r}: a student's task is text-classification, so leave it out")
    if finetuned_from is not None and hub_id(finetuned_from) is None:
        raise ValueError(
            f"finetuned_from={finetuned_from!r} is no id on the Hub, which base_model has to be: leave it out"
        )
    about = {"dataset_tags": dataset_tags, "dataset": dataset, "dataset_args": dataset_args}
    if several := [name for name, value in about.items() if len(_listed(value)) > 1]:
        raise ValueError(
            f"{several[0]}={about[several[0]]!r}: the figures are of one data set, so name that one alone"
        )
    tag, title, config = (next(iter(_listed(value)), None) for value in about.values())
    name = tag or title
    data = {"name": name, "evaluated_source": name, "title": title if tag else None, "config": config}
    facts = {
        "language": language,
        "license": license,
        "tags": _listed(tags),
        "base_model": finetuned_from,
        "data": {key: value for key, value in data.items() if value},
    }
    return {key: value for key, value in facts.items() if value}


def _listed(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def write_card(folder: Path, repo_id: str, facts: dict[str, Any], measure: Callable[[], EvaluationReport]) -> None:
    """Write README.md into a student's folder, from the report that is there.

    Args:
        folder: of the student.
        repo_id: the repository whose card it is.
        facts: as `card_facts` returns them; kept in the report.
        measure: makes the report where there is none yet.

    Raises:
        ValueError: if the report can't be made.
    """
    report = EvaluationReport.load_beside(folder) or measure()
    if facts:
        data = report.run.data.updated(facts.get("data", {}))
        report = replace(report, run=replace(report.run.updated(facts), data=data))
    save_report(report, folder, repo_id)


def measure_for_card(
    student: nn.Module,
    teacher: nn.Module | None,
    rows: Any,
    tokenizer: Any,
    teacher_tokenizer: Any,
    teacher_order: Sequence[int] | None,
    run: dict[str, Any],
) -> EvaluationReport:
    """Measure a student for its card.

    Args:
        student: after its training.
        teacher: the teacher, if there is one.
        rows: the evaluation set.
        tokenizer: the student's.
        teacher_tokenizer: the teacher's where it is another one.
        teacher_order: the index that the teacher gives each of the student's labels, if it is not the student's own.
        run: of the training, by `describe_training`.

    Returns:
        The report, which is not saved.

    Raises:
        ValueError: if there is not one labelled evaluation set.
    """
    if not (isinstance(rows, Dataset) and label_column(rows)):
        raise ValueError(
            "a card needs figures: give one labelled eval_dataset, or save an EvaluationReport in output_dir"
        )
    return evaluate_student(
        student,
        teacher,
        rows,
        tokenizer,
        teacher_tokenizer=teacher_tokenizer,
        teacher_order=teacher_order,
        run=run | {"data": {"split": "evaluation", "evaluated_rows": len(rows)}},
    )


def push(
    folder: str | Path,
    repo_id: str,
    args: DistillationConfig,
    commit_message: str,
    *,
    blocking: bool = True,
    token: str | None = None,
    revision: str | None = None,
    private: bool | None = None,
) -> Any:
    """Push what a folder holds of a student.

    Args:
        folder: where it is saved.
        repo_id: the repository.
        args: the settings, which say what the arguments below leave open.
        commit_message: of the commit.
        blocking: wait for the push.
        token: `hub_token` if None.
        revision: `hub_revision` if None.
        private: `hub_private_repo` if None.

    Returns:
        The commit's address, or a `Future` of it.
    """
    send = partial(
        push_student,
        folder,
        repo_id,
        commit_message=commit_message,
        token=token or args.hub_token,
        revision=revision or args.hub_revision,
        private=args.hub_private_repo if private is None else private,
    )
    # The library's own queue: a later push never overtakes an earlier one.
    return send() if blocking else run_as_future(send)


def push_checkpoint(folder: str | Path, repo_id: str, args: DistillationConfig, step: int) -> Future:
    """Push a checkpoint's student in the background; a failure is logged, and training goes on.

    Args:
        folder: the checkpoint.
        repo_id: the repository.
        args: the settings.
        step: at which it was saved.

    Returns:
        The push in progress.
    """
    job: Future = push(folder, repo_id, args, f"Training in progress, step {step}", blocking=False)
    job.add_done_callback(_warn_if_failed)
    return job


def _warn_if_failed(job: Future) -> None:
    if job.exception() is not None:
        logger.warning("Training goes on, but a checkpoint was not pushed: %s", job.exception())

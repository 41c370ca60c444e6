"""What a trainer tells of itself and sends to the Hub: record, card, pushes."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
from huggingface_hub import HfApi
from transformers import SchedulerType

from nlpkd.config import DistillationConfig
from nlpkd.data.label_names import label_column
from nlpkd.evaluation.evaluate import evaluate_student
from nlpkd.evaluation.html_report import save_page, training_curves
from nlpkd.evaluation.report import JSON_NAME, EvaluationReport
from nlpkd.hub.model_card import build_model_card, hub_id
from nlpkd.hub.push import push_student
from nlpkd.models.ensemble import TeacherEnsemble
from nlpkd.utils.files import write_atomic

if TYPE_CHECKING:
    from nlpkd.training.trainer import DistillationTrainer
import logging

logger = logging.getLogger(__name__)


def describe_training(trainer: DistillationTrainer) -> dict[str, Any]:
    """Describe a training for a report.

    Args:
        trainer: before, while or after training.

    Returns:
        Seed, objectives and settings, as `EvaluationReport.run` has them.
    """
    args = trainer.args
    return {
        "seed": args.seed,
        "objectives": [objective.config() for objective in trainer.objectives],
        "settings": {
            "learning_rate": args.learning_rate,
            "num_train_epochs": args.num_train_epochs,
            "steps": trainer.state.global_step,
            "batch_size": args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
            "processes": args.world_size,
            "warmup_steps": args.warmup_steps,
            "lr_scheduler_type": SchedulerType(args.lr_scheduler_type).value,
            "weight_decay": args.weight_decay,
            **_ensemble(args, trainer.teacher_model),
            "mixed_precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "no",
        },
    }


def _ensemble(args: DistillationConfig, teacher: Any) -> dict[str, Any]:
    if not isinstance(teacher, TeacherEnsemble):
        return {}
    return {"ensemble_average": args.ensemble_average, "ensemble_weights": teacher.weights.tolist()}


def repository(trainer: DistillationTrainer) -> str:
    """Name the repository that a trainer pushes to: `hub_model_id`, or its output directory's name."""
    return trainer.hub_model_id or trainer.args.hub_model_id or Path(trainer.args.output_dir).resolve().name


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
    """Take what `Trainer.create_model_card` takes as entries of a report's `run`, from which the card is written.

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


def write_card(trainer: DistillationTrainer, facts: dict[str, Any]) -> None:
    """Write README.md and the report that it rests on, measured on the evaluation set unless a report is there.

    Args:
        trainer: its output directory is written to.
        facts: what `card_facts` gave, kept in the report.

    Raises:
        ValueError: if there is neither a report nor one labelled evaluation set.
    """
    folder, rows = Path(trainer.args.output_dir), trainer.eval_dataset
    if (folder / JSON_NAME).exists():
        report = EvaluationReport.load(folder)
        if facts:
            data = (report.run.get("data") or {}) | facts.get("data", {})
            report = replace(report, run=report.run | facts | ({"data": data} if data else {}))
            report.save(folder)
    elif isinstance(rows, datasets.Dataset) and label_column(rows):
        data = {"split": "evaluation", "evaluated_rows": len(rows)} | facts.get("data", {})
        report = evaluate_student(
            trainer.model,
            trainer.teacher_model,
            rows,
            trainer.processing_class,
            teacher_tokenizer=trainer.teacher_processing_class,
            teacher_order=trainer.teacher_order,
            run=describe_training(trainer) | facts | {"data": data},
        )
        report.save(folder)
        save_page(report, folder, curves=training_curves(folder))
    else:
        raise ValueError(
            f"a card needs figures: give one labelled eval_dataset, or save an EvaluationReport in {folder}"
        )
    card = build_model_card(report, model_name=repository(trainer))
    write_atomic(folder / "README.md", card.content.encode())


def push(
    trainer: DistillationTrainer,
    commit_message: str,
    blocking: bool,
    token: str | None,
    revision: str | None,
    private: bool | None,
) -> Any:
    """Push what a trainer's output directory holds of the student.

    Args:
        trainer: its student is saved already.
        commit_message: of the commit.
        blocking: wait for the push.
        token: `hub_token` if None.
        revision: `hub_revision` if None.
        private: `hub_private_repo` if None.

    Returns:
        The commit's address, or a `Future` of it.
    """
    args = trainer.args
    send = partial(
        push_student,
        args.output_dir,
        repository(trainer),
        commit_message=commit_message,
        token=token or args.hub_token,
        revision=revision or args.hub_revision,
        private=args.hub_private_repo if private is None else private,
    )
    return send() if blocking else HfApi().run_as_future(send)


def push_checkpoint(trainer: DistillationTrainer, folder: str) -> Future:
    """Push a checkpoint's student in the background; a failure is logged, and training goes on.

    Args:
        trainer: while training.
        folder: the checkpoint.

    Returns:
        The push in progress.
    """
    job: Future = HfApi().run_as_future(
        push_student,
        folder,
        repository(trainer),
        commit_message=f"Training in progress, step {trainer.state.global_step}",
        token=trainer.args.hub_token,
        revision=trainer.args.hub_revision,
        private=trainer.args.hub_private_repo,
    )
    job.add_done_callback(_say_if_failed)
    return job


def _say_if_failed(job: Future) -> None:
    if job.exception() is not None:
        logger.warning("Training goes on, but a checkpoint was not pushed: %s", job.exception())

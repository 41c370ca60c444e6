"""What a trainer tells of itself and sends to the Hub: record, card, pushes."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
from huggingface_hub import HfApi
from transformers import SchedulerType

from nlpkd.config import DistillationConfig
from nlpkd.ensemble import TeacherEnsemble
from nlpkd.evaluation import evaluate_student
from nlpkd.html_report import save_page, training_curves
from nlpkd.hub import push_student
from nlpkd.matching import label_column
from nlpkd.model_card import build_model_card
from nlpkd.report import EvaluationReport

if TYPE_CHECKING:
    from nlpkd.trainer import DistillationTrainer

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


def write_card(trainer: DistillationTrainer, language: str | None = None, license: str | None = None) -> None:
    """Write README.md and the report that it rests on, measured on the evaluation set unless a report is there.

    Args:
        trainer: its output directory is written to.
        language: the texts' language, for the card.
        license: the student's license, for the card.

    Raises:
        ValueError: if there is neither a report nor one labelled evaluation set.
    """
    folder, rows = Path(trainer.args.output_dir), trainer.eval_dataset
    if (folder / "report.json").exists():
        report = EvaluationReport.load(folder)
    elif isinstance(rows, datasets.Dataset) and label_column(rows):
        known = {key: value for key, value in (("language", language), ("license", license)) if value}
        report = evaluate_student(
            trainer.model,
            trainer.teacher_model,
            rows,
            trainer.processing_class,
            teacher_tokenizer=trainer.teacher_processing_class,
            teacher_order=trainer.teacher_order,
            run=describe_training(trainer) | {"data": {"split": "evaluation", "evaluated_rows": len(rows)}} | known,
        )
        report.save(folder)
        save_page(report, folder, curves=training_curves(folder))
    else:
        raise ValueError(
            f"a card needs figures: give one labelled eval_dataset, or save an EvaluationReport in {folder}"
        )
    build_model_card(report, model_name=repository(trainer)).save(folder / "README.md")


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
    )
    job.add_done_callback(_say_if_failed)
    return job


def _say_if_failed(job: Future) -> None:
    if job.exception() is not None:
        logger.warning("Training goes on, but a checkpoint was not pushed: %s", job.exception())

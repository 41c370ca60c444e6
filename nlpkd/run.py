"""One run on one output directory: kept to itself, trained, measured, recorded."""

from __future__ import annotations

import copy
import dataclasses
import logging
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import disable_progress_bars
from filelock import FileLock, Timeout
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import get_last_checkpoint

from nlpkd.config import DistillationConfig
from nlpkd.data import TextClassificationData
from nlpkd.evaluation import evaluate_student
from nlpkd.matching import follow_student_labels
from nlpkd.model_card import build_model_card
from nlpkd.objectives import CrossEntropyLoss, Objective
from nlpkd.report import EvaluationReport, aggregate_seeds
from nlpkd.trainer import DistillationTrainer

logger = logging.getLogger(__name__)


@contextmanager
def only_run(output_dir: str | Path) -> Iterator[None]:
    """Keep other runs out of an output directory; the kernel drops the lock with its owner.

    Args:
        output_dir: the directory, made where missing.

    Yields:
        Nothing.

    Raises:
        ValueError: if another run holds it.
    """
    state = PartialState()
    if not state.is_main_process:
        disable_progress_bars()
        yield
        return
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"another run is writing to {folder}: wait for it, or choose another output_dir") from None
    try:
        yield
    finally:
        lock.release()


def gold_trainer(
    model: PreTrainedModel, args: DistillationConfig, data: TextClassificationData, tokenizer: PreTrainedTokenizerBase
) -> DistillationTrainer:
    """Make a trainer that learns from gold labels alone: of a teacher, or of an undistilled baseline."""
    return DistillationTrainer(
        model=model,
        args=args,
        objectives=[CrossEntropyLoss()],
        train_dataset=data["train"],
        eval_dataset=data["validation"] if "validation" in data else None,
        processing_class=tokenizer,
    )


@dataclass(frozen=True)
class Job:
    """All that a distillation needs besides its settings.

    Attributes:
        teacher: the teacher.
        teacher_tokenizer: its tokenizer where it is not the student's, else None.
        tokenizer: the student's tokenizer.
        data: the splits.
        objectives: not bound yet.
        origin: where teacher, student and data come from, for the record.
        start: makes the untrained student for a seed.
    """

    teacher: PreTrainedModel
    teacher_tokenizer: PreTrainedTokenizerBase | None
    tokenizer: PreTrainedTokenizerBase
    data: TextClassificationData
    objectives: list[Objective]
    origin: dict[str, Any]
    start: Callable[[int], PreTrainedModel]

    def run(
        self, args: DistillationConfig, num_seeds: int, baseline: bool, baseline_dir: Path
    ) -> tuple[PreTrainedModel, EvaluationReport]:
        """Train and measure with one or more seeds; further seeds go to `seed-N/`, and finished ones are kept.

        Args:
            args: the settings, with the first seed.
            num_seeds: how many seeds.
            baseline: train the undistilled baselines too.
            baseline_dir: where the first one goes.

        Returns:
            The first seed's student, and its report with the figures of all seeds.
        """
        fresh = [copy.deepcopy(self.objectives) for _ in range(num_seeds - 1)]
        trained, report = self.run_seed(args, self.objectives, baseline_dir if baseline else None)
        reports = [report]
        for number, objectives in enumerate(fresh, start=1):
            seed = args.seed + number
            folder = Path(args.output_dir) / f"seed-{seed}"
            if (folder / "report.json").exists():
                logger.info("Seed %d is finished: its report in %s is used.", seed, folder)
                reports.append(EvaluationReport.load(folder))
                continue
            again = dataclasses.replace(args, output_dir=str(folder), seed=seed, data_seed=None)
            _, one = self.run_seed(again, objectives, folder / "baseline" if baseline else None)
            reports.append(one)
        if num_seeds > 1:
            report = dataclasses.replace(report, seeds=aggregate_seeds(reports))
            _save_report(report, args)
        return trained, report

    def run_seed(
        self, args: DistillationConfig, objectives: Sequence[Objective], baseline_dir: Path | None
    ) -> tuple[PreTrainedModel, EvaluationReport]:
        """Train and measure with one seed.

        Args:
            args: the settings.
            objectives: not bound yet.
            baseline_dir: where the undistilled baseline goes; None trains none.

        Returns:
            The student and its report, both saved in the output directory.
        """
        student = self.start(args.seed)
        student.config.problem_type = self.data.problem_type  # type: ignore[assignment]
        untrained = copy.deepcopy(student) if baseline_dir is not None else None
        trainer = DistillationTrainer(
            model=student,
            teacher_model=self.teacher,
            args=dataclasses.replace(args, push_to_hub=False),
            objectives=objectives,
            train_dataset=self.data["train"],
            eval_dataset=self.data["validation"] if "validation" in self.data else None,
            processing_class=self.tokenizer,
            teacher_processing_class=self.teacher_tokenizer,
        )
        seconds = {
            "student": trainer.train(resume_from_checkpoint=checkpoint_to_resume(args)).metrics["train_runtime"]
        }
        trainer.save_model()
        baseline = None
        if untrained is not None:
            baseline, seconds["baseline"] = self._train_baseline(untrained, args, str(baseline_dir))
        report = self._measure(trainer, baseline, seconds, args)
        return trainer.model, report

    def _train_baseline(
        self, untrained: PreTrainedModel, args: DistillationConfig, folder: str
    ) -> tuple[PreTrainedModel, float]:
        args = dataclasses.replace(args, output_dir=folder, push_to_hub=False)
        trainer = gold_trainer(untrained, args, self.data, self.tokenizer)
        result = trainer.train(resume_from_checkpoint=checkpoint_to_resume(args))
        trainer.save_model()
        return trainer.model, result.metrics["train_runtime"]

    def _measure(
        self,
        trainer: DistillationTrainer,
        baseline: PreTrainedModel | None,
        seconds: dict[str, float],
        args: DistillationConfig,
    ) -> EvaluationReport:
        split = "test" if "test" in self.data else "validation"
        rows = follow_student_labels(self.data[split], trainer.model.config, split)
        report = None
        if PartialState().is_main_process:
            report = evaluate_student(
                trainer.model,
                self.teacher,
                rows,
                self.tokenizer,
                baseline=baseline,
                teacher_tokenizer=self.teacher_tokenizer,
                teacher_order=trainer.teacher_order,
                run=self._record(trainer, split),
                training_seconds=seconds,
                seed=args.seed,
            )
            _save_report(report, args)
        PartialState().wait_for_everyone()
        return report or EvaluationReport.load(args.output_dir)

    def _record(self, trainer: DistillationTrainer, split: str) -> dict[str, Any]:
        return trainer.record() | {
            "command": command_line(),
            "date": now(),
            "teacher": self.origin["teacher"],
            "student": self.origin["student"] | {"model_type": trainer.model.config.model_type},
            "data": {
                "name": self.origin["data"],
                "config": self.origin["dataset_config"],
                "revision": self.origin["dataset_revision"],
                "split": split,
                "train_rows": len(self.data["train"]),
                "evaluated_rows": len(self.data[split]),
                "truncated_rows": self.data.truncated,
                "max_length": self.data.max_length,
            },
        }


def checkpoint_to_resume(args: DistillationConfig) -> str | None:
    """Find the checkpoint that `resume_from_checkpoint` asks for: a path, or the last one for True; None to start."""
    asked = args.resume_from_checkpoint
    if asked is None or str(asked).lower() == "false":
        return None
    if str(asked).lower() != "true":
        return str(asked)
    last = get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None
    if last is None:
        logger.warning("There is no checkpoint in %s yet: starting from the beginning.", args.output_dir)
    else:
        logger.warning("Resuming from %s.", last)
    return last


def now() -> str:
    """Give the time for a record, in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def command_line() -> str:
    """Give the command of this process for a record: no token, and no path of this machine's own."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv]
    secret = {at + 1 for at, word in enumerate(words) if word in ("--hub_token", "--token")}
    words = ["***" if at in secret else word for at, word in enumerate(words)]
    return shlex.join(["python", *words] if words[0].endswith(".py") else words)


def _save_report(report: EvaluationReport, args: DistillationConfig) -> None:
    if not PartialState().is_main_process:
        return
    report.save(args.output_dir)
    name = args.hub_model_id or Path(args.output_dir).resolve().name
    build_model_card(report, model_name=name).save(Path(args.output_dir) / "README.md")

"""One run on one output directory: kept to itself, trained, measured, recorded."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from nlpkd.config import DistillationConfig
from nlpkd.data.label_names import align_labels_to_student
from nlpkd.data.rows import count_texts, has_unlabelled, labelled_rows
from nlpkd.data.text_classification import TextClassificationData
from nlpkd.data.tokenization import TeacherTokenizers
from nlpkd.evaluation.evaluate import evaluate_student
from nlpkd.evaluation.report import EvaluationReport, aggregate_seeds
from nlpkd.hub.saving import save_report
from nlpkd.objectives import CrossEntropyLoss
from nlpkd.objectives.presets import Stage
from nlpkd.training.checkpoints import last_whole
from nlpkd.training.publishing import describe_training
from nlpkd.training.trainer import DistillationTrainer
from nlpkd.utils.files import atomic_folder_update
from nlpkd.utils.processes import decided_by_main_process
from nlpkd.utils.provenance import command_line, now

logger = logging.getLogger(__name__)


def gold_trainer(
    model: PreTrainedModel,
    args: DistillationConfig,
    data: TextClassificationData,
    tokenizer: PreTrainedTokenizerBase,
    class_weights: Sequence[float] | None = None,
) -> DistillationTrainer:
    """Make a trainer that learns from gold labels alone: of a teacher, or of an undistilled baseline."""
    # A single objective has no other whose weight could move.
    args = dataclasses.replace(lean_by_default(args), weighting="fixed")
    model.config.problem_type = data.problem_type  # type: ignore[assignment]
    return DistillationTrainer(
        model=model,
        args=args,
        objectives=[CrossEntropyLoss(class_weights=class_weights)],
        train_dataset=labelled_rows(data["train"]),
        eval_dataset=data["validation"] if "validation" in data else None,
        processing_class=tokenizer,
    )


def lean_by_default(args: DistillationConfig) -> DistillationConfig:
    """Train leanly without a teacher too, unless refused: a baseline is trained as its student is."""
    return dataclasses.replace(args, lean_training=True) if args.lean_training is None else args


@dataclass(frozen=True)
class Job:
    """All that a distillation needs besides its settings.

    Attributes:
        teacher: the teacher; several are an ensemble; None where the training rows bring soft labels along.
        teacher_tokenizer: its tokenizer where it is not the student's, else None; of several teachers a list.
        tokenizer: the student's tokenizer.
        data: the splits.
        stages: with objectives not bound yet.
        origin: where teacher, student and data come from, for the record.
        start: makes the untrained student for a seed.
        class_weights: of the gold labels, in the baseline's objective as in the student's.
    """

    teacher: nn.Module | None
    teacher_tokenizer: TeacherTokenizers
    tokenizer: PreTrainedTokenizerBase
    data: TextClassificationData
    stages: list[Stage]
    origin: dict[str, Any]
    start: Callable[[int], PreTrainedModel]
    class_weights: Sequence[float] | None = None

    def run(
        self, args: DistillationConfig, num_seeds: int, baseline: bool, baseline_dir: Path
    ) -> tuple[PreTrainedModel, EvaluationReport]:
        """Train and measure with one or more seeds; further ones go to `seed-N/`, where a resume keeps finished ones.

        Args:
            args: the settings, with the first seed.
            num_seeds: how many seeds.
            baseline: train the undistilled baselines too.
            baseline_dir: where the first one goes.

        Returns:
            The first seed's student, and its report with the figures of all seeds.
        """
        fresh = [copy.deepcopy(self.stages) for _ in range(num_seeds - 1)]
        if not _resumes(args) and PartialState().is_main_process:
            # Reports of an earlier run, which a resume of this one would take for its own.
            for stale in Path(args.output_dir).glob("seed-*/report.json"):
                stale.unlink()
        trained, report = self.run_seed(args, self.stages, baseline_dir if baseline else None)
        reports = [report]
        for number, stages in enumerate(fresh, start=1):
            seed = args.seed + number
            folder = Path(args.output_dir) / f"seed-{seed}"
            if _resumes(args) and (folder / "report.json").exists():
                logger.info("Seed %d is finished: its report in %s is used.", seed, folder)
                reports.append(EvaluationReport.load(folder))
                continue
            again = dataclasses.replace(_beside(args, folder), seed=seed, data_seed=None)
            _, one = self.run_seed(again, stages, folder / "baseline" if baseline else None)
            reports.append(one)
        if num_seeds > 1:
            report = dataclasses.replace(report, seeds=aggregate_seeds(reports))
            if PartialState().is_main_process:
                save_report(report, args.output_dir, args.hub_model_id)
        return trained, report

    def run_seed(
        self, args: DistillationConfig, stages: Sequence[Stage], baseline_dir: Path | None
    ) -> tuple[PreTrainedModel, EvaluationReport]:
        """Train stage after stage, the earlier ones in `stage-N/`, and measure with one seed.

        Args:
            args: the settings.
            stages: with objectives not bound yet.
            baseline_dir: where the undistilled baseline goes; None trains none.

        Returns:
            The student and its report, both saved in the output directory.
        """
        student = self.start(args.seed)
        untrained = copy.deepcopy(student) if baseline_dir is not None else None
        *earlier, last = [dataclasses.replace(args, **stage.settings, push_to_hub=False) for stage in stages]
        before: list[float | None] = []
        for number, settings in enumerate(earlier, start=1):
            settings = _beside(settings, Path(args.output_dir) / f"stage-{number}")
            student, spent = self._run_stage(student, settings, stages[number - 1])
            before.append(spent)
        trainer = self.trainer(student, last, stages[-1])
        spent = _train(trainer, last)
        known = [each for each in (*before, spent) if each is not None]
        seconds = {"student": sum(known) if len(known) == len(stages) else None}
        baseline = None
        if untrained is not None and baseline_dir is not None:
            args_beside = _beside(_altogether(args, [*earlier, last]), baseline_dir)
            rows = self.data["train"]
            if has_unlabelled(rows):
                # As many steps as the student had, though there are fewer rows with labels.
                states = Path(args.output_dir).glob(f"stage-*/{TRAINER_STATE_NAME}")
                steps = sum(TrainerState.load_from_json(str(state)).global_step for state in states)
                args_beside = dataclasses.replace(args_beside, max_steps=steps + trainer.state.global_step)
            baseline_trainer = gold_trainer(untrained, args_beside, self.data, self.tokenizer, self.class_weights)
            seconds["baseline"] = _train(baseline_trainer, args_beside)
            baseline = baseline_trainer.model
        report = self._measure(trainer, baseline, seconds, args, stages)
        return trainer.model, report

    def trainer(self, student: PreTrainedModel, args: DistillationConfig, stage: Stage) -> DistillationTrainer:
        """Make the trainer of a stage."""
        student.config.problem_type = self.data.problem_type  # type: ignore[assignment]
        return DistillationTrainer(
            model=student,
            teacher_model=self.teacher,
            args=args,
            objectives=stage.objectives,
            train_dataset=self.data["train"],
            eval_dataset=self.data["validation"] if "validation" in self.data else None,
            processing_class=self.tokenizer,
            teacher_processing_class=self.teacher_tokenizer,
        )

    def _run_stage(
        self, student: PreTrainedModel, args: DistillationConfig, stage: Stage
    ) -> tuple[PreTrainedModel, float | None]:
        """Train a stage before the last, or take up what a run that is resumed finished of it."""
        folder = Path(args.output_dir)
        trainer = self.trainer(student, args, stage)
        # Written last, so that a stage without it was cut short.
        if _resumes(args) and (folder / TRAINER_STATE_NAME).exists():
            logger.warning("The stage in %s is finished: its student is used.", folder)
            student.load_state_dict(type(student).from_pretrained(folder).state_dict())
            return student, None
        return trainer.model, _train(trainer, args)

    def _measure(
        self,
        trainer: DistillationTrainer,
        baseline: PreTrainedModel | None,
        seconds: dict[str, float | None],
        args: DistillationConfig,
        stages: Sequence[Stage],
    ) -> EvaluationReport:
        split = "test" if "test" in self.data else "validation"
        rows = align_labels_to_student(self.data[split], trainer.model.config, split)
        held_out = None
        if split == "test" and "validation" in self.data and not has_unlabelled(self.data["validation"]):
            held_out = align_labels_to_student(self.data["validation"], trainer.model.config, "validation")
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
                run=self._record(trainer, split, stages),
                training_seconds={name: known for name, known in seconds.items() if known is not None},
                threshold_dataset=held_out,
                seed=args.seed,
            )
            if chosen := report.run.thresholds:
                trainer.model.config.thresholds = chosen["student"]
                with atomic_folder_update(Path(args.output_dir)) as temporary:
                    trainer.model.config.save_pretrained(temporary)
            save_report(report, args.output_dir, args.hub_model_id)
        PartialState().wait_for_everyone()
        return report or EvaluationReport.load(args.output_dir)

    def _train_rows(self) -> int:
        return count_texts(self.data["train"])

    def _record(self, trainer: DistillationTrainer, split: str, stages: Sequence[Stage]) -> dict[str, Any]:
        record = describe_training(trainer.args, trainer.objectives, trainer.teacher_model, trainer.state.global_step)
        if len(stages) > 1:
            record["objectives"] = [
                {"stage": number} | stage.settings | objective.config()
                for number, stage in enumerate(stages, start=1)
                for objective in stage.objectives
            ]
        return record | {
            "command": command_line(),
            "date": now(),
            "teacher": self.origin["teacher"],
            "student": self.origin["student"] | {"model_type": trainer.model.config.model_type},
            "data": {
                "name": self.origin["data"],
                "config": self.origin["dataset_config"],
                "revision": self.origin["dataset_revision"],
                "split": split,
                "evaluated_source": self.origin["evaluated_source"],
                "pairs": self.data.text_pair_column is not None,
                "train_rows": self._train_rows(),
                "evaluated_rows": count_texts(self.data[split]),
                "truncated_rows": self.data.truncated,
                "max_length": self.data.max_length,
            },
        }


def checkpoint_to_resume(args: DistillationConfig) -> str | None:
    """Find the checkpoint to resume from: the path asked for, or the last whole one for True; None to start."""
    if not _resumes(args):
        return None
    if str(args.resume_from_checkpoint).lower() != "true":
        return str(args.resume_from_checkpoint)
    # Machines may see other folders, and start or resume together.
    found = decided_by_main_process(lambda: last_whole(args.output_dir))
    if found is None and PartialState().is_main_process:
        logger.warning("There is no whole checkpoint in %s yet: starting from the beginning.", args.output_dir)
    return None if found is None else str(found)


def _resumes(args: DistillationConfig) -> bool:
    return str(args.resume_from_checkpoint).lower() not in ("none", "false")


def _beside(args: DistillationConfig, folder: Path) -> DistillationConfig:
    """Give the settings of a further training; a checkpoint asked for by its path belongs to the first one alone."""
    # Seeds and stages teach the same rows, so that the teacher need not run on them again.
    cache = args.teacher_cache_dir or str(Path(args.output_dir) / "teacher_cache")
    return dataclasses.replace(
        args,
        output_dir=str(folder),
        teacher_cache_dir=cache,
        push_to_hub=False,
        resume_from_checkpoint="True" if _resumes(args) else None,
    )


def _altogether(args: DistillationConfig, stages: Sequence[DistillationConfig]) -> DistillationConfig:
    """Give a training of one stage as many steps as all stages have together."""
    if len(stages) == 1:
        return stages[0]
    if any(stage.max_steps > 0 for stage in stages):
        return dataclasses.replace(args, max_steps=sum(stage.max_steps for stage in stages))
    return dataclasses.replace(args, num_train_epochs=sum(stage.num_train_epochs for stage in stages))


def _train(trainer: DistillationTrainer, args: DistillationConfig) -> float | None:
    """Train, save, and save the history last; give the seconds, which nobody knows of a training that was resumed."""
    checkpoint = checkpoint_to_resume(args)
    if checkpoint is None and trainer.args.should_save:
        # It says that a training is finished, and this one is not yet.
        (Path(args.output_dir) / TRAINER_STATE_NAME).unlink(missing_ok=True)
    result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    if trainer.args.should_save:
        with atomic_folder_update(Path(args.output_dir)) as temporary:
            trainer.state.save_to_json(str(temporary / TRAINER_STATE_NAME))
    return None if checkpoint else result.metrics["train_runtime"]

"""One distillation on one output directory: trained, measured beside its baselines, recorded."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from nlpkd.augment.ways import describe_augmentation
from nlpkd.config import DistillationConfig
from nlpkd.data.label_names import align_labels_to_student, ask_for_label_names
from nlpkd.data.rows import count_texts, has_unlabelled
from nlpkd.data.text_classification import TextClassificationData
from nlpkd.data.tokenization import TeacherTokenizers
from nlpkd.evaluation.evaluate import evaluate_student
from nlpkd.evaluation.report import JSON_NAME, EvaluationReport, aggregate_seeds
from nlpkd.hub.model_card import hub_id
from nlpkd.hub.saving import renewed_card, save_partial_report, save_report
from nlpkd.objectives.presets import Stage
from nlpkd.pipeline.export import ship_student
from nlpkd.pipeline.roles import supervised_trainer
from nlpkd.teachers.compatibility import align_copied_head
from nlpkd.training.checkpoints import (
    checkpoint_to_resume,
    last_whole,
    resolve_resume_checkpoint,
    resumes,
    resumes_last,
)
from nlpkd.training.failures import saved_model
from nlpkd.training.publishing import describe_training
from nlpkd.training.rehearsal import rows_to_try
from nlpkd.training.trainer import DistillationTrainer
from nlpkd.utils.files import atomic_folder_update, explain_damage, numbered_folders, weights_sha256
from nlpkd.utils.processes import phase
from nlpkd.utils.provenance import command_line, now

logger = logging.getLogger(__name__)


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
        make_untrained_student: from a seed to a student.
        class_weights: of the gold labels, in the baselines' objective as in the student's.
        baselines: from a seed to an untrained baseline, by its name (`nlpkd.evaluation.records.BASELINES`).
        ship: export each student to ONNX in 8 bits, and measure that file beside it.
        learning_rate: what suits the student, where the settings name none.
    """

    teacher: nn.Module | None
    teacher_tokenizer: TeacherTokenizers
    tokenizer: PreTrainedTokenizerBase
    data: TextClassificationData
    stages: list[Stage]
    origin: dict[str, Any]
    make_untrained_student: Callable[[int], PreTrainedModel]
    class_weights: Sequence[float] | Mapping[str, float] | None = None
    baselines: Mapping[str, Callable[[int], PreTrainedModel]] = field(default_factory=dict)
    ship: bool = False
    learning_rate: float = DistillationConfig.learning_rate

    def run(
        self, args: DistillationConfig, num_seeds: int, baseline_dir: Path
    ) -> tuple[PreTrainedModel, EvaluationReport]:
        """Train and measure with one or more seeds; further ones go to `seed-N/`, where a resume keeps finished ones.

        Args:
            args: the settings, with the first seed.
            num_seeds: how many seeds.
            baseline_dir: where the first seed's baselines go, each into a folder of its name.

        Returns:
            The first seed's student, and its report with the figures of all seeds.
        """
        folder = Path(args.output_dir)
        if not resumes(args) and PartialState().is_main_process:
            # What says that a part of an earlier run is finished: a resume of this one would take it for its own.
            seeds = numbered_folders(folder, "seed").values()
            places = [place for each in (folder, *seeds) for place in numbered_folders(each, "stage").values()]
            for finished in (*(each / JSON_NAME for each in seeds), *(each / TRAINER_STATE_NAME for each in places)):
                finished.unlink(missing_ok=True)
        # Objectives are trained too: each seed starts with its own.
        fresh = [copy.deepcopy(self.stages) for _ in range(num_seeds - 1)]
        if num_seeds > 1:
            logger.warning("Seed %d, the first of %d.", args.seed, num_seeds)
            args = replace(args, teacher_cache_dir=args.teacher_cache)
        student, report = self.run_seed(args, self.stages, baseline_dir, page=num_seeds == 1)
        reports = [report]
        for number, stages in enumerate(fresh, start=2):
            seed = args.seed + number - 1
            further = folder / f"seed-{seed}"
            logger.warning("Seed %d, number %d of %d, in %s.", seed, number, num_seeds, further)
            before = EvaluationReport.load_beside(further) if resumes(args) else None
            # A seed whose measuring failed has a report too, of its student alone.
            if before is not None and before.candidates.keys() == report.candidates.keys():
                logger.warning("It is finished: its report is used.")
                reports.append(before)
                continue
            settings = replace(_beside(args, further), seed=seed, data_seed=None)
            reports.append(self.run_seed(settings, stages, further / "baseline")[1])
        if num_seeds > 1:
            report = replace(report, seeds=aggregate_seeds(reports))
            if PartialState().is_main_process:
                save_report(report, folder, args.hub_model_id, page=args.html_report)
        return student, report

    def run_seed(
        self, args: DistillationConfig, stages: Sequence[Stage], baseline_dir: Path, *, page: bool = True
    ) -> tuple[PreTrainedModel, EvaluationReport]:
        """Train stage after stage, the earlier ones in `stage-N/`, and measure with one seed.

        Args:
            args: the settings.
            stages: with objectives not bound yet.
            baseline_dir: where the baselines go.
            page: whether this report gets a page, where `args` asks for one.

        Returns:
            The student and its report, both saved in the output directory.
        """
        student = self.make_untrained_student(args.seed)
        ask_for_label_names(student.config, self.data["train"])
        untrained = {name: make(args.seed) for name, make in self.baselines.items()}
        # The student, stage after stage; only the last one's trainer is kept.
        rehearsal = partial(partial, self._rehearse, untrained, args, stages)
        *earlier, last = [replace(args, **stage.settings, push_to_hub=False) for stage in stages]
        if earlier and resumes_last(args):
            last = replace(last, resume_from_checkpoint="auto")
        seconds: list[float | None] = []
        steps = 0
        for number, (settings, stage) in enumerate(zip(earlier, stages, strict=False), start=1):
            settings = _beside(settings, Path(args.output_dir) / f"stage-{number}")
            if number == 1 and resumes_last(args):
                # The first training tells whether the job is the one that is resumed.
                settings = replace(settings, resume_from_checkpoint="True")
            rehearsed = rehearsal if number == 1 else None
            student, spent, taken = self._train_stage(student, settings, stage, rehearsed)
            seconds.append(spent)
            steps += taken
        trainer = self.trainer(student, last, stages[-1])
        if not earlier:
            trainer.rehearsed_beside = rehearsal(trainer)
        seconds.append(_train(trainer, last, "the student"))
        steps += trainer.state.global_step
        known = [each for each in seconds if each is not None]
        spent_on = {"student": sum(known) if len(known) == len(seconds) else None}
        with self._saved_student(trainer, stages):
            # The baselines, for as long.
            baselines = {}
            for name, model in untrained.items():
                if self.teacher is not None:
                    align_copied_head(model, self.teacher, trainer.teacher_order)
                settings = _beside(_altogether(args, [*earlier, last], steps), baseline_dir / name)
                baselines[name], spent_on[name] = self._train_baseline(model, settings, steps)
            # All of them on the same rows.
            return trainer.model, self._measure(trainer, baselines, spent_on, args, stages, page and args.html_report)

    def run_untrained(self, args: DistillationConfig) -> EvaluationReport:
        """Save and measure the student as it is made: of a teacher that is shipped, with its vocabulary trimmed."""
        trainer = self.trainer(self.make_untrained_student(args.seed), args, self.stages[0])
        trainer.save_model()
        return self._measure(trainer, {}, {}, args, self.stages, args.html_report)

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

    def _train_stage(
        self, student: PreTrainedModel, args: DistillationConfig, stage: Stage, rehearsal: Callable[..., Any] | None
    ) -> tuple[PreTrainedModel, float | None, int]:
        """Train a stage before the last, or take up what a run that is resumed finished of it.

        Returns:
            The student, the seconds if they are known, and the steps.
        """
        folder = Path(args.output_dir)
        trainer = self.trainer(student, args, stage)
        trainer.rehearsed_beside = None if rehearsal is None else rehearsal(trainer)
        # Written last, so that a stage without it was cut short.
        history = folder / TRAINER_STATE_NAME
        finished = resumes(args) and history.exists()
        if finished and last_whole(folder) is not None:
            asked = checkpoint_to_resume(args)
            finished = resolve_resume_checkpoint(asked, args.output_dir, trainer.describe_run()) is not None
        if finished:
            logger.warning("The stage in %s is finished: its student is used.", folder)
            student.load_state_dict(type(student).from_pretrained(folder).state_dict())
            with explain_damage(history, "delete it, and the stage is trained again"):
                return student, None, TrainerState.load_from_json(str(history)).global_step
        seconds = _train(trainer, args, f"the student, {folder.name}")
        return trainer.model, seconds, trainer.state.global_step

    def _train_baseline(
        self, model: PreTrainedModel, args: DistillationConfig, steps: int
    ) -> tuple[PreTrainedModel, float | None]:
        """Train on gold labels alone.

        Returns:
            The model, and the seconds if they are known.
        """
        if has_unlabelled(self.data["train"]):
            # As many steps as the student had, though there are fewer rows with labels.
            args = replace(args, max_steps=steps)
        trainer = supervised_trainer(model, args, self.data, self.tokenizer, self.class_weights)
        seconds = _train(trainer, args, f"the baseline {Path(args.output_dir).name}")
        return trainer.model, seconds

    def _measure(
        self,
        trainer: DistillationTrainer,
        baselines: Mapping[str, PreTrainedModel],
        seconds: Mapping[str, float | None],
        args: DistillationConfig,
        stages: Sequence[Stage],
        page: bool,
    ) -> EvaluationReport:
        """Measure student, teacher, baselines and what is shipped on the same rows, and save report and card."""
        split, rows, held_out = self.rows_to_measure(trainer.model.config)
        report = None
        if PartialState().is_main_process:
            given = (trainer.model, self.tokenizer, args.output_dir, rows, self.data)
            shipped = ship_student(*given) if self.ship else {}
            measured = [*(["teacher"] if self.teacher is not None else []), *baselines, *shipped]
            with phase(f"Measuring {', '.join(['student', *measured])}"):
                report = evaluate_student(
                    trainer.model,
                    self.teacher,
                    rows,
                    self.tokenizer,
                    candidates={**baselines, **shipped},
                    teacher_tokenizer=self.teacher_tokenizer,
                    teacher_order=trainer.teacher_order,
                    run=self._record(trainer, split, stages, Path(trainer.args.output_dir)),
                    training_seconds={name: known for name, known in seconds.items() if known is not None},
                    threshold_dataset=held_out,
                    text_columns=self.data.text_columns,
                    bootstrap_samples=args.bootstrap_samples,
                    latency_runs=args.latency_runs,
                    seed=args.seed,
                )
                if chosen := report.run.thresholds:
                    trainer.model.config.thresholds = dict(chosen["student"])
                    with atomic_folder_update(Path(args.output_dir)) as temporary:
                        trainer.model.config.save_pretrained(temporary)
                save_report(report, args.output_dir, args.hub_model_id, page=page)
        PartialState().wait_for_everyone()
        return report or EvaluationReport.load(args.output_dir)

    def rows_to_measure(self, config: Any) -> tuple[str, Any, Any]:
        """Return the split that is measured, its rows, and others that thresholds or temperatures are fitted on."""
        split, held_out = "test" if "test" in self.data else "validation", None
        if split == "test" and "validation" in self.data and not has_unlabelled(self.data["validation"]):
            held_out = align_labels_to_student(self.data["validation"], config, "validation")
        return split, align_labels_to_student(self.data[split], config, split), held_out

    def _rehearse(
        self,
        baselines: Mapping[str, PreTrainedModel],
        args: DistillationConfig,
        stages: Sequence[Stage],
        trainer: DistillationTrainer,
        folder: Path,
    ) -> None:
        """Measure the untrained student beside teacher and baselines on some rows, with report and card of it."""
        split, rows, held_out = self.rows_to_measure(trainer.model.config)
        trainer._signals.refuse_unknown_tokens(rows, split)
        # Copies, since what a model makes in inference mode could not be trained with.
        student, *others = (copy.deepcopy(each).to(args.device) for each in (trainer.model, *baselines.values()))
        report = evaluate_student(
            student,
            self.teacher,
            rows_to_try(rows),
            self.tokenizer,
            candidates=dict(zip(baselines, others, strict=True)),
            teacher_tokenizer=self.teacher_tokenizer,
            teacher_order=trainer.teacher_order,
            run=self._record(trainer, split, stages, folder),
            threshold_dataset=None if held_out is None else rows_to_try(held_out),
            bootstrap_samples=2,
            latency_batches=(1,),
            latency_runs=min(1, args.latency_runs),
        )
        report.save(folder)
        renewed_card(report, folder, args.hub_model_id or folder.parent.resolve().name)

    @contextmanager
    def _saved_student(self, trainer: DistillationTrainer, stages: Sequence[Stage]) -> Iterator[None]:
        """Keep what there is of a trained student, and say how to go on, whatever fails meanwhile."""
        args, teacher = trainer.args, self.origin["teacher"]["name"]

        def report() -> bool:
            history, written = (Path(args.output_dir) / name for name in (TRAINER_STATE_NAME, JSON_NAME))
            if written.is_file() and written.stat().st_mtime_ns > history.stat().st_mtime_ns:
                # It was written after this training, and is whole: the card failed.
                return True
            split, rows, _ = self.rows_to_measure(trainer.model.config)
            record = self._record(trainer, split, stages, Path(args.output_dir))
            return save_partial_report(trainer.model, rows, self.tokenizer, record, args.output_dir, args.hub_model_id)

        teachers = [teacher] if Path(teacher).exists() or hub_id(teacher) else []
        with saved_model(args, "student", self.origin["measured_source"], teachers, report):
            yield

    def _record(
        self, trainer: DistillationTrainer, split: str, stages: Sequence[Stage], folder: Path
    ) -> dict[str, Any]:
        record = describe_training(trainer.args, trainer.objectives, trainer.teacher_model, trainer.state.global_step)
        if len(stages) > 1:
            record["objectives"] = [
                {"stage": number} | stage.settings | objective.config()
                for number, stage in enumerate(stages, start=1)
                for objective in stage.objectives
            ]
        if trainer.args.augment is not None:
            record["settings"] |= describe_augmentation(trainer.args, trainer.model.config)
        order = {"label_order": trainer.teacher_order} if trainer.teacher_order else {}
        return record | {
            "command": command_line(),
            "date": now(),
            "teacher": self.origin["teacher"] | order,
            "student": self.origin["student"]
            | {
                "model_type": trainer.model.config.model_type,
                "weights_sha256": weights_sha256(folder),
            },
            "data": {
                "name": self.origin["data"],
                "config": self.origin["dataset_config"],
                "revision": self.origin["dataset_revision"],
                "split": split,
                "evaluated_source": self.origin["evaluated_source"],
                "train_rows": count_texts(self.data["train"]),
                "evaluated_rows": count_texts(self.data[split]),
                "truncated_rows": self.data.truncated,
                **self.data.reading,
            },
        }


def _beside(args: DistillationConfig, folder: Path) -> DistillationConfig:
    """Return the settings of a further training; a checkpoint asked for belongs to the first one alone."""
    # Seeds and stages teach the same rows, so that the teacher need not run on them again.
    return replace(
        args,
        output_dir=str(folder),
        teacher_cache_dir=args.teacher_cache,
        push_to_hub=False,
        resume_from_checkpoint="auto" if resumes(args) else None,
    )


def _altogether(args: DistillationConfig, stages: Sequence[DistillationConfig], steps: int) -> DistillationConfig:
    """Return settings for a training of one stage that has as many steps as all stages have together."""
    return stages[0] if len(stages) == 1 else replace(args, max_steps=steps)


def _train(trainer: DistillationTrainer, args: DistillationConfig, whom: str) -> float | None:
    """Train and save, the history last; return the seconds, None of a training that was resumed."""
    checkpoint = checkpoint_to_resume(args)
    if not checkpoint and trainer.args.should_save:
        # It says that a training is finished, and this one is not yet.
        (Path(args.output_dir) / TRAINER_STATE_NAME).unlink(missing_ok=True)
    with phase(f"Training {whom}"):
        result = trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
    if trainer.args.should_save:
        with atomic_folder_update(Path(args.output_dir)) as temporary:
            trainer.state.save_to_json(str(temporary / TRAINER_STATE_NAME))
    return None if trainer.resumed_checkpoint else result.metrics["train_runtime"]

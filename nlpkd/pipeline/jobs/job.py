"""One distillation on one output directory: trained, measured beside its baselines, recorded."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer import TRAINER_STATE_NAME

from nlpkd.augment.ways import describe_augmentation
from nlpkd.config import DistillationConfig
from nlpkd.data.arguments import OF_A_SOURCE
from nlpkd.data.label_names import align_labels_to_student, ask_for_label_names
from nlpkd.data.labels.classes import forget_thresholds
from nlpkd.data.rows import has_unlabelled
from nlpkd.data.splits.fitted import rows_to_fit
from nlpkd.data.splits.learned import LearnedTexts, count_all_learned, remember_texts
from nlpkd.data.text_classification import TextClassificationData
from nlpkd.data.tokenization import TeacherTokenizers, with_limit
from nlpkd.evaluation.benchmark import loaded_size_mb
from nlpkd.evaluation.evaluate import evaluate_student
from nlpkd.evaluation.report import JSON_NAME, EvaluationReport, aggregate_seeds
from nlpkd.hub.model_card import hub_id
from nlpkd.hub.saving import keep_student, save_partial_report, save_report
from nlpkd.models.ensemble import TeacherEnsemble
from nlpkd.models.source import ModelSource
from nlpkd.objectives.presets import Stage, gold_labels_alone, of_stage
from nlpkd.pipeline.export import ship_student
from nlpkd.pipeline.jobs.roles import train_baseline
from nlpkd.teachers.compatibility import align_copied_head
from nlpkd.training.failures import saved_model
from nlpkd.training.publishing import describe_data, describe_training, measurement_sha256
from nlpkd.training.rehearsal import rehearse_loss, rows_to_try
from nlpkd.training.resuming import Training, resumes, settings_beside, settings_of_stages, stage_folder, train_once
from nlpkd.training.trainer import DistillationTrainer
from nlpkd.utils.disk.files import numbered_folders, weights_sha256
from nlpkd.utils.progress import phase, quiet
from nlpkd.utils.provenance import command_line, now
from nlpkd.utils.randomness import random_state_kept

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
        parent: the model in PyTorch that students are made of, of several teachers the first; None where none is.
        teacher_sources: where the teacher comes from, of several teachers each.
        class_weights: of the gold labels, in the baselines' objective where the student learns from no gold labels.
        baselines: from a seed to an untrained baseline, by its name (`nlpkd.evaluation.records.BASELINES`).
        ship: export each student to ONNX in 8 bits, and measure that file beside it.
        learning_rate: what suits the student, where the settings name none.
        teacher_folders: of each teacher the folder that it was loaded from; None where there is none.
        corrected_by: the texts with gold labels by which a teacher that labels texts was corrected.
    """

    teacher: nn.Module | None
    teacher_tokenizer: TeacherTokenizers
    tokenizer: PreTrainedTokenizerBase
    data: TextClassificationData
    stages: list[Stage]
    origin: dict[str, Any]
    make_untrained_student: Callable[[int], PreTrainedModel]
    parent: PreTrainedModel | None = None
    teacher_sources: Sequence[ModelSource] = ()
    class_weights: Sequence[float] | Mapping[str, float] | None = None
    baselines: Mapping[str, Callable[[int], PreTrainedModel]] = field(default_factory=dict)
    ship: bool = False
    learning_rate: float = DistillationConfig.learning_rate
    teacher_folders: Sequence[Path | None] = ()
    corrected_by: Sequence[str] = ()

    def check(self, args: DistillationConfig) -> None:
        """Make student and baselines, and fit them, the rows and the objectives of every stage; nothing is trained.

        Teacher and gold labels are not compared. No random number of a training is used.

        Args:
            args: the settings.

        Raises:
            ValueError: if something does not fit, as in `run`; with a rehearsal, if the loss of a stage fails.
        """
        with quiet("nlpkd"), random_state_kept(args.device):
            student = self.make_untrained_student(args.seed)
            ask_for_label_names(student.config, self.data["train"])
            for make in self.baselines.values():
                make(args.seed)
            for stage in copy.deepcopy(self.stages):
                own = replace(args, **stage.settings | {"teacher_check": "off", "push_to_hub": False})
                rehearse_loss(self.trainer(student, own, stage))

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
            # Reports of an earlier run, perhaps of other rows: a resume of this one would take them for its own.
            for each in numbered_folders(folder, "seed").values():
                (each / JSON_NAME).unlink(missing_ok=True)
        if len(self.stages) > 1:
            # What a later stage refuses is told before an earlier one is trained.
            self.check(args)
        # Objectives are trained too: each seed starts with its own.
        fresh = copy.deepcopy(self.stages)
        if num_seeds > 1:
            logger.warning("Seed %d, the first of %d.", args.seed, num_seeds)
            args = replace(args, teacher_cache_dir=args.teacher_cache)
        student, report = self.run_seed(args, self.stages, baseline_dir, page=num_seeds == 1)
        reports = [report]
        for number in range(2, num_seeds + 1):
            seed = args.seed + number - 1
            further = folder / f"seed-{seed}"
            logger.warning("Seed %d, number %d of %d, in %s.", seed, number, num_seeds, further)
            before = EvaluationReport.load_beside(further) if resumes(args) else None
            # A seed whose measuring failed has a report too, of its student alone.
            if before is not None and not (before.is_like(report) and before.is_of_all(further)):
                before = None
            settings = replace(settings_beside(args, further), seed=seed, data_seed=None)
            reports.append(self.run_seed(settings, copy.deepcopy(fresh), further / "baseline", before=before)[1])
        if num_seeds > 1:
            report = replace(report, seeds=aggregate_seeds(reports))
            if PartialState().is_main_process:
                report = save_report(report, folder, args.hub_model_id, page=args.html_report)
        return student, report

    def run_seed(
        self,
        args: DistillationConfig,
        stages: Sequence[Stage],
        baseline_dir: Path,
        *,
        page: bool = True,
        before: EvaluationReport | None = None,
    ) -> tuple[PreTrainedModel, EvaluationReport]:
        """Train stage after stage, the earlier ones in `stage-N/`, and measure with one seed.

        Args:
            args: the settings.
            stages: with objectives not bound yet.
            baseline_dir: where the baselines go.
            page: whether this report gets a page, where `args` asks for one.
            before: the report that an earlier run left, which is used where all that it is of was trained then.

        Returns:
            The student and its report, both saved in the output directory.
        """
        _ = PartialState().is_main_process and self.teacher_size_mb  # Of the teacher as it teaches.
        student = self.student_to_train(args.seed)
        ask_for_label_names(student.config, self.data["train"])
        untrained = {name: make(args.seed) for name, make in self.baselines.items()}
        lessons = gold_labels_alone(stages, self.class_weights)
        settings = settings_of_stages(args, [stage.settings for stage in stages])
        # The student, stage after stage; only the last one's trainer is kept.
        done = []
        for number, (own, stage) in enumerate(zip(settings, stages, strict=True), start=1):
            trainer = self.trainer(student, own, stage)
            if number == 1:
                trainer.rehearsed_beside = partial(self._rehearse, untrained, args, stages, trainer)
            done.append(train_once(trainer, f"the student{of_stage(number, len(stages))}"))
            student = trainer.model
        self.remember(args.output_dir)
        spent = {"student": Training.of(done)}
        if has_unlabelled(self.data["train"]):
            # As many steps for the baselines, though there are fewer rows with labels.
            settings = [replace(own, max_steps=each.steps) for own, each in zip(settings, done, strict=True)]
        with self._saved_student(trainer, stages):
            # The baselines, for as long.
            baselines = {}
            for name, model in untrained.items():
                if self.teacher is not None:
                    align_copied_head(model, self.teacher, trainer.teacher_order)
                places = [
                    stage_folder(baseline_dir / name, number, len(stages)) for number in range(1, len(stages) + 1)
                ]
                alone = list(map(settings_beside, settings, places))
                baselines[name], spent[name] = train_baseline(model, name, self.data, self.tokenizer, alone, lessons)
            if before is not None and all(each.finished_before for each in spent.values()):
                logger.warning("It is finished: its report is used.")
                return trainer.model, before
            seconds = {name: each.seconds for name, each in spent.items()}
            return trainer.model, self._measure(trainer, baselines, seconds, args, stages, page and args.html_report)

    def run_untrained(self, args: DistillationConfig) -> EvaluationReport:
        """Save and measure the student as it is made: of a teacher that is shipped, with its vocabulary trimmed."""
        trainer = self.trainer(self.make_untrained_student(args.seed), args, self.stages[0])
        trainer.save_model()
        if PartialState().is_main_process:
            remember_texts(LearnedTexts.beside(self.teacher_folders[0]), Path(args.output_dir))
        return self._measure(trainer, {}, {}, args, self.stages, args.html_report)

    def student_to_train(self, seed: int) -> PreTrainedModel:
        """Make the student that a training starts from."""
        student = self.make_untrained_student(seed)
        forget_thresholds(student.config)
        return student

    def trainer(self, student: PreTrainedModel, args: DistillationConfig, stage: Stage) -> DistillationTrainer:
        """Make the trainer of a stage."""
        student.config.problem_type = self.data.problem_type  # type: ignore[assignment]
        trainer = DistillationTrainer(
            model=student,
            teacher_model=self.teacher,
            args=args,
            objectives=stage.objectives,
            train_dataset=self.data["train"],
            eval_dataset=self.data["validation"] if "validation" in self.data else None,
            processing_class=with_limit(self.tokenizer, self.data.max_length),
            teacher_processing_class=self.teacher_tokenizer,
        )
        # The report names the student that was asked for.
        trainer.same_start = True
        return trainer

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
            kept = (trainer.model, args.output_dir, trainer.processing_class)
            keep_student(*kept)
            given = (trainer.model, self.tokenizer, args.output_dir, rows, self.data)
            shipped = ship_student(*given) if self.ship else {}
            measured = [*(["teacher"] if self.teacher is not None else []), *baselines, *shipped]
            how: dict[str, Any] = {"bootstrap_samples": args.bootstrap_samples, "latency_runs": args.latency_runs}
            made_by = self._record(trainer, split, stages, Path(trainer.args.output_dir))
            made_by["measurement_sha256"] = measurement_sha256(
                {"measured": rows, "held-out": held_out}, self.teacher, how | {"order": trainer.teacher_order}
            )
            with phase(f"Measuring {', '.join(['student', *measured])}"):
                report = evaluate_student(
                    trainer.model,
                    self.teacher,
                    rows,
                    self.tokenizer,
                    candidates={**baselines, **shipped},
                    teacher_tokenizer=self.teacher_tokenizer,
                    teacher_order=trainer.teacher_order,
                    run=made_by,
                    training_seconds={name: known for name, known in seconds.items() if known is not None},
                    threshold_dataset=held_out,
                    student_files=list(shipped),
                    text_columns=self.data.text_columns,
                    size_mb=self.teacher_size_mb,
                    seed=args.seed,
                    **how,
                )
                keep_student(*kept, report.run.student.weights_sha256)
                report = save_report(report, args.output_dir, args.hub_model_id, page=page)
                if chosen := report.run.thresholds.get("student"):
                    trainer.model.config.thresholds = dict(chosen)
        PartialState().wait_for_everyone()
        return report or EvaluationReport.load(args.output_dir)

    @cached_property
    def teacher_size_mb(self) -> dict[str, float | None]:
        """The size of the teacher's files, all of several ones, by its name as a candidate; None if one is unknown."""
        if self.teacher is None:
            return {}
        members = self.teacher.members if isinstance(self.teacher, TeacherEnsemble) else [self.teacher]
        sizes = list(map(loaded_size_mb, self.teacher_sources, members))
        return {"teacher": None if None in sizes else sum(filter(None, sizes))}

    @property
    def _measured_split(self) -> str:
        return "test" if "test" in self.data else "validation"

    @cached_property
    def learned(self) -> dict[str, Any]:
        """What student and teacher learnt of the measured texts, as the record has it; told when it is first read."""
        split, rows = self._measured_split, self.data
        called = "teacher {}" if len(self.teacher_folders) > 1 else "teacher"
        folders = {called.format(number): each for number, each in enumerate(self.teacher_folders, start=1)}
        return count_all_learned(rows[split], rows["train"], rows.text_columns, split, folders, self.corrected_by)

    def remember(self, folder: str | Path) -> None:
        """Write beside a model that learnt from the training rows which texts these are."""
        if PartialState().is_main_process:
            remember_texts(LearnedTexts.of(self.data["train"], self.data.text_columns), Path(folder))

    @cached_property
    def _held_out(self) -> Any:
        return rows_to_fit(self.data, self._measured_split)

    def rows_to_measure(self, config: Any) -> tuple[str, Any, Any]:
        """Return the split that is measured, its rows, and others that thresholds or temperatures are fitted on."""
        split = self._measured_split
        held_out = self._held_out and align_labels_to_student(self._held_out, config, "validation")
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
        save_report(report, folder, args.hub_model_id or folder.parent.resolve().name, page=False)

    @contextmanager
    def _saved_student(self, trainer: DistillationTrainer, stages: Sequence[Stage]) -> Iterator[None]:
        """Keep what there is of a trained student, and say how to go on, whatever fails meanwhile."""
        args, teacher, revision = trainer.args, self.origin["teacher"]["name"], self.origin["teacher"]["revision"]

        def report() -> bool:
            state, written = (Path(args.output_dir) / name for name in (TRAINER_STATE_NAME, JSON_NAME))
            if written.is_file() and (not state.is_file() or written.stat().st_mtime_ns > state.stat().st_mtime_ns):
                # It was written after this training, and is whole: the card failed.
                return True
            keep_student(trainer.model, args.output_dir, trainer.processing_class)
            split, rows, _ = self.rows_to_measure(trainer.model.config)
            record = self._record(trainer, split, stages, Path(args.output_dir))
            return save_partial_report(trainer.model, rows, self.tokenizer, record, args.output_dir, args.hub_model_id)

        named = f"{teacher}@{revision}" if revision else teacher
        teachers = [named] if Path(teacher).exists() or hub_id(teacher) else []
        source, reading = self.origin["measured_source"], self.data.arguments
        if self.origin["evaluated_source"] == self.origin["data"]:
            reading |= {name: self.origin[name] for name in OF_A_SOURCE}
        with saved_model(args, "student", source, reading, teachers, report):
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
            | {"model_type": trainer.model.config.model_type, "weights_sha256": weights_sha256(folder)},
            "data": describe_data(self.data, split, self.rows_to_measure(trainer.model.config)[1], self.origin)
            | self.learned,
        }

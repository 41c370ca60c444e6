"""What a training would take, before it is started: models, steps, time by a short probe, memory and disk."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import itertools
import math
import resource
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from nlpkd.config import DistillationConfig
from nlpkd.data.arguments import DataArguments
from nlpkd.evaluation.benchmark import count_parameters
from nlpkd.evaluation.evaluate import evaluate_student
from nlpkd.evaluation.prediction import predict_logits
from nlpkd.evaluation.records import format_number
from nlpkd.objectives.presets import Stage, gold_labels_alone, with_preset_settings
from nlpkd.pipeline.jobs.distillation import prepare_job
from nlpkd.pipeline.jobs.job import Job
from nlpkd.pipeline.jobs.roles import lean_by_default, supervised_trainer
from nlpkd.pipeline.jobs.settings import check_before
from nlpkd.pipeline.jobs.teacher import prepare_teacher
from nlpkd.pipeline.tune import DEFAULT_SEARCH, STUDY_FILE, open_study, prepare_search, trials_done, tune
from nlpkd.training.resuming import (
    checkpoint_to_resume,
    finished_before,
    refuse_cut_short,
    resolve_resume_checkpoint,
    resumes,
    resumes_last,
    resumes_own,
    settings_of_stages,
)
from nlpkd.training.speed.step_time import PROBED_STEPS, mean_step_ms
from nlpkd.training.trainer import DistillationTrainer
from nlpkd.utils.disk.full_disk import nearest_existing_folder, temporary_folder
from nlpkd.utils.disk.locks import refuse_unfit_folder
from nlpkd.utils.progress import phase, quiet

PROBED_ROWS = 128
"""Held-out rows that are predicted."""

TIMED_PASSES = (1, 32)
"""Texts of a pass whose latency a report has, each as often as `DistillationConfig.latency_runs` says."""

_OF_STEPS = ("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps")
"""Settings by which a training has more or fewer steps."""


@dataclass(frozen=True)
class Plan:
    """What a run would take.

    Attributes:
        models: `(name, parameters, MB)` each, of the teacher's files, None where these are not known, and of the
            student's float32 weights.
        rows: training rows.
        steps: optimizer steps of each stage.
        done: how many of these the first training has, which is resumed.
        step_ms: mean time of one, stage by stage; the teacher runs on every batch of the probe.
        baseline_step_ms: of a baseline, None without any.
        baselines: how many are trained beside each student.
        trainings: how many seeds, or trials of a search, are trained.
        measuring_s: seconds that one of them, with its baselines, is measured for, while it is trained and at the end.
        peak_memory_mb: the most memory of this process (of the GPU where there is one) during the probe.
        disk_mb: what checkpoints and final student take at most.
        free_disk_mb: what there is.
    """

    models: list[tuple[str, int, float | None]]
    rows: int
    steps: list[int]
    step_ms: list[float]
    baseline_step_ms: float | None
    baselines: int
    trainings: int
    measuring_s: float
    peak_memory_mb: float
    disk_mb: float
    free_disk_mb: float
    done: list[int] = field(default_factory=list)

    @property
    def training_minutes(self) -> float:
        """All trainings, and those of their baselines."""
        seconds = sum(steps * each for steps, each in zip(self.steps, self.step_ms, strict=True)) / 1e3
        seconds += self.baselines * sum(self.steps) * (self.baseline_step_ms or 0.0) / 1e3
        before = sum(steps * each for steps, each in zip(self.done, self.step_ms, strict=False)) / 1e3
        return (self.trainings * seconds - before) / 60

    @property
    def measuring_minutes(self) -> float:
        """All that is measured."""
        return self.trainings * self.measuring_s / 60

    def to_text(self) -> str:
        """Write the plan, a line a figure."""
        lines = [f"{name}: {count:,} parameters, {format_number(mb, '.1f')} MB" for name, count, mb in self.models]
        for number, (steps, each) in enumerate(zip(self.steps, self.step_ms, strict=True), start=1):
            stage = f"stage {number}: " if len(self.steps) > 1 else ""
            lines.append(f"{stage}{steps:,} steps of {each:.0f} ms (mean of {PROBED_STEPS})")
        if any(self.done):
            lines.append(f"resumed: {sum(self.done):,} of {sum(self.steps):,} steps are done")
        if self.baseline_step_ms is not None:
            named = "baseline" if self.baselines == 1 else f"{self.baselines} baselines, each"
            lines.append(f"{named}: {sum(self.steps):,} steps of {self.baseline_step_ms:.0f} ms")
        cached = ", less with a teacher cache" if len(self.models) > 1 else ""
        lines += [
            f"training rows: {self.rows:,}; trainings: {self.trainings}",
            f"training: about {self.training_minutes:.1f} minutes{cached}",
            f"measuring: about {self.measuring_minutes:.1f} minutes",
            f"memory: {self.peak_memory_mb:,.0f} MB at the peak of the probe",
            f"disk: at most {self.disk_mb:,.0f} MB, {self.free_disk_mb:,.0f} MB are free",
        ]
        return "\n".join(lines)


def plan_distillation(
    args: DistillationConfig,
    *,
    trainings: int = 1,
    reported: bool = True,
    learning_rate_is_given: bool = True,
    **keywords: Any,
) -> Plan:
    """Load everything a distillation needs, train some steps in a temporary directory, and say what a run takes.

    Args:
        args: the settings.
        trainings: how many seeds, or trials of a search, would be trained.
        reported: whether teacher, student and baselines are measured for a report, or the student alone for a search.
        learning_rate_is_given: whether the settings name one; else it is the one that suits the student.
        **keywords: teacher, student, data, baselines and the rest, as for `nlpkd.distill`.

    Returns:
        The plan.

    Raises:
        ValueError: if teacher, student, data, objectives or settings do not fit.
    """
    if trainings < 1:
        raise ValueError(f"trainings (num_seeds of a distillation) must be at least 1, got {trainings}")
    data_args, options = DataArguments.split_keywords(keywords)
    args = with_preset_settings(args, options.get("objectives"))
    check_before(args, trainings, **{name: options.get(name) for name in ("train", "validation", "test")})
    job = prepare_job(args, data_args=data_args, **options)
    if not learning_rate_is_given:
        args = dataclasses.replace(args, learning_rate=job.learning_rate)
    return _plan(job, args, "student", trainings, reported)


def plan_teacher(args: DistillationConfig, **keywords: Any) -> Plan:
    """Plan the fine-tuning of a teacher, likewise.

    Args:
        args: the settings.
        **keywords: model, data and the rest, as for `nlpkd.train_teacher`.

    Returns:
        The plan.

    Raises:
        ValueError: if model, data or settings do not fit.
    """
    args = lean_by_default(args)
    data_args, options = DataArguments.split_keywords(keywords)
    refuse_unfit_folder(args.output_dir)
    return _plan(prepare_teacher(args, data_args=data_args, **options), args, "model", 1, reported=False)


def plan_search(*arguments: Any, **keywords: Any) -> Plan:
    """Plan a search: the trials that are left, each as long as the longest, with the deepest student.

    Args:
        *arguments: those of `nlpkd.pipeline.tune.tune`, with its defaults.
        **keywords: likewise.

    Returns:
        The plan; none of its students is kept.

    Raises:
        ImportError: if Optuna is missing.
        ValueError: if the search would be refused, also as its folder has the trials of another one.
    """
    bound = inspect.signature(tune).bind(*arguments, **keywords)
    bound.apply_defaults()
    given: dict[str, Any] = bound.arguments | bound.arguments["keywords"]
    del given["keywords"]
    search = given["search"] = dict(DEFAULT_SEARCH if given["search"] is None else given["search"])
    job, args, _, asked = prepare_search(**given)
    journal = Path(args.output_dir) / STUDY_FILE
    with temporary_folder() as folder:
        # A copy, since a study that is opened is written to.
        if journal.is_file():
            shutil.copyfile(journal, Path(folder) / STUDY_FILE)
        left = given["n_trials"] - trials_done(open_study(Path(folder) / STUDY_FILE, asked, journal.parent))
    names = [name for name in _OF_STEPS if name in search]
    drawn = [dict(zip(names, values, strict=True)) for values in itertools.product(*(search[name] for name in names))]
    rows = len(job.data["train"])
    longest = max((dataclasses.replace(args, **each) for each in drawn), key=lambda each: _steps(each, rows))
    # The settings of the stage are among those that a trial's go over.
    job = dataclasses.replace(job, stages=[Stage(job.stages[0].objectives)])
    return dataclasses.replace(_plan(job, longest, "student", max(0, left), reported=False), disk_mb=0.0)


def _plan(job: Job, args: DistillationConfig, name: str, trainings: int, reported: bool) -> Plan:
    if resumes(args) and not resumes_last(args):
        refuse_cut_short(Path(str(args.resume_from_checkpoint)))
    settings = [dataclasses.replace(args, **stage.settings) for stage in job.stages]
    count = len(job.data["train"])
    steps = [_steps(each, count) for each in settings]
    done = _steps_done(job, args, name) if resumes(args) else [0] * len(steps)
    student, gold = job.make_untrained_student(args.seed), gold_labels_alone(job.stages, job.class_weights)[-1]
    # Some steps of each stage and of a baseline, of which nothing is kept, and some held-out rows.
    timing = phase("Timing some steps"), temporary_folder(), quiet("nlpkd.training")
    with timing[0], timing[1] as folder, timing[2]:
        step_ms = []
        for each, stage in zip(settings, job.stages, strict=True):
            short = _short(each, str(folder))
            trainer = job.trainer(job.make_untrained_student(args.seed), short, stage)
            step_ms.append(mean_step_ms(trainer))
        gold_ms = None
        if job.baselines:
            gold_ms = mean_step_ms(supervised_trainer(student, short, job.data, job.tokenizer, gold))
        measuring_s = _measuring_s(job, trainer, settings, steps, reported)
    models: list[tuple[str, int, float | None]] = [(name, count_parameters(student), _float32_mb(student))]
    if job.teacher is not None:
        models = [("teacher", count_parameters(job.teacher), job.teacher_size_mb["teacher"]), *models]
    place = nearest_existing_folder(Path(args.output_dir))
    return Plan(
        models=models,
        rows=count,
        steps=steps,
        done=done,
        step_ms=step_ms,
        baseline_step_ms=gold_ms,
        baselines=len(job.baselines),
        trainings=trainings,
        measuring_s=measuring_s,
        peak_memory_mb=_peak_memory_mb(),
        disk_mb=trainings * (1 + len(job.baselines)) * _disk_mb(settings, steps, _float32_mb(student)),
        free_disk_mb=shutil.disk_usage(place).free / 1e6,
    )


def _float32_mb(model: torch.nn.Module) -> float:
    return 4e-6 * count_parameters(model)


def _steps_done(job: Job, args: DistillationConfig, name: str) -> list[int]:
    """Count the steps of each stage that a run would take up; refuse, as it would, what is another run's."""
    done = [0] * len(job.stages)
    student = job.student_to_train(args.seed)
    settings = settings_of_stages(args, [stage.settings for stage in job.stages])
    for number, (own, stage) in enumerate(zip(settings, copy.deepcopy(job.stages), strict=True)):
        folder = Path(str(own.output_dir))
        if not folder.is_dir():
            break
        if name == "model":
            trainer = supervised_trainer(student, own, job.data, job.tokenizer, stage.objectives)
        else:
            trainer = job.trainer(student, own, stage)
        state = finished_before(trainer) if name != "model" and resumes_own(own) else None
        if state is None:
            checkpoint = resolve_resume_checkpoint(checkpoint_to_resume(own), str(folder), trainer.describe_run())
            if checkpoint is not None:
                done[number] = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME)).global_step
            break
        done[number] = state.global_step
        student = type(student).from_pretrained(folder)
    return done


def _measuring_s(
    job: Job,
    trainer: DistillationTrainer,
    settings: Sequence[DistillationConfig],
    steps: Sequence[int],
    reported: bool,
) -> float:
    """Estimate from some held-out rows how long student, teacher and baselines are measured for."""
    if not {"validation", "test"} & set(job.data):
        return 0.0
    student, args = trainer.model, settings[-1]
    rows = job.rows_to_measure(student.config)[1]
    some = rows.select(np.linspace(0, len(rows) - 1, num=min(len(rows), PROBED_ROWS), dtype=int))
    start = time.perf_counter()
    predict_logits(student, some, job.tokenizer)
    student_s = (time.perf_counter() - start) / len(some)
    start, teacher_s = time.perf_counter(), 0.0
    if job.teacher is not None:
        options: dict[str, Any] = {"teacher_tokenizer": job.teacher_tokenizer, "teacher_order": trainer.teacher_order}
        evaluate_student(student, job.teacher, some, job.tokenizer, bootstrap_samples=2, latency_runs=0, **options)
        teacher_s = max(0.0, (time.perf_counter() - start) / len(some) - student_s)
    evaluations = sum(
        _times(each.eval_strategy, each.eval_steps or each.logging_steps, each, count)
        for each, count in zip(settings, steps, strict=True)
    )
    if not reported:
        return (evaluations + 1) * len(rows) * (student_s + teacher_s)
    at_the_end = len(rows) + args.latency_runs * sum(TIMED_PASSES)
    all_s = teacher_s + (1 + len(job.baselines)) * student_s
    return evaluations * len(rows) * (student_s + teacher_s) + at_the_end * all_s


def _short(args: DistillationConfig, folder: str) -> DistillationConfig:
    """Return the settings of a probe: some steps, of which nothing is kept."""
    return dataclasses.replace(
        args,
        output_dir=folder,
        max_steps=PROBED_STEPS + 1,
        save_strategy="no",
        eval_strategy="no",
        load_best_model_at_end=False,
        logging_strategy="no",
        report_to="none",
        push_to_hub=False,
        resume_from_checkpoint=None,
        cache_teacher="off",
        augment=None,
        teacher_check="off",
        rehearsal=False,
        disable_tqdm=True,
    )


def _steps(args: DistillationConfig, rows: int) -> int:
    if args.max_steps > 0:
        return args.max_steps
    batches = math.ceil(rows / (args.train_batch_size * args.world_size))
    return math.ceil(math.ceil(batches / args.gradient_accumulation_steps) * args.num_train_epochs)


def _times(strategy: Any, every: float, args: DistillationConfig, steps: int, at_the_end: bool = False) -> int:
    """Count how often something is done in a training: never, after each epoch, or after so many steps."""
    interval = max(1, math.ceil(every if every >= 1 else every * steps))
    by_steps = math.ceil(steps / interval) if at_the_end else steps // interval
    return {"no": 0, "epoch": math.ceil(args.num_train_epochs)}.get(getattr(strategy, "value", strategy), by_steps)


def _disk_mb(settings: Sequence[DistillationConfig], steps: Sequence[int], student_mb: float) -> float:
    """Count the final student, and checkpoints of weights and AdamW's two moments."""
    total = student_mb
    for args, count in zip(settings, steps, strict=True):
        saves = _times(args.save_strategy, args.save_steps, args, count, at_the_end=True)
        total += 3 * student_mb * min(saves, args.save_total_limit or saves)
    return total


def _peak_memory_mb() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    # Linux counts in units of 1024 bytes, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6

"""What a training would take, before it is started: models, steps, time by a short probe, memory and disk."""

from __future__ import annotations

import dataclasses
import math
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_utils import SaveStrategy

from nlpkd.config import DistillationConfig
from nlpkd.data.arguments import DataArguments
from nlpkd.data.rows import makes_batches
from nlpkd.evaluation.benchmark import count_parameters
from nlpkd.pipeline.job import Job
from nlpkd.pipeline.prepare import prepare_job, prepare_teacher
from nlpkd.pipeline.roles import lean_by_default, supervised_trainer
from nlpkd.training.trainer import DistillationTrainer
from nlpkd.utils.files import nearest_existing_folder

PROBED_STEPS = 5
"""Optimizer steps that are timed, after one of warm-up."""


@dataclass(frozen=True)
class Plan:
    """What a run would take.

    Attributes:
        models: `(name, parameters, MB of float32 weights)` each.
        rows: training rows.
        steps: optimizer steps of each stage.
        step_ms: median time of one, stage by stage; the teacher runs on every batch of the probe.
        baseline_step_ms: of a baseline, None without any.
        baselines: how many are trained beside each student.
        trainings: how many seeds, or trials of a search, are trained.
        peak_memory_mb: the most memory of this process (of the GPU where there is one) during the probe.
        disk_mb: what checkpoints and final student take at most.
        free_disk_mb: what there is.
    """

    models: list[tuple[str, int, float]]
    rows: int
    steps: list[int]
    step_ms: list[float]
    baseline_step_ms: float | None
    baselines: int
    trainings: int
    peak_memory_mb: float
    disk_mb: float
    free_disk_mb: float

    @property
    def training_minutes(self) -> float:
        """All trainings, and those of their baselines; measuring comes on top."""
        seconds = sum(steps * each for steps, each in zip(self.steps, self.step_ms, strict=True)) / 1e3
        seconds += self.baselines * sum(self.steps) * (self.baseline_step_ms or 0.0) / 1e3
        return self.trainings * seconds / 60

    def to_text(self) -> str:
        """Write the plan, a line a figure."""
        lines = [f"{name}: {parameters:,} parameters, {size:.1f} MB" for name, parameters, size in self.models]
        for number, (steps, each) in enumerate(zip(self.steps, self.step_ms, strict=True), start=1):
            stage = f"stage {number}: " if len(self.steps) > 1 else ""
            lines.append(f"{stage}{steps:,} steps of {each:.0f} ms (median of {PROBED_STEPS})")
        if self.baseline_step_ms is not None:
            named = "baseline" if self.baselines == 1 else f"{self.baselines} baselines, each"
            lines.append(f"{named}: {sum(self.steps):,} steps of {self.baseline_step_ms:.0f} ms")
        cached = ", less with a teacher cache" if len(self.models) > 1 else ""
        lines += [
            f"training rows: {self.rows:,}; trainings: {self.trainings}",
            f"training: about {self.training_minutes:.1f} minutes{cached}; evaluation on top",
            f"memory: {self.peak_memory_mb:,.0f} MB at the peak of the probe",
            f"disk: at most {self.disk_mb:,.0f} MB, {self.free_disk_mb:,.0f} MB are free",
        ]
        return "\n".join(lines)


def plan_distillation(args: DistillationConfig, *, trainings: int = 1, **keywords: Any) -> Plan:
    """Load everything a distillation needs, train some steps in a temporary directory, and say what a run takes.

    Args:
        args: the settings.
        trainings: how many seeds, or trials of a search, would be trained.
        **keywords: teacher, student, data, baselines and the rest, as for `nlpkd.distill`.

    Returns:
        The plan.

    Raises:
        ValueError: if teacher, student, data, objectives or settings do not fit.
    """
    data_args, options = DataArguments.split_keywords(keywords)
    return _plan(prepare_job(args, data_args=data_args, **options), args, "student", trainings)


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
    return _plan(prepare_teacher(args, data_args=data_args, **options), args, "model", 1)


def _plan(job: Job, args: DistillationConfig, name: str, trainings: int) -> Plan:
    settings = [dataclasses.replace(args, **stage.settings) for stage in job.stages]
    rows = job.data["train"]
    count = len(rows)
    steps = [_steps(each, count) for each in settings]
    student = job.make_untrained_student(args.seed)
    probed = _some_rows(job, max(each.train_batch_size * each.gradient_accumulation_steps for each in settings))
    with tempfile.TemporaryDirectory(prefix="nlpkd-plan-") as folder:
        short = [_short(each, folder) for each in settings]
        step_ms = [
            _step_ms(probed.trainer(job.make_untrained_student(args.seed), each, stage))
            for each, stage in zip(short, job.stages, strict=True)
        ]
        gold_ms = None
        if job.baselines:
            gold_ms = _step_ms(supervised_trainer(student, short[-1], probed.data, job.tokenizer, job.class_weights))
    models = [(name, student)] if job.teacher is None else [("teacher", job.teacher), (name, student)]
    place = nearest_existing_folder(Path(args.output_dir))
    return Plan(
        models=[(name, count_parameters(model), 4e-6 * count_parameters(model)) for name, model in models],
        rows=count,
        steps=steps,
        step_ms=step_ms,
        baseline_step_ms=gold_ms,
        baselines=len(job.baselines),
        trainings=trainings,
        peak_memory_mb=_peak_memory_mb(),
        disk_mb=trainings * (1 + len(job.baselines)) * _disk_mb(settings, steps, 4e-6 * count_parameters(student)),
        free_disk_mb=shutil.disk_usage(place).free / 1e6,
    )


class _Timer(TrainerCallback):
    """Takes the time of each optimizer step."""

    def __init__(self) -> None:
        self.times_ms: list[float] = []
        self._start = 0.0

    def on_step_begin(self, *given: Any, **options: Any) -> None:
        self._start = time.perf_counter()

    def on_step_end(self, *given: Any, **options: Any) -> None:
        self.times_ms.append((time.perf_counter() - self._start) * 1e3)


def _step_ms(trainer: DistillationTrainer) -> float:
    timer = _Timer()
    trainer.add_callback(timer)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return statistics.median(timer.times_ms[1:])


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


def _some_rows(job: Job, batch: int) -> Job:
    """Return the same job on rows for the probe alone, drawn at random so that their lengths are those of all."""
    rows = job.data["train"]
    if makes_batches(rows):
        return job
    drawn = rows.shuffle(seed=0).select(range(min(len(rows), batch * (PROBED_STEPS + 1))))
    return dataclasses.replace(job, data=dataclasses.replace(job.data, splits={"train": drawn}))


def _steps(args: DistillationConfig, rows: int) -> int:
    if args.max_steps > 0:
        return args.max_steps
    batches = math.ceil(rows / (args.train_batch_size * args.world_size))
    return math.ceil(math.ceil(batches / args.gradient_accumulation_steps) * args.num_train_epochs)


def _disk_mb(settings: Sequence[DistillationConfig], steps: Sequence[int], student_mb: float) -> float:
    """Count the final student, and checkpoints of weights and AdamW's two moments."""
    total = student_mb
    for args, count in zip(settings, steps, strict=True):
        every = max(1, int(args.save_steps if args.save_steps >= 1 else args.save_steps * count))
        saves = {"no": 0, "epoch": math.ceil(args.num_train_epochs)}.get(
            SaveStrategy(args.save_strategy).value, count // every
        )
        total += 3 * student_mb * min(saves, args.save_total_limit or saves)
    return total


def _peak_memory_mb() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    # Linux counts in units of 1024 bytes, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6

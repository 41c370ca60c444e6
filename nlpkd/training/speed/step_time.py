"""How long an optimizer step takes, by a few that are as long as all are on average."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback

from nlpkd.training.batches.samplers import LengthGroupedBatchSampler

PROBED_STEPS = 8
"""Optimizer steps that are timed, after one of warm-up."""


class _Timer(TrainerCallback):
    """Notes when each optimizer step ends."""

    def __init__(self) -> None:
        self.ends_s: list[float] = []

    def on_step_end(self, *given: Any, **options: Any) -> None:
        self.ends_s.append(time.perf_counter())


def mean_step_ms(trainer: Any) -> float:
    """Train some steps, and return the mean time from the end of one to that of the next, whose batch is made too.

    Args:
        trainer: a `DistillationTrainer` of `PROBED_STEPS` + 1 steps.
    """
    rows: Any = trainer.train_dataset
    batches = getattr(trainer.get_train_dataloader(), "batch_sampler", None)
    if isinstance(rows, Dataset) and isinstance(batches, LengthGroupedBatchSampler):
        trainer.train_dataset = rows.select(typical_first(batches))
        trainer.args.train_sampling_strategy = "sequential"
    timer = _Timer()
    trainer.add_callback(timer)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return 1e3 * float(np.diff(timer.ends_s).mean())


def typical_first(batches: LengthGroupedBatchSampler) -> np.ndarray:
    """Return the numbers of all rows, first those of some steps that take as long on average as all steps do.

    Steps of texts of like lengths differ so much that a few of them, as they come, may say anything. No row is left
    out, since the text of all rows decides which embedding rows are trained.

    Args:
        batches: the steps of an epoch.

    Returns:
        The rows of the step with the longest text, on which memory and threads warm up, then of `PROBED_STEPS` steps
        from short to long ones, then the others.
    """
    steps = [each for each in batches.steps() if len(each) == batches.step_size]
    longest_text = np.array([batches.lengths[step].max() for step in steps], dtype=float)
    order = np.argsort(longest_text)[::-1]
    # Of each eighth of the steps the one whose longest text has the mean length of that eighth.
    chosen = list(order[:1])
    for part in filter(len, np.array_split(order, PROBED_STEPS)):
        distance = np.abs(longest_text[part] - longest_text[part].mean())
        chosen += [number for number in part[np.argsort(distance)] if number not in chosen][:1]
    first = np.concatenate([np.zeros(0, dtype=int), *(steps[number] for number in chosen)])
    return np.concatenate([first, np.setdiff1d(np.arange(len(batches.lengths)), first)])

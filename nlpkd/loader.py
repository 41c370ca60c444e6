"""Loaders of training batches: length-grouped, streamed or sampled, every batch with the numbers of its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers.trainer_utils import seed_worker

from nlpkd.config import DistillationConfig
from nlpkd.sampler import LengthGroupedBatchSampler
from nlpkd.streaming import ROW, TextStream

ROWS = "__rows__"
"""Of a batch: a list of integers, which stays on the host."""

Collate = Callable[[list[dict[str, Any]]], Mapping[str, Any]]


def training_loader(
    rows: Any,
    lengths: Sequence[int] | np.ndarray,
    collate: Collate,
    batch_size: int,
    step_rows: int | None,
    args: DistillationConfig,
) -> DataLoader:
    """Make this process's loader of training batches: a stream's own, or those of `LengthGroupedBatchSampler`.

    Args:
        rows: a stream, or mappings by position, such as a `datasets.Dataset`.
        lengths: tokens of every row; a stream needs none.
        collate: makes a batch of rows.
        batch_size: rows of a micro-batch on one process.
        step_rows: of an optimizer step on all processes; None for as many as the micro-batches make.
        args: the other settings.

    Returns:
        The loader, whose batches have their rows' numbers in `ROWS`, and are put on the device.
    """
    numbered, seed = _NumberedCollator(collate), args.seed if args.data_seed is None else args.data_seed
    if isinstance(rows, TextStream):
        rows.batches_of(batch_size, args.world_size, args.process_index, seed)
        loader = DataLoader(rows, batch_size=batch_size, collate_fn=numbered)
    else:
        sampler = LengthGroupedBatchSampler(
            lengths,
            batch_size,
            num_processes=args.world_size,
            process_index=args.process_index,
            accumulation_steps=args.gradient_accumulation_steps,
            seed=seed,
            drop_last=args.dataloader_drop_last,
            step_rows=step_rows,
        )
        loader = DataLoader(_NumberedRows(rows), batch_sampler=sampler, collate_fn=numbered, **_workers(args))
    # The rows are shared out already, so Accelerate must not do it again.
    return prepare_data_loader(
        loader,
        device=args.device,
        num_processes=1,
        process_index=0,
        put_on_device=True,
        dispatch_batches=False,
        non_blocking=True,
    )


def sampled_loader(
    rows: Any,
    sampler: Sampler | None,
    collate: Collate,
    batch_size: int,
    args: DistillationConfig,
    accelerator: Accelerator,
) -> DataLoader:
    """Make this process's loader of training batches as `Trainer` does, whose rows Accelerate shares out.

    Args:
        rows: mappings by position.
        sampler: their order; None for that of the rows.
        collate: makes a batch of rows.
        batch_size: rows of a micro-batch on one process.
        args: the other settings.
        accelerator: of the training.

    Returns:
        The loader, whose batches have their rows' numbers in `ROWS`.
    """
    return accelerator.prepare(
        DataLoader(
            _NumberedRows(rows),
            batch_size=batch_size,
            sampler=sampler,
            drop_last=args.dataloader_drop_last,
            collate_fn=_NumberedCollator(collate),
            worker_init_fn=partial(seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index),
            **_workers(args),
        )
    )


def micro_batches(step_rows: int, batch_size: int, uneven: bool) -> int:
    """Say in how many micro-batches a process does an optimizer step.

    Args:
        step_rows: rows of the step on this process.
        batch_size: the most rows of a micro-batch.
        uneven: whether micro-batches may differ in size, as those of `LengthGroupedBatchSampler` may.

    Returns:
        The fewest that make just so many rows.
    """
    fewest = -(-step_rows // batch_size)
    return fewest if uneven else next(count for count in range(fewest, step_rows + 1) if step_rows % count == 0)


def _workers(args: DistillationConfig) -> dict[str, Any]:
    return {
        "num_workers": args.dataloader_num_workers,
        "pin_memory": args.dataloader_pin_memory,
        "persistent_workers": args.dataloader_persistent_workers,
        "multiprocessing_context": args.dataloader_multiprocessing_context,
        "prefetch_factor": args.dataloader_prefetch_factor,
        "in_order": args.dataloader_in_order,
    }


class _NumberedRows(Dataset):
    def __init__(self, rows: Any):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, numbers: list[int]) -> list[dict[str, Any]]:
        fetch = getattr(self.rows, "__getitems__", None)
        rows = [self.rows[number] for number in numbers] if fetch is None else fetch(numbers)
        return [{**row, ROW: number} for row, number in zip(rows, numbers, strict=True)]


class _NumberedCollator:
    def __init__(self, collate: Collate):
        self.collate = collate

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch = self.collate([{name: value for name, value in row.items() if name != ROW} for row in examples])
        return {**batch, ROWS: [row[ROW] for row in examples]}

"""Loaders of training batches: length-grouped, streamed or sampled, most with the numbers of their rows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
from accelerate import Accelerator
from accelerate.data_loader import IterableDatasetShard, SeedableRandomSampler, prepare_data_loader
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler, SequentialSampler
from transformers.trainer_utils import seed_worker

from nlpkd.config import DistillationConfig
from nlpkd.data.collator import DistillationCollator
from nlpkd.data.columns import RESERVED, ROW
from nlpkd.data.label_names import label_column
from nlpkd.data.labels.lengths import UNGROUPED_ABOVE, length_share
from nlpkd.data.labels.values import label_values
from nlpkd.data.rows import is_plain, makes_batches, visible_columns
from nlpkd.training.batches.samplers import STEPS_IN_A_POOL, LengthGroupedBatchSampler, OrderedBatchSampler
from nlpkd.utils.randomness import random_state_kept

logger = logging.getLogger(__name__)

ROWS = RESERVED + "rows"
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
    if makes_batches(rows):
        own = rows.batched(batch_size, args.world_size, args.process_index, seed)
        loader = DataLoader(own, batch_size=batch_size, collate_fn=numbered)
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
            pool_steps=_pool_steps(rows, lengths),
        )
        loader = DataLoader(_NumberedRows(rows), batch_sampler=sampler, collate_fn=numbered, **_workers(args))
    return _of_this_process(loader, args)


def _of_this_process(loader: DataLoader, args: DistillationConfig) -> DataLoader:
    """Prepare a loader whose rows are shared out already, so that Accelerate must not do it again."""
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
    """Make this process's loader of training batches as `Trainer` does, but for an epoch's end on several processes.

    Accelerate, which shares out the rows for `Trainer`, gives some of them twice there.

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
    seeded = partial(seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index)
    options: Any = {"collate_fn": _NumberedCollator(collate), "worker_init_fn": seeded, **_workers(args)}
    if args.world_size > 1 and not args.dataloader_drop_last and type(sampler) in (RandomSampler, SequentialSampler):
        order: Any = sampler
        if isinstance(sampler, RandomSampler):
            # The order that Accelerate gives one process.
            drawn = sampler.data_source, sampler.replacement, sampler._num_samples, sampler.generator
            order = SeedableRandomSampler(*drawn, data_seed=accelerator.dataloader_config.data_seed)
        shared = OrderedBatchSampler(
            order,
            batch_size,
            num_processes=args.world_size,
            process_index=args.process_index,
            accumulation_steps=args.gradient_accumulation_steps,
        )
        return _of_this_process(DataLoader(_NumberedRows(rows), batch_sampler=shared, **options), args)
    options |= {"batch_size": batch_size, "drop_last": args.dataloader_drop_last}
    return accelerator.prepare(DataLoader(_NumberedRows(rows), sampler=sampler, **options))


def unsized_loader(rows: Any, collate: Collate, batch_size: int, args: DistillationConfig) -> DataLoader:
    """Make this process's loader of rows without a length, such as a `datasets.IterableDataset`, of several processes.

    Each process reads all rows, and makes batches of its own. Accelerate would let the main process make those of all,
    which must be of equal length then.

    Args:
        rows: give one row after another, the same ones on every process.
        collate: makes a batch of rows.
        batch_size: rows of a micro-batch on one process.
        args: the other settings.

    Returns:
        The loader. Where the last batches lack rows, they are filled up with the first ones, as Accelerate does it.
    """
    shared = IterableDatasetShard(
        rows, batch_size, args.dataloader_drop_last, num_processes=args.world_size, process_index=args.process_index
    )
    return _of_this_process(DataLoader(shared, batch_size=batch_size, collate_fn=collate, **_workers(args)), args)


def _pool_steps(rows: Any, lengths: Sequence[int] | np.ndarray) -> int:
    """Choose of how many steps the rows are grouped by length: of one alone where the length goes with the label."""
    column = label_column(rows) if is_plain(rows) else None
    share = 0.0 if column is None else length_share(lengths, label_values(rows, column))
    if share <= UNGROUPED_ABOVE:
        return STEPS_IN_A_POOL
    logger.warning(
        "%.0f %% of the variance of the texts' lengths goes with the label, so that batches of like lengths would "
        "have like labels, which slows learning: batches are drawn from texts of all lengths, and have more padding.",
        100 * share,
    )
    return 1


def _workers(args: DistillationConfig) -> dict[str, Any]:
    return {
        "num_workers": args.dataloader_num_workers,
        "pin_memory": args.dataloader_pin_memory,
        "persistent_workers": args.dataloader_persistent_workers,
        "multiprocessing_context": args.dataloader_multiprocessing_context,
        "prefetch_factor": args.dataloader_prefetch_factor,
        "in_order": args.dataloader_in_order,
    }


class _Numbered(NamedTuple):
    number: int
    row: Any


class _NumberedRows(Dataset):
    """Rows by number: each with its own, or those of a plain data set as `_NumberedTable`."""

    def __init__(self, rows: Any):
        self.rows = rows
        self.tables: Any = rows.with_format("arrow") if is_plain(rows) and rows.format["type"] is None else None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, numbers: list[int]) -> list[_Numbered] | _NumberedTable:
        if self.tables is not None:
            return _NumberedTable(numbers, self)
        return self.one_by_one(numbers)

    def one_by_one(self, numbers: list[int]) -> list[_Numbered]:
        fetch = getattr(self.rows, "__getitems__", None)
        rows = [self.rows[number] for number in numbers] if fetch is None else fetch(numbers)
        return list(map(_Numbered, numbers, rows))


class _NumberedTable(NamedTuple):
    """Rows of a data set that are not read yet: how, the collator says."""

    numbers: list[int]
    source: _NumberedRows


class _NumberedCollator:
    def __init__(self, collate: Collate):
        self.collate = collate

    def __call__(self, examples: Sequence[_Numbered | Mapping[str, Any]] | _NumberedTable) -> dict[str, Any]:
        if isinstance(examples, _NumberedTable):
            # A table saves most of a batch's time, which a GPU would wait for.
            if type(self.collate) is DistillationCollator:
                batch = self.collate.of_table(examples.source.tables[examples.numbers])
                if batch is not None:
                    return {**batch, ROWS: examples.numbers}
            examples = examples.source.one_by_one(examples.numbers)
        # A stream's rows have their numbers in them.
        numbered = [
            row if isinstance(row, _Numbered) else _Numbered(row[ROW], {k: v for k, v in row.items() if k != ROW})
            for row in examples
        ]
        return {**self.collate([row for _, row in numbered]), ROWS: [number for number, _ in numbered]}


_READ_ROWS = 100_000


def row_lengths(dataset: Any, column: str) -> Sequence[int] | np.ndarray | None:
    """Count how many tokens each row has.

    Args:
        dataset: the rows.
        column: where a `datasets.Dataset` may keep it; a column that is called "length", as none need ask for it, may
            be anything of the user's, and is not read.

    Returns:
        One number a row; None where rows are no mappings with `input_ids`.
    """
    if "input_ids" not in visible_columns(dataset):
        return None
    if is_plain(dataset):
        if column in dataset.column_names and column != "length":
            return dataset.with_format(None)[column][:]
        tables = dataset.select_columns("input_ids").with_format("arrow").iter(_READ_ROWS)
        counts = [pc.list_value_length(table.column("input_ids")).to_numpy() for table in tables]
        return np.concatenate([np.zeros(0, dtype=np.int64), *counts])
    with random_state_kept():
        return [len(dataset[number]["input_ids"]) for number in range(len(dataset))]

"""Loaders of training batches: length-grouped, streamed or sampled, every batch with the numbers of its rows."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
from accelerate import Accelerator
from accelerate.data_loader import SeedableRandomSampler, prepare_data_loader
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler, SequentialSampler
from transformers.trainer_utils import seed_worker

from nlpkd.config import DistillationConfig
from nlpkd.data.collator import DistillationCollator
from nlpkd.data.columns import RESERVED, ROW
from nlpkd.data.label_names import label_column
from nlpkd.data.labels.lengths import UNGROUPED_ABOVE, length_share
from nlpkd.data.labels.values import label_values
from nlpkd.data.rows import is_plain, makes_batches, visible_columns
from nlpkd.utils.randomness import undrawn

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


def _pool_steps(rows: Any, lengths: Sequence[int] | np.ndarray) -> int:
    """Choose of how many steps the rows are grouped by length: of one alone where the length goes with the label."""
    column = label_column(rows) if is_plain(rows) else None
    share = 0.0 if column is None else length_share(lengths, label_values(rows, column))
    if share <= UNGROUPED_ABOVE:
        return _STEPS_IN_A_POOL
    logger.warning(
        "%.0f %% of the variance of the texts' lengths goes with the label, so that batches of like lengths would "
        "have like labels, which slows learning: batches are drawn from texts of all lengths, and have more padding.",
        100 * share,
    )
    return 1


def micro_batches(step_rows: int, batch_size: int, uneven: bool) -> int:
    """Compute in how many micro-batches a process does an optimizer step.

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
_STEPS_IN_A_POOL = 50


class StepBatchSampler(Sampler[list[int]], ABC):
    """Micro-batches of one process: the rows of each optimizer step, shared out evenly.

    The rows of a step depend on the global batch only, not on how the step is split into processes and micro-batches;
    each row comes once an epoch. The last step may be smaller.

    Args:
        rows: how many there are.
        batch_size: rows of a micro-batch on one process.
        num_processes: how many processes train together.
        process_index: which of them this is.
        accumulation_steps: micro-batches of an optimizer step.
        drop_last: leave out the last step where it is smaller.
        step_rows: rows of an optimizer step, where micro-batches of `batch_size` would not make just so many.

    Raises:
        ValueError: if there are fewer rows than processes, or no whole step with `drop_last`.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        *,
        num_processes: int = 1,
        process_index: int = 0,
        accumulation_steps: int = 1,
        drop_last: bool = False,
        step_rows: int | None = None,
    ):
        self.batch_size = batch_size
        self.num_processes = num_processes
        self.process_index = process_index
        self.accumulation_steps = accumulation_steps
        self.step_size = step_rows or batch_size * num_processes * accumulation_steps
        if rows < num_processes:
            raise ValueError(f"{rows} rows can't be shared out to {num_processes} processes: use fewer processes")
        self.full_steps, self.rest = divmod(rows, self.step_size)
        if drop_last:
            self.rest = 0
        # Too few rows for a step in which every process has one join the step before.
        self.joined = 0 < self.rest < num_processes
        if not self.full_steps and not self.rest:
            raise ValueError(f"{rows} rows make no whole batch of {self.step_size}, and dataloader_drop_last is set")

    @abstractmethod
    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is given next."""

    @abstractmethod
    def steps(self) -> list[np.ndarray]:
        """List the row numbers of every optimizer step of the epoch, over all processes."""

    def _micro_batches(self, step: np.ndarray) -> list[np.ndarray]:
        wanted = -(-len(step) // (self.batch_size * self.num_processes))
        # No micro-batch on any process may be empty, since all processes must take part in every one.
        count = min(wanted, self.accumulation_steps, len(step) // self.num_processes)
        return [np.array_split(part, self.num_processes)[self.process_index] for part in np.array_split(step, count)]

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps():
            for rows in self._micro_batches(step):
                yield rows.tolist()

    def __len__(self) -> int:
        per_step = len(self._micro_batches(np.arange(self.step_size)))
        last = self.rest + self.joined * self.step_size
        return (self.full_steps - self.joined) * per_step + (len(self._micro_batches(np.arange(last))) if last else 0)


class LengthGroupedBatchSampler(StepBatchSampler):
    """Micro-batches of texts of similar length, for one process.

    Each epoch shuffles the rows, sorts pools of `pool_steps` optimizer steps by length, cuts them into steps, and
    shuffles the steps. The rows of a step depend on seed, epoch and lengths too. The full step with the longest text
    comes first, so that memory runs out at once or not at all.

    Args:
        lengths: number of tokens of every row.
        batch_size: rows of a micro-batch on one process.
        seed: of the shuffling, the same on every process.
        pool_steps: of how many optimizer steps the rows are sorted by length together.
        **sharing: how steps are shared out, as `StepBatchSampler` takes it.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        batch_size: int,
        *,
        seed: int = 42,
        pool_steps: int = _STEPS_IN_A_POOL,
        **sharing: Any,
    ):
        self.lengths = np.asarray(lengths)
        self.seed = seed
        self.pool_steps = pool_steps
        self.epoch = 0
        super().__init__(len(self.lengths), batch_size, **sharing)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is given next."""
        self.epoch = epoch

    def steps(self) -> list[np.ndarray]:
        """List the row numbers of every optimizer step of the epoch, over all processes, long texts first in each."""
        random = np.random.default_rng((self.seed, self.epoch))
        shuffled = random.permutation(len(self.lengths))[: self.full_steps * self.step_size + self.rest]
        body = shuffled[: self.full_steps * self.step_size]
        pool = self.step_size * self.pool_steps
        order = np.concatenate([self._by_length(body[at : at + pool]) for at in range(0, len(body), pool)] or [body])
        steps = [order[at : at + self.step_size] for at in range(0, len(order), self.step_size)]
        steps = [steps[k] for k in random.permutation(len(steps))]
        if steps:
            longest = max(range(len(steps)), key=lambda k: self.lengths[steps[k][0]])
            steps.insert(0, steps.pop(longest))
        if self.rest:
            rest = shuffled[len(body) :]
            steps.append(self._by_length(np.concatenate([steps.pop(), rest]) if self.joined else rest))
        return steps

    def _by_length(self, rows: np.ndarray) -> np.ndarray:
        return rows[np.argsort(-self.lengths[rows], kind="stable")]


class OrderedBatchSampler(StepBatchSampler):
    """Micro-batches of rows in a given order, for one process.

    Args:
        order: gives the row numbers of an epoch, the same on every process.
        batch_size: rows of a micro-batch on one process.
        **sharing: how steps are shared out, as `StepBatchSampler` takes it.
    """

    def __init__(self, order: Any, batch_size: int, **sharing: Any):
        self.order = order
        super().__init__(len(order), batch_size, **sharing)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is given next."""
        if hasattr(self.order, "set_epoch"):
            self.order.set_epoch(epoch)

    def steps(self) -> list[np.ndarray]:
        """List the row numbers of every optimizer step of the epoch, over all processes."""
        rows = np.fromiter(self.order, dtype=np.int64)[: self.full_steps * self.step_size + self.rest]
        steps = self.full_steps - self.joined + (self.rest > 0)
        return np.split(rows, self.step_size * np.arange(1, steps))


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
    with undrawn():
        return [len(dataset[number]["input_ids"]) for number in range(len(dataset))]

"""The order of training batches: length-grouped, and a pure function of seed, epoch and lengths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
from torch.utils.data import Sampler

_READ_ROWS = 100_000
_STEPS_IN_A_POOL = 50


class LengthGroupedBatchSampler(Sampler[list[int]]):
    """Give one process its micro-batches of texts of similar length.

    Each epoch shuffles the rows, sorts pools of 50 optimizer steps by length, cuts them into steps, and shuffles the
    steps. The rows of a step depend on seed, epoch, lengths and the global batch only, not on how the step is split
    into processes and micro-batches; each row comes once an epoch. The last step may be smaller, and is shared out
    evenly. The full step with the longest text comes first, so that memory runs out at once or not at all.

    Args:
        lengths: number of tokens of every row.
        batch_size: rows of a micro-batch on one process.
        num_processes: how many processes train together.
        process_index: which of them this is.
        accumulation_steps: micro-batches of an optimizer step.
        seed: of the shuffling, the same on every process.
        drop_last: leave out the last step where it is smaller.
        step_rows: rows of an optimizer step, where micro-batches of `batch_size` would not make just so many.

    Raises:
        ValueError: if there are fewer rows than processes, or no whole step with `drop_last`.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        batch_size: int,
        *,
        num_processes: int = 1,
        process_index: int = 0,
        accumulation_steps: int = 1,
        seed: int = 42,
        drop_last: bool = False,
        step_rows: int | None = None,
    ):
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.num_processes = num_processes
        self.process_index = process_index
        self.accumulation_steps = accumulation_steps
        self.seed = seed
        self.epoch = 0
        self.step_size = step_rows or batch_size * num_processes * accumulation_steps
        rows = len(self.lengths)
        if rows < num_processes:
            raise ValueError(f"{rows} rows can't be shared out to {num_processes} processes: use fewer processes")
        self.full_steps, self.rest = divmod(rows, self.step_size)
        if drop_last:
            self.rest = 0
        # Too few rows for a step in which every process has one join the step before.
        self.joined = 0 < self.rest < num_processes
        if not self.full_steps and not self.rest:
            raise ValueError(f"{rows} rows make no whole batch of {self.step_size}, and dataloader_drop_last is set")

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is given next."""
        self.epoch = epoch

    def steps(self) -> list[np.ndarray]:
        """List the row numbers of every optimizer step of the epoch, over all processes, long texts first in each."""
        random = np.random.default_rng((self.seed, self.epoch))
        shuffled = random.permutation(len(self.lengths))[: self.full_steps * self.step_size + self.rest]
        body = shuffled[: self.full_steps * self.step_size]
        pool = self.step_size * _STEPS_IN_A_POOL
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


def row_lengths(dataset: Any, column: str) -> Sequence[int] | np.ndarray:
    """Read how many tokens each row has.

    Args:
        dataset: the rows.
        column: where a `datasets.Dataset` may keep it.

    Returns:
        One number a row.
    """
    if isinstance(dataset, datasets.Dataset):
        if column in dataset.column_names:
            return dataset[column][:]
        tables = dataset.select_columns("input_ids").with_format("arrow").iter(_READ_ROWS)
        counts = [pc.list_value_length(table.column("input_ids")).to_numpy() for table in tables]
        return np.concatenate([np.zeros(0, dtype=np.int64), *counts])
    return [len(row["input_ids"]) for row in dataset]

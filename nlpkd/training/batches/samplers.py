"""Which rows make a batch: the rows of each optimizer step, shared out to processes and micro-batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler

STEPS_IN_A_POOL = 50
"""Of optimizer steps whose rows are sorted by length together."""


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
        pool_steps: int = STEPS_IN_A_POOL,
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

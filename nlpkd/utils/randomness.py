"""Random numbers that are drawn beside a training, and the seeds of several."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from nlpkd.utils.field_types import check_counts


@contextmanager
def random_state_kept(device: torch.device | None = None) -> Iterator[None]:
    """Restore the random states of Python, NumPy and torch's CPU afterwards, whatever was drawn.

    Args:
        device: a GPU, whose state is restored too; any other device has none of its own.

    Yields:
        Nothing.
    """
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device is not None and device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def check_num_seeds(num_seeds: int, first: int = 0) -> None:
    """Refuse fewer seeds than one, and seeds that no generator takes.

    Args:
        num_seeds: how many.
        first: the first one, which the others follow.

    Raises:
        ValueError: it says so.
    """
    check_counts(num_seeds=num_seeds)
    if first + num_seeds > 2**32:
        raise ValueError(
            f"num_seeds={num_seeds} from seed={first} upwards go beyond {2**32 - 1}, which is the largest seed: give "
            "a smaller seed, or fewer of them"
        )

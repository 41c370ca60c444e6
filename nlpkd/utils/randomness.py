"""Random numbers that are drawn beside a training."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def undrawn(device: torch.device | None = None) -> Iterator[None]:
    """Draw from the generators of Python, NumPy and torch's CPU as often as you like: afterwards nothing was drawn.

    Args:
        device: a GPU, whose generator is covered too; any other device has none of its own.

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

"""Random numbers that are drawn beside a training."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def undrawn() -> Iterator[None]:
    """Draw from the generators of Python, NumPy and torch's CPU as often as you like: afterwards nothing was drawn.

    Yields:
        Nothing.
    """
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=()):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)

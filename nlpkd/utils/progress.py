"""What a run tells of its progress, on the main process alone."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import PartialState

logger = logging.getLogger(__name__)


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Keep loggers from telling anything but errors, of what was told before or nobody can do anything about.

    Args:
        *loggers: their names; the root logger's is empty.

    Yields:
        Nothing.
    """
    levels = {each: each.level for each in map(logging.getLogger, loggers)}
    for each in levels:
        each.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for each, level in levels.items():
            each.setLevel(level)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Log the start of a part of a run, and its end with the time it took; of several processes the main one does.

    Args:
        name: what is done, such as "Training the student".

    Yields:
        Nothing.
    """
    main, start = PartialState().is_main_process, time.perf_counter()
    if main:
        logger.info("%s ...", name)
    yield
    if main:
        logger.info("%s: %s", name, duration(time.perf_counter() - start))


def duration(seconds: float) -> str:
    """Format a time as "0.8 s", "42 s", "7 min 28 s" or "2 h 5 min"."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"

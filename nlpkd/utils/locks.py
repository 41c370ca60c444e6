"""Folders with one writer at a time; the kernel drops a lock with its owner."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import PartialState
from datasets import disable_progress_bars
from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)


@contextmanager
def only_writer(folder: str | Path, *, wait: bool = False) -> Iterator[None]:
    """Keep other processes from writing to a folder; who holds it already may hold it once more.

    Args:
        folder: the folder, made where missing.
        wait: wait for another writer instead of refusing.

    Yields:
        Nothing.

    Raises:
        ValueError: if another run holds it and `wait` is not set.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # A singleton counts how often its thread holds it: a job does, and the trainings within it.
    lock = FileLock(folder.resolve() / ".lock", is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise ValueError(
                f"another run is writing to {folder}: wait for it, or choose another output_dir"
            ) from None
        logger.warning("Waiting for another run, which is writing to %s.", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def only_run(output_dir: str | Path) -> Iterator[None]:
    """Keep other runs out of an output directory, and let the main process alone speak.

    Args:
        output_dir: the directory, made where missing.

    Yields:
        Nothing.

    Raises:
        ValueError: if another run holds it.
    """
    state = PartialState()
    if not state.is_main_process:
        # What is said is said once, by the main process.
        disable_progress_bars()
        logging.getLogger("nlpkd").setLevel(logging.ERROR)
        yield
        return
    with only_writer(output_dir):
        yield

"""Folders with one writer at a time; the kernel drops a lock with its owner."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import disable_progress_bars
from filelock import FileLock, Timeout

from nlpkd.utils.files import NUMBERED, refuse_links, remove_leftovers

logger = logging.getLogger(__name__)

LOCK = ".lock"


# The folders that nlpkd makes in an output directory.
_WRITTEN = ("onnx", "baseline", "teacher_cache", "checkpoint-*", "seed-*", "stage-*")


# What file systems answer that have no locks, such as NFS without its lock service.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def only_writer(folder: str | Path, *, wait: bool = False) -> Iterator[None]:
    """Keep other processes from writing to a folder; a process that holds it may hold it once more.

    Args:
        folder: the folder, made where missing.
        wait: wait for another writer instead of refusing.

    Yields:
        Nothing.

    Raises:
        ValueError: if another run holds it and `wait` is not set, or the lock or a folder that a run would write to
            is a link.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = [path.name for pattern in _WRITTEN for path in folder.glob(pattern)]
    refuse_links(folder, LOCK, *(name for name in written if "-" not in name or NUMBERED.fullmatch(name)))
    # A singleton counts how often its process holds it: a job does, the trainings within it, a push in the background.
    lock: Any = FileLock(folder.resolve() / LOCK, is_singleton=True, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise ValueError(
                f"another run is writing to {folder}: wait for it, or choose another output_dir"
            ) from None
        logger.warning("Waiting for another run, which is writing to %s.", folder)
        lock.acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning(
            "The file system of %s has no locks (%s): let no other run write there.", folder, error.strerror
        )
        lock = None
    try:
        if lock is not None and lock.lock_counter == 1:
            remove_leftovers(folder)
        yield
    finally:
        if lock is not None:
            lock.release()


def only_writer_if_any(folder: Path, *, wait: bool = False) -> AbstractContextManager[None]:
    """Keep other processes from writing to a folder as `only_writer` does; one that nobody can write to needs no lock.

    Args:
        folder: the folder, made where missing.
        wait: wait for another writer instead of refusing.
    """
    return only_writer(folder, wait=wait) if not folder.exists() or os.access(folder, os.W_OK) else nullcontext()


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

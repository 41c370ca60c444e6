"""Folders with one writer at a time; the kernel drops a lock with its owner."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import disable_progress_bars
from filelock import FileLock, Timeout

from nlpkd.utils.disk.files import NUMBERED, remove_leftovers
from nlpkd.utils.disk.links import refuse_links
from nlpkd.utils.field_types import plain_arguments

logger = logging.getLogger(__name__)

LOCK = ".lock"


# What nlpkd makes in an output directory and writes into: folders, and what Optuna appends to.
_WRITTEN = ("onnx", "baseline", "teacher_cache", "runs", "optuna.log")
_NUMBERED = ("checkpoint-*", "earlier-*", "run-*", "seed-*", "stage-*", "baseline/*")


# What file systems answer that have no locks, such as NFS without its lock service.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def only_writer(folder: str | Path, *, wait: bool = False) -> Iterator[None]:
    """Keep other processes from writing to a folder; a process that holds it may hold it once more.

    Args:
        folder: the folder, made where missing; one that was made is removed again if an error leaves nothing in it.
        wait: wait for another writer instead of refusing.

    Yields:
        Nothing.

    Raises:
        ValueError: if another run holds it and `wait` is not set, or as `refuse_unfit_folder` does.
    """
    folder = Path(folder)
    refuse_unfit_folder(folder)
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with lock_of(folder / LOCK, f"writing to {folder}", wait=wait) as first:
            if first:
                remove_leftovers(folder)
            try:
                yield
            except BaseException:
                if made and os.listdir(folder) == [LOCK]:
                    (folder / LOCK).unlink()
                raise
    except BaseException:
        with suppress(OSError):
            for each in made:
                each.rmdir()
        raise


def refuse_unfit_folder(folder: str | Path) -> None:
    """Refuse an output directory that no run can have; nothing is made.

    Args:
        folder: the directory, perhaps missing.

    Raises:
        ValueError: if a file is in its place, it is the root of all folders, its path is not UTF-8, as tokenizers need
            it, or there are links to what a run writes into.
    """
    folder = Path(folder)
    if folder.resolve() == Path(folder.resolve().anchor):
        raise ValueError(f"{folder} is the root of all folders, which no run may fill: choose another folder")
    path = os.fsencode(folder.resolve())
    try:
        path.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"the path {path!r} is not UTF-8, as tokenizers need it: choose another output_dir") from None
    there = next(each for each in (folder, *folder.parents, Path()) if os.path.lexists(each))
    if not there.is_dir():
        raise ValueError(f"{folder} can't be a folder, since a file is there: choose another one")
    refuse_links_in(folder)


def refuse_links_in(folder: Path) -> None:
    """Refuse an output directory with links to what a run writes into.

    Args:
        folder: the directory, perhaps missing.

    Raises:
        ValueError: if there is one.
    """
    # A pattern finds no link that leads to nothing where it is a plain name.
    found = [path for pattern in _NUMBERED for path in folder.glob(pattern)]
    numbered = [path for path in found if "-" not in path.name or NUMBERED.fullmatch(path.name)]
    refuse_links(folder, LOCK, *_WRITTEN, *(path.relative_to(folder) for path in numbered))


@contextmanager
def lock_of(path: Path, busy: str, *, wait: bool = False) -> Iterator[bool]:
    """Hold a lock, which a process may hold several times over.

    Args:
        path: an empty file, made where missing.
        busy: what another run that holds it is doing.
        wait: wait for that run instead of refusing.

    Yields:
        Whether this process did not hold it before.

    Raises:
        ValueError: if another run holds it and `wait` is not set, or the file is a link or not empty.
    """
    refuse_links(path.parent, path.name)
    if path.is_file() and path.stat().st_size:
        # Some versions of filelock empty the file, which may have another name too.
        raise ValueError(f"{path} is no lock, since something is in it: move it elsewhere, or choose another folder")
    # A singleton counts how often its process holds it: a job does, the trainings within it, a push in the background.
    lock: Any = FileLock(path.parent.resolve() / path.name, is_singleton=True, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise ValueError(f"another run is {busy}: wait for it, or choose another output") from None
        logger.warning("Waiting for another run, which is %s.", busy)
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        logger.warning("The file system of %s has no locks (%s): let no other run write there.", path.parent, error)
        lock = None
    try:
        yield lock is not None and lock.lock_counter == 1
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


@plain_arguments
@contextmanager
def only_run(output_dir: str | Path) -> Iterator[None]:
    """Keep other runs out of an output directory, and let the main process alone speak.

    Args:
        output_dir: the directory, made where missing.

    Yields:
        Nothing.

    Raises:
        ValueError: if another run holds it, or it is none that a run can have; see `refuse_unfit_folder`.
    """
    refuse_unfit_folder(output_dir)
    state = PartialState()
    if not state.is_main_process:
        # What is said is said once, by the main process.
        disable_progress_bars()
        logging.getLogger("nlpkd").setLevel(logging.ERROR)
        yield
        return
    with only_writer(output_dir):
        yield

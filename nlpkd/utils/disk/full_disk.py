"""A full disk, a spent quota or a limit on file sizes, told as one plain error whatever library writes."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOT_WRITTEN = "the new files were not written, and what was there before is as it was. Free some space, and run again"
"""What a full disk means, where nothing else is said."""


MODEL_NOT_SAVED = "the model was not saved, and what was there before is as it was. Free some space, and try again"
"""What a full disk means where a model is saved."""


NO_SPACE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is spent",
    errno.EFBIG: "a file would be larger than the limit on file sizes (ulimit -f)",
}
"""Errors of writing that have one cause: no more fits. What to say of each."""


_FULL_BYTES = 1 << 16


@contextmanager
def explain_full_disk(folder: Path, failed: str) -> Iterator[None]:
    """Turn what libraries raise on a full disk, a spent quota or a limit on file sizes into one plain error.

    Args:
        folder: that is written to, or the file.
        failed: what to say of it: what was not written, what is kept, what to do.

    Yields:
        Nothing.

    Raises:
        OSError: with the number of what is full, one of `NO_SPACE`.
    """
    try:
        yield
    except FullTemporaryFolder:
        raise
    except Exception as error:
        if (number := full_disk(error, folder)) is None:
            raise
        raise OSError(number, f"{NO_SPACE[number]}: {failed}", str(folder)) from error


class FullTemporaryFolder(OSError):
    """The disk of a temporary folder is full, whatever else was being written."""


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder that is gone afterwards.

    Yields:
        The folder.

    Raises:
        FullTemporaryFolder: if what is written into it does not fit.
    """
    with tempfile.TemporaryDirectory(prefix="nlpkd-") as name:
        try:
            yield Path(name)
        except Exception as error:
            elsewhere = getattr(error, "filename", None)
            number = full_disk(error, Path(name))
            if number is None or (elsewhere is not None and not Path(os.fsdecode(elsewhere)).is_relative_to(name)):
                raise
            place = tempfile.gettempdir()
            told = f"{NO_SPACE[number]}: temporary files go to {place}. Free some space there, or set TMPDIR"
            raise FullTemporaryFolder(number, f"{told} to a folder of another disk", name) from error


def full_disk(error: BaseException, folder: Path) -> int | None:
    """Find out whether an error says that no more can be written.

    Args:
        error: of any library.
        folder: that was written to.

    Returns:
        What is full, one of `NO_SPACE`; None where it is another error.
    """
    if isinstance(error, OSError):
        return error.errno if error.errno in NO_SPACE else None
    # safetensors and tokenizers put the number into words.
    told = re.search(r"os error (\d+)", str(error))
    if told is not None:
        return int(told[1]) if int(told[1]) in NO_SPACE else None
    if shutil.disk_usage(nearest_existing_folder(folder)).free < _FULL_BYTES:
        return errno.ENOSPC
    # torch's writer of zip files says nothing of the cause.
    if not any(word in str(error) for word in ("inline_container", "iostream error")):
        return None
    import resource  # There is none on Windows, which has no such limit either.

    limited = resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY
    return errno.EFBIG if limited else errno.EDQUOT


def nearest_existing_folder(folder: Path) -> Path:
    """Find what exists already of a folder's path.

    Args:
        folder: perhaps not made yet.

    Returns:
        The folder itself, or its nearest parent that exists.
    """
    folder = folder.resolve()
    return next(path for path in (folder, *folder.parents) if path.exists())

"""Files that are complete or not there, checked by checksums."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from nlpkd.utils.disk.full_disk import MODEL_NOT_SAVED, NOT_WRITTEN, explain_full_disk
from nlpkd.utils.disk.links import inside, is_snapshot, move_into

CHECKSUMS = "checksums.json"
"""Size and SHA-256 of a folder's files, written last: `{"files": {NAME: {"bytes": .., "sha256": ..}}}`."""


WEIGHTS = "*.safetensors"


WEIGHT_FILES = "model*.safetensors"

WHOLE = "model.safetensors"
"""The weights in one file: where it is there, it is what is loaded."""


TOKENIZER = "tokenizer.json"


_SAVING = ".saving-"


_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")


ODD_CONTENT = (ValueError, LookupError, TypeError, AttributeError, RecursionError, ArithmeticError)
"""What reading raises where a file or a server holds something else than was expected."""


# Without leading zeros, so that a number has one folder.
NUMBERED = re.compile(r"[^-]+-(0|[1-9][0-9]*)")


def digest_of(path: Path) -> str:
    """Compute the SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """List the files of a model's weights, in order; none where it has only an ONNX file."""
    return sorted(folder.glob(WEIGHT_FILES))


def weights_in_use(folder: Path) -> list[Path]:
    """List those of a model's weight files that are loaded: one whole file, else all shards."""
    found = weight_files(folder)
    return [path for path in found if path.name == WHOLE] or found


def weights_sha256(folder: Path) -> dict[str, str]:
    """Hash a model's weights, to know what was made from them.

    Args:
        folder: the model's.

    Returns:
        The SHA-256 of each of its weight files by name.
    """
    return {path.name: digest_of(path) for path in weight_files(folder)}


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Write a file as a whole or not at all, as `atomic_file` does."""
    with atomic_file(path) as file:
        file.write(data)


def write_json(path: Path, value: Any) -> None:
    """Write a value as a JSON file that people can read, as a whole or not at all."""
    write_atomic(path, (json.dumps(value, indent=2) + "\n").encode())


def write_together(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write several files of a folder, all of them or none: they get their names once all are on the disk.

    Args:
        folder: the folder, made where missing.
        files: their content by name, in the order in which they get their names.

    Raises:
        OSError: if no more fits on the disk, or a folder has one of the names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in files:
        if (folder / name).is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(folder / name))
    with explain_full_disk(folder, NOT_WRITTEN), ExitStack() as begun:
        # The one that is begun last gets its name first.
        for name, data in reversed([*files.items()]):
            file = begun.enter_context(atomic_file(folder / name))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file under a temporary name, then rename it in one step: readers see the old file or the new one.

    Nothing is written through a link: a temporary name is one that nobody could know, and a link under the file's own
    name is replaced.

    Args:
        path: the file.

    Yields:
        The file to write to.

    Raises:
        OSError: if no more fits on the disk.
    """
    # As tempfile.mkstemp does, but with the permissions that a user's files have.
    temporary = path.with_name(f".{path.name.split('.')[0]}.{secrets.token_hex(8)}.tmp")
    failed = f"{path.name} was not written, and what was there before is as it was. Free some space, and run again"
    try:
        with explain_full_disk(path, failed), temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder_update(folder: Path, failed: str = NOT_WRITTEN) -> Iterator[Path]:
    """Open an empty folder to write to; its files replace those of `folder` once all of them are written.

    Args:
        folder: where the files go, made where missing; it must have a single writer.
        failed: what a full disk means.

    Yields:
        The folder to write to.

    Raises:
        ValueError: if a folder in it that is written to is a link.
    """
    with staging_folder(folder, _SAVING, failed) as temporary:
        yield temporary
        # Checksums first: files that a kill leaves of two models are told by them.
        written = [path for path in temporary.rglob("*") if path.is_file()]
        for path in sorted(written, key=lambda path: (path.name != CHECKSUMS, path)):
            with path.open("rb") as file:
                os.fsync(file.fileno())
            move_into(folder, path, path.relative_to(temporary))


@contextmanager
def staging_folder(folder: Path, prefix: str, failed: str = NOT_WRITTEN) -> Iterator[Path]:
    """Make an empty folder inside of another for what is not accepted yet.

    Args:
        folder: the folder, made where missing; it must have a single writer of staging folders with this prefix.
        prefix: of its name; what a killed process left under it goes first.
        failed: what a full disk means.

    Yields:
        The new folder, which goes at the end with all that is left in it.

    Raises:
        OSError: if no more fits on the disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{prefix}*"):
        # It refuses a link, which stays.
        shutil.rmtree(left, ignore_errors=True)
    # It looks at what is free before the folder goes.
    staged = tempfile.TemporaryDirectory(dir=folder, prefix=prefix, ignore_cleanup_errors=True)
    with staged as temporary, explain_full_disk(folder, failed):
        yield Path(temporary)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed writers left in a folder, which nobody else may be writing to."""
    for path in folder.glob(".*.tmp"):
        if _LEFTOVER.fullmatch(path.name):
            path.unlink(missing_ok=True)


@contextmanager
def atomic_model_update(folder: Path) -> Iterator[Path]:
    """Replace the files of a model as `atomic_folder_update` does, with checksums of its weights and tokenizer.

    Args:
        folder: where the model goes.

    Yields:
        The folder to save it in.

    Raises:
        OSError: if no more fits on the disk.
    """
    with atomic_folder_update(folder, MODEL_NOT_SAVED) as temporary:
        yield temporary
        write_checksums(temporary, WEIGHTS, TOKENIZER)
        names = {path.name for path in temporary.iterdir()}
    for stale in folder.glob("model*.safetensors*"):
        # from_pretrained prefers one whole file to shards: a leftover would be loaded in place of the new weights.
        if stale.name not in names:
            stale.unlink()


def write_checksums(folder: Path, *patterns: str) -> None:
    """Write size and checksum of a folder's files to `CHECKSUMS`, after all of them are on disk.

    Args:
        folder: the folder.
        *patterns: of the files, as `Path.glob` takes them; all files if there are none.
    """
    files = {}
    found = {path for pattern in patterns or ("**/*",) for path in folder.glob(pattern)}
    for path in sorted(path for path in found if path.is_file() and path.name != CHECKSUMS):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        name = path.relative_to(folder).as_posix()
        files[name] = {"bytes": path.stat().st_size, "sha256": digest_of(path)}
    write_json(folder / CHECKSUMS, {"files": files})


def has_checksums(folder: Path) -> bool:
    """Check whether a folder has its checksums, that is, whether it was written to the end."""
    return (folder / CHECKSUMS).is_file()


def refuse_damaged(folder: Path, pattern: str = "*") -> None:
    """Compare the files of a folder with their checksums; a folder without checksums is taken as it is.

    Args:
        folder: the folder.
        pattern: of the names of the files to check.

    Raises:
        ValueError: if files are missing, truncated or changed, or lie outside of the folder; they are named.
    """
    if not has_checksums(folder):
        return
    with explain_damage(folder / CHECKSUMS, f"use another copy of {folder}"):
        files = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))["files"]
        listed = [(name, files[name]["bytes"], files[name]["sha256"]) for name in _matching(files, pattern)]
    problems = list(filter(None, (_damage(inside(folder, name), *expected) for name, *expected in listed)))
    if problems:
        advice = f", or if the files were changed on purpose, delete {folder / CHECKSUMS}"
        raise ValueError(
            f"{'; '.join(problems)}. Nothing is read from {folder}: use another copy"
            f"{'' if is_snapshot(folder) else advice}"
        )


def _matching(names: Iterable[str], pattern: str) -> list[str]:
    return [name for name in names if Path(name).match(pattern)]


def _damage(path: Path, bytes: int, sha256: str) -> str | None:
    if not path.is_file():
        return f"{path} is missing"
    if path.stat().st_size != bytes:
        return f"{path} is damaged: it has {path.stat().st_size} bytes of {bytes}"
    return None if digest_of(path) == sha256 else f"{path} is damaged: its checksum is another one"


def cut_torn_line(file: BinaryIO) -> int:
    """Cut off what a kill or a full disk left of a last line.

    Args:
        file: open for reading and writing; its end is where it is read and written next.

    Returns:
        The bytes that stay.
    """
    file.seek(0)
    end = file.read().rfind(b"\n") + 1
    file.truncate(end)
    file.seek(end)
    return end


@contextmanager
def explain_damage(path: Path, advice: str) -> Iterator[None]:
    """Name a file whose content can't be read back.

    Args:
        path: the file; all that is read of its content is read meanwhile.
        advice: what to do.

    Yields:
        Nothing.

    Raises:
        ValueError: if its content is not what was expected.
    """
    try:
        yield
    except ODD_CONTENT as error:
        raise ValueError(f"{path} is damaged ({error!r:.300}): {advice}") from error


def numbered_folders(folder: Path, prefix: str) -> dict[int, Path]:
    """Find the folders that are called `PREFIX-NUMBER`, and no other whose name begins so.

    Args:
        folder: where they lie.
        prefix: such as `"checkpoint"`.

    Returns:
        The folders by number, the smallest first.
    """
    found = [(match[1], path) for path in folder.glob(f"{prefix}-*") if (match := NUMBERED.fullmatch(path.name))]
    return {int(number): path for number, path in sorted(found, key=lambda each: int(each[0])) if path.is_dir()}

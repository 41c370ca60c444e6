"""Links and names that lead somewhere else, because of which nothing foreign is written, read or sent; permissions."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath


def refuse_links(folder: Path, *names: str | Path) -> None:
    """Refuse to write into links, which may lead to files of somebody else.

    Args:
        folder: that is written to.
        *names: what must be no link in it.

    Raises:
        ValueError: if one is.
    """
    for name in names:
        if (folder / name).is_symlink():
            raise ValueError(
                f"{folder / name} is a link to {os.readlink(folder / name)}, and nothing is written through links: "
                "remove it, or choose another folder"
            )


def move_into(folder: Path, path: Path, name: Path) -> None:
    """Move a file to its place in a folder, in one step, and not through a link; it gets a new file's permissions.

    Args:
        folder: the folder.
        path: the file, on the same disk.
        name: its path inside of the folder.

    Raises:
        ValueError: if a folder on that path is a link.
    """
    target = folder / name
    refuse_links(folder, *(name.parents[:-1]))
    target.parent.mkdir(parents=True, exist_ok=True)
    path.chmod(usual_mode(path.parent))
    if target.parent == folder or os.rename not in os.supports_dir_fd:
        os.replace(path, target)
        return
    # The folder itself, and no link that has taken its place meanwhile.
    into = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        os.replace(path, target.name, dst_dir_fd=into)
    finally:
        os.close(into)


def link_file(path: Path, other: Path) -> None:
    """Give a file a second name on the same disk; where the file system has no such names, it is copied.

    Args:
        path: the file.
        other: its other name, which is free.
    """
    try:
        os.link(path, other)
    except OSError:
        shutil.copyfile(path, other)


def inside(folder: Path, name: str) -> Path:
    """Join a name that a file lists, such as an index of shards, to the folder of that file.

    Args:
        folder: the folder.
        name: the name, with `/` between its parts.

    Returns:
        The path.

    Raises:
        ValueError: if the name leads out of the folder.
    """
    parts = PureWindowsPath(name)
    if parts.anchor or ".." in parts.parts or PurePosixPath(name).is_absolute():
        raise ValueError(f"{folder} lists a file {name!r}, which lies outside of it: use a copy that you trust")
    return folder / name


def refuse_outside(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """Refuse to read files that are links out of their folder; clones and archives keep such links.

    A folder of the Hub's cache is passed: its files are links to blobs of the same repository.

    Args:
        folder: the folder.
        names: of its files.

    Returns:
        Where each file really lies, by its name.

    Raises:
        ValueError: if one resolves to a place outside of the folder.
    """
    home = folder.resolve()
    allowed = [home, *([home.parent.parent / "blobs"] if is_snapshot(folder) else [])]
    found = {name: (folder / name).resolve() for name in names}
    outside = [name for name, path in found.items() if not any(path.is_relative_to(each) for each in allowed)]
    if outside:
        raise ValueError(
            f"{', '.join(outside)} in {folder} leads out of it by a link: put the file itself there, or remove it"
        )
    return found


def is_snapshot(folder: Path) -> bool:
    """Check whether a folder is one of the Hub's cache: what is written there is lost, or served as if published."""
    return folder.resolve().parent.name == "snapshots"


def copy_from_inside(folder: Path, name: str, target: Path) -> None:
    """Copy a file of a folder, and nothing that a link leads to, though it be put there at this very moment.

    Args:
        folder: the folder.
        name: of the file.
        target: the copy.

    Raises:
        ValueError: if the file lies outside of the folder.
    """
    path = refuse_outside(folder, [name])[name]
    with open(path, "rb", opener=open_no_link) as file, target.open("xb") as copy:
        if path.resolve() != path:
            raise ValueError(f"{path} was replaced by a link while it was read: nothing is taken from {folder}")
        shutil.copyfileobj(file, copy)


def open_no_link(path: str, flags: int) -> int:
    """Open a file that must be no link, as an `opener` of `open`; Windows has no such flag, and seldom links."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def usual_mode(folder: Path) -> int:
    """Return the permissions that a new file has in a folder, by the user's umask and the folder's own rules."""
    # A file that is made tells it; to read the umask is to change it, for all threads.
    probe = folder / f".mode.{secrets.token_hex(8)}.tmp"
    probe.touch(exist_ok=False)
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    return mode


def give_usual_modes(folder: Path) -> None:
    """Give all files in a folder the permissions that a new file has there: safetensors makes its files 0600."""
    mode = usual_mode(folder)
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)

"""Permissions of files: those that the user's other new files have."""

from __future__ import annotations

import secrets
import stat
from pathlib import Path


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

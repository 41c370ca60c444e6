"""What a record says of the process that made it: its command and the time."""

from __future__ import annotations

import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path


def now() -> str:
    """Give the time for a record, in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def command_line() -> str:
    """Give the command of this process for a record: no token, and no path of this machine's own."""
    words = [_without_folder(word) for word in sys.argv]
    secret = {at + 1 for at, word in enumerate(words) if word in ("--hub_token", "--token")}
    words = ["***" if at in secret else word for at, word in enumerate(words)]
    return shlex.join(["python", *words] if words[0].endswith(".py") else words)


def _without_folder(word: str) -> str:
    """Reduce an absolute path, by itself or in NAME=PATH, to its last part."""
    name, equals, path = word.rpartition("=")
    return f"{name}{equals}{Path(path).name}" if Path(path).is_absolute() else word

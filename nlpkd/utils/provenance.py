"""What a record says of the process that made it: its command and the time."""

from __future__ import annotations

import re
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path

_TOKEN = re.compile(r"((?i:--[\w-]*token[ =]|\b\w*token=))\S+|\bhf_\w{16,}")


def now() -> str:
    """Return the time for a record, in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def command_line() -> str:
    """Return the command of this process for a record, without tokens and without folders of this machine."""
    words = [_without_folder(word) for word in sys.argv]
    return without_tokens(shlex.join(["python", *words] if words[0].endswith(".py") else words))


def without_tokens(text: str) -> str:
    """Replace access tokens by `***`; they are known by the flag or setting before them, or begin as the Hub's do."""
    return _TOKEN.sub(lambda match: f"{match[1] or ''}***", text)


def _without_folder(word: str) -> str:
    """Reduce an absolute path, by itself or in NAME=PATH, to its last part."""
    name, equals, path = word.rpartition("=")
    return f"{name}{equals}{Path(path).name}" if Path(path).is_absolute() else word

"""What a record says of the process that made it: its command and the time."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

from nlpkd.utils.secrets import quoted_word, without_tokens


def as_options(given: Mapping[str, Any], *names: str) -> list[Any]:
    """Return arguments as options of a command line, those that are None or False left out."""
    words: list[Any] = []
    for name in names:
        value = given.get(name)
        for each in value if isinstance(value, (list, tuple)) else [value]:
            if each is not None and each is not False:
                words += [f"--{name.replace('_', '-')}"] + ([] if each is True else [each])
    return words


def as_command(*words: Any) -> str:
    """Return words as a line that a shell takes as it stands.

    Args:
        *words: command, arguments and options, in this order.

    Returns:
        The line; an argument that begins like an option, such as a folder "-x", is "./-x".
    """
    told, count = [str(word) for word in words], 0
    while count < len(told) and not told[count].startswith("--"):
        told[count] = f"./{told[count]}" if told[count].startswith("-") else told[count]
        count += 1
    return shlex.join(told)


def now() -> str:
    """Return the time for a record, in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def command_line() -> str:
    """Return the command of this process for a record, without tokens and without folders of this machine."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        words = ["python", "-m", program.parent.name, *sys.argv[1:]]
    else:
        words = ["python", *sys.argv] if program.suffix == ".py" else sys.argv
    told = [quoted_word(before, _without_folder(word)) for before, word in pairwise(["", *words])]
    return without_tokens(" ".join(told))


def _without_folder(word: str) -> str:
    """Reduce an absolute path, by itself or in NAME=PATH, to its last part."""
    name, equals, path = word.rpartition("=")
    return f"{name}{equals}{Path(path).name}" if Path(path).is_absolute() else word


FORESEEN = (ValueError, OSError, RuntimeError, FloatingPointError, ImportError, MemoryError)
"""Errors whose message says it all, so that nobody needs a traceback."""

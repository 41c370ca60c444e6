"""What a record says of the process that made it: its command and the time."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

from huggingface_hub import get_token

# What a secret is called: by a flag, a setting, a key of JSON, a parameter of an address.
_NAME = r"(?i:[\w.-]*(?:token|(?:api|access|private)[_-]?key|passw(?:or)?d|secret|signature|credential))"


# Groups are kept, and what follows them is struck out.
_SECRETS = [
    re.compile(pattern)
    for pattern in (
        # In quotes, blanks and all: 'hub_token=with blanks', "token": "x", token='x'.
        rf"""((?P<mark>['"])(?:--)?{_NAME}=)(?:(?!(?P=mark)).)*""",
        rf"""(\b{_NAME}['"]?\s*[:=]\s*)(?P<mark>['"])(?:(?!(?P=mark)).)*(?P=mark)?""",
        # A flag's next word, or up to a blank or the next parameter of an address.
        rf"""(--{_NAME} )(?!-)(?:'[^']*'|"[^"]*"|\S+)""",
        rf"""(\b{_NAME}=)(?!['"])[^\s&'"]+""",
        r"""((?i:\bbearer )|(?i:\bauthorization['"]?\s*[:=]\s*['"]?(?:\w+ )?))[^\s'"]+""",
        # Users and passwords of addresses, an @ in them included.
        r"""(\b\w+://)[^/\s'"]+(?=@)""",
        # Not sk-learn-comparison: a key has a long part without dashes.
        r"""()\b(?:hf_\w{16,}|sk-[\w-]*[A-Za-z0-9]{16,}[\w-]*)""",
    )
]


_FLAG, _SETTING = re.compile(f"--{_NAME}"), re.compile(f"(?s)((?:--)?{_NAME}=).*")


# Variables whose values are secrets, and those that are addresses, which may have one in them.
_VARIABLE = re.compile(_NAME)


_ADDRESS = re.compile(r"(?i)(?:\w+_)?(?:endpoint|proxy|url)")


# A shorter one might be an ordinary word.
_LEAST_TOKEN = 8


# As passwords of databases on somebody's own machine are, such as postgres: no secret, and in many a text.
_WORD = re.compile("[A-Za-z][a-z]{,14}")

_HASH = re.compile(r"[0-9a-f]{64}")


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
    told = [_quoted(before, _without_folder(word)) for before, word in pairwise(["", *words])]
    return without_tokens(" ".join(told))


def _quoted(before: str, word: str) -> str:
    """Quote a word for a shell; a token is known by the flag before it or the setting that it is in, blanks or not."""
    if _FLAG.fullmatch(before):
        return "***"
    setting = _SETTING.fullmatch(word)
    return f"{setting[1]}***" if setting else shlex.quote(word)


def names_a_secret(name: str) -> bool:
    """Check whether a setting's name says that its value is a secret."""
    return _VARIABLE.fullmatch(name) is not None


def without_tokens(text: str, *own: str | None) -> str:
    """Replace access tokens, keys and the passwords of addresses by `***`.

    They are known by what stands before them, or begin as those of the Hub and of OpenAI do, or are those of this
    machine: the Hub's token, and variables of the environment that are called so, unless their value is a plain word.

    Args:
        text: any text.
        *own: secrets of the caller.

    Returns:
        The text without them.
    """
    # Known ones before the patterns, which may strike out a part of one, and the longest first for the same reason.
    known = {form for each in (*own, *_own_secrets()) if each for form in (each, each.strip(), repr(each)[1:-1])}
    for secret in sorted((each for each in known if len(each) >= _LEAST_TOKEN), key=len, reverse=True):
        text = text.replace(secret, "***")
    for pattern in _SECRETS:
        text = pattern.sub(lambda found: f"{found[1]}***", text)
    return text


def _own_secrets() -> Iterator[str]:
    """Yield the secrets that this machine's environment holds."""
    yield get_token() or ""
    for name, value in os.environ.items():
        if _VARIABLE.fullmatch(name):
            yield "" if _WORD.fullmatch(value) else value
        elif _ADDRESS.fullmatch(name) and "@" in value:
            # Of an address that is no proper one, too.
            user = value.rpartition("@")[0].partition("://")[2]
            yield from (user, user.partition(":")[2])


def _without_folder(word: str) -> str:
    """Reduce an absolute path, by itself or in NAME=PATH, to its last part."""
    name, equals, path = word.rpartition("=")
    return f"{name}{equals}{Path(path).name}" if Path(path).is_absolute() else word


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], place: str) -> list[str]:
    """Describe what differs between two fingerprints, with both values unless they are hashes.

    Args:
        theirs: those kept on disk, by what a refusal calls them.
        ours: those of this call.
        place: what a refusal calls the place where they were kept.

    Returns:
        A phrase for each difference.
    """
    names = [name for name in sorted({*theirs, *ours}) if theirs.get(name) != ours.get(name)]
    pairs = [(name, theirs.get(name), ours.get(name)) for name in names]
    return [
        name if any(_HASH.fullmatch(str(value)) for value in values) else
        f"{name} ({values[0]} in {place}, {values[1]} here)"
        for name, *values in pairs
    ]  # fmt: skip


FORESEEN = (ValueError, OSError, RuntimeError, FloatingPointError, ImportError, MemoryError)
"""Errors whose message says it all, so that nobody needs a traceback."""

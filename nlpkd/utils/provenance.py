"""What a record says of the process that made it: its command and the time."""

from __future__ import annotations

import re
import shlex
import sys
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path

from huggingface_hub import get_token

_TOKEN = re.compile(
    r"""(?P<flag>(?i:--[\w-]*token[ =]|\b[\w.-]*token=))(?:'[^']*'|"[^"]*"|\S+)"""
    r"""|(?P<quoted>(?P<mark>['"])(?i:(?:--)?[\w.-]*token=))(?:(?!(?P=mark)).)*"""
    r"""|(?P<scheme>\b\w+://)[^/\s@'"]+(?=@)"""
    r"""|\bhf_\w{16,}"""
)


_TOKEN_FLAG, _TOKEN_SETTING = re.compile(r"(?i)--[\w-]*token"), re.compile(r"(?is)((?:--)?[\w.-]*token=).*")


# A shorter one might be an ordinary word.
_LEAST_TOKEN = 8


def now() -> str:
    """Return the time for a record, in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def command_line() -> str:
    """Return the command of this process for a record, without tokens and without folders of this machine."""
    words = ["python", *sys.argv] if sys.argv[0].endswith(".py") else sys.argv
    told = [_quoted(before, _without_folder(word)) for before, word in pairwise(["", *words])]
    return without_tokens(" ".join(told))


def _quoted(before: str, word: str) -> str:
    """Quote a word for a shell; a token is known by the flag before it or the setting that it is in, blanks or not."""
    if _TOKEN_FLAG.fullmatch(before):
        return "***"
    setting = _TOKEN_SETTING.fullmatch(word)
    return f"{setting[1]}***" if setting else shlex.quote(word)


def without_tokens(text: str) -> str:
    """Replace access tokens and the passwords of addresses by `***`.

    Tokens are known by the flag or setting before them, or begin as the Hub's do, or are the one of this machine.
    """
    text = _TOKEN.sub(lambda found: f"{found['flag'] or found['quoted'] or found['scheme'] or ''}***", text)
    own = get_token() or ""
    return text.replace(own, "***") if len(own) >= _LEAST_TOKEN else text


def _without_folder(word: str) -> str:
    """Reduce an absolute path, by itself or in NAME=PATH, to its last part."""
    name, equals, path = word.rpartition("=")
    return f"{name}{equals}{Path(path).name}" if Path(path).is_absolute() else word

"""Access tokens, keys and passwords: what they look like, and texts without them."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator

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


def quoted_word(before: str, word: str) -> str:
    """Quote a word for a shell; a token is known by the flag before it or the setting that it is in, blanks or not."""
    if _FLAG.fullmatch(before):
        return "***"
    setting = _SETTING.fullmatch(word)
    return f"{setting[1]}***" if setting else shlex.quote(word)

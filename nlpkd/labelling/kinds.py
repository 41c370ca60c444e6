"""A teacher written down in a file: its kind, its model, and what it is asked."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

from nlpkd import teachers
from nlpkd.teachers.base import LabelingTeacher
from nlpkd.utils.disk.yaml_files import read_yaml
from nlpkd.utils.field_types import check_types, with_home
from nlpkd.utils.http import check_key

KINDS = {
    "decision": "DecisionTeacher",
    "zero-shot": "ZeroShotTeacher",
    "embedding": "EmbeddingTeacher",
    "chat": "ChatTeacher",
}
"""What the entry `teacher` of a file may be, and the class in `nlpkd.teachers`."""


def read_mapping(path: str | Path) -> dict[str, Any]:
    """Read a YAML or JSON file that holds a mapping.

    Args:
        path: the file.

    Returns:
        The mapping; numbers that may be names of classes are texts where 010 is written, or 1_000, or 1.50.

    Raises:
        ValueError: if it is something else, or can't be read.
    """
    try:
        found = read_yaml(Path(path), of_names=True)
    except OSError as error:
        raise ValueError(f"{path}, the file of a question or of a teacher, can't be read: {error.strerror}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} must be a mapping, of a question or of a teacher, got {found!r:.100}")
    return found


def names_a_teacher(written: Mapping[str, Any]) -> bool:
    """Check whether a mapping is a whole teacher, and not a question of `DecisionTeacher` alone."""
    return isinstance(written.get("teacher"), str)


def make_teacher(written: Mapping[str, Any], concurrency: int | None = None) -> LabelingTeacher:
    """Make a teacher of what is written down.

    Args:
        written: `teacher` is its kind (`decision`, `zero-shot`, `embedding`, `chat`); all else are arguments of its
            class in `nlpkd.teachers`, such as `model`, `question`, `classes`, `descriptions`, `hypothesis_template` or
            `base_url`. An `api_key` that starts with `$` is the name of an environment variable.
        concurrency: requests at the same time to a server, which goes before what is written down.

    Returns:
        The teacher.

    Raises:
        ValueError: if the kind is unknown, an argument is unknown, missing or of another type (a key is not shown), or
            a teacher without a server is to be asked several things at the same time.
    """
    asked = written if concurrency is None else {**written, "concurrency": concurrency}
    arguments = {name: value for name, value in asked.items() if value is not None}
    arguments |= {"model": with_home(arguments["model"])} if "model" in arguments else {}
    kind = arguments.pop("teacher", None)
    if kind not in KINDS:
        raise ValueError(f"teacher: {kind!r} is no kind of teacher; it is one of {', '.join(KINDS)}")
    make = getattr(teachers, KINDS[kind])
    known = inspect.signature(make).parameters
    named = [name for name, each in known.items() if each.kind is not each.VAR_KEYWORD]
    if unknown := [name for name in arguments if name not in named]:
        raise ValueError(f"a teacher of the kind {kind} has no {unknown[0]!r}; it has {', '.join(named)}")
    needed = [name for name in named if known[name].default is inspect.Parameter.empty]
    if missing := [name for name in needed if name not in arguments]:
        raise ValueError(f"a teacher of the kind {kind} needs {' and '.join(missing)}")
    if "api_key" in arguments:
        arguments["api_key"] = _read_key(arguments["api_key"])
    # Names of classes may be numbers: the teacher reads them.
    check_types({name: each for name, each in arguments.items() if name != "classes"}, get_type_hints(make.__init__))
    teacher = make(**arguments)
    if teacher.concurrency != (told := arguments.get("concurrency", teacher.concurrency)):
        raise ValueError(
            f"concurrency={told} is of a server, and this teacher has none: leave it out, or give base_url"
        )
    return teacher


def _read_key(written: Any) -> str:
    """Return a key that is written down, or that an environment variable holds."""
    check_key(written)
    if not written.startswith("$"):
        return written
    if not re.fullmatch(r"\$\w+", written):
        raise ValueError("api_key: what starts with $ names an environment variable (what was given is not shown)")
    if not os.environ.get(written[1:]):
        raise ValueError(f"api_key: {written} is an environment variable that is not set")
    try:
        check_key(os.environ[written[1:]])
    except ValueError as error:
        raise ValueError(f"the environment variable {written} can't be used: {error}") from None
    return os.environ[written[1:]]

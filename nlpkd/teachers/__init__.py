"""Where a teacher's outputs come from, and whether to trust them.

Teachers that need no gold labels are imported from here: `DecisionTeacher`,
`ZeroShotTeacher`, `EmbeddingTeacher`, `ChatTeacher`, and any function as a `FunctionTeacher`.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "ChatTeacher": "nlpkd.teachers.chat",
    "DecisionTeacher": "nlpkd.teachers.decision",
    "EmbeddingTeacher": "nlpkd.teachers.embedding",
    "FunctionTeacher": "nlpkd.teachers.base",
    "LabelingTeacher": "nlpkd.teachers.base",
    "ZeroShotTeacher": "nlpkd.teachers.zero_shot",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    # Lazily: a teacher imports torch, or a client of a server.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'nlpkd.teachers' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

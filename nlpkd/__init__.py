"""Distil a fine-tuned text classifier into a small, fast student, and measure what it cost."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "cache_teacher_outputs": "nlpkd.cache",
    "DistillationConfig": "nlpkd.config",
    "DistillationTrainer": "nlpkd.trainer",
    "EvaluationReport": "nlpkd.report",
    "distill": "nlpkd.pipeline",
    "evaluate_student": "nlpkd.evaluation",
    "load_teacher": "nlpkd.teacher",
    "load_text_classification": "nlpkd.data",
    "make_student": "nlpkd.student",
    "push_student": "nlpkd.hub",
    "train_teacher": "nlpkd.pipeline",
}

_PACKAGES = ("compression", "objectives")

__all__ = [*sorted(_HOMES), *_PACKAGES]


def __getattr__(name: str) -> Any:
    # `import nlpkd` stays cheap: torch and transformers are imported with the first name that needs them.
    if name in _PACKAGES:
        return import_module(f"nlpkd.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'nlpkd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

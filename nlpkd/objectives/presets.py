"""Lists of objectives by name, for the command line and the recipes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nlpkd.objectives.attention import AttentionMSELoss
from nlpkd.objectives.base import Objective
from nlpkd.objectives.hidden import HiddenStateMSELoss
from nlpkd.objectives.labels import CrossEntropyLoss
from nlpkd.objectives.logits import ForwardKLLoss


def hinton() -> list[Objective]:
    """Soft targets beside gold labels (Hinton et al. 2015): works for any pair of models."""
    return [CrossEntropyLoss(weight=0.5), ForwardKLLoss(temperature=2.0, weight=0.5)]


def layerwise() -> list[Objective]:
    """Soft targets, gold labels, hidden states and attention maps of evenly spread layers."""
    return [*hinton(), HiddenStateMSELoss(weight=1.0), AttentionMSELoss(weight=1.0)]


PRESETS: dict[str, Callable[[], list[Objective]]] = {"hinton": hinton, "layerwise": layerwise}


def resolve(objectives: str | Sequence[Objective]) -> list[Objective]:
    """Turn a preset's name into its objectives, and pass a list through.

    Args:
        objectives: a name of `PRESETS`, or objectives.

    Returns:
        Fresh, unbound objectives for a name; the same instances for a list.

    Raises:
        ValueError: if there is no such preset, or the list is empty.
    """
    if isinstance(objectives, str):
        if objectives not in PRESETS:
            raise ValueError(f"there is no preset {objectives!r}: choose one of {sorted(PRESETS)}, or pass a list")
        return PRESETS[objectives]()
    if not objectives:
        raise ValueError("objectives is an empty list: give at least one, such as [ForwardKLLoss()]")
    return list(objectives)

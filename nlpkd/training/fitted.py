"""Attributes of a trainer that were fitted together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def fitted(name: str, read: Callable[[Any], Any]) -> Any:
    """Make an attribute that can't be assigned, since student, teacher and data were fitted together with it.

    Args:
        name: of the attribute.
        read: returns its value, given the trainer.

    Returns:
        The property.
    """

    def refuse(trainer: Any, value: Any) -> None:
        raise ValueError(
            f"{name} was fitted together with student and data, and is not changed in a trainer: make another "
            f"DistillationTrainer({name}=...)"
        )

    return property(read, refuse)

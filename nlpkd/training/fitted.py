"""Attributes and settings of a trainer that were fitted together."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn


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


# Settings that the constructor builds on; all others are read when a training begins.
_SETTINGS = (
    "label_smoothing_factor", "weighting", "anchor_weight", "ensemble_average", "ensemble_weights", "bf16", "fp16",
    "neftune_noise_alpha", "per_device_train_batch_size",
)  # fmt: skip


@dataclass(frozen=True)
class Fitted:
    """What a trainer was fitted together with, and would not follow if it were changed.

    Attributes:
        model: the student.
        own_loss: `compute_loss_func` of `Trainer`.
        settings: by name.
    """

    model: nn.Module | None
    own_loss: Any
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, trainer: Any) -> Fitted:
        """Look at a trainer as it is now."""
        settings = {name: copy.copy(getattr(trainer.args, name)) for name in _SETTINGS}
        return cls(_student_of(trainer), trainer.compute_loss_func, settings)

    def refuse_changed(self, trainer: Any) -> None:
        """Refuse what was assigned since, which would be ignored.

        Raises:
            ValueError: with what was changed, and where to give it instead.
        """
        now = Fitted.of(trainer)
        for name, before in self.settings.items():
            if now.settings[name] != before:
                raise ValueError(
                    f"args.{name} was {before!r} when the trainer was made and is {now.settings[name]!r} now, which "
                    f"would not be followed: make another DistillationTrainer, with DistillationConfig({name}=...)"
                )
        changed = {"compute_loss_func": now.own_loss is not self.own_loss}
        # A search leaves no model between its trials; what splits a model up wraps it as it likes.
        changed["model"] = now.model is not None and now.model is not self.model and not trainer._sharded
        if names := [name for name, other in changed.items() if other]:
            raise ValueError(
                f"{names[0]} was assigned since the trainer was made, which would not be followed: make another "
                f"DistillationTrainer({names[0]}=...)"
            )


def _student_of(trainer: Any) -> nn.Module | None:
    """Return the student without what a training wraps it in."""
    if trainer.model is None or trainer._sharded:
        return None
    return trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=True, keep_torch_compile=False)

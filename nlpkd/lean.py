"""A student as it is trained: without work that nothing reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel, TrainingArguments

from nlpkd.capture import CAPTURING_SDPA, Wanted, without_adapter
from nlpkd.compact import CompactTraining, compact_training
from nlpkd.data import DistillationCollator
from nlpkd.dropout import QuickDropouts
from nlpkd.first_token import FirstTokenOnly, first_token_only

if TYPE_CHECKING:
    from nlpkd.trainer import DistillationTrainer


class LeanTraining:
    """A student that does less for the same training, until `end`: see `nlpkd.first_token` and `nlpkd.dropout`.

    Losses and gradients are those of the student as it is, but for rounding and for which elements dropout drops:
    these are as many, from another sequence of random numbers.

    Args:
        model: the student, changed in place; its parameters and their names stay.
        wanted: what the objectives need of it. With hidden states the last layer stays whole.
        args: of the training. The last layer stays whole under activation checkpointing, and dropout and attention
            stay as they are anywhere but on an eager CPU.
    """

    def __init__(self, model: nn.Module, wanted: Wanted, args: TrainingArguments):
        self.inner: Any = without_adapter(model)
        whole = bool(wanted.get("hidden_states")) or args.gradient_checkpointing or args.activation_checkpointing
        self.first: FirstTokenOnly | None = None if whole else first_token_only(model)
        self.dropouts: QuickDropouts | None = None
        self.attention: str | None = None
        if args.device.type != "cpu" or args.torch_compile:
            return
        self.dropouts = QuickDropouts(model)
        if isinstance(self.inner, PreTrainedModel) and self.inner.config._attn_implementation == "sdpa":
            self.attention = "sdpa"
            self.inner.set_attn_implementation(CAPTURING_SDPA)

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Leave an optimizer as it is: the parameters are the student's own."""

    def end(self) -> None:
        """Give the student back what was changed, as it was."""
        if self.first is not None:
            self.first.end()
        if self.dropouts is not None:
            self.dropouts.end()
        if self.attention is not None:
            self.inner.set_attn_implementation(self.attention)


def changes_for_training(trainer: DistillationTrainer, wanted: Wanted) -> list[CompactTraining | LeanTraining]:
    """Change a trainer's student for the time of a training, into one that does less for the same.

    Args:
        trainer: about to make its optimizer.
        wanted: what its objectives need of the student.

    Returns:
        What was changed: each follows the optimizer, and is ended after the training.
    """
    args = trainer.args
    changes: list[CompactTraining | LeanTraining] = []
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        return []
    lean = bool(trainer.objectives.need_teacher) if args.lean_training is None else args.lean_training
    if lean:
        changes.append(LeanTraining(trainer.model, wanted, args))
    given = trainer.optimizer is not None or args.anchor_weight
    if args.compact_embeddings and type(trainer.data_collator) is DistillationCollator and not given:
        special = getattr(trainer.processing_class, "all_special_ids", [])
        compact = compact_training(trainer.model, trainer.train_dataset, args, special)
        changes += [] if compact is None else [compact]
    return changes

"""A student as it is trained: without work that nothing reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn
from transformers import PreTrainedModel

from nlpkd.data.collator import DistillationCollator
from nlpkd.models.attention import CAPTURING_SDPA, QuickDropout, Wanted
from nlpkd.models.first_token import first_token_only
from nlpkd.models.structure import without_adapter
from nlpkd.training.compact_embeddings import compact_training

if TYPE_CHECKING:
    from nlpkd.training.trainer import DistillationTrainer


class Change(Protocol):
    """What a student is without for the time of a training."""

    def end(self) -> None:
        """Give the student back what was taken, trained."""


class PlainAttention:
    """A model whose attention is the plain products, with its own dropout, while it is trained.

    With dropout `scaled_dot_product_attention` has no fused kernel on the CPU, and its own way to the products is
    longer; in eval mode it runs as ever.

    Args:
        model: a transformers model under sdpa, changed in place.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        model.set_attn_implementation(CAPTURING_SDPA)

    def end(self) -> None:
        """Give the model sdpa back."""
        self.model.set_attn_implementation("sdpa")


def changes_for_training(trainer: DistillationTrainer, wanted: Wanted) -> Iterator[Change]:
    """Change a trainer's student for the time of a training, into one that does less for the same.

    Losses and gradients are those of the student as it is, but for rounding and, where training is lean, for which
    elements dropout drops: these are as many, from another sequence of random numbers.

    Args:
        trainer: about to make its optimizer.
        wanted: what its objectives need of the student. With hidden states the last layer stays whole, and with the
            maps of eager attention, which are read as they go into torch's dropout, dropout stays as it is.

    Yields:
        Each change once it is made, to be ended after the training.
    """
    args, student = trainer.args, trainer.model
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        return
    if bool(trainer.objectives.need_teacher) if args.lean_training is None else args.lean_training:
        inner: Any = without_adapter(student)
        attention = inner.config._attn_implementation if isinstance(inner, PreTrainedModel) else None
        eager_maps = attention == "eager" and wanted.get("attentions")
        recomputes = args.gradient_checkpointing
        if not wanted.get("hidden_states") and not eager_maps and not recomputes:
            first = first_token_only(student)
            if first is not None:
                yield first
        if args.device.type == "cpu" and not args.torch_compile and not eager_maps:
            yield QuickDropouts(student)
            if attention == "sdpa":
                yield PlainAttention(inner)
    given = trainer.optimizer is not None or args.anchor_weight
    if args.compact_embeddings and type(trainer.data_collator) is DistillationCollator and not given:
        special = getattr(trainer.processing_class, "all_special_ids", [])
        compact = compact_training(student, trainer.train_dataset, args, special)
        if compact is not None:
            yield compact


def end_training(trainer: DistillationTrainer, changes: Sequence[Change]) -> None:
    """Leave a trainer's student as it was, but trained: whole, in its own precision, without a wrapper.

    Args:
        trainer: whose training is over. What DeepSpeed and FSDP split up stays in their wrapper.
        changes: what was changed; all are ended, the last first, even if one fails.
    """
    with ExitStack() as ends:
        for change in changes:
            ends.callback(change.end)
    if not (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled):
        # Accelerate leaves the model's forward in mixed precision, in which it would then be measured.
        student = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        trainer.model = trainer.model_wrapped = student


class QuickDropouts:
    """A model whose dropout modules are quick ones for a while.

    Args:
        model: the model, changed in place; dropout that is no `nn.Dropout`, works in place or drops nothing stays.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        plain = {name: each for name, each in model.named_modules() if type(each) is nn.Dropout}
        self.own = {name: each for name, each in plain.items() if each.p and not each.inplace}
        for name, each in self.own.items():
            model.set_submodule(name, QuickDropout(each.p).train(each.training))

    def end(self) -> None:
        """Give the model its own dropout back."""
        for name, each in self.own.items():
            each.training = self.model.get_submodule(name).training
            self.model.set_submodule(name, each)

"""Which work a training can leave out without changing its result, and the student that does without it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel
from transformers.training_args import OptimizerNames

from nlpkd.config import DistillationConfig
from nlpkd.data.collator import DistillationCollator
from nlpkd.data.columns import TEACHER_LOGITS
from nlpkd.models.attention import CAPTURING_SDPA, QuickDropout
from nlpkd.models.first_token import first_token_only
from nlpkd.models.structure import without_adapter
from nlpkd.training.compact_embeddings import CompactTraining, compact_training
from nlpkd.training.cuda_graphs import CudaGraphs, can_be_recorded
from nlpkd.training.loss import DistillationLoss

CACHED_TEACHER = "cached teacher"
"""The teacher is run once on every row, before the training."""

FIRST_TOKEN = "first token"
"""The last layer is computed for the first token alone."""

QUICK_DROPOUT = "quick dropout"
"""Dropout draws 16 bits an element."""

OWN_ATTENTION = "own attention"
"""On the CPU attention is the plain products with a quick dropout, where torch's own way has no fused kernel.

On a GPU it is sdpa with a mask that is made without waiting for the GPU."""

COMPACT_EMBEDDINGS = "compact embeddings"
"""The embedding rows that the training text uses are trained as a table of their own."""

CUDA_GRAPHS = "CUDA graphs"
"""On a GPU the passes of student and teacher are recorded once a shape, and repeated by one launch each."""

_LEAN = (FIRST_TOKEN, QUICK_DROPOUT, OWN_ATTENTION)

_STILL_WITHOUT_GRADIENT = (OptimizerNames.ADAMW_TORCH, OptimizerNames.ADAMW_TORCH_FUSED)
"""Optimizers that, without weight decay, don't move what never had a gradient."""


@dataclass(frozen=True)
class TrainingParts:
    """All that takes part in a training and may read or change what a speed-up leaves out.

    Attributes:
        args: the settings.
        student: the model, not wrapped.
        loss: what the objectives read of student and teacher.
        rows: the training rows.
        collator: makes batches of them.
        optimizer: that the user gave, if any.
        sharded: whether DeepSpeed or FSDP splits the weights up.
    """

    args: DistillationConfig
    student: nn.Module
    loss: DistillationLoss
    rows: Any
    collator: Any
    optimizer: torch.optim.Optimizer | None
    sharded: bool


def refused_speed_ups(parts: TrainingParts) -> dict[str, str]:
    """Decide which speed-ups a training can't have, since something reads what they leave out.

    This is the only place that decides it: whoever makes a training faster asks here, and whatever reads more than it
    seems to belongs into the table below. Whether a model is built so that a speed-up applies to it, the speed-up
    knows.

    Args:
        parts: all that takes part.

    Returns:
        The reason by speed-up (`CACHED_TEACHER`, `FIRST_TOKEN`, ...); those that are allowed are left out.
    """
    args, inner = parts.args, without_adapter(parts.student)
    student_layers, signals = parts.loss.student.wanted, parts.loss.signals
    needs_teacher = bool(parts.loss.objectives.need_teacher)
    attention = inner.config._attn_implementation if isinstance(inner, PreTrainedModel) else None
    dataset = isinstance(parts.rows, Dataset)
    lean = needs_teacher if args.lean_training is None else args.lean_training
    rules: list[tuple[Any, Sequence[str], str]] = [
        # The teacher, run once
        (not needs_teacher or signals.live is None, [CACHED_TEACHER], "there is no teacher to run"),
        (args.cache_teacher == "off", [CACHED_TEACHER], "cache_teacher is off"),
        (args.fp16, [CACHED_TEACHER], "fp16 is on, in which the teacher would be run"),
        (signals.wanted, [CACHED_TEACHER], "the objectives read more of the teacher than its logits"),
        (not dataset, [CACHED_TEACHER], "the rows are no datasets.Dataset"),
        (dataset and TEACHER_LOGITS in parts.rows.column_names, [CACHED_TEACHER], "the rows have its logits"),
        (dataset and _epochs(args, len(parts.rows)) <= 1, [CACHED_TEACHER], "every row is read once"),
        # The student, changed in place
        (parts.sharded, [*_LEAN, COMPACT_EMBEDDINGS], "DeepSpeed or FSDP splits the weights up"),
        (not lean, _LEAN, "lean_training is off"),
        (student_layers.get("hidden_states"), [FIRST_TOKEN], "an objective reads hidden states"),
        # Eager attention's maps are read as they go into torch's own dropout.
        (attention == "eager" and student_layers.get("attentions"), _LEAN, "an objective reads eager maps"),
        (args.gradient_checkpointing, [FIRST_TOKEN], "layers are computed again"),
        (args.device.type != "cpu", [QUICK_DROPOUT], "training is not on the CPU"),
        (args.torch_compile, [QUICK_DROPOUT, OWN_ATTENTION], "the student is compiled"),
        (attention != "sdpa", [OWN_ATTENTION], "the student's attention is not sdpa"),
        # The embedding table, of which unused rows are assumed to stay where they are
        (not args.compact_embeddings, [COMPACT_EMBEDDINGS], "compact_embeddings is off"),
        (type(parts.collator) is not DistillationCollator, [COMPACT_EMBEDDINGS], "the data_collator may add tokens"),
        (not dataset, [COMPACT_EMBEDDINGS], "the rows can't be looked through beforehand"),
        (parts.optimizer is not None, [COMPACT_EMBEDDINGS], "the optimizer has the whole table already"),
        (args.optim not in _STILL_WITHOUT_GRADIENT, [COMPACT_EMBEDDINGS], "the optimizer may move unused rows"),
        (args.weight_decay or args.anchor_weight, [COMPACT_EMBEDDINGS], "a decay or an anchor moves unused rows"),
    ]
    rules += [
        (args.device.type != "cuda", [CUDA_GRAPHS], "training is not on a CUDA GPU"),
        (not args.cuda_graphs, [CUDA_GRAPHS], "cuda_graphs is off"),
        (parts.sharded or args.world_size > 1, [CUDA_GRAPHS], "there are several processes"),
        # A recorded backward pass writes its gradients where those of the micro-batch before are.
        (args.gradient_accumulation_steps > 1, [CUDA_GRAPHS], "gradients are accumulated"),
        (args.auto_find_batch_size, [CUDA_GRAPHS], "gradients may be accumulated later"),
        (args.torch_compile, [CUDA_GRAPHS], "the student is compiled"),
        (args.gradient_checkpointing, [CUDA_GRAPHS], "layers are computed again"),
        (args.neftune_noise_alpha is not None, [CUDA_GRAPHS], "NEFTune adds noise to the embeddings"),
        (not can_be_recorded(parts.student), [CUDA_GRAPHS], "the student's family or a hook may wait for the GPU"),
        (not lean or attention not in ("sdpa", CAPTURING_SDPA), [CUDA_GRAPHS], "its attention waits for the GPU"),
    ]
    refused: dict[str, str] = {}
    for holds, names, reason in rules:
        refused |= {name: reason for name in names if holds and name not in refused}
    return refused


def _epochs(args: DistillationConfig, rows: int) -> float:
    step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return args.max_steps * step / rows if args.max_steps > 0 else args.num_train_epochs


class Change(Protocol):
    """Something that a student is trained without, or with in another form."""

    def end(self) -> None:
        """Undo the change; what was trained stays trained."""


class LeanTraining:
    """The changes that make a student faster while it is trained.

    Losses and gradients are those of the student as it is, but for rounding and, where training is lean, for which
    elements dropout drops: these are as many, from another sequence of random numbers.
    """

    def __init__(self) -> None:
        self.changes: list[Change] = []

    def begin(self, parts: TrainingParts, special_ids: Sequence[int]) -> None:
        """Change the student in place, where the training allows it; once, until `end`.

        Args:
            parts: of a training that is about to make its optimizer.
            special_ids: token ids to train whether the rows have them or not.
        """
        if self.changes:
            return
        refused, student = refused_speed_ups(parts), parts.student
        if FIRST_TOKEN not in refused and (first := first_token_only(student)) is not None:
            self.changes.append(first)
        if QUICK_DROPOUT not in refused:
            self.changes.append(QuickDropouts(student))
        if OWN_ATTENTION not in refused:
            self.changes.append(OwnAttention(without_adapter(student)))
        if COMPACT_EMBEDDINGS not in refused:
            compact = compact_training(student, parts.rows, special_ids, log=parts.args.should_log)
            if compact is not None:
                self.changes.append(compact)
        if CUDA_GRAPHS not in refused:
            self.changes.append(CudaGraphs(parts.loss))

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Let an optimizer of the changed student save and load the state of the whole one."""
        for change in self.changes:
            if isinstance(change, CompactTraining):
                change.follow(optimizer)

    def end(self) -> None:
        """Undo all changes, the last first, even if one fails."""
        with ExitStack() as ends:
            for change in self.changes:
                ends.callback(change.end)
            self.changes = []


class OwnAttention:
    """A model under nlpkd's attention (`nlpkd.models.attention`) while it is trained.

    With dropout `scaled_dot_product_attention` has no fused kernel on the CPU, and its own way to the products is
    longer; in eval mode it runs as ever. On a GPU transformers' sdpa waits for the GPU in every forward pass, to learn
    whether the batch has padding.

    Args:
        model: a transformers model under sdpa, changed in place.
    """

    def __init__(self, model: Any):
        self.model = model
        model.set_attn_implementation(CAPTURING_SDPA)

    def end(self) -> None:
        """Return the model to sdpa."""
        self.model.set_attn_implementation("sdpa")


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
        """Put the model's own dropout back."""
        for name, each in self.own.items():
            each.training = self.model.get_submodule(name).training
            self.model.set_submodule(name, each)

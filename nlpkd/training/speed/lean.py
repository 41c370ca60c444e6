"""Which work a training can leave out without changing its result, and the student that does without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from transformers import DataCollatorWithPadding, PreTrainedModel
from transformers.training_args import OptimizerNames

from nlpkd.config import DistillationConfig
from nlpkd.data.collator import DistillationCollator
from nlpkd.data.columns import TEACHER_LOGITS
from nlpkd.data.rows import is_plain, visible_columns
from nlpkd.models.attention import CAPTURING_SDPA, QuickDropout
from nlpkd.models.inference import first_token_only, reads_first_token
from nlpkd.models.structure import foreign_hook, without_adapter
from nlpkd.training.loss import DistillationLoss
from nlpkd.training.speed.compact_embeddings import CompactTraining, compact_training, has_own_table
from nlpkd.training.speed.cuda_graphs import CudaGraphs, can_be_recorded
from nlpkd.training.speed.recorded_steps import RecordedClipping
from nlpkd.utils.object_hashes import is_foreign

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

_PADDING = (DistillationCollator, DataCollatorWithPadding)
"""Collators that pad rows and do nothing else."""

_STILL_WITHOUT_GRADIENT = (OptimizerNames.ADAMW_TORCH, OptimizerNames.ADAMW_TORCH_FUSED)
"""Optimizers that, without weight decay, don't move what never had a gradient."""


@dataclass(frozen=True)
class TrainingParts:
    """All that takes part in a training and may read or change what a speed-up leaves out.

    Attributes:
        args: the settings.
        student: the model, not wrapped; None before the first trial of a search.
        loss: what the objectives read of student and teacher.
        rows: the training rows.
        collator: makes batches of them.
        tokenizer: the student's.
        own_optimizer: whether the user gave an optimizer or its class.
        callbacks: all of the trainer's.
        overridden: names of the trainer's methods that a subclass of the user's replaces.
        sharded: whether DeepSpeed or FSDP splits the weights up.
    """

    args: DistillationConfig
    student: Any
    loss: DistillationLoss
    rows: Any
    collator: Any
    tokenizer: Any
    own_optimizer: bool
    callbacks: Sequence[Any]
    overridden: Sequence[str]
    sharded: bool


_HARMLESS = frozenset({"log", "create_scheduler", "save_model", "create_model_card", "push_to_hub"})


def overridden_methods(kind: type, base: type) -> list[str]:
    """List the methods of a trainer that a subclass of the user's replaces, but those that read no rows and no model.

    Args:
        kind: the class of the trainer.
        base: nlpkd's own, which `kind` is or is derived from.

    Returns:
        Their names in alphabetical order.
    """
    foreign = [each for each in kind.__mro__[: kind.__mro__.index(base)] if is_foreign(each)]
    names = {name for each in foreign for name in vars(each) if hasattr(base, name) and not name.startswith("__")}
    return sorted(names - _HARMLESS)


def refused_speed_ups(parts: TrainingParts) -> dict[str, str]:
    """Decide which speed-ups a training can't have, since something reads what they leave out.

    This is the only place that decides it: whoever makes a training faster asks here, and whatever reads more than it
    seems to belongs into the table below. Whether a model is built so that a speed-up applies to it, the speed-up
    knows.

    Args:
        parts: all that takes part.

    Returns:
        The reason by speed-up (`CACHED_TEACHER`, `FIRST_TOKEN`, ...), "" where there is nothing to speed up; without
        those that are allowed.
    """
    args, inner = parts.args, without_adapter(parts.student)
    student_layers, signals = parts.loss.student.wanted, parts.loss.signals
    needs_teacher = bool(parts.loss.objectives.need_teacher)
    attention = inner.config._attn_implementation if isinstance(inner, PreTrainedModel) else None
    dataset, columns = is_plain(parts.rows), visible_columns(parts.rows)
    lean = needs_teacher if args.lean_training is None else args.lean_training
    # Who asks for lean training knows what its own callbacks and methods read.
    user_vouches = args.lean_training is True
    foreign = sorted({type(each).__name__ for each in parts.callbacks if is_foreign(type(each))})
    callbacks, methods = ", ".join(foreign), ", ".join(parts.overridden)
    hooked = None if parts.student is None else foreign_hook(parts.student)
    taught = None if signals.live is None else foreign_hook(signals.live.model)
    pads_alone = type(parts.collator) in _PADDING and parts.collator.tokenizer is parts.tokenizer
    rules: list[tuple[Any, Sequence[str], str]] = [
        # What there is nothing to gain by
        (args.device.type != "cpu", [QUICK_DROPOUT], ""),
        (args.device.type != "cuda", [CUDA_GRAPHS], ""),
        # The teacher, run once
        (not needs_teacher or signals.live is None, [CACHED_TEACHER], ""),
        (dataset and TEACHER_LOGITS in columns, [CACHED_TEACHER], ""),
        (args.cache_teacher == "off", [CACHED_TEACHER], "cache_teacher is off"),
        (args.fp16, [CACHED_TEACHER], "fp16 is on, in which the teacher would be run"),
        (signals.wanted, [CACHED_TEACHER], "the objectives read more of the teacher than its logits"),
        (not dataset, [CACHED_TEACHER], "the rows are no data set without a transform"),
        (dataset and _reads_once(args, len(parts.rows)), [CACHED_TEACHER], "every row is read once"),
        (not pads_alone, [CACHED_TEACHER], "the data_collator may change what the teacher reads"),
        (methods, [CACHED_TEACHER], f"{methods} may change what the teacher reads"),
        (taught, [CACHED_TEACHER], f"the teacher has a hook on {taught}"),
        # The student, changed in place
        (parts.sharded, [*_LEAN, COMPACT_EMBEDDINGS], "DeepSpeed or FSDP splits the weights up"),
        (not lean, _LEAN, "lean_training is off"),
        (hooked, [*_LEAN, COMPACT_EMBEDDINGS, CUDA_GRAPHS], f"the student has a hook on {hooked}"),
        (args.debug, [*_LEAN, COMPACT_EMBEDDINGS, CUDA_GRAPHS], "debug looks at every module"),
        (student_layers.get("hidden_states"), [FIRST_TOKEN], "an objective reads hidden states"),
        (callbacks and not user_vouches, [FIRST_TOKEN], f"{callbacks} may read hidden states"),
        (methods and not user_vouches, [FIRST_TOKEN], f"{methods} may read hidden states"),
        # Eager attention's maps are read as they go into torch's own dropout.
        (attention == "eager" and student_layers.get("attentions"), _LEAN, "an objective reads eager maps"),
        (args.gradient_checkpointing, [FIRST_TOKEN], "layers are computed again"),
        (not reads_first_token(inner), [FIRST_TOKEN], "the student may read other tokens"),
        (args.torch_compile, [QUICK_DROPOUT, OWN_ATTENTION], "the student is compiled"),
        (attention not in ("sdpa", CAPTURING_SDPA), [OWN_ATTENTION], "the student's attention is not sdpa"),
        # It has it for the sake of the objectives.
        (attention == CAPTURING_SDPA, [OWN_ATTENTION], ""),
        # The embedding table, of which unused rows are assumed to stay where they are
        (not args.compact_embeddings, [COMPACT_EMBEDDINGS], "compact_embeddings is off"),
        (not has_own_table(parts.student), [COMPACT_EMBEDDINGS], "the student has no plain table of its own"),
        (not dataset, [COMPACT_EMBEDDINGS], "the rows are no data set without a transform"),
        (not pads_alone, [COMPACT_EMBEDDINGS], "the data_collator may add tokens"),
        (args.neftune_noise_alpha, [COMPACT_EMBEDDINGS], "NEFTune adds noise to the whole table's output"),
        (parts.own_optimizer, [COMPACT_EMBEDDINGS], "the optimizer may move unused rows"),
        (args.optim not in _STILL_WITHOUT_GRADIENT, [COMPACT_EMBEDDINGS], "the optimizer may move unused rows"),
        (args.weight_decay or args.anchor_weight, [COMPACT_EMBEDDINGS], "a decay or an anchor moves unused rows"),
        (callbacks, [COMPACT_EMBEDDINGS], f"{callbacks} may read the whole table"),
        (methods, [COMPACT_EMBEDDINGS], f"{methods} may read the whole table"),
    ]
    rules += [
        (not args.cuda_graphs, [CUDA_GRAPHS], "cuda_graphs is off"),
        (parts.sharded or args.world_size > 1, [CUDA_GRAPHS], "there are several processes"),
        # A recorded backward pass writes its gradients where those of the micro-batch before are.
        (args.gradient_accumulation_steps > 1, [CUDA_GRAPHS], "gradients are accumulated"),
        (args.auto_find_batch_size, [CUDA_GRAPHS], "gradients may be accumulated later"),
        (args.torch_compile, [CUDA_GRAPHS], "the student is compiled"),
        (args.gradient_checkpointing, [CUDA_GRAPHS], "layers are computed again"),
        (args.neftune_noise_alpha is not None, [CUDA_GRAPHS], "NEFTune adds noise to the embeddings"),
        (callbacks and not user_vouches, [CUDA_GRAPHS], f"{callbacks} may change what a step does"),
        (methods and not user_vouches, [CUDA_GRAPHS], f"{methods} may change what a step does"),
        (not can_be_recorded(parts.student), [CUDA_GRAPHS], "the student's family or a hook may wait for the GPU"),
        (not lean or attention not in ("sdpa", CAPTURING_SDPA), [CUDA_GRAPHS], "its attention waits for the GPU"),
    ]
    refused: dict[str, str] = {}
    for holds, names, reason in rules:
        refused |= {name: reason for name in names if holds and name not in refused}
    return refused


def describe_refusals(refused: Mapping[str, str]) -> list[str]:
    """Describe which speed-ups a training does without, and why.

    Args:
        refused: by `refused_speed_ups`.

    Returns:
        A phrase for each reason.
    """
    without: dict[str, list[str]] = {}
    for name, reason in refused.items():
        without.setdefault(reason, []).append(name)
    return [f"no {' and no '.join(names)} ({reason})" for reason, names in without.items() if reason]


def _reads_once(args: DistillationConfig, rows: int) -> bool:
    """Check whether no row is read again, be it by another training, for which a folder of outputs is named."""
    step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    epochs = args.max_steps * step / rows if args.max_steps > 0 else args.num_train_epochs
    return epochs < 1 or (epochs == 1 and args.teacher_cache_dir is None)


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
        self.changes: dict[str, Change] = {}

    def begin(self, parts: TrainingParts, refused: Mapping[str, str], special_ids: Sequence[int]) -> list[str]:
        """Change the student in place, where the training allows it; once, until `end`.

        Args:
            parts: of a training that is about to make its optimizer.
            refused: speed-ups that it can't have, by `refused_speed_ups`.
            special_ids: token ids to train whether the rows have them or not.

        Returns:
            The names of the speed-ups that the student now has.
        """
        student, log = parts.student, parts.args.should_log
        makers: dict[str, Callable[[], Change | None]] = {
            FIRST_TOKEN: lambda: first_token_only(student),
            QUICK_DROPOUT: lambda: QuickDropouts(student),
            OWN_ATTENTION: lambda: OwnAttention(without_adapter(student)),
            COMPACT_EMBEDDINGS: lambda: compact_training(student, parts.rows, special_ids, log=log),
            CUDA_GRAPHS: lambda: CudaGraphs(parts.loss),
        }
        for name, make in makers.items() if not self.changes else ():
            if name not in refused and (change := make()) is not None:
                self.changes[name] = change
        return list(self.changes)

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Let an optimizer of the changed student save and load the state of the whole one, and record its steps."""
        for change in self.changes.values():
            if isinstance(change, (CompactTraining, CudaGraphs)):
                change.follow(optimizer)

    @property
    def clipping(self) -> RecordedClipping | None:
        """What clips the gradients by a recording; None where nothing does."""
        graphs = self.changes.get(CUDA_GRAPHS)
        return graphs.clipping if isinstance(graphs, CudaGraphs) else None

    def end(self) -> None:
        """Undo all changes, the last first, even if one fails."""
        with ExitStack() as ends:
            for change in self.changes.values():
                ends.callback(change.end)
            self.changes = {}


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
            quick: Any = self.model.get_submodule(name)
            # A callback may have changed how much is dropped.
            each.p, each.training = quick.p, quick.training
            self.model.set_submodule(name, each)

"""The loss of a training: its objectives weighed together, and a loss function of the user's own beside them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from nlpkd.config import DistillationConfig
from nlpkd.data.columns import TEACHER_LOGITS
from nlpkd.data.labels.classes import Classes
from nlpkd.data.rows import (
    has_unlabelled,
    is_plain,
    random_access,
    refuse_splits,
    sample_of_classes,
    sample_rows,
    unlabelled_rows,
    visible_columns,
)
from nlpkd.data.tokenization import TeacherTokenizers, refuse_paths
from nlpkd.models.capture import Capture, CapturedOutput
from nlpkd.models.ensemble import TeacherEnsemble
from nlpkd.models.inference import in_eval_mode, placement
from nlpkd.objectives import CrossEntropyLoss, Objective
from nlpkd.objectives.contract import refuse_broken_loss, refuse_other_objectives
from nlpkd.objectives.idle import refuse_no_weight, tell_idle_smoothing
from nlpkd.objectives.loss_function import LossFunction
from nlpkd.objectives.objective_set import ObjectiveSet
from nlpkd.objectives.presets import resolve
from nlpkd.tasks import SINGLE_LABEL, task_of
from nlpkd.teachers.checks import checked_rows, settle_unnamed_head
from nlpkd.teachers.compatibility import (
    refuse_no_classifier,
    refuse_reentrant_checkpointing,
    refuse_shared_weights,
)
from nlpkd.teachers.signals import TeacherSignals
from nlpkd.utils.object_hashes import is_foreign

_TRIED_ROWS = 8
"""Rows of the batch that a student is tried on."""


def refuse_other_kinds(
    objectives: Any, rows: Any, evaluation_rows: Any, augment: str | None = None, tokenizer: Any = None
) -> None:
    """Refuse arguments of a trainer that are of another kind than it takes, with what to give instead.

    Args:
        objectives: a sequence of them, or None.
        rows: the training rows.
        evaluation_rows: likewise, or several by name.
        augment: the setting; whoever made more rows by it gives rows without labels too.
        tokenizer: the student's, or None.

    Raises:
        ValueError: for a preset's name, a single objective, a class, for splits in place of one split's rows, for
            `augment` where nobody made rows by it, and for a tokenizer's name.
    """
    refuse_paths(tokenizer)
    if objectives is not None:
        refuse_other_objectives(objectives)
    refuse_splits(rows, "train_dataset")
    refuse_splits(evaluation_rows, "eval_dataset", mapping=True)
    if augment is not None and not (is_plain(rows) and "labels" in rows.column_names and has_unlabelled(rows)):
        raise ValueError(
            f"augment={augment!r} is for nlpkd.distill, and the trainer learns from its train_dataset as it is: make "
            "the rows with nlpkd.augment.augment, and leave augment out"
        )


def default_objectives(has_teacher: bool, problem_type: str | None) -> list[Objective]:
    """Choose objectives where none are given: gold labels, with a teacher its soft targets in equal parts."""
    return resolve("hinton", problem_type)[0].objectives if has_teacher else [CrossEntropyLoss()]


class DistillationLoss:
    """The weighted sum of total / count over all objectives, on what student and teacher give for a micro-batch.

    Attributes:
        objectives: bound to student and teacher.
        student: runs the student, and keeps what the objectives read of it.
        signals: where the teacher's outputs come from.
        recorded: runs a micro-batch in another way than `run`, or returns None where it can't; None: always `run`.

    Args:
        student: the model to train.
        teacher: a model, an ensemble, or None where the data bring a teacher's outputs along or nothing reads them.
        objectives: what to train on. They start anew, with parameters that fit the pair; settings stay as they are.
        own: `compute_loss_func` of `Trainer`, which is called with the student's logits, the labels and the number of
            labelled rows, and added with weight 1; None without one.
        args: the settings.
        tokenizer: the student's.
        teacher_tokenizer: the teacher's where it is another one; of an ensemble a list.
        rows: the training rows, of any kind; None where there are none.
        classes: the student's, in the order of its logits; None where nothing names them.
        autocast: makes the context that the teacher runs in.

    Raises:
        ValueError: if student, teacher, tokenizers, columns and objectives do not fit together.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        objectives: Sequence[Objective],
        own: Callable[..., Tensor] | None,
        args: DistillationConfig,
        *,
        tokenizer: PreTrainedTokenizerBase | None,
        teacher_tokenizer: TeacherTokenizers,
        rows: Any,
        classes: Classes | None,
        autocast: Callable[[], AbstractContextManager],
    ):
        self.own = None if own is None else LossFunction(own)
        self.device = args.device
        self.batch_size, self.seed = args.eval_batch_size, args.seed
        self.recorded: Callable[[nn.Module, Mapping[str, Any]], tuple[Tensor, Tensor, CapturedOutput] | None] | None
        self.recorded = None
        for objective in objectives:
            if isinstance(objective, CrossEntropyLoss):
                objective.smooth_by_run(args.label_smoothing_factor)
        self.objectives = ObjectiveSet(objectives, args.weighting)
        self.objectives.refuse_few_rows(args.train_batch_size)
        if own is None:
            refuse_no_weight(self.objectives.members)
        tell_idle_smoothing(self.objectives.members, args.label_smoothing_factor)
        self.task = task_of(getattr(student, "config", None)) or SINGLE_LABEL
        # A teacher, where one is needed
        columns = visible_columns(rows)
        self.has_teacher = teacher is not None
        self.refuse_untaught(columns)
        if teacher is not None:
            refuse_shared_weights(student, teacher)
        # Parameters that fit the pair
        theirs: Any = getattr(teacher, "config", None)
        if isinstance(teacher, TeacherEnsemble):
            theirs = [getattr(member, "config", None) for member in teacher.members]
        config = getattr(student, "config", None)
        told = _told_labels(rows, columns, classes) if config is None else None
        for objective in self.objectives:
            objective.num_labels = told
        self.objectives.bind(config, theirs, args.seed)
        self.objectives.to(args.device)
        # Both models give the layers that the objectives read.
        student_layers, teacher_layers = self.objectives.required_layers()
        refuse_reentrant_checkpointing(args, student_layers)
        self.student = Capture(student, student_layers, "student")
        match_tokens = self.objectives.match_tokens
        self.signals = TeacherSignals(
            teacher,
            student,
            teacher_layers,
            match_tokens,
            tokenizer,
            teacher_tokenizer,
            columns,
            classes,
            args.device,
            autocast,
        )

    def refuse_untaught(self, columns: Collection[str]) -> None:
        """Refuse rows without a teacher's logits where an objective reads them and there is no teacher.

        Args:
            columns: of the rows, empty if unknown.

        Raises:
            ValueError: with the names of the objectives.
        """
        needing = self.objectives.need_teacher
        if not self.has_teacher and needing and columns and TEACHER_LOGITS not in columns:
            raise ValueError(
                f"{', '.join(needing)} need a teacher: pass teacher_model, or data with a column {TEACHER_LOGITS!r}"
            )

    def check_student(
        self, student: nn.Module, rows: Any, collate: Callable[[list[Any]], Any], unnamed: bool = False
    ) -> None:
        """Refuse a student that does not take a batch of the rows, or gives no logits of the right number.

        Args:
            student: where it will be trained.
            rows: the training rows, of any kind; None is passed.
            collate: makes a batch of them.
            unnamed: whether its labels had no names before these rows gave them: then gold labels tell the order of
                its head, see `nlpkd.teachers.checks.settle_unnamed_head`.

        Raises:
            ValueError: see `nlpkd.teachers.compatibility.refuse_no_classifier`; or if an objective or loss function
                of somebody's own gives something else than a number that a student can learn from.
        """
        sample = None if rows is None else sample_rows(random_access(rows, _TRIED_ROWS), _TRIED_ROWS)
        if not sample:
            return
        learned = self.objectives.need_teacher or self.own is not None or "labels" not in sample.column_names
        if not learned and is_plain(rows) and unlabelled_rows(rows).all():
            raise ValueError(
                "no training row has a gold label, and no objective reads a teacher, so nothing would be learned: "
                "pass teacher_model, or rows with labels"
            )
        device = placement(student)[0]
        batch = collate([sample[number] for number in range(len(sample))])
        batch = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
        labels = getattr(getattr(student, "config", None), "num_labels", None)
        if labels is None and TEACHER_LOGITS in batch:
            labels = batch[TEACHER_LOGITS].shape[1]
        elif labels is None and self.signals.live is not None:
            labels = self.signals.live.outputs(batch).logits.shape[1]
        try:
            refuse_no_classifier(student, self.student, batch, labels)
        except (RuntimeError, IndexError) as error:
            told = self.signals.too_long(rows, "training")
            raise (ValueError(told) if told else error) from error
        foreign: list[Objective | LossFunction] = [each for each in self.objectives if is_foreign(type(each))]
        if self.own is not None:
            foreign.append(self.own)
        if foreign:
            teacher = self.signals.outputs(batch) if self.objectives.need_teacher else None
            with torch.no_grad(), in_eval_mode(student):
                outputs = self.student(student, batch)
            for objective in foreign:
                refuse_broken_loss(objective, outputs, teacher, batch)
        if unnamed:
            some = sample_of_classes(rows, checked_rows(labels or 1))
            run = partial(self.student, student)
            settle_unnamed_head(student, run, some, collate, self.batch_size, device, self.seed)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Have the objectives in eval mode and at the end of their schedules for a while, as the student is evaluated.

        Yields:
            Nothing.
        """
        with self.objectives.at_the_end(), in_eval_mode(nn.ModuleList(self._modules())):
            yield

    @contextmanager
    def tried(self) -> Iterator[None]:
        """Let copies in eval mode stand for the objectives for a while, since some remember what they have seen.

        Yields:
            Nothing.
        """
        kept = self.objectives, self.own
        with in_eval_mode(nn.ModuleList(self._modules())):
            # What can't be copied, such as a result that is kept with its graph, is tried itself.
            with suppress(Exception):
                self.objectives, self.own = copy.deepcopy(kept)
            try:
                yield
            finally:
                self.objectives, self.own = kept

    def _modules(self) -> list[nn.Module]:
        return [self.objectives, *([] if self.own is None else [self.own])]

    @property
    def names(self) -> list[str]:
        """The parts by name."""
        return self.objectives.names + ["compute_loss_func"] * (self.own is not None)

    def let_ddp_find_unused(self, ddp: Any, asked: bool | None) -> None:
        """Let DDP look for weights without gradients where nothing reads the student's logits.

        With activation checkpointing Trainer takes all weights for used, and DDP would wait for those of the head.

        Args:
            ddp: Accelerate's settings of DDP, changed in place; None without any.
            asked: `ddp_find_unused_parameters`, which is followed where it is set.
        """
        reads_logits = self.own is not None or any("logits" in objective.needs for objective in self.objectives)
        if ddp is not None and asked is None and not reads_logits:
            ddp.find_unused_parameters = True

    def choices(self, student: Any, columns: Sequence[str]) -> list[str]:
        """Describe what decides about speed: the student's attention, and where the teacher's outputs come from."""
        attention = getattr(getattr(student, "config", None), "_attn_implementation", None) or "no"
        teacher = self.signals.describe(columns) if self.objectives.need_teacher else "no teacher"
        return [f"{attention} attention", teacher]

    def counts(self, batch: Mapping[str, Any]) -> Tensor:
        """Count what each part's mean runs over in a collated batch: `(parts,)`."""
        counts = self.objectives.counts(batch) if len(self.objectives) else torch.zeros(0, device=self.device)
        if self.own is not None:
            counts = torch.cat([counts, self.own.count(batch)[None]])
        return counts

    def on(
        self, model: nn.Module, batch: Mapping[str, Any], counts: Tensor | None = None
    ) -> tuple[Tensor, Tensor, CapturedOutput]:
        """Run both models on a micro-batch and compute the loss.

        Args:
            model: the student, wrapped for training.
            batch: the collated batch.
            counts: of each part over the whole optimizer step, `(parts,)`; None for the mean over this batch.

        Returns:
            The loss and its parts, as `__call__` returns them, and the student's outputs.
        """
        self.refuse_untaught(batch.keys())
        teacher = self.signals.outputs(batch) if self.objectives.need_teacher else None
        inputs = {"batch": batch, "teacher": teacher, "counts": counts}
        if self.recorded is not None and counts is not None:
            tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
            found = self.recorded(model, inputs | {"batch": tensors})
            if found is not None:
                return found
        student = self.student(model, batch)
        return (*self(student, teacher, batch, counts), student)

    def run(self, model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor, CapturedOutput]:
        """Run the student on a micro-batch and compute the loss, given the teacher's outputs.

        Args:
            model: the student, wrapped for training.
            inputs: `batch`, `teacher` and `counts`; see `__call__`.

        Returns:
            The loss, its parts, and of the student's outputs the logits, both without a gradient.
        """
        student = self.student.run(model, self.student.inputs(inputs["batch"]))
        loss, parts = self(student, inputs["teacher"], inputs["batch"], inputs["counts"])
        return loss, parts.detach(), CapturedOutput(logits=student.logits.detach())

    def __call__(
        self,
        student: CapturedOutput,
        teacher: CapturedOutput | None,
        batch: Mapping[str, Any],
        counts: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute the loss on one micro-batch.

        Args:
            student: the student's outputs.
            teacher: the teacher's, if the objectives need them.
            batch: the collated batch.
            counts: of each part over the whole optimizer step, `(parts,)`; None for the mean over this batch.

        Returns:
            The weighted sum, a scalar, and the parts unweighted, `(parts,)`.
        """
        counts = self.counts(batch) if counts is None else counts
        of_objectives = counts[: len(self.objectives)]
        parts = self.objectives.parts(student, teacher, batch, of_objectives)
        loss: Any = self.objectives.weigh(parts, batch, of_objectives)
        if self.own is not None:
            parts.append(self.own.value(student, batch, counts[-1]))
            loss = loss + parts[-1]
        return loss, torch.stack(parts)


def _told_labels(rows: Any, columns: Collection[str], classes: Classes | None) -> int | None:
    """Count the labels by a teacher's logits that are kept with the rows, or by the names of the classes."""
    if TEACHER_LOGITS in columns and (first := sample_rows(random_access(rows, 1), 1)):
        return len(first[0][TEACHER_LOGITS])
    return None if classes is None else len(classes)

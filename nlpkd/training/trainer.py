"""The Trainer with a teacher and a list of objectives."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from nlpkd.config import DistillationConfig
from nlpkd.data.collator import DistillationCollator
from nlpkd.data.columns import DOCUMENT, TEACHER_LOGITS
from nlpkd.data.label_names import adopt_label_names
from nlpkd.data.rows import visible_columns
from nlpkd.data.tokenization import TeacherTokenizers, per_teacher, with_usual_padding
from nlpkd.models.ensemble import TeacherEnsemble, as_one_teacher
from nlpkd.models.structure import as_student, refuse_untrained
from nlpkd.objectives import Objective
from nlpkd.objectives.l2_sp import Anchor
from nlpkd.objectives.objective_set import with_settings
from nlpkd.tasks import task_of
from nlpkd.training.batches.loaders import ROWS
from nlpkd.training.checkpoints import describe_own_parts, describe_run
from nlpkd.training.evaluating import EvaluationLoss
from nlpkd.training.failures import explain_out_of_memory
from nlpkd.training.fitted import Fitted, fitted
from nlpkd.training.loss import DistillationLoss, default_objectives, refuse_other_kinds
from nlpkd.training.loss_log import LossAccumulator
from nlpkd.training.publishing import describe_training, measure_for_card
from nlpkd.training.rehearsal import rehearse
from nlpkd.training.search import SearchingTrainer
from nlpkd.training.speed.cuda_graphs import length_multiple
from nlpkd.training.speed.lean import (
    CACHED_TEACHER,
    LeanTraining,
    TrainingParts,
    describe_refusals,
    overridden_methods,
    refused_speed_ups,
)
from nlpkd.training.speed.recorded_steps import recordable
from nlpkd.utils.randomness import random_state_kept

logger = logging.getLogger(__name__)


class DistillationTrainer(SearchingTrainer):
    """A `transformers.Trainer` that trains a student on objectives, with a teacher.

    Args:
        model: the student: a model for sequence classification, or any module that returns logits.
        teacher_model: the teacher, or a list of teachers, which are averaged
            (`nlpkd.models.ensemble.TeacherEnsemble`); None where the data have a column `teacher_logits`, or no
            objective needs one.
        args: the settings.
        objectives: what to train on; gold labels and soft targets in equal parts by default, gold labels alone without
            a teacher.
        train_dataset: tokenised rows with `labels`; see `nlpkd.load_text_classification`.
        eval_dataset: the same, or a dict of them.
        processing_class: the student's tokenizer.
        teacher_processing_class: the teacher's, where it is another one; the data then have `teacher_input_ids`, ...
            Where the student's is a trimmed form of it, objectives that match token with token give the teacher the
            student's tokens. Of several teachers a list, with None where it is the student's.
        data_collator: `nlpkd.data.collator.DistillationCollator` by default.
        compute_metrics: those of the task by default (`nlpkd.evaluation.scoring`); the agreement with the teacher is
            added either way.
        **trainer_arguments: all other arguments of `Trainer`. A `compute_loss_func` is added to the objectives.

    Raises:
        ValueError: if student, teacher, tokenizers, data and objectives do not fit together.
    """

    rehearsed_beside: Callable[[Path], None] | None = None
    """What the next training tries too before its first step; see `nlpkd.training.rehearsal.rehearse`."""

    same_start = False
    """Whether a run that starts from other weights is another one; a checkpoint is resumed from by its path then."""

    # Totals are divided by the counts of the whole optimizer step.
    loss_is_scaled_for_ga = True

    teacher_model = fitted("teacher_model", lambda trainer: trainer._teacher)
    teacher_processing_class = fitted("teacher_processing_class", lambda trainer: trainer._teacher_tokenizer)
    objectives = fitted("objectives", lambda trainer: trainer._loss.objectives)

    def __init__(
        self,
        model: nn.Module | None = None,
        teacher_model: nn.Module | Sequence[nn.Module] | None = None,
        args: DistillationConfig | None = None,
        objectives: Sequence[Objective] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        teacher_processing_class: TeacherTokenizers = None,
        data_collator: Any = None,
        compute_metrics: Any = None,
        **trainer_arguments: Any,
    ):
        args = DistillationConfig(output_dir="trainer_output") if args is None else args
        if not isinstance(args, DistillationConfig):
            raise ValueError(
                f"args must be a DistillationConfig, got {type(args).__name__}: it takes the same arguments"
            )
        refuse_other_kinds(objectives, train_dataset, eval_dataset, args.augment, processing_class)
        if objectives is not None and len(objectives) == 0 and "compute_loss_func" not in trainer_arguments:
            raise ValueError("objectives is empty: give at least one, such as [ForwardKLLoss()], or leave it out")
        teacher = as_one_teacher(teacher_model, args.ensemble_weights, args.ensemble_average)
        if teacher is not None:
            own = per_teacher(teacher_processing_class, len(teacher) if isinstance(teacher, TeacherEnsemble) else 1)
            teacher_processing_class = own if isinstance(teacher, TeacherEnsemble) else own[0]
        if isinstance(processing_class, PreTrainedTokenizerBase):
            processing_class = with_usual_padding(processing_class)
        if data_collator is None and isinstance(processing_class, PreTrainedTokenizerBase):
            data_collator = DistillationCollator(
                processing_class, teacher_processing_class, length_multiple(args.device)
            )
        super().__init__(
            model=None if model is None else as_student(model),
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **trainer_arguments,
        )
        self._teacher, self._teacher_tokenizer = teacher, teacher_processing_class
        unnamed = adopt_label_names(getattr(self.model, "config", None), self.train_dataset, self.eval_dataset)
        task = task_of(getattr(self.model, "config", None))
        if objectives is None:
            taught = teacher is not None or TEACHER_LOGITS in self._columns
            objectives = [] if self.compute_loss_func is not None else default_objectives(taught, task)
        self._given_objectives = list(objectives)
        self._lean = LeanTraining()
        # Why the teacher is not run once for the next training; None where it is.
        self._live_since: str | None = None
        self._own_parts = describe_own_parts(self.compute_loss_func, self.optimizer, self.optimizer_cls_and_kwargs)
        self._measure_by(compute_metrics)
        self.connect(unnamed)

    def connect(self, unnamed: bool = False) -> None:
        """Fit student, teacher, data and objectives together: at first, and for every student of `model_init`."""
        args, student = self.args, self.model
        config = getattr(student, "config", None)
        # Label ids are the student's; one that is unnamed takes the names of its labels from the data.
        unnamed |= adopt_label_names(config, self.train_dataset, self.eval_dataset)
        self.train_dataset = self._aligned(self.train_dataset, "training")
        self.eval_dataset = self._aligned(self.eval_dataset, "evaluation")
        # Objectives start anew, and both models give what they read.
        objectives = self._given_objectives
        if self.trial_settings:
            objectives = with_settings(objectives, self.trial_settings)
        self._loss = DistillationLoss(
            student,
            self.teacher_model,
            objectives,
            self.compute_loss_func,
            args,
            tokenizer=self.processing_class,
            teacher_tokenizer=self.teacher_processing_class,
            rows=self.train_dataset,
            classes=self.classes,
            autocast=self.accelerator.autocast,
        )
        self._evaluation = EvaluationLoss(self._loss, self.accelerator, args.logging_nan_inf_filter)
        self._student, self._signals = self._loss.student, self._loss.signals
        self._loss.let_ddp_find_unused(self.accelerator.ddp_handler, args.ddp_find_unused_parameters)
        # The columns to collate are known with what both models read.
        self._signature_columns = None
        self._set_signature_columns_if_needed()
        collate = self._get_collator_with_removed_columns(self.data_collator)
        with random_state_kept():
            rows, size = self.train_dataset, args.eval_batch_size
            copied = self._signals.check(rows, collate, size, config, args.teacher_check, args.seed)
            if not self._sharded:
                self._loss.check_student(student, rows, collate, unnamed and not copied)
        # The pull towards the start, and what is logged
        self._anchor = Anchor(student, args.anchor_weight) if args.anchor_weight else None
        if self._anchor is not None and self._sharded:
            raise ValueError("anchor_weight needs whole weights on every process, which DeepSpeed and FSDP split up")
        names = self._loss.names + ["anchor"] * (self._anchor is not None)
        self.losses = LossAccumulator(names, self.accelerator, args.device)
        self._fitted = Fitted.of(self)

    @property
    def teacher_order(self) -> list[int] | None:
        """The index that a live teacher gives each of the student's labels; None where it is the student's own.

        The teachers of an ensemble have orders of their own, which `teacher_model` knows.
        """
        return self._signals.order

    @property
    def _columns(self) -> list[str]:
        return visible_columns(self.train_dataset)

    @property
    def _sharded(self) -> bool:
        return self.is_deepspeed_enabled or self.is_fsdp_enabled

    def _parts(self) -> TrainingParts:
        return TrainingParts(
            self.args,
            self.model,
            self._loss,
            self.train_dataset,
            self.data_collator,
            self.processing_class,
            # A model_init's trainer makes its optimizer anew.
            own_optimizer=bool(self.optimizer_cls_and_kwargs or (self.optimizer and self.model_init is None)),
            callbacks=self.callback_handler.callbacks,
            overridden=overridden_methods(type(self), DistillationTrainer),
            sharded=self._sharded,
        )

    # Data

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the union of what student, teacher and objectives read."""
        if self._signature_columns is not None:
            return
        super()._set_signature_columns_if_needed()
        extra = {"labels", DOCUMENT} | self._signals.columns
        columns: Any = self._signature_columns
        self._signature_columns = columns + sorted(extra - set(columns))

    def _update_auto_batch_size(self, batch_size: int) -> None:
        self.objectives.refuse_few_rows(batch_size)
        super()._update_auto_batch_size(batch_size)

    # Training

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Rehearse, and run the teacher once where its logits suffice; at the end undo what `LeanTraining` changed.

        Yields:
            Nothing.
        """
        if self.model is not None:
            refuse_untrained(as_student(self.model), self.optimizer if self.model_init is None else None)
        self.objectives.refuse_rebound()
        self._fitted.refuse_changed(self)
        self.follow_assigned_metrics()
        # Other rows may have been assigned since the constructor aligned what it was given.
        self.train_dataset = self._aligned(self.train_dataset, "training")
        self._loss.refuse_untaught(self._columns)
        # The teacher may have been given hooks or other modules since it was last run.
        self._signals.release()
        if self.args.rehearsal and self.model is not None and not self._sharded:
            with explain_out_of_memory(self.args):
                rehearse(self, self.rehearsed_beside)
            self.rehearsed_beside = None
        self._live_since = refused_speed_ups(self._parts()).get(CACHED_TEACHER)
        if self._live_since is None:
            # The column is of this teacher and these rows as they are now: another training finds it on the disk.
            self._completed = self.train_dataset, self._signals.run_once(self.train_dataset, self.args)
        try:
            yield
        finally:
            self._completed = None, None
            self._lean.end()
            if not self._sharded:
                # Accelerate leaves the model's forward in mixed precision, in which it would then be measured.
                student = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
                self.model = self.model_wrapped = student

    def describe_run(self) -> dict[str, Any]:
        """Describe what the result depends on; see `nlpkd.training.checkpoints.describe_run`."""
        rows: Any = (self.train_dataset, self._signature_columns)
        made: Any = {"own_parts": self._own_parts, "same_start": self.same_start, "held_out": self.eval_dataset}
        made["metrics"] = self._metrics.compute_metrics
        return describe_run(self.args, self.model, self.teacher_model, self.objectives, *rows, **made)

    # Loss

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """Collect the micro-batches of an optimizer step, and count what each objective's mean runs over in it."""
        self.losses.set_step(self.state.global_step)
        self.objectives.zero_grad()
        self.objectives.set_progress(self.state.global_step / max(1, self.state.max_steps))
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        counts = torch.stack([self._loss.counts(self._prepare_inputs(batch)) for batch in batches]).sum(dim=0)
        return batches, self.accelerator.reduce(counts, "sum")

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Sum the objectives on one micro-batch.

        Args:
            model: the student, wrapped for training.
            inputs: the collated batch.
            return_outputs: return the student's outputs too.
            num_items_in_batch: count of each objective over the whole optimizer step, `(objectives,)`; None for the
                mean over this batch.

        Returns:
            The weighted sum of total / count, times the number of processes while training, since gradients are
            averaged over them; with `return_outputs`, beside the student's outputs.
        """
        loss, parts, student = self._loss.on(model, inputs, num_items_in_batch)
        if num_items_in_batch is not None:
            self.losses.add(parts.detach(), inputs.get(ROWS))
            loss = loss * self.accelerator.num_processes
        return (loss, student) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Do forward and backward on one micro-batch, and average the objectives' gradients at the step's last."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.num_processes > 1 and self.accelerator.sync_gradients:
            self.objectives.average_gradients(self.accelerator)
        if self._anchor is not None and self.accelerator.sync_gradients:
            scaler = self.accelerator.scaler
            penalty = self._anchor.pull(1.0 if scaler is None else scaler.get_scale())
            # Every process pulls alike, and the parts are summed over processes.
            self.losses.add_last(penalty / self.accelerator.num_processes)
        return loss

    # Optimizer

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        parts = self._parts()
        # The cache was decided on before.
        refused = refused_speed_ups(parts) | {CACHED_TEACHER: self._live_since or ""}
        choices = [*self.args.choices(), *self._loss.choices(self.model, visible_columns(self._rows_to_train))]
        choices += self._lean.begin(parts, refused, getattr(self.processing_class, "all_special_ids", []))
        if self.is_world_process_zero():
            logger.warning("Training with %s.", ", ".join([*choices, *describe_refusals(refused)]))
        return super()._prepare_for_training(*args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimizer, with groups of their own for the objectives' parameters."""
        optimizer = super().create_optimizer(model)
        self.objectives.join(optimizer, self.args, self.lr_scheduler)
        return optimizer

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        # Called between optimizer and schedule, and no hook for users: `create_optimizer` may be one's own.
        if training and self.optimizer is not None:
            self.objectives.join(self.optimizer, self.args, self.lr_scheduler)
            self._lean.follow(self.optimizer)
        return super()._wrap_model(model, training, dataloader)

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: Any, model: Any = None) -> tuple[Any, Any]:
        """Choose the optimizer's class and settings; see `Trainer`."""
        return recordable(*SearchingTrainer.get_optimizer_cls_and_kwargs(args, model), args.device)

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        if self._lean.clipping is not None and self.accelerator.scaler is None:
            return self._lean.clipping(self.args.max_grad_norm)
        if not (parameters := self.objectives.trained()):
            return super()._clip_grad_norm(model)
        return self.accelerator.clip_grad_norm_([*model.parameters(), *parameters], self.args.max_grad_norm)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with each objective's mean since the last time as `loss/NAME`, and weights that move."""
        if "loss" in logs and self.args.weighting != "fixed":
            logs |= {f"weight/{name}": factor for name, factor in self.objectives.factors().items()}
        super().log(logs, start_time)

    # Checkpoints

    def save_beside(self, checkpoint: Path) -> None:
        """Write the objectives' own parameters into a checkpoint."""
        self.objectives.save(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self._anchor is not None:
            self._anchor.hold()
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.objectives.load(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self.objectives.load(str(self.state.best_model_checkpoint))

    # Hub

    def card_measurement(self) -> Callable[[], Any]:
        """Make what measures the student for its card."""
        return partial(
            measure_for_card,
            self.model,
            self.teacher_model,
            self.eval_dataset,
            self.processing_class,
            self.teacher_processing_class,
            self.teacher_order,
            describe_training(self.args, self.objectives, self.teacher_model, self.state.global_step),
        )

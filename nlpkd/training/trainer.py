"""The Trainer with a teacher and a list of objectives."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, SequentialSampler
from transformers import EvalPrediction, PreTrainedTokenizerBase, Trainer
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.trainer_utils import EvalLoopOutput, HubStrategy, TrainOutput, has_length
from transformers.utils import PushInProgress

from nlpkd.config import DistillationConfig
from nlpkd.data.collator import DistillationCollator
from nlpkd.data.columns import TEACHER_LOGITS
from nlpkd.data.label_names import adopt_label_names, align_labels_to_student
from nlpkd.data.rows import makes_batches
from nlpkd.data.tokenization import TeacherTokenizers, per_teacher
from nlpkd.data.windows import DOCUMENT, average_windows, one_row_a_document
from nlpkd.evaluation.scoring import scoring_of
from nlpkd.models.capture import Capture, CapturedOutput
from nlpkd.models.ensemble import TeacherEnsemble, as_one_teacher
from nlpkd.objectives import CrossEntropyLoss, Objective
from nlpkd.objectives.objective_set import ObjectiveSet
from nlpkd.objectives.presets import resolve
from nlpkd.tasks import UNLABELLED, task_of
from nlpkd.teachers.compatibility import refuse_reentrant_checkpointing, refuse_shared_weights
from nlpkd.teachers.signals import Teaching
from nlpkd.training.checkpoints import describe_run, sealed, whole_checkpoint
from nlpkd.training.compact_embeddings import CompactTraining
from nlpkd.training.dataloaders import ROWS, micro_batches, row_lengths, sampled_loader, training_loader
from nlpkd.training.failures import among_processes, within_memory
from nlpkd.training.interruption import SaveOnSigterm
from nlpkd.training.l2_sp import Anchor
from nlpkd.training.lean import Change, changes_for_training, end_training
from nlpkd.training.loss_log import LossWindow
from nlpkd.training.publishing import card_facts, push, push_checkpoint, write_card
from nlpkd.utils.files import atomic_model_update, refuse_damaged
from nlpkd.utils.locks import only_writer

logger = logging.getLogger(__name__)


class DistillationTrainer(Trainer):
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
            student's tokens.
            Of several teachers a list, with None where it is the student's.
        data_collator: `nlpkd.data.collator.DistillationCollator` by default.
        compute_metrics: those of the task by default (`nlpkd.evaluation.scoring`); the agreement with the teacher is
            added either way.
        **trainer_arguments: all other arguments of `Trainer`. A `compute_loss_func` is added to the objectives.

    Raises:
        ValueError: if student, teacher, tokenizers, data and objectives do not fit together.
    """

    args: DistillationConfig
    model: Any
    objectives: Any
    _signature_columns: Any
    _preprocess_logits: Any
    hp_space: Any = None
    run_record: Any = None
    _step_rows: int | None = None
    _checkpoint: Path | None = None
    _documents: Any = None
    push_in_progress: Any
    processing_class: Any
    teacher_processing_class: Any
    # Totals are divided by the counts of the whole optimizer step.
    loss_is_scaled_for_ga = True

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
        if objectives is not None and len(objectives) == 0 and "compute_loss_func" not in trainer_arguments:
            raise ValueError("objectives is empty: give at least one, such as [ForwardKLLoss()], or leave it out")
        teacher = as_one_teacher(teacher_model, args.ensemble_weights, args.ensemble_average)
        if teacher is not None:
            own = per_teacher(teacher_processing_class, len(teacher) if isinstance(teacher, TeacherEnsemble) else 1)
            teacher_processing_class = own if isinstance(teacher, TeacherEnsemble) else own[0]
        if data_collator is None and isinstance(processing_class, PreTrainedTokenizerBase):
            data_collator = DistillationCollator(processing_class, teacher_processing_class)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **trainer_arguments,
        )
        self._interruption = SaveOnSigterm()
        self.add_callback(self._interruption)
        self.teacher_model = teacher
        self.teacher_processing_class = teacher_processing_class
        given = self._default_objectives() if objectives is None else objectives
        # Binding happens in place, and every trial of a search starts from objectives that are not bound.
        self._unbound = copy.deepcopy(list(given)) if self.model_init is not None else []
        self._take(given, {})
        self._metrics = compute_metrics
        self._scoring = scoring_of(task_of(getattr(self.model, "config", None)))
        if compute_metrics is None and not self.args.batch_eval_metrics:
            self._metrics = self._default_metrics
        self.compute_metrics = None if self._metrics is None else self._compute_metrics
        self._preprocess_logits = self.preprocess_logits_for_metrics
        if self._preprocess_logits is not None:
            self.preprocess_logits_for_metrics = self._preprocess_predictions
        self._follow_labels()
        self._connect()
        self._set_signature_columns_if_needed()
        self._anchor = Anchor(self.model, self.args.anchor_weight) if self.args.anchor_weight else None
        if self._anchor is not None and (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            raise ValueError("anchor_weight needs whole weights on every process, which DeepSpeed and FSDP split up")
        more = ["compute_loss_func"] * (self.compute_loss_func is not None) + ["anchor"] * (self._anchor is not None)
        self._window = LossWindow(self.objectives.names + more, self.accelerator, self.args.device)
        self._changes: list[Change] = []

    def _take(self, objectives: Sequence[Objective], tuned: dict[str, Any]) -> None:
        self.objectives = ObjectiveSet(objectives, self.args.weighting)
        self.objectives.adjust(tuned)
        for objective in self.objectives:
            if isinstance(objective, CrossEntropyLoss) and not objective.label_smoothing:
                objective.label_smoothing = self.args.label_smoothing_factor

    def _follow_labels(self) -> None:
        config = getattr(self.model, "config", None)
        adopt_label_names(config, self.train_dataset, self.eval_dataset)
        self.train_dataset = align_labels_to_student(self.train_dataset, config, "training")
        self.eval_dataset = align_labels_to_student(self.eval_dataset, config, "evaluation")

    def _connect(self) -> None:
        student, teacher, config = self.model, self.teacher_model, getattr(self.model, "config", None)
        columns = getattr(self.train_dataset, "column_names", None) or []
        if teacher is None and self.objectives.need_teacher and columns and TEACHER_LOGITS not in columns:
            raise ValueError(
                f"{', '.join(self.objectives.need_teacher)} need a teacher: pass teacher_model, or data with a column "
                f"{TEACHER_LOGITS!r}"
            )
        if teacher is not None:
            refuse_shared_weights(student, teacher)
        several = teacher if isinstance(teacher, TeacherEnsemble) else None
        configs = [getattr(member, "config", None) for member in (several.members if several else [teacher])]
        self.objectives.bind(config, configs if several else configs[0], self.args.seed)
        self.objectives.to(self.args.device)
        self._fresh_objectives = {name: tensor.clone() for name, tensor in self.objectives.state_dict().items()}
        self._student_wants, self._teacher_wants = self.objectives.wants()
        refuse_reentrant_checkpointing(self.args, self._student_wants)
        self._student = Capture(student, self._student_wants, "student")
        self._teaching = Teaching(
            teacher,
            student,
            self._teacher_wants,
            self.objectives.match_tokens,
            self.processing_class,
            self.teacher_processing_class,
            columns,
            self.args.device,
            self.accelerator.autocast,
        )
        self._teaching.check(
            self.train_dataset,
            self._get_collator_with_removed_columns(self.data_collator),
            self.args.eval_batch_size,
            config,
            self.args.teacher_check,
            self.args.seed,
        )

    def _default_objectives(self) -> list[Objective]:
        if self.compute_loss_func is not None:
            return []
        columns = getattr(self.train_dataset, "column_names", None) or []
        if self.teacher_model is None and TEACHER_LOGITS not in columns:
            return [CrossEntropyLoss()]
        return resolve("hinton", task_of(getattr(self.model, "config", None)))[0].objectives

    @property
    def teacher_order(self) -> list[int] | None:
        """The index that a live teacher gives each of the student's labels; None where it is the student's own.

        The teachers of an ensemble have orders of their own, which `teacher_model` knows.
        """
        return self._teaching.order

    # Data

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the union of what student, teacher and objectives read."""
        if self._signature_columns is not None:
            return
        super()._set_signature_columns_if_needed()
        extra = {"labels", DOCUMENT} | self._teaching.columns
        columns: Any = self._signature_columns
        self._signature_columns = columns + sorted(extra - set(columns))

    def get_train_dataloader(self) -> DataLoader:
        """Make the loader of training batches: length-grouped by `LengthGroupedBatchSampler`, or as `Trainer` does."""
        args, given = self.args, self.train_dataset
        stream, order = makes_batches(given), self.args.train_sampling_strategy
        if not stream and (given is None or not has_length(given) or order == "batch_rebalance"):
            return super().get_train_dataloader()
        dataset, collate = given, self.data_collator
        if isinstance(dataset, datasets.Dataset):
            dataset = self._remove_unused_columns(dataset, "training")
        else:
            collate = self._get_collator_with_removed_columns(collate, "training")
        if not stream and order != "group_by_length":
            sampler = self._get_train_sampler(given)
            return sampled_loader(dataset, sampler, collate, self._train_batch_size, args, self.accelerator)
        lengths = [] if stream else row_lengths(given, args.length_column_name)
        return training_loader(dataset, lengths, collate, self._train_batch_size, self._step_rows, args)

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler | None:
        """Keep predictions in the data set's order, which length grouping would not."""
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 and has_length(eval_dataset) else None

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as `Trainer` does, the teacher run once beforehand where its logits are all that is needed.

        Args:
            resume_from_checkpoint: a whole checkpoint of this run, or True for the last one.
            *args: the other arguments of `Trainer.train`.
            **kwargs: likewise.

        Raises:
            FloatingPointError: if the loss or the gradients become NaN or infinite.
            MemoryError: if memory runs out.
            OSError: if the disk is full, or (ConnectionError) another process is gone.
            SystemExit: after a SIGTERM, once the checkpoint is saved.
            ValueError: if another run writes to `output_dir`, or the checkpoint is damaged or another run's.
        """
        given, main = self.args, self.is_world_process_zero()
        with only_writer(given.output_dir) if main else nullcontext():
            if self.model is not None:
                self.run_record = describe_run(self, self._signature_columns)
            checkpoint = whole_checkpoint(resume_from_checkpoint, given.output_dir, self.run_record)
            if self.objectives.need_teacher:
                self.train_dataset = self._teaching.run_once(self.train_dataset, given)
            self._window.restart()
            if main:
                logger.warning("Training with %s.", ", ".join(self._choices()))
            self._step_rows = None
            try:
                with within_memory(given), among_processes(given), self._interruption.listening():
                    return super().train(checkpoint, *args, **kwargs)
            finally:
                end_training(self, self._changes)
                self._changes = []

    def _choices(self) -> list[str]:
        columns = getattr(self.train_dataset, "column_names", None) or ()
        teacher = self._teaching.describe(columns) if self.objectives.need_teacher else "no teacher"
        attention = getattr(getattr(self.model, "config", None), "_attn_implementation", None) or "no"
        return [*self.args.choices(), f"{attention} attention", teacher]

    def _update_auto_batch_size(self, batch_size: int) -> None:
        """Take up a smaller micro-batch after memory ran out: a step keeps its rows, in more of them."""
        super()._update_auto_batch_size(batch_size)
        args, rows = self.args, self.train_dataset
        self._step_rows = self._step_rows or args.train_batch_size * args.gradient_accumulation_steps
        uneven = args.train_sampling_strategy == "group_by_length" and has_length(rows)
        count = micro_batches(self._step_rows, batch_size, uneven and not makes_batches(rows))
        args.gradient_accumulation_steps, self._train_batch_size = count, -(-self._step_rows // count)
        self._window.restart()

    def _run_epoch(self, **kwargs: Any) -> None:  # type: ignore[override]
        # Without it a finished run whose last step is within an epoch would take one more when it is resumed.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**kwargs)

    # Loss

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """Collect the micro-batches of an optimizer step, and count what each objective's mean runs over in it."""
        self._window.at(self.state.global_step)
        self.objectives.zero_grad()
        self.objectives.at(self.state.global_step / max(1, self.state.max_steps))
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        counts = torch.stack([self._counts(batch) for batch in batches]).sum(dim=0)
        return batches, self.accelerator.reduce(counts, "sum")

    def _counts(self, batch: dict[str, Any]) -> Tensor:
        batch = self._prepare_inputs(batch)
        counts = self.objectives.counts(batch) if len(self.objectives) else torch.zeros(0, device=self.args.device)
        if self.compute_loss_func is not None:
            counts = torch.cat([counts, (batch["labels"] != UNLABELLED).sum()[None]])
        return counts

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
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
        student = self._student(model, inputs)
        teacher = self._teaching.outputs(inputs) if self.objectives.need_teacher else None
        loss, parts = self._weigh(student, teacher, inputs, num_items_in_batch)
        if num_items_in_batch is not None:
            self._window.add(parts.detach(), inputs.get(ROWS))
            loss = loss * self.accelerator.num_processes
        return (loss, student) if return_outputs else loss

    def _weigh(
        self, student: CapturedOutput, teacher: CapturedOutput | None, batch: dict[str, Any], counts: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        counts = self._counts(batch) if counts is None else counts
        own = counts[: len(self.objectives)]
        parts = self.objectives.parts(student, teacher, batch, own)
        loss = self.objectives.weigh(parts, batch, own)
        if self.compute_loss_func is not None:
            outputs = SequenceClassifierOutput(logits=student.logits)
            parts.append(self.compute_loss_func(outputs, batch.get("labels"), num_items_in_batch=counts[-1]))
            loss = loss + parts[-1]
        return loss, torch.stack(parts)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Do forward and backward on one micro-batch, and average the objectives' gradients at the step's last."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.num_processes > 1 and self.accelerator.sync_gradients:
            self.objectives.average_gradients(self.accelerator)
        if self._anchor is not None and self.accelerator.sync_gradients:
            scaler = self.accelerator.scaler
            penalty = self._anchor.pull(1.0 if scaler is None else scaler.get_scale())
            # Every process pulls alike, and the parts are summed over processes.
            self._window.add_last(penalty / self.accelerator.num_processes)
        return loss

    # Parameters of the objectives

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimizer, with a group of their own for the objectives' parameters."""
        if self.is_in_train and not self._changes:
            self._changes.extend(changes_for_training(self, self._student_wants))
        optimizer = super().create_optimizer(model)
        for change in self._changes:
            if isinstance(change, CompactTraining):
                change.follow(optimizer)
        parameters = self.objectives.trained()
        known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if not parameters or id(parameters[0]) in known:
            return optimizer
        if self.lr_scheduler is not None:
            raise ValueError(
                "the objectives have parameters of their own, which a ready-made lr_scheduler does not know: pass "
                "optimizers=(optimizer, None)"
            )
        rate = self.args.objective_learning_rate
        rate = self.args.learning_rate if rate is None else rate
        broadcast([parameter.data for parameter in parameters])
        own = len(parameters) - len(list(self.objectives.weighting.parameters()))
        if own:
            group = {"params": parameters[:own], "lr": rate, "weight_decay": self.args.weight_decay}
            optimizer.add_param_group(group)
        if own < len(parameters):
            rate = self.args.weighting_learning_rate
            optimizer.add_param_group({"params": parameters[own:], "lr": rate, "weight_decay": 0.0})
        return optimizer

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        parameters = self.objectives.trained()
        if not parameters:
            return super()._clip_grad_norm(model)
        return self.accelerator.clip_grad_norm_([*model.parameters(), *parameters], self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        # fp16 scales the loss, and skips the steps in which it went too far.
        if self.accelerator.scaler is None and isinstance(norm, Tensor):
            self._window.add_norm(norm)
        return norm

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Make a fresh student, and the objectives as they were at the start, with a trial's settings."""
        model = super().call_model_init(trial)
        if not hasattr(self, "_student_wants"):
            return model
        self.model = model
        if trial is None:
            self._student = Capture(model, self._student_wants, "student")
            self.objectives.load_state_dict(self._fresh_objectives)
        else:
            tuned = {key: value for key, value in self.hp_space(trial).items() if "." in key}
            self._take(copy.deepcopy(self._unbound), tuned)
            self._connect()
        self._anchor = Anchor(model, self.args.anchor_weight) if self.args.anchor_weight else None
        return model

    def _hp_search_setup(self, trial: Any) -> None:
        """Set a trial's arguments; its objectives (`"forward_kl.temperature"`) have theirs since `call_model_init`."""
        space = self.hp_space if self.hp_search_backend is not None and trial is not None else None
        if space is not None:
            self.hp_space = lambda trial: {key: value for key, value in space(trial).items() if "." not in key}
        try:
            super()._hp_search_setup(trial)
        finally:
            self.hp_space = space
        if trial is not None:
            self.run_record = describe_run(self, self._signature_columns)

    # Logging

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with each objective's mean since the last time as `loss/NAME`."""
        means = self._window.means(self.state.global_step) if "loss" in logs else {}
        if means:
            logs |= {f"loss/{name}": mean for name, mean in means.items()}
            if self.args.weighting != "fixed":
                logs |= {f"weight/{name}": factor for name, factor in self.objectives.factors().items()}
        elif "train_loss" in logs:
            self._window.check()
        super().log(logs, start_time)

    # Evaluation

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Tensor | None]:
        """Give loss, logits and labels of a batch, and beside the logits where student and teacher agree."""
        inputs = self._prepare_inputs(inputs)
        labels = inputs.get("labels")
        with torch.no_grad(), self.compute_loss_context_manager():
            student = self._student(model, inputs)
            teacher = self._teaching.outputs(inputs)
            loss = None
            if labels is not None and (teacher is not None or not self.objectives.need_teacher):
                loss, _ = self._weigh(student, teacher, inputs, None)
        if prediction_loss_only:
            return loss, None, None
        logits: Any = student.logits.detach()
        if teacher is not None and not self.args.batch_eval_metrics:
            logits = (logits, self._scoring.agreeing(logits, teacher.logits))
        return loss, logits, labels

    def _preprocess_predictions(self, logits: Any, labels: Any) -> Any:
        if isinstance(logits, tuple):
            return self._preprocess_logits(logits[0], labels), logits[1]
        return self._preprocess_logits(logits, labels)

    def _compute_metrics(self, prediction: EvalPrediction, **options: Any) -> dict[str, float]:
        predictions, agreed = prediction.predictions, None
        if isinstance(predictions, tuple) and not self.args.batch_eval_metrics:
            predictions, agreed = prediction.predictions  # type: ignore[misc]
        if self._documents is not None and not self.args.batch_eval_metrics:
            predictions = average_windows(np.asarray(predictions), self._documents)
            labels = one_row_a_document(prediction.label_ids, self._documents)
            prediction = EvalPrediction(predictions, labels, prediction.inputs, prediction.losses)
        plain = EvalPrediction(predictions, prediction.label_ids, prediction.inputs, prediction.losses)
        metrics = dict(self._metrics(plain, **options))
        if agreed is not None:
            metrics["agreement"] = self._scoring.agreement(agreed)
        return metrics

    def _default_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        return self._scoring.metrics(np.asarray(prediction.predictions), np.asarray(prediction.label_ids))

    def evaluation_loop(self, dataloader: DataLoader, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate as `Trainer` does; predictions are the student's logits alone, metrics of windows by text."""
        rows: Any = dataloader.dataset
        self._documents = rows[DOCUMENT][:] if DOCUMENT in (getattr(rows, "column_names", None) or ()) else None
        output = super().evaluation_loop(dataloader, *args, **kwargs)
        if isinstance(output.predictions, tuple):
            output = output._replace(predictions=output.predictions[0])
        return output

    # Checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._window.check()
        run_dir = self._get_output_dir(trial=trial)
        self._checkpoint = Path(run_dir) / f"checkpoint-{self.state.global_step}"
        with sealed(self, self._checkpoint, run_dir):
            if self.args.should_save:
                self.objectives.save(self._checkpoint)
            super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        as_it_is = folder == self._checkpoint or not self.args.should_save
        with nullcontext(folder) if as_it_is else atomic_model_update(folder) as target:
            super()._save(str(target), state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.objectives.load(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        refuse_damaged(Path(str(self.state.best_model_checkpoint)))
        super()._load_best_model()
        self.objectives.load(str(self.state.best_model_checkpoint))

    # Hub

    def create_model_card(self, *args: Any, **card: Any) -> None:
        """Write README.md and its report; arguments are those of `nlpkd.training.publishing.card_facts`."""
        if self.is_world_process_zero():
            write_card(self, card_facts(*args, **card))

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **card: Any,
    ) -> Any:
        """Save the student, write its card, and push both with the tokenizer: an allow-list of files, nothing pickled.

        Args:
            commit_message: of the commit.
            blocking: wait for the push.
            token: `hub_token` if None.
            revision: `hub_revision` if None.
            private: `hub_private_repo` if None.
            **card: `language`, `license`, `tags` and others for the card, as `nlpkd.training.publishing.card_facts`
                takes them.

        Returns:
            The commit's address, or a `Future` of it; None beside the main process.
        """
        card_facts(**card)  # what the card can't say is refused before anything is written
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**card)
        self._finish_current_push()
        return push(self, commit_message or "End of training", blocking, token, revision, private)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if self.args.hub_always_push or not busy:
            jobs = [push_checkpoint(self, checkpoint_folder)]
            self.push_in_progress = PushInProgress(jobs)  # type: ignore[arg-type]

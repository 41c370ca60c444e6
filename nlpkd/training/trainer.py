"""The Trainer with a teacher and a list of objectives."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, SequentialSampler
from transformers import PreTrainedTokenizerBase, Trainer
from transformers.trainer_utils import EvalLoopOutput, HubStrategy, TrainOutput, has_length, rotate_checkpoints
from transformers.utils import PushInProgress

from nlpkd.config import DistillationConfig
from nlpkd.data.collator import DistillationCollator
from nlpkd.data.columns import TEACHER_LOGITS
from nlpkd.data.label_names import adopt_label_names, align_labels_to_student, label_column
from nlpkd.data.rows import makes_batches
from nlpkd.data.tokenization import TeacherTokenizers, per_teacher
from nlpkd.data.windows import DOCUMENT
from nlpkd.evaluation.evaluate import evaluate_student
from nlpkd.evaluation.report import EvaluationReport
from nlpkd.evaluation.scoring import scoring_of
from nlpkd.models.capture import Capture
from nlpkd.models.ensemble import TeacherEnsemble, as_one_teacher
from nlpkd.objectives import CrossEntropyLoss, Objective
from nlpkd.objectives.labels import with_gold_settings
from nlpkd.objectives.objective_set import ObjectiveSet
from nlpkd.objectives.presets import resolve
from nlpkd.tasks import task_of
from nlpkd.teachers.compatibility import refuse_reentrant_checkpointing, refuse_shared_weights
from nlpkd.teachers.signals import TeacherSignals
from nlpkd.training.checkpoints import describe_run, resolve_resume_checkpoint, write_checkpoint_checksums
from nlpkd.training.dataloaders import ROWS, micro_batches, row_lengths, sampled_loader, training_loader
from nlpkd.training.failures import explain_lost_process, explain_out_of_memory
from nlpkd.training.interruption import SaveOnSigterm
from nlpkd.training.l2_sp import Anchor
from nlpkd.training.lean import CACHED_TEACHER, LeanTraining, TrainingParts, refused_speed_ups
from nlpkd.training.loss import DistillationLoss
from nlpkd.training.loss_log import LossAccumulator
from nlpkd.training.prediction_metrics import PredictionMetrics
from nlpkd.training.publishing import card_facts, describe_training, push, push_checkpoint, repository, write_card
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
    # Of Trainer, whose own annotations are narrower than what is given here.
    model: Any
    processing_class: Any
    push_in_progress: Any
    _signature_columns: Any
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
        # Given, and the same for every training
        self.teacher_model: Any = teacher
        self.teacher_processing_class: Any = teacher_processing_class
        self._given_objectives = self._default_objectives() if objectives is None else list(objectives)
        self._interruption = SaveOnSigterm()
        self.add_callback(self._interruption)
        self._lean = LeanTraining()
        # State of a training: what may be resumed, rows of a step where micro-batches shrank, the folder being written
        self.run_record: dict[str, Any] = {}
        self._step_rows: int | None = None
        self._open_checkpoint: Path | None = None
        # Evaluation
        self._metrics = PredictionMetrics(
            scoring_of(task_of(getattr(self.model, "config", None))),
            compute_metrics,
            self.preprocess_logits_for_metrics,
            self.args.batch_eval_metrics,
        )
        if compute_metrics is not None or not self.args.batch_eval_metrics:
            self.compute_metrics = self._metrics
        self.preprocess_logits_for_metrics = self._metrics.preprocess
        self._connect()

    def _default_objectives(self) -> list[Objective]:
        if self.compute_loss_func is not None:
            return []
        columns = getattr(self.train_dataset, "column_names", None) or []
        if self.teacher_model is None and TEACHER_LOGITS not in columns:
            return [CrossEntropyLoss()]
        return resolve("hinton", task_of(getattr(self.model, "config", None)))[0].objectives

    def _connect(self) -> None:
        """Fit student, teacher, data and objectives together: at first, and for every student of `model_init`."""
        args, student, teacher = self.args, self.model, self.teacher_model
        config = getattr(student, "config", None)
        # Label ids are the student's; where its labels have no names yet, it takes those of the data.
        adopt_label_names(config, self.train_dataset, self.eval_dataset)
        self.train_dataset = align_labels_to_student(self.train_dataset, config, "training")
        self.eval_dataset = align_labels_to_student(self.eval_dataset, config, "evaluation")
        # Objectives start anew, with parameters that fit the pair.
        given = with_gold_settings(self._given_objectives, label_smoothing=args.label_smoothing_factor)
        self.objectives: Any = ObjectiveSet(given, args.weighting)
        columns = getattr(self.train_dataset, "column_names", None) or []
        if teacher is None and self.objectives.need_teacher and columns and TEACHER_LOGITS not in columns:
            raise ValueError(
                f"{', '.join(self.objectives.need_teacher)} need a teacher: pass teacher_model, or data with a column "
                f"{TEACHER_LOGITS!r}"
            )
        if teacher is not None:
            refuse_shared_weights(student, teacher)
        ensemble = isinstance(teacher, TeacherEnsemble)
        configs = [getattr(member, "config", None) for member in (teacher.members if ensemble else [teacher])]
        self.objectives.bind(config, configs if ensemble else configs[0], args.seed)
        self.objectives.to(args.device)
        # Both models give the layers that the objectives read.
        student_layers, teacher_layers = self.objectives.required_layers()
        refuse_reentrant_checkpointing(args, student_layers)
        self._student = Capture(student, student_layers, "student")
        self._signals = TeacherSignals(
            teacher,
            student,
            teacher_layers,
            self.objectives.match_tokens,
            self.processing_class,
            self.teacher_processing_class,
            columns,
            args.device,
            self.accelerator.autocast,
        )
        # The columns to collate are known with what both models read.
        self._signature_columns = None
        self._set_signature_columns_if_needed()
        collate = self._get_collator_with_removed_columns(self.data_collator)
        self._signals.check(self.train_dataset, collate, args.eval_batch_size, config, args.teacher_check, args.seed)
        # The loss, and the pull beside it
        self._loss = DistillationLoss(self.objectives, self.compute_loss_func, args.device)
        self._anchor = Anchor(student, args.anchor_weight) if args.anchor_weight else None
        if self._anchor is not None and self._sharded:
            raise ValueError("anchor_weight needs whole weights on every process, which DeepSpeed and FSDP split up")
        names = self._loss.names + ["anchor"] * (self._anchor is not None)
        self._accumulator = LossAccumulator(names, self.accelerator, args.device)

    @property
    def teacher_order(self) -> list[int] | None:
        """The index that a live teacher gives each of the student's labels; None where it is the student's own.

        The teachers of an ensemble have orders of their own, which `teacher_model` knows.
        """
        return self._signals.order

    @property
    def _sharded(self) -> bool:
        return self.is_deepspeed_enabled or self.is_fsdp_enabled

    def _parts(self) -> TrainingParts:
        return TrainingParts(
            args=self.args,
            student=self.model,
            student_layers=self._student.wanted,
            teacher=self.teacher_model if self.objectives.need_teacher else None,
            teacher_layers=self._signals.wanted,
            needs_teacher=bool(self.objectives.need_teacher),
            rows=self.train_dataset,
            collator=self.data_collator,
            optimizer=self.optimizer,
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

    # Training

    def train(self, resume_from_checkpoint: str | bool | None = None, *arguments: Any, **options: Any) -> TrainOutput:
        """Train as `Trainer` does, the teacher run once beforehand where its logits are all that is needed.

        Args:
            resume_from_checkpoint: a whole checkpoint of this run, or True for the last one.
            *arguments: the other arguments of `Trainer.train`.
            **options: likewise.

        Raises:
            FloatingPointError: if the loss or the gradients become NaN or infinite.
            MemoryError: if memory runs out.
            OSError: if the disk is full, or (ConnectionError) another process is gone.
            SystemExit: after a SIGTERM, once the checkpoint is saved.
            ValueError: if another run writes to `output_dir`, or the checkpoint is damaged or another run's.
        """
        args, main = self.args, self.is_world_process_zero()
        with only_writer(args.output_dir) if main else nullcontext():
            # What is resumed must be this very run.
            if self.model is not None:
                self._describe_run()
            checkpoint = resolve_resume_checkpoint(resume_from_checkpoint, args.output_dir, self.run_record)
            # The teacher, once
            if CACHED_TEACHER not in refused_speed_ups(self._parts()):
                self.train_dataset = self._signals.run_once(self.train_dataset, args)
            if main:
                logger.warning("Training with %s.", ", ".join(self._choices()))
            # The student, leaner for as long as it is trained
            self._accumulator.restart()
            self._step_rows = None
            try:
                with explain_out_of_memory(args), explain_lost_process(args), self._interruption.listening():
                    return super().train(checkpoint, *arguments, **options)
            finally:
                self._lean.end()
                if not self._sharded:
                    # Accelerate leaves the model's forward in mixed precision, in which it would then be measured.
                    student = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
                    self.model = self.model_wrapped = student

    def _describe_run(self) -> None:
        self.run_record = describe_run(
            self.args, self.model, self.teacher_model, self.objectives, self.train_dataset, self._signature_columns
        )

    def _choices(self) -> list[str]:
        columns = getattr(self.train_dataset, "column_names", None) or ()
        teacher = self._signals.describe(columns) if self.objectives.need_teacher else "no teacher"
        attention = getattr(getattr(self.model, "config", None), "_attn_implementation", None) or "no"
        return [*self.args.choices(), f"{attention} attention", teacher]

    def _hp_search_setup(self, trial: Any) -> None:
        """Set the arguments of a search's trial, then fit everything to the student that `model_init` just made."""
        super()._hp_search_setup(trial)
        if self.model_init is not None:
            self._connect()
        if trial is not None:
            self._describe_run()

    def _update_auto_batch_size(self, batch_size: int) -> None:
        """Take up a smaller micro-batch after memory ran out: a step keeps its rows, in more of them."""
        super()._update_auto_batch_size(batch_size)
        args, rows = self.args, self.train_dataset
        self._step_rows = self._step_rows or args.train_batch_size * args.gradient_accumulation_steps
        uneven = args.train_sampling_strategy == "group_by_length" and has_length(rows)
        count = micro_batches(self._step_rows, batch_size, uneven and not makes_batches(rows))
        args.gradient_accumulation_steps, self._train_batch_size = count, -(-self._step_rows // count)
        self._accumulator.restart()

    def _run_epoch(self, **kwargs: Any) -> None:  # type: ignore[override]
        # Without it a finished run whose last step is within an epoch would take one more when it is resumed.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**kwargs)

    # Loss

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """Collect the micro-batches of an optimizer step, and count what each objective's mean runs over in it."""
        self._accumulator.at(self.state.global_step)
        self.objectives.zero_grad()
        self.objectives.at(self.state.global_step / max(1, self.state.max_steps))
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        counts = torch.stack([self._loss.counts(self._prepare_inputs(batch)) for batch in batches]).sum(dim=0)
        return batches, self.accelerator.reduce(counts, "sum")

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
        teacher = self._signals.outputs(inputs) if self.objectives.need_teacher else None
        loss, parts = self._loss(student, teacher, inputs, num_items_in_batch)
        if num_items_in_batch is not None:
            self._accumulator.add(parts.detach(), inputs.get(ROWS))
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
            self._accumulator.add_last(penalty / self.accelerator.num_processes)
        return loss

    # Optimizer

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimizer, with groups of their own for the objectives' parameters."""
        if self.is_in_train:
            self._lean.begin(self._parts(), getattr(self.processing_class, "all_special_ids", []))
        optimizer = super().create_optimizer(model)
        self._lean.follow(optimizer)
        parameters = self.objectives.trained()
        known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if not parameters or id(parameters[0]) in known:
            return optimizer
        if self.lr_scheduler is not None:
            raise ValueError(
                "the objectives have parameters of their own, which a ready-made lr_scheduler does not know: pass "
                "optimizers=(optimizer, None)"
            )
        broadcast([parameter.data for parameter in parameters])
        for group in self.objectives.parameter_groups(self.args):
            optimizer.add_param_group(group)
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
            self._accumulator.add_norm(norm)
        return norm

    # Logging

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with each objective's mean since the last time as `loss/NAME`."""
        means = self._accumulator.means(self.state.global_step) if "loss" in logs else {}
        if means:
            logs |= {f"loss/{name}": mean for name, mean in means.items()}
            if self.args.weighting != "fixed":
                logs |= {f"weight/{name}": factor for name, factor in self.objectives.factors().items()}
        elif "train_loss" in logs:
            self._accumulator.check()
        super().log(logs, start_time)

    # Evaluation

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Tensor | None]:
        """Return loss, logits and labels of a batch, and beside the logits where student and teacher agree."""
        inputs = self._prepare_inputs(inputs)
        labels = inputs.get("labels")
        with torch.no_grad(), self.compute_loss_context_manager():
            student = self._student(model, inputs)
            teacher = self._signals.outputs(inputs)
            loss = None
            if labels is not None and (teacher is not None or not self.objectives.need_teacher):
                loss, _ = self._loss(student, teacher, inputs)
        if prediction_loss_only:
            return loss, None, None
        logits = self._metrics.with_agreement(student.logits.detach(), None if teacher is None else teacher.logits)
        return loss, logits, labels

    def evaluation_loop(self, dataloader: DataLoader, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate as `Trainer` does; predictions are the student's logits alone, metrics of windows by text."""
        self._metrics.begin(dataloader.dataset)
        output = super().evaluation_loop(dataloader, *args, **kwargs)
        if isinstance(output.predictions, tuple):
            output = output._replace(predictions=output.predictions[0])
        return output

    # Checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._accumulator.check()
        args, limit = self.args, self.args.save_total_limit
        run_dir = self._get_output_dir(trial=trial)
        self._open_checkpoint = folder = Path(run_dir) / f"checkpoint-{self.state.global_step}"
        # An older checkpoint may go only when this one has its checksums.
        args.save_total_limit = None
        try:
            with write_checkpoint_checksums(folder, self.run_record, args.should_save):
                if args.should_save:
                    self.objectives.save(folder)
                super()._save_checkpoint(model, trial)
        finally:
            args.save_total_limit, self._open_checkpoint = limit, None
        if args.should_save:
            rotate_checkpoints(run_dir, limit, self.state.best_model_checkpoint, use_mtime=True)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        # A checkpoint is made whole by its own checksums.
        as_it_is = folder == self._open_checkpoint or not self.args.should_save
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
            facts = card_facts(*args, **card)
            write_card(Path(self.args.output_dir), self._repository, facts, partial(self._measure, facts))

    def _measure(self, facts: dict[str, Any]) -> EvaluationReport:
        rows = self.eval_dataset
        if not (isinstance(rows, datasets.Dataset) and label_column(rows)):
            raise ValueError(
                f"a card needs figures: give one labelled eval_dataset, or save an EvaluationReport in "
                f"{self.args.output_dir}"
            )
        run = describe_training(self.args, self.objectives, self.teacher_model, self.state.global_step) | facts
        run["data"] = {"split": "evaluation", "evaluated_rows": len(rows)} | facts.get("data", {})
        return evaluate_student(
            self.model,
            self.teacher_model,
            rows,
            self.processing_class,
            teacher_tokenizer=self.teacher_processing_class,
            teacher_order=self.teacher_order,
            run=run,
        )

    @property
    def _repository(self) -> str:
        return self.hub_model_id or repository(self.args)

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
        return push(
            str(self.args.output_dir),
            self._repository,
            self.args,
            commit_message or "End of training",
            blocking=blocking,
            token=token,
            revision=revision,
            private=private,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if self.args.hub_always_push or not busy:
            jobs = [push_checkpoint(checkpoint_folder, self._repository, self.args, self.state.global_step)]
            self.push_in_progress = PushInProgress(jobs)  # type: ignore[arg-type]

"""A Trainer whose runs can be interrupted, resumed and repeated."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler
from transformers import Trainer, TrainerState
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import HubStrategy, TrainOutput, has_length
from transformers.utils import PushInProgress

from nlpkd.config import DistillationConfig
from nlpkd.data.rows import is_plain, makes_batches
from nlpkd.hub.saving import model_update
from nlpkd.models.files.saved_config import complete_config, write_labels
from nlpkd.models.files.tokenizers import save_tokenizer
from nlpkd.models.structure import as_student, matching_tokenizer
from nlpkd.training.batches.loaders import row_lengths, sampled_loader, training_loader, unsized_loader
from nlpkd.training.batches.samplers import micro_batches
from nlpkd.training.best import refuse_lost, tell_no_number, tell_none_chosen
from nlpkd.training.checkpoints import (
    has_optimizer,
    rotate_checkpoints,
    set_other_runs_aside,
    write_checkpoint_checksums,
)
from nlpkd.training.failures import (
    SaveOnSigterm,
    explain_ctrl_c,
    explain_lost_process,
    explain_out_of_memory,
)
from nlpkd.training.loss_log import LossAccumulator
from nlpkd.training.publishing import card_facts, push, push_checkpoint, write_card
from nlpkd.training.resuming import (
    follow_new_length,
    resolve_resume_checkpoint,
    restore_callbacks,
    stopped_early,
    tell_shortened_epochs,
)
from nlpkd.utils.disk.locks import only_writer

logger = logging.getLogger(__name__)


class ResumableTrainer(Trainer):
    """A `transformers.Trainer` with batches of a fixed order and checkpoints that are complete or not there.

    One process at a time writes to the output directory, SIGTERM leaves a checkpoint, memory that runs out and
    processes that are gone are explained, and only the same run resumes from a checkpoint. What is pushed has a card.

    Args:
        **arguments: those of `Trainer`; `args` is a `DistillationConfig`.
    """

    args: DistillationConfig
    # Of Trainer, whose own annotations are narrower than what is given here.
    model: Any
    push_in_progress: Any
    processing_class: Any
    _signature_columns: Any

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        self.run_record: dict[str, Any] = {}
        self.resumed_checkpoint: str | None = None
        self._interruption = SaveOnSigterm()
        self.add_callback(self._interruption)
        # Rows of an optimizer step, where micro-batches shrank since memory ran out; None: as many as they make.
        self._step_rows: int | None = None
        # Of a forward and backward pass of the model that is trained.
        self._flop_per_token: int | None = None
        # The checkpoint that is being written.
        self._open_checkpoint: Path | None = None
        # How many checkpoints a training keeps.
        self._save_total_limit: int | None = None
        # The training rows, and the same with what one training adds to them, which goes with that training.
        self._completed: tuple[Any, Any] = (None, None)
        # Pushes that were begun, with the checkpoint of each.
        self._pushes: list[tuple[Future, Path]] = []

    # What a subclass adds

    losses: LossAccumulator
    """The parts of the loss, which the subclass adds to on every micro-batch."""

    def describe_run(self) -> dict[str, Any]:
        """Describe what the result depends on; see `nlpkd.training.checkpoints.describe_run`."""
        raise NotImplementedError

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Prepare a training whose checkpoint is chosen, and clean up after it, however it ends.

        Yields:
            Nothing.
        """
        yield

    def save_beside(self, checkpoint: Path) -> None:
        """Write what is trained beside the model into a checkpoint; the main process calls it."""

    def card_measurement(self) -> Callable[[], Any]:
        """Make what measures the model for its card; see `nlpkd.training.publishing.write_card`."""
        raise NotImplementedError

    def call_model_init(self, trial: Any = None) -> Any:
        """Make a model as `Trainer` does, and take it as the constructor takes one."""
        return as_student(super().call_model_init(trial))

    # Batches

    @property
    def _rows_to_train(self) -> Any:
        """The training rows, with what this training added to them unless others were assigned since."""
        rows, completed = self._completed
        return completed if rows is self.train_dataset else self.train_dataset

    def get_train_dataloader(self) -> DataLoader:
        """Make the loader of training batches: length-grouped by `LengthGroupedBatchSampler`, or as `Trainer` does."""
        args, given = self.args, self._rows_to_train
        stream, order = makes_batches(given), self.args.train_sampling_strategy
        if given is None:
            return super().get_train_dataloader()
        unsized = not stream and (isinstance(given, IterableDataset) or not has_length(given))
        if unsized and args.world_size > 1:
            collate = self._get_collator_with_removed_columns(self.data_collator, "training")
            return unsized_loader(given, collate, self._train_batch_size, args)
        if unsized or (order == "batch_rebalance" and not stream):
            size, sampler_of = self._train_batch_size, cast(Any, self._get_train_sampler)
            return self._get_dataloader(given, "Training", size, sampler_of, is_training=True)
        dataset: Any = given
        collate = self.data_collator
        if is_plain(dataset):
            dataset = self._remove_unused_columns(dataset, "training")
        else:
            collate = self._get_collator_with_removed_columns(collate, "training")
        if not stream and order != "group_by_length":
            sampler = self._get_train_sampler(given)
            return sampled_loader(dataset, sampler, collate, self._train_batch_size, args, self.accelerator)
        lengths = [] if stream else row_lengths(given, args.length_column_name)
        if lengths is None:
            logger.warning("Batches come in random order, since the rows have no input_ids to tell their length.")
            sampler = RandomSampler(dataset)
            return sampled_loader(dataset, sampler, collate, self._train_batch_size, args, self.accelerator)
        return training_loader(dataset, lengths, collate, self._train_batch_size, self._step_rows, args)

    def _remove_unused_columns(self, dataset: Any, description: str | None = None) -> Any:
        """Leave a data set with a transform its columns, which the transform reads."""
        return super()._remove_unused_columns(dataset, description) if is_plain(dataset) else dataset

    def _update_auto_batch_size(self, batch_size: int) -> None:
        """Take up a smaller micro-batch after memory ran out: a step keeps its rows, in more of them."""
        super()._update_auto_batch_size(batch_size)
        self.losses.restart()
        args, rows = self.args, self.train_dataset
        self._step_rows = self._step_rows or args.train_batch_size * args.gradient_accumulation_steps
        uneven = args.train_sampling_strategy == "group_by_length" and has_length(rows)
        count = micro_batches(self._step_rows, batch_size, uneven and not makes_batches(rows))
        args.gradient_accumulation_steps, self._train_batch_size = count, -(-self._step_rows // count)

    # Training

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, *arguments: Any, **options: Any
    ) -> TrainOutput:
        """Train as `Trainer` does; checkpoints of another run in the folder are moved to `earlier-N` in it.

        Args:
            resume_from_checkpoint: a whole checkpoint of this run, True for the last one, `"auto"` for the last one if
                there is one.
            trial: of a search.
            *arguments: the other arguments of `Trainer.train`.
            **options: likewise.

        Raises:
            FloatingPointError: if the loss or the gradients become NaN or infinite.
            MemoryError: if memory runs out.
            OSError: if the disk is full, or (ConnectionError) another process is gone.
            SystemExit: after a SIGTERM, once the checkpoint is saved.
            ValueError: if another run writes to `output_dir`, or the checkpoint is damaged or another run's.
        """
        args = self.args
        with only_writer(args.output_dir) if self.is_world_process_zero() else nullcontext():
            # A search leaves no model between its trials.
            if self.model is not None:
                self.run_record = self.describe_run()
            self.resumed_checkpoint = checkpoint = resolve_resume_checkpoint(
                resume_from_checkpoint, args.output_dir, self.run_record
            )
            if checkpoint is not None and not has_optimizer(Path(checkpoint)):
                raise ValueError(
                    f"{checkpoint} has no state of the optimizer (save_only_model=True): a run that goes on from it "
                    "would be another one. Start anew, with save_only_model=False for runs that may be resumed, or "
                    "load its weights into the model and train that"
                )
            run_dir = Path(self._get_output_dir(trial))
            if args.should_save:
                set_other_runs_aside(run_dir, checkpoint, self.run_record)
            self._step_rows = self._flop_per_token = None
            self.losses.restart()
            with self.prepared(), explain_out_of_memory(args), explain_lost_process(args), explain_ctrl_c(args):
                with self._interruption.listening(), self._in_own_ways(run_dir):
                    output = super().train(checkpoint, trial, *arguments, **options)
            tell_none_chosen(args, self.state)
            return output

    @contextmanager
    def _in_own_ways(self, run_dir: Path) -> Iterator[None]:
        """Keep `Trainer` from rotating folders that are not its own, and from evaluating where a run is resumed."""
        args, on_start = self.args, self.args.eval_on_start
        self._save_total_limit, args.save_total_limit = args.save_total_limit, None
        args.eval_on_start = on_start and self.resumed_checkpoint is None
        try:
            yield
            best, finished = self.state.best_model_checkpoint, not self._interruption.stopped
            if args.should_save and best is not None and self._save_total_limit == 1 and finished:
                rotate_checkpoints(run_dir, self.run_record, 1, best=best)
        finally:
            args.save_total_limit, args.eval_on_start = self._save_total_limit, on_start

    def _init_training_state(self, max_steps: int, steps_an_epoch: int, *arguments: Any) -> Any:
        trained = super()._init_training_state(max_steps, steps_an_epoch, *arguments)
        # A checkpoint has the settings of the run that wrote it.
        self.state.compute_steps(self.args, max_steps)
        self.state.train_batch_size = self._train_batch_size
        tell_shortened_epochs(self.state, steps_an_epoch, self.train_dataset)
        return trained

    def _run_epoch(self, **kwargs: Any) -> None:  # type: ignore[override]
        # Without it a finished run whose last step is within an epoch would take one more when it is resumed.
        over = self.resumed_checkpoint is not None and stopped_early(self.callback_handler.callbacks)
        if over and self.is_world_process_zero():
            logger.warning("The run had stopped early: its figures did not improve for as long as the patience is.")
        if over or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**kwargs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Count as `Trainer` does, but the parameters once: to count them in every step keeps a GPU waiting."""
        tokens = inputs.get(getattr(self.model, "main_input_name", "input_ids"))
        if not isinstance(tokens, Tensor) or not tokens.numel():
            return super().floating_point_ops(inputs)
        if self._flop_per_token is None:
            self._flop_per_token = super().floating_point_ops(inputs) // tokens.numel()
        return self._flop_per_token * tokens.numel()

    # Logging

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        # fp16 scales the loss, and skips the steps in which it went too far.
        if self.accelerator.scaler is None and isinstance(norm, Tensor):
            self.losses.add_norm(norm)
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the mean of each part of the loss since the last time as `loss/NAME`."""
        if "loss" in logs:
            logs |= {f"loss/{name}": mean for name, mean in self.losses.means(self.state.global_step).items()}
        elif "train_loss" in logs:
            self.losses.check()
        super().log(logs, start_time)

    # Checkpoints

    def _maybe_log_save_evaluate(
        self, tr_loss: Tensor, grad_norm: Any, model: nn.Module, trial: Any, *arguments: Any, **options: Any
    ) -> None:
        stop = self._interruption
        if stop.saved:
            return
        # What SIGTERM stops is saved once, by nobody else, when all is done that belongs to its last step.
        self.control.should_save &= not stop.stopped
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *arguments, **options)
        if stop.due:
            self._save_checkpoint(model, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.losses.check()
        args, run_dir = self.args, Path(self._get_output_dir(trial=trial))
        self._open_checkpoint = folder = run_dir / f"checkpoint-{self.state.global_step}"
        try:
            with write_checkpoint_checksums(folder, self.run_record, args.should_save):
                if args.should_save:
                    self.save_beside(folder)
                super()._save_checkpoint(model, trial)
        finally:
            self._open_checkpoint = None
        if args.push_to_hub:
            self._push_from_checkpoint(str(folder))
        # An older checkpoint may go only when this one has its checksums, and nobody reads the older one.
        if args.should_save:
            kept = [path for push, path in self._pushes if not push.done()]
            best = self.state.best_model_checkpoint
            rotate_checkpoints(run_dir, self.run_record, self._save_total_limit, best=best, kept=[*kept, folder])

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        # A checkpoint is made whole by its own checksums.
        as_it_is = folder == self._open_checkpoint or not self.args.should_save
        with nullcontext(folder) if as_it_is else model_update(folder) as target:
            complete_config(config := getattr(self.model, "config", None))
            super()._save(str(target), state_dict)
            if self.args.should_save:
                write_labels(config, target)
                if self.processing_class is not None:
                    save_tokenizer(matching_tokenizer(self.processing_class, self.model), target)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            follow_new_length(self.lr_scheduler, Path(checkpoint), self.run_record)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        tell_no_number(self.args, self.state, metrics)
        # By what it returns `Trainer` saves, for save_strategy="best" alone.
        return super()._determine_best_metric(metrics, trial) and not self._interruption.stopped

    def _load_callback_state(self) -> None:
        """Restore what callbacks keep; by `Trainer`, which takes their settings too, where that is asked for."""
        callbacks, state = self.callback_handler.callbacks, cast(Any, self.state)
        if self.args.restore_callback_states_from_checkpoint:
            super()._load_callback_state()
        else:
            restore_callbacks(callbacks, state.stateful_callbacks)
        # `Trainer` writes states of those callbacks alone that it has some of.
        kept: list[Any] = [each for each in [*callbacks, self.control] if isinstance(each, ExportableState)]
        state.stateful_callbacks = TrainerState(stateful_callbacks=kept).stateful_callbacks

    def _load_best_model(self) -> None:
        refuse_lost(Path(str(self.state.best_model_checkpoint)))
        super()._load_best_model()

    # Hub

    @property
    def _repository(self) -> str:
        return self.hub_model_id or self.args.repository

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        folder = Path(checkpoint_folder)
        # `Trainer` would push a checkpoint before all of it is written.
        unfinished = folder == self._open_checkpoint
        if unfinished or not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        self._pushes = [(push, path) for push, path in self._pushes if not push.done()]
        if self.args.hub_always_push or not self._pushes:
            push = push_checkpoint(folder, self._repository, self.args, self.state.global_step)
            self._pushes.append((push, folder))
            self.push_in_progress = PushInProgress([push for push, _ in self._pushes])  # type: ignore[arg-type]

    def create_model_card(self, *args: Any, **card: Any) -> None:
        """Write README.md and its report; arguments are those of `nlpkd.training.publishing.card_facts`."""
        if self.is_world_process_zero():
            facts = card_facts(*args, **card)
            write_card(Path(self.args.output_dir), self._repository, facts, self.card_measurement())

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
        hub: dict[str, Any] = {"token": token, "revision": revision, "private": private}
        message = commit_message or "End of training"
        return push(self.args.output_dir, self._repository, self.args, message, blocking=blocking, **hub)

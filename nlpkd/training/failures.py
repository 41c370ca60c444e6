"""What ends a training early, or fails after it, and how to go on: memory, other processes, Ctrl-C, SIGTERM."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import distributed
from torch.distributed import DistError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nlpkd.training.checkpoints import how_to_go_on
from nlpkd.utils.disk.files import has_checksums, numbered_folders
from nlpkd.utils.processes import EXIT_STATUS
from nlpkd.utils.provenance import as_command, as_options

logger = logging.getLogger(__name__)

_RESUME = (
    "run again with resume_from_checkpoint=True (--resume_from_checkpoint True), which goes on from the last "
    "checkpoint, or "
)

# Gloo's errors have no class of their own; the second words are of operations that the timeout of another one ends.
_GLOO_FAILURES = ("gloo", "caused pair closure")


@contextmanager
def explain_out_of_memory(args: TrainingArguments) -> Iterator[None]:
    """Turn errors of memory that ran out into advice, and restore the accumulation that the training began with.

    Args:
        args: of the training.

    Yields:
        Nothing.

    Raises:
        MemoryError: if memory ran out.
    """
    accumulation = args.gradient_accumulation_steps
    try:
        yield
    except RuntimeError as error:
        reached_zero = "No executable batch size found" in str(error)
        if not reached_zero and not should_reduce_batch_size(error):
            raise
        can_be_found = args.world_size == 1 and args.train_sampling_strategy != "batch_rebalance"
        by_itself = ", let auto_find_batch_size=True do so" if can_be_found else ""
        advice = (
            "even with 1 row: use a smaller student or teacher, or a lower max_length"
            if reached_zero
            else f"with {args.train_batch_size} rows a micro-batch: halve per_device_train_batch_size and double "
            f"gradient_accumulation_steps, which changes no result of objectives on single rows{by_itself}, or lower "
            "max_length"
        )
        raise MemoryError(f"memory ran out {advice}") from error
    finally:
        args.gradient_accumulation_steps = accumulation


@contextmanager
def explain_ctrl_c(args: TrainingArguments) -> Iterator[None]:
    """Say on Ctrl-C how to go on, then let it through.

    Args:
        args: of the training.

    Yields:
        Nothing.
    """
    try:
        yield
    except KeyboardInterrupt:
        if args.process_index == 0:
            logger.warning("Stopped by Ctrl-C in %s: %s.", args.output_dir, how_to_go_on(str(args.output_dir)))
        raise


@contextmanager
def explain_lost_process(args: TrainingArguments) -> Iterator[None]:
    """Turn errors of a process that is gone, here or on another machine, into how to go on.

    One that ended is noticed at once, a machine that can't be reached after `ddp_timeout`.

    Args:
        args: of the training.

    Yields:
        Nothing.

    Raises:
        ConnectionError: if the processes can't talk to each other any more.
    """
    try:
        yield
    except RuntimeError as error:
        if args.world_size == 1 or not (
            isinstance(error, DistError) or any(words in str(error) for words in _GLOO_FAILURES)
        ):
            raise
        raise ConnectionError(
            f"process {args.process_index} of {args.world_size} can't reach another one any more: it ended, or its "
            f"machine did ({' '.join(str(error).split())[:300]}). Its own log says why. Start all processes again in "
            f"{args.output_dir}: {how_to_go_on(str(args.output_dir))}"
        ) from error


@contextmanager
def explain_unsaved(args: TrainingArguments, whom: str) -> Iterator[None]:
    """Say, whatever hinders a trained model from being saved, that it is lost, and how to go on; then let it through.

    Args:
        args: of the training, whose checkpoints are what is left.
        whom: who was trained.

    Yields:
        Nothing.
    """
    try:
        yield
    except Exception:
        if args.process_index == 0:
            logger.error(
                "%s is trained, can't be saved, and is lost with this process. Mend what failed, and run again: %s.",
                whom[:1].upper() + whom[1:],
                how_to_go_on(str(args.output_dir)),
            )
        raise


@contextmanager
def saved_model(
    args: TrainingArguments,
    what: str,
    data: Any,
    reading: Mapping[str, Any],
    teachers: Sequence[str] = (),
    save_report: Callable[[], bool] | None = None,
) -> Iterator[None]:
    """Say that a trained model is saved, whatever fails after that, and how to go on; then let it through.

    Args:
        args: of the training.
        what: `"student"` or `"teacher"`.
        data: the rows to measure it on, as they were given.
        reading: the arguments that read them.
        teachers: to measure beside it, by path or Hub id.
        save_report: saves what can be said of the model, and returns whether it could.

    Yields:
        Nothing.
    """
    try:
        yield
    except Exception:
        if args.process_index == 0:
            folder = str(args.output_dir)
            kept = (
                " What could be measured is in report.json beside it."
                if save_report is not None and save_report()
                else ""
            )
            whole = any(map(has_checksums, numbered_folders(Path(folder), "checkpoint").values()))
            beside = [word for teacher in teachers for word in ("--teacher", teacher)]
            # Rows in memory have no name that a command could read.
            named = str(data) if isinstance(data, (str, Path)) else "DATA"
            read = as_options(reading, *reading)
            words = ["nlpkd", "evaluate", folder, *beside, "--data", named, *read, "--output-dir", folder]
            logger.error(
                "The %s is trained and saved in %s; what failed came after that.%s Mend it, and "
                "%smeasure what is there without training: %s",
                what,
                folder,
                kept,
                _RESUME if whole else "",
                as_command(*words),
            )
        raise


# Launchers kill what is left 30 seconds after the signal.
_SECONDS_BETWEEN_AGREEMENTS = 3.0


_STEPS_BETWEEN_AGREEMENTS = 10


class SaveOnSigterm(TrainerCallback):
    """Answer SIGTERM with a checkpoint after the step in progress, which the trainer saves where it is due.

    The checkpoint is that of a run which goes on: after the last step of an epoch it is due when all is done that is
    done at an epoch's end, and within an epoch before any of that. Several processes must stop after the same step:
    they agree every ten steps, or every three seconds where that is sooner, but not within a step.

    Attributes:
        stopped: whether the run ends for the signal.
        due: whether all that belongs to its last step is done but for the checkpoint.
        saved: whether the checkpoint is written.
    """

    def __init__(self) -> None:
        self._asked = self.stopped = self.due = self.saved = False
        self._agreed, self._next, self._since = 0, 1, 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen while a training runs, however it ends; only a process's main thread can.

        Yields:
            Nothing.

        Raises:
            SystemExit: if the signal cut the training short, which then has its checkpoint.
        """
        self._asked = self.stopped = self.due = self.saved = False
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._ask)
        try:
            yield
        finally:
            # None is a handler that was not set from Python, and can't be from there.
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
        if self.stopped:
            raise SystemExit(EXIT_STATUS)
        if self._asked:
            # After the last step there was none left to stop at.
            signal.raise_signal(signal.SIGTERM)

    def _ask(self, number: int, frame: Any) -> None:
        self._asked = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Agree for the first time after the first step, whose seconds tell when to agree again."""
        self._agreed, self._next, self._since = state.global_step, state.global_step + 1, time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop, if the signal came."""
        if self._asked if args.world_size == 1 else self._all_asked(args, state.global_step):
            last = float(state.epoch).is_integer() or control.should_epoch_stop or control.should_training_stop
            self.due = not last
            control.should_training_stop = self.stopped = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let what is done at the end of an epoch be done first, where this is one."""
        self.due = self.stopped

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note that the checkpoint is written."""
        self.saved = self.stopped

    def _all_asked(self, args: TrainingArguments, step: int) -> bool:
        """Check whether the signal came to any process, and agree on when to check next, by the slowest one."""
        if step < self._next:
            return False
        seconds = (time.monotonic() - self._since) / (step - self._agreed)
        found = torch.tensor([float(self._asked), seconds], device=args.device)
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
        asked, seconds = found.tolist()
        steps = min(_STEPS_BETWEEN_AGREEMENTS, int(_SECONDS_BETWEEN_AGREEMENTS / max(seconds, 1e-3)))
        self._agreed, self._next, self._since = step, step + max(1, steps), time.monotonic()
        return bool(asked)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log where it stopped."""
        if self.saved and state.is_world_process_zero:
            logger.warning(
                "SIGTERM: stopped after step %d, whose checkpoint is in %s: %s.",
                state.global_step,
                args.output_dir,
                how_to_go_on(str(args.output_dir)),
            )

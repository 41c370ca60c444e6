"""SIGTERM while training (a spot instance goes away): save a checkpoint, stop, and exit with the signal's status."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)


EXIT_STATUS = 128 + signal.SIGTERM
"""What a shell shows for a process that SIGTERM ended."""


# Launchers kill what is left 30 seconds after the signal.
_SECONDS_BETWEEN_AGREEMENTS = 3.0


_STEPS_BETWEEN_AGREEMENTS = 10


class SaveOnSigterm(TrainerCallback):
    """Answer SIGTERM with a checkpoint after the step in progress.

    Several processes must stop after the same step: they agree every ten steps, or every three seconds where that is
    sooner, but not within a step.
    """

    def __init__(self) -> None:
        self._asked = self._stopped = False
        self._agreed, self._next, self._since = 0, 1, 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen while a training runs, however it ends; only a process's main thread can.

        Yields:
            Nothing.

        Raises:
            SystemExit: if the signal cut the training short, which then has its checkpoint.
        """
        self._asked = self._stopped = False
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._ask)
        try:
            yield
        finally:
            # None is a handler that was not set from Python, and can't be from there.
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
        if self._stopped:
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
        """Save and stop, if the signal came."""
        if self._asked if args.world_size == 1 else self._all_asked(args, state.global_step):
            control.should_save = control.should_training_stop = self._stopped = True

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
        if self._stopped and state.is_world_process_zero:
            logger.warning(
                "SIGTERM: stopped after step %d, whose checkpoint is in %s. Go on with resume_from_checkpoint=True.",
                state.global_step,
                args.output_dir,
            )

"""SIGTERM while training (a spot instance goes away): save a checkpoint, stop, and exit with the signal's status."""

from __future__ import annotations

import logging
import signal
import threading
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

EXIT_STATUS = 128 + signal.SIGTERM
"""What a shell shows for a process that SIGTERM ended."""

_STEPS_BETWEEN_AGREEMENTS = 10


class SaveOnSigterm(TrainerCallback):
    """Answer SIGTERM with a checkpoint after the step in progress.

    Several processes agree every ten steps, since all of them must stop after the same one.

    Attributes:
        stopped: whether the training was cut short by the signal.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._asked = False
        self._before: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Listen; only a process's main thread can."""
        self.stopped = self._asked = False
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        self._asked = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save and stop, if the signal came."""
        asked = self._asked
        if args.world_size > 1:
            if state.global_step % _STEPS_BETWEEN_AGREEMENTS:
                return
            flag = torch.tensor(float(asked), device=args.device)
            distributed.all_reduce(flag, distributed.ReduceOp.MAX)
            asked = bool(flag.item())
        if asked:
            control.should_save = control.should_training_stop = self.stopped = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop listening."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None
        if self.stopped and state.is_world_process_zero:
            logger.warning(
                "SIGTERM: stopped after step %d, whose checkpoint is in %s. Go on with resume_from_checkpoint=True.",
                state.global_step,
                args.output_dir,
            )

"""What a training that memory or another process failed says: what to lower, how to go on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate.utils.memory import should_reduce_batch_size
from torch.distributed import DistError
from transformers import TrainingArguments

from nlpkd.utils.files import has_checksums, numbered_folders

logger = logging.getLogger(__name__)

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
        by_itself = ", let auto_find_batch_size=True do so" if args.world_size == 1 else ""
        advice = (
            "even with 1 row: use a smaller student or teacher, or a lower max_length"
            if reached_zero
            else f"with {args.train_batch_size} rows a micro-batch: halve per_device_train_batch_size and double "
            f"gradient_accumulation_steps, which changes no result{by_itself}, or lower max_length"
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
            whole = [
                each.name
                for each in numbered_folders(Path(str(args.output_dir)), "checkpoint").values()
                if has_checksums(each)
            ]
            advice = (
                f"go on from {whole[-1]} with resume_from_checkpoint=True (--resume_from_checkpoint True)"
                if whole
                else "it had no whole checkpoint yet (save_steps), so that it begins anew"
            )
            logger.warning("Stopped by Ctrl-C in %s: %s.", args.output_dir, advice)
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
            f"machine did ({' '.join(str(error).split())[:300]}). Its own log says why. Checkpoints in "
            f"{args.output_dir} are whole: start all processes again with resume_from_checkpoint=True "
            "(--resume_from_checkpoint True)"
        ) from error

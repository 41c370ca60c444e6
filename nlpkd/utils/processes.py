"""What a launcher started, what the processes of a run agree on, what the main one tells, and what ends in time."""

from __future__ import annotations

import contextvars
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

Decision = TypeVar("Decision")

Result = TypeVar("Result")


_RANKS = {"RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK"}


def has_rank() -> bool:
    """Check whether a launcher started this process as one of several."""
    return bool(_RANKS & os.environ.keys())


def refuse_lost_processes() -> None:
    """Refuse to be the only one of several processes that were asked for.

    `accelerate launch --cpu --num_processes N` starts one process: it sets the master's address for N, and no rank.

    Raises:
        ValueError: if it is.
    """
    launched = {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    if launched and not has_rank():
        raise ValueError(
            "accelerate launch was asked for several processes and started one, as it does with --cpu. Type "
            "`ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N --num_machines 1 ...` or "
            "`torchrun --nproc_per_node N ...`; where one process is what you want, leave --num_processes out and "
            "unset MASTER_ADDR"
        )


def agree_with_launcher(bf16: bool | None, fp16: bool | None, on_cpu: bool = False) -> tuple[bool | None, bool]:
    """Take the mixed precision that a launcher was asked for, where it was.

    `accelerate launch` says "no" where it was asked for nothing too: then the settings hold.

    Args:
        bf16: of the settings; None where they don't say.
        fp16: likewise.
        on_cpu: whether the training is.

    Returns:
        Whether it is bf16, None where nobody says, and whether it is fp16.

    Raises:
        ValueError: if the launcher was asked for another one than the settings say, for one that is not known here,
            or for fp16 on the CPU, where Accelerate trains in float32 and says nothing.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if launched == "no":
        return bf16, bool(fp16)
    meant = {"bf16": launched == "bf16", "fp16": launched == "fp16"}
    if launched not in meant:
        raise ValueError(f"ACCELERATE_MIXED_PRECISION={launched!r} can't be had: launch with 'no', 'bf16' or 'fp16'")
    # Trainer reads the variable too, and would take False for a setting that nobody made.
    for name, value in {"bf16": bf16, "fp16": fp16}.items():
        if value not in (None, meant[name]):
            raise ValueError(
                f"{name}={value}, and accelerate launch was asked for mixed precision in {launched}, perhaps by its "
                "config file: launch with --mixed_precision no, and the settings decide"
            )
    if on_cpu and meant["fp16"]:
        raise ValueError(
            "accelerate launch was asked for mixed precision in fp16, perhaps by its config file, and training is on "
            "the CPU, where it would be in float32 and nobody would say so: launch with --mixed_precision no, and the "
            "settings decide"
        )
    return meant["bf16"], meant["fp16"]


def decided_by_main_process(decide: Callable[[], Decision]) -> Decision:
    """Let the main process decide for all, so that none waits for another or goes its own way.

    Args:
        decide: called by the main process alone; what it returns must be picklable.

    Returns:
        Its result, on every process.

    Raises:
        ValueError: on the other processes, if it raised anything; the main process raises that itself.
    """
    found: list[Any] = [None, None]
    failure: Exception | None = None
    if PartialState().is_main_process:
        try:
            found[0] = decide()
        except Exception as error:  # The other processes wait for a word.
            failure, found[1] = error, str(error)
    broadcast_object_list(found)
    if failure is not None:
        raise failure
    if found[1] is not None:
        raise ValueError(found[1])
    return found[0]


EXIT_STATUS = 128 + signal.SIGTERM
"""What a shell shows for a process that SIGTERM ended."""


@contextmanager
def sigterm_as_exit() -> Iterator[None]:
    """Let SIGTERM end the block as an exception does, so that it can keep what it has.

    Where something else listens to the signal, or this is not the main thread, which alone can listen, it is left as
    it is.

    Yields:
        Nothing.

    Raises:
        SystemExit: if the signal came.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(EXIT_STATUS)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def within(seconds: float, call: Callable[[], Result]) -> Result:
    """Make a call in a thread, which is left alone when it takes too long.

    Args:
        seconds: that it may take.
        call: the call.

    Returns:
        What it returns; what it raises is raised.

    Raises:
        TimeoutError: if it has not ended by then.
    """
    done: dict[str, Any] = {}

    def work() -> None:
        try:
            done["result"] = call()
        except BaseException as error:  # It is raised where the call was made.
            done["error"] = error

    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True)
    thread.start()
    thread.join(seconds)
    if "error" in done:
        raise done["error"]
    if "result" not in done:
        raise TimeoutError(f"no whole answer within {seconds:g} s")
    return done["result"]

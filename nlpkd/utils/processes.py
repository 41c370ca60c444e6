"""What the processes of one run agree on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

Decision = TypeVar("Decision")


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

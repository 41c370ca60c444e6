"""Clipping and an optimizer's step that a GPU repeats by itself, as it repeats the passes (`cuda_graphs`)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

Record = Callable[[Callable[[], Any]], Callable[[], Any]]
"""Makes a call's replay."""

_SEEN_BEFORE = 2
"""How often the same gradients' places are seen before the call on them is recorded."""

_MOST_PLACES = 256
"""How many places are told apart; where more come up, gradients have no places of their own."""


class RecordedCalls:
    """A call that does the same to the same tensors, recorded once for each set of places that they lie in.

    Every recorded pass of a student leaves its gradients where they were the last time, one place for each shape of a
    batch. So few places come up, and a call on them is one launch in place of many.

    Args:
        record: records a call; by CUDA graphs by default.
    """

    def __init__(self, record: Record | None = None):
        self.record = _CallRecorder().record if record is None else record
        self.seen: Counter[Hashable] = Counter()
        self.replays: dict[Hashable, Callable[[], Any]] = {}
        self.failed = False

    def __call__(self, call: Callable[[], Any], tensors: Iterable[Tensor], settings: Hashable = None) -> Any:
        """Do a call, by its recording where there is one.

        Args:
            call: reads and writes tensors that stay where they are, and waits for nothing.
            tensors: those whose places decide what a recording is good for.
            settings: numbers that a recording has in it.

        Returns:
            What the call returns, a tensor or None; the next call overwrites it.
        """
        places = (settings, *(each.data_ptr() for each in tensors))
        if places in self.replays:
            return self.replays[places]()
        if self.failed:
            return call()
        self.seen[places] += 1
        if len(self.seen) > _MOST_PLACES:
            logger.info("Gradients come up in ever other places: no further steps are recorded as CUDA graphs.")
            self.failed = True
        if self.failed or self.seen[places] <= _SEEN_BEFORE:
            return call()
        try:
            self.replays[places] = self.record(call)
        except RuntimeError as error:
            self.failed = True
            logger.warning(
                "A step could not be recorded as a CUDA graph, and is run as usual: %s", str(error).split("\n")[0]
            )
            return call()
        return self.replays[places]()

    def forget(self) -> None:
        """Forget all recordings: tensors lie elsewhere now."""
        self.seen.clear()
        self.replays.clear()


@cache
def _own_stream(device: int) -> torch.cuda.Stream:
    """Return the stream of a GPU that all recordings are made on: what they free stays theirs to use again."""
    return torch.cuda.Stream(device)


@contextmanager
def own_stream() -> Iterator[None]:
    """Run a block on a stream of its own, after all that was asked for before, and before all that comes after.

    Yields:
        Nothing.
    """
    stream, current = _own_stream(torch.cuda.current_device()), torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)


@contextmanager
def recording(graph: torch.cuda.CUDAGraph, pool: Any) -> Iterator[None]:
    """Record a block as a CUDA graph; it is not run by that.

    `torch.cuda.graph` gives all free memory back before, which takes longer than most recordings here.

    Args:
        graph: what the block becomes.
        pool: the memory that the block's tensors are in.

    Yields:
        Nothing.
    """
    with own_stream():
        # Other threads, such as one that pins batches, may go on with what can't be recorded.
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            yield
        finally:
            graph.capture_end()


class _CallRecorder:
    """Records calls in memory that they share, since each is done before the next."""

    @cached_property
    def pool(self) -> Any:
        """The memory."""
        return torch.cuda.graph_pool_handle()

    def record(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """Record a call; see `Record`."""
        graph = torch.cuda.CUDAGraph()
        with recording(graph, self.pool):
            result = call()

        def replay() -> Any:
            graph.replay()
            return result

        return replay


class RecordedClipping:
    """`torch.nn.utils.clip_grad_norm_` of all that an optimizer moves, recorded.

    Args:
        optimizer: whose parameters' gradients are clipped.
        record: see `RecordedCalls`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, record: Record | None = None):
        self.optimizer, self.calls = optimizer, RecordedCalls(record)

    def __call__(self, max_norm: float) -> Tensor:
        """Scale the gradients so that their norm is at most `max_norm`.

        Returns:
            The norm before, a tensor without dimensions.
        """
        trained = _trained(self.optimizer)
        gradients: list[Any] = [each.grad for each in trained]
        norm = self.calls(lambda: nn.utils.clip_grad_norm_(trained, max_norm), gradients, max_norm)
        # The next one overwrites it, and a log may read it later.
        return norm.clone()


class RecordedAdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` whose fused step may be recorded.

    A recording reads the learning rates as float32 tensors, so that a schedule can go on. Every other step rounds them
    to float32 too, so that what is recorded changes no result. The state is that of `torch.optim.AdamW`.
    """

    calls: RecordedCalls | None = None
    """What records the steps; None: they are done as usual."""

    def load_state_dict(self, state_dict: Any) -> None:
        """Load a state, whose tensors lie elsewhere than those of the recordings."""
        super().load_state_dict(state_dict)
        if self.calls is not None:
            self.calls.forget()

    def step(self, closure: Any = None) -> Any:
        """Do one step; see `torch.optim.AdamW`."""
        trained = _trained(self)
        scaled = getattr(self, "grad_scale", None) is not None or getattr(self, "found_inf", None) is not None
        if self.calls is None or closure is not None or scaled or any(each not in self.state for each in trained):
            rounded = [torch.tensor(group["lr"], dtype=torch.float32).item() for group in self.param_groups]
            with self._at(rounded):
                return super().step(closure)
        for group, rate in zip(self.param_groups, self._rates(), strict=True):
            rate.fill_(group["lr"])
        tensors: list[Any] = [tensor for each in trained for tensor in (each, each.grad)]
        settings = tuple(
            (group["betas"], group["eps"], group["weight_decay"], len(group["params"])) for group in self.param_groups
        )
        return self.calls(self._step_at_rates, tensors, settings)

    def _step_at_rates(self) -> None:
        """Do a step at the rates in the tensors, as only those can be recorded."""
        with self._at(self._rates(), torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):
            super().step()

    def _rates(self) -> list[Tensor]:
        """Return where a recording reads each group's learning rate."""
        if len(self.__dict__.get("_rate_tensors", [])) != len(self.param_groups):
            self._rate_tensors = [torch.zeros((), device=group["params"][0].device) for group in self.param_groups]
        return self._rate_tensors

    @contextmanager
    def _at(self, rates: Sequence[float | Tensor], capturable: bool = False) -> Iterator[None]:
        """Let the groups have other learning rates for a while; a schedule and a checkpoint know their own."""
        given = [(group["lr"], group["capturable"]) for group in self.param_groups]
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"], group["capturable"] = rate, capturable
        try:
            yield
        finally:
            for group, (rate, was_capturable) in zip(self.param_groups, given, strict=True):
                group["lr"], group["capturable"] = rate, was_capturable


def recordable(kind: Any, settings: dict[str, Any], device: torch.device) -> tuple[Any, dict[str, Any]]:
    """Choose `RecordedAdamW` where an optimizer is torch's fused AdamW on a GPU.

    Args:
        kind: the optimizer's class.
        settings: its arguments.
        device: where the parameters are.

    Returns:
        The class and its arguments.
    """
    ours = kind is torch.optim.AdamW and settings.get("fused") and device.type == "cuda"
    return (RecordedAdamW if ours else kind), settings


def _trained(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """List the parameters that a step moves: those with a gradient."""
    return [each for group in optimizer.param_groups for each in group["params"] if each.grad is not None]

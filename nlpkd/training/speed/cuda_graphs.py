"""Passes of student and teacher that a GPU repeats by itself: launching their kernels one by one takes longer."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from nlpkd.models.capture import CapturedOutput
from nlpkd.models.structure import foreign_hook
from nlpkd.objectives.objective_set import ObjectiveSet
from nlpkd.training.loss import DistillationLoss
from nlpkd.training.speed.recorded_steps import (
    RecordedAdamW,
    RecordedCalls,
    RecordedClipping,
    own_stream,
    recording,
)

logger = logging.getLogger(__name__)

_SEEN_BEFORE = 2
"""How often a shape is run as usual before it is recorded: rare ones, such as an epoch's last batch, never are."""

_MOST_SHAPES = 32
"""How many shapes of a model are recorded; each keeps memory for its outputs and a student's gradients."""

_WARM_UPS = 2
"""Passes on the recording's stream before it is recorded."""

_FAMILIES = ("bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta")


def length_multiple(device: torch.device) -> int | None:
    """Return what padded lengths are rounded up to: 8 on a GPU, so that few shapes come up, None elsewhere."""
    return 8 if device.type == "cuda" else None


def can_be_recorded(model: Any) -> bool:
    """Check whether a model's pass is the same kernels for every input of a shape.

    Args:
        model: student or teacher, not wrapped.

    Returns:
        True for transformers' own encoders of some families without hooks of somebody's own.
    """
    own = type(model).__module__.startswith("transformers.")
    return own and model.config.model_type in _FAMILIES and foreign_hook(model) is None


class CudaGraphs:
    """Student and teacher of a training whose passes are CUDA graphs: the same kernels, launched all at once.

    A pass of BERT-base launches some 250 kernels, and its backward twice as many. With short texts each is done
    before the next is launched. A recorded pass is one launch. Dropout draws the same numbers as without.

    Args:
        loss: whose passes are recorded ones until `end`: the teacher's, and the student's together with the objectives
            where these do the same in every step, alone where not.
    """

    def __init__(self, loss: DistillationLoss):
        self.changed: list[Any] = [loss.student]
        loss.student.recorded = RecordedPasses(loss.student.run, trains=True)
        if loss.own is None and not loss.objectives.scheduled and _ours(loss.objectives.members):
            self.changed.append(loss)
            loss.recorded = RecordedPasses(loss.run, trains=True, others=loss.objectives, shared="teacher")
        live = loss.signals.live
        if live is not None and can_be_recorded(live.model):
            self.changed.append(live.capture)
            live.capture.recorded = RecordedPasses(live.capture.run, trains=False)

        self.clipping: RecordedClipping | None = None
        self.optimizer: RecordedAdamW | None = None

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Record an optimizer's steps too, and the clipping before them, if it is one that can be recorded."""
        if isinstance(optimizer, RecordedAdamW):
            self.optimizer, self.clipping = optimizer, RecordedClipping(optimizer)
            optimizer.calls = RecordedCalls()

    def end(self) -> None:
        """Run everything as usual again, and free the memory of what was recorded."""
        for changed in self.changed:
            changed.recorded = None
        if self.optimizer is not None:
            self.optimizer.calls = None


def _ours(objectives: Sequence[Any]) -> bool:
    """Check whether all objectives are nlpkd's, whose passes keep nothing on the host from one to the next."""
    kinds = [type(each) for each in objectives] + [type(getattr(each, "temperature", 1.0)) for each in objectives]
    return all(kind.__module__.split(".")[0] in ("nlpkd", "builtins") for kind in kinds)


class RecordedPasses:
    """The passes of one model, recorded once for each shape of their inputs.

    Args:
        run: what a pass does, given the model and its inputs by name; all that goes in and out is made of tensors.
        trains: whether the passes are a student's, with gradients; a teacher's are without.
        others: what the pass reads beside the model, parameters that it trains among them; where its settings change,
            the pass is another one.
        shared: the name of an input that is another recorded pass's output, and is read where it is.
        record: records a module's forward, given sample inputs, and returns what stands for it; by CUDA graphs by
            default.
    """

    def __init__(
        self,
        run: Callable[[nn.Module, Mapping[str, Any]], Any],
        trains: bool,
        others: ObjectiveSet | None = None,
        shared: str = "",
        record: Callable[[nn.Module, tuple[Tensor, ...]], Callable[..., tuple[Tensor, ...]]] | None = None,
    ):
        self.run, self.trains, self.others, self.shared = run, trains, others, shared
        self.record = _PassRecorder().record if record is None else record
        self.failed = False
        self._begin(None)

    def _begin(self, model: nn.Module | None) -> None:
        """Forget what was recorded: it was another model's."""
        self.model = model
        self.seen: Counter[Any] = Counter()
        self.passes: dict[Any, tuple[_Pass, Callable[..., tuple[Tensor, ...]]]] = {}

    def __call__(self, model: nn.Module, inputs: Mapping[str, Any]) -> Any:
        """Run a model by a recorded pass.

        Args:
            model: what is run.
            inputs: by name.

        Returns:
            What `run` returns. The next pass of the same shape overwrites its tensors of more than two dimensions.
            None where this pass has to be run as usual: its shape is new or rare, or it is none of a training.
        """
        if self.failed or torch.is_grad_enabled() != self.trains or model.training != self.trains:
            return None
        tensors: list[Any] = []
        places = _take_apart(inputs, tensors)
        if not all(isinstance(value, Tensor) for value in tensors):
            return None
        if model is not self.model:
            self._begin(model)
        constants = "" if self.others is None else self.others.constants()
        shape = (str(places), constants, *((value.shape, value.dtype) for value in tensors))
        if shape not in self.passes:
            self.seen[shape] += 1
            if self.seen[shape] <= _SEEN_BEFORE or len(self.passes) >= _MOST_SHAPES:
                return None
            new = _Pass(self.run, model, self.others, places)
            samples: list[Tensor] = []
            for name, value in inputs.items():
                own: list[Tensor] = []
                _take_apart(value, own)
                samples += own if name == self.shared else [each.clone() for each in own]
            replay = self._recorded(new, tuple(samples))
            if replay is None:
                return None
            self.passes[shape] = (new, replay)
        found, replay = self.passes[shape]
        outputs = replay(*tensors)
        # What is small may be kept for longer than a step.
        return _put_together(found.outputs, [each.clone() if each.dim() <= 2 else each for each in outputs])

    def _recorded(self, new: _Pass, samples: tuple[Tensor, ...]) -> Callable[..., tuple[Tensor, ...]] | None:
        """Record a pass; after one failure nothing is tried again."""
        try:
            with _casting_anew(samples[0].device):
                return self.record(new, samples)
        except RuntimeError as error:
            self.failed = True
            self._begin(None)
            logger.warning(
                "A pass could not be recorded as a CUDA graph, and is run as usual: %s", str(error).split("\n")[0]
            )
        return None


class _Pass(nn.Module):
    """A pass from tensors to tensors, which is what can be recorded."""

    def __init__(self, run: Callable[..., Any], model: nn.Module, others: nn.Module | None, places: Any):
        super().__init__()
        self.run, self.model, self.others, self.inputs = run, model, others, places
        self.outputs: Any = None

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the pass, and list the tensors of what it returns."""
        tensors: list[Tensor] = []
        # What autocast kept of an earlier pass is no part of this one, and the next one is to cast anew.
        torch.clear_autocast_cache()
        self.outputs = _take_apart(self.run(self.model, _put_together(self.inputs, inputs)), tensors)
        torch.clear_autocast_cache()
        return tuple(tensors)


@dataclass(frozen=True)
class _Place:
    """Where a value was in what `_take_apart` was given: a tensor by its number, all else by its parts."""

    number: int | None = None
    kind: type | None = None
    parts: Mapping[Any, _Place | None] = field(default_factory=dict)


def _take_apart(value: Any, tensors: list[Any]) -> _Place | None:
    """List the tensors of a value, and return where they were: a tuple, a mapping, `CapturedOutput` or a tensor."""
    if value is None:
        return None
    if isinstance(value, CapturedOutput):
        parts = {each.name: getattr(value, each.name) for each in fields(value)}
    elif isinstance(value, Mapping):
        parts = dict(value)
    elif isinstance(value, tuple):
        parts = {str(number): part for number, part in enumerate(value)}
    else:
        tensors.append(value)
        return _Place(number=len(tensors) - 1)
    kind = dict if isinstance(value, Mapping) else type(value)
    return _Place(kind=kind, parts={name: _take_apart(part, tensors) for name, part in parts.items()})


def _put_together(place: _Place | None, tensors: Sequence[Tensor]) -> Any:
    """Undo `_take_apart`, with other tensors in the same places."""
    if place is None:
        return None
    if place.number is not None:
        return tensors[place.number]
    parts = {name: _put_together(part, tensors) for name, part in place.parts.items()}
    if place.kind is tuple:
        return tuple(parts.values())
    return CapturedOutput(**parts) if place.kind is CapturedOutput else parts


class _PassRecorder:
    """Records passes of one model in memory that they share, since only one of them is under way at a time."""

    @cached_property
    def pool(self) -> Any:
        """The memory."""
        return torch.cuda.graph_pool_handle()

    def record(self, module: nn.Module, samples: tuple[Tensor, ...]) -> Callable[..., tuple[Tensor, ...]]:
        """Record a module's forward, and its backward where gradients are on."""
        # The passes that warm up draw random numbers, which the training is not to miss.
        drawn = torch.cuda.get_rng_state()
        try:
            return _Graphs(module, samples, self.pool)
        finally:
            torch.cuda.set_rng_state(drawn)


class _Graphs:
    """A pass as CUDA graphs, forward and, where gradients are on, backward, which always use the same places.

    `torch.cuda.make_graphed_callables` hands its gradients to autograd, which then visits each of some hundred
    parameters to add them up. A training step has nothing to add to, so these gradients become the parameters' own.

    Args:
        module: takes and returns tensors.
        inputs: what it is recorded with, and where its graphs read their inputs.
        pool: the memory that they are recorded in.
    """

    def __init__(self, module: nn.Module, inputs: tuple[Tensor, ...], pool: Any):
        self.inputs, self.forward, self.backward = inputs, torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        trained = [each for each in module.parameters() if each.requires_grad and torch.is_grad_enabled()]
        # Libraries set themselves up on a stream's first pass, which can't be recorded.
        with own_stream():
            for _ in range(_WARM_UPS):
                _gradients(module(*inputs), trained)
        with recording(self.forward, pool):
            outputs = module(*inputs)
        self.asked = [torch.zeros_like(each) if each.requires_grad else None for each in outputs]
        self.gradients: list[tuple[nn.Parameter, Tensor]] = []
        if any(each is not None for each in self.asked):
            with recording(self.backward, pool):
                gradients = _places(_gradients(outputs, trained, self.asked))
            self.gradients = [(each, own) for each, own in zip(trained, gradients, strict=True) if own is not None]
        self.outputs = tuple(each.detach() for each in outputs)
        # Autograd calls only a node that some input of wants a gradient.
        self.anchor = torch.zeros((), device=inputs[0].device, requires_grad=bool(self.gradients))

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the pass on other inputs of the same shapes; the next run overwrites what it returns."""
        for place, value in zip(self.inputs, inputs, strict=True):
            if place.data_ptr() != value.data_ptr():
                place.copy_(value)
        self.forward.replay()
        return _Replayed.apply(self.anchor, self) if self.gradients else self.outputs

    def give_gradients(self, asked: Sequence[Tensor | None]) -> None:
        """Run the backward pass, and let its gradients be the parameters'.

        Args:
            asked: the gradient of each output; None of one that the loss does not depend on.
        """
        for place, value in zip(self.asked, asked, strict=True):
            if place is not None:
                place.zero_() if value is None else place.copy_(value)
        self.backward.replay()
        for parameter, gradient in self.gradients:
            parameter.grad = gradient


class _Replayed(torch.autograd.Function):
    """The node of autograd that a recorded pass is."""

    @staticmethod
    def forward(context: Any, anchor: Tensor, graphs: _Graphs) -> tuple[Tensor, ...]:
        context.graphs = graphs
        context.set_materialize_grads(False)
        outputs = tuple(each.detach() for each in graphs.outputs)
        context.mark_non_differentiable(
            *(each for each, asked in zip(outputs, graphs.asked, strict=True) if asked is None)
        )
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, *asked: Tensor | None) -> tuple[None, None]:
        context.graphs.give_gradients(asked)
        return None, None


def _gradients(
    outputs: Sequence[Tensor], trained: Sequence[nn.Parameter], asked: Sequence[Tensor | None] | None = None
) -> Sequence[Tensor | None]:
    """Return each parameter's gradient of the outputs that have one, None where it has none.

    Args:
        outputs: of a pass.
        trained: the parameters.
        asked: the gradient of each output; ones by default.
    """
    given = [torch.ones_like(each) for each in outputs] if asked is None else asked
    pairs = [(each, own) for each, own in zip(outputs, given, strict=True) if each.requires_grad]
    if not pairs or not trained:
        return [None] * len(trained)
    return torch.autograd.grad(
        [each for each, _ in pairs], list(trained), [own for _, own in pairs], allow_unused=True
    )


def _places(gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Give each gradient a place of its own, since clipping changes it there: autograd lets several share one."""
    sharing = Counter(each.untyped_storage().data_ptr() for each in gradients if each is not None)
    return [
        each.clone(memory_format=torch.contiguous_format)
        if each is not None and (sharing[each.untyped_storage().data_ptr()] > 1 or not each.is_contiguous())
        else each
        for each in gradients
    ]


def _casting_anew(device: torch.device) -> AbstractContextManager:
    """Make the autocast that is on already, but without keeping casts from one pass to the next."""
    kind = device.type
    return torch.autocast(
        kind, torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind), cache_enabled=False
    )

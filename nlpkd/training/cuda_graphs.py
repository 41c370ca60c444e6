"""Passes of student and teacher that a GPU repeats by itself: launching their kernels one by one takes longer."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from nlpkd.models.capture import Capture, CapturedOutput
from nlpkd.models.structure import foreign_hook
from nlpkd.training.loss import DistillationLoss

logger = logging.getLogger(__name__)

_SEEN_BEFORE = 2
"""How often a shape is run as usual before it is recorded: rare ones, such as an epoch's last batch, never are."""

_MOST_SHAPES = 32
"""How many shapes of a model are recorded; each keeps memory for its outputs and a student's gradients."""

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
        loss: whose captures of student and teacher run by recorded passes until `end`.
    """

    def __init__(self, loss: DistillationLoss):
        self.captures = [loss.student]
        loss.student.recorded = RecordedPasses(loss.student, trains=True)
        live = loss.signals.live
        if live is not None and can_be_recorded(live.model):
            self.captures.append(live.capture)
            live.capture.recorded = RecordedPasses(live.capture, trains=False)

    def end(self) -> None:
        """Run both models as usual again, and free the memory of the recorded passes."""
        for capture in self.captures:
            capture.recorded = None


class RecordedPasses:
    """The passes of one model, recorded once for each shape of its inputs.

    Args:
        capture: whose passes they are.
        trains: whether the passes are a student's, with gradients; a teacher's are without.
        record: replaces a module's forward by a recorded one, given sample inputs; by CUDA graphs by default.
    """

    def __init__(self, capture: Capture, trains: bool, record: Callable[[nn.Module, tuple], Any] | None = None):
        self.capture, self.trains = capture, trains
        self.record = _GraphPool().record if record is None else record
        self.failed = False
        self._begin(None)

    def _begin(self, model: nn.Module | None) -> None:
        """Forget what was recorded: it was another model's."""
        self.model = model
        self.seen: Counter[Any] = Counter()
        self.passes: dict[Any, _Pass] = {}

    def __call__(self, model: nn.Module, inputs: Mapping[str, Any]) -> CapturedOutput | None:
        """Run a model by a recorded pass.

        Args:
            model: what is run.
            inputs: its arguments.

        Returns:
            Its outputs. The next pass of the same shape overwrites all but the logits. None where this pass has to be
            run as usual: its shape is new or rare, or it is none of a training.
        """
        usual = self.failed or torch.is_grad_enabled() != self.trains or model.training != self.trains
        if usual or not all(isinstance(value, Tensor) for value in inputs.values()):
            return None
        if model is not self.model:
            self._begin(model)
        shape = tuple((name, value.shape, value.dtype) for name, value in inputs.items())
        if shape not in self.passes:
            self.seen[shape] += 1
            if self.seen[shape] <= _SEEN_BEFORE or len(self.passes) >= _MOST_SHAPES:
                return None
            if not self._add(shape, model, inputs):
                return None
        found = self.passes[shape]
        with _casting_anew(next(iter(inputs.values())).device):
            return found.outputs(found(*inputs.values()))

    def _add(self, shape: Any, model: nn.Module, inputs: Mapping[str, Tensor]) -> bool:
        """Record the pass of a shape; after one failure nothing is tried again."""
        new = _Pass(self.capture, model, list(inputs))
        try:
            with _casting_anew(next(iter(inputs.values())).device):
                self.record(new, tuple(value.clone() for value in inputs.values()))
        except RuntimeError as error:
            self.failed = True
            self._begin(None)
            logger.warning(
                "CUDA graphs are off: a pass could not be recorded, and is run as usual. %s", str(error).split("\n")[0]
            )
            return False
        self.passes[shape] = new
        return True


class _Pass(nn.Module):
    """A model's pass from tensors to tensors, which is what can be recorded."""

    def __init__(self, capture: Capture, model: nn.Module, names: list[str]):
        super().__init__()
        self.capture, self.model, self.names = capture, model, names
        self.places: dict[str, Any] = {}

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the model, and list the tensors among its outputs."""
        # What autocast kept of an earlier pass is no part of this one, and the next one is to cast anew.
        torch.clear_autocast_cache()
        captured = self.capture.run(self.model, dict(zip(self.names, inputs, strict=True)))
        torch.clear_autocast_cache()
        tensors: list[Tensor] = []

        def placed(value: Any) -> Any:
            if isinstance(value, tuple):
                return [placed(each) for each in value]
            if value is None:
                return None
            tensors.append(value)
            return len(tensors) - 1

        self.places = {field.name: placed(getattr(captured, field.name)) for field in fields(captured)}
        return tuple(tensors)

    def outputs(self, tensors: tuple[Tensor, ...]) -> CapturedOutput:
        """Put listed tensors back where they were."""

        def found(place: Any) -> Any:
            if isinstance(place, list):
                return tuple(found(each) for each in place)
            return None if place is None else tensors[place]

        outputs = CapturedOutput(**{name: found(place) for name, place in self.places.items()})
        # The recorded pass always writes into the same memory, and logits may be kept for longer than a step.
        outputs.logits = outputs.logits.clone()
        return outputs


class _GraphPool:
    """Records passes of one model in memory that they share, since only one of them is under way at a time."""

    def __init__(self) -> None:
        self.pool: Any = None

    def record(self, module: nn.Module, samples: tuple[Tensor, ...]) -> None:
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()
        # The passes that warm up draw random numbers, which the training is not to miss.
        drawn = torch.cuda.get_rng_state()
        try:
            torch.cuda.make_graphed_callables(module, samples, allow_unused_input=True, pool=self.pool)
        finally:
            torch.cuda.set_rng_state(drawn)


def _casting_anew(device: torch.device) -> AbstractContextManager:
    """Make the autocast that is on already, but without keeping casts from one pass to the next."""
    kind = device.type
    return torch.autocast(
        kind, torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind), cache_enabled=False
    )

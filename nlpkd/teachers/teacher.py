"""Where the teacher's outputs come from: a model that is run, or columns of the data."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nlpkd.data.columns import HIDDEN_STATES, TEACHER_LOGITS
from nlpkd.data.labels.classes import least_logits, thresholds_of
from nlpkd.models.attention import Wanted
from nlpkd.models.capture import Capture, CapturedOutput
from nlpkd.models.ensemble import TeacherEnsemble
from nlpkd.models.inference import inference_copy
from nlpkd.models.structure import is_quantized


class Teacher(Protocol):
    """What the trainer asks of a teacher.

    Attributes:
        name: which of several teachers it is, for messages; "" for the only one.
    """

    name: str

    def outputs(self, batch: Mapping[str, Any]) -> CapturedOutput:
        """Return the teacher's outputs for a collated batch, labels in the student's order, without gradients."""

    def members(self) -> Iterator[Teacher]:
        """Yield each model alone; a label order that it is given before the next one is kept."""


class LiveTeacher:
    """A model that is run on every batch: in eval mode, frozen, without gradients.

    Args:
        model: the teacher; moved to `device`, set to eval, its parameters frozen; its weights are never changed.
        wanted: kinds and layers that the objectives need of it.
        device: where it runs.
        order: order[k] is the index that the teacher gives the student's label k; None where nothing tells it.
        prefix: `"teacher_"` where the batch has columns made with the teacher's own tokenizer.
        token_ids: where the student reads a trimmed vocabulary and both have to read the same tokens: entry k is the
            teacher's id of the student's token k.
        autocast: makes the context that the forward runs in (mixed precision); a quantised model runs without.
        name: which of several teachers it is, for messages.
    """

    def __init__(
        self,
        model: nn.Module,
        wanted: Wanted,
        device: torch.device,
        *,
        order: Sequence[int] | None = None,
        prefix: str = "",
        token_ids: Sequence[int] | None = None,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        name: str = "",
    ):
        self.name = name
        self.order_known = order is not None
        self.model = model.to(device).eval().requires_grad_(False)
        self.first_token = not wanted.get("hidden_states")
        self.capture = Capture(model, wanted, "teacher", prefix)
        self.device = device
        # Listed once: to walk through all modules on every batch would take longer than to compare.
        self._parameters = list(self.model.parameters())
        self.release()
        self.token_ids = None if token_ids is None else torch.tensor(token_ids, device=device)
        self.autocast = nullcontext if is_quantized(model) else autocast
        self.order: Tensor | None = None
        self.reorder(order)

    def members(self) -> Iterator[Teacher]:
        """See `Teacher.members`."""
        if not isinstance(self.model, TeacherEnsemble):
            yield self
            return
        ensemble = self.model
        for number, (model, capture) in enumerate(zip(ensemble.members, ensemble.captures, strict=True)):
            alone = LiveTeacher(
                model, {}, self.device, order=ensemble.orders[number], prefix=capture.prefix, autocast=self.autocast,
                name=ensemble.names[number],
            )  # fmt: skip
            yield alone
            if alone.order is not None:
                ensemble.reorder(number, alone.order.tolist())

    def reorder(self, order: Sequence[int] | None) -> None:
        """Set the label order; the identity costs nothing."""
        identity = order is None or list(order) == list(range(len(order)))
        self.order = None if identity else torch.tensor(order, device=self.device)
        vars(self).pop("least_logits", None)

    @property
    def thresholds(self) -> list[float] | None:
        """The thresholds of a multi-label teacher, in the student's label order; None where it has none."""
        if isinstance(self.model, TeacherEnsemble):
            return self.model.thresholds()
        order = None if self.order is None else self.order.tolist()
        return thresholds_of(getattr(self.model, "config", None), order)

    @cached_property
    def least_logits(self) -> Tensor | None:
        """What the logit of a label that the teacher gives is above, `(labels,)`; None where it has no thresholds."""
        # Kept where the batches are, so that no step waits for a copy.
        own = self.thresholds
        return None if own is None else torch.tensor(least_logits(own), dtype=torch.float32, device=self.device)

    def outputs(self, batch: Mapping[str, Any]) -> CapturedOutput:
        """Run the teacher; see `Teacher.outputs`."""
        if self.token_ids is not None:
            batch = {**batch, "input_ids": self.token_ids[batch["input_ids"]]}
        # no_grad, since tensors made in inference mode can't be saved for a loss's backward.
        with torch.no_grad(), self.autocast():
            captured = self.capture(self._running(), batch)
        if self.order is not None and captured.logits is not None:
            captured.logits = captured.logits[:, self.order]
        return captured

    def release(self) -> None:
        """Drop the copy that is run in the teacher's place, and its thresholds; the next batch makes them again."""
        vars(self).pop("least_logits", None)
        self._copy: nn.Module | None = None
        self._copy_of: list[tuple[int, torch.device]] = []

    def _running(self) -> nn.Module:
        state = [(tensor._version, tensor.device) for tensor in self._parameters]
        if self._copy is None or self.model.training or state != self._copy_of:
            # Who has the teacher may have set it to train since.
            self.model.eval()
            self._copy, self._copy_of = inference_copy(self.model, self.device.type, self.first_token), state
        return self._copy


class CachedTeacher:
    """Outputs that the data set brings along: logits in `teacher_logits`, states in `teacher_hidden_states_K`.

    Args:
        capture: of the model whose outputs they are, where it is there; says which token stands for a text.
    """

    name = ""

    def __init__(self, capture: Capture | None = None):
        self.capture = capture

    def members(self) -> Iterator[Teacher]:
        """See `Teacher.members`."""
        yield self

    def gives(self, columns: Container[str], wanted: Wanted) -> bool:
        """Check whether columns hold logits and all that the objectives want of the teacher."""
        states = all(HIDDEN_STATES.format(layer) in columns for layer in wanted.get("hidden_states", ()))
        return TEACHER_LOGITS in columns and states and wanted.keys() <= {"hidden_states"}

    def outputs(self, batch: Mapping[str, Any]) -> CapturedOutput:
        """Read the batch's columns; see `Teacher.outputs`."""
        prefix = HIDDEN_STATES.format("")
        states = {int(name.removeprefix(prefix)): batch[name] for name in batch if name.startswith(prefix)}
        layers = tuple(states.get(layer) for layer in range(max(states) + 1)) if states else None
        pooled_index = self.capture.pooled_index(batch) if layers and self.capture is not None else None
        return CapturedOutput(logits=batch[TEACHER_LOGITS], hidden_states=layers, pooled_index=pooled_index)

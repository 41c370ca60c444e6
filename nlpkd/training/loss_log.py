"""The parts of the loss between two logs, and where they first became NaN."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from torch import Tensor

_LOOK_AFTER = 1_000


_NAMED_ROWS = 64


class LossAccumulator:
    """The parts of the loss and the gradients' norms since they were last looked at.

    Nothing is read from the device before `check` or `means`, which all processes call together.

    Args:
        names: of the parts.
        accelerator: of the training.
        device: where the parts are.
    """

    def __init__(self, names: Sequence[str], accelerator: Any, device: torch.device):
        self.names, self.accelerator = list(names), accelerator
        self._total = torch.zeros(len(names), device=device)
        self.restart()

    def restart(self) -> None:
        """Forget everything, before a training; a resumed one starts at a step that is not known yet."""
        self._total.zero_()
        self._added: set[str] = set()
        self._since: int | None = None
        self._step = 0
        self._clear()

    def _clear(self) -> None:
        self._batches: list[tuple[int, Tensor, list[int] | None]] = []
        self._norms: list[tuple[int, Tensor]] = []

    def set_step(self, step: int) -> None:
        """Set which optimizer step comes next, counted from 0."""
        self._since = step if self._since is None else self._since
        self._step = step
        # Checked in between where nothing is logged for long, so that memory stays bounded.
        if len(self._batches) >= _LOOK_AFTER:
            self.check()

    def add(self, parts: Tensor, rows: list[int] | None) -> None:
        """Note the parts of a micro-batch, `(parts,)` or fewer of the first, and the numbers of its rows."""
        self._total[: len(parts)] += parts
        self._added.update(self.names[: len(parts)])
        self._batches.append((self._step, parts, rows))

    def add_last(self, part: Tensor | float) -> None:
        """Add to the last part, outside of any micro-batch."""
        self._total[-1] += part
        self._added.add(self.names[-1])

    def add_norm(self, norm: Tensor) -> None:
        """Note the norm of an optimizer step's gradients, the same on all processes."""
        self._norms.append((self._step, norm.detach().float().to(self._total.device)))

    def means(self, step: int) -> dict[str, float]:
        """Check, give each part's mean over the steps since the last time, and start over.

        Args:
            step: how many optimizer steps are done.

        Returns:
            The means by name, of those parts that anything was added to; none where no step was done.

        Raises:
            FloatingPointError: as `check` does.
        """
        steps = step - (self._since or 0)
        if steps <= 0:
            return {}
        means = {name: part / steps for name, part in zip(self.names, self.check(), strict=True)}
        means = {name: mean for name, mean in means.items() if name in self._added}
        self._total.zero_()
        self._added = set()
        self._since = step
        return means

    def check(self) -> list[float]:
        """Read the parts' sums over steps and processes.

        Returns:
            A sum for each part.

        Raises:
            FloatingPointError: if a part or the gradients became NaN or infinite: what, in which step, on which rows.
        """
        norms = torch.stack([torch.zeros_like(self._total[0]), *(norm for _, norm in self._norms)])
        *parts, norm = self.accelerator.reduce(torch.cat([self._total, norms.sum()[None]]), "sum").tolist()
        if not all(map(math.isfinite, [*parts, norm])):
            raise FloatingPointError(_explain(gather_object([self._first_bad(parts)])))
        self._clear()
        return parts

    def _first_bad(self, parts: Sequence[float]) -> _Bad:
        """Find the first NaN or infinite number that this process saw."""
        bad_norms = [step for step, norm in self._norms if not norm.isfinite()]
        for step, seen, rows in self._batches:
            if bad_norms and bad_norms[0] < step:
                break
            if not seen.isfinite().all():
                return _Bad(step, True, self._names_of(seen.tolist()), rows or [])
        if bad_norms:
            rows = [row for step, _, those in self._batches if step == bad_norms[0] for row in those or []]
            return _Bad(bad_norms[0], False, self.names, rows)
        return _Bad(self._step, True, self._names_of(parts), [])

    def _names_of(self, parts: Sequence[float]) -> list[str]:
        return [name for name, part in zip(self.names, parts, strict=False) if not math.isfinite(part)]


class _Bad(NamedTuple):
    step: int
    in_loss: bool
    names: list[str]
    rows: list[int]


def _explain(found: Sequence[_Bad]) -> str:
    first = [bad for bad in found if bad.step == min(bad.step for bad in found)]
    # A loss says more than the gradients that it spoils.
    telling = [bad for bad in first if bad.in_loss] or first
    names = ", ".join(dict.fromkeys(name for bad in telling for name in bad.names))
    rows = [row for bad in telling for row in bad.rows]
    listed = ", ".join(map(str, rows[:_NAMED_ROWS])) + (", ..." if len(rows) > _NAMED_ROWS else "")
    where = f"on rows {listed} of the training data" if rows else "on rows that this order of batches does not tell"
    what = names if telling[0].in_loss else f"the gradients of {names} (the losses are finite)"
    return (
        f"{what} became NaN or infinite in step {telling[0].step + 1}, {where}: look at these rows and at what the "
        "teacher gives for them, lower learning_rate, or turn off fp16 (bf16 is safer). Nothing was saved since"
    )

"""Temperatures of soft targets: constant, moving over the training, or of each example."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from nlpkd.utils.field_types import are_numbers, plain_fields, plain_numbers


@dataclass(frozen=True)
class Temperature(ABC):
    """A temperature that depends on the progress of training or on the example."""

    couples_rows = False
    scheduled = False

    def __post_init__(self) -> None:
        plain_fields(self)

    @abstractmethod
    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, progress: float) -> float | Tensor:
        """Return the temperature.

        Args:
            student_logits: `(batch, labels)`.
            teacher_logits: `(batch, labels)`.
            progress: share of the training that is done before the step, 0 to 1.

        Returns:
            A number, or one a row, `(batch, 1)`: finite, above 0. Its gradient is not followed.
        """

    def of(self, student_logits: Tensor, teacher_logits: Tensor, progress: float) -> float | Tensor:
        """Return the temperature as the contract of `__call__` has it, whoever wrote that.

        Args:
            student_logits: see `__call__`, as for the other arguments.
            teacher_logits: `(batch, labels)`.
            progress: share of the training that is done before the step.

        Returns:
            A number, or one a row, `(batch, 1)`, without a gradient.

        Raises:
            ValueError: if it is neither, or not above 0.
        """
        found = plain_numbers(self(student_logits, teacher_logits, progress))
        rows = len(student_logits)
        if isinstance(found, Tensor):
            found = found.detach()
            # The library's own is in range, and a GPU would be waited for.
            known = type(self) is FocalTemperature
            fits = found.shape in ((), (rows, 1)) and (known or bool((found.isfinite() & (found > 0)).all()))
        else:
            fits = are_numbers(found) and 0 < found < math.inf
        if not fits:
            kind = f"a tensor {tuple(found.shape)} of {found.tolist()}" if isinstance(found, Tensor) else f"{found!r}"
            raise ValueError(
                f"{type(self).__name__} must give a temperature above 0: a number, or a tensor with one a row, "
                f"{(rows, 1)} for these {rows} rows. It gave {kind:.80}"
            )
        return found

    def config(self) -> dict[str, Any]:
        """Describe this temperature for the run record."""
        return {"class": type(self).__name__} | asdict(self)


@dataclass(frozen=True)
class ConstantTemperature(Temperature):
    """T.

    Args:
        value: T > 0.
    """

    value: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive(self.value)

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, progress: float) -> float:
        """Return T; see `Temperature`."""
        return self.value

    def config(self) -> Any:
        """Describe this temperature for the run record: the number."""
        return self.value


@dataclass(frozen=True)
class LinearTemperature(Temperature):
    """T moves evenly from `start` towards `end` over the training: start + (end - start) * progress.

    Step k of N, counted from 0, has the progress k / N.

    Falling to 1 it is the temperature of annealed distillation (Jafari et al. 2021, "Annealing Knowledge
    Distillation", arXiv:2104.07163, which lets it fall in steps of whole numbers).

    Args:
        start: T > 0 at the first step.
        end: T > 0 that it moves towards, and would have after the last step; evaluations have it.
    """

    start: float = 4.0
    end: float = 1.0
    scheduled = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive(self.start)
        _require_positive(self.end)

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, progress: float) -> float:
        """Interpolate; see `Temperature`."""
        return self.start + (self.end - self.start) * progress


@dataclass(frozen=True)
class FocalTemperature(Temperature):
    """One T an example: lower, so sharper, where the student is still far from the teacher.

    T_i = base + beta * (mean_j w_j - w_i), w_i = (1 - cos(student logits_i, teacher logits_i))^gamma, at least
    `minimum`: the dynamic temperature with focal weights of Wen, Lai and Qian 2019, "Preparing Lessons: Improve
    Knowledge Distillation with Better Supervision", arXiv:1911.07471. The mean is over the micro-batch.

    Args:
        base: T of an example of average difficulty, > 0.
        beta: how far T moves, >= 0.
        gamma: how much more the difficult examples stand out, > 0.
        minimum: the lowest T, > 0.
    """

    base: float = 2.0
    beta: float = 1.0
    gamma: float = 1.0
    minimum: float = 0.5
    couples_rows = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive(self.base)
        _require_positive(self.gamma)
        _require_positive(self.minimum)
        if not (are_numbers(self.beta) and 0 <= self.beta <= _HIGHEST):
            raise ValueError(f"beta must be >= 0 and at most {_HIGHEST:g}, got {self.beta!r:.80}")

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, progress: float) -> Tensor:
        """Compare student and teacher; see `Temperature`."""
        with torch.no_grad():
            cosine = torch.cosine_similarity(student_logits.float(), teacher_logits.float(), dim=-1)
            distance = (1 - cosine).clamp(min=0).pow(self.gamma)
            return (self.base + self.beta * (distance.mean() - distance)).clamp(min=self.minimum)[:, None]


class TemperatureSetting:
    """An objective's temperature; a number that is assigned becomes a constant one."""

    def __get__(self, objective: Any, kind: Any = None) -> Any:
        return self if objective is None else objective._temperature

    def __set__(self, objective: Any, value: float | Temperature) -> None:
        objective._temperature = value if isinstance(value, Temperature) else ConstantTemperature(value)


_HIGHEST = 1000.0
"""Above it softened probabilities differ by less than float32 tells, and nothing would be learned."""


def _require_positive(value: float) -> None:
    if not (are_numbers(value) and 0 < value <= _HIGHEST):
        raise ValueError(
            f"temperature must be > 0 and at most {_HIGHEST:g}, got {value!r:.80}: what soft targets tend to at high "
            "temperatures is LogitMSELoss"
        )

"""Whether objectives keep the contract of `nlpkd.objectives.base.Objective`, said before a training and not in it."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import fields, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nlpkd.objectives.base import FEATURES, KINDS, Objective
from nlpkd.objectives.loss_function import LossFunction
from nlpkd.tasks import TASKS
from nlpkd.utils.field_types import LARGEST

if TYPE_CHECKING:
    # What names the presets needs no transformers.
    from nlpkd.models.capture import CapturedOutput


def refuse_other_objectives(objectives: Any) -> None:
    """Refuse what is no list of objectives, such as a preset's name, and objectives that say what can't be.

    Args:
        objectives: what was given in their place.

    Raises:
        ValueError: with what to give instead.
    """
    several = isinstance(objectives, (list, tuple, nn.ModuleList))
    if not several or not all(isinstance(each, Objective) for each in objectives):
        raise ValueError(
            f"objectives must be a list of objectives, such as [CrossEntropyLoss(), ForwardKLLoss()], got "
            f"{objectives!r:.80}: of a preset give resolve('hinton')[0].objectives (nlpkd.objectives.presets), or to "
            "distill its name alone"
        )
    for number, objective in enumerate(objectives):
        if any(objective is each for each in objectives[:number]):
            kind = type(objective).__name__
            raise ValueError(
                f"objectives has the same {kind} twice, and each has parameters of its own: give a second instance, "
                f"another {kind}(...), or it once with twice the weight"
            )
        _refuse_broken(objective)


def _refuse_broken(objective: Objective) -> None:
    kind = type(objective).__name__
    if "_modules" not in vars(objective):
        raise ValueError(f"the constructor of {kind} must call super().__init__(weight) before all else")
    needs, tasks = (getattr(objective, name, None) for name in ("needs", "tasks"))
    if not isinstance(needs, (set, frozenset)) or not needs <= KINDS:
        raise ValueError(f"{kind}.needs must be a set of some of {sorted(KINDS)}, got {needs!r:.80}")
    if not isinstance(tasks, (set, frozenset, list, tuple)) or not set(tasks) <= set(TASKS):
        raise ValueError(f"{kind}.tasks must be a set of some of {sorted(TASKS)}, got {tasks!r:.80}")
    for name in ("settings", "limits"):
        named = getattr(objective, name)
        missing = named if isinstance(named, str) else [each for each in named if not hasattr(objective, each)]
        if missing:
            raise ValueError(f"{kind}.{name} must name attributes that it has, and it has no {missing!r:.80}")
    # As far as it is known before student and teacher are.
    _refuse_unwritable(kind, Objective.config(objective))


def _refuse_unwritable(kind: str, config: Mapping[str, Any]) -> None:
    for name, value in config.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise ValueError(
                f"{kind}: {name} is recorded with the run, and a {type(value).__name__} can't be written down, got "
                f"{value!r:.80}: keep a text, a finite number, or a list or mapping of them under this name, or leave "
                "it out of settings"
            ) from None


def refuse_broken_bound(objective: Objective, student_config: Any, teacher_config: Any) -> None:
    """Refuse an objective that reads layers and names none or some that there are not, or can't be told or saved.

    Args:
        objective: bound to the two.
        student_config: the student's config, or None.
        teacher_config: the teacher's, or None.

    Raises:
        ValueError: with the kinds of output, the layers, the setting or the part of its state.
    """
    kind, wanted = type(objective).__name__, objective.required_layers()
    _refuse_unwritable(kind, objective.config())
    for name, value in objective.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{kind}: {name} of its state_dict is saved with checkpoints, which hold tensors alone, got "
                f"{value!r:.80}: keep it as a buffer, or let get_extra_state return a tensor"
            )
    pair = isinstance(wanted, (list, tuple)) and len(wanted) == 2 and all(isinstance(each, Mapping) for each in wanted)
    named = {output for each in wanted for output in each} if pair else set()
    if not pair or (unnamed := sorted((objective.needs & FEATURES) - named)):
        raise ValueError(
            f"{kind} needs {unnamed if pair else 'layers'} and names none: derive it from LayerObjective, or let "
            "required_layers return those of student and teacher, as {'hidden_states': {2}}, {'hidden_states': {4}}"
        )
    for role, config, outputs in zip(("student", "teacher"), (student_config, teacher_config), wanted, strict=True):
        last = getattr(config, "num_hidden_layers", None)
        for output, layers in outputs.items():
            first = 0 if output == "hidden_states" else 1
            listed = isinstance(layers, Collection) and not isinstance(layers, str) and len(layers) > 0
            if output not in FEATURES or not listed or not all(_is_layer(each, first, last) for each in layers):
                raise ValueError(
                    f"{kind}.required_layers names {layers!r:.80} as {output!r} of the {role}: give a set of whole "
                    f"numbers from {first} to {'the last' if last is None else last} by a name of {sorted(FEATURES)}"
                )


def _is_layer(number: Any, first: int, last: int | None) -> bool:
    return isinstance(number, Integral) and first <= int(number) <= (LARGEST if last is None else last)


def refuse_broken_loss(
    objective: Objective | LossFunction, student: CapturedOutput, teacher: Any, batch: Mapping[str, Any]
) -> None:
    """Refuse an objective whose count or total of a batch is no single number, or of which a student can't learn.

    A total of 0 needs no gradient, as that of rows without labels, and neither does one that is logged with weight 0.

    Args:
        objective: bound, or a `compute_loss_func`. A copy of it is tried, since it may remember what it has seen.
        student: the student's outputs on the batch.
        teacher: the teacher's, or None.
        batch: a collated one.

    Raises:
        ValueError: with what it gave.
    """
    kind = type(objective).__name__
    whose = "compute_loss_func" if isinstance(objective, LossFunction) else f"{kind}.total"
    try:
        count, total = _tried(objective, _with_gradients(student), teacher, batch)
    except Exception as error:
        if "used in the graph" in str(error):
            # It differentiates by what the student computed its outputs from, which these here have no trace of.
            return
        try:
            with torch.no_grad():
                _tried(objective, student, teacher, batch)
        except Exception:
            # What fails in its own code fails in the training, where what it relies on may be there.
            return
        raise ValueError(f"{whose} fails where the student's outputs have a gradient: {error}") from error
    for name, value in ((f"{kind}.count", count), (whose, total)):
        scalar = isinstance(value, Tensor) and value.ndim == 0 and not value.is_complex()
        # A total of 0 without a gradient may be a plain number.
        if not scalar and not (name == whose and isinstance(value, Real)):
            shape = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else f"{value!r:.80}"
            raise ValueError(
                f"{name} must give a single number as a float32 tensor without dimensions, such as torch.tensor(8.0), "
                f"and gave {shape}"
            )
    if count.dtype is torch.bool or not 0 <= float(count) < math.inf:
        raise ValueError(f"{kind}.count must give how many the mean runs over, 0 or more, and gave {count.item()}")
    if not _has_gradient(total) and float(total) == 0:
        # By chance perhaps: of a student that decides otherwise it is not.
        with suppress(Exception):
            _, other = _tried(objective, _with_gradients(student, -1.0), teacher, batch)
            total = other if _has_gradient(other) else float(other)
    if not _has_gradient(total) and float(total) != 0 and objective.weight != 0:
        raise ValueError(
            f"{whose} gave {float(total):.4g} without a gradient, and nothing would be learned from it: compute it of "
            "the student's outputs without detach, numpy, argmax or comparisons, or log it by an objective of weight 0"
        )


def _tried(objective: nn.Module, student: Any, teacher: Any, batch: Mapping[str, Any]) -> tuple[Any, Any]:
    tried: Any = copy.deepcopy(objective)
    return tried.count(batch), tried.total(student, teacher, batch)


def _has_gradient(total: Any) -> bool:
    return isinstance(total, Tensor) and total.requires_grad


def _with_gradients(outputs: CapturedOutput, factor: float = 1.0) -> CapturedOutput:
    """Return outputs, times a factor, as those of a student whose weights are all trained."""

    def grown(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(grown, value))
        floating = isinstance(value, Tensor) and value.is_floating_point()
        # No leaf of a graph, which can't be changed in place.
        return value.detach().requires_grad_() * factor if floating else value

    return replace(outputs, **{each.name: grown(getattr(outputs, each.name)) for each in fields(outputs)})

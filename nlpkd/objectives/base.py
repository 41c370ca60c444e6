"""The contract that every objective keeps, and what they share."""

from __future__ import annotations

import copy
import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nlpkd.models.layers import LayerSpec, map_layers
from nlpkd.objectives.limits import FINITE_WEIGHT, Limit
from nlpkd.objectives.temperature import Temperature
from nlpkd.tasks import SINGLE_LABEL, TASKS, task_of
from nlpkd.utils.field_types import plain_numbers

FEATURES = frozenset({"hidden_states", "attentions", "queries", "keys", "values"})
"""Kinds of output that belong to a layer and to tokens."""


KINDS = FEATURES | {"logits", "labels"}
"""All that an objective may need."""


def attention_heads(config: Any) -> int:
    """Return how many attention heads a layer has.

    Raises:
        ValueError: for a family without any, such as FNet, which mixes tokens by Fourier transforms.
    """
    heads = getattr(config, "num_attention_heads", None)
    if heads is None:
        raise ValueError(
            f"a model of the kind {config.model_type!r} has no attention heads to match: use objectives on logits or "
            "hidden states"
        )
    return heads


class Objective(nn.Module, ABC):
    """One term of the loss, on what student and teacher gave for a batch.

    A subclass says what it `needs`, computes `total` and `count`, and never holds a model. Its value is total / count:
    the trainer divides the total of every micro-batch of every process by the count of the whole optimizer step, so
    that a result does not depend on padding, batch split, number of processes or accumulation.

    Attributes:
        needs: what it reads, of `KINDS`; settings may narrow it.
        citation: the paper.
        settings: names of the attributes that tell it from others of its class, for `config`.
        limits: which values settings can have, by name; the constructor, `again` and assignments go by them.
        fixed_by_bind: names of those that `bind` builds on, which can't be assigned any more once a trainer called it.
        teacher_needed: whether it reads the teacher's outputs.
        tasks: the problem types that it is defined for.
        couples_rows: its value depends on which rows share a micro-batch (relations between examples), so that totals
            of parts of a batch do not add up to the whole's.
        fewest_rows: of a micro-batch that one that couples rows can relate.
        num_labels: how many logits a row has, where rows or classes tell it of a student without a config.
        progress: share of the training that is done before the step, 0 to 1, for schedules; the trainer keeps it.
        bound_in: whose parameters it has, kept by `nlpkd.objectives.objective_set.ObjectiveSet`.
        before_bound: arguments of the constructor whose attributes `bind` replaced, as they were before.

    Args:
        weight: factor of this objective in the sum, >= 0.

    Raises:
        ValueError: if the weight is negative, as it is if one that can't be had is assigned.
    """

    needs: frozenset[str]
    citation: ClassVar[str] = ""
    settings: ClassVar[tuple[str, ...]] = ()
    limits: ClassVar[Mapping[str, Limit]] = {"weight": FINITE_WEIGHT}
    fixed_by_bind: ClassVar[tuple[str, ...]] = ()
    teacher_needed: ClassVar[bool] = True
    tasks: ClassVar[frozenset[str]] = frozenset(TASKS)
    couples_rows: bool = False
    fewest_rows: ClassVar[int] = 2
    task: str = SINGLE_LABEL
    num_labels: int | None = None
    progress: float = 0.0
    bound_in: Any = None
    before_bound: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, weight: float = 1.0):
        super().__init__()
        self.weight = weight

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse a setting that student and teacher were bound with, and a value that a setting can't have.

        What is assigned holds from the next micro-batch on. Numbers of numpy become Python's.
        """
        if name in (*self.fixed_by_bind, *self.settings, *self.limits):
            value = plain_numbers(value)
        if name in self.fixed_by_bind and self.bound_in is not None:
            raise ValueError(
                f"{type(self).__name__}.{name} was settled when a trainer bound student and teacher, and would not be "
                f"followed now: make another objective, as again({name}=...) does, and give it to another trainer"
            )
        limit = self.limits.get(name)
        if limit is not None and not limit.allows(value):
            raise ValueError(f"{type(self).__name__}: {name} must be {limit.words}, got {value!r:.80}")
        super().__setattr__(name, value)
        if name in self.before_bound:
            self.before_bound = {each: before for each, before in self.before_bound.items() if each != name}

    def again(self, **settings: Any) -> Objective:
        """Make the same objective anew, not bound, with other settings.

        Args:
            **settings: arguments of the constructor to change; the others are the attributes of their names, without
                what `bind` made of them.

        Returns:
            The objective, which shares nothing with this one.

        Raises:
            ValueError: if an argument of its constructor is no attribute of it.
        """
        names = [name for name in setting_names(type(self)) if name not in settings]
        if missing := [name for name in names if not hasattr(self, name)]:
            raise ValueError(
                f"{type(self).__name__} can't be made again: its constructor takes {', '.join(missing)}, and it has "
                "no attribute of that name. Keep each argument under its own name"
            )
        kept = {name: getattr(self, name) for name in names}
        kept |= {name: value for name, value in self.before_bound.items() if name in names}
        return type(self)(**copy.deepcopy(kept), **settings)

    @property
    def name(self) -> str:
        """The name in logs and records: `ForwardKLLoss` is `forward_kl`; the class's own where no word is left."""
        words = re.findall(r"[A-Z]+(?=[A-Z][a-z]|$)|[A-Z][a-z0-9]*", type(self).__name__.removesuffix("Loss"))
        return "_".join(words).lower() or type(self).__name__

    def bind(self, student_config: Any, teacher_config: Any) -> None:
        """Resolve layers, build projections, and refuse what can't match.

        A trainer calls it before its training. Called again, it starts anew: what an earlier training left in this
        objective's own parameters is gone.

        Args:
            student_config: the student's `PretrainedConfig`, or None for a plain module.
            teacher_config: the teacher's; None without one (cached columns), a list of them for several teachers.

        Raises:
            ValueError: if this objective can't work on this pair or task.
        """
        self.task = task_of(student_config) or SINGLE_LABEL
        if self.task not in self.tasks:
            raise ValueError(
                f"{type(self).__name__} is for {' or '.join(sorted(self.tasks))}, the task is {self.task!r}"
            )

    def bind_anew(self, student_config: Any, teacher_config: Any) -> None:
        """Bind as if for the first time: what an earlier `bind` made of the constructor's arguments is undone before.

        Args:
            student_config: see `bind`.
            teacher_config: likewise.

        Raises:
            ValueError: see `bind`.
        """
        self.bound_in = None
        for name, value in self.before_bound.items():
            setattr(self, name, value)
        arguments = setting_names(type(self))
        given = {name: value for name, value in vars(self).items() if name in arguments}
        self.bind(student_config, teacher_config)
        self.before_bound = {name: value for name, value in given.items() if vars(self).get(name) is not value}

    @property
    def scheduled(self) -> bool:
        """Whether its value depends on `progress`."""
        return getattr(getattr(self, "temperature", None), "scheduled", False)

    @property
    def matches_tokens(self) -> bool:
        """Whether token is held against token, which needs one tokenizer for both models."""
        return bool(self.needs & FEATURES)

    def required_layers(self) -> tuple[dict[str, frozenset[int]], dict[str, frozenset[int]]]:
        """Return, after `bind`, which layers of student and teacher are needed, by kind."""
        return {}, {}

    def count(self, batch: Mapping[str, Any]) -> Tensor:
        """Count what the mean of this objective runs over in a batch: a float32 scalar, from the batch alone.

        These are the rows, unless a subclass counts something else.
        """
        first = next(value for value in batch.values() if isinstance(value, Tensor))
        # Filled on the device: a copy from the host would wait for it.
        return torch.full((), float(first.shape[0]), device=first.device)

    @abstractmethod
    def total(self, student: Any, teacher: Any, batch: Mapping[str, Any]) -> Tensor:
        """Sum this objective over a batch, unweighted: a float32 scalar.

        Args:
            student: the student's outputs (`CapturedOutput`, or any transformers `ModelOutput`).
            teacher: the teacher's, or None.
            batch: the collated batch: `attention_mask` (batch, seq), `labels` (batch,), ...
        """

    def forward(self, student: Any, teacher: Any, batch: Mapping[str, Any]) -> Tensor:
        """Compute the mean of this objective over one batch, unweighted: a float32 scalar, 0 of nothing."""
        return self.total(student, teacher, batch) / divisors(self.count(batch))

    def config(self) -> dict[str, Any]:
        """Describe this objective for the run record and the card."""
        about = {"name": self.name, "class": type(self).__name__, "weight": self.weight, "citation": self.citation}
        values = {name: getattr(self, name) for name in self.settings}
        return about | {name: v.config() if isinstance(v, Temperature) else v for name, v in values.items()}


def divisors(counts: Tensor) -> Tensor:
    """Return what totals are divided by: their counts, and infinity for 0, since a mean over nothing is 0."""
    return torch.where(counts == 0, torch.full_like(counts, torch.inf, dtype=torch.float32), counts)


def setting_names(kind: type) -> list[str]:
    """List what an objective's constructor takes, through `**options` what those of its base classes take too.

    Args:
        kind: the objective's class.

    Returns:
        Names of arguments, which are those of its attributes too.
    """
    names: list[str] = []
    for each in kind.__mro__:
        if "__init__" not in vars(each):
            continue
        parameters = [*inspect.signature(each.__init__).parameters.values()][1:]  # type: ignore[misc]
        names += [one.name for one in parameters if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]
        if all(one.kind is not one.VAR_KEYWORD for one in parameters):
            break
    return list(dict.fromkeys(names))


class LayerObjective(Objective):
    """An objective that matches layers of the student with layers of the teacher: the mean over its pairs of layers.

    With `layers="learned"` every student layer is compared with every teacher layer, and a softmax over learned
    scores, one row a student layer, weighs the comparisons (after Passban et al. 2021, "ALP-KD: Attention-Based Layer
    Projection for Knowledge Distillation", arXiv:2012.14022, who weigh states instead of losses). It costs a
    comparison a pair, and drifts to the teacher layers that are easiest to match.

    Args:
        layers: a layer map (`"uniform"`, `"last"`, `"first"`, pairs, `"learned"`); see
            `nlpkd.models.layers.map_layers`.
        weight: factor of this objective in the sum.
    """

    fixed_by_bind: ClassVar[tuple[str, ...]] = ("layers",)

    def __init__(self, layers: LayerSpec = "uniform", weight: float = 1.0):
        super().__init__(weight)
        self.layers = layers
        self.pairs: list[tuple[int, int]] = []
        self.layer_scores: nn.Parameter | None = None

    def bind(self, student_config: Any, teacher_config: Any) -> None:
        """Resolve the layer map; see `Objective.bind`."""
        super().bind(student_config, teacher_config)
        needed = sorted(self.needs & FEATURES)
        if isinstance(teacher_config, list):
            raise ValueError(
                f"{type(self).__name__} matches {needed}, and several teachers give their joint logits alone: use one "
                "teacher, or objectives on logits"
            )
        for role, config in (("student", student_config), ("teacher", teacher_config)):
            if getattr(config, "num_hidden_layers", None) is None:
                raise ValueError(
                    f"{type(self).__name__} matches {needed} and the {role} has none to give (no model with layers): "
                    "use objectives on logits, such as the preset 'hinton', or a transformer"
                )
        depths = student_config.num_hidden_layers, teacher_config.num_hidden_layers
        self.pairs = self.match(*depths)
        if self.layers == "learned":
            self.layer_scores = nn.Parameter(torch.zeros(depths))
        if any(0 in pair for pair in self.pairs) and "hidden_states" not in self.needs:
            raise ValueError(f"layer 0 is the embedding output and has no {' or '.join(needed)}: got {self.pairs}")

    def match(self, student_depth: int, teacher_depth: int) -> list[tuple[int, int]]:
        """Return the pairs of layers, `(student layer, teacher layer)`, for models of these depths."""
        return map_layers(self.layers, student_depth, teacher_depth)

    def required_layers(self) -> tuple[dict[str, frozenset[int]], dict[str, frozenset[int]]]:
        """Return which layers are needed, by kind."""
        kinds = self.needs & FEATURES
        student, teacher = (frozenset(side) for side in zip(*self.pairs, strict=True))
        return dict.fromkeys(kinds, student), dict.fromkeys(kinds, teacher)

    @abstractmethod
    def compare(self, position: int, student: Any, teacher: Any, batch: Mapping[str, Any]) -> Tensor:
        """Sum this objective over a batch for the pair of layers `self.pairs[position]`: a float32 scalar."""

    def total(self, student: Any, teacher: Any, batch: Mapping[str, Any]) -> Tensor:
        """Average `compare` over the pairs of layers, by the learned weights where there are any."""
        totals = torch.stack([self.compare(position, student, teacher, batch) for position in range(len(self.pairs))])
        if self.layer_scores is None:
            return totals.mean()
        return (totals * self.layer_scores.softmax(dim=-1).flatten()).sum() / len(self.layer_scores)

    def config(self) -> dict[str, Any]:
        """Describe this objective for the run record and the card."""
        if isinstance(self.layers, str) and self.layers == "learned":
            return super().config() | {"layers": self.layers}
        return super().config() | {"layers": [list(pair) for pair in self.pairs] or self.layers}


def token_mask(batch: Mapping[str, Any]) -> Tensor:
    """Return 1.0 for every real token and 0.0 for padding, float32 `(batch, seq)`."""
    if "attention_mask" in batch:
        return batch["attention_mask"].float()
    return torch.ones_like(batch["input_ids"], dtype=torch.float32)


def text_state(outputs: Any, states: Tensor) -> Tensor:
    """Pick the state of the token that stands for each text: the first, or the last real one of decoders and XLNet.

    Args:
        outputs: of the model that the states are of; its `pooled_index` names the tokens, `(batch,)`.
        states: `(batch, seq, hidden)`.

    Returns:
        `(batch, hidden)`.
    """
    at = getattr(outputs, "pooled_index", None)
    return states[:, 0] if at is None else states[torch.arange(len(states), device=states.device), at]


def labels_of(batch: Mapping[str, Any], objective: Objective) -> Tensor:
    """Return the gold labels of a batch.

    Raises:
        ValueError: if there are none.
    """
    if "labels" not in batch:
        raise ValueError(
            f"the batch has no labels, which {type(objective).__name__} needs: give a labelled dataset, or drop it"
        )
    return batch["labels"]

"""All objectives of a run as one module: bound together, weighed together, saved together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from nlpkd.config import DistillationConfig
from nlpkd.objectives.base import Objective, divisors, setting_names
from nlpkd.objectives.contract import refuse_broken_bound
from nlpkd.objectives.temperature import Temperature
from nlpkd.objectives.weighting import WEIGHTINGS

OBJECTIVES_FILE = "objectives.safetensors"
"""Beside each checkpoint: the objectives' own parameters, such as projections."""

_OTHER_PARTS = ("anchor", "compute_loss_func")
"""What a trainer logs beside the objectives, by name."""


def names_of(objectives: Sequence[Objective]) -> list[str]:
    """Name objectives as logs do: `forward_kl`, a second one of the same name `forward_kl_2`; none comes twice."""
    names: list[str] = []
    for objective in objectives:
        further = (f"{objective.name}_{number}" for number in count(2))
        free = (name for name in chain([objective.name], further) if name not in (*names, *_OTHER_PARTS))
        names.append(next(free))
    return names


def with_settings(objectives: Sequence[Objective], settings: Mapping[str, Any]) -> list[Objective]:
    """Copy objectives that are not bound yet, with other settings.

    Args:
        objectives: left as they are.
        settings: values by `"NAME.SETTING"`, such as `"forward_kl.temperature"` or `"cross_entropy.weight"`.

    Returns:
        The copies.

    Raises:
        ValueError: if there is no such objective or setting, or its value is out of range.
    """
    names, changed = names_of(objectives), dict(zip(names_of(objectives), objectives, strict=True))
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in settings.items():
        name, _, setting = key.partition(".")
        if name not in changed or setting not in setting_names(type(changed[name])):
            raise ValueError(f"{key!r} is no setting of an objective: the objectives are {names}")
        found[name][setting] = value
    # Made anew, so that what a setting decides in the constructor follows, and values out of range are refused.
    return [objective.again(**found[name]) for name, objective in changed.items()]


class ObjectiveSet(nn.Module):
    """The objectives of a run and how they are weighed.

    Args:
        objectives: not bound yet; a class may come more than once.
        weighting: a name of `nlpkd.objectives.weighting.WEIGHTINGS`.

    Raises:
        ValueError: if there is no such weighting, or it does not suit the objectives.
    """

    def __init__(self, objectives: Iterable[Objective], weighting: str = "fixed"):
        super().__init__()
        self.members = list(objectives)
        self.objectives = nn.ModuleList(self.members)
        self.names = names_of(self.members)
        if weighting not in WEIGHTINGS:
            raise ValueError(f"weighting must be one of {sorted(WEIGHTINGS)}, got {weighting!r}")
        self.weighting = WEIGHTINGS[weighting](self.members)
        self.progress = 0.0
        self._binding = object()

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[Objective]:
        return iter(self.members)

    def __getitem__(self, position: int) -> Objective:
        return self.members[position]

    def set_progress(self, progress: float) -> None:
        """Set how much of the training is done, 0 to 1, for all schedules."""
        self.progress = progress
        for objective in self.members:
            objective.progress = progress

    @property
    def scheduled(self) -> bool:
        """Whether the loss depends on how much of the training is done."""
        return self.weighting.scheduled or any(objective.scheduled for objective in self.members)

    @contextmanager
    def at_the_end(self) -> Iterator[None]:
        """Set all schedules to their end for a while.

        Yields:
            Nothing.
        """
        before = self.progress
        self.set_progress(1.0)
        try:
            yield
        finally:
            self.set_progress(before)

    @property
    def need_teacher(self) -> list[str]:
        """Name the objectives that can't do without a teacher."""
        return [name for name, objective in zip(self.names, self.members, strict=True) if objective.teacher_needed]

    @property
    def couple_rows(self) -> list[str]:
        """Name the objectives whose value depends on which rows share a micro-batch."""
        return [name for name, objective in zip(self.names, self.members, strict=True) if objective.couples_rows]

    def constants(self) -> str:
        """Tell what a pass reads of the objectives beside tensors: their weights and settings as they are now."""
        told: list[Any] = []
        for objective in self.members:
            settings = [getattr(objective, name) for name in (*objective.limits, *objective.settings)]
            plain = [each.config() if isinstance(each, Temperature) else each for each in settings]
            told.append([each for each in plain if not isinstance(each, Tensor)])
        return repr(told)

    def refuse_few_rows(self, rows: int) -> None:
        """Refuse micro-batches of too few rows for the objectives that relate them, which would learn nothing.

        Args:
            rows: of a micro-batch on one process.

        Raises:
            ValueError: with the names of these objectives.
        """
        fewest = max((objective.fewest_rows for objective in self.members if objective.couples_rows), default=1)
        if rows < fewest:
            raise ValueError(
                f"{', '.join(self.couple_rows)} relate the rows of a micro-batch, and one of {rows} has too few: "
                f"set per_device_train_batch_size to {fewest} at least, and rather to what memory allows"
            )

    @property
    def match_tokens(self) -> list[str]:
        """Name the objectives that match token with token."""
        return [name for name, objective in zip(self.names, self.members, strict=True) if objective.matches_tokens]

    def bind(self, student_config: Any, teacher_config: Any, seed: int) -> None:
        """Bind every objective to the pair, with parameters of their own that depend on the seed alone.

        Args:
            student_config: the student's config, or None.
            teacher_config: the teacher's, or None.
            seed: of the objectives' own parameters.

        Raises:
            ValueError: if an objective can't work on this pair.
        """
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for objective in self.members:
                objective.bind_anew(student_config, teacher_config)
                refuse_broken_bound(objective, student_config, teacher_config)
                objective.bound_in = self._binding

    def refuse_rebound(self) -> None:
        """Refuse objectives that another set bound since: their parameters are that one's now.

        Raises:
            ValueError: with the names of these objectives.
        """
        pairs = zip(self.names, self.members, strict=True)
        if taken := [name for name, objective in pairs if objective.bound_in is not self._binding]:
            raise ValueError(
                f"the objectives {', '.join(taken)} were given to another trainer since, and have its parameters now: "
                "give each trainer objectives of its own, or make the second one when the first is done"
            )

    def required_layers(self) -> tuple[dict[str, frozenset[int]], dict[str, frozenset[int]]]:
        """Join, after `bind`, what the objectives want of student and teacher: layers by kind."""
        student: dict[str, frozenset[int]] = defaultdict(frozenset)
        teacher: dict[str, frozenset[int]] = defaultdict(frozenset)
        for objective in self.members:
            for joined, wanted in zip((student, teacher), objective.required_layers(), strict=True):
                for kind, layers in wanted.items():
                    joined[kind] |= frozenset(layers)
        return dict(student), dict(teacher)

    def counts(self, batch: Mapping[str, Any]) -> Tensor:
        """Count what each mean runs over in a batch: float32 `(objectives,)`."""
        return torch.stack([objective.count(batch) for objective in self.members])

    def parts(self, student: Any, teacher: Any, batch: Mapping[str, Any], counts: Tensor) -> list[Tensor]:
        """Compute each objective on a batch, unweighted.

        Args:
            student: the student's outputs.
            teacher: the teacher's, or None.
            batch: the collated batch.
            counts: what to divide each total by, `(objectives,)`; a mean over nothing is 0, of any finite total.

        Returns:
            A float32 scalar an objective.
        """
        totals = [objective.total(student, teacher, batch) for objective in self.members]
        return [total / count for total, count in zip(totals, divisors(counts), strict=True)]

    def weigh(self, parts: Iterable[Tensor], batch: Mapping[str, Any], counts: Tensor) -> Tensor | float:
        """Sum the parts by weight.

        Args:
            parts: of `parts`.
            batch: the collated batch that they are of.
            counts: what each total was divided by, `(objectives,)`.

        Returns:
            The loss of this batch, 0.0 of no parts.
        """
        loss = sum(factor * part for factor, part in zip(self.weighting.factors(self.progress), parts, strict=True))
        if self.weighting.learned:
            loss = loss + self.weighting.penalty(self.counts(batch) / counts.clamp(min=1e-12))
        return loss

    def factors(self) -> dict[str, float]:
        """Return what each objective is multiplied by now, by name."""
        factors = self.weighting.factors(self.progress)
        return dict(zip(self.names, factors.tolist() if isinstance(factors, Tensor) else factors, strict=True))

    def trained(self) -> list[nn.Parameter]:
        """List the objectives' own parameters that are trained, those of the weighting last."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def parameter_groups(self, args: DistillationConfig) -> list[dict[str, Any]]:
        """Group the own parameters that are trained, for an optimizer.

        Args:
            args: the settings, which have a learning rate for the objectives' parameters and one for the weighting's.

        Returns:
            Parameter groups, those without parameters left out.
        """
        parameters, learned = self.trained(), len(list(self.weighting.parameters()))
        own = parameters[: len(parameters) - learned]
        rate = args.learning_rate if args.objective_learning_rate is None else args.objective_learning_rate
        groups = [
            {"params": own, "lr": rate, "weight_decay": args.weight_decay},
            {"params": parameters[len(own) :], "lr": args.weighting_learning_rate, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def join(self, optimizer: torch.optim.Optimizer, args: DistillationConfig, lr_scheduler: Any = None) -> None:
        """Give an optimizer those own parameters that are trained and that it lacks, the same on all processes.

        Args:
            optimizer: changed in place.
            args: see `parameter_groups`.
            lr_scheduler: of the optimizer where the user made one.

        Raises:
            ValueError: if there is such a scheduler, which would not know these parameters.
        """
        parameters = self.trained()
        known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if all(id(parameter) in known for parameter in parameters):
            return
        if lr_scheduler is not None:
            raise ValueError(
                "the objectives have parameters of their own, which a ready-made lr_scheduler does not know: pass "
                "optimizers=(optimizer, None)"
            )
        broadcast([parameter.data for parameter in parameters])
        for group in self.parameter_groups(args):
            if missing := [parameter for parameter in group["params"] if id(parameter) not in known]:
                optimizer.add_param_group(group | {"params": missing})

    def average_gradients(self, accelerator: Any) -> None:
        """Average the gradients of the own parameters over all processes, in one reduction.

        Args:
            accelerator: of the training.
        """
        parameters = self.trained()
        if not parameters:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        vector_to_parameters(accelerator.reduce(parameters_to_vector(gradients), "mean"), gradients)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient

    def save(self, folder: str | Path) -> None:
        """Write the objectives' own parameters beside a checkpoint; nothing where there are none."""
        state, saved_as = self._own_state()
        if state:
            Path(folder).mkdir(parents=True, exist_ok=True)
            # Copies, since a file can't hold tensors that lie in each other.
            tensors = {name: state[name].detach().clone().contiguous() for name in dict.fromkeys(saved_as.values())}
            save_file(tensors, Path(folder) / OBJECTIVES_FILE)

    def load(self, folder: str | Path) -> None:
        """Read what `save` wrote.

        Args:
            folder: the checkpoint.

        Raises:
            ValueError: if the checkpoint was written with other objectives.
        """
        path, (state, saved_as) = Path(folder) / OBJECTIVES_FILE, self._own_state()
        expected = {name: state[name] for name in saved_as.values()}
        found = load_file(path) if path.exists() else {}
        if {k: v.shape for k, v in found.items()} != {k: v.shape for k, v in expected.items()}:
            raise ValueError(
                f"{path} holds parameters {sorted(found)} and the objectives have {sorted(expected)}: resume with the "
                "objectives of the run that wrote the checkpoint"
            )
        if found:
            self.load_state_dict({name: found[first] for name, first in saved_as.items()})

    def _own_state(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return the state by name, and for each name the first one of the same tensor, by which it is saved."""
        state = self.state_dict(keep_vars=True)
        first: dict[int, str] = {}
        return state, {name: first.setdefault(id(tensor), name) for name, tensor in state.items()}

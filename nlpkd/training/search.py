"""A hyperparameter search: what it goes by where its caller does not say it, and settings of objectives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nlpkd.config import DistillationConfig
from nlpkd.tasks import MULTI_LABEL, REGRESSION, task_of
from nlpkd.training.evaluating import EvaluatingTrainer

_HEADLINES = {MULTI_LABEL: "f1_macro", REGRESSION: "pearson"}


def search_arguments(
    args: DistillationConfig,
    config: Any,
    of_objectives: dict[str, Any],
    hp_space: Callable[[Any], dict[str, Any]] | None = None,
    compute_objective: Callable[[dict[str, float]], float] | None = None,
    n_trials: int = 20,
    direction: Any = None,
    **others: Any,
) -> dict[str, Any]:
    """Return the arguments of `Trainer.hyperparameter_search` that a distillation's search has.

    `Trainer` adds all metrics up and looks for the smallest sum. Accuracy is among them, so that the worst trial would
    win. Here a search without `compute_objective` goes by `metric_for_best_model`. Without that it goes by accuracy,
    of several labels a row by macro F1, of scores by the Pearson correlation. Where an evaluation does not give that,
    as without gold labels or with `compute_metrics`, it goes by the agreement with the teacher.

    Args:
        args: of the trainer.
        config: of the student; None where it has none.
        of_objectives: gets what a trial draws under a name with a dot, such as `forward_kl.weight`.
        hp_space: as of `Trainer`; None is its own space.
        compute_objective: likewise; its direction is `"minimize"` unless given, as of `Trainer`.
        n_trials: likewise.
        direction: that of the metric if None; it needs to be given for a `compute_objective` of which more is better.
        **others: likewise.

    Raises:
        ValueError: if the direction is not that of the metric which the search goes by without `compute_objective`.
    """
    if compute_objective is not None:
        direction = direction or "minimize"
    elif args.metric_for_best_model is not None:
        compute_objective = _Metric([args.metric_for_best_model.removeprefix("eval_")])
        direction = _own_direction(compute_objective, "maximize" if args.greater_is_better else "minimize", direction)
    else:
        compute_objective = _Metric([_HEADLINES.get(task_of(config) or "", "accuracy"), "agreement"])
        direction = _own_direction(compute_objective, "maximize", direction)

    def space(trial: Any) -> dict[str, Any]:
        """Draw the arguments, and keep the settings of objectives."""
        found = hp_space(trial)  # type: ignore[misc]
        of_objectives.update({name: value for name, value in found.items() if "." in name})
        return {name: value for name, value in found.items() if "." not in name}

    given = {"compute_objective": compute_objective, "n_trials": n_trials, "direction": direction}
    return {"hp_space": hp_space and space, **given, **others}


class _Metric:
    """The first of some metrics that an evaluation gives; of several data sets that of the first."""

    def __init__(self, names: list[str]):
        self.names = names

    def __call__(self, metrics: Mapping[str, float]) -> float:
        for name in self.names:
            found = [key for key in metrics if key.endswith(f"_{name}")]
            if found:
                return metrics[f"eval_{name}" if f"eval_{name}" in found else found[0]]
        raise ValueError(
            f"a search needs {' or '.join(map(repr, self.names))} to compare its trials by, and an evaluation here "
            f"gives {', '.join(sorted(metrics))}: set metric_for_best_model, or pass compute_objective and direction"
        )


def _own_direction(metric: _Metric, own: str, given: Any) -> Any:
    """Return the direction of a metric, as it was given if it was; refuse the other one."""
    listed = given if isinstance(given, (list, tuple)) else [given]
    # Optuna has names for them too.
    if given is not None and {str(getattr(each, "name", each)).lower() for each in listed} != {own}:
        raise ValueError(
            f"direction={given!r} would take the worst trial, since the search goes by {' or '.join(metric.names)}, "
            f"which is to {own}: leave direction out, or pass compute_objective with a direction of its own"
        )
    return given or own


class SearchingTrainer(EvaluatingTrainer):
    """An `EvaluatingTrainer` whose search may draw settings of objectives too."""

    def __init__(self, *arguments: Any, **options: Any):
        self.trial_settings: dict[str, Any] = {}
        """Of the objectives, in a trial of a search, by names such as `forward_kl.weight`."""
        super().__init__(*arguments, **options)

    def connect(self) -> None:
        """Fit everything to the student."""
        raise NotImplementedError

    def hyperparameter_search(self, *arguments: Any, **search: Any) -> Any:
        """Search as `Trainer` does, by accuracy or its like unless told; see `search_arguments`."""
        known = (self.args, getattr(self.model, "config", None), self.trial_settings)
        return super().hyperparameter_search(**search_arguments(*known, *arguments, **search))

    def _hp_search_setup(self, trial: Any) -> None:
        """Set the arguments of a trial, then fit everything to the student that `model_init` just made."""
        self.trial_settings.clear()
        if isinstance(trial, dict):
            self.trial_settings.update({name: trial.pop(name) for name in [*trial] if "." in name})
        super()._hp_search_setup(trial)
        if self.model_init is not None:
            self.connect()
        if trial is not None:
            self.run_record = self.describe_run()

"""Search for a run's settings on held-out rows: `Trainer.hyperparameter_search` with Optuna, objectives included."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from transformers import PreTrainedModel
from transformers.integrations import is_optuna_available

from nlpkd.config import DistillationConfig
from nlpkd.data.arguments import DataArguments
from nlpkd.data.label_names import telling_names
from nlpkd.data.sources import Source
from nlpkd.data.text_classification import load_text_classification
from nlpkd.evaluation.scoring import scoring_of
from nlpkd.models.source import ModelSource
from nlpkd.objectives import Objective
from nlpkd.objectives.presets import resolve
from nlpkd.students.make_student import make_student
from nlpkd.tasks import task_of
from nlpkd.training.trainer import DistillationTrainer
from nlpkd.utils.files import write_atomic
from nlpkd.utils.locks import only_run

TUNING_FILE = "tuning.json"


DEFAULT_SEARCH: dict[str, Any] = {"learning_rate": (1e-5, 5e-4)}


_DATA = {field.name for field in fields(DataArguments) if field.name.endswith("_column")}


_DATA |= {"max_length", "problem_type", "window_stride"}


@dataclass(frozen=True)
class TuningResult:
    """What a search found.

    Attributes:
        best: the settings of the best trial, `"learning_rate"` or `"forward_kl.temperature"`, by name.
        metric: what was maximised on the held-out rows.
        value: its best value; optimistic, since it was chosen by.
        trials: every trial's settings and value, in order; value None where it failed.
    """

    best: dict[str, Any]
    metric: str
    value: float
    trials: list[dict[str, Any]]


def tune(
    teacher: str | Path | PreTrainedModel,
    train: Source,
    validation: Source | None = None,
    *,
    search: Mapping[str, Sequence[Any]] | None = None,
    layers: Sequence[int] = (3,),
    objectives: str | Sequence[Objective] = "hinton",
    n_trials: int = 20,
    validation_split: float | int | None = None,
    dataset_config: str | None = None,
    dataset_revision: str | None = None,
    output_dir: str | Path = "tuning",
    **settings: Any,
) -> TuningResult:
    """Search for learning rate, temperature, weights and depth on held-out rows; nothing of it is a result to report.

    Args:
        teacher: a path, a Hub id (`id@revision` too), or a model.
        train: labelled text; see `nlpkd.load_text_classification`.
        validation: held-out rows to choose on; not those that the student is reported on.
        search: for each setting a pair (low, high) of numbers, by logarithm where high / low >= 10 (integers stay
            integers), or a list to choose from. A setting is a field of `DistillationConfig`
            or one of an objective: `"forward_kl.temperature"`, `"cross_entropy.weight"`. The learning rate if None.
        layers: numbers of the teacher's layers to choose from.
        objectives: a preset of one stage, or objectives.
        n_trials: how many settings to try in all; a search that was interrupted goes on where it stopped.
        validation_split: share or number of training rows to hold out where there is no validation set.
        dataset_config: configuration of a Hub data set.
        dataset_revision: revision of a Hub data set.
        output_dir: where the trials (`optuna.log`) and the result (`tuning.json`) are kept.
        **settings: columns, `max_length`, `window_stride` and `problem_type` of `load_text_classification`; fields of
            `DistillationConfig`.

    Returns:
        The best settings, which are printed and saved as `tuning.json` too.

    Raises:
        ValueError: if Optuna is missing, there are no held-out rows, or a setting is unknown.
    """
    if not is_optuna_available():
        raise ValueError("a search needs Optuna: pip install 'nlpkd[tune]' -c constraints.txt")
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    folder, search = Path(output_dir), dict(DEFAULT_SEARCH if search is None else search)
    args = DistillationConfig(
        output_dir=str(folder),
        **{"save_strategy": "no", "eval_strategy": "no"} | {k: v for k, v in settings.items() if k not in _DATA},
    )
    check_search(search, objectives)
    with only_run(folder):
        source = ModelSource.of(teacher)
        tokenizer, model = source.tokenizer(), source.teacher()
        config: Any = model.config
        data = load_text_classification(
            train,
            validation,
            tokenizer=tokenizer,
            validation_split=validation_split,
            dataset_config=dataset_config,
            dataset_revision=dataset_revision,
            seed=args.seed,
            label_names=telling_names(config.id2label),
            **{"problem_type": task_of(config)} | {k: v for k, v in settings.items() if k in _DATA and v is not None},
        )
        stages = resolve(objectives, data.problem_type)
        if "validation" not in data:
            raise ValueError("there are no held-out rows to choose on: give validation=, or validation_split=0.1")
        metric = scoring_of(data.problem_type).headline(np.asarray(data["validation"]["labels"][:]))

        def student(trial: Any) -> PreTrainedModel:
            depth = layers[0] if trial is None else trial.suggest_categorical("layers", list(layers))
            made = make_student(model, depth)
            made.config.problem_type = data.problem_type  # type: ignore[assignment]
            return made

        trainer = DistillationTrainer(
            model_init=student,
            teacher_model=model,
            args=args,
            objectives=stages[0].objectives,
            train_dataset=data["train"],
            eval_dataset=data["validation"],
            processing_class=tokenizer,
        )
        study: dict[str, Any] = {
            "study_name": "nlpkd",
            "storage": JournalStorage(JournalFileBackend(str(folder / "optuna.log"))),
            "load_if_exists": True,
        }
        known = optuna.create_study(direction="maximize", **study)
        # A search that goes on draws other numbers than those it began with.
        study["sampler"] = optuna.samplers.TPESampler(seed=args.seed + len(known.trials))
        done = len([trial for trial in known.trials if trial.value is not None])
        if done < n_trials:
            trainer.hyperparameter_search(
                hp_space=lambda trial: {name: _suggest(trial, name, values) for name, values in search.items()},
                compute_objective=lambda metrics: metrics[f"eval_{metric}"],
                n_trials=n_trials - done,
                direction="maximize",
                backend="optuna",
                **study,
            )
        found = optuna.load_study(study_name=study["study_name"], storage=study["storage"])
        trials = [trial.params | {"value": trial.value} for trial in found.trials]
        result = TuningResult(found.best_trial.params, metric, found.best_value, trials)
        if PartialState().is_main_process:
            write_atomic(folder / TUNING_FILE, (json.dumps(dataclasses.asdict(result), indent=2) + "\n").encode())
        return result


def check_search(search: Mapping[str, Sequence[Any]], objectives: str | Sequence[Objective]) -> None:
    """Refuse a search that can't be begun.

    Args:
        search: see `tune`.
        objectives: see `tune`.

    Raises:
        ValueError: if a setting is unknown, its values are none, or the objectives have several stages.
    """
    fields = {field.name for field in dataclasses.fields(DistillationConfig)}
    for name, values in search.items():
        if "." not in name and name not in fields:
            raise ValueError(f"{name!r} is neither a DistillationConfig field nor an OBJECTIVE.SETTING")
        if not isinstance(values, (list, tuple)) or not values:
            raise ValueError(f"search[{name!r}] must be a pair (low, high) or a list of values, got {values!r}")
    if (count := len(resolve(objectives))) > 1:
        raise ValueError(f"objectives={objectives!r} has {count} stages: search those of one, like 'hinton'")


def _suggest(trial: Any, name: str, values: Sequence[Any]) -> Any:
    if len(values) != 2 or not all(isinstance(value, (int, float)) for value in values):
        return trial.suggest_categorical(name, list(values))
    low, high = values
    if not low < high:
        raise ValueError(f"search[{name!r}] must be a pair (low, high) with low below high, got {values!r}")
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high)
    return trial.suggest_float(name, low, high, log=low > 0 and high / low >= 10)

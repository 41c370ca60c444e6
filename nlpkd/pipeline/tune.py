"""Search for a run's settings on held-out rows with Optuna: a fresh student, objectives and trainer a trial."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
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
from nlpkd.objectives.objective_set import with_settings
from nlpkd.objectives.presets import resolve
from nlpkd.students.make_student import make_student
from nlpkd.tasks import task_of
from nlpkd.training.trainer import DistillationTrainer
from nlpkd.utils.files import write_atomic
from nlpkd.utils.locks import only_run
from nlpkd.utils.processes import decided_by_main_process

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
    from optuna.trial import TrialState

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

        study = optuna.create_study(
            study_name="nlpkd",
            storage=JournalStorage(JournalFileBackend(str(folder / "optuna.log"))),
            direction="maximize",
            load_if_exists=True,
        )
        # A search that goes on draws other numbers than those it began with.
        study.sampler = optuna.samplers.TPESampler(seed=args.seed + len(study.trials))
        done = len([trial for trial in study.trials if trial.value is not None])

        def measure(settings: dict[str, Any], number: int) -> float:
            """Train a student with a trial's settings and measure it on the held-out rows."""
            depth = settings.pop("layers")
            run = {name: value for name, value in settings.items() if "." not in name}
            own = {name: value for name, value in settings.items() if "." in name}
            trial_args = dataclasses.replace(
                args,
                output_dir=str(folder / f"run-{number}"),
                teacher_cache_dir=args.teacher_cache_dir or str(folder / "teacher_cache"),
                **run,
            )
            student = make_student(model, depth, seed=args.seed)
            student.config.problem_type = data.problem_type  # type: ignore[assignment]
            trainer = DistillationTrainer(
                model=student,
                teacher_model=model,
                args=trial_args,
                objectives=with_settings(stages[0].objectives, own),
                train_dataset=data["train"],
                eval_dataset=data["validation"],
                processing_class=tokenizer,
            )
            trainer.train()
            return trainer.evaluate()[f"eval_{metric}"]

        for _ in range(done, n_trials):
            # The main process draws, all train, and it keeps the result.
            trial = study.ask() if PartialState().is_main_process else None
            try:
                value = measure(*decided_by_main_process(partial(_draw, trial, search, layers)))
            except Exception:
                if trial is not None:
                    study.tell(trial, state=TrialState.FAIL)
                raise
            if trial is not None:
                study.tell(trial, value)
        PartialState().wait_for_everyone()
        trials = [trial.params | {"value": trial.value} for trial in study.trials]
        result = TuningResult(study.best_trial.params, metric, study.best_value, trials)
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


def _draw(trial: Any, search: Mapping[str, Sequence[Any]], layers: Sequence[int]) -> tuple[dict[str, Any], int]:
    """Draw a trial's settings, `layers` among them; beside them its number."""
    drawn = {"layers": trial.suggest_categorical("layers", list(layers))}
    return drawn | {name: _suggest(trial, name, values) for name, values in search.items()}, trial.number


def _suggest(trial: Any, name: str, values: Sequence[Any]) -> Any:
    if len(values) != 2 or not all(isinstance(value, (int, float)) for value in values):
        return trial.suggest_categorical(name, list(values))
    low, high = values
    if not low < high:
        raise ValueError(f"search[{name!r}] must be a pair (low, high) with low below high, got {values!r}")
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high)
    return trial.suggest_float(name, low, high, log=low > 0 and high / low >= 10)

"""Search for a run's settings on held-out rows with Optuna: a fresh student, objectives and trainer a trial."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel

from nlpkd.config import DistillationConfig
from nlpkd.data.arguments import DataArguments
from nlpkd.data.rows import describe_rows, has_unlabelled, random_access
from nlpkd.data.sources import Source, refuse_as_output
from nlpkd.evaluation.prediction import gold_labels, warn_of_one_class
from nlpkd.evaluation.records import METRIC_NAMES, format_number
from nlpkd.evaluation.report_text import Cells, flat
from nlpkd.evaluation.scoring import headline_of
from nlpkd.objectives import Objective
from nlpkd.objectives.objective_set import ObjectiveSet, with_settings
from nlpkd.objectives.presets import Stage, resolve, with_preset_settings
from nlpkd.pipeline.jobs.distillation import prepare_job
from nlpkd.pipeline.jobs.job import Job
from nlpkd.students.make_student import make_student
from nlpkd.training.checkpoints import LENGTH, describe_lessons
from nlpkd.utils.disk.files import cut_torn_line, explain_damage, write_json
from nlpkd.utils.disk.full_disk import explain_full_disk
from nlpkd.utils.disk.locks import only_run, refuse_unfit_folder
from nlpkd.utils.field_types import plain_arguments
from nlpkd.utils.fingerprints import differences
from nlpkd.utils.packages import require
from nlpkd.utils.processes import decided_by_main_process

TUNING_FILE = "tuning.json"

STUDY_FILE = "optuna.log"
"""The trials, with what they are of."""

_NOT_KEPT = "a trial was not kept. Free some space, and run again: those before it are kept"

_STUDY = "nlpkd"

_ASKED = "asked"
"""In the study: what its trials' values depend on."""


_SHOWN = 4


_OF_ALL_TRIALS = ("output_dir", "teacher_cache_dir", "push_to_hub", "hub_model_id", "resume_from_checkpoint")


DEFAULT_SEARCH: dict[str, Any] = {"learning_rate": (1e-5, 5e-4)}


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

    def cells(self) -> Cells:
        """Return the table of the best trials: its header, and a row a setting."""
        ended = [(each, number) for number, each in enumerate(self.trials) if each["value"] is not None]
        best = sorted(ended, key=lambda trial: -trial[0]["value"])[:_SHOWN]
        settings = [[name, *(flat(each.get(name, "")) for each, _ in best)] for name in self.best]
        quality = [METRIC_NAMES[self.metric], *(format_number(each["value"]) for each, _ in best)]
        return ["", *(f"trial {number}" for _, number in best)], [quality, *settings]

    def verdict(self) -> str:
        """Return in words how good the best trial is, and what that is worth."""
        found = f"{METRIC_NAMES[self.metric]} {format_number(self.value)}"
        return (
            f"Of {len(self.trials)} trials the best has {found} on the held-out rows; it was chosen by this figure, "
            "so measure a student with its settings on other rows."
        )


@plain_arguments
def tune(
    teacher: str | Path | PreTrainedModel,
    train: Source,
    validation: Source | None = None,
    *,
    search: Mapping[str, Sequence[Any]] | None = None,
    layers: Sequence[int] = (3,),
    objectives: str | Sequence[Objective] | Sequence[Stage] = "hinton",
    n_trials: int = 20,
    output_dir: str | Path = "tuning",
    **keywords: Any,
) -> TuningResult:
    """Search for learning rate, temperature, weights and depth on held-out rows; nothing of it is a result to report.

    Args:
        teacher: a path, a Hub id (`id@revision` too), an ONNX file, or a model.
        train: labelled text; see `nlpkd.load_text_classification`.
        validation: held-out rows to choose on; not those that the student is reported on.
        search: for each setting a tuple (low, high) of numbers, by logarithm where high / low >= 10 (integers stay
            integers), or a list to choose from. A setting is a field of `DistillationConfig`
            or one of an objective: `"forward_kl.temperature"`, `"cross_entropy.weight"`. The learning rate if None.
        layers: numbers of the teacher's layers to choose from.
        objectives: a preset of one stage, objectives, or a stage, whose own settings hold where they are not searched.
        n_trials: how many settings to try in all; a search that was interrupted goes on where it stopped, and one of
            more trials where it ended.
        output_dir: where the trials (`optuna.log`) and the result (`tuning.json`) are kept.
        **keywords: how the text is read, by the fields of `nlpkd.data.arguments.DataArguments` (`text_column`,
            `validation_split`, ...); and fields of `DistillationConfig`.

    Returns:
        The best settings, which are printed and saved as `tuning.json` too.

    Raises:
        ImportError: if Optuna is missing.
        ValueError: if there are no held-out rows, a setting is unknown, or the folder has the trials of another search
            (what differs is named).
    """
    optuna = require("optuna", extra="tune")
    folder, search = Path(output_dir), dict(DEFAULT_SEARCH if search is None else search)
    with only_run(folder):
        given: Any = {"search": search, "layers": layers, "objectives": objectives, "n_trials": n_trials}
        job, args, metric, asked = prepare_search(teacher, train, validation, **given, output_dir=folder, **keywords)
        # The search, which goes on where it stopped, with other draws than those it began with.
        journal = folder / STUDY_FILE
        keeping = partial(explain_full_disk, journal, _NOT_KEPT)
        with keeping():
            study = open_study(journal, asked, folder)
        study.sampler = optuna.samplers.TPESampler(seed=args.seed + len(study.trials))
        for _ in range(trials_done(study), n_trials):
            # The main process draws, all train, and it keeps the result.
            with keeping():
                trial = study.ask() if PartialState().is_main_process else None
            try:
                with keeping():
                    drawn, number = decided_by_main_process(partial(_draw, trial, search, layers))
                value = _train_trial(job, args, drawn, number)[f"eval_{metric}"]
            except Exception:
                if trial is not None:
                    study.tell(trial, state=optuna.trial.TrialState.FAIL)
                raise
            if trial is not None:
                with keeping():
                    study.tell(trial, value)
        PartialState().wait_for_everyone()
        trials = [trial.params | {"value": trial.value} for trial in study.trials]
        result = TuningResult(study.best_trial.params, metric, study.best_value, trials)
        if PartialState().is_main_process:
            write_json(folder / TUNING_FILE, asdict(result))
        return result


def prepare_search(
    teacher: Any,
    train: Source,
    validation: Source | None,
    *,
    search: Mapping[str, Sequence[Any]],
    layers: Sequence[int],
    objectives: str | Sequence[Objective] | Sequence[Stage],
    n_trials: int,
    output_dir: str | Path,
    **keywords: Any,
) -> tuple[Job, DistillationConfig, str, dict[str, Any]]:
    """Load what all trials need, and refuse what would end the search, now or in a later trial.

    The arguments are those of `tune`.

    Returns:
        The job; what holds in every trial where it is not searched; the metric; what the trials depend on.

    Raises:
        ImportError: as `tune`.
        ValueError: as `tune`.
    """
    require("optuna", extra="tune")
    # What can be refused before anything is loaded.
    folder = Path(output_dir)
    refuse_unfit_folder(folder)
    data_args, settings = DataArguments.split_of_training(tune, keywords)
    args = DistillationConfig(str(folder), **{"save_strategy": "no", "eval_strategy": "no"} | settings)
    check_search(search, objectives, layers, n_trials, args)
    args = with_preset_settings(args, objectives)
    refuse_as_output(folder / TUNING_FILE, train=train, validation=validation)

    # Teacher, rows and objectives, as for a distillation; the student is each trial's own.
    student = f"layers:{max(layers)}"
    job = prepare_job(args, teacher, student, train, validation, objectives=objectives, data_args=data_args)
    if "learning_rate" not in settings:
        args = replace(args, learning_rate=job.learning_rate)
    args = replace(args, **job.stages[0].settings)
    if "validation" not in job.data:
        raise ValueError("there are no held-out rows to choose on: give validation=, or validation_split=0.1")
    if has_unlabelled(job.data["validation"]):
        raise ValueError("settings are chosen by gold labels, and validation rows have none")
    warn_of_one_class(gold_labels(job.data["validation"]), list(job.data.id2label.values()), job.data.problem_type)

    # What would end the search in a later trial: values of objectives, and the deepest student.
    of_objectives = {name: values for name, values in search.items() if "." in name}
    _refuse_values(of_objectives, partial(with_settings, job.stages[0].objectives))
    make_student(job.parent, max(layers), seed=args.seed)
    metric = headline_of(job.data.problem_type, job.data["validation"])
    return job, args, metric, _describe_search(job, args, search, layers)


def open_study(journal: Path, asked: dict[str, Any], folder: Path) -> Any:
    """Open the trials that are kept, or begin with none.

    Args:
        journal: the file.
        asked: what the trials depend on, by `prepare_search`.
        folder: of the search, for messages.

    Returns:
        The study.

    Raises:
        ValueError: if the file is damaged, or has the trials of another search.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    decided_by_main_process(partial(_cut_torn_line, journal))
    with explain_damage(folder / STUDY_FILE, "delete it, and the search begins anew"):
        storage = JournalStorage(JournalFileBackend(str(journal)))
    decided_by_main_process(partial(_begin_or_go_on, storage, asked, folder))
    return optuna.load_study(study_name=_STUDY, storage=storage)


def trials_done(study: Any) -> int:
    """Count the trials of a study that ended with a value."""
    return len([trial for trial in study.trials if trial.value is not None])


def check_search(
    search: Mapping[str, Sequence[Any]],
    objectives: str | Sequence[Objective] | Sequence[Stage],
    layers: Sequence[int],
    n_trials: int,
    args: DistillationConfig,
) -> None:
    """Refuse a search whose trials can't all be begun.

    Args:
        search: see `tune`.
        objectives: see `tune`.
        layers: see `tune`.
        n_trials: see `tune`.
        args: what holds in every trial where it is not searched.

    Raises:
        ValueError: if a setting is unknown or none that a trial has of its own, a value is none that it can have, or
            the objectives have several stages.
    """
    if n_trials < 1:
        raise ValueError(f"n_trials must be at least 1, got {n_trials}")
    numbers = isinstance(layers, Sequence) and all(type(number) is int and number > 0 for number in layers)
    if not numbers or not layers:
        raise ValueError(f"layers must be numbers of layers to choose from, such as (2, 3), got {layers!r}")
    if (count := len(resolve(objectives))) > 1:
        raise ValueError(f"objectives={objectives!r} has {count} stages: search those of one, like 'hinton'")
    known = {field.name for field in fields(DistillationConfig)}
    for name, values in search.items():
        if "." not in name and name not in known:
            raise ValueError(f"{name!r} is neither a DistillationConfig field nor an OBJECTIVE.SETTING")
        if name.startswith("augment"):
            raise ValueError(f"{name!r} can't be searched, since all trials learn from the same rows: give one value")
        if name in _OF_ALL_TRIALS:
            raise ValueError(f"{name!r} can't be searched, since it says where all trials go: give one value")
        _check_values(name, values)

    of_run = {name: values for name, values in search.items() if "." not in name}
    _refuse_values(of_run, lambda settings: replace(args, **settings))


def _refuse_values(search: Mapping[str, Sequence[Any]], make: Callable[[Mapping[str, Any]], Any]) -> None:
    """Refuse values of a search that nothing can be made with; of a range its ends are tried."""
    for name, values in search.items():
        for value in values:
            try:
                make({name: value})
            except (ValueError, TypeError) as error:
                raise ValueError(f"search[{name!r}] can't have the value {value!r}: {error}") from error


def _check_values(name: str, values: Any) -> None:
    """Refuse values that are neither a range nor a choice."""
    if isinstance(values, list) and values:
        return
    numbers = isinstance(values, tuple) and len(values) == 2 and all(_is_number(value) for value in values)
    if not numbers or not values[0] < values[1]:
        raise ValueError(
            f"search[{name!r}] must be a pair (low, high) of numbers with low below high, or a list of values to "
            f"choose from, got {values!r}"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _describe_search(
    job: Job, args: DistillationConfig, search: Mapping[str, Sequence[Any]], layers: Sequence[int]
) -> dict[str, Any]:
    """Describe all that the trials' values depend on, as JSON can hold it."""
    objectives = ObjectiveSet(with_settings(job.stages[0].objectives, {}), args.weighting)
    train, held_out = job.data["train"], job.data["validation"]
    told = {"layers": list(layers)} | {
        f"search of {name}": list(values) if isinstance(values, tuple) else {"one of": values}
        for name, values in search.items()
    }
    told |= {name: getattr(args, name) for name in LENGTH}
    columns = random_access(train, first=1).column_names
    told |= describe_lessons(args, job.teacher, objectives, train, columns)
    told |= describe_rows(held_out, held_out.column_names, "held-out")
    return json.loads(json.dumps(told, default=str))


def _begin_or_go_on(storage: Any, asked: dict[str, Any], folder: Path) -> None:
    """Begin a study, or go on with the one that is there; refuse one with results of another search."""
    import optuna

    begin = partial(optuna.create_study, study_name=_STUDY, storage=storage, direction="maximize")
    study = begin(load_if_exists=True)
    kept = study.user_attrs.get(_ASKED)
    if not study.trials:
        study.set_user_attr(_ASKED, asked)
        return
    if kept == asked:
        return
    if not any(trial.value is not None for trial in study.trials):
        # Nothing was found, so nothing is lost of a search that failed.
        optuna.delete_study(study_name=_STUDY, storage=storage)
        begin().set_user_attr(_ASKED, asked)
        return
    if kept is None:
        raise ValueError(
            f"{folder / STUDY_FILE} has trials of an earlier version, which do not say what they are of: delete it, "
            "or choose another output_dir"
        )
    if differ := differences(kept, asked, "the folder"):
        raise ValueError(f"{folder} has the trials of another search: {'; '.join(differ)}. Choose another output_dir")


def _cut_torn_line(journal: Path) -> None:
    if journal.exists():
        with journal.open("r+b") as file:
            cut_torn_line(file)


def _train_trial(job: Job, args: DistillationConfig, drawn: Mapping[str, Any], number: int) -> dict[str, float]:
    """Train a student with a trial's settings, and measure it on the held-out rows."""
    of_objectives = {name: value for name, value in drawn.items() if "." in name}
    trial_args = replace(
        args,
        output_dir=str(Path(args.output_dir) / f"run-{number}"),
        teacher_cache_dir=args.teacher_cache,
        **{name: value for name, value in drawn.items() if name not in ("layers", *of_objectives)},
    )
    student = make_student(job.parent, drawn["layers"], seed=args.seed)
    trainer = job.trainer(student, trial_args, Stage(with_settings(job.stages[0].objectives, of_objectives)))
    trainer.train()
    return trainer.evaluate()


def _draw(trial: Any, search: Mapping[str, Sequence[Any]], layers: Sequence[int]) -> tuple[dict[str, Any], int]:
    """Draw a trial's settings, `layers` among them; beside them its number."""
    drawn = {"layers": trial.suggest_categorical("layers", list(layers))}
    return drawn | {name: _suggest(trial, name, values) for name, values in search.items()}, trial.number


def _suggest(trial: Any, name: str, values: Sequence[Any]) -> Any:
    if isinstance(values, list):
        return trial.suggest_categorical(name, values)
    low, high = values
    suggest = trial.suggest_int if isinstance(low, int) and isinstance(high, int) else trial.suggest_float
    return suggest(name, low, high, log=low > 0 and high / low >= 10)

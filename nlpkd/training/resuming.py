"""Which checkpoint a training goes on from, and what a run finished before, which the same run takes up."""

from __future__ import annotations

import json
import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

from accelerate import PartialState
from accelerate.utils import gather_object
from torch.optim.lr_scheduler import LambdaLR
from transformers import EarlyStoppingCallback, TrainerControl, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import has_length

from nlpkd.config import DistillationConfig
from nlpkd.evaluation.figures.reading import as_type
from nlpkd.training.checkpoints import RUN_RECORD, chooses_alike, has_optimizer, is_of, last_whole, run_record_of
from nlpkd.training.failures import explain_unsaved
from nlpkd.utils.disk.files import (
    atomic_folder_update,
    explain_damage,
    has_checksums,
    numbered_folders,
    refuse_damaged,
    weights_sha256,
)
from nlpkd.utils.fingerprints import differences
from nlpkd.utils.processes import decided_by_main_process
from nlpkd.utils.progress import phase

logger = logging.getLogger(__name__)

# The state that `Trainer` resumes from, but for what holds entries of any kind. Steps as settings may be 1.0.
_STATE_TYPES = {
    name: float if name in ("logging_steps", "eval_steps", "save_steps") else kind
    for name, kind in get_type_hints(TrainerState).items()
    if name not in ("log_history", "trial_params", "stateful_callbacks")
}


def checkpoint_to_resume(args: DistillationConfig) -> str | bool:
    """Return what `trainer.train` is to resume from; True only where there is a whole checkpoint."""
    if not resumes(args):
        return False
    if not resumes_last(args):
        return str(args.resume_from_checkpoint)
    # Machines may see other folders, and start or resume together.
    checkpoints = numbered_folders(Path(args.output_dir), "checkpoint").values()
    found = decided_by_main_process(lambda: any(map(has_checksums, checkpoints)))
    if not found and PartialState().is_main_process:
        logger.warning("There is no whole checkpoint in %s yet: starting from the beginning.", args.output_dir)
    return found


def resumes(args: DistillationConfig) -> bool:
    """Check whether a run goes on from a checkpoint."""
    return str(args.resume_from_checkpoint).lower() not in ("none", "false")


def resumes_last(args: DistillationConfig) -> bool:
    """Check whether a run goes on from the last checkpoint in its folder, whichever that is."""
    return str(args.resume_from_checkpoint).lower() == "true"


def resumes_own(args: DistillationConfig) -> bool:
    """Check whether a run goes on from what there is of it in its folder, and not from a checkpoint that is named."""
    return resumes_last(args) or str(args.resume_from_checkpoint).lower() == "auto"


def settings_beside(args: DistillationConfig, folder: Path) -> DistillationConfig:
    """Return the settings of a further training of a run; a checkpoint asked for belongs to the first one alone."""
    # Seeds and stages teach the same rows, so that the teacher need not run on them again.
    return replace(
        args,
        output_dir=str(folder),
        teacher_cache_dir=args.teacher_cache,
        push_to_hub=False,
        resume_from_checkpoint="auto" if resumes(args) else None,
    )


def settings_of_stages(args: DistillationConfig, own: Sequence[Mapping[str, Any]]) -> list[DistillationConfig]:
    """Return the settings of each stage of a run.

    Args:
        args: of the run.
        own: what each stage sets itself.
    """
    settings = []
    for number, stage in enumerate(own, start=1):
        each = replace(args, **stage, push_to_hub=False)
        if number < len(own):
            each = settings_beside(each, stage_folder(Path(args.output_dir), number, len(own)))
        if resumes_last(args):
            # The first training tells whether the job is the one that is resumed.
            each = replace(each, resume_from_checkpoint="True" if number == 1 else "auto")
        settings.append(each)
    return settings


def stage_folder(folder: Path, number: int, stages: int) -> Path:
    """Return where a stage's model goes: the last one's is the one that was asked for."""
    return folder / f"stage-{number}" if number < stages else folder


def resolve_resume_checkpoint(asked: str | bool | None, output_dir: str, record: dict[str, Any]) -> str | None:
    """Choose the checkpoint to resume from, the same one on all processes.

    A run may be resumed for another number of epochs or steps: a warning says that the learning rate's schedule
    follows the new length from there on.

    Args:
        asked: a path, True for the last whole checkpoint of `output_dir`, `"auto"` for that of this run if there is
            one, or None (False) for none.
        output_dir: where the run's checkpoints are.
        record: of this run, by `describe_run`.

    Returns:
        The checkpoint's path, None for none.

    Raises:
        ValueError: if there is no whole checkpoint, a file of it is damaged, or another run wrote it: the files, or
            what differs, are named.
    """
    if not asked:
        return None
    chosen = decided_by_main_process(lambda: _matching_checkpoint(Path(output_dir), asked, record))
    if chosen is None:
        return None
    _refuse_unseen("checkpoint", Path(chosen))
    return chosen


def _refuse_unseen(kind: str, path: Path) -> None:
    """Refuse what the first machine alone has, since all go on from it."""
    seen = gather_object([path.exists()])
    if not all(seen):
        without = [rank for rank, found in enumerate(seen) if not found]
        raise ValueError(
            f"the {kind} {path} is on the machine of process 0, and not on that of processes {without}: let "
            "output_dir be a folder that all machines share, or copy it there"
        )


def refuse_cut_short(checkpoint: Path) -> None:
    """Refuse a folder that is no whole checkpoint, or is not there.

    Raises:
        ValueError: if it is none.
    """
    if not has_checksums(checkpoint) or not (checkpoint / RUN_RECORD).is_file():
        raise ValueError(
            f"{checkpoint} is no whole checkpoint: nothing is there, it was cut short while it was written, or nlpkd "
            "did not write it. resume_from_checkpoint=True takes the last whole one"
        )


def _matching_checkpoint(output_dir: Path, asked: str | bool, record: dict[str, Any]) -> str | None:
    """Return the checkpoint asked for, if it is whole, undamaged and of the run that `record` describes."""
    # Which one; "auto" starts anew where there is none of this run.
    found = last_whole(output_dir, record) if asked in (True, "auto") else Path(str(asked))
    if asked == "auto" and (found is None or not is_of(found, record) or not has_optimizer(found)):
        return None
    if found is None:
        raise ValueError(f"there is no whole checkpoint in {output_dir}: leave resume_from_checkpoint out")
    # Is it whole, as it was written, and of this run?
    refuse_cut_short(found)
    theirs, best = _read_checkpoint(found)
    differ = differences(theirs["result"], record["result"], "the checkpoint")
    # Who names a checkpoint knows which one it is.
    if record.get("same_start") and asked in (True, "auto") and theirs["start"] != record["start"]:
        differ.append("the student's weights at the start")
    if not chooses_alike(theirs, record):
        differ += differences(theirs["chosen"], record["chosen"], "the checkpoint")
    if differ:
        raise ValueError(
            f"{found} is of another run; what differs: {'; '.join(differ)}. Resume with the settings of that run, or "
            "leave resume_from_checkpoint out to start anew: its checkpoints are set aside then"
        )
    logger.warning("Resuming from %s.", found)
    if best is not None and "chosen" in record and "chosen" not in theirs:
        logger.warning(
            "%s does not say which rows its best metric (%g) was measured on, since an earlier version of nlpkd wrote "
            "it: it is taken for one of these rows, and of this metric.",
            found,
            best,
        )
    for phrase in differences(theirs["length"], record["length"], "the checkpoint"):
        logger.warning("%s: the learning rate's schedule follows the new length from here on.", phrase)
    for phrase in differences(theirs["start"], record["start"], "the checkpoint"):
        logger.warning("The student starts from other weights, which are not used: %s differs.", phrase)
    return str(found)


def _read_checkpoint(checkpoint: Path) -> tuple[dict[str, Any], float | None]:
    """Read a whole checkpoint's record and its best metric so far, after all that is resumed from is checked."""
    advice = f"go on from the checkpoint before it, delete {checkpoint}"
    try:
        refuse_damaged(checkpoint)
    except ValueError as error:
        raise ValueError(f"{error}. To {advice}") from None
    with explain_damage(checkpoint / RUN_RECORD, f"to {advice}"):
        told = json.loads((checkpoint / RUN_RECORD).read_text(encoding="utf-8"))
        # Earlier versions noted nothing of how the best checkpoint is chosen.
        theirs = {part: dict(told[part]) for part in ("result", "length", "start", *({"chosen"} & told.keys()))}
    if not (history := checkpoint / TRAINER_STATE_NAME).is_file():
        return theirs, None
    with explain_damage(history, f"to {advice}"):
        state = TrainerState.load_from_json(str(history))
        if not all(isinstance(each, dict) for each in state.log_history):
            raise ValueError("its log_history is no list of entries")
        kept: Any = state.stateful_callbacks
        states = [each for name in kept for each in _states_of(name, kept)]
        parts = [each.get(part, {}) for each in states for part in ("args", "attributes")]
        if not all(isinstance(part, dict) for part in parts):
            raise ValueError("its stateful_callbacks hold something else than states")
        for name, kind in _STATE_TYPES.items():
            # Counts of a training, such as its operations, grow beyond any figure of a report.
            as_type(kind, getattr(state, name), largest=math.inf)
    return theirs, state.best_metric


def follow_new_length(lr_scheduler: Any, checkpoint: Path, record: dict[str, Any]) -> None:
    """Set the learning rates to those of the new length, where a run is resumed for another one.

    What was loaded are the rates of the old length, which the next step would be taken with.

    Args:
        lr_scheduler: of the run, as it was loaded; only one of `transformers` knows the length.
        checkpoint: where it was loaded from.
        record: of this run, by `describe_run`.
    """
    if isinstance(lr_scheduler, LambdaLR) and (run_record_of(checkpoint) or {}).get("length") != record["length"]:
        # Its last step once more, by the new length
        lr_scheduler.last_epoch -= 1
        lr_scheduler.step()


def restore_callbacks(callbacks: Sequence[Any], kept: Mapping[str, Any]) -> None:
    """Give callbacks that keep a state the one that a checkpoint has of them; their settings stay those of this run.

    Args:
        callbacks: of the run.
        kept: states by the class's name, several callbacks of a class in a list, as `TrainerState` has them.
    """
    told, own = [], defaultdict(list)
    for callback in callbacks:
        if isinstance(callback, ExportableState):
            own[type(callback).__name__].append(callback)
    for name in sorted(kept.keys() - own.keys() - {TrainerControl.__name__}):
        told.append(f"The checkpoint has a state of {name}, which is no callback of this run: it is left out.")
    for name, group in own.items():
        # `Trainer` adds the states of several callbacks of a class to those of the checkpoints before.
        states = _states_of(name, kept)[-len(group) :]
        if len(states) < len(group):
            told.append(f"The checkpoint has no state of {name}, which begins anew.")
        for callback, state in zip(group, states, strict=False):
            settings = json.loads(json.dumps(callback.state().get("args", {}), default=str))
            told += [
                f"{name}: {phrase}; this run's is used."
                for phrase in differences(state.get("args", {}), settings, "the checkpoint")
            ]
            for attribute, value in state.get("attributes", {}).items():
                setattr(callback, attribute, value)
    if PartialState().is_main_process:
        for sentence in told:
            logger.warning("%s", sentence)


def _states_of(name: str, kept: Mapping[str, Any]) -> list[Any]:
    found = kept.get(name, [])
    return found if isinstance(found, list) else [found]


def tell_shortened_epochs(state: TrainerState, steps_an_epoch: int, rows: Any) -> None:
    """Tell that epochs of a resumed run were cut short, since `Trainer` tells the epoch by the number of steps.

    Args:
        state: as the checkpoint has it.
        steps_an_epoch: optimizer steps of a full epoch.
        rows: of the training; epochs of a stream have no length of their own.
    """
    if not has_length(rows):
        return
    # Within an epoch whose last step has fewer micro-batches the two differ too, by less than a step.
    missing = state.epoch * steps_an_epoch - state.global_step
    if missing > 1 - 1e-6 and PartialState().is_main_process:
        logger.warning(
            "The checkpoint is of epoch %.2f after %d steps, and an epoch has %d: epochs were ended early, as by a "
            "callback's should_epoch_stop. The resumed run takes them for whole ones: from here on it is another run.",
            state.epoch,
            state.global_step,
            steps_an_epoch,
        )


def stopped_early(callbacks: Sequence[Any]) -> bool:
    """Check whether a run that is resumed was at its end, since its figures had not improved for too long."""
    early = [each for each in callbacks if isinstance(each, EarlyStoppingCallback)]
    return any(0 < each.early_stopping_patience <= each.early_stopping_patience_counter for each in early)


@dataclass(frozen=True)
class Training:
    """What a training took.

    Attributes:
        steps: all of them.
        seconds: None where they are not known, since a part of it was done on an earlier run.
        finished_before: whether all of it was.
    """

    steps: int
    seconds: float | None
    finished_before: bool = False

    @classmethod
    def of(cls, parts: Sequence[Training]) -> Training:
        """Add up what the parts of a training took."""
        known = [each.seconds for each in parts if each.seconds is not None]
        return cls(
            sum(each.steps for each in parts),
            sum(known) if len(known) == len(parts) else None,
            all(each.finished_before for each in parts),
        )


def train_once(trainer: Any, whom: str) -> Training:
    """Train and save a model, or take up the one that the very same training left in its folder on a run before.

    Args:
        trainer: a `DistillationTrainer`.
        whom: who is trained, for the log.

    Returns:
        What it took; the trainer has the model and the history.

    Raises:
        ValueError: if what is resumed is damaged, or another run's.
    """
    args, folder = trainer.args, Path(trainer.args.output_dir)
    history = folder / TRAINER_STATE_NAME
    state = finished_before(trainer) if resumes_own(args) else None
    if state is not None:
        _refuse_unseen("finished training", history)
        logger.warning("The training in %s is finished: its model is used.", folder)
        trainer.model.load_state_dict(type(trainer.model).from_pretrained(folder).state_dict())
        trainer.state = state
        return Training(state.global_step, None, finished_before=True)
    checkpoint = checkpoint_to_resume(args)
    if not checkpoint and args.should_save:
        # It says that a training is finished, and this one is not yet.
        history.unlink(missing_ok=True)
    with phase(f"Training {whom}"):
        result = trainer.train(resume_from_checkpoint=checkpoint)
        with explain_unsaved(args, whom):
            trainer.save_model()
    if args.should_save:
        # The last that is written, so that a training without it was cut short.
        record = _describe_finished(trainer, trainer.run_record)
        with atomic_folder_update(folder) as temporary:
            (temporary / RUN_RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            trainer.state.save_to_json(str(temporary / TRAINER_STATE_NAME))
    seconds = None if trainer.resumed_checkpoint else result.metrics["train_runtime"]
    return Training(trainer.state.global_step, seconds)


def finished_before(trainer: Any) -> TrainerState | None:
    """Return the history of a training that was finished, where it was this very one and its weights are there.

    Args:
        trainer: a `DistillationTrainer`, whose output directory is looked into.
    """
    history = Path(trainer.args.output_dir) / TRAINER_STATE_NAME
    record = _describe_finished(trainer, trainer.describe_run())

    def read() -> TrainerState | None:
        if not history.is_file() or run_record_of(history.parent) != record:
            return None
        with explain_damage(history, "delete it, and the training is done again"):
            return TrainerState.load_from_json(str(history))

    return decided_by_main_process(read)


def _describe_finished(trainer: Any, record: dict[str, Any]) -> dict[str, Any]:
    """Describe a run with the weights that are in its folder."""
    told = {"chosen": {}, **record, "weights": weights_sha256(Path(trainer.args.output_dir))}
    return json.loads(json.dumps(told, default=str))

"""Whole checkpoints: with checksums of their files, and a record of the run that wrote them."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import nn
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import has_length

from nlpkd.config import DistillationConfig
from nlpkd.data.rows import describe_rows, makes_batches
from nlpkd.objectives.base import Objective, setting_names
from nlpkd.objectives.objective_set import ObjectiveSet
from nlpkd.objectives.temperature import Temperature
from nlpkd.utils.disk.files import has_checksums, numbered_folders, write_checksums, write_json
from nlpkd.utils.disk.full_disk import explain_full_disk
from nlpkd.utils.disk.links import give_usual_modes
from nlpkd.utils.fingerprints import hash_value
from nlpkd.utils.object_hashes import NO_INFLUENCE, Hasher, hash_configuration, hash_in_run, hash_weights, is_foreign

logger = logging.getLogger(__name__)

RUN_RECORD = "distillation_run.json"
"""In every checkpoint, and beside a finished student: what the run's result depends on."""

# In every record.
_SETTINGS = (
    "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "optim",
    "optim_args", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "seed", "data_seed",
    "train_sampling_strategy", "dataloader_drop_last", "neftune_noise_alpha", "bf16", "fp16",
    "objective_learning_rate", "weighting", "weighting_learning_rate", "anchor_weight", "ensemble_average",
    "ensemble_weights", "lean_training",
)  # fmt: skip

# Logging, evaluation, saving and pushing change no result, nor do kernels, memory and machines, but for rounding. Nor
# does how a step's rows are split into micro-batches and processes, but for objectives that relate the rows of a
# micro-batch. Label smoothing and further rows are told of with the objectives and the rows. All other settings are in
# the record where they are not the default.
_WITHOUT_INFLUENCE = frozenset({
    "output_dir", "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id",
    "logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node", "logging_nan_inf_filter",
    "include_num_input_tokens_seen", "log_level", "log_level_replica", "disable_tqdm", "report_to", "debug",
    "skip_memory_metrics", "do_train", "do_eval", "do_predict", "eval_strategy", "eval_steps", "eval_delay",
    "per_device_eval_batch_size", "prediction_loss_only", "eval_on_start", "eval_do_concat_batches",
    "eval_use_gather_object", "eval_accumulation_steps", "include_for_metrics", "batch_eval_metrics", "label_names",
    "bf16_full_eval", "fp16_full_eval", "save_only_model", "save_strategy", "save_steps", "save_on_each_node",
    "save_total_limit", "enable_jit_checkpoint", "load_best_model_at_end", "metric_for_best_model",
    "greater_is_better", "resume_from_checkpoint", "ignore_data_skip", "restore_callback_states_from_checkpoint",
    "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision",
    "tf32", "activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing",
    "gradient_checkpointing_kwargs", "torch_compile", "torch_compile_backend", "torch_compile_mode",
    "use_liger_kernel", "liger_kernel_config", "use_cache", "torch_empty_cache_steps", "full_determinism", "use_cpu",
    "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context", "remove_unused_columns", "local_rank", "parallelism_config", "fsdp",
    "fsdp_config", "deepspeed", "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers",
    "ddp_static_graph", "ddp_backend", "ddp_timeout", "per_device_train_batch_size", "gradient_accumulation_steps",
    "average_tokens_across_devices", "auto_find_batch_size", "label_smoothing_factor", "teacher_check",
    "cache_teacher", "teacher_cache_dir", "compact_embeddings", "cuda_graphs", "rehearsal", "bootstrap_samples",
    "latency_runs", "html_report", "augment", "augment_copies", "augment_change", "augment_texts", "augment_model",
})  # fmt: skip

_OF_TRAINER = frozenset({"before_bound", "bound_in", "num_labels", "progress", "task"})
"""Attributes of an objective that a trainer sets."""

LENGTH = ("num_train_epochs", "max_steps")
"""Settings of a training's length."""

# They decide which checkpoint is the best one, and when a training stops early.
_CHOICE = (
    "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "eval_strategy", "eval_steps",
    "eval_delay", "save_strategy", "save_steps",
)  # fmt: skip


def last_whole(output_dir: str | Path, record: dict[str, Any] | None = None) -> Path | None:
    """Find the last checkpoint that was written to the end.

    Args:
        output_dir: where the checkpoints are.
        record: of a run, by `describe_run`: its checkpoints come before those of other runs.

    Returns:
        The checkpoint; None where there is none.
    """
    others: list[Path] = []
    for path in reversed(numbered_folders(Path(output_dir), "checkpoint").values()):
        if not has_checksums(path):
            logger.warning("%s was cut short while it was written, and is left out.", path)
        elif record is None or is_of(path, record):
            return path
        else:
            others.append(path)
    return others[0] if others else None


def run_record_of(checkpoint: Path) -> dict[str, Any] | None:
    """Read which run wrote a checkpoint; None where no run of nlpkd did, or the record is damaged."""
    try:
        found = json.loads((checkpoint / RUN_RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def is_of(checkpoint: Path, record: dict[str, Any]) -> bool:
    """Check whether a run wrote a checkpoint, of whatever length it was then."""
    theirs = run_record_of(checkpoint)
    compared = ("result", "start") if record.get("same_start") else ("result",)
    if theirs is None or not chooses_alike(theirs, record):
        return False
    return all(theirs.get(part) == record.get(part) for part in compared)


def chooses_alike(theirs: dict[str, Any], record: dict[str, Any]) -> bool:
    """Check whether two runs choose the best checkpoint by the same figures, where both choose one."""
    ours = record.get("chosen")
    return ours is None or theirs.get("chosen") in (None, ours)


def has_optimizer(checkpoint: Path) -> bool:
    """Check whether a checkpoint has the optimizer's state, as Trainer, FSDP or DeepSpeed write it."""
    return any(checkpoint.glob("optimizer*")) or any(checkpoint.glob("global_step*"))


def how_to_go_on(output_dir: str | Path) -> str:
    """Say what a run that ended early goes on from, by the checkpoints in its folder."""
    whole = [path for path in numbered_folders(Path(output_dir), "checkpoint").values() if has_checksums(path)]
    if not whole:
        return "it had no whole checkpoint yet (save_steps), so that it begins anew"
    if not has_optimizer(whole[-1]):
        return f"it begins anew, since {whole[-1].name} has no state of the optimizer (save_only_model=True)"
    return f"go on from {whole[-1].name} with resume_from_checkpoint=True (--resume_from_checkpoint True)"


def set_other_runs_aside(output_dir: Path, resumed: str | None, record: dict[str, Any]) -> None:
    """Move checkpoints that a training would overwrite, but that it did not write itself, to a folder `earlier-N`.

    Those of the very same run stay, since it writes the same again. Those before the resumed one stay too, although
    the run may have had another length then.

    Args:
        output_dir: where the training's checkpoints go.
        resumed: the checkpoint that it goes on from; None for the beginning.
        record: of the run, by `describe_run`.
    """
    steps = [] if resumed is None else [number for number in Path(resumed).name.split("-")[-1:] if number.isdecimal()]
    last = int(steps[0]) if steps else -1
    taken = None if resumed is None else Path(resumed).resolve()
    found = numbered_folders(output_dir, "checkpoint")
    others = [
        path
        for step, path in found.items()
        if path.resolve() != taken
        and any(path.iterdir())
        and not (is_of(path, record) if step <= last else run_record_of(path) == record)
    ]
    if not others:
        return
    earlier = output_dir / f"earlier-{max(numbered_folders(output_dir, 'earlier'), default=0) + 1}"
    earlier.mkdir()
    for path in others:
        path.rename(earlier / path.name)
    logger.warning("The checkpoints of an earlier run in %s were moved to %s: %d.", output_dir, earlier, len(others))


def rotate_checkpoints(
    output_dir: Path, record: dict[str, Any], limit: int | None, *, best: str | None, kept: Collection[Path] = ()
) -> None:
    """Delete the first checkpoints of a run, and no other folder, until there are `limit`.

    Args:
        output_dir: where the checkpoints are.
        record: of the run, by `describe_run`.
        limit: how many to keep; None or 0 for all.
        best: the best checkpoint, which stays.
        kept: others that stay, such as the one that was just written. Where there are any, the last one stays too.
    """
    if limit is None or limit <= 0:
        return
    own = [path for path in numbered_folders(output_dir, "checkpoint").values() if is_of(path, record)]
    # Compared as places, since a folder has many names: "./x", "x" and its whole path.
    stay = {path.resolve() for path in [*kept, *(own[-1:] if kept else []), *([Path(best)] if best else [])]}
    for path in [path for path in own if path.resolve() not in stay][: max(0, len(own) - limit)]:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def write_checkpoint_checksums(folder: Path, record: dict[str, Any], should_save: bool) -> Iterator[None]:
    """Make what is saved meanwhile a whole checkpoint, or leave nothing of it.

    Args:
        folder: the checkpoint.
        record: of the run, by `describe_run`.
        should_save: whether this process is the one that writes.

    Yields:
        Nothing.

    Raises:
        OSError: if the disk is full; nothing of the checkpoint is left then.
    """
    # What is left of a checkpoint of the same step that was cut short goes before any process writes.
    if should_save:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    PartialState().wait_for_everyone()
    advice = how_to_go_on(folder.parent)
    failed = f"{folder.name} was not written. Free some space, and start the run again: {advice}"
    try:
        with explain_full_disk(folder, failed):
            # The record comes first: a folder that was cut short tells whose it is.
            if should_save:
                write_json(folder / RUN_RECORD, record)
            yield
            # The checksums come last, when all processes have written: a folder without them was cut short.
            PartialState().wait_for_everyone()
            if should_save:
                give_usual_modes(folder)
                write_checksums(folder)
    except Exception:
        if should_save:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def describe_run(
    args: DistillationConfig,
    student: nn.Module,
    teacher: nn.Module | None,
    objectives: ObjectiveSet,
    rows: Any,
    columns: Sequence[str],
    *,
    own_parts: dict[str, Any] | None = None,
    same_start: bool = False,
    held_out: Any = None,
    metrics: Any = None,
) -> dict[str, Any]:
    """Describe all that a training's result depends on.

    Args:
        args: the settings.
        student: before training.
        teacher: the teacher, if there is one.
        objectives: bound to the two.
        rows: the training rows.
        columns: of them, that are read.
        own_parts: what else the user gave, by `describe_own_parts`.
        same_start: whether a run that starts from other weights is another one.
        held_out: the rows of its evaluations, several by name.
        metrics: of the user's own, by the function's name: its code is not looked at.

    Returns:
        `"result"`: fingerprints and settings that must be the same in a run that is resumed, by what a refusal calls
        them; `"length"`: epochs and steps, which may change; `"start"`: the student's weights at the start, which a
        checkpoint replaces; `"same_start"`: whether these must be the same all the same; `"chosen"`, of a run that
        goes by its evaluations: what their figures depend on, likewise.
    """
    result = describe_lessons(args, teacher, objectives, rows, columns) | _describe_student(student)
    result |= own_parts or {}
    # Weights at the start, which matter to the end only where they pull
    start = {"hash of the weights": hash_weights(student)}
    if args.anchor_weight:
        result |= {"the student's weights at the start": start["hash of the weights"]}
    length = {name: getattr(args, name) for name in LENGTH}
    told = {"result": result, "length": length, "start": start, "same_start": same_start}
    if args.metric_for_best_model is not None and args.eval_strategy != "no":
        told["chosen"] = _describe_choice(args, held_out, columns, metrics)
    return json.loads(json.dumps(told, default=str))


def _describe_choice(args: DistillationConfig, held_out: Any, columns: Sequence[str], metrics: Any) -> dict[str, Any]:
    """Describe what decides which checkpoint is the best one."""
    settings = args.to_dict()
    told = {name: settings[name] for name in _CHOICE}
    for name, rows in held_out.items() if isinstance(held_out, dict) else [("validation", held_out)]:
        told |= describe_rows(rows, columns, name)
    return told if metrics is None else told | {"the metrics' function": _name_of(metrics)}


def describe_lessons(
    args: DistillationConfig, teacher: nn.Module | None, objectives: ObjectiveSet, rows: Any, columns: Sequence[str]
) -> dict[str, Any]:
    """Describe what a training's result depends on beside its student and its length; see `describe_run`."""
    settings = args.to_dict()
    result = {name: settings.get(name) for name in _SETTINGS} | _other_settings(settings)
    result["rows of an optimizer step"] = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    if objectives.couple_rows:
        result |= {"rows of a micro-batch": args.train_batch_size, "processes": args.world_size}
    if not makes_batches(rows) and not has_length(rows) and args.dataloader_num_workers > 1:
        # They share such rows out among themselves.
        result["dataloader_num_workers"] = args.dataloader_num_workers
    result |= describe_rows(rows, [*columns, *_ordered_by(args)], "training")
    for name, objective in zip(objectives.names, objectives, strict=True):
        result |= {f"{name}: {key}": value for key, value in objective.config().items() if key != "citation"}
        result |= {f"{name}: {part}": hash_in_run(_tell_own, each) for part, each in _own_parts_of(objective).items()}
    if teacher is not None and objectives.need_teacher:
        result |= {"the teacher's weights": hash_weights(teacher)}
        result |= {"the teacher's configuration": hash_in_run(hash_configuration, teacher)}
    return result


def _own_parts_of(objective: Objective) -> dict[str, Any]:
    """Return what of an objective is somebody's own: its result depends on more than the settings that it names."""
    parts = {"code or attributes": objective, "code of its temperature": getattr(objective, "temperature", None)}
    known = (Objective, Temperature)
    return {name: each for name, each in parts.items() if isinstance(each, known) and is_foreign(type(each))}


def _tell_own(part: Objective | Temperature) -> str:
    """Hash the code of an objective or a temperature, and the attributes that it was made with."""
    hasher, names = Hasher(), setting_names(type(part))
    given = {name: hasher.hash(getattr(part, name)) for name in names if hasattr(part, name)}
    held = {name: told for name, told in hasher.attributes(part) if name not in _OF_TRAINER}
    return hash_value([hasher.code(type(part)), given, held])


def _other_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return what is set otherwise than by default, of the settings that no record needs to have."""
    usual = {field.name: field.default for field in fields(DistillationConfig)} | {"accelerator_config": {}}
    plain = AcceleratorConfig().to_dict()
    sharing = settings["accelerator_config"].items()
    given = settings | {"accelerator_config": {name: value for name, value in sharing if value != plain.get(name)}}
    names = usual.keys() - {*_SETTINGS, *LENGTH, *_WITHOUT_INFLUENCE}
    return {name: given[name] for name in sorted(names) if given[name] != usual[name]}


def _ordered_by(args: DistillationConfig) -> list[str]:
    """Name the column that the order of rows goes by, if there is one; see `nlpkd.training.batches.loaders`."""
    name, order = args.length_column_name, args.train_sampling_strategy
    kept = order == "batch_rebalance" and not args.remove_unused_columns
    return [name] if kept or (order == "group_by_length" and name != "length") else []


def _describe_student(model: Any) -> dict[str, Any]:
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    told = {"the student's class": type(model).__name__, "the student's shapes": hash_value(shapes)}
    config = getattr(model, "config", None)
    # Training itself sets the ids of special tokens.
    settings = {} if config is None else config.to_dict()
    settings = {k: v for k, v in settings.items() if k not in NO_INFLUENCE and not k.endswith("_token_id")}
    told |= {f"the student's {name}": value for name, value in settings.items()}
    frozen = sorted(name for name, parameter in model.named_parameters() if not parameter.requires_grad)
    return told | ({"the student's frozen weights": [len(frozen), hash_value(frozen)]} if frozen else {})


def describe_own_parts(loss_function: Any, optimizer: Any, optimizer_class: tuple[Any, Any] | None) -> dict[str, Any]:
    """Describe what a user gave to a trainer beside settings, models and rows.

    Args:
        loss_function: `compute_loss_func` of `Trainer`, by its name; what is somebody's own also by its code, and by
            all that it names or holds.
        optimizer: a ready-made optimizer, by its class and the settings of its groups.
        optimizer_class: `optimizer_cls_and_kwargs` of `Trainer`.

    Returns:
        Values by what a refusal calls them, for `describe_run`; none where nothing of it was given.
    """
    told: dict[str, Any] = {}
    if loss_function is not None:
        told["the loss function"] = _name_of(loss_function)
        if is_foreign(loss_function):
            told["the loss function's code"] = hash_in_run(Hasher().hash, loss_function)
    if optimizer is not None:
        groups = getattr(optimizer, "param_groups", [])
        rest = [
            [len(group["params"]), {name: value for name, value in group.items() if name != "params"}]
            for group in groups
        ]
        settings = hash_value(json.loads(json.dumps(rest, default=str)))
        told["the optimizer"] = [_name_of(type(optimizer)), [group.get("lr") for group in groups], settings]
    elif optimizer_class is not None:
        told["the optimizer"] = [_name_of(optimizer_class[0]), optimizer_class[1]]
    return told


def _name_of(given: Any) -> str:
    return str(getattr(given, "__qualname__", type(given).__qualname__))

"""What a training's result depends on, so that a checkpoint is resumed by the same run alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from torch import nn

from nlpkd.config import DistillationConfig
from nlpkd.data.columns import TEACHER_LOGITS
from nlpkd.data.rows import count_rows, makes_batches, random_access
from nlpkd.objectives.objective_set import ObjectiveSet
from nlpkd.utils.fingerprints import NO_INFLUENCE, hash_configuration, hash_value, hash_weights

_HASHED_ROWS = 10_000

# How a step's rows are split into micro-batches and processes, logging, evaluation and saving change no result.
_SETTINGS = (
    "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "optim",
    "optim_args", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "seed", "data_seed",
    "train_sampling_strategy", "dataloader_drop_last", "neftune_noise_alpha", "bf16", "fp16",
    "objective_learning_rate", "weighting", "weighting_learning_rate", "anchor_weight", "ensemble_average",
    "ensemble_weights", "lean_training",
)  # fmt: skip

_LENGTH = ("num_train_epochs", "max_steps")


def describe_run(
    args: DistillationConfig,
    student: nn.Module,
    teacher: nn.Module | None,
    objectives: ObjectiveSet,
    rows: Any,
    columns: Sequence[str],
    *,
    teacher_ran: bool = False,
    own_parts: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Describe all that a training's result depends on.

    Args:
        args: the settings.
        student: before training.
        teacher: the teacher, if there is one.
        objectives: bound to the two.
        rows: the training rows.
        columns: of them, that are read.
        teacher_ran: whether their column of the teacher's logits is what this run's teacher gave beforehand.
        own_parts: what else the user gave; see `describe_own_parts`.

    Returns:
        `"result"`: fingerprints and settings that must be the same in a run that is resumed, by what a refusal calls
        them; `"length"`: epochs and steps, which may change; `"start"`: the student's weights at the start, which a
        checkpoint replaces.
    """
    # Settings
    settings = args.to_dict()
    result = {name: settings.get(name) for name in _SETTINGS}
    result["rows of an optimizer step"] = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    # Student, rows and objectives
    result |= _describe_student(student) | _describe_rows(rows, columns, teacher_ran) | (own_parts or {})
    for name, objective in zip(objectives.names, objectives, strict=True):
        result |= {f"{name}: {key}": value for key, value in objective.config().items() if key != "citation"}
    # The teacher, where it is run
    if teacher is not None and objectives.need_teacher:
        result |= {"the teacher's weights": hash_weights(teacher)}
        result |= {"the teacher's configuration": hash_configuration(teacher)}
    # Weights at the start, which matter to the end only where they pull
    start = {"hash of the weights": hash_weights(student)}
    if args.anchor_weight:
        result |= {"the student's weights at the start": start["hash of the weights"]}
    record = {"result": result, "length": {name: settings[name] for name in _LENGTH}, "start": start}
    return json.loads(json.dumps(record, default=str))


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
        loss_function: `compute_loss_func` of `Trainer`, by its name: its code is not looked at.
        optimizer: a ready-made optimizer, by its class and the settings of its groups.
        optimizer_class: `optimizer_cls_and_kwargs` of `Trainer`.

    Returns:
        Values by what a refusal calls them, for `describe_run`; none where nothing of it was given.
    """
    told: dict[str, Any] = {}
    if loss_function is not None:
        told["the loss function"] = _name_of(loss_function)
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


def _describe_rows(rows: Any, columns: Sequence[str], teacher_ran: bool) -> dict[str, Any]:
    told: dict[str, Any] = {"training rows": count_rows(rows)}
    if makes_batches(rows):
        # Read as a whole it would take long: its size and its first rows stand for it.
        told["bytes of the training file"] = rows.path.stat().st_size
    rows = random_access(rows, first=_HASHED_ROWS)
    if not isinstance(rows, Dataset):
        return told
    # What the teacher was run for beforehand depends on teacher and rows.
    made = {TEACHER_LOGITS} if teacher_ran else set()
    read = sorted(set(columns) & set(rows.column_names) - made)
    return told | {f"the training rows' {name}": digest for name, digest in _hash_columns(rows, read).items()}


def _hash_columns(rows: Dataset, columns: list[str]) -> dict[str, str]:
    """Hash the values of columns, however they are stored."""
    digests = {name: hashlib.sha256() for name in columns}
    for table in rows.select_columns(columns).with_format("arrow").iter(_HASHED_ROWS):
        for name, digest in digests.items():
            array = table.column(name).combine_chunks()
            while pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type):
                digest.update(pc.list_value_length(array).to_numpy(zero_copy_only=False).astype(np.int64).data)
                array = pc.list_flatten(array)
            if pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_boolean(array.type):
                wide = np.int64 if not pa.types.is_floating(array.type) else np.float64
                digest.update(np.ascontiguousarray(array.to_numpy(zero_copy_only=False), dtype=wide).data)
            else:
                digest.update(json.dumps(array.to_pylist(), default=repr).encode())
    return {name: digest.hexdigest() for name, digest in digests.items()}

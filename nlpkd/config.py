"""The settings of a distillation run; an objective's own settings belong to the objective."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from huggingface_hub import constants
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers import TrainingArguments, get_scheduler
from transformers.integrations import is_tensorboard_available
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_utils import HubStrategy, SchedulerType
from transformers.training_args import OptimizerNames

from nlpkd.tasks import MERITS, more_is_better
from nlpkd.utils.field_types import check_field_types, check_share, refuse_none, with_home
from nlpkd.utils.packages import refuse_missing_optimizer, require
from nlpkd.utils.processes import agree_with_launcher, has_rank, refuse_lost_processes

_CHOICES = {
    "teacher_check": ("error", "warn", "off"),
    "cache_teacher": ("auto", "off"),
    "weighting": ("fixed", "linear", "uncertainty"),
}

ENSEMBLE_AVERAGES = ("probabilities", "logits")

_SEVERAL_TYPES = {"fsdp", "resume_from_checkpoint", "dataloader_multiprocessing_context"}
"""What is declared as a text, and taken as a switch or an object too."""


_MAY_BE_INFINITE = {"max_grad_norm"}
"""What may be infinite: then gradients are measured, and not clipped."""


_RESOLVED = {"output_dir", "debug", "use_cpu"}
"""What TrainingArguments resolves where it is None."""


_MINIMUMS = {
    "learning_rate": 0, "objective_learning_rate": 0, "weighting_learning_rate": 0, "anchor_weight": 0,
    "weight_decay": 0, "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1, "bootstrap_samples": 1, "latency_runs": 0, "augment_copies": 1,
    "adam_epsilon": 0, "max_grad_norm": 0, "neftune_noise_alpha": 0, "eval_delay": 0, "eval_accumulation_steps": 1,
    "dataloader_num_workers": 0, "ddp_timeout": 1,
}  # fmt: skip


# With nargs and const, `--bf16` alone switches it on, as it does for TrainingArguments.
_SWITCH = {"nargs": "?", "const": True}


def _setting(default: Any, help: str, **parsing: Any) -> Any:
    """Declare a field with its default, its help on the command line, and how it is parsed there."""
    return field(default=default, metadata={"help": help, **parsing})


@dataclass
class DistillationConfig(TrainingArguments):
    """`transformers.TrainingArguments` with fast defaults, and what a teacher adds.

    All arguments of `TrainingArguments` are taken. Other defaults: `bf16` where the machine is fast at it, unless
    `accelerate launch` was asked for `fp16` (its "no" is what it says where it was asked for nothing),
    `train_sampling_strategy="group_by_length"` (here the order of batches is then a pure function of seed, epoch and
    lengths), `per_device_train_batch_size=32`, `per_device_eval_batch_size=64`, `logging_steps=50`, and a NaN loss is
    never filtered out of the log.

    Args:
        objective_learning_rate: learning rate of the objectives' own parameters; `learning_rate` if None.
        teacher_check: what to do with a teacher that is no better than the majority class on a sample of gold labels:
            `"error"`, `"warn"` or `"off"`.
        cache_teacher: `"auto"` runs the teacher once, before training, where its logits are all that is needed and
            rows are seen more than once (in `output_dir/teacher_cache`); `"off"` runs it on every batch.
        teacher_cache_dir: where those outputs are kept. Where it is given they are kept of a single epoch too, for the
            next training on the same rows.
        compact_embeddings: train the embedding rows that the training text uses as a table of their own, where the
            others would not move anyway (AdamW without weight decay): the same student but for rounding, in less time.
        lean_training: leave out what nothing reads: the last layer is computed for the first token alone where
            neither the head nor an objective reads another, and on the CPU dropout draws 16 bits an element
            (`nlpkd.training.speed.lean`). The same training but for rounding and for which elements are dropped. Hooks
            on the student turn it off. Callbacks and methods of your own may read other tokens' states, so that the
            last layer stays whole beside them; True says that they don't. None: wherever an objective needs a teacher;
            a `DistillationTrainer` without one then trains as `Trainer` does to the last mask, while `train_teacher`
            and the baselines of `distill` are lean.
        cuda_graphs: on one GPU, record the passes of student and teacher and a fused AdamW's steps as CUDA graphs,
            where lean training is on and nothing stands against it (`nlpkd.training.speed.lean`): the same kernels,
            without the time to launch them.
        rehearsal: before the first step, try evaluation, saving and the report on some rows, so that what fails at the
            end is known at the start; see `nlpkd.training.rehearsal`. Not where DeepSpeed or FSDP split a model up.
        bootstrap_samples: resamples behind the 95 % intervals of the report that `distill` writes.
        latency_runs: timed passes behind each latency of that report; 0 leaves out the timing and the counting of
            operations.
        html_report: write `report.html`, the report with charts, which needs the extra `report`.
        weighting: how the objectives' weights move: `"fixed"`, `"linear"` (from the teacher to the gold labels) or
            `"uncertainty"` (learned); see `nlpkd.objectives.weighting`.
        weighting_learning_rate: learning rate of learned weights.
        anchor_weight: factor of an L2 pull towards the weights that the student started from; see
            `nlpkd.objectives.l2_sp`.
        ensemble_average: what of several teachers is averaged: `"probabilities"` or `"logits"`; see
            `nlpkd.models.ensemble`.
        ensemble_weights: weights of several teachers, one a teacher; equal ones if None. Only their ratios count.
        augment: `distill` makes further rows for the teacher to label, in a way of `nlpkd.augment.WAYS`, or in the one
            that fits the kind of student (`"auto"`). None makes none, unless the preset does (`"best"`, which is
            `"soft_targets"` with augmentation).
        augment_copies: how many variants are drawn of each row; those that are not new are dropped. If None, as many
            as the preset says, or else 5.
        augment_change: about which share of a text's words a variant changes.
        augment_texts: a file of unlabelled text, whose lengths the further rows then follow.
        augment_model: path or Hub id of the masked language model of `augment="masked-lm"`.

    Raises:
        ValueError: if a setting is out of range or can't be had here, several GPUs are visible without a launcher, or
            a launcher started fewer processes than it was asked for, or was asked for another mixed precision.
    """

    output_dir: str = _setting("trainer_output", "Where the run writes.")
    bf16: bool | None = _setting(  # type: ignore[assignment]
        None, "bf16 mixed precision; by default wherever the machine is fast at it.", **_SWITCH
    )
    fp16: bool | None = _setting(  # type: ignore[assignment]
        None, "fp16 mixed precision; by default where accelerate launch says so.", **_SWITCH
    )
    train_sampling_strategy: str = _setting(
        "group_by_length", "group_by_length, random, sequential or batch_rebalance."
    )
    per_device_train_batch_size: int = _setting(32, "Rows of a micro-batch on one device.")
    per_device_eval_batch_size: int = _setting(64, "Rows of an evaluation batch.")
    logging_steps: float = _setting(50, "Log every so many steps (a ratio if below 1).")
    logging_nan_inf_filter: bool = _setting(False, "Replace NaN losses in the log.")
    objective_learning_rate: float | None = _setting(
        None, "Learning rate of the objectives' own parameters; learning_rate by default."
    )
    teacher_check: str = _setting(
        "error", "What to do with a teacher no better than the majority class: error, warn or off."
    )
    cache_teacher: str = _setting("auto", "auto: run the teacher once where its logits suffice; off: on every batch.")
    teacher_cache_dir: str | None = _setting(
        None, "Where those outputs are kept; output_dir/teacher_cache by default."
    )
    compact_embeddings: bool = _setting(
        True, "Train only the embedding rows that the text uses, where that is the same."
    )
    lean_training: bool | None = _setting(
        None,
        "Leave out what nothing reads, with other dropout masks than Trainer's; by default if there is a teacher.",
        **_SWITCH,
    )
    cuda_graphs: bool = _setting(True, "On one GPU, record passes once a shape and launch each at once.")
    rehearsal: bool = _setting(True, "Before the first step, try evaluation, saving and report on some rows.")
    bootstrap_samples: int = _setting(1000, "Resamples behind the report's intervals.")
    latency_runs: int = _setting(30, "Timed passes behind each latency of the report; 0 leaves the timing out.")
    html_report: bool = _setting(True, "Write report.html, with charts, beside report.json and report.md.")
    weighting: str = _setting("fixed", "Objectives' weights: fixed, linear or uncertainty.")
    weighting_learning_rate: float = _setting(0.01, "Learning rate of learned weights.")
    anchor_weight: float = _setting(0.0, "L2 pull towards the weights at the start.")
    ensemble_average: str = _setting(
        "probabilities", "What is averaged over several teachers: probabilities or logits."
    )
    ensemble_weights: list[float] | None = _setting(
        None, "Weights of several teachers, one a teacher; equal ones by default."
    )
    augment: str | None = _setting(
        None, "Make more rows for the teacher to label: auto, constituents, neighbours, masked-lm, masking or ngrams."
    )
    augment_copies: int | None = _setting(None, "Variants drawn of each row; by default the preset's number, or 5.")
    augment_change: float = _setting(0.3, "About which share of a text's words a variant changes.")
    augment_texts: str | None = _setting(None, "Unlabelled text whose lengths the further rows follow.")
    augment_model: str | None = _setting(None, "Masked language model of --augment masked-lm: a path or Hub id.")

    def __post_init__(self):
        """Resolve what depends on the machine, then check."""
        vars(self).update({name: with_home(value) for name, value in vars(self).items() if isinstance(value, str)})
        check_field_types(self, skipped={*_CHOICES, *_SEVERAL_TYPES}, may_be_infinite=_MAY_BE_INFINITE)
        refuse_none(self, skipped={*_CHOICES, *_RESOLVED})
        refuse_lost_processes()
        if not torch.accelerator.is_available():
            # Without it, launched CPU processes each take themselves for the only one.
            self.use_cpu = True
        if self.use_cpu and (self.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP")):
            raise ValueError(
                "FSDP was asked for, and training is on the CPU (use_cpu, or there is no accelerator): Accelerate "
                "would train with DDP and say nothing. Leave FSDP out (recipes/accelerate_configs/cpu.yaml), or run "
                "on GPUs"
            )
        self.bf16, self.fp16 = agree_with_launcher(self.bf16, self.fp16, self.use_cpu)
        if self.bf16 is None:
            self.bf16 = not self.fp16 and fast_at_bf16(self.use_cpu)
        if self.use_cpu and has_rank():
            # TrainingArguments hands ddp_timeout on to GPUs alone; a group that there is already keeps its own.
            PartialState(cpu=True, backend=self.ddp_backend, timeout=self.ddp_timeout_delta)
        if self.greater_is_better is None and self.metric_for_best_model is not None:
            self.greater_is_better = _more_is_better(self.metric_for_best_model)
        super().__post_init__()
        self._check_values()
        self._check_surroundings()

    def _check_values(self) -> None:
        """Refuse values out of range."""
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {getattr(self, name)!r}")
        for name, least in _MINIMUMS.items():
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, float)) and value >= least):
                raise ValueError(f"{name} must be >= {least}, got {value!r}")
        for name in ("adam_beta1", "adam_beta2", "label_smoothing_factor"):
            check_share(name, getattr(self, name), none=True)
        check_share("augment_change", self.augment_change, none=True, whole=True)
        _check_length(self)
        _check_seeds(self)
        check_ensemble(self.ensemble_average, self.ensemble_weights)
        _check_schedule(self)

    def _check_surroundings(self) -> None:
        """Refuse what is not there, and settings of Trainer that would be unsafe, or lose or block something."""
        _check_reporting(self.report_to or [])
        refuse_missing_optimizer(self)
        if self.push_to_hub:
            _check_push(self.repository)
        if self.hub_strategy in ("checkpoint", "all_checkpoints"):
            raise ValueError(
                f"hub_strategy={HubStrategy(self.hub_strategy).value!r} would publish pickled state: use 'every_save' "
                "or 'end'"
            )
        if self.label_names is not None and list(self.label_names) != ["labels"]:
            raise ValueError(
                f"label_names={self.label_names!r} can't be had: labels are those of the column 'labels'. Rename the "
                "column of yours, or leave label_names out"
            )
        if self.save_on_each_node:
            raise ValueError(
                "save_on_each_node=True would leave checkpoints without weights on all machines but the first, since "
                "transformers writes a model in process 0 alone: leave it out, and let output_dir be a folder that "
                "all machines share"
            )
        if self.auto_find_batch_size and self.world_size > 1:
            raise ValueError(
                f"auto_find_batch_size=True is for one process, and there are {self.world_size}: one that runs out of "
                "memory would leave the others waiting. Set per_device_train_batch_size lower, and "
                "gradient_accumulation_steps higher, which changes no result of objectives on single rows"
            )
        if self.eval_use_gather_object and self.world_size > 1:
            raise ValueError(
                "eval_use_gather_object=True would give metrics a list with the arrays of each process, and not the "
                f"rows in their order, on {self.world_size} processes: leave it out"
            )
        if self.auto_find_batch_size and self.train_sampling_strategy == "batch_rebalance":
            raise ValueError(
                "auto_find_batch_size=True can't be had with train_sampling_strategy='batch_rebalance', which makes "
                "micro-batches of a step's texts by their tokens: choose another order, or leave it out"
            )
        if self.n_gpu > 1:
            raise ValueError(
                f"{self.n_gpu} GPUs are visible and no launcher is used: run `accelerate launch YOUR_SCRIPT.py`, or "
                "choose one with CUDA_VISIBLE_DEVICES=0"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Leave tokens out where settings are pickled, as Trainer does into every checkpoint's training_args.bin.

        Copies by `copy` and for spawned processes lack them too, and push with the token of the login;
        `dataclasses.replace` keeps them.
        """
        return self.__dict__ | {name: None for name in self.__dict__ if name.endswith("_token")}

    @property
    def teacher_cache(self) -> str:
        """The folder of the teacher's outputs, which trainings on the same rows share."""
        return self.teacher_cache_dir or os.path.join(str(self.output_dir), "teacher_cache")

    @property
    def repository(self) -> str:
        """The name of the repository that a run pushes to: `hub_model_id`, or its output directory's name."""
        return self.hub_model_id or Path(str(self.output_dir)).resolve().name

    def choices(self) -> list[str]:
        """List what decides about speed, as it was chosen for this machine or asked for."""
        grouped = self.train_sampling_strategy == "group_by_length"
        return [
            "bf16" if self.bf16 else "fp16" if self.fp16 else "float32",
            "length-grouped batches" if grouped else f"batches in {self.train_sampling_strategy} order",
            OptimizerNames(self.optim).value,
        ]


def _check_reporting(names: Sequence[str]) -> None:
    """Refuse to report to what nobody knows, or what is not installed and nlpkd has an extra for."""
    if unknown := sorted(set(names) - set(INTEGRATION_TO_CALLBACK)):
        raise ValueError(f"report_to must be 'all', 'none' or among {sorted(INTEGRATION_TO_CALLBACK)}, got {unknown}")
    if "tensorboard" in names and not is_tensorboard_available():
        require("tensorboard", extra="tracking")


def _check_push(repository: str) -> None:
    """Refuse a push that can't be, which would be known after the training only."""
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ValueError(
            f"push_to_hub=True can't push to a repository {repository!r}: set hub_model_id to 'owner/name'; by "
            f"default it is the name of output_dir ({error})"
        ) from None
    if constants.HF_HUB_OFFLINE:
        raise ValueError(
            "push_to_hub=True, and HF_HUB_OFFLINE is set: unset it, or leave push_to_hub out and push later "
            "(nlpkd push)"
        )


def check_ensemble(average: str, weights: Sequence[float] | None) -> None:
    """Refuse settings of an ensemble that make no average.

    Args:
        average: `"probabilities"` or `"logits"`.
        weights: one a teacher, or None.

    Raises:
        ValueError: if there is no such average, or a weight is no number, negative or not finite, or all are 0.
    """
    if average not in ENSEMBLE_AVERAGES:
        raise ValueError(f"ensemble_average must be one of {ENSEMBLE_AVERAGES}, got {average!r}")
    try:
        makes_a_mean = weights is None or (all(0 <= weight < math.inf for weight in weights) and sum(weights) > 0)
    except TypeError:
        makes_a_mean = False
    if not makes_a_mean:
        raise ValueError(f"ensemble_weights must be >= 0 and not all 0, a number for each teacher, got {weights!r}")


def _more_is_better(metric: str) -> bool:
    """Tell whether more of a metric is better, where Trainer knows of losses alone that less is."""
    more = more_is_better(metric)
    if more is None:
        raise ValueError(
            f"metric_for_best_model={metric!r} is no metric that nlpkd reports, such as {', '.join(MERITS)} or loss: "
            "of one of your own say with greater_is_better=True or False whether more of it is better"
        )
    return more


def _check_length(args: TrainingArguments) -> None:
    """Refuse a training of no steps; a `max_steps` of -1 or 0 leaves its length to the epochs."""
    if args.max_steps < -1:
        raise ValueError(f"max_steps must be >= 1, or -1 to go by num_train_epochs, got {args.max_steps!r}")
    if args.max_steps < 1 and args.num_train_epochs <= 0:
        raise ValueError(f"num_train_epochs must be > 0, got {args.num_train_epochs!r}: nothing would be trained")


def _check_seeds(args: TrainingArguments) -> None:
    """Refuse seeds that numpy does not take."""
    for name in ("seed", "data_seed"):
        value = getattr(args, name)
        if value is not None and not 0 <= value < 2**32:
            raise ValueError(f"{name} must be from 0 to {2**32 - 1}, got {value!r}")


def _check_schedule(args: TrainingArguments) -> None:
    """Make the schedule of the learning rate once, which otherwise nobody reads before the training."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    settings: Any = args.lr_scheduler_kwargs
    try:
        get_scheduler(args.lr_scheduler_type, optimizer, 0, 1_000_000, scheduler_specific_kwargs=settings)
    except (TypeError, ValueError) as error:
        name = SchedulerType(args.lr_scheduler_type).value
        raise ValueError(f"lr_scheduler_kwargs={settings!r} do not fit lr_scheduler_type={name!r}: {error}") from error


def fast_at_bf16(use_cpu: bool) -> bool:
    """Check whether bf16 mixed precision pays on this machine.

    Args:
        use_cpu: whether training runs on the CPU.

    Returns:
        True on GPUs with bf16 units and on CPUs with avx512_bf16 or AMX.
    """
    if not use_cpu:
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))

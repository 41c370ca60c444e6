"""What the best checkpoint is chosen by: metrics that a checkpoint can hold, and evaluations that give no number."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy, denumpify_detensorize

from nlpkd.utils.disk.files import refuse_damaged
from nlpkd.utils.field_types import are_numbers

logger = logging.getLogger(__name__)


def refuse_unkept(metrics: Mapping[str, Any], args: TrainingArguments) -> None:
    """Refuse metrics that the checkpoints' history, which is JSON, can't hold; without checkpoints any are taken.

    Args:
        metrics: by their names.
        args: of the training.

    Raises:
        ValueError: for the first one, such as an array with a number for each class.
    """
    if args.save_strategy == SaveStrategy.NO:
        return
    for name, value in denumpify_detensorize(dict(metrics)).items():
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            raise ValueError(
                f"the metric {name!r} is no number that a checkpoint can hold, got {type(value).__name__} "
                f"{value!r:.100}: give a number, and of several numbers each under a name of its own"
            ) from None


def refuse_no_number(name: str, value: Any) -> None:
    """Refuse to choose the best checkpoint by something else than a number; NaN may become one.

    Args:
        name: of the metric.
        value: that an evaluation gave.

    Raises:
        ValueError: if it is none.
    """
    found = denumpify_detensorize(value)
    if not are_numbers(found) and found == found:
        raise ValueError(
            f"metric_for_best_model={name!r} must be a number, and an evaluation gives {type(found).__name__} "
            f"{found!r:.100}: choose another one"
        )


def tell_no_number(args: TrainingArguments, state: TrainerState, metrics: Mapping[str, Any]) -> None:
    """Tell that an evaluation gave no number for what the best checkpoint is chosen by.

    Args:
        args: of the training.
        state: as it was evaluated.
        metrics: of the evaluation.
    """
    best = args.metric_for_best_model
    name = f"eval_{(best or '').removeprefix('eval_')}"
    if best is not None and name in metrics and not are_numbers(metrics[name]):
        logger.warning(
            "The evaluation at step %d gives %s for metric_for_best_model=%r, which is no number: the model of this "
            "step can't be the best one.", state.global_step, metrics[name], best,
        )  # fmt: skip


def tell_none_chosen(args: TrainingArguments, state: TrainerState) -> None:
    """Tell that a training is over for which the best model was asked for, and none was chosen.

    Args:
        args: of the training.
        state: at its end; a best metric that is no evaluation's is taken out of it.
    """
    if state.best_global_step is None and not math.isfinite(state.best_metric or 0):
        # Trainer's start, which every number is better than.
        state.best_metric = None
    if not args.load_best_model_at_end or state.best_model_checkpoint is not None:
        return
    why = f"no evaluation gave a number for metric_for_best_model={args.metric_for_best_model!r}"
    if state.best_metric is not None:
        why = f"the best evaluation was at step {state.best_global_step}, of which there is no checkpoint"
    logger.warning("No best model was chosen, since %s: the model is that of the last step.", why)


def refuse_lost(checkpoint: Path) -> None:
    """Refuse to end a training without its best checkpoint, where `Trainer` would end with the last model.

    Args:
        checkpoint: the best one.

    Raises:
        ValueError: if it is not there, or a file of it is damaged.
    """
    if not checkpoint.is_dir():
        raise ValueError(
            f"the best checkpoint {checkpoint} is not there any more: it was deleted or moved while the training ran. "
            "Put it back, and run again with resume_from_checkpoint=True; where it is lost, that gives the model of "
            "the last step"
        )
    refuse_damaged(checkpoint)

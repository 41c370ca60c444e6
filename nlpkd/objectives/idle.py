"""Objectives and settings of gold labels that would do nothing, said before a training."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from nlpkd.objectives.base import Objective
from nlpkd.objectives.labels import CrossEntropyLoss, GivenWeights

logger = logging.getLogger(__name__)


def refuse_no_weight(objectives: Sequence[Objective]) -> None:
    """Refuse objectives of which none has a weight, so that nothing would be learned.

    Args:
        objectives: all of a training; none are passed, where a loss function of the user's is learned alone.

    Raises:
        ValueError: if all weights are 0.
    """
    if objectives and not any(objective.weight for objective in objectives):
        raise ValueError(
            f"all objectives have the weight 0 ({', '.join(objective.name for objective in objectives)}), so nothing "
            "would be learned: give one of them a weight above 0"
        )


def tell_idle_smoothing(objectives: Sequence[Objective], label_smoothing: float) -> None:
    """Warn that a run's label smoothing is of no use where no objective is a cross-entropy with gold labels.

    Stages share the settings of their run, and another one may follow it, so it is no error.

    Args:
        objectives: all of a training.
        label_smoothing: `label_smoothing_factor`.
    """
    if label_smoothing and not any(isinstance(objective, CrossEntropyLoss) for objective in objectives):
        logger.warning(
            "label_smoothing_factor=%s is not followed in this training: it smooths the gold labels of "
            "CrossEntropyLoss, which is none of its objectives.",
            label_smoothing,
        )


def refuse_idle_class_weights(objectives: Sequence[Objective], class_weights: GivenWeights) -> None:
    """Refuse class weights of a run that none of its objectives takes.

    Args:
        objectives: of all stages and baselines, not bound yet.
        class_weights: as `distill` takes them; None is passed.

    Raises:
        ValueError: if no objective is a cross-entropy without class weights of its own.
    """
    taking = [each for each in objectives if isinstance(each, CrossEntropyLoss) and each.class_weights is None]
    if class_weights is not None and not taking:
        raise ValueError(
            f"class_weights={class_weights!s:.80} weigh the gold labels of a CrossEntropyLoss without weights of its "
            f"own, and there is none among {[each.name for each in objectives]}: add one, as objectives='hinton' has "
            "it, or leave class_weights out"
        )

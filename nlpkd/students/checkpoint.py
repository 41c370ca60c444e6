"""A student that starts from a pre-trained checkpoint of any shape."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from nlpkd.data.labels.classes import Classes, forget_thresholds, thresholds_of
from nlpkd.models.loading import load_classifier, load_config
from nlpkd.models.structure import lacks_head, permute_head, refuse_other_than_plain, sort_drawn_head
from nlpkd.utils.field_types import plain_arguments

logger = logging.getLogger(__name__)


def load_student(
    checkpoint: str | Path,
    *,
    revision: str | None = None,
    id2label: Mapping[int, str] | Sequence[str] | None = None,
    trust_remote_code: bool = False,
    seed: int = 42,
) -> PreTrainedModel:
    """Load a checkpoint to train, with a head that is drawn at random where it has none that fits.

    Args:
        checkpoint: a local path or Hub id.
        revision: branch, tag or commit on the Hub.
        id2label: label names by id or in order; the checkpoint's own if None. Where its own are the same in another
            order, its head is put in theirs.
        trust_remote_code: run the repository's own code.
        seed: of the head.

    Returns:
        A float32 model in train mode.

    Raises:
        ValueError: if there is no such path, or the weights there are damaged.
        OSError: if the checkpoint can't be had.
    """
    labels: dict[str, Any] = {}
    order: list[int] | None = None
    thresholds: list[float] | None = None
    if id2label is not None:
        wanted = Classes.of(id2label)
        # The number of labels follows from the names; beside those of the checkpoint another one would be told.
        labels = {"id2label": wanted.id2label, "label2id": wanted.label2id}
        config = load_config(checkpoint, revision=revision, trust_remote_code=trust_remote_code)
        own = Classes.of_config(config)
        # A head of other classes, or none, says nothing of the order of these.
        with suppress(ValueError):
            order = None if own is None else wanted.positions_in(own)
        thresholds = thresholds_of(config, order)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        student, missing = load_classifier(
            checkpoint, revision=revision, trust_remote_code=trust_remote_code, ignore_mismatched_sizes=True, **labels
        )
    if missing:
        logger.warning("Drawn at random, since %s has no such weights that fit: %s.", checkpoint, ", ".join(missing))
    if id2label is not None and (own is None or len(own) != len(wanted) or lacks_head(student, missing)):
        sort_drawn_head(student)
        forget_thresholds(student.config)
    elif order is not None:
        permute_head(student, order)
    if thresholds is not None and hasattr(student.config, "thresholds"):
        student.config.thresholds = dict(zip(wanted.names, thresholds, strict=True))
    return student.train()


@plain_arguments
def with_fresh_pooler(model: PreTrainedModel, seed: int = 42) -> PreTrainedModel:
    """Draw a backbone's pooler anew, as `from_config` would: weights from N(0, initializer_range^2), biases 0.

    Sentence encoders are trained on the mean of all tokens. Their checkpoints bring a pooler along that nothing has
    trained, and that weight decay has shrunk (that of all-MiniLM-L6-v2 has a standard deviation of 0.009 in place of
    0.02, and biases of 0), while a classifier starts from it.

    Args:
        model: a classifier with a pooler, changed in place.
        seed: of the numbers.

    Returns:
        The model.

    Raises:
        ValueError: if it has no pooler.
    """
    refuse_other_than_plain(model, "backbone", ["config", "base_model"])
    pooler = getattr(model.base_model, "pooler", None)
    if not isinstance(pooler, nn.Module) or not any(True for _ in pooler.parameters()):
        raise ValueError(
            f"fresh_pooler=True: {type(model).__name__} has no pooler that could be drawn anew: leave it out"
        )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for layer in (module for module in pooler.modules() if isinstance(module, nn.Linear)):
            layer.weight.normal_(std=model.config.initializer_range)
            if layer.bias is not None:
                layer.bias.zero_()
    return model

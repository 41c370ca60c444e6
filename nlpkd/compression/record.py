"""What a compression did, for the record beside the model."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel

from nlpkd.evaluation.benchmark import model_size_mb

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompressionRecord:
    """What one compression did.

    Attributes:
        method: name of the function.
        paper: where it is from.
        parameters_before: number of parameters of the model given.
        parameters_after: of the model that came out.
        size_mb_before: megabytes (10^6 bytes) of the given model's safetensors file.
        size_mb_after: of the model that came out.
        details: what is the method's own, such as the rank and the share of the weights that it keeps.
        agreement: how far both models decide alike, as in reports: the share of rows with the same label in a
            single-label task; None where it was not measured.
        logits_difference: mean absolute difference of the logits, None where it was not measured.
    """

    method: str
    paper: str
    parameters_before: int
    parameters_after: int
    size_mb_before: float
    size_mb_after: float
    details: dict[str, Any] = field(default_factory=dict)
    agreement: float | None = None
    logits_difference: float | None = None


def record_of(
    method: str, paper: str, before: PreTrainedModel, after: PreTrainedModel, **details: Any
) -> CompressionRecord:
    """Make a record of two models.

    Args:
        method: name of the function.
        paper: where it is from.
        before: the model given.
        after: the model that came out.
        **details: what is the method's own.

    Returns:
        The record, without what is measured on data.
    """
    record = CompressionRecord(
        method=method,
        paper=paper,
        parameters_before=before.num_parameters(),
        parameters_after=after.num_parameters(),
        size_mb_before=model_size_mb(before),
        size_mb_after=model_size_mb(after),
        details=details,
    )
    logger.info("%s", record)
    return record

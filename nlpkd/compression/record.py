"""What a compression did: sizes for the record beside the model, and how far the outputs moved."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlpkd.evaluation.benchmark import model_size_mb
from nlpkd.evaluation.prediction import predict_logits
from nlpkd.evaluation.scoring import scoring_of
from nlpkd.models.inference import evaluating
from nlpkd.models.structure import readable

logger = logging.getLogger(__name__)

RECORD_NAME = "compression.json"
"""The file beside a compressed model: a list of records, the first compression first."""


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

    Raises:
        ValueError: if the model that came out can't run, where the one given can.
    """
    if (failure := new_failure(before, after)) is not None:
        raise ValueError(
            f"{method} makes a {type(before).__name__} that can't run ({type(failure).__name__}: {failure!s:.200}): "
            "its family reads its layers in a way of its own, so compress it by another method"
        )
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


def new_failure(before: PreTrainedModel, after: PreTrainedModel) -> Exception | None:
    """Try a model that was made of another one on a text of three tokens.

    Args:
        before: the model that it was made of.
        after: the model.

    Returns:
        What it raises; None where it runs, and where the one before, such as CANINE, does not run on them either.
    """
    end = getattr(before.config, "eos_token_id", None)
    # BART and T5 read a text at its end, which they look for.
    ids = [1, 1, end if isinstance(end, int) else 1]
    failure = _failure(after, ids)
    return None if failure is None or _failure(before, ids) is not None else failure


def _failure(model: PreTrainedModel, tokens: list[int]) -> Exception | None:
    ids = torch.tensor([tokens], device=model.device)
    try:
        # Reformer draws numbers as it reads.
        with evaluating(model), torch.random.fork_rng():
            model(**readable(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}))
    except Exception as error:
        return error
    return None


def measure_change(
    before: PreTrainedModel,
    after: PreTrainedModel,
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    new_dataset: Dataset | None = None,
    new_tokenizer: PreTrainedTokenizerBase | None = None,
) -> tuple[float, float]:
    """Measure what a compression changed in a model's outputs.

    Args:
        before: the model given.
        after: the model that came out.
        dataset: tokenised rows.
        tokenizer: pads them.
        new_dataset: the same rows as the model that came out reads them, where its tokenizer is another.
        new_tokenizer: that tokenizer.

    Returns:
        The agreement of their decisions, as in reports, and the mean absolute difference of their logits.
    """
    old = torch.from_numpy(predict_logits(before, dataset, tokenizer))
    rows = dataset if new_dataset is None else new_dataset
    new = torch.from_numpy(predict_logits(after, rows, tokenizer if new_tokenizer is None else new_tokenizer))
    return agreement_of(new, after.config, old, before.config), float((new - old).abs().mean())


def agreement_of(logits: torch.Tensor, config: Any, others: torch.Tensor, other_config: Any) -> float:
    """Measure the agreement of two models with the same labels in the same order, each by its own thresholds.

    Args:
        logits: of the first, `(rows, labels)`.
        config: its config.
        others: the logits of the second.
        other_config: its config.

    Returns:
        The share of decisions that are the same; of a regression the correlation of both scores.
    """
    scoring = scoring_of(config)
    return scoring.agreement(scoring.agreeing(logits, others, scoring_of(other_config)).numpy())

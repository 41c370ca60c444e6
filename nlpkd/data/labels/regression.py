"""One score a row."""

from __future__ import annotations

import logging
import math

import torch
from datasets import DatasetDict, Value

from nlpkd.data.labels.kind import is_missing, number_of
from nlpkd.tasks import UNLABELLED

logger = logging.getLogger(__name__)


_LARGEST = torch.finfo(torch.float32).max


def encode_scores(splits: DatasetDict, column: str) -> DatasetDict:
    """Read scores: numbers, or texts of numbers; training rows of NaN, of -100 and without a value are unlabelled.

    Args:
        splits: the splits, "train" among them.
        column: the score's column.

    Returns:
        The splits with the float32 column "labels" in place of ``column``; NaN where a row has no label.

    Raises:
        ValueError: if a score is missing or no finite number, or all of train's are equal.
    """
    encoded = {}
    for split, data in splits.items():
        scores = []
        for row, value in enumerate(data[column][:]):
            score = math.nan if is_missing(value, whole=True) else number_of(value)
            if score == UNLABELLED:
                score = math.nan
            if score is None or abs(score) > _LARGEST or (math.isnan(score) and split != "train"):
                raise ValueError(
                    f"Row {row} of the {split} split has the score {value!r:.80} (column {column!r}), which is "
                    f"{UNLABELLED} or no finite float32: mend or remove such rows ({UNLABELLED} in train: the teacher "
                    "alone gives it)."
                )
            scores.append(score)
        if split == "train" and (unlabelled := sum(map(math.isnan, scores))):
            logger.warning("%d of %d train rows have no score: the teacher alone gives it.", unlabelled, len(scores))
        if split == "train" and len({score for score in scores if score == score}) < 2:
            raise ValueError(f"All train rows have the same score (column {column!r}): there is nothing to learn.")
        encoded[split] = data.remove_columns(column).add_column("labels", scores, feature=Value("float32"))
    return DatasetDict(encoded)

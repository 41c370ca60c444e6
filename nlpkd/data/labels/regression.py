"""One score a row."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable

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
        ValueError: if a score is missing or no finite number, all of train's are equal, or -100 may be a score: others
            are below 0, and as far apart as it is from them.
    """
    values = {value for data in splits.values() for value in data[column][:] if not is_missing(value, whole=True)}
    refuse_mark_among_scores(map(number_of, values), column)
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


def refuse_mark_among_scores(scores: Iterable[float | None], column: str) -> None:
    """Refuse -100 as the mark of rows without a score where it may be a score of a scale such as -100 to 100.

    Args:
        scores: of all rows; what is no finite number is passed over.
        column: of the scores.

    Raises:
        ValueError: if others are below 0, and -100 is no further from them than they are from each other.
    """
    known = {score for score in scores if score is not None and math.isfinite(score)}
    others = known - {UNLABELLED}
    if UNLABELLED not in known or not others or min(others) >= 0:
        return
    apart = max(min(others) - UNLABELLED, UNLABELLED - max(others))
    if apart <= max(others) - min(others):
        raise ValueError(
            f"Column {column!r} has {UNLABELLED}, which marks a row without a score, among scores from "
            f"{min(others):g} to {max(others):g}, of which it may be one. Leave the scores of unlabelled rows empty "
            f"(NaN), and where {UNLABELLED} is a score give all of them on another scale, such as 200 more."
        )

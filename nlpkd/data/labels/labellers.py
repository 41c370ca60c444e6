"""Who gave the soft labels of a file that `nlpkd.label` wrote: told in its columns, and compared between splits."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from datasets import Dataset

logger = logging.getLogger(__name__)

TEACHER, QUESTION, CALIBRATION = "teacher", "question", "teacher_calibration"
INPUT_TOKENS, OUTPUT_TOKENS = "teacher_input_tokens", "teacher_output_tokens"
"""The columns that tell who labelled a row, how that teacher was corrected, and what it took."""

_CALLED = {TEACHER: "teacher", QUESTION: "question", CALIBRATION: "calibration"}


def other_labellers(splits: Mapping[str, Dataset], soft_label_column: str | None) -> dict[str, list[str]]:
    """Compare who labelled the training rows and the others; warn where it was not the same teacher.

    Calibrations are compared by the gold rows that they rest on: a teacher that answers these a little otherwise when
    it is asked again is corrected by other numbers.

    Args:
        splits: as they were read.
        soft_label_column: of the soft labels; None where there are none.

    Returns:
        By split what differs, of `teacher`, `question` and `calibration`; without splits that were labelled alike, and
        those of which nothing is told: files of earlier versions say nothing of the calibration.
    """
    train, found = splits["train"], dict[str, list[str]]()
    for split, rows in splits.items():
        if not all(_is_labelled(each, soft_label_column) for each in (train, rows)):
            continue
        compared = [name for name in _CALLED if name in train.column_names and name in rows.column_names]
        told = {name: (_values(train, name), _values(rows, name)) for name in compared}
        differ = [name for name, (ours, theirs) in told.items() if ours != theirs]
        if differ:
            found[split] = [_CALLED[name] for name in differ]
            logger.warning(
                "The soft labels of the %s split are of another %s than those of the train split (%s): what is "
                "measured of the teacher there says nothing of the one that the student learns from. Label both alike",
                split,
                " and ".join(found[split]),
                "; ".join(f"{_shown(told[name][1])}, not {_shown(told[name][0])}" for name in differ),
            )
    return found


def _is_labelled(rows: Dataset, soft_label_column: str | None) -> bool:
    return {soft_label_column, TEACHER, QUESTION, INPUT_TOKENS, OUTPUT_TOKENS} <= {*rows.column_names}


def _values(rows: Dataset, column: str) -> set[Any]:
    """Return the different values of a column, of calibrations the gold rows."""
    values = set(rows.unique(column))
    if column != CALIBRATION:
        return values
    return {None if each is None else f"gold rows {json.loads(each).get('gold')}" for each in values}


def _shown(values: set[Any]) -> str:
    return " and ".join(sorted("none" if each is None else f"{each!s:.200}" for each in values))

"""Label texts with a teacher once, and keep every answer as it comes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nlpkd.data.sources import Source, read_splits
from nlpkd.labelling.budget import Budget, LabelPlan, Prices
from nlpkd.labelling.rows import answers_beside, save_rows, texts_to_label, with_answers
from nlpkd.teachers.base import FunctionTeacher, LabelingTeacher

__all__ = ["LabelPlan", "label"]

logger = logging.getLogger(__name__)


def label(
    teacher: LabelingTeacher | Callable[[list[str]], Any],
    source: Source,
    *,
    output: str | Path,
    text_column: str | None = None,
    classes: Sequence[str] | None = None,
    max_requests: int | None = None,
    max_cost: float | None = None,
    prices: Prices | tuple[float, float] | None = None,
    dry_run: bool = False,
) -> Path | LabelPlan:
    """Label texts with a teacher, and write them with its probabilities: a training file for `nlpkd.distill`.

    Each answer is kept in `OUTPUT.answers.jsonl` as it comes. A run that was stopped, killed or failed goes on there,
    and asks nothing again that has been answered; `output` is written when all rows have answers.

    Args:
        teacher: one of `nlpkd.teachers`, or any function from a list of texts to `(texts, classes)` probabilities.
        source: the texts: a file, a Hub id or rows in memory; its train split, without a label column.
        output: the parquet file: the source's columns and those of `nlpkd.labelling.rows.with_answers`.
        text_column: the text's column; recognised by its usual names if None.
        classes: names of the classes, of a function.
        max_requests: stop with an error after so many requests of this run; what was answered is kept.
        max_cost: stop likewise before all answers in the file have cost more than this, those of earlier runs
            included. Before a server has counted a prompt's tokens they are estimated from its letters.
        prices: of a million tokens of prompts and of answers, in any currency.
        dry_run: ask nothing, and return what would be asked.

    Returns:
        The output file; of a dry run the plan.

    Raises:
        ValueError: if the source can't be read, the answers that are there are another teacher's, an answer is no
            distribution (its row is named), or the budget was reached.
    """
    teacher = _as_teacher(teacher, classes)
    output = Path(output)
    if output.suffix != ".parquet":
        raise ValueError(f"output must be a .parquet file, got {output}")
    priced = Prices(*prices) if isinstance(prices, tuple) else prices
    budget = Budget(max_requests, max_cost, priced)
    rows = read_splits(source)[0]["train"]
    texts = texts_to_label(rows, "train", text_column)
    answers = answers_beside(output, teacher)
    if dry_run:
        return answers.plan(texts, priced)
    save_rows(with_answers(rows, texts, answers.ask(texts, budget), teacher, priced), output)
    logger.warning("%d rows labelled by %s: %s", len(rows), teacher.describe()["name"], output)
    return output


def _as_teacher(teacher: Any, classes: Sequence[str] | None) -> LabelingTeacher:
    if isinstance(teacher, LabelingTeacher):
        return teacher
    if not callable(teacher) or classes is None:
        raise ValueError(
            f"teacher must be one of nlpkd.teachers, or a function on a list of texts with classes= beside it; got "
            f"{teacher!r:.100} and classes={classes!r}"
        )
    return FunctionTeacher(teacher, classes)

"""Rows with a teacher's answers."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from datasets import Dataset, Value

from nlpkd.data.arguments import DataArguments
from nlpkd.data.columns import check_texts, find_text_column
from nlpkd.data.labels.classes import NamesOfModel
from nlpkd.data.labels.labellers import CALIBRATION, INPUT_TOKENS, OUTPUT_TOKENS, QUESTION, TEACHER
from nlpkd.labelling.answer import Answer
from nlpkd.labelling.answers import AnswerFile
from nlpkd.labelling.costs import Prices, SpendingLimits
from nlpkd.tasks import MULTI_LABEL
from nlpkd.teachers.base import LabelingTeacher
from nlpkd.utils.disk.files import atomic_file

logger = logging.getLogger(__name__)

PROBABILITIES, COST = "probabilities", "teacher_cost"
"""Columns that labelling adds to the rows, beside those of `nlpkd.data.labels.labellers`."""

_NAMED = 20
"""Classes of which the log says how often they are the answer."""

_TELLING = 10
"""From so many rows on it is odd that all have the same answer."""


def texts_to_label(rows: Dataset, split: str, text_column: str | None = None) -> list[str]:
    """Read the texts of rows that are to be labelled.

    Args:
        rows: the rows.
        split: name for messages.
        text_column: the text's column; recognised by its usual names if None.

    Returns:
        One text a row.

    Raises:
        ValueError: if there is no such column, a text is empty, or the rows have columns that labelling adds.
    """
    column = find_text_column(rows.column_names, text_column)
    check_texts(rows, split, column)
    added = {PROBABILITIES, TEACHER, QUESTION, CALIBRATION, INPUT_TOKENS, OUTPUT_TOKENS, COST}
    if taken := added & set(rows.column_names):
        raise ValueError(f"the rows have columns {sorted(taken)} already, which labelling adds: rename them")
    return rows[column][:]


def with_answers(
    rows: Dataset,
    texts: Sequence[str],
    answers: Sequence[Answer],
    teacher: LabelingTeacher,
    prices: Prices | None = None,
) -> Dataset:
    """Add a teacher's answers to rows.

    Args:
        rows: the rows.
        texts: theirs.
        answers: to these texts.
        teacher: who answered.
        prices: what tokens cost.

    Returns:
        The rows whose texts were answered, with `probabilities` (one for each class by its name), `teacher`,
        `question`, `teacher_calibration` (what corrects the teacher; null where nothing does), `teacher_input_tokens`
        and `teacher_output_tokens` (null where the teacher does not count), and with prices `teacher_cost`. A text is
        paid for once: further rows of the same text have 0 tokens.
    """
    answered = [row for row, answer in enumerate(answers) if answer.probabilities is not None]
    if len(answered) < len(rows):
        rows, texts = rows.select(answered), [texts[row] for row in answered]
        answers = [answers[row] for row in answered]
    described, names = teacher.describe(), teacher.classes
    found = teacher.adjusted(np.array([answer.probabilities for answer in answers])).tolist()
    probabilities = [dict(zip(names, each, strict=True)) for each in found]
    paid = {text: row for row, text in reversed(list(enumerate(texts)))}
    tokens = [
        (each.input_tokens, each.output_tokens) if paid[text] == row or each.input_tokens is None else (0, 0)
        for row, (text, each) in enumerate(zip(texts, answers, strict=True))
    ]
    rows = rows.add_column(PROBABILITIES, probabilities, feature={name: Value("float32") for name in names})
    rows = rows.add_column(TEACHER, [str(described["name"])] * len(rows))
    rows = rows.add_column(QUESTION, [json.dumps(described["question"], ensure_ascii=False)] * len(rows))
    rows = rows.add_column(CALIBRATION, [_correction(described)] * len(rows), feature=Value("string"))
    for place, column in enumerate((INPUT_TOKENS, OUTPUT_TOKENS)):
        rows = rows.add_column(column, [each[place] for each in tokens], feature=Value("int64"))
    if prices is not None:
        costs = [None if asked is None else prices.cost(asked, answered or 0) for asked, answered in tokens]
        rows = rows.add_column(COST, costs, feature=Value("float64"))
    return rows


def _correction(described: Mapping[str, Any]) -> str | None:
    """Return what corrects a teacher by its description, as JSON; None where nothing does."""
    fitted = described.get("calibration")
    if fitted is None:
        return None
    priors = {name: round(value, 4) for name, value in fitted["priors"].items()}
    told = {
        "gold": fitted["gold"],
        "rows": fitted["rows"],
        "temperature": round(fitted["temperature"], 4),
        "priors": priors,
    }
    return json.dumps(told, ensure_ascii=False)


def with_equal_probabilities(rows: Dataset, teacher: LabelingTeacher) -> Dataset:
    """Add what stands in for answers until there are some: all of the teacher's classes are equally likely."""
    alike = dict.fromkeys(teacher.classes, 1 / len(teacher.classes))
    feature = {name: Value("float32") for name in teacher.classes}
    return rows.add_column(PROBABILITIES, [alike] * len(rows), feature=feature)


def reading_of(teacher: LabelingTeacher, asked: DataArguments) -> DataArguments:
    """Return how rows with a teacher's answers are read: as its soft labels, of its task and its classes.

    Args:
        teacher: the teacher.
        asked: how they are read otherwise.

    Returns:
        The arguments. Gold labels bear the names of the classes: a number says none of them.
    """
    names = NamesOfModel(teacher.classes)
    return replace(asked, soft_label_column=PROBABILITIES, problem_type=teacher.problem_type, label_names=names)


def save_rows(rows: Dataset, output: Path) -> None:
    """Write a parquet file, under a temporary name first."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(output) as file:
        rows.to_parquet(file)


def save_answered(rows: Dataset, teacher: LabelingTeacher, output: Path) -> None:
    """Write answered rows as a parquet file, and log what the answers are.

    Args:
        rows: by `with_answers`.
        teacher: who answered.
        output: the file.
    """
    save_rows(rows, output)
    found = np.array([[each[name] for name in teacher.classes] for each in rows[PROBABILITIES]])
    several = teacher.problem_type == MULTI_LABEL
    given = found > 0.5 if several else np.eye(found.shape[1], dtype=bool)[found.argmax(axis=1)]
    shares, sure = given.mean(axis=0), np.maximum(found, 1 - found).mean() if several else found.max(axis=1).mean()
    named = [f"{teacher.classes[label]} {100 * shares[label]:.1f} %" for label in np.argsort(-shares, kind="stable")]
    further = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    logger.warning(
        "%d rows labelled by %s: %s. %s%s; the mean %s is %.2f.",
        len(rows), teacher.describe()["name"], output, ", ".join(named[:_NAMED]), further,
        "probability of yes or no" if several else "top probability", sure,
    )  # fmt: skip
    if len(rows) >= _TELLING and (given == given[0]).all():
        told = "All rows have the same answer, of which nothing is learned: look at %s, and at the question."
        logger.warning(told, output)


def answers_beside(output: Path, teacher: LabelingTeacher) -> AnswerFile:
    """Return the file of answers that belongs to an output file."""
    return AnswerFile(output.with_name(output.name + ".answers.jsonl"), teacher)


def asked_probabilities(
    teacher: LabelingTeacher,
    texts: Sequence[str],
    answers: AnswerFile | None,
    limits: SpendingLimits | None = None,
    names: Sequence[str] | None = None,
) -> np.ndarray:
    """Ask a teacher for the probabilities of texts, each text once.

    Args:
        teacher: the teacher.
        texts: the texts.
        answers: where its answers are kept, and are not asked again; they are not kept if None.
        limits: the limits.
        names: what the texts are called in messages.

    Returns:
        `(texts, classes)`; not a number of a text that is not answered, which is told.

    Raises:
        ValueError: as `AnswerFile.ask` does.
    """
    lacking = [math.nan] * len(teacher.classes)

    def ask(kept: AnswerFile, once_more: bool = True) -> np.ndarray:
        asked = kept.ask(texts, limits, names, once_more=once_more)
        return teacher.adjusted(np.array([each.probabilities or lacking for each in asked]))

    if answers is None:
        return ask(AnswerFile(None, teacher))
    # One process asks, the others find all answers there.
    state = PartialState()
    with state.main_process_first():
        return ask(answers, state.is_main_process)

"""Rows with a teacher's answers: as a file, and as the training rows of a distillation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from datasets import Dataset, DatasetDict, Value

from nlpkd.data.arguments import DataArguments
from nlpkd.data.columns import check_texts, find_columns, find_text_column
from nlpkd.data.labels import encode_targets
from nlpkd.data.soft_labels import add_missing_label_columns
from nlpkd.data.sources import Source, read_splits, refuse_as_output
from nlpkd.labelling.answers import Answer, AnswerFile
from nlpkd.labelling.budget import Prices
from nlpkd.teachers.base import LabelingTeacher
from nlpkd.utils.files import atomic_file

PROBABILITIES, TEACHER, QUESTION = "probabilities", "teacher", "question"
INPUT_TOKENS, OUTPUT_TOKENS, COST = "teacher_input_tokens", "teacher_output_tokens", "teacher_cost"
"""The columns that labelling adds to the rows."""

LABELS_NAME = "teacher_labels.parquet"
"""What a distillation calls its labelled training rows."""


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
    added = {PROBABILITIES, TEACHER, QUESTION, INPUT_TOKENS, OUTPUT_TOKENS, COST}
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
        The rows with `probabilities` (one for each class by its name), `teacher`, `question`, `teacher_input_tokens`
        and `teacher_output_tokens` (null where the teacher does not count), and with prices `teacher_cost`. A text is
        paid for once: further rows of the same text have 0 tokens.
    """
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
    for place, column in enumerate((INPUT_TOKENS, OUTPUT_TOKENS)):
        rows = rows.add_column(column, [each[place] for each in tokens], feature=Value("int64"))
    if prices is not None:
        costs = [None if asked is None else prices.cost(asked, answered or 0) for asked, answered in tokens]
        rows = rows.add_column(COST, costs, feature=Value("float64"))
    return rows


def save_rows(rows: Dataset, output: Path) -> None:
    """Write a parquet file, under a temporary name first."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(output) as file:
        rows.to_parquet(file)


def answers_beside(output: Path, teacher: LabelingTeacher) -> AnswerFile:
    """Return the file of answers that belongs to an output file."""
    return AnswerFile(output.with_name(output.name + ".answers.jsonl"), teacher)


def asked_probabilities(teacher: LabelingTeacher, texts: Sequence[str], answers: AnswerFile | None) -> np.ndarray:
    """Ask a teacher for the probabilities of texts, `(texts, classes)`.

    Args:
        teacher: the teacher.
        texts: the texts.
        answers: where its answers are kept, and are not asked again; they are not kept if None.
    """
    if answers is None:
        return teacher.answer(texts).probabilities
    # One process asks, the others find all answers there.
    with PartialState().main_process_first():
        return teacher.adjusted(np.array([each.probabilities for each in answers.ask(texts)]))


def label_splits(
    teacher: LabelingTeacher,
    train: Source,
    validation: Source | None,
    test: Source | None,
    output: Path,
    asked: DataArguments,
) -> tuple[DatasetDict, DataArguments]:
    """Let a teacher label the rows of a distillation: those to train on, and those that it is measured on.

    Args:
        teacher: the teacher.
        train: the training rows, which need no label column.
        validation: the validation rows, with gold labels or without.
        test: the test rows, likewise.
        output: the parquet file of the training rows that is written; answers of an earlier run with the same file
            are not asked again.
        asked: how rows are read.

    Returns:
        The labelled splits, and how they are read: with the teacher's answers as soft labels.

    Raises:
        ValueError: if soft labels, streaming or pairs are asked for too, the rows can't be labelled, or the output is
            one of their files.
    """
    if asked.soft_label_column is not None or asked.streaming or asked.text_pair_column is not None:
        raise ValueError(
            "a teacher that labels texts reads single texts that fit into memory, and gives the soft labels "
            "itself: leave soft_label_column, streaming and text_pair_column out"
        )
    refuse_as_output(output, train=train, validation=validation, test=test)
    splits, _ = read_splits(train, validation, test, asked.dataset_config, asked.dataset_revision)
    texts: dict[Any, list[str]] = {
        split: texts_to_label(rows, str(split), asked.text_column) for split, rows in splits.items()
    }
    read_as = replace(
        asked,
        soft_label_column=PROBABILITIES,
        problem_type=teacher.problem_type,
        label_names=teacher.classes,
        dataset_config=None,
        dataset_revision=None,
    )
    _refuse_other_classes(splits, read_as)
    answers, state = answers_beside(output, teacher), PartialState()
    # One process asks, the others find all answers there.
    with state.main_process_first():
        found = {split: answers.ask(each) for split, each in texts.items()}
    labelled = DatasetDict(
        {split: with_answers(rows, texts[split], found[split], teacher) for split, rows in splits.items()}
    )
    if state.is_main_process:
        save_rows(labelled["train"], output)
    return labelled, read_as


def _refuse_other_classes(splits: DatasetDict, asked: DataArguments) -> None:
    """Refuse gold labels that are none of the teacher's classes, before it is asked about any text."""
    names = list(asked.label_names)
    alike = dict.fromkeys(names, 1 / len(names))
    blank = {split: rows.add_column(PROBABILITIES, [alike] * len(rows)) for split, rows in splits.items()}
    ready, asked = add_missing_label_columns(DatasetDict(blank), asked)
    column = find_columns(ready["train"].column_names, asked.text_column, None, asked.label_column).label
    wanted = {column} if isinstance(column, str) else set(column)
    labelled = {split: rows for split, rows in ready.items() if wanted <= set(rows.column_names)}
    encode_targets(DatasetDict(labelled), column, asked.problem_type, names)

"""Recorded decisions as training rows: what was asked and answered before is not asked again."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, Value

from nlpkd.data.files.readers import stream_rows
from nlpkd.labelling.rows import PROBABILITIES
from nlpkd.teachers.base import as_probabilities
from nlpkd.teachers.decision import read_answers, read_question
from nlpkd.utils.disk.files import ODD_CONTENT
from nlpkd.utils.field_types import plain_arguments

logger = logging.getLogger(__name__)

TEXT = "text"
"""The column of the states."""


def is_decision_log(path: Any) -> bool:
    """Check whether a source is a JSONL file whose first line is a recorded decision."""
    if not isinstance(path, (str, os.PathLike)) or Path(path).suffix.lower() != ".jsonl" or not Path(path).is_file():
        return False
    try:
        first = next(iter(stream_rows(path)), None)
        return first is not None and _parts(first) is not None
    except ValueError:
        return False


@plain_arguments
def read_decisions(path: str | Path, question: str) -> tuple[Dataset, str]:
    """Read the answers to one question of a log of decisions.

    Each line holds a request with `state` and `questions` and the answer with `answers`, as transformers' decision
    pipeline and the route `/v1/systemone` take and give them: `{"request": {..}, "response": {..}}`, or all these keys
    side by side.

    Args:
        path: the JSONL file.
        question: the question's name; several of type `noul`, with commas between them, are several labels a text,
            unless a question has the whole name, commas included.

    Returns:
        The rows, `text` (a state that is no text as JSON) and `probabilities` (one a class by its name), and the
        task. Lines that do not ask the question are left out.

    Raises:
        ValueError: if a line is no decision, its answer no distribution (the line is named), the question's options
            are not the same in all lines, or no line asks it.
    """
    names = _names_in(path, question)
    classes: tuple[str, ...] = ()
    task, first, texts, answers = "", None, [], []
    left_out, other_words = 0, 0
    # Each line's answer as probabilities, in the order of the first line's options.
    for number, request, given in _decisions(path):
        asked = request["questions"]
        if not set(names) <= set(asked):
            left_out += 1
            continue
        chosen = {name: asked[name] for name in names}
        where = f"line {number} of {path}"
        try:
            found, problem_type, _ = read_question(chosen if len(names) > 1 else chosen[names[0]])
            if first is None:
                classes, task, first = found, problem_type, chosen
            elif set(found) != set(classes):
                raise ValueError(f"its options {list(found)} are not {list(classes)}, those of the lines before")
            other_words += chosen != first
            if missing := set(names) - set(given):
                raise ValueError(f"there is no answer to {sorted(missing)}")
            row = dict(zip(found, read_answers({n: given[n] for n in names}, chosen, found, task), strict=True))
            ordered = [row[name] for name in classes]
            answers.append(as_probabilities([ordered], 1, classes, task)[0].tolist())
        except ODD_CONTENT as error:
            told = error if isinstance(error, ValueError) else f"it is no decision ({error!r:.300})"
            raise ValueError(f"{where}: {told}") from None
        state = request["state"]
        texts.append(state if isinstance(state, str) else json.dumps(state, ensure_ascii=False))
    if first is None:
        raise ValueError(f"no line of {path} asks {question!r}: give the name of a question that was asked")
    # What was left out, and what is used though its question reads differently.
    if left_out or other_words:
        logger.warning(
            "%s: %d lines do not ask %r and are left out; of the others %d ask it in other words than the first",
            path, left_out, question, other_words,
        )  # fmt: skip
    # The rows.
    rows = Dataset.from_dict({TEXT: texts})
    named = [dict(zip(classes, each, strict=True)) for each in answers]
    return rows.add_column(PROBABILITIES, named, feature={name: Value("float32") for name in classes}), task


def _names_in(path: str | Path, question: str) -> list[str]:
    """Return the names of the questions that are meant: one that was asked has the whole name, or commas divide it."""
    if any(question in request["questions"] for _, request, _ in _decisions(path)):
        return [question]
    return [name.strip() for name in question.split(",")]


def _decisions(path: str | Path) -> Iterator[tuple[int, Mapping[str, Any], Mapping[str, Any]]]:
    """Yield each line's number, request and answers."""
    for number, row in enumerate(stream_rows(path), start=1):
        parts = _parts(row)
        if parts is None:
            raise ValueError(
                f"line {number} of {path} is no decision: it must have `state`, `questions` and `answers`, or "
                f"`request` and `response` with them; found {list(row)}"
            )
        yield number, *parts


def _parts(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """Return a line's request, and its answers by the questions' names; None where it has none."""
    request, response = row.get("request", row), row.get("response", row.get("answer", row))
    if not isinstance(request, Mapping) or not isinstance(response, Mapping):
        return None
    answers = response.get("answers")
    whole = "state" in request and isinstance(request.get("questions"), Mapping) and isinstance(answers, Mapping)
    return (request, answers) if whole and answers is not None else None

"""Choose when a student answers by itself, and when its teacher is asked."""

from __future__ import annotations

import copy
import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nlpkd.data.arguments import DataArguments
from nlpkd.data.columns import check_texts, find_text_columns
from nlpkd.data.one_split import read_measured_rows
from nlpkd.data.rows import has_unlabelled, labelled_rows
from nlpkd.data.sources import MEASURED_SPLITS, Source, refuse_as_output
from nlpkd.data.splits.learned import count_remembered
from nlpkd.data.text_classification import load_rows_for_model
from nlpkd.evaluation.prediction import gold_labels, warn_of_one_class
from nlpkd.evaluation.records import percent
from nlpkd.evaluation.report import EvaluationReport
from nlpkd.labelling.answers import AnswerFile
from nlpkd.labelling.costs import Prices, SpendingLimits
from nlpkd.labelling.rows import answers_beside
from nlpkd.models.source import ModelSource
from nlpkd.serving.cascade import (
    CASCADE_NAME,
    CascadeRecord,
    confidence,
    folder_of_student,
    scores,
    served_files,
)
from nlpkd.serving.classifier import Fallback, load
from nlpkd.serving.threshold import CERTAINTY, candidates, choose_threshold, refuse_too_few_rows
from nlpkd.tasks import SINGLE_LABEL, refuse_other_than_one_class
from nlpkd.teachers.base import FunctionTeacher, LabelingTeacher
from nlpkd.utils.disk.locks import only_writer
from nlpkd.utils.field_types import check_share, plain_arguments
from nlpkd.utils.fingerprints import hash_value

logger = logging.getLogger(__name__)

_TIMED_TEXTS = 30


@plain_arguments
def cascade(
    student: str | Path,
    teacher: str | Path | LabelingTeacher,
    data: Source,
    *,
    target_agreement: float | None = None,
    target_accuracy: float | None = None,
    batch_size: int = 32,
    trust_remote_code: bool = False,
    max_requests: int | None = None,
    max_cost: float | None = None,
    prices: Prices | tuple[float, float] | None = None,
    **keywords: Any,
) -> CascadeRecord:
    """Choose the least probability at which a student answers by itself, on rows that it did not learn from.

    Writes `cascade.json` beside the student; `nlpkd.load(student, fallback=teacher)` then answers by it. What one of
    `nlpkd.teachers` answers is kept beside it too, and is not asked for again; of a function it is not, since nothing
    tells whether it is still the same. Rows that the teacher does not answer are told: with `target_accuracy` the
    student's answer counts there, as it is served, and with `target_agreement` they are left out.

    Args:
        student: the student's folder.
        teacher: a path, a Hub id (`id@revision`) or one of `nlpkd.teachers`.
        data: rows that neither was trained on; labels are needed for `target_accuracy` alone.
        target_agreement: the least share of the texts that the student answers on which it agrees with the teacher.
        target_accuracy: the least share of all texts whose answer is right, whoever gives it.
        batch_size: texts at once.
        trust_remote_code: run the model repositories' own code.
        max_requests: of one of `nlpkd.teachers` whose answers are kept: the most requests of this run; see
            `nlpkd.label`, as for the next two. Where they do not suffice, a further run goes on with what was kept.
        max_cost: the most that all answers may cost.
        prices: of a million tokens of prompts and of answers.
        **keywords: how the rows are read: fields of `nlpkd.data.arguments.DataArguments`, such as `text_column`; no
            `max_length`, since texts are read as `nlpkd.load` reads them.

    Returns:
        The threshold and what it gives.

    Raises:
        ValueError: if not exactly one target is given, the models have other classes, there are too few rows, a limit
            was reached before all rows were answered, or no threshold reaches the target.
    """
    folder, (kind, target) = folder_of_student(student), _target(target_agreement, target_accuracy)
    refuse_as_output(folder / CASCADE_NAME, data=data)
    data_args, _ = DataArguments.split_of(cascade, keywords)
    if data_args.max_length is not None:
        raise ValueError("a cascade reads texts as nlpkd.load does, up to the models' own limit: leave max_length out")
    if data_args.problem_type not in (None, SINGLE_LABEL):
        raise ValueError(
            f"a cascade is of rows with one class each, and problem_type is {data_args.problem_type!r}: leave it out"
        )
    limits, answers = SpendingLimits.of(max_requests, max_cost, prices), _answers_of(teacher, folder)
    if limits != SpendingLimits() and answers is None:
        raise ValueError(
            "max_requests, max_cost and prices are of one of nlpkd.teachers whose answers are kept, and those of a "
            "model or a function are not: leave them out"
        )
    small = load(folder, trust_remote_code=trust_remote_code)
    refuse_other_than_one_class(small.model.config, "a cascade")
    large = Fallback(teacher, trust_remote_code, batch_size, answers, limits)
    asked = large.in_words_of(small.model.config)

    # The rows, with gold labels where the target is on them
    gold: list[str] = []
    if kind == "accuracy":
        # A copy, since rows name classes that have no names: the student answers in its own words, as it will later.
        config = copy.deepcopy(small.model.config)
        one_class = replace(data_args, problem_type=SINGLE_LABEL)
        rows, split, loaded = load_rows_for_model(data, config, tokenizer=small.tokenizer, data_args=one_class)
        if has_unlabelled(rows):
            raise ValueError(
                f"target_accuracy needs a gold label in each row, and {len(rows) - len(labelled_rows(rows))} of "
                f"{len(rows)} rows of {split} have none: leave these out, or give target_agreement"
            )
        names = small.model.config.id2label
        warn_of_one_class(gold_labels(rows), list(names.values()), SINGLE_LABEL)
        gold = [names[number] for number in rows["labels"][:]]
        columns = loaded.text_columns
    else:
        measured = read_measured_rows(data, MEASURED_SPLITS, data_args, labelled=False)
        rows, split = measured.rows, measured.split
        columns = find_text_columns(rows.column_names, data_args.text_column, data_args.text_pair_column)
        for column in columns:
            check_texts(rows, split, column)
    texts = _texts(rows, columns)
    asked_folder = None if isinstance(teacher, LabelingTeacher) else ModelSource.of(teacher).folder
    count_remembered(rows, columns, split, {"student": folder, "teacher": asked_folder})
    refuse_too_few_rows(len(texts), target)
    if isinstance(teacher, LabelingTeacher) and not isinstance(texts[0], str):
        raise ValueError(f"{large.name} labels single texts, and the rows are pairs of texts")

    # What both answer
    told = asked(texts)
    unanswered = sum(each is None for each in told)
    if kind == "agreement":
        texts = [text for text, each in zip(texts, told, strict=True) if each is not None]
        told = [each for each in told if each is not None]
    labels, logits = scores(small, texts, batch_size=batch_size)
    ours = np.array(labels)[logits.argmax(axis=-1)]
    temperature = _fitted_temperature(folder)
    confidences = confidence(logits, temperature)
    # What the teacher does not answer the student does.
    served = np.array([mine if each is None else each[0] for mine, each in zip(ours, told, strict=True)])
    if kind == "agreement":
        right, otherwise = ours == served, None
    else:
        right, otherwise = ours == np.array(gold), served == np.array(gold)

    # The threshold, and the time that it saves
    curve = choose_threshold(confidences, right, otherwise, target)
    if not curve:
        strictest = next(candidates(confidences, right, otherwise, target, CERTAINTY))
        best, whose = (right, "all texts") if otherwise is None else (otherwise, "the teacher alone")
        if otherwise is not None and unanswered:
            whose = f"the teacher, with the student's answers on the {unanswered:,} rows that it does not answer"
        raise ValueError(
            f"no threshold could be shown to have {kind} >= {percent(target, 2)} with {percent(CERTAINTY, 0)} "
            f"certainty on {len(texts):,} rows: they are tried from the strictest on until one fails, and already the "
            f"first, which has the student answer {percent(strictest['answered'])}, has {kind} "
            f"{percent(strictest['found'], 2)}, at least {percent(strictest['low'], 2)} ({percent(best.mean(), 2)} of "
            f"{whose}). Lower the target, give more rows, or a better student"
        )
    chosen = curve[-1]
    record = CascadeRecord(
        threshold=chosen["threshold"], temperature=temperature, kind=kind, target=target, certainty=CERTAINTY,
        found=chosen["found"], low=chosen["low"], answered=chosen["answered"], rows=len(texts),
        unanswered_rows=unanswered,
        teacher=large.name,
        student_ms=_median_ms(small, texts),
        teacher_ms=None if isinstance(teacher, LabelingTeacher) else _median_ms(lambda text: asked([text]), texts),
        curve=curve, student_files=served_files(small, folder), teacher_files=large.files,
    )  # fmt: skip
    with only_writer(folder):
        record.save(folder)
    return record


def _target(agreement: float | None, accuracy: float | None) -> tuple[str, float]:
    given = {"agreement": agreement, "accuracy": accuracy}
    chosen = [(kind, target) for kind, target in given.items() if target is not None]
    if len(chosen) != 1:
        raise ValueError("give either target_agreement or target_accuracy: what the cascade has to keep")
    kind, target = chosen[0]
    check_share(f"target_{kind}", target)
    return kind, target


def _answers_of(teacher: str | Path | LabelingTeacher, folder: Path) -> AnswerFile | None:
    """Return the file beside a student for what a teacher answers, one a teacher; None where nothing is kept."""
    if not isinstance(teacher, LabelingTeacher) or isinstance(teacher.asked, FunctionTeacher):
        return None
    told = hash_value(AnswerFile(None, teacher).owner)
    return answers_beside(folder / f"{CASCADE_NAME}.{told[:8]}", teacher)


def _texts(rows: Any, columns: list[str]) -> list[Any]:
    first, *second = (rows[column][:] for column in columns)
    if not second:
        return first
    return [{"text": one, "text_pair": other} for one, other in zip(first, second[0], strict=True)]


def _fitted_temperature(folder: Path) -> float:
    """Return the temperature that the student's report fitted; 1 without a report of its weights."""
    report = EvaluationReport.load_beside(folder)
    own = report.candidates.get("student") if report else None
    return own.temperature_scaling.temperature if own and own.temperature_scaling else 1.0


def _median_ms(answer: Callable[[Any], Any], texts: list[Any]) -> float:
    """Measure the median time of one text, text to label."""
    answer(texts[0])
    times = []
    for text in texts[:_TIMED_TEXTS]:
        start = time.perf_counter()
        answer(text)
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)

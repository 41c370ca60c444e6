"""Label texts with a teacher once, and keep every answer as it comes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from nlpkd.data.arguments import DataArguments
from nlpkd.data.one_split import read_one_split
from nlpkd.data.sources import Source, refuse_as_output, without_training_words
from nlpkd.labelling.calibration import GoldRows
from nlpkd.labelling.costs import LabelPlan, Prices, SpendingLimits
from nlpkd.labelling.rows import (
    answers_beside,
    save_answered,
    texts_to_label,
    with_answers,
)
from nlpkd.pipeline.label_rounds import RoundLearner, Rounds
from nlpkd.teachers.base import LabelingTeacher, as_teacher
from nlpkd.utils.field_types import plain_arguments

__all__ = ["LabelPlan", "label"]

logger = logging.getLogger(__name__)


@plain_arguments
def label(
    teacher: LabelingTeacher | Callable[[list[str]], Any],
    source: Source,
    *,
    output: str | Path,
    text_column: str | None = None,
    classes: Sequence[str] | None = None,
    rows_per_call: int | None = None,
    max_requests: int | None = None,
    max_cost: float | None = None,
    prices: Prices | tuple[float, float] | None = None,
    dry_run: bool = False,
    gold: Source | None = None,
    budget: int | None = None,
    select: str | None = None,
    rounds: int | None = None,
    student: Any = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    test: Source | None = None,
    against_random: bool = False,
    **keywords: Any,
) -> Path | LabelPlan:
    """Label texts with a teacher, and write them with its probabilities: a training file for `nlpkd.distill`.

    Each answer is kept in `OUTPUT.answers.jsonl` as it comes. A run that was stopped, killed or failed goes on there,
    and asks nothing again that has been answered; `output` is written when all rows were asked about. Rows that the
    teacher did not answer are told, and left out.

    Args:
        teacher: one of `nlpkd.teachers`, or any function from a list of texts to `(texts, classes)` probabilities. A
            function is known by its name: where it has changed, give another `output`, or a
            `FunctionTeacher(function, classes, name=...)` with another name.
        source: the texts: a file, a Hub id or rows in memory; its train split, without a label column.
        output: the parquet file: the source's columns and those of `nlpkd.labelling.rows.with_answers`.
        text_column: the text's column; recognised by its usual names if None.
        classes: names of the classes, of a function, in the order of its columns. A bound method of an estimator that
            has `classes_`, such as scikit-learn's `predict_proba`, has that order, and may not have other names.
        rows_per_call: how many texts a function gets at once; 32 if None. Where it fails, it is asked about all of
            them again.
        max_requests: stop with an error after so many requests of this run, those for gold rows included; what was
            answered is kept.
        max_cost: stop likewise before all answers in the file have cost more than this, those of earlier runs
            included. Before a server has counted a prompt's tokens they are estimated from its letters.
        prices: of a million tokens of prompts and of answers, in any currency.
        dry_run: ask nothing, and return what would be asked; of a budget the most that may be.
        gold: a few rows with gold labels, by which the teacher is corrected; see `nlpkd.calibrate_teacher`. Their
            columns have the names that are given, or usual ones.
        budget: label so many rows only, chosen in rounds: the first ones by chance, the next ones by what a student
            that learned from those before is unsure of. `output` has the chosen rows alone, `OUTPUT.curve.md` and
            `OUTPUT.curve.json` the student's quality after each round.
        select: of a budget: `uncertainty` (if None), `diversity` or `random`; see
            `nlpkd.labelling.selection.select_texts`.
        rounds: of a budget, how many; 5 if None.
        student: of a budget, as for `nlpkd.distill`: a path, a Hub id or a model.
        tokenizer: of a budget, the student's; needed for a model that was not loaded by a name.
        test: of a budget, rows with gold labels on which the student is measured after each round.
        against_random: of a budget with `test`, measure a random choice of as many rows too, whose labels are bought
            as well.
        **keywords: of a budget, how the student is trained: fields of `nlpkd.data.arguments.DataArguments`
            (`max_length`, ...) and of `DistillationConfig` (`learning_rate`, `seed`, ...), and `objectives`
            (`"hinton"` if left out).

    Returns:
        The output file; of a dry run the plan.

    Raises:
        ValueError: if the source can't be read or is the output, the answers that are there are another teacher's, the
            teacher does not answer (a row is named), a limit was reached, or arguments do not fit together.
    """
    teacher = as_teacher(teacher, classes, rows_per_call)
    output = Path(output)
    if output.suffix != ".parquet":
        raise ValueError(f"output must be a .parquet file, got {output}")
    refuse_as_output(output, source=source, test=test)
    limits = SpendingLimits.of(max_requests, max_cost, prices)
    rows, _ = read_one_split(source, may_read=DataArguments(text_column=text_column).may_read)
    with without_training_words(rows):
        texts = texts_to_label(rows, "train", text_column)
    few = None
    if gold is not None:
        few = GoldRows.beside(output, teacher, gold, text_column, keywords.get("label_column"))
    answers = answers_beside(output, teacher)
    of_a_budget = {"select": select, "rounds": rounds, "student": student, "tokenizer": tokenizer, "test": test}
    of_a_budget |= {"against_random": against_random or None, **keywords}
    if budget is None and few is not None:
        of_a_budget.pop("label_column", None)
    if budget is None and (given := [name for name, value in of_a_budget.items() if value is not None]):
        raise ValueError(
            "select, rounds, student, test, against_random, columns of labels and settings of a training are of a "
            f"budget, and {', '.join(given)} came without one: give budget=, or leave it out"
        )
    buying = None
    if budget is not None:
        # What is wrong is refused before anything is paid for.
        objectives = keywords.pop("objectives", None)
        data_args, settings = DataArguments.split_of_training(label, keywords)
        learner = RoundLearner.of(student, test, objectives, tokenizer, output, data_args, settings)
        buying = Rounds(
            rows, texts, answers, teacher, output, budget, select or "uncertainty", 5 if rounds is None else rounds,
            learner, against_random,
        )  # fmt: skip
        buying.check()
    if dry_run:
        first = [] if few is None else few.texts
        return answers.plan([*first, *(texts if buying is None else buying.most())], limits.prices)
    if kept := answers.kept(texts):
        told = "%d texts were answered by an earlier run of %s, whose answers are taken from %s."
        logger.warning(told, kept, teacher.describe()["name"], answers.path)
    if few is not None:
        teacher = few.fit(teacher, answers, limits)
    chosen = list(range(len(rows))) if buying is None else replace(buying, teacher=teacher).buy(limits)
    rows, texts = rows.select(chosen), [texts[row] for row in chosen]
    found = answers.ask(texts, limits, [f"row {row}" for row in chosen])
    labelled = with_answers(rows, texts, found, teacher, limits.prices)
    save_answered(labelled, teacher, output)
    return output

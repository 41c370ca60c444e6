"""Label texts with a teacher once, and keep every answer as it comes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from nlpkd.config import DistillationConfig
from nlpkd.data.arguments import DataArguments
from nlpkd.data.one_split import read_one_split
from nlpkd.data.sources import Source, refuse_as_output, without_training_words
from nlpkd.evaluation.scoring import headline_of
from nlpkd.labelling.answers import AnswerFile
from nlpkd.labelling.calibration import GoldRows
from nlpkd.labelling.costs import LabelPlan, Prices, SpendingLimits
from nlpkd.labelling.rounds import RoundFile
from nlpkd.labelling.rows import (
    PROBABILITIES,
    answers_beside,
    save_answered,
    texts_to_label,
    with_answers,
    with_equal_probabilities,
)
from nlpkd.labelling.selection import SELECTIONS, margins, read_texts, save_curves, select_texts
from nlpkd.models.source import ModelSource, identity_of_model
from nlpkd.objectives.objective_set import ObjectiveSet, with_settings
from nlpkd.objectives.presets import resolve
from nlpkd.pipeline.job import Job
from nlpkd.pipeline.prepare import prepare_job
from nlpkd.teachers.base import LabelingTeacher, as_teacher
from nlpkd.training.checkpoints import LENGTH, describe_lessons
from nlpkd.utils.field_types import plain_arguments
from nlpkd.utils.fingerprints import hash_tokenizer, hash_value

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
    keywords |= {} if tokenizer is None else {"tokenizer": tokenizer}
    of_a_budget = {"select": select, "rounds": rounds, "student": student, "test": test}
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
        buying = Rounds(
            rows, texts, answers, teacher, output, budget, select or "uncertainty", 5 if rounds is None else rounds,
            student, test, against_random, keywords,
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


@dataclass(frozen=True)
class Rounds:
    """A budget of labels, spent round by round on the rows that are worth one.

    Each round's rows are kept in `OUTPUT.rounds.json` before they are asked about, so that a run which was stopped
    goes on with the same rows; one of other texts, another teacher or student or other settings does not take them.

    Attributes:
        rows: all that there are.
        texts: theirs.
        answers: where the teacher's answers are kept.
        teacher: the teacher.
        output: beside which rounds and curve are kept.
        budget: as for `label`, as are the following.
        select: how rows are chosen.
        rounds: how many.
        student: who learns.
        test: rows with gold labels.
        against_random: whether a random choice is measured too.
        settings: of the student's training.
    """

    rows: Dataset
    texts: Sequence[str]
    answers: AnswerFile
    teacher: LabelingTeacher
    output: Path
    budget: int
    select: str
    rounds: int
    student: Any
    test: Source | None
    against_random: bool
    settings: Mapping[str, Any]

    def check(self) -> None:
        """Refuse what does not fit; nothing is asked.

        Raises:
            ValueError: if the budget, the selection or the number of rounds does not fit, there is no student, or it
                can't learn from these rows by these settings, or be measured on the test rows; if the rounds that are
                kept are others.
        """
        distinct = self._distinct()
        if not 2 <= self.rounds <= self.budget <= len(distinct):
            raise ValueError(
                f"a budget is spent in 2 or more rounds, and is at most the {len(distinct)} texts that differ: got "
                f"budget={self.budget} and rounds={self.rounds}"
            )
        if self.select not in SELECTIONS or self.student is None:
            raise ValueError(
                f"select must be one of {', '.join(SELECTIONS)}, and student a model; got {self.select!r}, "
                f"{self.student}"
            )
        if self.against_random and self.test is None:
            raise ValueError("against_random measures on test rows, and there are none: give test=, or leave it out")
        _training(self.output, **self.settings)
        chosen = distinct[: self.budget]
        few = with_equal_probabilities(self.rows.select(chosen), self.teacher)
        job, args = _round_of(self.student, few, self.test, self.output, self.teacher, **self.settings)
        job.check(args)
        self._kept()

    def most(self) -> list[str]:
        """Return the texts of the rounds that are known by now, and as many others as the rest may ask about."""
        left, kept, rows = {*self.answers.unanswered(self.texts)}, self._kept(), dict[int, None]()
        for kind in sorted(self._kinds(), key="random".__ne__):
            chosen: list[int] = []
            for _, pool, by_chance, picked in self._each_round(kind, kept, chosen):
                if picked is None and chosen and kind != "random":
                    # What a student will choose: at worst what nobody has asked about yet.
                    pool.sort(key=lambda row: row in rows or self.texts[row] not in left)
                    chosen += pool[: self.budget - len(chosen)]
                    break
                chosen += by_chance if picked is None else picked
            rows |= dict.fromkeys(chosen)
        return [self.texts[row] for row in rows]

    def buy(self, limits: SpendingLimits | None = None) -> list[int]:
        """Choose rows, ask about them, and keep the curve beside the output.

        Args:
            limits: of what is asked.

        Returns:
            The numbers of the chosen rows.
        """
        kept, curves = self._kept(), dict[str, list[tuple[int, float]]]()
        for kind in self._kinds():
            learner, chosen = None, list[int]()
            for name, pool, by_chance, picked in self._each_round(kind, kept, chosen):
                # What the student that was trained last is unsure of; by chance at first.
                if picked is None:
                    picked = by_chance
                    if learner is not None and kind != "random":
                        probabilities, embeddings = learner.read([self.texts[row] for row in pool])
                        unsure = margins(probabilities, self.teacher.problem_type)
                        picked = [pool[at] for at in select_texts(kind, len(by_chance), unsure, embeddings)]
                    kept.keep(name, picked)
                chosen += picked
                # Buy them, learn from all so far, and measure.
                texts = [self.texts[row] for row in chosen]
                bought = self.answers.ask(texts, limits, [f"row {row}" for row in chosen])
                if self.test is None and len(chosen) == self.budget:
                    break
                labelled = with_answers(self.rows.select(chosen), texts, bought, self.teacher)
                learner = _Learner.of(self.student, labelled, self.test, self.output, self.teacher, **self.settings)
                if self.test is not None:
                    curves.setdefault(kind, []).append((len(labelled), learner.measure()))
            if kind == self.select:
                result = chosen
        if learner is not None and self.test is not None:
            save_curves(self.output, curves, self.select, learner.metric)
        return result

    def _each_round(
        self, kind: str, kept: RoundFile, chosen: Sequence[int]
    ) -> Iterator[tuple[str, list[int], list[int], list[int] | None]]:
        """Yield each round's name, pool, choice by chance and kept one; the caller adds what it takes to `chosen`."""
        generator = np.random.default_rng(self.settings.get("seed", 42))
        for number in range(self.rounds):
            count, taken = self.budget * (number + 1) // self.rounds - len(chosen), set(chosen)
            pool, name = [row for row in self._distinct() if row not in taken], f"{kind} {number}"
            by_chance = [pool[at] for at in generator.choice(len(pool), count, replace=False).tolist()]
            yield name, pool, by_chance, kept.rows(name, count, pool)

    def _kinds(self) -> list[str]:
        return [self.select, "random"] if self.against_random and self.select != "random" else [self.select]

    def _distinct(self) -> list[int]:
        """Return the first row of each text: equal texts are one text."""
        return list({text: row for row, text in reversed(list(enumerate(self.texts)))}.values())[::-1]

    def _kept(self) -> RoundFile:
        depends_on = _describe_rounds(self.answers, self.output, self.texts, self.student, **self.settings)
        path = self.output.with_name(self.output.name + ".rounds.json")
        return RoundFile(path, {"budget": self.budget, "rounds": self.rounds} | depends_on)


def _describe_rounds(
    answers: AnswerFile, output: Path, texts: Sequence[str], student: Any, objectives: Any = "hinton", **keywords: Any
) -> dict[str, Any]:
    """Describe what the rows that rounds choose depend on: the texts, the teacher, the student and its training."""
    data_args, args, _ = _training(output, objectives, **keywords)
    tokenizer = keywords.get("tokenizer")
    lessons = ObjectiveSet(with_settings(resolve(objectives)[-1].objectives, {}), args.weighting)
    told = {"teacher": hash_value(answers.owner), "student": str(ModelSource.of(student).describe()["name"])}
    told |= {f"the student's {name}": value for name, value in identity_of_model(student).items()}
    told |= {} if tokenizer is None else {"the student's tokenizer": hash_tokenizer(tokenizer)}
    told |= asdict(data_args) | {name: getattr(args, name) for name in LENGTH}
    return told | describe_lessons(args, None, lessons, Dataset.from_dict({"text": list(texts)}), ["text"])


def _training(
    output: Path, objectives: Any = "hinton", tokenizer: Any = None, **keywords: Any
) -> tuple[DataArguments, DistillationConfig, set[str]]:
    """Return how a round's student reads text and is trained, and the names of the settings that are given.

    Raises:
        ValueError: for what is no setting, or one of a wrong value.
    """
    data_args, settings = DataArguments.split_of_training(label, keywords)
    if "output_dir" in settings:
        raise ValueError("output_dir: a student of a budget is kept beside the output, so leave it out")
    resolve(objectives)
    # Who pays for a teacher has chosen it: gold labels beside it are no reason to stop between two rounds.
    quiet_ones = {"save_strategy": "no", "eval_strategy": "no", "report_to": "none", "teacher_check": "warn"}
    folder = str(output.with_name(output.name + ".student"))
    return data_args, DistillationConfig(folder, **quiet_ones | settings), set(settings)


def _round_of(
    student: Any, labelled: Dataset, test: Source | None, output: Path, teacher: LabelingTeacher,
    objectives: Any = "hinton", tokenizer: Any = None, **keywords: Any,
) -> tuple[Job, DistillationConfig]:  # fmt: skip
    """Prepare a round's training, for 100 steps or three epochs, whichever is more, unless the settings say otherwise.

    Returns:
        The job, whose test rows are those that are measured, and its settings.
    """
    data_args, args, settings = _training(output, objectives, **keywords)
    data_args = replace(
        data_args, soft_label_column=PROBABILITIES, label_names=teacher.classes, problem_type=teacher.problem_type
    )
    if not {"num_train_epochs", "max_steps"} & settings:
        args = replace(args, max_steps=max(100, 3 * len(labelled) // args.per_device_train_batch_size))
    held_out = {"validation": labelled} if test is None else {"test": test}
    given = {"objectives": objectives, "tokenizer": tokenizer, "data_args": data_args, **held_out}
    job = prepare_job(args, None, student, labelled, **given)
    if "learning_rate" not in settings:
        args = replace(args, learning_rate=job.learning_rate)
    return job, args


@dataclass(frozen=True)
class _Learner:
    """A student that has learned from the labels so far."""

    trainer: Any
    tokenizer: Any
    max_length: int
    test: Any
    metric: str

    @classmethod
    def of(
        cls, student: Any, labelled: Dataset, test: Source | None, output: Path, teacher: LabelingTeacher,
        **keywords: Any,
    ) -> _Learner:  # fmt: skip
        """Train the student."""
        job, args = _round_of(student, labelled, test, output, teacher, **keywords)
        trainer = job.trainer(job.student_to_train(args.seed), args, job.stages[-1])
        trainer.train()
        if test is None:
            return cls(trainer, job.tokenizer, job.data.max_length, None, "")
        metric = headline_of(job.data.problem_type, job.data["test"])
        return cls(trainer, job.tokenizer, job.data.max_length, job.data["test"], metric)

    def measure(self) -> float:
        """Measure the student on the test rows."""
        return float(self.trainer.evaluate(self.test)[f"eval_{self.metric}"])

    def read(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Run the student: its probabilities, and the mean of its last hidden states over the tokens."""
        return read_texts(self.trainer.model.eval(), self.tokenizer, texts, self.max_length)

"""A budget of labels, spent round by round on the rows that are worth one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from nlpkd.config import DistillationConfig
from nlpkd.data.arguments import DataArguments
from nlpkd.data.sources import Source
from nlpkd.evaluation.scoring import headline_of
from nlpkd.labelling.answers import AnswerFile
from nlpkd.labelling.costs import SpendingLimits
from nlpkd.labelling.rounds import RoundFile
from nlpkd.labelling.rows import (
    reading_of,
    with_answers,
    with_equal_probabilities,
)
from nlpkd.labelling.selection import SELECTIONS, margins, read_texts, save_curves, select_texts
from nlpkd.models.source import ModelSource, identity_of_model
from nlpkd.objectives.objective_set import ObjectiveSet, with_settings
from nlpkd.objectives.presets import resolve
from nlpkd.pipeline.jobs.distillation import prepare_job
from nlpkd.pipeline.jobs.job import Job
from nlpkd.teachers.base import LabelingTeacher
from nlpkd.training.checkpoints import LENGTH, describe_lessons
from nlpkd.utils.fingerprints import hash_tokenizer, hash_value


@dataclass(frozen=True)
class RoundLearner:
    """How the student of a budget learns after each round.

    Attributes:
        student: as for `nlpkd.distill`.
        test: rows with gold labels on which it is measured, if there are any.
        objectives: likewise.
        tokenizer: the student's, where it can't be loaded by the student's name.
        data_args: how it reads text.
        args: the settings of its training.
        given: the names of the settings that are given.
    """

    student: Any
    test: Source | None
    objectives: Any
    tokenizer: PreTrainedTokenizerBase | None
    data_args: DataArguments
    args: DistillationConfig
    given: frozenset[str]

    @classmethod
    def of(
        cls, student: Any, test: Source | None, objectives: Any, tokenizer: PreTrainedTokenizerBase | None,
        output: Path, data_args: DataArguments, settings: Mapping[str, Any],
    ) -> RoundLearner:  # fmt: skip
        """Take what the user gives.

        Args:
            student: see the attribute.
            test: likewise.
            objectives: `"hinton"` if None.
            tokenizer: see the attribute.
            output: the file of labels, beside which the student is trained.
            data_args: see the attribute.
            settings: of the training, by name.

        Raises:
            ValueError: for settings of a wrong value.
        """
        if "output_dir" in settings:
            raise ValueError("output_dir: a student of a budget is kept beside the output, so leave it out")
        objectives = "hinton" if objectives is None else objectives
        resolve(objectives)
        # Who pays for a teacher has chosen it: gold labels beside it are no reason to stop between two rounds.
        quiet_ones = {"save_strategy": "no", "eval_strategy": "no", "report_to": "none", "teacher_check": "warn"}
        args = DistillationConfig(str(output.with_name(output.name + ".student")), **quiet_ones | dict(settings))
        return cls(student, test, objectives, tokenizer, data_args, args, frozenset(settings))

    def describe(self, texts: Sequence[str]) -> dict[str, Any]:
        """Describe what the rows that it chooses depend on: the texts, the student, and its training."""
        lessons = ObjectiveSet(with_settings(resolve(self.objectives)[-1].objectives, {}), self.args.weighting)
        about = {"student": str(ModelSource.of(self.student).describe()["name"])}
        about |= {f"the student's {name}": value for name, value in identity_of_model(self.student).items()}
        about |= {} if self.tokenizer is None else {"the student's tokenizer": hash_tokenizer(self.tokenizer)}
        about |= asdict(self.data_args) | {name: getattr(self.args, name) for name in LENGTH}
        return about | describe_lessons(self.args, None, lessons, Dataset.from_dict({"text": list(texts)}), ["text"])

    def job(self, labelled: Dataset, teacher: LabelingTeacher) -> tuple[Job, DistillationConfig]:
        """Prepare its training, for 100 steps or three epochs, whichever is more, unless the settings say otherwise.

        Args:
            labelled: the rows with the teacher's answers.
            teacher: who gave them.

        Returns:
            The job, whose test rows are those that are measured, and its settings.
        """
        args = self.args
        data_args = reading_of(teacher, self.data_args)
        if not {"num_train_epochs", "max_steps"} & self.given:
            args = replace(args, max_steps=max(100, 3 * len(labelled) // args.per_device_train_batch_size))
        held_out: Any = {"validation": labelled} if self.test is None else {"test": self.test}
        given: Any = {"objectives": self.objectives, "tokenizer": self.tokenizer, "data_args": data_args, **held_out}
        job = prepare_job(args, None, self.student, labelled, **given)
        if "learning_rate" not in self.given:
            args = replace(args, learning_rate=job.learning_rate)
        return job, args

    def learn(self, labelled: Dataset, teacher: LabelingTeacher) -> LabelReader:
        """Train the student on the labels so far; arguments are those of `job`."""
        job, args = self.job(labelled, teacher)
        trainer = job.trainer(job.student_to_train(args.seed), args, job.stages[-1])
        trainer.train()
        if self.test is None:
            return LabelReader(trainer, job.tokenizer, job.data.max_length, None, "")
        metric = headline_of(job.data.problem_type, job.data["test"])
        return LabelReader(trainer, job.tokenizer, job.data.max_length, job.data["test"], metric)


@dataclass(frozen=True)
class LabelReader:
    """A student that has learned from the labels so far.

    Attributes:
        trainer: which trained it.
        tokenizer: its tokenizer.
        max_length: the longest text, in tokens.
        test: the rows to measure it on, if there are any.
        metric: which is measured.
    """

    trainer: Any
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    test: Any
    metric: str

    def measure(self) -> float:
        """Measure the student on the test rows."""
        return float(self.trainer.evaluate(self.test)[f"eval_{self.metric}"])

    def read(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Run the student: its probabilities, and the mean of its last hidden states over the tokens."""
        return read_texts(self.trainer.model.eval(), self.tokenizer, texts, self.max_length)


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
        learner: who learns from them.
        against_random: whether a random choice is measured too.
    """

    rows: Dataset
    texts: Sequence[str]
    answers: AnswerFile
    teacher: LabelingTeacher
    output: Path
    budget: int
    select: str
    rounds: int
    learner: RoundLearner
    against_random: bool

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
        if self.select not in SELECTIONS or self.learner.student is None:
            raise ValueError(
                f"select must be one of {', '.join(SELECTIONS)}, and student a model; got {self.select!r}, "
                f"{self.learner.student}"
            )
        if self.against_random and self.learner.test is None:
            raise ValueError("against_random measures on test rows, and there are none: give test=, or leave it out")
        if self.against_random and self.select == "random":
            raise ValueError(
                "against_random compares a selection with random, and select='random' is that itself: give another "
                "select, or leave against_random out"
            )
        chosen = distinct[: self.budget]
        few = with_equal_probabilities(self.rows.select(chosen), self.teacher)
        job, args = self.learner.job(few, self.teacher)
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
            student, chosen = None, list[int]()
            for name, pool, by_chance, picked in self._each_round(kind, kept, chosen):
                # What the student that was trained last is unsure of; by chance at first.
                if picked is None:
                    picked = by_chance
                    if student is not None and kind != "random":
                        probabilities, embeddings = student.read([self.texts[row] for row in pool])
                        unsure = margins(probabilities, self.teacher.problem_type)
                        picked = [pool[at] for at in select_texts(kind, len(by_chance), unsure, embeddings)]
                    kept.keep(name, picked)
                chosen += picked
                # Buy them, learn from all so far, and measure.
                texts = [self.texts[row] for row in chosen]
                bought = self.answers.ask(texts, limits, [f"row {row}" for row in chosen])
                if self.learner.test is None and len(chosen) == self.budget:
                    break
                labelled = with_answers(self.rows.select(chosen), texts, bought, self.teacher)
                student = self.learner.learn(labelled, self.teacher)
                if self.learner.test is not None:
                    curves.setdefault(kind, []).append((len(labelled), student.measure()))
            if kind == self.select:
                result = chosen
        if student is not None and self.learner.test is not None:
            save_curves(self.output, curves, self.select, student.metric)
        return result

    def _each_round(
        self, kind: str, kept: RoundFile, chosen: Sequence[int]
    ) -> Iterator[tuple[str, list[int], list[int], list[int] | None]]:
        """Yield each round's name, pool, choice by chance and kept one; the caller adds what it takes to `chosen`."""
        generator = np.random.default_rng(self.learner.args.seed)
        for number in range(self.rounds):
            count, taken = self.budget * (number + 1) // self.rounds - len(chosen), set(chosen)
            pool, name = [row for row in self._distinct() if row not in taken], f"{kind} {number}"
            by_chance = [pool[at] for at in generator.choice(len(pool), count, replace=False).tolist()]
            yield name, pool, by_chance, kept.rows(name, count, pool)

    def _kinds(self) -> list[str]:
        return [self.select, "random"] if self.against_random else [self.select]

    def _distinct(self) -> list[int]:
        """Return the first row of each text: equal texts are one text."""
        return list({text: row for row, text in reversed(list(enumerate(self.texts)))}.values())[::-1]

    def _kept(self) -> RoundFile:
        asked = {"budget": self.budget, "rounds": self.rounds, "teacher": hash_value(self.answers.owner)}
        path = self.output.with_name(self.output.name + ".rounds.json")
        return RoundFile(path, asked | self.learner.describe(self.texts))

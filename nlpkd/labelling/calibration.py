"""A few gold labels beside a teacher that needs none: its temperature and its class priors fitted on them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict
from scipy.optimize import minimize
from scipy.special import expit, log_expit, log_softmax, logit, softmax
from sklearn.model_selection import KFold

from nlpkd.data.columns import find_columns, find_text_column
from nlpkd.data.labels import encode_targets
from nlpkd.data.labels.numbers import named_by_numbers, refuse_numbers
from nlpkd.data.one_split import read_one_split
from nlpkd.data.rows import unlabelled_rows
from nlpkd.data.soft_labels import PROBABILITY_FLOOR
from nlpkd.data.sources import Source, refuse_as_output
from nlpkd.evaluation.metrics import calibration_error
from nlpkd.labelling.answers import AnswerFile
from nlpkd.labelling.costs import SpendingLimits
from nlpkd.labelling.rows import asked_probabilities, texts_to_label
from nlpkd.tasks import MULTI_LABEL
from nlpkd.teachers.base import Answers, LabelingTeacher
from nlpkd.utils.field_types import plain_arguments

logger = logging.getLogger(__name__)

_MOST_FOLDS = 10


@dataclass(frozen=True)
class TeacherQuality:
    """How good probabilities are on rows with gold labels.

    Attributes:
        accuracy: share of the decisions that are right.
        log_loss: mean of -log of the probability that a decision's right answer gets.
        calibration_error: expected calibration error of the decisions.
    """

    accuracy: float
    log_loss: float
    calibration_error: float

    @classmethod
    def of(cls, scores: np.ndarray, labels: np.ndarray, problem_type: str) -> TeacherQuality:
        """Measure scores, `(rows, classes)` without bounds, against the gold labels."""
        log_probabilities, options = _decisions(scores, labels, problem_type)
        right = log_probabilities.argmax(axis=1) == options
        confidence = np.exp(log_probabilities.max(axis=1))
        log_loss = -_chosen(log_probabilities, options).mean()
        return cls(float(right.mean()), float(log_loss), calibration_error(confidence, right))

    def to_text(self) -> str:
        """Return the figures in a line."""
        return f"accuracy {self.accuracy:.3f}, log loss {self.log_loss:.3f}, ECE {self.calibration_error:.3f}"


@dataclass(frozen=True)
class Calibration:
    """What was fitted on a few gold labels, and what it did.

    Attributes:
        gold: hash of the texts and labels that it rests on, in any order.
        rows: with gold labels.
        temperature: that the logarithms (of several labels the log-odds) of the probabilities are divided by.
        priors: what is added to them then, by class.
        before: of the teacher as it was.
        after: cross-validated: each row is measured by what was fitted on others.
    """

    gold: str
    rows: int
    temperature: float
    priors: dict[str, float]
    before: TeacherQuality
    after: TeacherQuality

    def to_text(self) -> str:
        """Return temperature, priors, and the quality before and after."""
        priors = ", ".join(f"{name} {value:+.2f}" for name, value in self.priors.items())
        return (
            f"Fitted on {self.rows} gold labels: temperature {self.temperature:.2f}, priors {priors}. Before: "
            f"{self.before.to_text()}. After, cross-validated: {self.after.to_text()}."
        )


class CalibratedTeacher(LabelingTeacher):
    """A teacher whose probabilities are corrected by what was fitted on a few gold labels.

    Its `asked` is the teacher itself, so that answers which were kept stay good when it is fitted anew.

    Args:
        teacher: the teacher.
        calibration: what was fitted; see `calibrate_teacher`.
    """

    def __init__(self, teacher: LabelingTeacher, calibration: Calibration):
        self.teacher, self.calibration = teacher, calibration
        self.classes, self.problem_type = teacher.classes, teacher.problem_type
        self.rows_per_call, self.concurrency = teacher.rows_per_call, teacher.concurrency
        self.requests_per_call = teacher.requests_per_call

    @property
    def asked(self) -> LabelingTeacher:
        """The teacher whose answers are corrected."""
        return self.teacher.asked

    def adjusted(self, probabilities: np.ndarray) -> np.ndarray:
        """Correct the probabilities of `asked`, `(texts, classes)`."""
        priors = np.array([self.calibration.priors[name] for name in self.classes])
        scores = _unbounded(self.teacher.adjusted(probabilities), self.problem_type) / self.calibration.temperature
        corrected = expit(scores + priors) if self.problem_type == MULTI_LABEL else softmax(scores + priors, axis=1)
        return corrected.astype(np.float32)

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Ask, and correct; see `LabelingTeacher.probabilities`."""
        return self.adjusted(self.asked.probabilities(texts))

    def answer(self, texts: Sequence[str]) -> Answers:
        """Ask, and correct; see `LabelingTeacher.answer`."""
        found = self.asked.answer(texts)
        return replace(found, probabilities=self.adjusted(found.probabilities))

    def expected_tokens(self, text: str) -> tuple[int, int]:
        """Estimate what the teacher takes; see `LabelingTeacher.expected_tokens`."""
        return self.asked.expected_tokens(text)

    def describe(self) -> dict[str, Any]:
        """Return what the teacher describes, and what was fitted."""
        return self.teacher.describe() | {"calibration": asdict(self.calibration)}


@dataclass(frozen=True)
class GoldRows:
    """A few rows with gold labels, read and checked for a teacher that nothing was asked yet.

    Attributes:
        texts: theirs.
        labels: class ids `(rows,)` in the order of the teacher's classes, or zeros and ones `(rows, classes)`.
        numbers: of the rows, among those with and without a label.
    """

    texts: list[str]
    labels: np.ndarray
    numbers: list[int]

    @classmethod
    def of(
        cls,
        teacher: LabelingTeacher,
        gold: Source,
        text_column: str | None = None,
        label_column: str | Sequence[str] | None = None,
    ) -> GoldRows:
        """Read the rows; the arguments are those of `calibrate_teacher`.

        Raises:
            ValueError: for fewer than two rows with a label, labels that are not the teacher's, where none or several
                columns could be the label, or if the teacher is none that labels texts.
        """
        if not isinstance(teacher, LabelingTeacher):
            raise ValueError(
                f"teacher must be one of nlpkd.teachers, which label texts, got {teacher!r:.100}: of a fine-tuned "
                "classifier nlpkd.evaluate fits the temperature, on held_out rows"
            )
        rows, labels, numbers = _labelled_rows(read_one_split(gold)[0], teacher, text_column, label_column)
        texts = texts_to_label(rows, "gold", text_column)
        if len(texts) < 2:
            raise ValueError(f"a temperature is fitted on two or more gold labels, got {len(texts)}")
        return cls(texts, labels, numbers)

    @classmethod
    def beside(
        cls,
        output: Path,
        teacher: LabelingTeacher,
        gold: Source,
        text_column: str | None = None,
        label_column: str | Sequence[str] | None = None,
    ) -> GoldRows:
        """Read rows that come beside others; names of columns hold where these rows have such columns.

        Args:
            output: a file that is to be written, which must be none of these rows.
            teacher: the teacher.
            gold: the rows.
            text_column: of the other rows.
            label_column: of the other rows.

        Raises:
            ValueError: as `of` does; if their file is the output.
        """
        refuse_as_output(output, gold=gold)
        rows, _ = read_one_split(gold)
        names = {*rows.column_names}
        labels = [label_column] if isinstance(label_column, str) else label_column or []
        return cls.of(
            teacher, rows, text_column if text_column in names else None, label_column if names >= {*labels} else None
        )

    def fit(
        self, teacher: LabelingTeacher, answers: AnswerFile | None = None, limits: SpendingLimits | None = None
    ) -> CalibratedTeacher:
        """Ask the teacher about these rows, and fit its temperature and class priors.

        Args:
            teacher: the teacher.
            answers: where its answers are kept; they are not kept if None.
            limits: the limits.

        Returns:
            The corrected teacher.

        Raises:
            ValueError: if it does not answer two of the texts or more, or a limit was reached.
        """
        names = [f"row {number} of the gold labels" for number in self.numbers]
        found = asked_probabilities(teacher, self.texts, answers, limits, names)
        answered = np.flatnonzero(~np.isnan(found).any(axis=1))
        if len(answered) < 2:
            raise ValueError(f"a temperature is fitted on two or more gold labels, and {len(answered)} were answered")
        given, labels = _unbounded(found[answered], teacher.problem_type), self.labels[answered]
        # Each row measured by what was fitted on others.
        held_out = np.zeros_like(given)
        folds = KFold(min(len(given), _MOST_FOLDS), shuffle=True, random_state=0)
        for fitted, left in folds.split(given):
            parameters = _fit(given[fitted], labels[fitted], teacher.problem_type)
            held_out[left] = given[left] / parameters[0] + parameters[1]
        temperature, priors = _fit(given, labels, teacher.problem_type)
        calibration = Calibration(
            gold=self._hash(teacher.classes),
            rows=len(given),
            temperature=temperature,
            priors=dict(zip(teacher.classes, priors.tolist(), strict=True)),
            before=TeacherQuality.of(given, labels, teacher.problem_type),
            after=TeacherQuality.of(held_out, labels, teacher.problem_type),
        )
        logger.warning("%s: %s", teacher.describe()["name"], calibration.to_text())
        return CalibratedTeacher(teacher, calibration)

    def _hash(self, classes: Sequence[str]) -> str:
        """Hash texts and names of labels, those without an answer too: it is the same whatever a teacher answers."""
        named = [np.take(classes, np.flatnonzero(row) if row.ndim else [row]).tolist() for row in self.labels]
        rows = sorted(json.dumps([text, *sorted(names)]) for text, names in zip(self.texts, named, strict=True))
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]


@plain_arguments
def calibrate_teacher(
    teacher: LabelingTeacher,
    gold: Source,
    *,
    text_column: str | None = None,
    label_column: str | Sequence[str] | None = None,
    answers: AnswerFile | None = None,
) -> CalibratedTeacher:
    """Fit a teacher's temperature T and class priors b on a few rows with gold labels.

        one class a text:    p' = softmax(log p / T + b)
        several labels:      p' = sigmoid(log(p / (1 - p)) / T + b)

    by the greatest posterior under b ~ N(0, 1) and log T ~ N(0, 1): with few labels little moves. Guo et al. 2017
    (https://arxiv.org/abs/1706.04599) fit T; a zero-shot teacher's bias for some classes is what Zhao et al. 2021,
    "Calibrate Before Use" (https://arxiv.org/abs/2102.09690), correct with b.

    Args:
        teacher: any teacher that gives probabilities.
        gold: a few rows with gold labels, which bear the names of the teacher's classes; rows with the label -100 have
            none, and are left out.
        text_column: the text's column; recognised by its usual names if None.
        label_column: the label's column, likewise; or several (a 0 or 1 for each label).
        answers: where the answers to the gold rows' texts are kept; they are not kept if None.

    Returns:
        The corrected teacher; its `calibration` says what was fitted, and how good the teacher was and is.

    Raises:
        ValueError: for fewer than two rows with a label, labels that are not the teacher's, where none or several
            columns could be the label, or if the teacher is none that labels texts.
    """
    return GoldRows.of(teacher, gold, text_column, label_column).fit(teacher, answers)


def _labelled_rows(
    rows: Dataset, teacher: LabelingTeacher, text_column: str | None, label_column: str | Sequence[str] | None
) -> tuple[Dataset, np.ndarray, list[int]]:
    """Return the rows that have a gold label, their labels in the order of the teacher's classes, and their numbers.

    Labels are `(rows,)`, or zeros and ones `(rows, classes)`.
    """
    text = find_text_column(rows.column_names, text_column)
    column = find_columns(rows.column_names, text, label=label_column).label
    splits = DatasetDict({"train": rows})
    refuse_numbers({"gold": rows}, column, teacher.problem_type, teacher.classes, "teacher has")
    targets = encode_targets(splits, column, teacher.problem_type, teacher.classes, may_lack=True)
    known = np.flatnonzero(~unlabelled_rows(targets.splits["train"])).tolist()
    rows, encoded = rows.select(known), targets.splits["train"].select(known)
    labels = encoded["labels"][:]
    places = {name.strip().casefold(): number for number, name in enumerate(teacher.classes)}
    names = named_by_numbers(targets.names, teacher.classes)
    if unknown := [name for name in names if name.strip().casefold() not in places]:
        raise ValueError(
            f"gold label {unknown[0]!r} (column {column!r}) is none of the teacher's classes, "
            f"{list(teacher.classes)[:20]}"
        )
    order = [places[name.strip().casefold()] for name in names]
    if isinstance(encoded.features["labels"], ClassLabel):
        return rows, np.array([order[label] for label in labels], dtype=np.int64), known
    found = np.zeros((len(rows), len(teacher.classes)), dtype=np.int64)
    found[:, order] = np.array(labels, dtype=np.int64).reshape(len(rows), len(order))
    return rows, found, known


def _unbounded(probabilities: np.ndarray, problem_type: str) -> np.ndarray:
    """Return logarithms, of several labels log-odds, of float64 probabilities that are kept off 0 and 1."""
    bounded = np.clip(np.asarray(probabilities, dtype=np.float64), PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    return logit(bounded) if problem_type == MULTI_LABEL else np.log(bounded)


def _decisions(scores: np.ndarray, labels: np.ndarray, problem_type: str) -> tuple[np.ndarray, np.ndarray]:
    """Return log-probabilities `(decisions, options)` and the right options: of several labels each is a decision."""
    if problem_type != MULTI_LABEL:
        return log_softmax(scores, axis=1), labels
    return np.stack([log_expit(-scores), log_expit(scores)], axis=-1).reshape(-1, 2), labels.reshape(-1)


def _chosen(log_probabilities: np.ndarray, options: np.ndarray) -> np.ndarray:
    return np.take_along_axis(log_probabilities, options[:, None], axis=1)


def _fit(given: np.ndarray, labels: np.ndarray, problem_type: str) -> tuple[float, np.ndarray]:
    """Find the temperature and the priors `(classes,)` of the greatest posterior."""

    def negative_log_posterior(parameters: np.ndarray) -> float:
        scores = given * np.exp(-parameters[0]) + parameters[1:]
        chosen = _chosen(*_decisions(scores, labels, problem_type))
        return float(-chosen.sum() + (parameters**2).sum() / 2)

    found = minimize(negative_log_posterior, np.zeros(1 + given.shape[1]), method="L-BFGS-B").x
    return float(np.exp(found[0])), found[1:]

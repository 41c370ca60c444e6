"""Teachers that label texts: texts in, one probability for each class out."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nlpkd.data.columns import texts_again
from nlpkd.data.labels.classes import Classes, plain_name
from nlpkd.data.soft_labels import ROUNDING
from nlpkd.tasks import MULTI_LABEL, SINGLE_LABEL
from nlpkd.utils.field_types import are_numbers, check_counts, plain_arguments

logger = logging.getLogger(__name__)

_MOST_TOKENS = 10**9

_SAYING, _SAID = threading.Lock(), set[str]()

ROWS_PER_CALL = 32
"""How many texts a function gets at once: few enough that little is lost where it fails and was paid for."""

LETTERS_PER_TOKEN = 4
"""About how many letters of English a token has."""


@dataclass(frozen=True)
class Answers:
    """The answers to some texts, and what they took.

    Attributes:
        probabilities: float32 `(texts, classes)`.
        input_tokens: of each text's prompts; None where the teacher does not count them, or gives what is no number
            of tokens.
        output_tokens: of each text's answers, likewise.
        cut: how many of the texts lost tokens, since the teacher reads no more than `most_tokens` of a text.
        most_tokens: None where it cuts none, or nobody knows.
    """

    probabilities: np.ndarray
    input_tokens: list[int] | None = None
    output_tokens: list[int] | None = None
    cut: int = field(default=0, kw_only=True)
    most_tokens: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("input_tokens", "output_tokens"):
            told: Sequence[Any] | None = getattr(self, name)
            counts = None if told is None else [as_count(each) for each in told]
            object.__setattr__(self, name, None if counts is None or None in counts else counts)


def as_count(told: Any) -> int | None:
    """Read a number of tokens as a server tells it.

    Args:
        told: of any type.

    Returns:
        A whole number, not negative; None where it tells none, or something else, which is said once.
    """
    if are_numbers(told) and 0 <= told <= _MOST_TOKENS and told == int(told):
        return int(told)
    if told is not None:
        say_once("A teacher counts tokens with what is no number of tokens: what it takes counts as unknown.")
    return None


def say_once(message: str) -> None:
    """Warn, and never again with the same message."""
    with _SAYING:
        if message not in _SAID:
            _SAID.add(message)
            logger.warning(message)


def tell_cut(cut: int, texts: int, most_tokens: int | None) -> None:
    """Tell how many texts a teacher labelled by a part of them, if any.

    Args:
        cut: as in `Answers`.
        texts: how many it was asked about.
        most_tokens: as in `Answers`.
    """
    if cut:
        logger.warning(
            "%d of %d texts were cut to the %s tokens that the teacher reads, and are labelled by what is left of "
            "them. A student that reads more of a text learns labels of another one: give shorter texts, lower its "
            "max_length, or take a teacher that reads more.", cut, texts, most_tokens,
        )  # fmt: skip


class WrongAnswers(ValueError):
    """Some of a teacher's answers are no probabilities.

    Args:
        message: what is wrong with the first of them.
        answers: all of them, `(texts, classes)`.
    """

    def __init__(self, message: str, answers: np.ndarray):
        super().__init__(message)
        self.answers = answers


class LabelingTeacher(ABC):
    """A teacher that answers one fixed question about every text.

    Attributes:
        problem_type: whether one class holds for a text, or any number of them.
        rows_per_call: how many texts `nlpkd.label` hands over at once, and keeps at once.
        concurrency: how many such calls may run at the same time.
        requests_per_call: how many requests, or forward passes, such a call makes.
        way: how it asks, where earlier versions of nlpkd asked the same question in another way. Their answers are
            taken, which is said; None where there was no other way.
    """

    problem_type: str = SINGLE_LABEL
    rows_per_call: int = 256
    concurrency: int = 1
    requests_per_call: int = 1
    way: str | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the probabilities.

        They are set to any sequence of names, or to a mapping from names to something else. Numbers, such as stars,
        are names too.

        Raises:
            ValueError: if they are set to fewer than two, or to names that are empty or look the same.
        """
        return self._classes

    @classes.setter
    def classes(self, names: Iterable[Any]) -> None:
        listed = isinstance(names, Iterable) and not isinstance(names, (str, bytes, set, frozenset))
        given = list(names) if listed else []
        found = [str(name) for name in given if isinstance(name, str) or are_numbers(name)]
        if not 2 <= len(set(map(plain_name, found)) - {""}) == len(given):
            raise ValueError(f"give two or more different classes by their names, each a text, got {names!r:.300}")
        self._classes = tuple(found)

    @abstractmethod
    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Label texts.

        Args:
            texts: the texts.

        Returns:
            Float32 `(texts, classes)`; of a single-label task each row sums to 1.

        Raises:
            ValueError: if an answer is no distribution over the classes.
        """

    def answer(self, texts: Sequence[str]) -> Answers:
        """Label texts, and count their tokens, and the texts that were cut, where the teacher knows them.

        `probabilities` tells how many were cut; of this it is told by who asks.

        Args:
            texts: the texts.

        Returns:
            The probabilities and the counts.

        Raises:
            ValueError: if an answer is no distribution over the classes.
        """
        return Answers(self.probabilities(texts))

    @property
    def asked(self) -> LabelingTeacher:
        """The teacher whose answers are kept: itself, or the one whose answers it corrects."""
        return self

    def adjusted(self, probabilities: np.ndarray) -> np.ndarray:
        """Correct the probabilities of `asked`, `(texts, classes)`; as they are unless a teacher says otherwise."""
        return probabilities

    def expected_tokens(self, text: str) -> tuple[int, int]:
        """Estimate the tokens of a text's prompts and answers, before it is asked about."""
        return -(-len(text) // LETTERS_PER_TOKEN), 0

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return all that the answers depend on, as JSON: `name`, `question`, and settings."""


class CuttingTeacher(LabelingTeacher):
    """A teacher that cuts texts at what its model reads: it says what it answers in `cut_and_answer`."""

    @abstractmethod
    def cut_and_answer(self, texts: Sequence[str]) -> Answers:
        """Label texts, and count those that are cut; see `LabelingTeacher.answer`."""

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Label texts, and tell how many were cut; see `LabelingTeacher.probabilities`."""
        texts = texts_again(texts, "texts")
        found = self.cut_and_answer(texts)
        tell_cut(found.cut, len(texts), found.most_tokens)
        return found.probabilities

    def answer(self, texts: Sequence[str]) -> Answers:
        """Label texts, and count those that are cut; see `LabelingTeacher.answer`."""
        if type(self).probabilities is not CuttingTeacher.probabilities:
            # A class of one's own says what the answers are; texts that are cut are told within.
            return super().answer(texts)
        return self.cut_and_answer(texts_again(texts, "texts"))


class FunctionTeacher(LabelingTeacher):
    """Any function as a teacher.

    Args:
        function: from a list of texts to `(texts, classes)` probabilities.
        classes: names of the classes, in the order of its columns. A bound method of an estimator that has `classes_`,
            such as scikit-learn's `predict_proba`, has that order, and may not have other names.
        name: names the function and its version in the record; another one is another teacher.
        problem_type: `single_label_classification` or `multi_label_classification`.
        rows_per_call: how many texts it gets at once. Where it fails, it is asked about all of them again.

    Raises:
        ValueError: if the estimator's classes are others.
    """

    @plain_arguments
    def __init__(
        self,
        function: Callable[[list[str]], Any],
        classes: Sequence[str],
        name: str | None = None,
        problem_type: str = SINGLE_LABEL,
        rows_per_call: int = ROWS_PER_CALL,
    ):
        check_counts(rows_per_call=rows_per_call)
        self.function = function
        self.classes = classes
        self.name = name or getattr(function, "__qualname__", type(function).__name__)
        self.problem_type = problem_type
        self.rows_per_call = rows_per_call
        if (known := classes_of_function(function)) is not None:
            # Its columns have an order of their own, whatever that of the names.
            try:
                order = known.positions_in(Classes.of(self.classes))
            except ValueError:
                raise ValueError(
                    f"classes={list(self.classes)} are not those of {self.name}, whose columns are {known}: give "
                    "these names, in any order"
                ) from None
            self.classes = self.classes if order is None else [self.classes[place] for place in order]

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Call the function; see `LabelingTeacher.probabilities`."""
        texts = texts_again(texts, "texts")
        return as_probabilities(self.function(list(texts)), len(texts), self.classes, self.problem_type)

    def describe(self) -> dict[str, Any]:
        """Return the function's name and the classes."""
        return {"name": self.name, "question": {"classes": list(self.classes)}, "problem_type": self.problem_type}


def as_teacher(
    teacher: Any, classes: Sequence[str] | None = None, rows_per_call: int | None = None
) -> LabelingTeacher:
    """Make a teacher of what may be a function.

    Args:
        teacher: one of `nlpkd.teachers`, or a function on a list of texts.
        classes: of a function, its classes.
        rows_per_call: of a function, how many texts it gets at once; 32 if None.

    Returns:
        The teacher.

    Raises:
        ValueError: if it is neither, a function comes without classes, or one of `nlpkd.teachers`, which has its own,
            with them.
    """
    if isinstance(teacher, LabelingTeacher):
        if classes is not None or rows_per_call is not None:
            raise ValueError(
                f"classes and rows_per_call are of a function, and a {type(teacher).__name__} has its own (classes="
                f"{list(teacher.classes)[:20]}, rows_per_call={teacher.rows_per_call}): leave them out here"
            )
        return teacher
    if not callable(teacher) or classes is None:
        raise ValueError(
            f"teacher must be one of nlpkd.teachers, or a function on a list of texts with classes= beside it; got "
            f"{teacher!r:.100} and classes={classes!r}"
        )
    return FunctionTeacher(teacher, classes, rows_per_call=ROWS_PER_CALL if rows_per_call is None else rows_per_call)


def classes_of_function(function: Any) -> Classes | None:
    """Return the classes that a function's columns stand for, where it is bound to an estimator that names them.

    Args:
        function: such as scikit-learn's `pipeline.predict_proba`, whose columns are in the order of `classes_`, which
            is sorted.

    Returns:
        The classes in that order; None where nothing names them.
    """
    names = getattr(getattr(function, "__self__", None), "classes_", None)
    return Classes.of(names.tolist()) if isinstance(names, np.ndarray) and names.ndim == 1 else None


def read_words(words: Any, name: str) -> str:
    """Read what describes a class.

    Args:
        words: a text or a number; None where there are none.
        name: of the class.

    Returns:
        The words; the name where there are none.

    Raises:
        ValueError: if they are blank, or of another type.
    """
    if words is None:
        return name
    if not are_numbers(words) and not (isinstance(words, str) and words.strip()):
        raise ValueError(f"the class {name!r} is described by words, got {words!r:.100}: leave them out for its name")
    return str(words)


def as_probabilities(answers: Any, rows: int, classes: Sequence[str], problem_type: str) -> np.ndarray:
    """Check that answers are probabilities over the classes.

    Args:
        answers: `(rows, classes)` numbers.
        rows: how many there must be.
        classes: names of the classes.
        problem_type: in a single-label task each row sums to 1, up to 1e-3.

    Returns:
        Float32 `(rows, classes)`, 1 at most: what is above it by 1e-3 or less was rounded.

    Raises:
        ValueError: if they are not; the first wrong row is named.
    """
    found = as_float64(answers)
    if found.shape != (rows, len(classes)):
        raise ValueError(f"a teacher must answer {rows} texts with {(rows, len(classes))} numbers, got {found.shape}")
    wrong = ~np.isfinite(found).all(axis=1) | (found < 0).any(axis=1) | (found > 1 + ROUNDING).any(axis=1)
    if problem_type != MULTI_LABEL:
        wrong |= ~(np.abs(found.sum(axis=1) - 1) <= ROUNDING)
    if wrong.any():
        row = int(wrong.argmax())
        answer = dict(zip(classes, found[row].tolist(), strict=True))
        needed = "probabilities" if problem_type == MULTI_LABEL else "probabilities that sum to 1"
        raise WrongAnswers(f"the answer to text {row} of {rows} must be {needed}, got {answer}", found)
    return np.minimum(found, 1).astype(np.float32)


def as_float64(given: Any) -> np.ndarray:
    """Read what a function gives for texts: nested lists, arrays, or tensors of any type on any device.

    Args:
        given: numbers.

    Returns:
        Float64, of the same shape.

    Raises:
        ValueError: if they are no numbers.
    """
    try:
        # numpy knows neither gradients nor bf16.
        return np.asarray(given.detach().cpu().double() if hasattr(given, "detach") else given, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            "a teacher must give numbers, a row for each text with one for each class, got "
            f"{type(given).__name__} ({given!r:.100}): {error}"
        ) from None


def batches_by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield the numbers of all rows, `batch_size` at a time and the longest first, so that little is padded."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]

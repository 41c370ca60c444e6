"""One answer of a teacher, and its line in a file of answers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from nlpkd.teachers.base import LabelingTeacher, as_probabilities

_SHORTEST, _LONGEST = 3, 6
"""How many parts of an answer a line has at least and at most."""


class Answer(NamedTuple):
    """The answer to one text.

    Attributes:
        probabilities: one a class; None where the teacher did not answer this text.
        input_tokens: of its prompt; None where the teacher does not count.
        output_tokens: of its answer.
        expected_tokens: of both, as they were expected; files of earlier versions may not have them.
        refusal: why there is no answer; None where there is one.
        of_server: True where the reason is no matter of the text, such as a rate limit: such a refusal does not count.
        refused_twice: whether two runs got none, so that no further one asks.
    """

    probabilities: list[float] | None
    input_tokens: int | None = None
    output_tokens: int | None = None
    expected_tokens: list[int] | None = None
    refusal: str | None = None
    of_server: bool | None = None
    refused_twice: bool = False

    def as_line(self) -> list[Any]:
        """Return the parts that are written: those that are not there at the end are left out."""
        parts = list(self[:_LONGEST])
        while parts[-1] is None and len(parts) > _SHORTEST:
            parts.pop()
        return parts

    def after(self, before: Answer | None) -> Answer:
        """Count the refusals of a text: this answer's, and that of the one before, if there is one."""
        counts = [each is not None and each.refusal is not None and not each.of_server for each in (before, self)]
        return self._replace(refused_twice=all(counts))


def key_of(text: str) -> str:
    """Return the hash by which the answer to a text is kept."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def read_answer_lines(lines: Iterable[Any]) -> dict[str, Answer]:
    """Read the lines of a file of answers, each a text's hash and the parts of an answer.

    Args:
        lines: the lines; of two with one hash the later one holds.

    Returns:
        The answers by hash. What a teacher that has answered no text at all refuses is no matter of the texts.
    """
    found: dict[str, Answer] = {}
    for key, *parts in lines:
        found[str(key)] = Answer(*parts[:_LONGEST]).after(found.get(str(key)))
    if all(each.refusal is not None for each in found.values()):
        return {key: each._replace(refused_twice=False) for key, each in found.items()}
    return found


def check_answers(answers: Sequence[Answer], teacher: LabelingTeacher) -> None:
    """Refuse answers that are no distributions, tokens that are no numbers, and refusals without a reason.

    Args:
        answers: as they were read.
        teacher: whose they are.

    Raises:
        ValueError: it names the first one.
    """
    given = [each.probabilities for each in answers if each.refusal is None]
    if given:
        as_probabilities(given, len(given), teacher.classes, teacher.problem_type)
    for each in answers:
        expected = [0, 0] if each.expected_tokens is None else each.expected_tokens
        counts = {type(number) for number in (each.input_tokens, each.output_tokens, *expected)}
        if not counts <= {int, type(None)} or len(expected) != 2 or None in expected:
            raise ValueError(f"no numbers of tokens: {each!r:.100}")
        if each.refusal is not None and (each.probabilities is not None or not isinstance(each.refusal, str)):
            raise ValueError(f"no reason of a refusal: {each!r:.100}")
        if each.of_server not in ((None,) if each.refusal is None else (None, True)):
            raise ValueError(f"nothing that tells whose a refusal is: {each!r:.100}")

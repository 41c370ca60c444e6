"""A teacher's answers: asked for side by side, each text once, and kept as they come."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from nlpkd.labelling.answer import Answer, check_answers, read_answers
from nlpkd.labelling.budget import Budget, LabelPlan, Prices
from nlpkd.teachers.base import Answers, LabelingTeacher, WrongAnswers, as_probabilities
from nlpkd.utils.files import explain_damage, explain_full_disk
from nlpkd.utils.links import open_no_link, refuse_links
from nlpkd.utils.locks import lock_of
from nlpkd.utils.processes import sigterm_as_exit
from nlpkd.utils.provenance import differences

logger = logging.getLogger(__name__)

_MOST_FAILURES = 20
"""So many texts in a row that are not answered are no matter of these texts any more."""

_MOST_TOLD, _LONGEST = 10, 300
"""How many refusals are told, and the letters of a reason."""


class AnswerFile:
    """Answers of one teacher, a line of JSON each, after a first line that says whose they are.

    Args:
        path: the file.
        teacher: whose answers it holds.

    Attributes:
        requests: that were sent through this object.
    """

    def __init__(self, path: Path, teacher: LabelingTeacher):
        self.path = path
        self.teacher = teacher.asked
        self.requests = 0
        # What got no answer through this object is asked about by another run.
        self._refused: set[str] = set()
        described = json.loads(json.dumps(self.teacher.describe()))
        self.owner = {"classes": list(teacher.classes), "teacher": described}

    def read(self) -> dict[str, Answer]:
        """Return the answers by the texts' hashes; a last line that was cut short by a kill is dropped.

        Raises:
            ValueError: if they are another teacher's, or of other weights of its model, or no answers.
        """
        if not self.path.exists():
            return {}
        lines = self.path.read_bytes().split(b"\n")[:-1]
        with explain_damage(self.path, "delete it, and all texts are asked about again; or give another output"):
            owner, *found = map(json.loads, lines) if lines else [self.owner]
            differ = differences(_flat(owner), _flat(self.owner), "the file")
            answers = {} if differ else read_answers(found)
            check_answers(list(answers.values()), self.teacher)
        if differ:
            raise ValueError(
                f"{self.path} holds the answers of another teacher or question, or of other weights of the model, "
                f"which earlier versions did not note (what differs: {'; '.join(differ):.600}): delete it, or give "
                "another output"
            )
        return answers

    def plan(self, texts: Sequence[str], prices: Prices | None = None) -> LabelPlan:
        """Count what is left to ask about these texts; nothing is asked."""
        known, distinct = self.read(), dict.fromkeys(texts)
        left = self._open(texts, known)
        calls = len(_groups(left, self.teacher.rows_per_call))
        tokens = [self.teacher.expected_tokens(text) for text in left]
        asked, answered = (sum(each[place] for each in tokens) for place in (0, 1))
        return LabelPlan(
            rows=len(texts),
            texts=len(distinct),
            known=len(distinct) - len(left),
            calls=calls,
            letters=sum(map(len, left)),
            requests=calls * self.teacher.requests_per_call,
            input_tokens=asked,
            output_tokens=answered,
            cost=None if prices is None else prices.cost(asked, answered),
        )

    def kept(self, texts: Sequence[str]) -> int:
        """Count the texts that an earlier run has answered, each text once."""
        return len({*texts}) - len(self._open(texts, self.read()))

    def _open(self, texts: Sequence[str], known: Mapping[str, Answer], once_more: bool = True) -> list[str]:
        """Return the texts that are to be asked about, each once."""

        def is_open(key: str) -> bool:
            each = known.get(key)
            again = each is not None and each.refusal is not None and not each.twice and key not in self._refused
            return each is None or (again and once_more)

        return [text for text in dict.fromkeys(texts) if is_open(_key(text))]

    def ask(
        self,
        texts: Sequence[str],
        budget: Budget | None = None,
        names: Sequence[str] | None = None,
        *,
        once_more: bool = True,
    ) -> list[Answer]:
        """Answer all texts: with what is there, and else by asking, each text once.

        What the teacher does not answer, or with no distribution, is kept as a refusal, and told at the end. The next
        run asks about it once more, and later ones do not.

        Args:
            texts: the texts.
            budget: the limits.
            names: what each text is called in messages; "row" and its number if None.
            once_more: whether to ask about what an earlier run got no answer to.

        Returns:
            One answer a text.

        Raises:
            ValueError: if another run is asking, the teacher answers none of the texts, or not so many of them in a
                row that it seems to answer none any more (the first one's row is named), or the budget does not
                suffice; what was answered is kept.
        """
        known, budget = self.read(), budget or Budget()
        called = dict(reversed(list(zip(texts, names or [f"row {n}" for n in range(len(texts))], strict=True))))
        if self._open(texts, known, once_more):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with lock_of(self.path.with_name(self.path.name + ".lock"), f"appending to {self.path}"):
                known = self.read()
                self._ask_for_missing(self._open(texts, known, once_more), called, known, budget)
        refused = [f"{called[text]} ({known[_key(text)].refusal})" for text in called if known[_key(text)].refusal]
        if refused:
            told = "; ".join(refused[::-1][:_MOST_TOLD]) + (" ..." if len(refused) > _MOST_TOLD else "")
            logger.warning(
                "The teacher did not answer %d texts, which are left out: %s. At most one further run asks about "
                "them, unless their lines, those with null, are deleted from %s.",
                len(refused), told, self.path,
            )  # fmt: skip
        return [known[_key(text)] for text in texts]

    def _ask_for_missing(
        self, texts: Sequence[str], called: Mapping[str, str], known: dict[str, Answer], budget: Budget
    ) -> None:
        groups = _groups(texts, self.teacher.rows_per_call)
        at_hand = {_key(text): text for text in called}
        spending = _Spending(self.teacher, budget, known, at_hand, self.requests)
        failed = "answers were not kept. Free some space, and run again: those before them are kept"
        with explain_full_disk(self.path, failed), sigterm_as_exit(), self._append() as file:
            asking = _Asking(self.teacher, called, known, spending, file)
            try:
                asked = asking.ask(groups)
            finally:
                self.requests = spending.requests
                self._refused |= {key for key, each in asking.answers.items() if each.refusal}
        known |= asking.answers
        if asked < len(groups):
            raise ValueError(
                f"{spending.reached} was reached: {len(groups) - asked} calls are left of {len(groups)}. The "
                f"answers are kept in {self.path}; run again to go on"
            )

    def _append(self) -> IO[bytes]:
        """Open the file for further answers, behind its last whole line; it must be no link."""
        refuse_links(self.path.parent, self.path.name)
        file = open(self.path, "a+b", opener=open_no_link)  # noqa: SIM115
        file.seek(0)
        end = file.read().rfind(b"\n") + 1
        file.truncate(end)
        if end == 0:
            file.write(json.dumps(self.owner).encode() + b"\n")
            file.flush()
        return file


class _Spending:
    """Requests and cost of a run, as they are known so far.

    A call is allowed where what was spent, what the running calls are expected to cost and what it is expected to cost
    itself stay within the budget. Once calls have been counted, the largest ratio of what one has cost to what was
    expected of it corrects all further expectations.
    """

    def __init__(
        self, teacher: LabelingTeacher, budget: Budget, known: Mapping[str, Answer], texts: Mapping[str, str],
        requests: int,
    ):  # fmt: skip
        self.teacher, self.budget, self.reached = teacher, budget, ""
        self.requests, self.running = requests, 0.0
        self.spent = self._cost([self._tokens(each, texts.get(key)) for key, each in known.items()])
        self.ratios: list[float] = []

    def _tokens(self, answer: Answer, text: str | None) -> tuple[int, int]:
        """Return what a kept answer took: as it was counted, and else as was expected."""
        if answer.input_tokens is not None and answer.output_tokens is not None:
            return answer.input_tokens, answer.output_tokens
        if answer.expected_tokens is not None:
            return answer.expected_tokens[0], answer.expected_tokens[1]
        return (0, 0) if text is None else self.teacher.expected_tokens(text)

    def allows(self, group: Sequence[str]) -> bool:
        """Check whether a call stays within the budget, and count it if so."""
        requests = self.requests + self.teacher.requests_per_call
        if self.budget.max_requests is not None and requests > self.budget.max_requests:
            self.reached = f"max_requests={self.budget.max_requests}"
            return False
        cost = self._expect(group)
        coming = max(self.ratios, default=1.0) * (self.running + cost)
        if self.budget.max_cost is not None and self.spent + coming > self.budget.max_cost:
            self.reached = f"max_cost={self.budget.max_cost} (spent: {self.spent:.6g})"
            return False
        self.requests, self.running = requests, self.running + cost
        return True

    def book(self, group: Sequence[str], found: Answers | None) -> None:
        """Count what a call has cost; the expected cost where the teacher does not count its tokens, or failed."""
        expected = cost = self._expect(group)
        self.running -= expected
        if found is not None and found.input_tokens is not None and found.output_tokens is not None:
            cost = self._cost(list(zip(found.input_tokens, found.output_tokens, strict=True)))
        self.spent += cost
        if expected:
            self.ratios.append(cost / expected)

    def _expect(self, group: Sequence[str]) -> float:
        return self._cost([self.teacher.expected_tokens(text) for text in group]) if self.budget.prices else 0.0

    def _cost(self, tokens: Sequence[tuple[int, int]]) -> float:
        prices = self.budget.prices or Prices()
        return sum(prices.cost(*each) for each in tokens)


class _Asking:
    """Calls of a teacher side by side, each of which keeps its own answers.

    What ends the run, Ctrl-C too, comes to the thread that starts the calls. Those that run are waited for, and what
    they answer, which may have been paid for, is kept.

    Args:
        teacher: whom to ask.
        called: what each text is called in messages.
        known: what earlier runs got, answers and refusals.
        spending: counts the calls.
        file: where answers are kept.

    Attributes:
        answers: by the texts' hashes.
    """

    def __init__(
        self, teacher: LabelingTeacher, called: Mapping[str, str], known: Mapping[str, Answer], spending: _Spending,
        file: IO[bytes],
    ):  # fmt: skip
        self.teacher, self.called, self.known, self.spending, self.file = teacher, called, known, spending, file
        self.answers: dict[str, Answer] = {}
        # Why texts were not answered, until a later answer shows that the teacher is still there.
        self._failed: dict[str, str] = {}
        self._lock = threading.Lock()

    def ask(self, groups: Sequence[list[str]]) -> int:
        """Ask about groups of texts, no more than `teacher.concurrency` at a time, until the budget is spent.

        Args:
            groups: the texts of each call.

        Returns:
            How many calls were made.

        Raises:
            ValueError: if no text is answered, or too many of them in a row are not; the first one is named.
        """
        asked, running = 0, set[Future[None]]()
        with ThreadPoolExecutor(self.teacher.concurrency) as pool:
            try:
                for group in groups:
                    while len(running) >= self.teacher.concurrency:
                        done, running = wait(running, return_when=FIRST_COMPLETED)
                        for call in done:
                            call.result()
                    with self._lock:
                        if not self.spending.allows(group):
                            break
                    running.add(pool.submit(self._call, group))
                    asked += 1
                for call in running:
                    call.result()
                if self._failed and not any(each.refusal is None for each in self.answers.values()):
                    raise ValueError(self._first_failure())
                self._refuse_failed()
            except BaseException:
                if left := sum(not call.done() for call in running):
                    logger.warning("Stopping: calls under way (%d) are waited for, and their answers kept.", left)
                raise
        return asked

    def _call(self, group: list[str]) -> None:
        found, failed = None, dict[str, str]()
        answered_texts = group
        try:
            answered = self.teacher.answer(group)
            found = replace(answered, probabilities=self._checked(answered.probabilities, len(group)))
        except WrongAnswers as error:
            # The others of the call are right, and may have been paid for.
            failed = {text: self._why(row) for text, row in zip(group, error.answers, strict=True) if self._why(row)}
            answered_texts = [text for text in group if text not in failed]
            right = [row for text, row in zip(group, error.answers, strict=True) if text not in failed]
            found = Answers(self._checked(right, len(right))) if right else None
        except ValueError as error:
            if len(group) > 1:
                raise ValueError(
                    f"{len(group)} texts from {self.called[group[0]]} on ({group[0]!r:.80}): {error}"
                ) from None
            failed = {group[0]: str(error)}
        finally:
            with self._lock:
                self.spending.book(group, found)
                if found is not None:
                    self._refuse_failed()
                    self._keep(answered_texts, found)
                again = {text: reason for text, reason in failed.items() if _key(text) in self.known}
                self._refuse(again)
                self._failed |= {text: reason for text, reason in failed.items() if text not in again}
                if len(self._failed) >= _MOST_FAILURES:
                    raise ValueError(f"{self._first_failure()}; and {len(self._failed) - 1} more in a row")

    def _checked(self, probabilities: Any, rows: int) -> np.ndarray:
        return as_probabilities(probabilities, rows, self.teacher.classes, self.teacher.problem_type)

    def _why(self, answer: np.ndarray) -> str:
        """Say why an answer is none; nothing if it is one."""
        try:
            self._checked([answer], 1)
        except ValueError as error:
            return str(error)
        return ""

    def _first_failure(self) -> str:
        text, reason = next(iter(self._failed.items()))
        return f"{self.called[text]} ({text!r:.80}): {reason}"

    def _keep(self, texts: Sequence[str], found: Answers) -> None:
        """Append answers, which a kill of this process no longer loses."""
        unknown = [None] * len(texts)
        parts = (found.probabilities.tolist(), found.input_tokens or unknown, found.output_tokens or unknown)
        self._write({text: Answer(*each) for text, *each in zip(texts, *parts, strict=True)})

    def _refuse_failed(self) -> None:
        self._refuse(self._failed)
        self._failed = {}

    def _refuse(self, failed: Mapping[str, str]) -> None:
        """Append what was not answered as what the teacher says of these texts."""
        self._write({text: Answer(None, refusal=f"{reason:.{_LONGEST}}") for text, reason in failed.items()})

    def _write(self, new: Mapping[str, Answer]) -> None:
        for text, answer in new.items():
            if answer.input_tokens is None or answer.output_tokens is None:
                answer = answer._replace(expected_tokens=list(self.teacher.expected_tokens(text)))
            self.answers[_key(text)] = answer
            self.file.write(json.dumps([_key(text), *answer.as_line()]).encode() + b"\n")
        self.file.flush()


def _groups(texts: Sequence[str], size: int) -> list[list[str]]:
    return [list(texts[start : start + size]) for start in range(0, len(texts), size)]


def _key(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _flat(owner: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of a teacher and its classes by single names."""
    return {"classes": owner["classes"], **owner["teacher"]}

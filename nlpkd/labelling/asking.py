"""Calls of a teacher side by side, each of which keeps its own answers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

import numpy as np

from nlpkd.labelling.answer import Answer, key_of
from nlpkd.labelling.spending import Spending
from nlpkd.teachers.base import Answers, LabelingTeacher, WrongAnswers, as_probabilities
from nlpkd.utils.http import NoReply, NotServing

logger = logging.getLogger(__name__)

_MOST_FAILURES = 20
"""So many texts in a row that are not answered are no matter of these texts any more."""

_LONGEST = 300
"""The letters of a reason."""


class Asking:
    """Calls of a teacher side by side, each of which keeps its own answers.

    What ends the run, Ctrl-C too, comes to the thread that starts the calls. Those that run are waited for, and what
    they answer, which may have been paid for, is kept.

    Args:
        teacher: whom to ask.
        called: what each text is called in messages.
        known: what earlier runs got, answers and refusals.
        spending: counts the calls.
        keep: keeps answers by the texts' hashes.
        kept: whether a further run finds them.

    Attributes:
        answers: by the texts' hashes.
        unanswered: the hashes of texts that were asked about without an answer.
        cut: how many of the texts that were answered lost tokens; see `Answers`, as for the next one.
        most_tokens: that the teacher reads of a text.
    """

    def __init__(
        self, teacher: LabelingTeacher, called: Mapping[str, str], known: Mapping[str, Answer], spending: Spending,
        keep: Callable[[Mapping[str, Answer]], None], kept: bool = True,
    ):  # fmt: skip
        self.teacher, self.called, self.known, self.spending, self.keep = teacher, called, known, spending, keep
        self.kept = kept
        self.answers: dict[str, Answer] = {}
        self.unanswered: set[str] = set()
        self.cut = 0
        self.most_tokens: int | None = None
        # Why texts were not answered since the last answer, and those of them that no server replied to.
        self._failed: dict[str, str] = {}
        self._no_reply: dict[str, str] = {}
        # Texts whose failure was no matter of them.
        self._not_served: set[str] = set()
        self._lock = threading.Lock()

    def ask(self, groups: Sequence[list[str]]) -> int:
        """Ask about groups of texts, no more than `teacher.concurrency` at a time, until the budget is spent.

        Args:
            groups: the texts of each call.

        Returns:
            How many calls were made.

        Raises:
            ValueError: if a server replies to no text, or too many of them in a row are not answered; the first one
                is named.
        """
        asked, running = 0, set[Future[None]]()
        if self.teacher.concurrency == 1 and not self.kept:
            # In the caller's thread, where a function may have what it needs: nothing is lost of a call that is cut.
            for group in groups:
                if not self.spending.allows(group):
                    break
                self._call(group)
                asked += 1
            self._refuse_no_reply()
            return asked
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
                self._refuse_no_reply()
            except BaseException:
                if left := sum(not call.done() for call in running):
                    logger.warning("Stopping: calls under way (%d) are waited for, and their answers kept.", left)
                raise
        return asked

    def _refuse_no_reply(self) -> None:
        """End a run in which a server replied to no text; what an earlier run got no answer to is no matter of it."""
        new = {text: reason for text, reason in self._no_reply.items() if key_of(text) not in self.known}
        if new and not any(each.refusal is None for each in self.answers.values()):
            raise ValueError(self._first(new))

    def _call(self, group: list[str]) -> None:
        found, failed, no_reply, not_served = None, dict[str, str](), dict[str, str](), set[str]()
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
            if isinstance(error, NoReply):
                no_reply = {group[0]: str(error)}
                not_served = {group[0]} if isinstance(error, NotServing) else set()
            else:
                failed = {group[0]: str(error)}
        finally:
            with self._lock:
                self.spending.book(group, found)
                self._not_served |= not_served
                if found is not None:
                    self.cut, self.most_tokens = self.cut + found.cut, found.most_tokens
                    self._server_is_there()
                    self._keep(answered_texts, found)
                self._count_failures(failed, no_reply)

    def _server_is_there(self) -> None:
        """Note that what got no reply before was a matter of these texts, unless the server says otherwise."""
        held = {text: reason for text, reason in self._no_reply.items() if text not in self._not_served}
        self._refuse({text: reason for text, reason in held.items() if key_of(text) in self.known})
        self._failed, self._no_reply = {}, {}

    def _count_failures(self, refused: Mapping[str, str], no_reply: Mapping[str, str]) -> None:
        """Keep why texts were not answered, and end the run where there are too many in a row.

        A text's first failure is kept whatever it was, since one more run asks about it. The second one is the last:
        no server that is away, or serves nobody, can make it. What is refused for the second time was passed by a
        run, and ends none.
        """
        keys = {text: key_of(text) for text in [*refused, *no_reply]}
        known = {text for text, key in keys.items() if key in self.known}
        self.unanswered |= {*keys.values()}
        self._refuse(refused)
        self._refuse({text: reason for text, reason in no_reply.items() if text not in known})
        self._no_reply |= no_reply
        self._failed |= no_reply
        # A run that is ended goes on behind what was refused, if it finds that.
        self._failed |= {text: reason for text, reason in refused.items() if text not in known and self.kept}
        if len(self._failed) >= _MOST_FAILURES:
            raise ValueError(f"{self._first(self._failed)}; and {len(self._failed) - 1} more in a row")

    def _checked(self, probabilities: Any, rows: int) -> np.ndarray:
        return as_probabilities(probabilities, rows, self.teacher.classes, self.teacher.problem_type)

    def _why(self, answer: np.ndarray) -> str:
        """Say why an answer is none; nothing if it is one."""
        try:
            self._checked([answer], 1)
        except ValueError as error:
            return str(error)
        return ""

    def _first(self, failed: Mapping[str, str]) -> str:
        text, reason = next(iter(failed.items()))
        return f"{self.called[text]} ({text!r:.80}): {reason}"

    def _keep(self, texts: Sequence[str], found: Answers) -> None:
        """Append answers, which a kill of this process no longer loses."""
        unknown = [None] * len(texts)
        parts = (found.probabilities.tolist(), found.input_tokens or unknown, found.output_tokens or unknown)
        self._write({text: Answer(*each) for text, *each in zip(texts, *parts, strict=True)})

    def _refuse(self, failed: Mapping[str, str]) -> None:
        """Append what was not answered as what the teacher says of these texts."""
        of_server = {text: text in self._not_served or None for text in failed}
        reasons = {text: f"{reason:.{_LONGEST}}" for text, reason in failed.items()}
        self._write({text: Answer(None, refusal=reasons[text], of_server=of_server[text]) for text in failed})

    def _write(self, new: Mapping[str, Answer]) -> None:
        kept = dict[str, Answer]()
        for text, answer in new.items():
            expected = list(self.teacher.expected_tokens(text))
            kept[key_of(text)] = answer.after(self.known.get(key_of(text)))._replace(expected_tokens=expected)
        self.answers |= kept
        self.keep(kept)

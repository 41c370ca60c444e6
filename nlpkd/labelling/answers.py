"""A teacher's answers: asked for side by side, each text once, and kept as they come."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from nlpkd.labelling.answer import Answer, check_answers, key_of, read_answer_lines
from nlpkd.labelling.asking import Asking
from nlpkd.labelling.costs import LabelPlan, Prices, SpendingLimits
from nlpkd.labelling.spending import Spending
from nlpkd.teachers.base import LabelingTeacher, say_once, tell_cut
from nlpkd.utils.disk.files import cut_torn_line, explain_damage
from nlpkd.utils.disk.full_disk import explain_full_disk
from nlpkd.utils.disk.links import open_no_link, refuse_links
from nlpkd.utils.disk.locks import lock_of
from nlpkd.utils.fingerprints import differences
from nlpkd.utils.processes import sigterm_as_exit

logger = logging.getLogger(__name__)

_MOST_TOLD = 10
"""How many refusals are told."""


class NoneAnswered(ValueError):
    """A teacher that is there refuses all texts that it is asked about."""


class AnswerFile:
    """Answers of one teacher, a line of JSON each, after a first line that says whose they are.

    Args:
        path: the file; None keeps them in memory, as long as this object lives.
        teacher: whose answers it holds.

    Attributes:
        requests: that were sent through this object.
    """

    def __init__(self, path: Path | None, teacher: LabelingTeacher):
        self.path = path
        self.teacher = teacher.asked
        self.requests = 0
        # What got no answer through this object is asked about by another run.
        self._refused: set[str] = set()
        self._in_memory: dict[str, Answer] = {}

    @functools.cached_property
    def owner(self) -> dict[str, Any]:
        """Whose answers they are: the classes, and what the teacher says of itself."""
        described = json.loads(json.dumps(self.teacher.describe()))
        return {"classes": list(self.teacher.classes), "teacher": described}

    def read(self) -> dict[str, Answer]:
        """Return the answers by the texts' hashes; a last line that was cut short by a kill is dropped.

        Raises:
            ValueError: if they are another teacher's, or of other weights of its model, or no answers.
        """
        if self.path is None or not self.path.exists():
            return dict(self._in_memory)
        lines = self.path.read_bytes().split(b"\n")[:-1]
        with explain_damage(self.path, "delete it, and all texts are asked about again; or give another output"):
            owner, *found = map(json.loads, lines) if lines else [self.owner]
            differ = differences(_flat(owner), _flat(self.owner), "the file")
            of_earlier = self.teacher.way is not None and "way" not in owner
            answers = {} if differ else read_answer_lines(found)
            check_answers(list(answers.values()), self.teacher)
        if differ:
            raise ValueError(
                f"{self.path} holds the answers of another teacher or question, or of other weights of the model, "
                f"which earlier versions did not note (what differs: {'; '.join(differ):.600}): delete it, or give "
                "another output"
            )
        if of_earlier and answers:
            say_once(
                f"{self.path} holds answers of an earlier version of nlpkd, which did not ask {self.teacher.way}. "
                "They are taken, since the question is the same. To ask again, delete the file, or give another "
                "output."
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
        return len({*texts}) - len(self.unanswered(texts))

    def unanswered(self, texts: Sequence[str]) -> list[str]:
        """Return the texts that a run would ask about, each once."""
        return self._open(texts, self.read())

    def _open(self, texts: Sequence[str], known: Mapping[str, Answer], once_more: bool = True) -> list[str]:
        """Return the texts that are to be asked about, each once."""

        def is_open(key: str) -> bool:
            each = known.get(key)
            if each is None:
                return True
            refused_once = each.refusal is not None and not each.refused_twice
            return once_more and refused_once and key not in self._refused

        return [text for text in dict.fromkeys(texts) if is_open(key_of(text))]

    def ask(
        self,
        texts: Sequence[str],
        limits: SpendingLimits | None = None,
        names: Sequence[str] | None = None,
        *,
        once_more: bool = True,
    ) -> list[Answer]:
        """Answer all texts: with what is there, and else by asking, each text once.

        What the teacher does not answer, or with no distribution, is kept as a refusal, and told at the end. The next
        run asks about it once more, and later ones do not, unless it was no matter of the text: a server that is away
        or serves nobody now.

        Args:
            texts: the texts.
            limits: the limits.
            names: what each text is called in messages; "row" and its number if None.
            once_more: whether to ask about what an earlier run got no answer to.

        Returns:
            One answer a text.

        Raises:
            NoneAnswered: if the teacher refuses all of the texts.
            ValueError: if another run is asking, the teacher can't be had, or does not answer so many texts in a row
                that it seems to answer none any more (the first one's row is named), or the limits do not suffice;
                what was answered is kept, and what was refused too.
        """
        known, limits = self.read(), limits or SpendingLimits()
        called: dict[str, str] = {}
        for text, name in zip(texts, names or [f"row {number}" for number in range(len(texts))], strict=True):
            called.setdefault(text, name)
        if self._open(texts, known, once_more):
            with self._locked():
                known = self.read()
                self._ask_for_missing(self._open(texts, known, once_more), called, known, limits)
        self._tell_refusals({text: why for text in called if (why := known[key_of(text)]).refusal}, called)
        return [known[key_of(text)] for text in texts]

    def _tell_refusals(self, refused: Mapping[str, Answer], called: Mapping[str, str]) -> None:
        """Tell which texts have no answer; it is an error where none has one."""
        if not refused:
            return
        if len(refused) == len(called):
            text, why = next(iter(refused.items()))
            kept = (
                "" if self.path is None else f"; to ask again, delete their lines, those with null, from {self.path}"
            )
            raise NoneAnswered(
                f"{called[text]} ({text!r:.80}): {why.refusal}. The teacher answers none of {len(refused)} texts{kept}"
            )
        told = "; ".join([f"{called[text]} ({why.refusal})" for text, why in refused.items()][:_MOST_TOLD])
        more = " ..." if len(refused) > _MOST_TOLD else ""
        given_up = sum(why.refused_twice for why in refused.values())
        later = f"The next run asks again about {len(refused) - given_up} of them"
        if given_up:
            later += f", and about {given_up} none does, unless their lines, those with null, are deleted"
        kept = "" if self.path is None else f" {later} (answers: {self.path})."
        logger.warning(
            "The teacher did not answer %d texts, which get no label from it: %s%s.%s", len(refused), told, more, kept
        )

    def _ask_for_missing(
        self, texts: Sequence[str], called: Mapping[str, str], known: dict[str, Answer], limits: SpendingLimits
    ) -> None:
        groups = _groups(texts, self.teacher.rows_per_call)
        at_hand = {key_of(text): text for text in called}
        spending = Spending(self.teacher, limits, known, at_hand, self.requests)
        with sigterm_as_exit(), self._keeping() as keep:
            asking = Asking(self.teacher, called, known, spending, keep, kept=self.path is not None)
            try:
                asked = asking.ask(groups)
            finally:
                self.requests = spending.requests
                tell_cut(asking.cut, len(asking.answers), asking.most_tokens)
                self._refused |= asking.unanswered
        known |= asking.answers
        if asked < len(groups):
            kept = "" if self.path is None else f". The answers are kept in {self.path}; run again to go on"
            raise ValueError(
                f"{spending.reached} was reached: {len(groups) - asked} calls are left of {len(groups)}{kept}"
            )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let no other process append to the file."""
        if self.path is None:
            yield
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with lock_of(self.path.with_name(self.path.name + ".lock"), f"appending to {self.path}"):
            yield

    @contextmanager
    def _keeping(self) -> Iterator[Callable[[Mapping[str, Answer]], None]]:
        """Give a function that keeps answers: in memory, or as lines which a kill of this process no longer loses."""
        if self.path is None:
            yield self._in_memory.update
            return
        failed = "answers were not kept. Free some space, and run again: those before them are kept"
        with explain_full_disk(self.path, failed), self._append(self.path) as file:

            def keep(answers: Mapping[str, Answer]) -> None:
                file.writelines(json.dumps([key, *each.as_line()]).encode() + b"\n" for key, each in answers.items())
                file.flush()

            yield keep

    def _append(self, path: Path) -> IO[bytes]:
        """Open the file for further answers, behind its last whole line; it must be no link."""
        refuse_links(path.parent, path.name)
        file = open(path, "a+b", opener=open_no_link)  # noqa: SIM115
        if cut_torn_line(file) == 0:
            way = {} if self.teacher.way is None else {"way": self.teacher.way}
            file.write(json.dumps(self.owner | way).encode() + b"\n")
            file.flush()
        return file


def _groups(texts: Sequence[str], size: int) -> list[list[str]]:
    return [list(texts[start : start + size]) for start in range(0, len(texts), size)]


def _flat(owner: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of a teacher and its classes by single names."""
    return {"classes": owner["classes"], **owner["teacher"]}

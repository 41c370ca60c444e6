"""What a run of a labelling has spent, and what it may still ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nlpkd.labelling.answer import Answer
from nlpkd.labelling.costs import Prices, SpendingLimits
from nlpkd.teachers.base import Answers, LabelingTeacher


class Spending:
    """Requests and cost of a run, as they are known so far.

    A call is allowed where what was spent, what the running calls are expected to cost and what it is expected to cost
    itself stay within the limits. Once calls have been counted, by this run or an earlier one, the largest ratio of
    what one has cost to what was expected of it corrects all further expectations.
    """

    def __init__(
        self, teacher: LabelingTeacher, limits: SpendingLimits, known: Mapping[str, Answer], texts: Mapping[str, str],
        requests: int,
    ):  # fmt: skip
        self.teacher, self.limits, self.reached = teacher, limits, ""
        self.requests, self.running = requests, 0.0
        self.spent, self.ratios = 0.0, list[float]()
        for key, each in known.items():
            expected = self._expected(each, texts.get(key))
            self._count(self._cost([expected]), self._cost([_counted(each) or expected]))

    def _expected(self, answer: Answer, text: str | None) -> tuple[int, int]:
        """Return what was expected of a kept answer; nothing where nobody knows."""
        if answer.expected_tokens is not None:
            return answer.expected_tokens[0], answer.expected_tokens[1]
        return (0, 0) if text is None else self.teacher.expected_tokens(text)

    def _count(self, expected: float, cost: float) -> None:
        self.spent += cost
        if expected:
            self.ratios.append(cost / expected)

    def allows(self, group: Sequence[str]) -> bool:
        """Check whether a call stays within the limits, and count it if so."""
        requests = self.requests + self.teacher.requests_per_call
        if self.limits.max_requests is not None and requests > self.limits.max_requests:
            self.reached = f"max_requests={self.limits.max_requests}"
            return False
        cost = self._expect(group)
        coming = max(self.ratios, default=1.0) * (self.running + cost)
        if self.limits.max_cost is not None and self.spent + coming > self.limits.max_cost:
            self.reached = f"max_cost={self.limits.max_cost} (spent: {self.spent:.6g})"
            return False
        self.requests, self.running = requests, self.running + cost
        return True

    def book(self, group: Sequence[str], found: Answers | None) -> None:
        """Count what a call has cost; the expected cost where the teacher does not count its tokens, or failed."""
        expected = cost = self._expect(group)
        self.running -= expected
        if found is not None and found.input_tokens is not None and found.output_tokens is not None:
            cost = self._cost(list(zip(found.input_tokens, found.output_tokens, strict=True)))
        self._count(expected, cost)

    def _expect(self, group: Sequence[str]) -> float:
        return self._cost([self.teacher.expected_tokens(text) for text in group]) if self.limits.prices else 0.0

    def _cost(self, tokens: Sequence[tuple[int, int]]) -> float:
        prices = self.limits.prices or Prices()
        return sum(prices.cost(*each) for each in tokens)


def _counted(answer: Answer) -> tuple[int, int] | None:
    """Return the tokens that a server counted for a kept answer, if it did."""
    if answer.input_tokens is None or answer.output_tokens is None:
        return None
    return answer.input_tokens, answer.output_tokens

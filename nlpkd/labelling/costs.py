"""What a labelling takes: requests, tokens, cost, and the limits on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from nlpkd.utils.field_types import check_field_types


@dataclass(frozen=True)
class Prices:
    """What tokens cost, in any currency.

    Attributes:
        input: of a million tokens of the prompts.
        output: of a million tokens of the answers.
    """

    input: float = 0.0
    output: float = 0.0

    def __post_init__(self) -> None:
        check_field_types(self, may_be_infinite=("input", "output"))
        if not (0 <= self.input < math.inf and 0 <= self.output < math.inf):
            raise ValueError(
                f"prices must be finite and not negative, got {self.input} and {self.output} a million tokens"
            )

    def cost(self, input_tokens: float, output_tokens: float) -> float:
        """Return the cost of so many tokens."""
        return (self.input * input_tokens + self.output * output_tokens) / 1e6


@dataclass(frozen=True)
class SpendingLimits:
    """The limits of a labelling.

    Attributes:
        max_requests: how many requests this run may send at most.
        max_cost: how much all answers that are kept in one file may cost at most, those of earlier runs included.
        prices: what tokens cost.
    """

    max_requests: int | None = None
    max_cost: float | None = None
    prices: Prices | None = None

    def __post_init__(self) -> None:
        check_field_types(self, may_be_infinite=("max_cost",))
        if self.max_cost is not None and self.prices is None:
            raise ValueError(
                f"max_cost={self.max_cost} needs the prices of tokens: give prices=Prices(input, output) "
                "(--input-price, --output-price)"
            )
        if not ((self.max_requests or 0) >= 0 and (self.max_cost or 0) >= 0):
            raise ValueError(
                f"limits must be numbers of at least 0, got {self.max_requests} requests and {self.max_cost}"
            )

    @classmethod
    def of(
        cls,
        max_requests: int | None = None,
        max_cost: float | None = None,
        prices: Prices | Sequence[float] | None = None,
    ) -> SpendingLimits:
        """Take limits and prices as the functions of nlpkd take them.

        Args:
            max_requests: see the attribute.
            max_cost: likewise.
            prices: of a million tokens of prompts and of answers.

        Raises:
            ValueError: if they are no limits and prices.
        """
        return cls(max_requests, max_cost, prices if prices is None or isinstance(prices, Prices) else Prices(*prices))


@dataclass(frozen=True)
class LabelPlan:
    """What a labelling will ask.

    Attributes:
        rows: of the source, and with gold labels.
        texts: that differ; each is asked about once.
        known: of these, how many have been answered by an earlier run.
        calls: of the teacher that are left.
        letters: of the texts that are left.
        requests: to a server, or forward passes, that these calls make.
        input_tokens: of the prompts, as the teacher expects them.
        output_tokens: of the answers, likewise.
        cost: of these tokens, None without prices.
    """

    rows: int
    texts: int
    known: int
    calls: int
    letters: int
    requests: int
    input_tokens: int
    output_tokens: int
    cost: float | None = None

    def to_text(self) -> str:
        """Return one line for each number; what is expected is marked by "about"."""
        lines = [f"{name}: {getattr(self, name):,}" for name in ("rows", "texts", "known", "calls", "letters")]
        lines += [f"requests: {self.requests:,}"]
        lines += [f"{name.replace('_', ' ')}: about {getattr(self, name):,}" for name in _EXPECTED]
        return "\n".join(lines + ([] if self.cost is None else [f"cost: about {self.cost:.4f}"]))


_EXPECTED = [each.name for each in fields(LabelPlan) if each.name.endswith("_tokens")]

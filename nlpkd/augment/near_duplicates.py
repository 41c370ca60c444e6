"""Which texts nearly equal one that is kept out: by the runs of characters that they share."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from nlpkd.data.splits.plain_text import plain_text
from nlpkd.utils.field_types import plain_arguments

Row: TypeAlias = tuple[str, ...]


RUN = 4


THRESHOLD = 0.7


def shingles(text: str) -> set[str]:
    """Return all runs of four characters of a plain text; of a shorter text itself."""
    return {text[start : start + RUN] for start in range(max(1, len(text) - RUN + 1))}


def similarity(first: str, second: str) -> float:
    """Compute how alike two texts are.

    The Jaccard similarity of their shingles, |A & B| / |A | B| (Broder 1997, "On the resemblance and containment of
    documents").

    Args:
        first: a text.
        second: another one.

    Returns:
        0 to 1. With a tenth of the words of a sentence replaced it is about 0.7.
    """
    return _jaccard(shingles(plain_text(first)), shingles(plain_text(second)))


def _jaccard(one: set[str], other: set[str]) -> float:
    common = len(one & other)
    return common / (len(one) + len(other) - common)


class NearDuplicates:
    """The rows that nearly equal one of a set: `row in NearDuplicates(rows)`.

    A row of several texts does where each of its texts does. The check is exact, where MinHash estimates. Two sets of
    at least a similarity t share one of the first (1 - t) n + 1 of their n shingles, in any order of all shingles (the
    prefix filter of Chaudhuri et al. 2006, "A primitive operator for similarity joins in data cleaning"). In the order
    that has the rare ones first few rows are left to compare.

    Args:
        rows: of one text or several.
        threshold: the similarity from which on two texts are nearly equal.
    """

    @plain_arguments
    def __init__(self, rows: Iterable[Sequence[str]], threshold: float = THRESHOLD):
        self.threshold = threshold
        self._rows = list(dict.fromkeys(tuple(map(plain_text, row)) for row in rows))
        # The first texts alone are looked up, the others compared.
        runs = [shingles(row[0]) for row in self._rows]
        self._sizes = [len(each) for each in runs]
        self._count = Counter(run for each in runs for run in each)
        self._having: dict[str, list[int]] = defaultdict(list)
        for number, each in enumerate(runs):
            for run in self._prefix(each):
                self._having[run].append(number)

    def __contains__(self, row: object) -> bool:
        if not self._rows:
            return False
        texts = [shingles(plain_text(text)) for text in row]  # type: ignore[attr-defined]
        size = len(texts[0])
        return any(
            # Sets of sizes further apart have less in common than that.
            self.threshold * size <= self._sizes[number] <= size / self.threshold
            and self._alike(texts, self._rows[number])
            for number in {number for run in self._prefix(texts[0]) for number in self._having.get(run, ())}
        )

    def _prefix(self, runs: set[str]) -> list[str]:
        """Return the shingles of a text of which a near duplicate has at least one too, the rare ones first."""
        ordered = sorted(runs, key=lambda run: (self._count.get(run, 0), run))
        return ordered[: len(runs) - math.ceil(self.threshold * len(runs)) + 1]

    def _alike(self, texts: Sequence[set[str]], others: Sequence[str]) -> bool:
        pairs = zip(texts, others, strict=True)
        return all(_jaccard(one, shingles(other)) >= self.threshold for one, other in pairs)

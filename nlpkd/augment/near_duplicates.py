"""Which texts nearly equal one that is kept out: by the runs of characters that they share."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

Row: TypeAlias = tuple[str, ...]


RUN = 4


THRESHOLD = 0.7


def plain(text: str) -> str:
    """Return a text without case, blanks and differences of Unicode form."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


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
    one, other = shingles(plain(first)), shingles(plain(second))
    return len(one & other) / len(one | other)


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

    def __init__(self, rows: Iterable[Sequence[str]], threshold: float = THRESHOLD):
        self.threshold = threshold
        self._rows = list(dict.fromkeys(tuple(map(plain, row)) for row in rows))
        # The first texts alone are looked up, the others compared.
        self._count = Counter(run for row in self._rows for run in shingles(row[0]))
        self._having: dict[str, list[int]] = defaultdict(list)
        for number, row in enumerate(self._rows):
            for run in self._prefix(row[0]):
                self._having[run].append(number)

    def __contains__(self, row: object) -> bool:
        if not self._rows:
            return False
        texts = [plain(text) for text in row]  # type: ignore[attr-defined]
        found = {number for run in self._prefix(texts[0]) for number in self._having.get(run, ())}
        return any(self._alike(texts, self._rows[number]) for number in found)

    def _prefix(self, text: str) -> Iterator[str]:
        """Return the shingles of a plain text of which a near duplicate has at least one too, the rare ones first."""
        runs = sorted(shingles(text), key=lambda run: (self._count.get(run, 0), run))
        yield from runs[: len(runs) - math.ceil(self.threshold * len(runs)) + 1]

    def _alike(self, texts: Sequence[str], others: Sequence[str]) -> bool:
        return all(similarity(one, other) >= self.threshold for one, other in zip(texts, others, strict=True))

"""Constituents of texts put in the place of those of other texts."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from nlpkd.augment.augmenters import Draws, Place
from nlpkd.augment.words import word_spans, words_of
from nlpkd.data.columns import each_text
from nlpkd.utils.field_types import check_share, plain_arguments

LONGEST_PHRASE = 32
"""The most words of a row that is looked for in others."""


CONJUNCTIONS = frozenset(
    "and or but nor yet so because although though while whereas unless until if when since that which who".split()
)


CORE = re.compile(r"[@#$'’]*\w(?:.*\w)?[%'’]*")
"""A word without the punctuation around it, and without marks at its end."""


class ConstituentSwap:
    """A constituent of a text replaced by a constituent of another row.

    Zhang et al. 2022, "TreeMix: Compositional Constituency-based Data Augmentation for Natural Language
    Understanding", arXiv:2205.06153. The paper takes constituents from a parser, of any kind and of bounded length,
    and mixes the two rows' labels by their words; here the teacher labels the new text. No parser is needed.
    Constituents are

    - rows that another row contains word by word, as in SST-2, whose rows are the phrases of its sentences, and
    - clauses: what stands between punctuation marks and English conjunctions.

    A variant has one constituent replaced. The one that goes and the one that comes both have from a third to five
    thirds of `change` of the text's words: 10 to 50 %, 30 % on average, for 0.3. A text without such a constituent has
    no variants. Words are those of `nlpkd.augment.words`.

    Args:
        change: about which share of the words is replaced.
        texts: whose constituents are put in; `augment` gives those of the text's own column (`fit`).

    Raises:
        ValueError: a share outside [0, 1].
    """

    @plain_arguments
    def __init__(self, change: float = 0.3, texts: Iterable[str] = ()):
        check_share("change", change, none=True, whole=True)
        self.change, texts = change, list(dict.fromkeys(each_text(texts, "texts")))
        split = [words_of(text) for text in texts]
        short = [words for words in split if 0 < len(words) <= LONGEST_PHRASE]
        self._rows = {" ".join(words) for words in short}
        # By the first word, how long the rows are that begin with it.
        self._lengths: dict[str, set[int]] = defaultdict(set)
        for words in short:
            self._lengths[words[0]].add(len(words))
        found = {" ".join(text[start:end].split()) for text in texts for start, end in self.constituents(text)}
        # Sorted, so that the order of rows changes nothing; by length first, so that lengths are a slice.
        sized = sorted((len(words_of(phrase)), phrase) for phrase in found)
        self._sizes, self._pool = [size for size, _ in sized], [phrase for _, phrase in sized]

    def fit(self, texts: Sequence[str]) -> ConstituentSwap:
        """Return the augmenter of a column, which puts in constituents of that column's texts.

        Args:
            texts: of the column.
        """
        return type(self)(self.change, texts)

    def constituents(self, text: str) -> list[Place]:
        """Find where the constituents of a text stand, rows that it contains and its clauses, in order."""
        words = word_spans(text)
        return sorted({*self._phrases(text, words), *_clauses(text, words)} - {(0, len(text))})

    def variants(self, texts: Sequence[str], draws: Draws) -> Iterator[list[str]]:
        """Swap constituents; see `Augmenter.variants`."""
        for text, generators in zip(texts, draws, strict=True):
            words = len(words_of(text))
            fewest, most = self.change / 3 * words, min(1.0, self.change * 5 / 3) * words
            places = [
                (start, end)
                for start, end in self.constituents(text)
                if fewest <= len(words_of(text[start:end])) <= most
            ]
            first, last = bisect_left(self._sizes, fewest), bisect_right(self._sizes, most)
            yield [self._variant(text, places, first, last, generator) for generator in generators]

    def _variant(
        self, text: str, places: Sequence[Place], first: int, last: int, generator: np.random.Generator
    ) -> str:
        if not places or first >= last:
            return text
        start, end = places[int(generator.integers(len(places)))]
        return text[:start] + self._pool[int(generator.integers(first, last))] + text[end:]

    def _phrases(self, text: str, words: Sequence[Place]) -> Iterator[Place]:
        """Find the rows that a text contains."""
        plain = [text[start:end] for start, end in words]
        for first, (start, _) in enumerate(words):
            for length in self._lengths.get(plain[first], ()):
                last = first + length
                if length < len(words) >= last and " ".join(plain[first:last]) in self._rows:
                    yield start, words[last - 1][1]

    def fingerprint(self) -> str:
        """Return the settings; the texts are known by the rows that `augment` reads; see `Augmenter.fingerprint`."""
        return repr((type(self).__name__, self.change))


def _clauses(text: str, words: Sequence[Place]) -> Iterator[Place]:
    """Find what stands between punctuation marks and conjunctions, without these."""
    clause: list[Place] = []
    for start, stop in words:
        core = _core(text, start, stop)
        inside = core is not None and text[slice(*core)].casefold() not in CONJUNCTIONS
        if clause and not (inside and core[0] == start):  # type: ignore[index]
            yield clause[0][0], clause[-1][1]
            clause = []
        if inside:
            clause.append(core)  # type: ignore[arg-type]
            if core[1] < stop:  # type: ignore[index]
                yield clause[0][0], clause[-1][1]
                clause = []
    if clause:
        yield clause[0][0], clause[-1][1]


def _core(text: str, start: int, stop: int) -> Place | None:
    """Find what is left of a word without the punctuation around it, None where nothing is."""
    found = CORE.search(text, start, stop)
    if found is None:
        return None
    end = found.end()
    # Vowel signs and accents belong to the letter before them.
    while end < stop and unicodedata.category(text[end])[0] == "M":
        end += 1
    return found.start(), end

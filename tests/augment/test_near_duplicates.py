"""Which texts are kept out: held against comparing every pair."""

from __future__ import annotations

import random

import pytest

from nlpkd.augment import NearDuplicates
from nlpkd.augment.near_duplicates import similarity


def test_similarity_is_the_share_of_common_runs_of_four():
    assert similarity("abcde", "ABC dx") == 1 / 3  # abcd bcde, abcd bcdx
    assert similarity("a Good film", "agoodfilm") == 1 and similarity("ab", "AB") == 1 and similarity("ab", "ac") == 0
    assert similarity("caf\u00e9 noir", "cafe\u0301 noir") == 1


@pytest.mark.parametrize("threshold", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("texts", [1, 2])
def test_the_index_finds_what_comparing_all_pairs_finds(texts, threshold):
    draw = random.Random(0)

    def altered(text: str) -> str:
        words = text.split()
        for _ in range(draw.randrange(3)):
            words[draw.randrange(len(words))] = draw.choice(["film", "plot", "acting", "of", "wonderful"])
        return " ".join(words)

    vocabulary = "the film was a very long and good tale of love".split()
    rows = [tuple(" ".join(draw.choices(vocabulary, k=draw.randint(1, 20))) for _ in range(texts)) for _ in range(40)]
    asked = [tuple(map(altered, row)) for row in rows for _ in range(2)]
    near = NearDuplicates(rows, threshold)
    expected = [
        any(all(similarity(one, other) >= threshold for one, other in zip(row, known, strict=True)) for known in rows)
        for row in asked
    ]
    assert [row in near for row in asked] == expected and 1 < sum(expected) < 79
    assert all(row in near for row in rows)


def test_nothing_is_near_to_no_rows():
    assert ("a",) not in NearDuplicates([])

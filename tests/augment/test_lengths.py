"""Rows that follow the lengths of other texts."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset

from nlpkd.augment import follow_lengths


def of_lengths(lengths, column: str = "text") -> Dataset:
    return Dataset.from_dict({column: [f"{number} " + "w " * (length - 1) for number, length in enumerate(lengths)]})


def words(texts) -> np.ndarray:
    return np.array([len(text.split()) for text in texts])


def test_lengths_are_spread_as_those_of_the_texts():
    draw = np.random.default_rng(0)
    rows = of_lengths(draw.integers(1, 41, 4000))
    texts = ["w " * length for length in draw.normal(20, 4, 500).clip(5, 35).astype(int)]
    drawn = words(follow_lengths(rows, texts, ["text"])["text"])
    asked = words(texts)
    assert len(drawn) > 800 and drawn.min() >= asked.min() and drawn.max() <= asked.max()
    for share in np.arange(0.1, 1, 0.1):
        assert abs(np.quantile(drawn, share) - np.quantile(asked, share)) <= 1
    assert abs(words(rows["text"]).std() - asked.std()) > 5


def test_as_many_rows_are_drawn_as_nine_tenths_of_the_profile_allow():
    # Two bins of a half each. Of 10 and 100 rows: 10 + n / 2 are found of n, nine tenths of them up to n = 25,
    # of which a half is 12.5.
    rows, texts = of_lengths([2] * 10 + [9] * 100), ["w w"] * 50 + ["w " * 9] * 50
    drawn = words(follow_lengths(rows, texts, ["text"])["text"])
    assert (drawn == 2).sum() == 10 and (drawn == 9).sum() == 13


def test_rows_are_drawn_once_in_their_order_by_the_seed_alone():
    rows, texts = of_lengths(np.random.default_rng(1).integers(1, 20, 300)), ["w " * n for n in (4, 5, 6, 9)]
    first = follow_lengths(rows, texts, ["text"], seed=1)["text"][:]
    assert first == follow_lengths(rows, texts[::-1] * 2, ["text"], seed=1)["text"][:]
    assert first != follow_lengths(rows, texts, ["text"], seed=2)["text"][:]
    numbers = [int(text.split()[0]) for text in first]
    assert numbers == sorted(set(numbers)) and len(rows) == 300


def test_the_length_of_a_pair_is_that_of_both_texts():
    rows = Dataset.from_dict({"a": ["w", "w w", "w w w"], "b": ["w w w", "w", "w"]})
    assert follow_lengths(rows, ["w w w w", "w w w w"], ["a", "b"])["a"][:] == ["w", "w w w"]


def test_the_length_of_a_text_without_blanks_is_its_number_of_signs():
    rows = Dataset.from_dict({"text": ["好", "很好看", "非常好看的电影", "服务态度很差等了两个小时"]})
    assert follow_lengths(rows, ["不好看", "太贵了"] * 5, ["text"])["text"][:] == ["很好看"]


def test_texts_that_are_no_use_are_refused():
    with pytest.raises(ValueError, match="there are no texts whose lengths"):
        follow_lengths(of_lengths([3]), [" "], ["text"])
    with pytest.raises(ValueError, match="the rows have 3 to 4 words and the texts whose lengths .* 9 to 9"):
        follow_lengths(of_lengths([3, 4]), ["w " * 9], ["text"])

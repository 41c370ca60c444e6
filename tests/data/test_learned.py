"""Rows to measure on that are among the training rows are counted, as a reader would."""

from __future__ import annotations

import pytest
from datasets import Dataset
from samples import raw_rows

from nlpkd import load_text_classification
from nlpkd.data.columns import DOCUMENT
from nlpkd.data.splits.learned import count_learned


def texts(*values: str | None) -> Dataset:
    return Dataset.from_dict({"text": list(values)})


@pytest.mark.parametrize(
    ("measured", "train", "learned"),
    [
        (["good", "bad"], ["good"], 1),
        (["Good  film", "ﬁne"], ["good film ", "fine"], 2),
        (["good film"], ["good", "film"], 0),
        (["good", "good"], ["good"], 2),
        (["Ärger"], ["a\u0308rger"], 1),
        ([None], ["good"], 0),
        (["good"], ["bad"] * 150_000 + ["good"], 1),
    ],
)
def test_texts_are_compared_without_case_and_blanks(measured, train, learned):
    assert count_learned(texts(*measured), texts(*train), ["text"], "test") == learned


def test_the_order_of_rows_changes_nothing():
    measured, train = raw_rows(40, 7), raw_rows(60, 1)
    known = {" ".join(text.lower().split()) for text in train["text"]}
    expected = sum(" ".join(text.lower().split()) in known for text in measured["text"])
    assert 0 < expected < 40
    for seed in range(3):
        assert count_learned(measured.shuffle(seed), train.shuffle(seed + 1), ["text"], "test") == expected


def test_of_pairs_both_texts_must_be_the_same_in_their_order():
    measured = Dataset.from_dict({"one": ["a", "a", "b"], "two": ["b", "c", "a"]})
    train = Dataset.from_dict({"one": ["A"], "two": ["b "]})
    assert count_learned(measured, train, ["one", "two"], "test") == 1


def test_a_text_in_several_windows_counts_once():
    measured = Dataset.from_dict({"text": ["good", "good", "bad"], DOCUMENT: [0, 0, 1]})
    assert count_learned(measured, texts("good", "good"), ["text"], "test") == 1


def test_a_stream_is_not_read_for_it(tokenizer, tmp_path):
    for name in ("train", "validation"):
        raw_rows(20).to_json(tmp_path / f"{name}.jsonl")
    files = (str(tmp_path / f"{name}.jsonl") for name in ("train", "validation"))
    data = load_text_classification(*files, tokenizer=tokenizer, streaming=True)
    assert count_learned(data["validation"], data["train"], ["text"], "test") is None

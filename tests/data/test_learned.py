"""Rows to measure on that are among the training rows are counted, as a reader would."""

from __future__ import annotations

import pytest
from datasets import Dataset, DatasetDict, concatenate_datasets
from samples import raw_rows

from nlpkd import load_text_classification
from nlpkd.data.columns import DOCUMENT
from nlpkd.data.splits.hashes import text_hashes
from nlpkd.data.splits.held_out import hold_out_validation
from nlpkd.data.splits.learned import (
    LEARNED_NAME,
    LearnedTexts,
    count_learned,
    count_remembered,
    learned_entries,
    remember_texts,
)


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


def numbered(first: int, last: int) -> Dataset:
    return texts(*(f"film {number}" for number in range(first, last)))


@pytest.mark.parametrize(("learned", "exact"), [(3, True), (4_096, True), (8_000, False), (60_000, False)])
def test_what_a_model_learned_from_is_known_of_few_texts_and_estimated_of_many(learned, exact, tmp_path):
    train = numbered(0, learned)
    LearnedTexts.of(concatenate_datasets([train, train]), ["text"]).save(tmp_path)
    assert (tmp_path / LEARNED_NAME).stat().st_size < 70_000
    for share in (0, 0.25, 1):
        known = min(learned, int(2_000 * share))
        measured = concatenate_datasets([numbered(0, known), numbered(100_000, 102_000 - known)]).shuffle(seed=1)
        found = count_remembered(measured, ["text"], "test", {"student": tmp_path})["student"]
        assert found.estimated is not exact or share in (0, 1)
        if exact or share in (0, 1):
            assert found.rows == known
        else:
            assert abs(found.rows - known) < 200


def test_of_rows_that_were_held_out_in_part_the_others_are_what_was_learned_from(tmp_path):
    rows = Dataset.from_dict({"text": [f"text {number}" for number in range(20_000)], "labels": [0.0] * 20_000})
    parts = hold_out_validation(DatasetDict(train=rows), ["text"], 0.2)
    learned = LearnedTexts.of(parts["train"], ["text"])
    assert learned.count_among(text_hashes(rows, ["text"])).rows == pytest.approx(16_000, abs=600)
    assert learned.count_among(text_hashes(parts["validation"], ["text"])).rows == 0


def test_each_model_is_told_once_in_the_same_words(tmp_path, caplog):
    for name, count in (("one", 40), ("two", 0), ("three", 8_000)):
        (tmp_path / name).mkdir()
        LearnedTexts.of(numbered(0, count) if count else texts("bad"), ["text"]).save(tmp_path / name)
    models = {"student": tmp_path / "one", "file": tmp_path / "one", "teacher": tmp_path / "two"}
    models |= {"large": tmp_path / "three", "none": tmp_path, "in memory": None}
    found = count_remembered(numbered(0, 80), ["text"], "test", models)
    assert {name: each.rows for name, each in found.items()} == {"student": 40, "teacher": 0, "large": 80}
    first, second = [each.getMessage() for each in caplog.records]
    assert first.startswith("40 of the 80 texts of the test split (50 %) are training texts of the student too: ")
    assert second.startswith("About 80 of the 80 texts of the test split (100 %) are training texts of the large too")
    assert "Measure on texts that nothing learnt from." in first
    entries = learned_entries(found["student"], found["teacher"], found["large"])
    assert entries == {"learned_rows": 40, "teacher_learned_rows": 80, "learned_estimates": ["teacher_learned_rows"]}


def test_rows_that_are_measured_are_not_called_training_rows_where_nothing_names_their_split(tmp_path, caplog):
    LearnedTexts.of(numbered(0, 40), ["text"]).save(tmp_path)
    count_remembered(numbered(0, 80), ["text"], "train", {"student": tmp_path})
    assert "40 of the 80 measured texts (50 %) are training texts of the student too: " in caplog.text
    assert "train split" not in caplog.text


def test_a_damaged_file_is_named_and_one_of_an_earlier_model_goes(tmp_path):
    (tmp_path / LEARNED_NAME).write_text('{"texts": 3, "smallest": "x"}')
    with pytest.raises(ValueError, match="learned_texts.json"):
        count_remembered(numbered(0, 9), ["text"], "test", {"student": tmp_path})
    remember_texts(None, tmp_path)
    assert not (tmp_path / LEARNED_NAME).exists()

"""What is measured is never fitted on, whatever the rows are stored as."""

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from samples import raw_rows

from nlpkd import load_text_classification
from nlpkd.data.columns import DOCUMENT
from nlpkd.data.splits.fitted import apart_from, rows_to_fit


def rows(tokens, **columns):
    return Dataset.from_dict({"input_ids": tokens, "labels": [0] * len(tokens), **columns})


@pytest.mark.parametrize("made", [lambda data: data, lambda data: data.with_format("torch")])
def test_rows_are_left_out_that_are_read_as_measured_ones_are_whatever_their_labels(made):
    drawn = np.random.default_rng(0)
    held_out, measured = ([drawn.integers(5, 8, size=drawn.integers(1, 5)).tolist() for _ in range(60)] for _ in "ab")
    left = [row for row in held_out if row not in measured]
    assert 0 < len(left) < 60
    found = apart_from(made(rows(held_out)), made(rows(measured).add_column("gold", [1] * 60)))
    assert found.with_format(None)["input_ids"][:] == left


def test_rows_that_are_all_other_ones_are_given_back_as_they_are():
    held_out = rows([[1, 2], [1]])
    assert apart_from(held_out, rows([[2, 1], [1, 2, 3]])) is held_out
    assert len(apart_from(held_out, held_out)) == 0


def test_a_text_of_several_windows_is_left_out_where_all_of_them_are_measured():
    held_out = rows([[1], [2], [1], [3]], **{DOCUMENT: [0, 0, 1, 1]})
    assert apart_from(held_out, rows([[1], [2]]))[DOCUMENT][:] == [1, 1]
    assert apart_from(held_out, rows([[1]])) is held_out


def loaded(tokenizer, **splits):
    return load_text_classification(DatasetDict(train=raw_rows(20), **splits), tokenizer=tokenizer)


def test_a_run_fits_on_validation_rows_that_it_does_not_measure(tokenizer, caplog):
    validation, test = raw_rows(20, 1), raw_rows(20, 2)
    some = loaded(tokenizer, validation=validation, test=test)
    shared = set(validation["text"][:]) & set(test["text"][:])
    assert [text for text in validation["text"][:] if text not in shared] == rows_to_fit(some, "test")["text"][:]
    assert rows_to_fit(some, "validation") is None and rows_to_fit(loaded(tokenizer, test=test), "test") is None
    assert rows_to_fit(loaded(tokenizer, validation=test, test=test), "test") is None
    assert "20 of 20 validation rows are test rows too" in caplog.text


def test_validation_texts_that_are_left_out_are_counted_and_not_their_windows(tokenizer, caplog):
    long = [{"text": " ".join(["a good film"] * 20), "label": label} for label in (0, 1)]
    other = [{"text": f"{row['text']} the plot", "label": row["label"]} for row in long]
    data = load_text_classification(
        raw_rows(20), Dataset.from_list(other + long), Dataset.from_list(long), tokenizer=tokenizer, max_length=12,
        window_stride=2,
    )  # fmt: skip
    assert len(set(rows_to_fit(data, "test")[DOCUMENT][:])) == 2
    assert "2 of 4 validation rows are test rows too" in caplog.text


def test_a_run_has_nothing_to_fit_for_scores(tokenizer):
    scores = [number / 7 for number in range(20)]
    splits = [raw_rows(20, seed).remove_columns("label").add_column("label", scores) for seed in range(3)]
    data = load_text_classification(splits[0], splits[1], splits[2], tokenizer=tokenizer)
    assert data.problem_type == "regression" and rows_to_fit(data, "test") is None

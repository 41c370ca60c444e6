"""What is measured is never fitted on, whatever the rows are stored as."""

import numpy as np
import pytest
from datasets import Dataset

from nlpkd.data.columns import DOCUMENT
from nlpkd.data.held_out import apart_from


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

"""Loaders of training batches: what they read of the rows, and how they group them."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from nlpkd.training.batches.loaders import row_lengths, training_loader


@pytest.mark.parametrize("columns", [{}, {"tokens": [9, 8, 7]}])
def test_lengths_are_those_of_the_selected_rows_or_of_the_column_that_says_them(columns):
    rows = Dataset.from_dict({"input_ids": [[1, 2], [3], [4, 5, 6]]} | columns)
    chosen = rows.select([2, 0])
    assert list(row_lengths(chosen, "tokens")) == ([7, 9] if columns else [3, 2])
    of_a_user = chosen.add_column("length", ["short", "long"])
    assert list(row_lengths(of_a_user, "length")) == [3, 2]
    assert list(row_lengths(rows.select([]), "length")) == []
    assert list(row_lengths([{"input_ids": [1, 2, 3]}], "length")) == [3]


@pytest.mark.parametrize(("gap", "expected"), [(60, 1), (0, 50)])
def test_batches_are_of_all_lengths_where_the_length_goes_with_the_label(gap, expected, settings, caplog):
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 640)
    lengths = random.integers(3, 30, 640) + gap * labels
    rows = Dataset.from_dict({"input_ids": [[0] * each for each in lengths], "labels": labels})

    def collate(examples):
        return {"labels": torch.tensor([each["labels"] for each in examples])}

    loader = training_loader(rows, lengths, collate, 8, None, settings())
    assert loader.batch_sampler.pool_steps == expected
    batches = [batch["labels"].float().mean().item() for batch in loader]
    assert len(batches) == 80
    # Two halves sorted into 80 batches would have one with both labels.
    assert sum(0 < share < 1 for share in batches) > 60
    assert ("of the variance of the texts' lengths goes with the label" in caplog.text) == bool(gap)

"""Labels as arrays, whatever type their column has."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, LargeList, List, Value

from nlpkd.data.labels.values import label_values
from nlpkd.data.rows import RowSample


@pytest.mark.parametrize(
    ("values", "feature"),
    [
        ([0, 1, -100], Value("int64")),
        ([0, 1, 1], ClassLabel(names=["a", "b"])),
        ([3, 0, 9], Value("uint8")),
        ([True, False, True], Value("bool")),
        ([0.5, float("nan"), -100.0], Value("float64")),
        ([[1.0, 0.0], [0.0, 0.0], [-100.0, -100.0]], List(Value("float32"))),
        ([[1, 0], [0, 0], [1, 1]], List(Value("int64"), length=2)),
        ([[1, 0], [0, 0], [1, 1]], LargeList(Value("int8"))),
        ([[True, False]] * 3, List(Value("bool"))),
        ([[], [], []], List(Value("int64"))),
    ],
)
def test_labels_that_are_numbers_are_an_array_of_them_in_the_rows_order(values, feature):
    rows = Dataset.from_dict({"labels": values}).cast_column("labels", feature)
    # What a data set selects and how it shows its rows changes nothing.
    for given in (rows, rows.with_format("torch"), rows.select([0, 1, 2]), RowSample(list(rows), [0, 1, 2])):
        np.testing.assert_array_equal(label_values(given, "labels"), np.array(values))
    np.testing.assert_array_equal(label_values(rows.select([2, 0]), "labels"), np.array([values[2], values[0]]))
    assert label_values(rows.select([]), "labels").shape[0] == 0


@pytest.mark.parametrize(
    "values", [[1, None], ["a", "b"], [[1, 0], [1]], [[1, 0], None], [[1, None], [1, 0]], [[], [1]], [None, None]]
)
def test_labels_that_make_no_array_are_what_each_row_has(values):
    rows = Dataset.from_dict({"labels": values})
    for given in (rows, RowSample(list(rows), [0, 1])):
        found = label_values(given, "labels")
        assert found.dtype == object and found.tolist() == values

"""Labels of rows that a trainer is given: which rows have none, and which are refused."""

from __future__ import annotations

import math
import time

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from samples import raw_rows, tiny_bert

from nlpkd import DistillationTrainer, load_text_classification
from nlpkd.data.label_names import align_labels_to_student
from nlpkd.data.labels.checks import with_marks_as_nan
from nlpkd.data.rows import unlabelled_rows
from nlpkd.objectives import CrossEntropyLoss
from nlpkd.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL

NAN, INFINITE = math.nan, math.inf
WIDTHS = {SINGLE_LABEL: 2, MULTI_LABEL: 3, REGRESSION: 1}
LABELS = {
    SINGLE_LABEL: [0, 1, 1, 0, 1],
    MULTI_LABEL: [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]],
    REGRESSION: [0.5, 2.0, -1.0, 0.0, 3.5],
}
BAD = [
    (SINGLE_LABEL, -1), (SINGLE_LABEL, 2), (SINGLE_LABEL, None),
    (MULTI_LABEL, [1.0, -100.0, 0.0]), (MULTI_LABEL, [-100.0, -100.0, 0.0]), (MULTI_LABEL, [-1.0, 0.0, 1.0]),
    (MULTI_LABEL, [1.0, 2.0, 0.0]), (MULTI_LABEL, [0.3, 0.0, 1.0]), (MULTI_LABEL, [NAN, 0.0, 1.0]),
    (MULTI_LABEL, [NAN] * 3), (MULTI_LABEL, [1.0, None, 0.0]), (MULTI_LABEL, None), (MULTI_LABEL, [1.0, 0.0]),
    (MULTI_LABEL, [1.0, 0.0, 0.0, 1.0]), (MULTI_LABEL, []), (MULTI_LABEL, [-100.0]),
    (REGRESSION, INFINITE), (REGRESSION, -INFINITE), (REGRESSION, 1e39),
]  # fmt: skip


def config_of(task):
    return tiny_bert(num_labels=WIDTHS[task], problem_type=task).config


def with_label(task, value, row):
    return [value if number == row else label for number, label in enumerate(LABELS[task])]


@pytest.mark.parametrize("kind", ["data set", "selected", "list"])
@pytest.mark.parametrize("row", [0, 3])
@pytest.mark.parametrize(("task", "bad"), BAD)
def test_a_label_that_is_none_of_the_task_is_refused_by_its_row(task, bad, row, kind):
    labels = with_label(task, bad, row)
    rows = [{"labels": each} for each in labels]
    if kind == "data set":
        rows = Dataset.from_dict({"labels": labels})
    if kind == "selected":
        rows = Dataset.from_dict({"labels": labels[::-1]}).select(range(5)[::-1])
    with pytest.raises(ValueError) as refused:
        align_labels_to_student(rows, config_of(task), "evaluation")
    noun = "score" if task == REGRESSION else "label"
    assert f"row {row} of the evaluation set has {noun} {bad!r} in column 'labels'" in str(refused.value)


def test_the_odd_one_of_many_labels_is_named_by_its_place():
    config = tiny_bert(num_labels=99, problem_type=MULTI_LABEL).config
    rows = Dataset.from_dict({"labels": [[0.0] * 99, [0.0] * 90 + [0.5] + [0.0] * 8]})
    with pytest.raises(ValueError, match=r"row 1 .*\(place 90 holds 0.5\).*-100 for each of them .*soft_label_column"):
        align_labels_to_student(rows, config, "training")


@pytest.mark.parametrize(
    ("task", "mark"),
    [
        (SINGLE_LABEL, -100), (SINGLE_LABEL, None), (MULTI_LABEL, [-100.0] * 3), (MULTI_LABEL, [NAN] * 3),
        (MULTI_LABEL, [1.0, -100.0, 0.0]), (MULTI_LABEL, None), (REGRESSION, -100.0), (REGRESSION, NAN),
        (REGRESSION, None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("row", [0, 3])
def test_a_mark_of_an_unlabelled_row_means_to_the_trainer_what_it_means_in_a_file(task, mark, row, tokenizer):
    labels = with_label(task, mark, row)
    read, given = "refused", "refused"
    source = Dataset.from_dict({"text": raw_rows(5)["text"][:], "label": labels})
    rows = Dataset.from_dict({"labels": labels})
    try:
        read = load_text_classification(source, tokenizer=tokenizer, problem_type=task)["train"]["labels"][:]
    except ValueError as error:
        assert "train split" in str(error)
    try:
        given = align_labels_to_student(rows, config_of(task), "training")["labels"][:]
    except ValueError as error:
        assert f"row {row} of the training set" in str(error)
    np.testing.assert_equal(given, read)


def test_an_empty_cell_of_rows_that_cannot_be_changed_is_refused():
    rows = [{"labels": each} for each in (0.5, NAN, -100.0, None)]
    with pytest.raises(ValueError, match="row 3 of the training set has score None .*NaN where a row is unlabelled"):
        align_labels_to_student(rows, config_of(REGRESSION), "training")
    assert align_labels_to_student(rows[:3], config_of(REGRESSION), "training") == rows[:3]


@pytest.mark.parametrize(("task", "mark"), [(SINGLE_LABEL, -100), (MULTI_LABEL, [-100.0] * 3), (REGRESSION, -100.0)])
def test_rows_keep_their_format_and_their_labels_beside_unlabelled_ones(task, mark):
    rows = Dataset.from_dict({"labels": with_label(task, mark, 3), "input_ids": [[1]] * 5})
    found = align_labels_to_student(rows.with_format("numpy", columns=["labels"]), config_of(task), "training")
    assert found.format["type"] == "numpy" and list(found[0]) == ["labels"]
    assert unlabelled_rows(found).tolist() == [False, False, False, True, False]
    assert found.with_format(None)["labels"][:3] == LABELS[task][:3]


@pytest.mark.parametrize("kind", ["data set", "list"])
def test_a_score_of_minus_100_is_neither_learned_nor_measured(kind, settings, tokenizer):
    tokens = tokenizer(raw_rows(8)["text"][:])
    metrics = []
    for mark in (-100.0, NAN):
        rows = Dataset.from_dict({**tokens, "labels": [mark, *map(float, range(7))]})
        rows = rows if kind == "data set" else list(rows)
        trainer = DistillationTrainer(
            tiny_bert(num_labels=1, problem_type=REGRESSION), None, settings(max_steps=2), [CrossEntropyLoss()],
            rows, rows, processing_class=tokenizer,
        )  # fmt: skip
        trainer.train()
        measured = trainer.evaluate()
        metrics.append([measured[f"eval_{name}"] for name in ("loss", "pearson", "mean_squared_error")])
    assert metrics[0] == metrics[1] and max(metrics[0]) < 100


def test_a_million_rows_are_checked_as_arrays():
    values = np.zeros((1_000_000, 3), dtype=np.float32)
    values[::7] = -100
    column = pa.ListArray.from_arrays(np.arange(0, 3_000_001, 3, dtype=np.int32), values.ravel())
    rows = Dataset(pa.table({"labels": column}))
    started = time.perf_counter()
    assert align_labels_to_student(rows, config_of(MULTI_LABEL), "training") is rows
    assert int(unlabelled_rows(rows).sum()) == 142_858
    assert time.perf_counter() - started < 1


def test_a_score_that_may_be_the_mark_is_refused_and_not_unlearned():
    rows = Dataset.from_dict({"labels": [-100.0, -60.0, 35.0, 100.0, float("nan")]})
    with pytest.raises(ValueError, match="among scores from -60 to 100, of which it may be one"):
        with_marks_as_nan(rows, "labels")

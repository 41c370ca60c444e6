"""What the task is read from, and labels of every form as targets."""

from __future__ import annotations

import logging
import math

import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from samples import tiny_config

from nlpkd import load_text_classification
from nlpkd.data.labels import encode_targets, read_task
from nlpkd.data.labels.classes import Classes, settle_classes
from nlpkd.data.rows import unlabelled_rows
from nlpkd.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL, task_of

ROWS = {"a": [1.0, 0.0, 1.0], "b": [0.0, 0.0, 1.0]}


def splits(values, validation=None, feature=None):
    def rows(column):
        features = None if feature is None else Features({"text": Value("string"), "y": feature})
        return Dataset.from_dict({"text": ["text"] * len(column), "y": column}, features=features)

    return DatasetDict({"train": rows(values)} | ({"validation": rows(validation)} if validation else {}))


def encoded(values, **asked):
    targets = encode_targets(splits(values), "y", **asked)
    return targets.problem_type, targets.names, targets.splits["train"]["labels"][:]


@pytest.mark.parametrize(
    ("values", "task"),
    [
        (["pos", "neg"], SINGLE_LABEL),
        ([0, 1, 2], SINGLE_LABEL),
        ([0.0, 1.0, float("nan")], SINGLE_LABEL),
        (["1", "2"], SINGLE_LABEL),
        (["1.5", "2"], REGRESSION),
        (["1.5", "good"], SINGLE_LABEL),
        ([0.5, 1.0], REGRESSION),
        ([["a"], []], MULTI_LABEL),
        (['["a"]', "[]"], MULTI_LABEL),
        (["[unfinished", "[]"], SINGLE_LABEL),
        ([True, False], SINGLE_LABEL),
    ],
)
def test_the_task_is_read_from_the_labels(values, task):
    assert read_task(splits(values)["train"], "y") == task


@pytest.mark.parametrize(
    "values",
    [
        [["a"], [], ["b", "a"]],
        ['["a"]', "[]", '["b", "a"]'],
    ],
)
def test_lists_of_names_become_zeros_and_ones_in_sorted_order(values):
    assert encoded(values) == (MULTI_LABEL, ["a", "b"], [list(row) for row in zip(ROWS["a"], ROWS["b"], strict=True)])


def test_lists_follow_the_teacher_s_order_which_may_have_more_labels():
    task, names, labels = encoded([["a"], ["b"]], names=["b", "c", "a"])
    assert (names, labels) == (["b", "c", "a"], [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    with pytest.raises(ValueError, match=r"\['a'\] of the data .* none of the teacher's"):
        encoded([["a"], ["b"]], names=["b", "c"])


def test_zeros_and_ones_stay_and_ids_name_their_places():
    assert encoded([[0, 1, 1], [1, 0, 0]]) == (MULTI_LABEL, ["LABEL_0", "LABEL_1", "LABEL_2"], [[0, 1, 1], [1, 0, 0]])
    assert encoded([[True, False], [True, True]])[2] == [[1, 0], [1, 1]]
    assert encoded([[2], [], [0, 2]]) == (
        MULTI_LABEL, ["LABEL_0", "LABEL_1", "LABEL_2"], [[0, 0, 1], [0, 0, 0], [1, 0, 1]],
    )  # fmt: skip


def test_ids_with_names_are_read_by_name():
    feature = List(ClassLabel(names=["x", "y", "z"]))
    targets = encode_targets(splits([[2], [0, 1], []], feature=feature), "y", names=["z", "y", "x"])
    assert targets.splits["train"]["labels"][:] == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]


def test_a_column_for_each_label_is_a_multi_label_task():
    rows = Dataset.from_dict({"text": ["t", "u", "v"], "toxic": ["1", "0", "1"], "rude": [True, False, False]})
    targets = encode_targets(DatasetDict(train=rows), ("toxic", "rude"))
    assert (targets.problem_type, targets.names) == (MULTI_LABEL, ["toxic", "rude"])
    assert targets.splits["train"]["labels"][:] == [[1, 1], [0, 0], [1, 0]]
    assert targets.splits["train"].column_names == ["text", "labels"]


def test_scores_stay_scores_and_integers_become_them_when_asked():
    assert encoded(["1.5", "-2"]) == (REGRESSION, ["LABEL_0"], [1.5, -2.0])
    assert encoded([1, 5], problem_type=REGRESSION) == (REGRESSION, ["LABEL_0"], [1.0, 5.0])


def test_unlabelled_training_rows_are_known_as_such():
    for values, expected in (
        ([["a"], ["-100"]], 2), ([[1, 0], [-100, -100]], 2), ([0.5, 1.0, float("nan")], 3), (["a", "b", "-100"], 3),
        ([0.25, 0.5, -100.0], 3),
    ):  # fmt: skip
        rows = encode_targets(splits(values, values[:1]), "y").splits["train"]
        assert unlabelled_rows(rows).tolist() == [False] * (expected - 1) + [True]
    labels = encode_targets(splits([0.25, 0.5, -100.0]), "y").splits["train"]["labels"][:]
    assert math.isnan(labels[2])


@pytest.mark.parametrize(
    ("values", "validation", "asked", "message"),
    [
        ([["a"], ["b"]], [["a"], ["c"]], {}, r"Row 1 of the validation split .*'c' is no label of the train split"),
        ([["a"], None], None, {}, r"Row 1 of the train split has None for labels .* use a list"),
        ([[], []], None, {}, "No train row has any label"),
        ([[0, 1], [1, 0]], [[0, 1], [1, 2]], {}, r"Row 1 of the validation .* use a 0 or 1 for each of the 2 labels"),
        ([[0, 1], [1, 0]], [[1, 0, 0]], {}, r"Row 0 of the validation .* use a 0 or 1 for each of the 2 labels"),
        ([[0.5, 1.0], [1.0, 0.0]], None, {}, "neither names, nor ids from 0 up"),
        (['[1, "a"]'], None, {}, "neither names"),
        ([0.5, float("inf")], None, {}, r"Row 1 of the train split has the score inf"),
        (["0.5", "1.5"], ["0.5", "nan"], {}, r"Row 1 of the validation split has the score 'nan'"),
        ([0.5, 0.5], None, {}, "same score"),
        (["a", "b"], None, {"problem_type": REGRESSION}, r"Row 0 of the train split has the score 'a'"),
        (["a", "b"], [0.5, 1.5], {}, "is a score, not a class"),
        (["a", "b"], None, {"problem_type": "regresion"}, "is no task"),
        (["a", "b"], None, {"problem_type": MULTI_LABEL}, r"Row 0 .* for labels .* use a list"),
    ],
)
def test_labels_that_are_no_targets_are_refused_by_row_and_value(values, validation, asked, message):
    with pytest.raises(ValueError, match=message):
        encode_targets(splits(values, validation), "y", **asked)


@pytest.mark.parametrize(
    ("train", "held_out", "task"),
    [
        ([0, 1], [1, -100], None),
        (["a", "b"], ["b", "-100"], None),
        ([["a"], ["b"]], [["a"], ["-100"]], None),
        ([[0, 1], [1, 1]], [[1, 0], [-100, -100]], None),
        (["['a']", "['b']"], ["['a']", "-100"], MULTI_LABEL),
        ([0.5, 2.5], [1.5, -100.0], None),
        ([1, 5], [2, -100], REGRESSION),
    ],
)
def test_a_row_to_measure_on_that_nobody_labelled_is_refused_and_not_told_to_be_marked_so(train, held_out, task):
    with pytest.raises(ValueError, match="Row 1 of the validation split has .*-100") as refused:
        encode_targets(splits(train, held_out), "y", task)
    assert "mark" not in str(refused.value)
    told = "mend or remove such rows" if isinstance(held_out[0], float) or task == REGRESSION else "leave them out"
    assert told in str(refused.value)
    # Of a row to learn from it is right.
    encode_targets(splits([*train, held_out[1]], held_out[:1]), "y", task)


def test_several_columns_are_no_other_task():
    rows = DatasetDict(train=Dataset.from_dict({"a": [1, 0], "b": [0, 1]}))
    with pytest.raises(ValueError, match=r"several label columns \['a', 'b'\] are a multi-label task"):
        encode_targets(rows, ["a", "b"], SINGLE_LABEL)
    rows = DatasetDict(train=Dataset.from_dict({"a": [1, 0], "b": [0, 3]}))
    with pytest.raises(ValueError, match=r"Row 1 of the train split has the labels \[0, 3\] .*use a 0 or 1 for each"):
        encode_targets(rows, ["a", "b"])


def test_a_config_tells_its_task():
    from transformers import BertConfig

    assert task_of(BertConfig(num_labels=1)) == REGRESSION
    assert task_of(BertConfig(num_labels=3)) is None and task_of(None) is None
    assert task_of(BertConfig(num_labels=3, problem_type=MULTI_LABEL)) == MULTI_LABEL


def test_the_task_is_said_in_one_line(tokenizer, caplog):
    rows = Dataset.from_dict({"text": ["good", "bad", "fine"], "stars": [1.5, 2.0, 4.0]})
    data = load_text_classification(rows, tokenizer=tokenizer)
    assert (data.problem_type, data.num_labels, data["train"]["labels"][:]) == (REGRESSION, 1, [1.5, 2.0, 4.0])
    said = [record.getMessage() for record in caplog.records if REGRESSION in record.getMessage()]
    assert said == ["in-memory data: regression of 'text', labels 'stars' (LABEL_0), rows: 3 train"]
    rare = Dataset.from_dict({"text": ["good"] * 8, "label": [0] * 6 + [1] * 2})
    assert load_text_classification(rare, tokenizer=tokenizer).class_weights == pytest.approx([8 / 12, 8 / 4])
    with pytest.raises(ValueError, match="classes are balanced in single-label tasks"):
        _ = data.class_weights


@pytest.mark.parametrize("word", ["", " ", "nan", "N/A", "NA", "null", "None"])
def test_a_word_for_a_missing_score_is_a_row_that_the_teacher_scores(word, tokenizer, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(f"text,score\ngood,0.5\nbad,1.5\na,{word}\n")
    for source in (path, pd.read_csv(path, keep_default_na=False)):
        data = load_text_classification(source, tokenizer=tokenizer, label_column="score")
        assert data.problem_type == REGRESSION and data["train"]["labels"][:2] == [0.5, 1.5]
        assert math.isnan(data["train"]["labels"][2])
    with pytest.raises(ValueError, match="Row 2 of the validation split has the score"):
        load_text_classification(path, path, tokenizer=tokenizer, label_column="score")


def test_held_out_rows_of_lists_and_scores_are_drawn_evenly(tokenizer):
    rows = Dataset.from_dict({"text": ["good " * times for times in range(1, 21)], "tags": [["a"], ["b"]] * 10})
    data = load_text_classification(rows, tokenizer=tokenizer, label_column="tags", validation_split=0.2)
    assert (len(data["train"]), len(data["validation"])) == (16, 4)
    assert data["validation"].features["labels"] == Classes.of(["a", "b"]).vector_feature


@pytest.mark.parametrize("names", [("Neg", "neg"), ("neg", "neg "), ("neg", "neg"), ("good", "\uff47ood")])
def test_classes_that_nobody_can_tell_apart_are_refused_whoever_names_them(names, tokenizer):
    told = "Labels .* differ only in case or blanks|Labels .* look alike|Two labels .* have the same name"
    for make in (Classes.of, lambda names: Classes.of(dict(enumerate(names))), Classes):
        with pytest.raises(ValueError, match=told):
            make((*names, "pos"))
    if len(set(names)) == 2:
        features = Features({"text": Value("string"), "label": ClassLabel(names=[*names, "pos"])})
        rows = Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 2]}, features=features)
        with pytest.raises(ValueError, match=told):
            load_text_classification(rows, tokenizer=tokenizer)
    assert Classes.of((names[0], "pos")).names == (names[0], "pos")


NAMED = {0: "neg", 1: "pos"}


@pytest.mark.parametrize(
    ("label2id", "told"),
    [
        (None, False),
        ({}, False),
        ({"neg": 0, "pos": 1}, False),
        ({"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}, False),
        ({"neg": 1, "pos": 0}, True),
        ({"neg": "0", "pos": "1"}, True),
        ({"neg": 0}, True),
        ({"neg": 0, "pos": 1, "mixed": 2}, True),
        ({"LABEL_1": 0, "LABEL_0": 1}, True),
        (["neg", "pos"], True),
    ],
)
def test_label2id_becomes_the_inverse_of_id2label_and_a_contradiction_is_told_once(label2id, told, caplog, tmp_path):
    config = tiny_config(id2label=NAMED, name_or_path=str(tmp_path))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            config.label2id = label2id
            settle_classes(config)
            assert (config.id2label, config.label2id) == (NAMED, {"neg": 0, "pos": 1})
            assert all(type(number) is int for number in config.label2id.values())
    found = f"The config of {tmp_path} contradicts itself: its label2id is {label2id!r}, and its id2label {NAMED}."
    assert [record.getMessage().startswith(found) for record in caplog.records] == [True] * told
    assert caplog.text.count("id2label is followed") == told


def test_a_config_whose_classes_can_not_be_told_apart_or_that_has_none_is_left_to_those_who_read_it():
    twins = tiny_config(id2label={0: "a", 1: "a"}, label2id={"a": 1})
    for config in (twins, None, object()):
        settle_classes(config)
    assert twins.label2id == {"a": 1}


@pytest.mark.parametrize("cast", [float, int, str])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_mark_of_a_row_without_a_score_is_refused_among_scores_that_it_may_be_one_of(cast, split):
    values = list(map(cast, [-100, -60, 35, 100])), list(map(cast, [-60, 0, 100, 35]))
    given = values if split == "train" else values[::-1]
    with pytest.raises(ValueError, match="-100, which marks a row without a score, among scores from -60 to 100"):
        encode_targets(splits(*given), "y", problem_type=REGRESSION)


@pytest.mark.parametrize("others", [[-1.0, 0.5, 1.0], [0.0, 40.0, 100.0], [-250.5, -240.0, -245.0]])
def test_far_from_all_scores_or_below_a_scale_from_0_it_is_the_mark(others):
    rows = encode_targets(splits([*others, -100.0], others), "y", problem_type=REGRESSION).splits["train"]
    assert unlabelled_rows(rows).tolist() == [False, False, False, True]

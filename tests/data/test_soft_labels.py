"""Soft labels as people have them, against probabilities worked out by hand."""

import json

import numpy as np
import pytest
from datasets import Dataset
from samples import raw_rows, tiny_bert

from nlpkd import DistillationTrainer, load_text_classification
from nlpkd.data.columns import TEACHER_LOGITS
from nlpkd.data.soft_labels import PROBABILITY_FLOOR, add_soft_labels
from nlpkd.objectives import ForwardKLLoss

NAMES = {0: "neg", 1: "neutral", 2: "pos"}


def converted(*values) -> np.ndarray:
    rows = add_soft_labels(Dataset.from_dict({"scores": list(values)}), "scores", NAMES)
    assert rows.column_names == [TEACHER_LOGITS]
    return np.exp(np.array(rows[TEACHER_LOGITS]))


def test_probabilities_in_the_order_of_the_ids_are_kept():
    assert converted([0.7, 0.2, 0.1]) == pytest.approx(np.array([[0.7, 0.2, 0.1]]), rel=1e-5)


def test_votes_become_probabilities_and_no_votes_the_probability_floor():
    assert converted([3.0, 1.0, 0.0], [0.0, 0.0, 5.0]) == pytest.approx(
        np.array([[0.75, 0.25, PROBABILITY_FLOOR], [PROBABILITY_FLOOR, PROBABILITY_FLOOR, 1.0]]), rel=1e-4
    )


def test_names_say_which_label_is_meant():
    assert converted({"pos": 0.6, "neg": 0.3, "neutral": 0.1}) == pytest.approx(np.array([[0.3, 0.1, 0.6]]), rel=1e-5)


def test_the_rest_of_a_top_k_is_spread_over_the_labels_not_named():
    found = converted({"pos": 0.8}, {"neg": 0.5, "neutral": 0.3})
    assert found == pytest.approx(np.array([[0.1, 0.1, 0.8], [0.5, 0.3, 0.2]]), rel=1e-5)


def test_what_a_pipeline_returns_is_taken_even_as_json_in_a_csv():
    scores = [{"label": "neutral", "score": 0.9}, {"label": "pos", "score": 0.1}]
    expected = np.array([[PROBABILITY_FLOOR, 0.9, 0.1]])
    assert converted(scores) == pytest.approx(expected, rel=1e-4)
    assert converted(json.dumps(scores)) == pytest.approx(expected, rel=1e-4)
    assert converted(json.dumps([1, 9, 0])) == pytest.approx(np.array([[0.1, 0.9, PROBABILITY_FLOOR]]), rel=1e-4)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([0.5, 0.5], "Row 1 .* 2 numbers for 3 labels"),
        ([0.5, -0.1, 0.6], "Row 1 .* not negative"),
        ([0.0, 0.0, 0.0], "Row 1 .* not all be 0"),
        ([float("nan"), 0.5, 0.5], "Row 1 .* finite"),
        ("[" * 100_000, r"Row 1 .* the soft label '\[{119} in column 'scores': maximum recursion"),
        (f"[1{'0' * 400}, 0, 0]", r"Row 1 .* the soft label '\[10+ in column 'scores': int too large"),
    ],
)
def test_a_bad_row_is_named_with_its_value(value, message):
    with pytest.raises(ValueError, match=message):
        converted("[0.2, 0.3, 0.5]" if isinstance(value, str) else [0.2, 0.3, 0.5], value)


@pytest.mark.parametrize("values", [[0.7, 0.2, 0.1], [1.0, 0.0, 0.0], [7, 2, 1], [1e-3, 0.999, 1e-8]])
def test_a_list_that_numpy_wrote_is_read_as_json_is(values):
    np.testing.assert_allclose(converted(str(np.array(values))), converted(json.dumps(values)), rtol=1e-6)


def test_a_mapping_that_python_wrote_is_read_as_json_is():
    scores = [{"label": "pos", "score": 0.9}, {"label": "neg", "score": 0.1}]
    for value in ({"pos": 0.9, "neg": 0.1, "neutral": 0.0}, scores):
        for text in (json.dumps(value), str(value)):
            assert converted(text) == pytest.approx(np.array([[0.1, PROBABILITY_FLOOR, 0.9]]), rel=1e-4)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('{"pos": 0.9, "neg": 0.05, "pos": 0.1}', "Row 1 .* 'pos' comes twice"),
        ("{'pos': 0.9, 'neg': 0.05, 'pos': 0.1}", "Row 1 .* 'pos' comes twice"),
        ('[{"label": "neg", "score": 0.9}, {"label": "neg", "score": 0.1}]', "Row 1 .* 'neg' comes twice"),
        ("[{'label': 'neg', 'score': 0.9, 'score': 0.1}]", "Row 1 .* 'score' comes twice"),
        ("{0.5, 0.2, 0.3}", "Row 1 .* a set has no order"),
        (None, "Row 1 .* it is missing"),
        (" ", "Row 1 .* it is missing"),
        ("7", "Row 1 .* it holds no numbers"),
        ("pos: 0.9", "Row 1 .*"),
    ],
)
def test_a_label_that_comes_twice_and_a_value_that_is_missing_are_named_with_the_row(value, message):
    with pytest.raises(ValueError, match=message):
        converted('{"pos": 1.0}', value)


def test_a_label_that_comes_twice_in_a_pipeline_s_list_is_refused():
    twice = [{"label": "neg", "score": 0.9}, {"label": "neg", "score": 0.1}]
    with pytest.raises(ValueError, match="Row 0 .* 'neg' comes twice"):
        converted(twice)


def test_an_unknown_label_and_a_missing_column_are_named(tokenizer):
    with pytest.raises(ValueError, match="there is no label 'positive'"):
        converted({"positive": 1.0})
    with pytest.raises(ValueError, match="train split has no column 'votes'; its columns are .'text', 'label'"):
        load_text_classification(raw_rows(4), tokenizer=tokenizer, soft_label_column="votes")


VOTES = [{"neg": 0.2, "pos": 0.8}, {"neg": 0.7, "pos": 0.3}, {"neg": 0.4, "pos": 0.6}]
GOLD = ["pos", "neg", "neg"]


def read(tokenizer, train, validation, soft, **asked):
    """What is read of the columns of two splits; train's rows in another order than they are stored."""
    rows, held_out = (Dataset.from_dict({"text": ["a", "b", "c"], **columns}) for columns in (train, validation))
    data = load_text_classification(
        rows.select([2, 0, 1]), held_out, tokenizer=tokenizer, soft_label_column=soft, **asked
    )
    probabilities = np.exp(data["train"][TEACHER_LOGITS][:])
    assert probabilities == pytest.approx(np.array([[0.4, 0.6], [0.2, 0.8], [0.7, 0.3]]))
    assert list(data.id2label.values()) == ["neg", "pos"] and data["train"]["text"][:] == ["c", "a", "b"]
    return data["train"]["labels"][:], data["validation"]


@pytest.mark.parametrize("name", ["label", "Labels", "labels", "target", "comment", "length", TEACHER_LOGITS])
@pytest.mark.parametrize("gold", [None, "label", "labels"])
def test_a_column_of_soft_labels_may_be_called_as_it_likes(name, gold, tokenizer):
    known = {} if gold in (None, name) else {gold: GOLD}
    labels, held_out = read(tokenizer, known | {name: VOTES}, known or {"stars": GOLD}, name)
    assert labels == ([0, 1, 0] if known else [-100] * 3) and held_out["labels"][:] == [1, 0, 0]


@pytest.mark.parametrize("form", [dict, json.dumps])
@pytest.mark.parametrize("asked", [{}, {"label_column": "label"}])
def test_held_out_gold_labels_may_be_called_as_the_soft_labels_are(form, asked, tokenizer):
    votes = list(map(form, VOTES))
    labels, held_out = read(tokenizer, {"label": votes}, {"label": GOLD}, "label", **asked)
    assert labels == [-100] * 3 and held_out["labels"][:] == [1, 0, 0]
    # And soft labels of held-out rows are read as such.
    held_out = read(tokenizer, {"label": votes}, {"label": votes}, "label", **asked)[1]
    assert np.exp(held_out[TEACHER_LOGITS][0]) == pytest.approx([0.2, 0.8]) and held_out["labels"][:] == [-100] * 3


def test_several_held_out_gold_labels_may_be_called_as_the_soft_labels_are(tokenizer):
    several = [["pos"], ["neg", "pos"], ["neg"]]
    data = load_text_classification(
        [{"text": "a", "labels": votes} for votes in VOTES],
        [{"text": "a", "labels": labels} for labels in several],
        tokenizer=tokenizer,
        soft_label_column="labels",
    )
    assert data["validation"]["labels"][:] == [[0, 1], [1, 1], [1, 0]]


def test_a_student_learns_from_the_columns_of_a_file_without_any_model_as_teacher(tmp_path, tokenizer, settings):
    rows = raw_rows(200, seed=1)
    scores = [json.dumps({"pos": 0.9} if label else {"neg": 0.9}) for label in rows["label"]]
    names = [rows.features["label"].int2str(label) for label in rows["label"]]
    columns = {"text": rows["text"][:], "label": names, "api": scores}
    Dataset.from_dict(columns).to_csv(tmp_path / "train.csv")
    data = load_text_classification(
        str(tmp_path / "train.csv"), raw_rows(60, seed=2), tokenizer=tokenizer, label_column="label",
        soft_label_column="api",
    )  # fmt: skip
    trainer = DistillationTrainer(
        model=tiny_bert(), objectives=[ForwardKLLoss(temperature=1.0)], train_dataset=data["train"],
        eval_dataset=data["validation"], processing_class=tokenizer, args=settings(num_train_epochs=8,
        learning_rate=5e-3),
    )  # fmt: skip
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] > 0.9

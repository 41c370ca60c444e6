"""Training rows that have soft labels alone."""

import json

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from nlpkd import load_text_classification
from nlpkd.data.arguments import DataArguments
from nlpkd.data.labels.classes import NamesOfModel
from nlpkd.data.soft_labels import _has_texts

SOFT = [{"pos": 0.9, "neg": 0.1}, {"pos": 0.2, "neg": 0.8}, {"pos": 0.5, "neg": 0.5}]
TRAIN = [{"text": text, "soft": soft} for text, soft in zip(["good film", "bad film", "a film"], SOFT, strict=True)]
VALIDATION = [{"text": "good plot", "label": "pos"}, {"text": "bad plot", "label": "neg"}]


def load(tokenizer, train=TRAIN, validation=VALIDATION, **settings):
    return load_text_classification(train, validation, tokenizer=tokenizer, soft_label_column="soft", **settings)


def test_soft_labels_say_what_the_classes_are(tokenizer):
    data = load(tokenizer)
    assert data.id2label == {0: "pos", 1: "neg"}
    assert data["train"]["labels"][:] == [-100] * 3 and data["validation"]["labels"][:] == [0, 1]
    np.testing.assert_allclose(np.exp(data["train"]["teacher_logits"][:]), [[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]], 1e-5)


def test_named_gold_labels_in_another_order_are_read_by_name(tokenizer):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    validation = Dataset.from_dict({"text": ["good plot", "bad plot"], "label": [1, 0]}, features=features)
    assert load(tokenizer, validation=validation)["validation"]["labels"][:] == [0, 1]


def test_names_written_as_json_are_sorted(tokenizer):
    train = [row | {"soft": json.dumps(row["soft"])} for row in TRAIN]
    data = load(tokenizer, train)
    assert data.id2label == {0: "neg", 1: "pos"} and data["validation"]["labels"][:] == [1, 0]


def test_several_labels_a_row_are_told_by_the_validation_rows(tokenizer):
    validation = [{"text": "good plot", "label": ["pos", "neg"]}, {"text": "bad plot", "label": ["neg"]}]
    data = load(tokenizer, validation=validation)
    assert data.problem_type == "multi_label_classification" and data.id2label == {0: "pos", 1: "neg"}
    assert data["validation"]["labels"][:] == [[1, 1], [0, 1]] and data["train"]["labels"][0] == [-100, -100]


@pytest.mark.parametrize("first, second", [([1, 1], [0, 1]), ([0, 1], [1]), ("[0, 1]", "[1]")])
def test_lists_of_numbers_beside_names_in_no_order_are_refused(tokenizer, first, second):
    validation = [{"text": "good plot", "label": first}, {"text": "bad plot", "label": second}]
    with pytest.raises(ValueError, match="nothing says which number is which"):
        load(tokenizer, validation=validation)
    told = load(tokenizer, validation=validation, label_names=["pos", "neg"])
    assert told["validation"]["labels"][:] == [[1, 1], [0, 1]]


def test_texts_of_mappings_name_the_classes_and_wrong_rows_are_told(tokenizer):
    train = [row | {"soft": str(row["soft"])} for row in TRAIN]
    assert load(tokenizer, train).id2label == {0: "neg", 1: "pos"}
    twice = [*train, {"text": "a plot", "soft": '{"pos": 0.5, "neg": 0.4, "pos": 0.1}'}]
    with pytest.raises(ValueError, match="Row 3 of the train split .* 'pos' comes twice"):
        load(tokenizer, twice)
    with pytest.raises(ValueError, match="Row 3 of the train split .* it is missing"):
        load(tokenizer, [*train, {"text": "a plot", "soft": None}])


def test_numbers_beside_names_are_refused(tokenizer):
    validation = [{"text": "good plot", "label": 1}, {"text": "bad plot", "label": 0}]
    with pytest.raises(ValueError, match="nothing says which number is which"):
        load(tokenizer, validation=validation)


def test_soft_labels_without_names_want_them(tokenizer):
    train = [row | {"soft": list(row["soft"].values())} for row in TRAIN]
    with pytest.raises(ValueError, match="does not name its classes"):
        load(tokenizer, train)
    assert load(tokenizer, train, label_names=["pos", "neg"])["validation"]["labels"][:] == [0, 1]


def test_named_classes_whose_training_rows_nobody_labelled_are_read(tokenizer):
    train = Dataset.from_dict({"text": ["good film", "bad film"]})
    train = train.add_column("label", [-100, -100], feature=ClassLabel(names=["neg", "pos"]))
    data = load_text_classification(DatasetDict(train=train), VALIDATION, tokenizer=tokenizer)
    assert data["train"]["labels"][:] == [-100, -100] and data["validation"]["labels"][:] == [1, 0]


@pytest.mark.parametrize("spelt", [str.lower, str.title, str.upper, " {} ".format])
@pytest.mark.parametrize("names", [("text",), ("question", "sentence"), ("premise", "hypothesis")])
def test_texts_and_pairs_without_a_label_column_are_recognised_in_any_case(spelt, names):
    rows = Dataset.from_dict({spelt(name): ["a", "b"] for name in names})
    assert _has_texts(rows, DataArguments())
    assert not _has_texts(rows.rename_columns({name: f"{name}s" for name in rows.column_names}), DataArguments())


@pytest.mark.parametrize("soft", [True, False])
def test_ids_beside_texts_that_nobody_labelled_count_in_the_order_of_the_user_s_names_alone(tokenizer, soft):
    train = TRAIN if soft else [{"text": row["text"]} for row in TRAIN]
    validation = [{"text": "good plot", "label": "0"}, {"text": "bad plot", "label": "1"}]
    asked = {"tokenizer": tokenizer, "soft_label_column": "soft" if soft else None}
    for names in (["pos", "neg"], ["neg", "pos"]):
        data = load_text_classification(train, validation, label_names=names, **asked)
        assert list(data.id2label.values()) == names and data["validation"]["labels"][:] == [0, 1]
        with pytest.raises(ValueError, match="nothing says which number is which"):
            load_text_classification(train, validation, label_names=NamesOfModel(names), **asked)

"""One class a row: what numbers mean does not hang on which rows are there, or on the type that holds them."""

from __future__ import annotations

import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict
from samples import tiny_bert

from nlpkd import load_text_classification
from nlpkd.data.labels import encode_targets
from nlpkd.data.labels.classes import NamesOfModel
from nlpkd.data.text_classification import load_rows_for_model
from nlpkd.tasks import SINGLE_LABEL

NAMES = ["bad", "good", "mixed"]


def rows_of(labels):
    return [{"text": f"good film {number}", "label": label} for number, label in enumerate(labels)]


def ids(labels, names=NAMES, **asked):
    splits = DatasetDict(train=Dataset.from_list(rows_of(labels)))
    return encode_targets(splits, "label", SINGLE_LABEL, names, may_lack=True, **asked).splits["train"]["labels"][:]


@pytest.mark.parametrize("labels", [[1, 2, 1], ["1", "2", "2"], [2, 2], [1, 1], [1.0, 2.0], [1, 2, -100]])
@pytest.mark.parametrize("names", [NAMES, ["LABEL_0", "LABEL_1", "LABEL_2"]])
def test_numbers_that_may_be_ids_or_count_from_1_are_refused(labels, names):
    with pytest.raises(ValueError, match="may be ids from 0 up .* or count the classes from 1. Write the names"):
        ids(labels, names)
    named = Dataset.from_list(rows_of([names[int(label)] if int(label) >= 0 else str(label) for label in labels]))
    found = encode_targets(DatasetDict(train=named), "label", SINGLE_LABEL, names, may_lack=True)
    assert found.splits["train"]["labels"][:] == list(map(int, labels))


def test_numbers_that_can_only_be_ids_or_only_count_from_1_are_read():
    assert ids([0, 2, 2]) == [0, 2, 2] and ids([0, 1]) == [0, 1] and ids([1, 2, 3]) == [0, 1, 2]
    assert ids([1, 2], ["0", "1", "2"]) == [1, 2], "these are names"
    splits = DatasetDict(train=Dataset.from_list(rows_of([1, 2])), test=Dataset.from_list(rows_of([0])))
    assert encode_targets(splits, "label", SINGLE_LABEL, NAMES).splits["test"]["labels"][:] == [0]


def test_a_model_is_measured_on_some_of_its_classes_by_their_names(tokenizer):
    names = {"id2label": dict(enumerate(NAMES)), "label2id": {name: place for place, name in enumerate(NAMES)}}
    config = tiny_bert(num_labels=3, **names).config
    with pytest.raises(ValueError, match="count the classes from 1"):
        load_rows_for_model(rows_of([1, 2]), config, tokenizer=tokenizer)
    cast = Dataset.from_list(rows_of([1, 2])).cast_column("label", ClassLabel(names=NAMES))
    for rows in (cast, rows_of(["good", "mixed"])):
        found, _, _ = load_rows_for_model(rows, config, tokenizer=tokenizer)
        assert found["labels"][:] == [1, 2]


@pytest.mark.parametrize(
    "labels", [[1, 2, 3, -1], ["1", "2", "3", "-1"], [0, 1, -1], ["01", "02", "-1"], [1.0, 2.0, -1.0]]
)
def test_minus_one_beside_other_classes_is_a_missing_label(labels):
    with pytest.raises(ValueError, match=rf"Row {len(labels) - 1} of the train split has no label"):
        ids(labels, ())


@pytest.mark.parametrize("labels", [[-1, 1], ["-1", "+1"], [-2, -1, 1, 2]])
def test_minus_one_beside_one_and_beside_others_below_0_is_a_class(labels):
    assert ids(labels, ()) == list(range(len(labels)))


@pytest.mark.parametrize("labels", [[-1.5, -1.0, 1.0], [-1.0, 0.5, 1.5], ["-1", "0.5", "1.5"], [-1.0, 0.0, 0.5]])
def test_minus_one_beside_scores_that_are_asked_for_as_classes_is_a_class(labels):
    assert ids(labels, ()) == [0, 1, 2]


def test_scores_that_are_asked_for_as_classes_are_the_same_from_every_source(tmp_path, tokenizer):
    frame = pd.DataFrame(rows_of([10.5, 1.0, 2.5, 1.0]))
    frame.to_csv(tmp_path / "rows.csv", index=False)
    frame.to_json(tmp_path / "rows.jsonl", orient="records", lines=True)
    texts = rows_of(["10.50", "1", "2.5", "1.0"])
    for source in (frame, frame.to_dict("records"), tmp_path / "rows.csv", tmp_path / "rows.jsonl", texts):
        data = load_text_classification(source, tokenizer=tokenizer, problem_type=SINGLE_LABEL)
        assert data.id2label == {0: "1.0", 1: "2.5", 2: "10.5"} and data["train"]["labels"][:] == [2, 0, 1, 0]
    with pytest.raises(ValueError, match="Label inf .* is a score, not a class"):
        load_text_classification(rows_of([0.5, float("inf")]), tokenizer=tokenizer, problem_type=SINGLE_LABEL)


def held_out(train, validation, names=()):
    splits = DatasetDict(train=Dataset.from_list(rows_of(train)), validation=Dataset.from_list(rows_of(validation)))
    if names and isinstance(train[0], int):
        splits["train"] = splits["train"].cast_column("label", ClassLabel(names=names))
    return encode_targets(splits, "label", SINGLE_LABEL, names).splits["validation"]["labels"][:]


@pytest.mark.parametrize("validation", [[0, 1], ["0", "1"], ["1", "0"], [1.0, 0.0]])
def test_ids_mean_names_only_where_something_says_their_order(validation, tmp_path, tokenizer):
    ids = [int(float(label)) for label in validation]
    with pytest.raises(ValueError, match="nothing says which number is which. Write the names, or give label_names"):
        held_out(["real", "fake"], validation)
    assert held_out(["real", "fake"], validation, ["real", "fake"]) == ids
    assert held_out([0, 1], validation, ["real", "fake"]) == ids
    path = tmp_path / "rows.csv"
    pd.DataFrame(rows_of(["real", "fake"])).to_csv(path, index=False)
    with pytest.raises(ValueError, match="nothing says which number is which. Write the names, or give label_names"):
        load_text_classification(path, rows_of(validation), tokenizer=tokenizer, streaming=True)


@pytest.mark.parametrize("names", [["01", "02", "03"], ["1.0", "2.0", "other"], ["1e0", "2e0"], ["+1", "2", "a"]])
def test_ids_are_never_read_beside_a_name_that_is_a_number_in_any_spelling(names):
    for train, given in ((names, ()), (names, names), (list(range(len(names))), names)):
        for validation in (["0", "1"], ["0"]):
            with pytest.raises(ValueError, match="is not a label of the train split"):
                held_out(train, validation, given)


def test_true_and_false_are_1_and_0_in_every_split():
    assert held_out([True, False], [0, 1]) == held_out(["True", "False"], ["0", "1"]) == [0, 1]


def test_held_out_ids_that_may_count_from_1_are_refused_beside_names_too():
    model = NamesOfModel(NAMES)
    for train, names in (([0, 1, 2], model), (NAMES, model), ([-100, -100], model)):
        assert held_out(train, [0, 2], names) == [0, 2]
        # A user says that they count in the order of the names.
        assert held_out(train, [1, 2], NAMES) == [1, 2]
        with pytest.raises(ValueError, match=r"the numbers \[1, 2\], .* or count the classes from 1. Write the names"):
            held_out(train, [1, 2], names)

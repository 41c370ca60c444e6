"""One class a row: what numbers mean does not hang on which rows are there, or on the type that holds them."""

from __future__ import annotations

import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict
from samples import tiny_bert

from nlpkd import load_text_classification
from nlpkd.data.labels import encode_targets
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

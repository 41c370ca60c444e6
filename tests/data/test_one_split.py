"""The split that is measured on: never rows that are trained on, unless they are named or all there is.

And the one that is labelled, checked or calibrated on: the train split, unless another is named or all there is.
"""

from __future__ import annotations

import logging
from itertools import permutations

import pytest
from datasets import ClassLabel, Dataset, DatasetDict

from nlpkd import load_text_classification
from nlpkd.data.arguments import DataArguments
from nlpkd.data.one_split import read_measured_rows, read_one_split
from nlpkd.data.sources import MEASURED_SPLITS


def splits(*names, hidden=()) -> DatasetDict:
    """Make splits whose texts say which one they are of; of the hidden ones nobody knows the labels."""
    made = {}
    for name in names:
        labels = [-1, -1] if name in hidden else [0, 1]
        made[name] = Dataset.from_dict({"text": [name, name], "label": labels})
    return DatasetDict(made)


def measured(source, wanted=MEASURED_SPLITS, **asked):
    found = read_measured_rows(source, wanted, DataArguments(**asked))
    return found.rows["text"][0], found.split


MNLI = ("train", "validation_matched", "validation_mismatched", "test_matched", "test_mismatched")


@pytest.mark.parametrize("spell", [str, str.upper, str.title, " {}".format])
@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train"], "train"),
        (["train", "validation", "test"], "test"),
        (["train", "dev"], "dev"),
        (["train", "valid", "test_hard"], "valid"),
        (["train", "validation_matched"], "validation_matched"),
        (["train", "test-easy", "unsupervised"], "test-easy"),
        (["train", "eval"], "eval"),
        (["eval", "unsupervised"], "eval"),
        (["holdout"], "holdout"),
        (MNLI, None),
        (MNLI[1:3], None),
        (["train", "dev", "val"], None),
        (["train", "test_1", "dev_1"], None),
        (["train", "unsupervised"], None),
        (["train", "development", "testimony"], None),
    ],
)
def test_the_split_is_the_same_in_any_case_and_order_and_what_is_unclear_is_asked(names, expected, spell):
    names = [spell(name) for name in names]
    for order in (names, names[::-1], sorted(names, key=len)):
        if expected is not None:
            assert measured(splits(*order))[0] == spell(expected)
            continue
        with pytest.raises(ValueError, match=r"which split of in-memory data to measure.*its name as split=") as told:
            measured(splits(*order))
        assert all(repr(name) in str(told.value) for name in names)


@pytest.mark.parametrize("names", [MNLI, ["train", "dev"], ["dev", "eval"], ["train", "holdout"], ["train"]])
def test_every_split_that_is_there_can_be_named(names):
    for name in names:
        assert measured(splits(*names), [name]) == (name, {"dev": "validation"}.get(name, name))
    with pytest.raises(ValueError, match="has no split 'other', found") as told:
        measured(splits(*names), ["other"])
    assert all(repr(name) in str(told.value) for name in names)


@pytest.mark.parametrize("held_out", ["validation", "dev", "validation_matched", "eval"])
def test_a_test_split_whose_labels_are_hidden_is_passed_over(held_out, caplog):
    for order in permutations(["train", held_out, "test"]):
        for names in (order, [name for name in order if name != "train"]):
            caplog.clear()
            assert measured(splits(*names, hidden=["test"]))[0] == held_out
            assert "labels are hidden" in caplog.text
    without = splits("train", held_out, "test")
    without["test"] = without["test"].remove_columns("label")
    assert measured(without)[0] == held_out
    renamed = splits("train", held_out, "test", hidden=["test"]).rename_column("label", "y")
    assert measured(renamed, label_column="y")[0] == held_out


@pytest.mark.parametrize(
    ("train", "hidden"),
    [
        (["a", "b"], [-1, -1]),
        (["a", "b"], ["-1", ""]),
        ([0, 1], [None, -1]),
        ([0.5, 1.0], [-1.0, -1.0]),
        (["0.5", "1.5"], ["-1.0", "-1"]),
        ([0.5, 1.0], [None, None]),
        ([["a"], ["a", "b"]], [None, None]),
        ([[0, 1], [1, 1]], [[-1, -1], [-1, -1]]),
        (["[0, 1]", "[1, 1]"], ["[-1, -1]", ""]),
    ],
)
def test_training_leaves_out_the_test_split_that_measuring_passes_over(train, hidden, tokenizer, caplog):
    labels = {"train": train, "validation": train, "test": hidden}
    source = DatasetDict({name: Dataset.from_dict({"text": [name] * 2, "label": labels[name]}) for name in labels})
    assert measured(source)[0] == "validation"
    caplog.clear()
    assert list(load_text_classification(source, tokenizer=tokenizer)) == ["train", "validation"]
    assert caplog.text.count("its labels are hidden") == 1


def test_label_columns_and_numbered_classes_may_be_hidden_too(tokenizer):
    def rows(*columns):
        made = Dataset.from_dict({"text": ["a", "b"], **dict.fromkeys(columns, [0, 1])})
        hidden = Dataset.from_dict({"text": ["a", "b"], **dict.fromkeys(columns, [-1, -1])})
        return DatasetDict(train=made, test=hidden)

    jigsaw = load_text_classification(rows("y", "z"), tokenizer=tokenizer, label_column=["y", "z"])
    glue = load_text_classification(rows("label").cast_column("label", ClassLabel(2)), tokenizer=tokenizer)
    assert list(jigsaw) == list(glue) == ["train"]
    partly = rows("y", "z")
    partly["test"] = partly["test"].map(lambda row, number: {"z": number - 1}, with_indices=True)
    with pytest.raises(ValueError, match="of the test split"):
        load_text_classification(partly, tokenizer=tokenizer, label_column=["y", "z"])


def test_the_rows_that_are_trained_on_are_not_taken_in_place_of_a_hidden_test_split():
    for names in (["train", "test"], ["train", "test_a", "test_b"]):
        hidden = splits(*names, hidden=names[1:])
        with pytest.raises(ValueError, match=r"there are \['train'\] \(\['test.* without labels\)"):
            measured(hidden)
        with pytest.raises(ValueError, match="has no split 'test'.*without labels"):
            measured(hidden, ["test"])
        assert measured(hidden, ["train"]) == ("train", "train")


def test_rows_that_need_no_labels_are_those_of_the_test_split_though_it_has_none():
    found = read_measured_rows(splits("train", "test", hidden=["test"]), MEASURED_SPLITS, DataArguments(), False)
    assert found.split == "test" and found.rows["label"][:] == [-1, -1]


@pytest.mark.parametrize("source", [splits("dev"), splits("dev")["dev"], splits("dev")["dev"].to_list()])
def test_a_configuration_is_of_the_hub_alone(source):
    with pytest.raises(ValueError, match="belong to a Hub dataset, but in-memory data is not a Hub id"):
        measured(source, dataset_config="sst2")


@pytest.mark.parametrize(
    ("names", "split", "expected"),
    [
        (["train"], None, "train"),
        (["Train", "test", "validation"], None, "Train"),
        (["holdout"], None, "holdout"),
        (["train", "dev"], "validation", "dev"),
        (["train", "test"], "test", "test"),
        (["train", "holdout"], "holdout", "holdout"),
    ],
)
def test_one_split_is_read_and_those_that_are_not_are_named(names, split, expected, caplog):
    with caplog.at_level(logging.WARNING):
        rows, found = read_one_split(splits(*names), split, how="do so")
    assert (found, rows["text"][0]) == (expected, expected)
    others = ", ".join(repr(name) for name in sorted(names) if name != expected)
    told = f"the split {expected!r} alone is read, not {others}. To choose another one, do so."
    assert (told in caplog.text) is (len(names) > 1) is bool(caplog.records)


@pytest.mark.parametrize(
    ("names", "split", "told"),
    [
        (["test", "validation"], None, "Can't tell which split to read"),
        (["Train", "TRAIN"], None, "Can't tell which split to read"),
        (["train", "dev", "val"], "validation", "Can't tell which split to read"),
        (["train", "test"], "dev", "has no split 'dev'"),
        (["train", "test"], "tset", "has no split 'tset'"),
    ],
)
def test_which_of_several_splits_is_asked_with_what_the_caller_takes(names, split, told):
    with pytest.raises(ValueError, match=f"{told}: there are .*{min(names)!r}.*To choose one, do so"):
        read_one_split(splits(*names), split, how="do so")


def test_rows_without_splits_have_none_by_any_name():
    rows = splits("train")["train"]
    assert read_one_split(rows)[1] is None
    with pytest.raises(ValueError, match="is one set of rows, which has no split 'train': leave split out"):
        read_one_split(rows, "train")

"""Lists of labels: names, ids, and zeros and ones of the same rows mean the same labels, whoever writes them."""

from __future__ import annotations

import itertools
import json

import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from samples import tiny_bert

from nlpkd import load_text_classification
from nlpkd.data.labels import encode_targets
from nlpkd.data.text_classification import load_rows_for_model
from nlpkd.tasks import MULTI_LABEL

NAMES = ["toxic", "clean", "odd"]
SETS = [["clean"], [], ["toxic", "odd"], ["toxic"], ["toxic", "clean", "odd"], ["odd"]]
FEATURES = Features({"text": Value("string"), "label": List(ClassLabel(names=NAMES))})


def ids(names, order=NAMES):
    return [order.index(name) for name in names]


def hot(names, order=NAMES):
    return [int(name in names) for name in order]


WRITERS = {
    "names": list,
    "upper case": lambda names: [name.upper() for name in names],
    "ids": ids,
    "ids as texts": lambda names: list(map(str, ids(names))),
    "ids as floats": lambda names: list(map(float, ids(names))),
    "ids as one text": lambda names: json.dumps(ids(names)),
    "zeros and ones": hot,
    "zeros and ones as texts": lambda names: list(map(str, hot(names))),
    "true and false": lambda names: list(map(bool, hot(names))),
}
NUMBERS = {kind: write for kind, write in WRITERS.items() if kind not in ("names", "upper case")}


def rows_of(write, sets=SETS):
    return [{"text": "good", "label": write(names)} for names in sets]


def splits_of(train, validation):
    return DatasetDict(
        {split: rows if isinstance(rows, Dataset) else Dataset.from_list(rows) for split, rows in
         (("train", train), ("validation", validation))}
    )  # fmt: skip


def read(targets, split):
    rows = targets.splits[split]["labels"]
    return [{name for name, each in zip(targets.names, row, strict=True) if each} for row in rows]


@pytest.mark.parametrize("train", WRITERS)
@pytest.mark.parametrize("validation", WRITERS)
def test_every_split_tells_its_labels_in_its_own_way_where_names_are_given(train, validation):
    splits = splits_of(rows_of(WRITERS[train]), rows_of(WRITERS[validation], SETS[1:4]))
    targets = encode_targets(splits, "label", MULTI_LABEL, NAMES)
    assert targets.names == NAMES
    assert read(targets, "train") == list(map(set, SETS)) and read(targets, "validation") == list(map(set, SETS[1:4]))


@pytest.mark.parametrize("validation", [kind for kind in WRITERS if kind != "upper case"])
@pytest.mark.parametrize("names", [(), NAMES[::-1], ["LABEL_0", "LABEL_1", "LABEL_2"]])
def test_ids_of_other_splits_are_those_of_the_train_split_s_class_labels(validation, names):
    train = Dataset.from_list(rows_of(ids, SETS[:4]), features=FEATURES)
    targets = encode_targets(splits_of(train, rows_of(WRITERS[validation])), "label", None, names)
    assert targets.names == (NAMES[::-1] if names == NAMES[::-1] else NAMES)
    assert read(targets, "validation") == list(map(set, SETS))


@pytest.mark.parametrize("door", ["list", "frame", "data set", "csv", "jsonl", "parquet"])
@pytest.mark.parametrize("kind", ["names", "ids", "zeros and ones"])
def test_what_a_split_means_does_not_hang_on_the_door(tmp_path, tokenizer, kind, door):
    rows = pd.DataFrame(rows_of(WRITERS[kind], SETS[:4]))
    write = {
        "csv": lambda path: rows.assign(label=rows["label"].map(json.dumps)).to_csv(path, index=False),
        "jsonl": lambda path: rows.to_json(path, orient="records", lines=True),
        "parquet": lambda path: rows.to_parquet(path),
    }
    source = {"list": rows.to_dict("records"), "frame": rows, "data set": Dataset.from_pandas(rows)}.get(door)
    if source is None:
        source = tmp_path / f"rows.{door}"
        write[door](source)
    expected = [[float(each) for each in hot(names)] for names in SETS[:4]]
    train = Dataset.from_list(rows_of(ids), features=FEATURES)
    named = load_text_classification(rows_of(list), source, tokenizer=tokenizer, label_names=NAMES)
    told = load_text_classification(train, source, tokenizer=tokenizer)
    config = tiny_bert(id2label=dict(enumerate(NAMES)), label2id={name: place for place, name in enumerate(NAMES)},
                       num_labels=3, problem_type=MULTI_LABEL).config  # fmt: skip
    measured, _, _ = load_rows_for_model(source, config, tokenizer=tokenizer)
    for found in (named["validation"], told["validation"], measured):
        assert found["labels"][:] == expected


@pytest.mark.parametrize("train", NUMBERS)
@pytest.mark.parametrize("validation", NUMBERS)
def test_without_names_ids_are_the_places_of_zeros_and_ones(train, validation):
    targets = encode_targets(splits_of(rows_of(NUMBERS[train]), rows_of(NUMBERS[validation], SETS[:2])), "label")
    assert targets.splits["validation"]["labels"][:] == [[0, 1, 0], [0, 0, 0]]
    assert targets.names == ["LABEL_0", "LABEL_1", "LABEL_2"]


@pytest.mark.parametrize("validation", NUMBERS)
def test_numbers_beside_names_in_no_order_are_refused(validation):
    splits = splits_of(rows_of(list), rows_of(NUMBERS[validation]))
    for names in ((), ["LABEL_0", "LABEL_1", "LABEL_2"]):
        with pytest.raises(ValueError, match="validation split .*nothing says which number is which.* label_names"):
            encode_targets(splits, "label", MULTI_LABEL, names)


def test_two_labels_mean_the_same_in_all_ways_or_are_refused():
    order = ["b", "a"]
    possible = [[], ["a"], ["b"], ["b", "a"]]
    ways = (list, lambda names: ids(names, order), lambda names: hot(names, order))
    refused = 0
    for first, second in itertools.product(itertools.combinations(possible, 3), itertools.product(possible, repeat=2)):
        for train, validation in itertools.product(ways, ways):
            splits = splits_of(rows_of(train, first), rows_of(validation, second))
            try:
                targets = encode_targets(splits, "label", MULTI_LABEL, order)
            except ValueError as error:
                assert "Every row of the validation split" in str(error) and len({str(each) for each in second}) == 1
                refused += 1
                continue
            assert read(targets, "train") == list(map(set, first))
            # Beside zeros and ones, these are zeros and ones too.
            both = train is ways[2] and validation is ways[1] and second == (["b", "a"],) * 2
            assert both or read(targets, "validation") == list(map(set, second))
    assert refused == 4 * (2 * 2)


def test_a_class_label_keeps_the_order_of_its_ids_and_the_labels_without_rows():
    rows = Dataset.from_list(rows_of(ids, SETS[:2]), features=FEATURES)
    targets = encode_targets(DatasetDict(train=rows), "label")
    assert targets.names == NAMES and targets.splits["train"]["labels"][:] == [[0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("blank", ["", " ", None])
def test_a_blank_in_a_list_is_no_label(blank):
    with pytest.raises(ValueError, match="Row 1 of the train split .* leave out what is no label"):
        encode_targets(splits_of(rows_of(list, [["a"], ["a", blank]]), rows_of(list, [["a"]])), "label")


def test_texts_of_numbers_that_do_not_count_from_0_are_names():
    sets = [["2019", "2020"], ["2020"], []]
    targets = encode_targets(splits_of(rows_of(list, sets), [{"text": "good", "label": [2019]}]), "label")
    assert targets.names == ["2019", "2020"] and targets.splits["validation"]["labels"][:] == [[1, 0]]


@pytest.mark.parametrize("wrong", [[0, 1, 1, 0], [1, 1], [3], [0, 0]])
def test_zeros_and_ones_of_another_length_and_unknown_ids_are_refused(wrong):
    for train in (list, ids, hot):
        splits = splits_of(rows_of(train), [{"text": "good", "label": wrong}])
        with pytest.raises(ValueError, match="Row 0 of the validation split .*use a 0 or 1 for each of the 3 labels"):
            encode_targets(splits, "label", MULTI_LABEL, NAMES)


@pytest.mark.parametrize("named", [True, False])
def test_a_few_large_numbers_are_no_ids_and_are_refused_before_anything_is_made_of_them(named):
    rows = [{"text": "good", "label": [10**12]}, {"text": "bad", "label": [7]}]
    with pytest.raises(ValueError, match="(?i)is this the column of the labels") as told:
        encode_targets(splits_of(rows, rows), "label", column_named=named)
    assert ("ids up to 1000000000000, of which only 2 occur" in str(told.value)) is named
    many = [{"text": "good", "label": list(range(start, 1200, 10))} for start in range(5)]
    assert len(encode_targets(splits_of(many, many), "label", column_named=True).names) == 1195

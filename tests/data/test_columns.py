"""Which columns hold text and label, what counts as a text, and class ids that train settles for all splits."""

from __future__ import annotations

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from nlpkd.data.columns import PAIRS, TEXT_NAMES, Columns, check_texts, find_columns, find_pairs, find_text_column
from nlpkd.data.labels import encode_labels
from nlpkd.serving.texts import as_texts


def labelled(labels: list, feature=None) -> Dataset:
    data = Dataset.from_dict({"t": ["a"] * len(labels), "y": labels})
    return data.cast_column("y", feature) if feature else data


def encoded(train: list, validation: list | None = None, test: list | None = None, feature=None) -> tuple[dict, list]:
    splits = {"train": train, "validation": validation, "test": test}
    data = DatasetDict({name: labelled(rows, feature) for name, rows in splits.items() if rows})
    result, label = encode_labels(data, "y")
    assert all(split.features["labels"] == label for split in result.values())
    return {name: split["labels"][:] for name, split in result.items()}, label.names


@pytest.mark.parametrize(
    "available, named, expected",
    [
        (["idx", "sentence", "label"], {}, Columns("sentence", None, "label")),
        (["Review", "Stars", "id"], {}, Columns("Review", None, "Stars")),
        (["sentence1", "sentence2", "label"], {}, Columns("sentence1", "sentence2", "label")),
        (["premise", "hypothesis", "target"], {}, Columns("premise", "hypothesis", "target")),
        (["question", "sentence", "label"], {}, Columns("question", "sentence", "label")),
        (["question1", "question2", "label"], {"text": "question2"}, Columns("question2", None, "label")),
        (["text", "review", "label"], {"text": "review"}, Columns("review", None, "label")),
        (["text", "comment"], {"label": "comment"}, Columns("text", None, "comment")),
        (["a", "b", "c"], {"text": "a", "text_pair": "b", "label": "c"}, Columns("a", "b", "c")),
        (["text", "text_pair", "label"], {"text": "text"}, Columns("text", None, "label")),
        (["text", "context", "label"], {"text_pair": "context"}, Columns("text", "context", "label")),
    ],
)
def test_columns_are_taken_as_named_or_recognised(available, named, expected):
    assert find_columns(available, **named) == expected


@pytest.mark.parametrize("spell", [str.lower, str.title, str.upper, " {} ".format, "{}\t".format])
@pytest.mark.parametrize("usual", [("text",), *PAIRS])
def test_texts_and_pairs_are_recognised_in_any_case_any_order_and_with_blanks_around(usual, spell):
    text, *pair, label = [spell(name) for name in (*usual, "label")]
    expected = Columns(text, *(pair or [None]), label)
    assert find_columns(["id", text, *pair, label]) == find_columns([label, *pair, text, "id"]) == expected


@pytest.mark.parametrize("spell", [str.lower, " {} ".format])
def test_a_pair_that_nlpkd_load_takes_is_a_usual_pair_of_columns(spell):
    columns = [spell(name) for name in as_texts({"text": "good", "text_pair": "bad"})]
    assert find_pairs(columns) == [tuple(columns)]


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if TEXT_NAMES.intersection(pair)])
def test_where_single_texts_are_read_no_text_of_a_pair_is_left_out_unless_one_is_named(pair):
    with pytest.raises(ValueError, match=rf"these rows are pairs \({' and '.join(pair)}\): name one text"):
        find_text_column(["id", *pair, "label"])
    assert find_text_column(["id", *pair, "label"], pair[0]) == pair[0]


@pytest.mark.parametrize(
    "available, named, message",
    [
        (["text", "review", "label"], {}, r"Several columns could be the text: \['text', 'review'\].*text_column"),
        (["text", "label", "sentiment"], {}, r"Several columns could be the label.*label_column"),
        (["a", "label"], {}, r"No column is known to be the text. The columns are \['a', 'label'\].*text_column"),
        (
            ["text", "b"],
            {},
            r"No column is known to be the label. The columns are \['text', 'b'\].*\(--label-column\)\.$",
        ),
        (
            ["a", "b"],
            {},
            r"with label_column \(--label-column\), and which is the text with text_column \(--text-column\)",
        ),
        (["text", "premise", "hypothesis", "label"], {}, "text_column"),
        (["question", "sentence", "Sentence", "label"], {}, "Several columns could be the text.*text_column"),
        (
            ["text", "label"],
            {"text": "body"},
            r"no column 'body' \(text_column\); the columns are \['text', 'label'\]",
        ),
        (["text", "label"], {"label": "y"}, r"no column 'y' \(label_column\)"),
        (["text", "label"], {"text_pair": "b"}, r"no column 'b' \(text_pair_column\)"),
        (["text", "label"], {"text": "label", "label": "label"}, "named twice"),
        (["text;label"], {}, r"The columns are \['text;label'\]"),
    ],
)
def test_columns_that_are_missing_or_unclear_are_refused(available, named, message):
    with pytest.raises(ValueError, match=message):
        find_columns(available, **named)


@pytest.mark.parametrize("empty", ["", " \t\n", None, "\u200b\ufeff", "\0"])
def test_an_empty_text_is_refused_with_split_column_and_row(empty):
    data = Dataset.from_dict({"t": ["a", empty, "b", empty]})
    with pytest.raises(ValueError, match=r"Column 't' of the dev split has 2 empty texts \(row 1, 3; .*remove"):
        check_texts(data, "dev", "t")


@pytest.mark.parametrize("text", [".", "\U0001f600", "\u05d0\u200f", "0"])
def test_a_short_or_odd_text_is_a_text(text):
    check_texts(Dataset.from_dict({"t": [text]}), "train", "t")


@pytest.mark.parametrize("values, kind", [([1, 2], "int64"), ([["a"], ["b"]], "List"), ([None, None], "null")])
def test_a_column_without_strings_is_no_text(values, kind):
    with pytest.raises(ValueError, match=f"Column 't' of the train split is not text but {kind}"):
        check_texts(Dataset.from_dict({"t": values}), "train", "t")


def test_strings_get_ids_in_sorted_order_of_train():
    ids, names = encoded(["pos", "neg", "None", "pos"], ["None"])
    assert names == ["None", "neg", "pos"]
    assert ids == {"train": [2, 1, 0, 2], "validation": [0]}


def test_class_names_and_their_order_are_kept():
    ids, names = encoded([1, 0, 1], [0], feature=ClassLabel(names=["neg", "pos", "never"]))
    assert names == ["neg", "pos", "never"]
    assert ids == {"train": [1, 0, 1], "validation": [0]}


@pytest.mark.parametrize(
    "values, names, ids",
    [
        ([0, 1, 1], ["LABEL_0", "LABEL_1"], [0, 1, 1]),
        (["0", "1", "1"], ["LABEL_0", "LABEL_1"], [0, 1, 1]),
        ([5, 1, 3], ["1", "3", "5"], [2, 0, 1]),
        (["10", "9", "10"], ["9", "10"], [1, 0, 1]),
        ([-1, 1, -1], ["-1", "1"], [0, 1, 0]),
        ([2.0, 1.0, 2.0], ["1", "2"], [1, 0, 1]),
        ([True, False, True], ["False", "True"], [1, 0, 1]),
        (["007", "1", "007"], ["007", "1"], [0, 1, 0]),
    ],
)
def test_numbers_and_booleans_become_classes_in_ascending_order(values, names, ids):
    found, found_names = encoded(values)
    assert (found["train"], found_names) == (ids, names)


def test_class_ids_of_splits_with_another_order_are_matched_by_name():
    train = labelled([0, 1], ClassLabel(names=["neg", "pos"]))
    other = labelled([0, 1], ClassLabel(names=["pos", "neg"]))
    texts = labelled(["pos", "neg"])
    result, _ = encode_labels(DatasetDict(train=train, validation=other, test=texts), "y")
    assert result["validation"]["labels"][:] == [1, 0]
    assert result["test"]["labels"][:] == [1, 0]


def test_names_made_of_digits_are_never_taken_for_ids():
    stars = labelled([0, 1], ClassLabel(names=["1", "2"]))
    read, _ = encode_labels(DatasetDict(train=stars, validation=labelled([1, 2])), "y")
    assert read["validation"]["labels"][:] == [0, 1]
    with pytest.raises(ValueError, match="Label 0 .row 0 of the validation split"):
        encode_labels(DatasetDict(train=stars, validation=labelled([0])), "y")


def test_a_split_of_digits_matches_a_train_split_of_strings():
    assert encoded(["1", "x", "x"], ["1"])[0]["validation"] == [0]


@pytest.mark.parametrize(
    "splits, message",
    [
        (([0, 1, -1],), "Row 2 of the train split has no label .column 'y', value -1"),
        (([0, 1], [1, -100]), "Row 1 of the validation split has no label.*-100"),
        (([-100, -100],), "No train row has a label"),
        (([0, 1, None],), "Row 2 of the train split has no label.*None"),
        ((["a", "b", ""],), "Row 2 of the train split has no label.*''"),
        (([1.0, float("nan"), 2.0],), "Row 1 of the train split has no label"),
        (([0, 1], [1, -1]), "Row 1 of the validation split has no label"),
        (([0, 1], [-1, -1]), "Row 0 of the validation split has no label"),
        (([None, None],), "Row 0 of the train split has no label"),
        (([float("inf"), 1.0],), "Label inf .row 0"),
        (([[0], [1]],), "Labels in column 'y' of the train split are List"),
        (([1, 1, 1],), "All train rows have the same label 1"),
        ((["a", "b"], ["a", "c"]), r"Label 'c' .row 1 of the validation split.*\['a', 'b'\]"),
        (([0, 1], [2]), r"Label 2 .row 0 of the validation split.*\['LABEL_0', 'LABEL_1'\]"),
        (([0, 1], ["x"]), "Label 'x' .row 0 of the validation split"),
        ((["pos", "neg", " pos"],), "' pos' and 'pos'.*differ only in case or blanks"),
        ((["Pos", "neg", "pos"],), "'Pos' and 'pos'.*differ only in case"),
        (([f"text {number}" for number in range(50)],), "50 different labels in 50 rows.*is this the text column"),
        (([str(number) for number in range(1001)] * 3,), "1001 different labels in 3003 rows"),
        (
            (["a", "b" * 1001],),
            "Label 'bbb.* .row 1 of the train split, column 'y'. has 1001 letters: is this",
        ),
    ],
)
def test_labels_that_make_no_classes_are_refused(splits, message):
    with pytest.raises(ValueError, match=message):
        encoded(*splits)


def test_a_class_label_alone_or_out_of_range_is_refused():
    with pytest.raises(ValueError, match="the same label 'a'"):
        encoded([0, 0], feature=ClassLabel(names=["a", "b"]))
    with pytest.raises(ValueError, match="Row 1 of the train split has no label"):
        encoded([0, -1, 1], feature=ClassLabel(names=["a", "b"]))
    unchecked = labelled([0, 5])
    unchecked.info.features = Features({"t": Value("string"), "y": ClassLabel(names=["a", "b"])})
    with pytest.raises(ValueError, match=r"Label 5 .row 1 of the train split, column 'y'. is outside 0..1"):
        encode_labels(DatasetDict(train=unchecked), "y")

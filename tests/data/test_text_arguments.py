"""Arguments that are columns of texts: every one takes any column, and none takes a table or a text for one."""

from __future__ import annotations

from collections import UserDict

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict
from samples import raw_rows, tiny_bert

from nlpkd.augment import ConstituentSwap, augment, follow_lengths, unlabelled
from nlpkd.compression.onnx import texts_to_compare
from nlpkd.compression.vocabulary import spelled_out, trim_vocabulary
from nlpkd.serving.texts import as_texts
from nlpkd.students.make_student import make_student

TEXTS = ["a good film", "the plot is bad"]
ROWS = Dataset.from_dict({"text": TEXTS})

COLUMNS = {
    "list": TEXTS,
    "tuple": tuple(TEXTS),
    "array": np.array(TEXTS),
    "series": pd.Series(TEXTS, index=[7, 3]),
    "column": ROWS["text"],
    "arrow": pa.chunked_array([TEXTS[:1], TEXTS[1:]]),
}
NO_COLUMNS = {
    "text": TEXTS[0],
    "bytes": b"a good film",
    "number": 3,
    "array without dimensions": np.array(TEXTS[0]),
    "frame": pd.DataFrame({"text": TEXTS}),
    "table": pa.table({"text": TEXTS}),
    "splits": DatasetDict({"train": ROWS}),
    "mapping": {"text": TEXTS},
    "mapping of another kind": UserDict(text=TEXTS),
    "stream": ROWS.to_iterable_dataset(),
}


class Upper:
    """An augmenter of one variant a text."""

    def variants(self, texts, draws):
        return [[text.upper() + " again"] for text in texts]

    def fingerprint(self) -> str:
        return "upper"


@pytest.fixture
def arguments(tokenizer, tmp_path):
    """What takes texts, by the argument's name: each returns what it makes of them."""
    labelled = raw_rows(20)
    others = Dataset.from_dict({"text": [*TEXTS, "so it was"], "label": [0, 1, 0]}).cast(labelled.features)

    def excluding(texts):
        return augment(others, Upper(), copies=1, exclude=[texts], cache_dir=tmp_path)["text"][:]

    model = tiny_bert()
    trimmed = trim_vocabulary(model, tokenizer, TEXTS[:1])[1]
    return {
        "trim_vocabulary": lambda texts: trim_vocabulary(model, tokenizer, texts)[1].get_vocab(),
        "spelled_out": lambda texts: spelled_out(trimmed, tokenizer, texts),
        "make_student": lambda texts: make_student(
            model, 1, vocabulary="trim", tokenizer=tokenizer, texts=texts
        )[1].get_vocab(),
        "unlabelled": lambda texts: unlabelled(texts, labelled, cache_dir=tmp_path)["text"][:],
        "exclude": excluding,
        "follow_lengths": lambda texts: follow_lengths(others, texts, ["text"])["text"][:],
        "export": lambda texts: texts_to_compare(texts, tokenizer, 64),
        "constituents": lambda texts: sorted(ConstituentSwap(0.3, texts)._pool),
        "serving": lambda texts: list(as_texts(texts)),
    }  # fmt: skip


ARGUMENTS = (
    "trim_vocabulary", "spelled_out", "make_student", "unlabelled", "exclude", "follow_lengths", "export",
    "constituents", "serving",
)  # fmt: skip


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_any_column_of_texts_is_read_as_the_list_is(argument, arguments):
    read = arguments[argument]
    expected = read(TEXTS)
    for form, given in COLUMNS.items():
        assert read(given) == expected, form
    assert read(text for text in TEXTS) == expected


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_a_table_and_one_text_are_no_column_of_texts(argument, arguments):
    for name, given in NO_COLUMNS.items():
        if argument == "serving" and name == "text":
            continue
        with pytest.raises(ValueError, match="got "):
            arguments[argument](given)


@pytest.mark.parametrize("argument", ARGUMENTS)
@pytest.mark.parametrize("text", [3, float("nan"), b"text", "cut \ud83d"], ids=repr)
def test_what_no_tokenizer_reads_is_named_by_its_place(argument, text, arguments):
    with pytest.raises(ValueError, match="(text|row|place) 1"):
        arguments[argument]([TEXTS[0], text])


def test_rows_are_a_data_set_and_not_its_name_or_its_splits(tmp_path):
    rows = raw_rows(20)
    for given in ("train.csv", pd.DataFrame({"text": TEXTS}), DatasetDict({"train": rows})):
        for refuse in (
            lambda given=given: augment(given, Upper(), cache_dir=tmp_path),
            lambda given=given: unlabelled(TEXTS, given, cache_dir=tmp_path),
            lambda given=given: follow_lengths(given, TEXTS, ["text"]),
        ):
            with pytest.raises(ValueError, match=r"(data|like|rows) must be"):
                refuse()


def test_names_in_a_list_are_not_taken_letter_by_letter(tokenizer):
    with pytest.raises(ValueError, match="columns must be texts, in a list"):
        follow_lengths(raw_rows(20), TEXTS, "text")
    with pytest.raises(ValueError, match="keep_tokens must be texts, in a list"):
        trim_vocabulary(tiny_bert(), tokenizer, TEXTS, keep_tokens="film")
    with pytest.raises(ValueError, match="what make_augmenter makes by this name"):
        augment(raw_rows(20), "neighbours")


def test_exclude_may_be_gone_through_once(tmp_path):
    rows, held_out = raw_rows(20), raw_rows(30, seed=3)
    made = unlabelled(held_out["text"], rows, exclude=(part for part in [held_out["text"][:25]]), cache_dir=tmp_path)
    assert not set(made["text"]) & set(held_out["text"][:25])


def test_texts_to_compare_are_texts_or_pairs_and_not_both(tokenizer):
    pairs = [("a good film", "the plot"), ["is", "bad"]]
    assert texts_to_compare(pairs, tokenizer, 64) == [("a good film", "the plot"), ("is", "bad")]
    with pytest.raises(ValueError, match="texts: text 1 is None"):
        texts_to_compare(["good", None], tokenizer, 64)
    with pytest.raises(ValueError, match="or of pairs, to compare on; got both"):
        texts_to_compare(["good", ("a", "b")], tokenizer, 64)

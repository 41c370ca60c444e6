"""A column that nothing reads changes nothing, whatever it holds; one that is asked for is refused with its reason."""

from __future__ import annotations

import json
import uuid

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nlpkd import load_text_classification
from nlpkd.data.files.readers import class_names, stream_rows
from nlpkd.data.sources import read_splits

WORDS = {"text": ["a good film", "a bad film"] * 3, "label": ["pos", "neg"] * 3}
NUMBERS = pd.Series(range(6))
ARROW = {
    "map": pa.array([[("a", 1)], [("b", 2)]] * 3, pa.map_(pa.string(), pa.int64())),
    "list view": pa.array([["a"], ["b"]] * 3, pa.list_view(pa.string())),
    "uuid": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([uuid.UUID(int=1).bytes] * 6, pa.binary(16))),
    "bool8": pa.ExtensionArray.from_storage(pa.bool8(), pa.array([0, 1] * 3, pa.int8())),
}
PANDAS = {
    "intervals": pd.cut(NUMBERS, 2),
    "periods": pd.Series(pd.period_range("2020", periods=6)),
    "complex": NUMBERS * 1j,
    "mixed": pd.Series([1, "q2"] * 3),
    "large": pd.Series([1, 10**30] * 3, dtype=object),
}
VALUES = {
    "numbers and texts": [1, "q2"] * 3,
    "lists and texts": [["a"], "b"] * 3,
    "a large number": [1, 10**30] * 3,
    "objects of two kinds": [{"a": 1}, {"a": "x"}] * 3,
    "half of a character": ["\ud83d", ""] * 3,
    "half of a character in an object": [{"a": ["\ud83d"]}, None] * 3,
}
SOURCES = {
    **{f"frame: {name}": pd.DataFrame(WORDS | {"odd": column}) for name, column in PANDAS.items()},
    **{f"parquet: {name}": pa.table(WORDS | {"odd": column}) for name, column in ARROW.items()},
    **{
        f"{kind}: {name}": pd.DataFrame(WORDS | {"odd": pd.Series(values, dtype=object)}).to_dict("records")
        for name, values in VALUES.items()
        for kind in ("list", "json", "jsonl")
    },
}


@pytest.fixture(params=SOURCES)
def source(request, tmp_path):
    """Rows of a text and a label, and a column "odd" that no data set can hold."""
    rows, kind = SOURCES[request.param], request.param.partition(":")[0]
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(rows, path)
    elif kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    return path if path.exists() else rows


def test_a_column_that_nothing_reads_is_left_out_and_named(source, tokenizer, caplog):
    assert read_splits(source)[0]["train"].to_dict() == WORDS
    assert "A column is left out. Column 'odd' of " in caplog.text
    data = load_text_classification(source, tokenizer=tokenizer)
    assert data["train"]["text"][:] == WORDS["text"] and data["train"]["labels"][:] == [1, 0] * 3


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_a_number_of_thousands_of_digits_is_left_out_too(kind, tmp_path):
    lines = ['{"text": "a", "odd": %s, "label": 0}' % ("7" * 5000), '{"text": "b", "label": 1}']
    path = tmp_path / f"rows.{kind}"
    path.write_text("\n".join(lines) if kind == "jsonl" else f"[{', '.join(lines)}]")
    assert read_splits(path)[0]["train"].to_dict() == {"text": ["a", "b"], "label": [0, 1]}


@pytest.mark.parametrize("value", ["%s", "-%s", "[%s]", '{"a": %s}'])
def test_a_number_of_thousands_of_digits_that_is_read_is_refused_in_plain_words(value, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"text": %s}' % (value % ("7" * 5000)))
    with pytest.raises(ValueError, match=r"'text' of .*row 1 holds .*777, .* digits of a number .*: 5000") as told:
        read_splits(path)
    assert "Decimal" not in str(told.value) and len(str(told.value)) < 300 + len(str(path))


@pytest.mark.parametrize("content", ["text,label,,\na,x,,\nb,y,,\n", ",text,label, \n0,a,x,\n1,b,y,stray\n"])
def test_columns_without_a_name_are_left_out_where_there_are_several(content, tmp_path, tokenizer, caplog):
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        path = tmp_path / f"rows{suffix}"
        path.write_text(content.replace(",", delimiter))
        expected = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
        caplog.clear()
        assert read_splits(path)[0]["train"].to_list() == expected == list(stream_rows(path))
        assert caplog.text.count("2 columns without a name are left out") == 1
        caplog.clear()
        load_text_classification(path, tokenizer=tokenizer, streaming=True)
        assert caplog.text.count("2 columns without a name are left out") == 1
        path.write_text("label,text,\nx,a\n".replace(",", delimiter))
        with pytest.raises(ValueError, match="Line 2 of .* has 2 cells, and the header has 3"):
            read_splits(path)
    (tmp_path / "index.csv").write_text(",text\n0,a\n")
    assert read_splits(tmp_path / "index.csv")[0]["train"].to_list() == [{"": "0", "text": "a"}]


@pytest.mark.parametrize("argument", ["text_column", "label_column", "soft_label_column"])
def test_a_column_that_is_asked_for_is_refused_with_its_reason(source, argument, tokenizer):
    with pytest.raises(ValueError, match="[Cc]olumn 'odd'"):
        load_text_classification(source, tokenizer=tokenizer, **{argument: "odd"})


@pytest.mark.parametrize("name", ["text", "Label", "premise", "stars "])
def test_a_column_that_may_be_meant_by_its_usual_name_is_refused_with_its_reason(name):
    rows = [{name: value, "other": "a"} for value in (1, "a")]
    for source in (rows, pd.DataFrame(rows)):
        with pytest.raises(ValueError, match=f"Column '{name}' of .*its values mix int .row 0. and str .row 1."):
            read_splits(source)


def test_a_column_of_a_usual_name_is_left_out_where_others_are_named(tokenizer):
    rows = [
        {"mail": text, "spam": label, "text": odd, "rating": odd}
        for text, label, odd in zip(*WORDS.values(), [1, "q2"] * 3, strict=True)
    ]
    data = load_text_classification(rows, tokenizer=tokenizer, text_column="mail", label_column="spam")
    assert data["train"]["mail"][:] == WORDS["text"] and data["train"]["labels"][:] == [1, 0] * 3
    for named in ({"text_column": "mail"}, {"label_column": "spam"}):
        with pytest.raises(ValueError, match="its values mix"):
            load_text_classification(rows, tokenizer=tokenizer, **named)


def test_rows_that_hold_nothing_else_are_refused_with_the_reason():
    with pytest.raises(ValueError, match="Column 'odd' of the list: .*its values mix"):
        read_splits([{"odd": 1}, {"odd": "a"}])


@pytest.mark.parametrize("name", ARROW)
def test_a_file_that_is_streamed_may_have_such_a_column_too(name, tmp_path, tokenizer):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table(WORDS | {"odd": ARROW[name]}), path)
    whole = load_text_classification(path, tokenizer=tokenizer)["train"]
    stream = load_text_classification(path, tokenizer=tokenizer, streaming=True)["train"]
    assert sorted((row["text"], row["labels"]) for row in whole) == sorted(
        (text, label) for text, label in zip(stream.raw_texts(), stream.head(6)["labels"], strict=True)
    )
    assert class_names(path, "label") is None
    with pytest.raises(ValueError, match="Column 'odd' of .* which a data set can't hold"):
        class_names(path, "odd")

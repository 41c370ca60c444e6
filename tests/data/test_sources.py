"""Reading files and datasets: values stay what they are, and whatever can't be read says where and why."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from hub_server import HubServer, hub_environment
from paths import ways_to
from processes import run as run_program

from nlpkd import cascade, distill, load_text_classification
from nlpkd.data.files.readers import LARGEST_FILE, stream_rows
from nlpkd.data.sources import read_splits, refuse_as_output
from nlpkd.pipeline.tune import tune

ROWS = [{"text": "good", "label": "pos"}, {"text": "bad", "label": "neg"}]


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(source) -> list[dict]:
    return read_splits(source)[0]["train"].to_list()


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.csv", "text,label\ngood,pos\nbad,neg\n"),
        ("a.tsv", "text\tlabel\ngood\tpos\nbad\tneg"),
        ("a.json", json.dumps(ROWS)),
        ("lines.json", "\n".join(map(json.dumps, ROWS))),
        ("a.jsonl", "\n\n".join(map(json.dumps, ROWS))),
        ("A.CSV", b"\xef\xbb\xbftext,label\r\ngood,pos\r\nbad,neg\r\n"),
    ],
)
def test_every_text_format_gives_the_same_rows(tmp_path, name, content):
    assert rows(write(tmp_path, name, content)) == ROWS
    assert rows(str(tmp_path / name)) == ROWS


def test_parquet_keeps_rows_and_class_names(tmp_path):
    data = Dataset.from_list(ROWS).class_encode_column("label")
    data.to_parquet(tmp_path / "a.parquet")
    read = read_splits(tmp_path / "a.parquet")[0]["train"]
    assert read.to_list() == data.to_list()
    assert read.features["label"].names == ["neg", "pos"]


def test_a_tsv_has_plain_quotes_as_glue_has_them(tmp_path):
    path = write(tmp_path, "a.tsv", 'sentence\tlabel\n"a" b\t1\n"open\t0\n``x \'\' "y\t1\n')
    assert [row["sentence"] for row in rows(path)] == ['"a" b', '"open', "``x '' \"y"]


def test_a_csv_has_quoted_commas_quotes_and_line_breaks(tmp_path):
    path = write(tmp_path, "a.csv", 'text,label\n"a, ""b""\nc",1\n\'d,0\n')
    assert [row["text"] for row in rows(path)] == ['a, "b"\nc', "'d"]


@pytest.mark.parametrize("word", ["null", "NA", "None", "nan", "N/A", "", "007", "1e5", "true", "2020-01-01"])
def test_no_word_of_a_file_turns_into_something_else(tmp_path, word):
    path = write(tmp_path, "a.csv", f"text,label\n{word},{word}\n{word},{word}\n")
    assert rows(path) == [{"text": word, "label": word}] * 2


@pytest.mark.parametrize(
    "text", ["\u05e9\u05dc\u05d5\u05dd \u202eabc", "a\u200bb\u2060c", "nul\0byte", "\U0001f600\u0301", "x" * 3_000_000]
)
def test_odd_unicode_nul_bytes_and_long_lines_survive_whole_and_streamed(tmp_path, text):
    expected = [{"text": text, "label": "x"}, {"text": "b", "label": "y"}]
    for name, content in (
        ("a.csv", f"text,label\n{text},x\nb,y\n"),
        ("a.tsv", f"text\tlabel\n{text}\tx\nb\ty\n"),
        ("a.jsonl", "\n".join(map(json.dumps, expected))),
    ):
        path = write(tmp_path, name, content)
        assert rows(path) == expected == list(stream_rows(path))


def test_a_limit_on_cells_that_someone_set_higher_is_left(tmp_path):
    before = csv.field_size_limit(LARGEST_FILE + 1)
    try:
        rows(write(tmp_path, "a.csv", "text,label\na,x\n"))
        assert csv.field_size_limit() == LARGEST_FILE + 1
    finally:
        csv.field_size_limit(before)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_file_too_large_to_be_read_whole_is_to_be_streamed(tmp_path, name):
    with (tmp_path / name).open("w") as file:
        file.truncate(LARGEST_FILE + 1)
    with pytest.raises(ValueError, match=f"{LARGEST_FILE + 1} bytes.*streaming=True"):
        read_splits(tmp_path / name)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.xlsx", "PK", "Unknown file type '.xlsx'.*csv, .tsv, .json"),
        ("a.data", "x", "Unknown file type '.data'"),
        ("a.csv", "", "is empty"),
        ("a.jsonl", " \n", "is empty"),
        ("a.csv", b"text,label\ncaf\xe9,1\n", "not UTF-8 \\(byte 14\\)"),
        ("a.csv", b"\xef\xbb\xbftext,label\ncaf\xe9,1\n", "not UTF-8 \\(byte 17\\)"),
        ("a.json", b'[{"text": "\xff"}]', "not UTF-8 \\(byte 11\\)"),
        ("a.csv", "text,text,label\na,b,1\n", "columns with the same name: \\['text'\\]"),
        ("a.csv", "text;label\nso, so;1\n", "separated by ';', and a .csv .*'a.csv', sep=';'.*to_csv"),
        ("a.csv", '\ntext;label\n"so; so";1\n', "separated by ';'"),
        ("a.csv", 'text;label\n"so\nso";1\n', "separated by ';'"),
        ("a.csv", "id|text|label\n1|a|x\n2|b|y\n", "separated by '[|]'"),
        ("a.csv", "text\tlabel\na\t1\n", "separated by '.t', and a .csv file is read by ','"),
        ("a.tsv", "text,label\na,1\n", "separated by ',', and a .tsv file is read by '.t'"),
        ("a.csv", "text,label\na,1\nb,2,3\n", "Line 3 of .* has 3 cells, and the header has 2"),
        ("a.csv", 'text,label\n"a,1\nb,2\n', "can't be read at line 3"),
        ("a.csv", 'text,label\n"a" b,1\n', "can't be read at line 2"),
        ("a.csv", "text,label\n", "The train split has no rows"),
        ("a.csv", "text,label", "The train split has no rows"),
        ("a.json", "[]", "The train split has no rows"),
        ("a.json", '[{"text": 1},', "not valid JSON"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', "Line 2 of .* not a JSON value"),
        ("a.jsonl", '{"text": "a"}\n["b"]\n', "Line 2 of .* is a list, not an object"),
        ("a.jsonl", '{"text": "a"}\n{"text": 5}\n', "'text'.*str \\(row 0\\) and int \\(row 1\\)"),
        ("a.jsonl", '{"text": "a"}\n{"text": "\\ud83d"}\n', "Line 2 of .*'text', holds half of a character"),
        ("a.jsonl", '{"text": "\\ud83d"}\n{"text": "a", "\\ud800": 1}\n', "Line 1 of .* holds half of a character"),
        ("a.jsonl", '{"label": 99999999999999999999999}\n', "'label'"),
        ("a.json", "[" * 100_000, "not valid JSON"),
        ("a.jsonl", '{"label": 1}\n{"label": %s}\n' % ("7" * 5000), "'label' of .*: row 1 holds .*7{20}.*no column"),
        ("a.json", '[{"label": %s}]' % ("7" * 5000), "'label' of .*: row 0 holds .*7{20}.*no column"),
        (
            "a.jsonl",
            '{"label": 1}\n{"label": 1%s}\n' % ("0" * 30),
            "'label' of .*: row 1 holds 10{30}, which no column",
        ),
        ("a.jsonl", '{"m": {"n": "\\ud83d"}}\n', "'m' of .*: row 0 holds {'n': '.ud83d'}, which no column"),
        ("a.jsonl", '{"text": "a", "\\ud800": 1}\n', "a column whose name, '.ud800', holds half of a character"),
        ("a.parquet", "PAR1 no", "not a readable parquet"),
    ],
)
def test_an_unreadable_file_is_refused(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        read_splits(write(tmp_path, name, content))


def test_a_single_column_may_be_called_what_it_likes(tmp_path):
    (tmp_path / "a.csv").write_text("text; as it came\ngood\nbad\n")
    assert read_splits(tmp_path / "a.csv")[0]["train"]["text; as it came"][:] == ["good", "bad"]


@pytest.mark.parametrize("path", ["missing.csv", "./missing", "a/b/c.parquet", "/no/where", "~/missing.jsonl"])
def test_a_missing_file_is_reported_and_not_looked_for_on_the_hub(path):
    with pytest.raises(ValueError, match="File not found|Unknown file type"):
        read_splits(path)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is a folder: pass a file"):
        read_splits(str(tmp_path))


@pytest.mark.parametrize("source", [None, 5, {"text": ["a"]}])
def test_an_unknown_kind_of_source_is_refused(source):
    with pytest.raises(ValueError, match="Can't read data from a"):
        read_splits(source)


def test_a_dataset_dict_gives_its_splits_under_our_names():
    data = Dataset.from_list(ROWS)
    splits, name = read_splits(DatasetDict(train=data, dev=data.select([0]), test=data.select([1])))
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 2, "validation": 1, "test": 1}
    assert name == "in-memory data"


def test_a_given_validation_wins_and_the_name_lists_the_files(tmp_path):
    data = Dataset.from_list(ROWS)
    write(tmp_path, "dev.csv", "text,label\nx,pos\n")
    splits, name = read_splits(DatasetDict(train=data, validation=data), tmp_path / "dev.csv")
    assert splits["validation"]["text"][:] == ["x"]
    assert name == "in-memory data, dev.csv"


def test_splits_that_are_not_used_are_said(caplog):
    data = Dataset.from_list(ROWS)
    read_splits(DatasetDict(train=data, unsupervised=data))
    assert "unsupervised" in caplog.text


@pytest.mark.parametrize(
    "names, message", [(["test"], "no 'train' split; found"), (["train", "dev", "valid"], "Several splits")]
)
def test_a_dataset_dict_with_unclear_splits_is_refused(names, message):
    with pytest.raises(ValueError, match=message):
        read_splits(DatasetDict({name: Dataset.from_list(ROWS) for name in names}))


def test_a_validation_dict_with_unclear_splits_is_refused():
    data = Dataset.from_list(ROWS)
    with pytest.raises(ValueError, match="which split is the validation split"):
        read_splits(data, DatasetDict(a=data, b=data))


def test_hub_arguments_are_refused_for_local_data():
    with pytest.raises(ValueError, match="in-memory data is not a Hub id"):
        read_splits(Dataset.from_list(ROWS), dataset_revision="main")


def test_two_revisions_of_a_hub_dataset_are_refused():
    with pytest.raises(ValueError, match="Two revisions"):
        read_splits("user/data@v1", dataset_revision="v2")


READ = """
import sys
from nlpkd.data.sources import read_splits, refuse_as_output
try:
    splits, name = read_splits(sys.argv[1])
    print(name, {split: rows["text"][:] for split, rows in splits.items()})
except Exception as error:
    print(type(error).__name__, error)
"""


def read_in_another_process(name: str, folder: Path, environment: dict[str, str]) -> str:
    return run_program(["-c", READ, name], folder, environment).stdout


def test_a_hub_dataset_is_loaded_by_id_and_revision(tmp_path):
    write(tmp_path, "train.csv", "text,label\ngood,1\nbad,0\n")
    write(tmp_path, "test.csv", "text,label\nfine,1\n")
    with HubServer() as server:
        server.add_repo("alice/reviews", tmp_path, repo_type="dataset")
        environment = hub_environment(server, tmp_path / "home")
        read = read_in_another_process("alice/reviews@main", tmp_path, environment)
        missing = read_in_another_process("alice/nothing", tmp_path, environment)
    assert read.strip().endswith("alice/reviews@main {'train': ['good', 'bad'], 'test': ['fine']}")
    assert "ValueError 'alice/nothing' is neither a file here nor a dataset you can read on the Hub" in missing


def test_a_hub_that_is_out_of_reach_names_the_way_without_it(tmp_path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    said = read_in_another_process("nobody/nothing", tmp_path, environment)
    assert said.startswith("ConnectionError") and "can't be reached" in said
    assert "give local files" in said


def test_frames_and_lists_of_dicts_are_read_like_files():
    frame = pd.DataFrame({"text": ["a", "b"], "label": ["x", None]}, index=[5, 9])
    splits, name = read_splits(frame, [{"text": "c", "label": "y"}, {"text": "d"}])
    assert splits["train"].to_dict() == {"text": ["a", "b"], "label": ["x", None]} and name == "in-memory data"
    assert splits["validation"].to_dict() == {"text": ["c", "d"], "label": ["y", None]}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (pd.DataFrame({0: ["a"]}), r"columns of the DataFrame, \[0\], must be different strings"),
        (pd.DataFrame([["a", "b"]], columns=["x", "x"]), "must be different strings"),
        (pd.DataFrame({"text": ["a", 3]}), r"Column 'text' of the DataFrame: .* mix str \(row 0\) and int \(row 1\)"),
        (
            pd.DataFrame({"n": [None, 1], "text": ["a", "\ud83d"]}, dtype=object),
            "Column 'text' of the DataFrame: row 1 holds half of a character .*found '.ud83d'",
        ),
        (pd.DataFrame({"n": [1, 10**30]}, dtype=object), "Column 'n' of the DataFrame: row 1 holds 10{30}, which no"),
        ([{"n": 10**5000}], "Column 'n' of the list: row 0 holds an integer of thousands of digits"),
        ([{"text": "a"}, "b"], "Row 1 of the list is a str"),
        ([{"text": "a"}, {"text": 3}], r"Column 'text' of the list: .* mix str \(row 0\) and int \(row 1\)"),
        ([], "train split has no rows"),
        (3, "Can't read data from a int"),
    ],
)
def test_rows_in_memory_that_can_t_be_read_are_refused(source, message):
    with pytest.raises(ValueError, match=message):
        read_splits(source)


def test_texts_that_arrow_keeps_as_views_are_texts(tmp_path, tokenizer):
    words = {"text": ["a good film", "a bad film"] * 4, "label": ["pos", "neg"] * 4}
    views = pa.table({name: pa.array(values, pa.string_view()) for name, values in words.items()})
    pq.write_table(views, tmp_path / "rows.parquet")
    for source in (tmp_path / "rows.parquet", Dataset(views)):
        rows = read_splits(source)[0]["train"]
        assert rows.to_dict() == words and {str(each.dtype) for each in rows.features.values()} == {"string"}
        assert load_text_classification(source, tokenizer=tokenizer)["train"]["labels"][:2] == [1, 0]


def test_a_file_of_rows_is_no_output_by_whatever_path_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file, other = (write(tmp_path, name, "text\ngood\n") for name in ("rows.csv", "other.csv"))
    ways = ways_to(file)
    for output in ways:
        for source in [*ways, "~/rows.csv"]:
            with pytest.raises(ValueError, match="test='.*' is the file '.*', which would be overwritten: choose"):
                refuse_as_output(output, train=other, test=str(source))
        refuse_as_output(output, train=other, validation=None, test=ROWS)
    refuse_as_output(tmp_path / "new.csv", train="user/rows", test=file)


@pytest.mark.parametrize(
    ("command", "name", "role"),
    [(distill, "report.json", "train"), (distill, "report.json", "test"), (tune, "tuning.json", "validation"),
     (cascade, "cascade.json", "data")],
)  # fmt: skip
def test_no_command_writes_its_result_over_the_rows(tmp_path, command, name, role):
    before = json.dumps(ROWS)
    file = write(tmp_path, name, before)
    given: dict = {"teacher": "user/teacher", "output_dir": tmp_path, "train": ROWS}
    if command is cascade:
        given = {"teacher": "user/teacher", "student": tmp_path, "target_agreement": 0.9}
    for path in map(str, ways_to(file)):
        with pytest.raises(ValueError, match=f"{role}=.* would be overwritten"):
            command(**given | {role: path})
    assert file.read_text() == before


@pytest.mark.parametrize("names", [(1, "label"), (None, "text"), (("a", 1), "label")])
def test_names_of_columns_that_are_no_texts_are_refused_in_plain_words(names):
    with pytest.raises(ValueError, match=r"the list has columns whose names are no texts: \[.*\]. Rename them"):
        read_splits([dict.fromkeys(names, "good"), {"text": "good"}])


@pytest.mark.parametrize("spell", [str.upper, str.title, lambda name: f" {name} "])
def test_splits_have_their_roles_by_their_names_in_any_case(spell):
    splits = {
        role: Dataset.from_list([row]) for role, row in zip(("train", "dev", "test"), [*ROWS, ROWS[0]], strict=True)
    }
    spelt = DatasetDict({spell(role): rows for role, rows in splits.items()})
    found = {role: rows.to_list() for role, rows in read_splits(spelt)[0].items()}
    assert found == {"train": [ROWS[0]], "validation": [ROWS[1]], "test": [ROWS[0]]}
    assert read_splits(ROWS, validation=spelt)[0]["validation"].to_list() == splits["dev"].to_list()
    with pytest.raises(ValueError, match="Several splits could be the test split"):
        read_splits(DatasetDict({**splits, "Test": splits["test"]}))

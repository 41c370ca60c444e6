"""Whatever the input: what can be read is read as it is, and what can't is a ValueError with a reason."""

from __future__ import annotations

import csv
import functools
import io
import json
import re
import string
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from operator import itemgetter

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import typer.testing
import yaml
from datasets import Dataset
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from samples import tiny_report
from transformers import BertTokenizer
from typer.testing import CliRunner

from nlpkd import load_text_classification
from nlpkd.cli import app
from nlpkd.data.collator import DistillationCollator
from nlpkd.data.columns import ROW, Columns, find_columns
from nlpkd.data.files.readers import stream_rows
from nlpkd.data.labels import encode_targets
from nlpkd.data.labels.classes import Classes
from nlpkd.data.sources import read_splits
from nlpkd.data.streaming import TextStream
from nlpkd.data.tokenization import TextEncoder
from nlpkd.evaluation.report import EvaluationReport
from nlpkd.hub.model_card import build_model_card
from nlpkd.models.layers import map_layers
from nlpkd.tasks import SINGLE_LABEL

settings.register_profile(
    "nlpkd",
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("nlpkd")

NASTY = ["\u202eabc", "zero\u200bwidth", "\ufeffbom", "nul\x00byte", "line\u2028separator", "e\u0301", "😀" * 3,
         "null", "NA", "1e5", '"quoted"', "a,b;c\td", "---", "<script>alert(1)</script>", "${HOME}", "'; DROP",
         "\x85", "\x1c", "-100", "True", "[1, 2]", "{}", "x" * 5000]  # fmt: skip
# What the default alphabet holds too, which takes seconds to be looked up in a codec.
LETTERS = st.characters(exclude_categories=["Cs"])
TEXTS = st.one_of(st.sampled_from(NASTY), st.text(LETTERS, max_size=40))
HALVES = st.text(st.characters(categories=["Cs", "Lu"]), min_size=1, max_size=3)
FULL_TEXTS = TEXTS.filter(lambda text: bool(text.strip()))
NAMES = st.text(LETTERS, min_size=1, max_size=12)
DIALECTS = st.sampled_from([(csv.QUOTE_ALL, "\n"), (csv.QUOTE_ALL, "\r\n"), (csv.QUOTE_MINIMAL, "\n"),
                            (csv.QUOTE_NONNUMERIC, "\r\n")])  # fmt: skip
BOM = st.sampled_from([b"", b"\xef\xbb\xbf"])


def written(rows: list[tuple[str, str]], dialect: tuple[int, str], delimiter: str = ",") -> bytes:
    lines = io.StringIO()
    writer = csv.writer(lines, delimiter=delimiter, quoting=dialect[0], lineterminator=dialect[1])
    writer.writerows([("text", "label"), *rows])
    return lines.getvalue().encode()


def read(path, content: bytes) -> list[tuple[str, str]]:
    """Read a file whole and as a stream, which must give the same."""
    path.write_bytes(content)
    rows = [(row["text"], row["label"]) for row in read_splits(path)[0]["train"]]
    if path.suffix != ".json":
        assert [(row["text"], row["label"]) for row in stream_rows(path)] == rows
    return rows


@given(rows=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6), dialect=DIALECTS, bom=BOM)
def test_a_csv_of_any_dialect_gives_the_texts_that_were_written(tmp_path, rows, dialect, bom):
    # csv.writer leaves a lone carriage return unquoted where the line ends in "\n".
    rows = [(a.replace("\r", " "), b.replace("\r", " ")) for a, b in rows]
    assert read(tmp_path / "rows.csv", bom + written(rows, dialect)) == rows


@given(rows=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6), bom=BOM, end=st.sampled_from(["\n", "\r\n"]))
def test_a_tsv_gives_the_texts_that_were_written(tmp_path, rows, bom, end):
    plain = [tuple(re.sub("[\t\r\n]", " ", text) for text in row) for row in rows]
    lines = ["text\tlabel", *("\t".join(row) for row in plain)]
    assert read(tmp_path / "rows.tsv", bom + (end.join(lines) + end).encode()) == plain


@given(rows=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6), bom=BOM, escaped=st.booleans())
def test_json_jsonl_and_parquet_give_the_texts_that_were_written(tmp_path, rows, bom, escaped):
    dicts = [{"text": text, "label": label} for text, label in rows]
    lines = "\n".join(json.dumps(row, ensure_ascii=escaped) for row in dicts)
    assert read(tmp_path / "rows.jsonl", bom + lines.encode()) == rows
    assert read(tmp_path / "rows.json", bom + json.dumps(dicts, ensure_ascii=escaped).encode()) == rows
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(dicts), buffer)
    assert read(tmp_path / "rows.parquet", buffer.getvalue()) == rows


CONTENT = st.one_of(
    st.binary(max_size=200),
    st.text(st.sampled_from('",\t\n\r\x00 a1éﬁ{}[]:\\'), max_size=60).map(str.encode),
    st.lists(st.tuples(TEXTS, TEXTS), max_size=4).map(lambda rows: written(rows, (csv.QUOTE_MINIMAL, "\n"))[:-3]),
)


@given(content=CONTENT, suffix=st.sampled_from([".csv", ".tsv", ".json", ".jsonl", ".parquet"]))
@settings(max_examples=400)
@example(content=b"\x00\x00\x00\x01\x00", suffix=".json")
@example(content=b"\x00\x00\x00\x01\x00", suffix=".jsonl")
def test_any_bytes_are_rows_or_a_value_error(tmp_path, content, suffix):
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(content)
    try:
        whole = list(read_splits(path)[0]["train"])
    except ValueError as error:
        assert "rows" in str(error)
    else:
        assert whole
    if suffix != ".json":
        try:
            list(stream_rows(path))
        except ValueError as error:
            assert "rows" in str(error)


VALUES = st.one_of(TEXTS, HALVES, st.integers(-3, 3), st.integers(), st.floats(), st.none(), st.booleans(),
                   st.binary(max_size=3), st.lists(st.integers(0, 3), max_size=3),
                   st.sampled_from(["a", "b", "c"]))  # fmt: skip
LABELS = st.one_of(
    st.lists(VALUES, min_size=1, max_size=8),
    st.lists(st.sampled_from(["a", "b", "B ", ""]), min_size=1, max_size=8),
    st.lists(st.integers(-2, 3), min_size=1, max_size=8),
    st.lists(st.lists(st.sampled_from(["x", "y", ""]), max_size=3), min_size=1, max_size=8),
    st.lists(st.floats(), min_size=1, max_size=8),
)


@given(labels=LABELS, texts=st.lists(st.one_of(FULL_TEXTS, VALUES), min_size=8, max_size=8), good=st.booleans())
@settings(max_examples=150)
def test_any_labels_and_texts_are_tokenised_rows_or_a_value_error(tokenizer, labels, texts, good):
    rows = [
        {"text": "good film" if good else text, "label": label} for text, label in zip(texts, labels, strict=False)
    ]
    try:
        data = load_text_classification(rows, tokenizer=tokenizer, max_length=16)
    except ValueError as error:
        assert len(str(error)) > 20
        return
    assert len(data["train"]) == len(rows)
    batch = DistillationCollator(tokenizer)(list(data["train"]))
    assert batch["input_ids"].shape[0] == len(rows) and batch["input_ids"].shape[1] <= 16
    assert int(batch["input_ids"].max()) < len(tokenizer)
    if data.problem_type == "single_label_classification":
        known = batch["labels"][batch["labels"] != -100]
        assert known.min() >= 0 and known.max() < len(data.id2label)
    else:
        assert torch.isfinite(batch["labels"].float()).all()


@given(labels=LABELS, text=st.one_of(FULL_TEXTS, HALVES))
def test_a_stream_takes_and_refuses_what_reading_the_file_whole_does(tmp_path, tokenizer, labels, text):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": text, "label": label}, default=str) for label in labels))

    def read(**settings):
        try:
            data = load_text_classification(
                path, tokenizer=tokenizer, problem_type="single_label_classification", max_length=16, **settings
            )
        except ValueError as error:
            assert re.search("[Rr]ow|[Ll]ine|All train rows|differ only in case", str(error)), error
            return None
        rows = sorted(data["train"], key=itemgetter(ROW)) if settings else data["train"]
        return data.id2label, data.truncated, [(row["labels"], row["input_ids"]) for row in rows]

    assert read(streaming=True) == read()


# Labels as files have them, as texts and as values with a type, to draw a column from.
WRITTEN = [
    ["0", "1"], ["1.0", "0.0"], ["01", "02"], ["+1", "-1"], [" 1", "0 "], ["1_0", "2_0"], ["\u0661", "\u0662"],
    ["\uff11", "1"], ["1,000", "2,000"], ["3", "20", "100"], ["1e2", "100", "5"], ["0", "1", "nan"], ["0", "1", "NA"],
    ["0", "1", ""], ["1", "01", "2"], ["01", "02", "NA"], ["NA", "x"], ["null", "None", "nan"], ["True", "False"],
    ["2020-01-02", "2021-01-02"],
    ["0.5", "1.5", "2"], ["0.5", "1.5", ""], ["0.5", "1.5", "NA"], ["0.5", "1.5", "-100"], ["a", "b", "-100"],
    ["0", "1", "-1"], ["0", "1", "-100.0"], ["['a']", "['a', 'b']"], ["['a' 'b']", "['b']"], ["[0 2]", "[1]", "[]"],
    ['["a"]', "[]"], ["[0. 1.]", "[1. 0.]"], ["['a']", "b"], ["[]", "b"], ["a\nb", "c"], ['"a"', "b,c", "d'"],
    ["a", "a\u200b"],
    ["\u00e9", "e\u0301"], ["a", "A"], ["a", " a"], ["", "a", "b"], ["\ufeffa", "b"], ["x" * 1001, "b"],
]  # fmt: skip
TYPED = [
    [0, 1], [0.0, 1.0], [1, 2, 5], [-1, 1], [True, False], [0.5, 1.0], [0.25, None, 2.0], [0, 1, None],
    [0.0, 1.0, None],
    [True, False, None], ["a", "b", None], [0, 1, -100], [0.5, 1.5, -100.0], [["a"], ["b", "a"]], [[0, 1], [1, 1]],
    [[0.0, 1.0], [1.0, 1.0]], [[2], [0, 1]], [12345678901234567, 12345678901234568],
]  # fmt: skip


def columns_of(pools):
    return st.sampled_from(pools).flatmap(lambda pool: st.lists(st.sampled_from(pool), min_size=3, max_size=8))


def told(path, tokenizer, source, streaming=False):
    """What a source's labels are taken for, and each row's; or why they are refused."""
    try:
        if not streaming:
            splits = read_splits(source)[0]
            targets = encode_targets(splits, "label")
            rows = targets.splits["train"]
            return targets.problem_type, targets.names, rows["text"][:], str(rows["labels"][:])
        columns = Columns("text", None, "label")
        stream = TextStream.from_file(source, columns, TextEncoder(columns, [tokenizer], 16))
        rows = stream.head(99)
        return SINGLE_LABEL, stream.names, list(stream.raw_texts()), str(rows["labels"][:])
    except ValueError as error:
        # Where it is, and how a missing value is written there, are the source's own.
        return re.sub(r"value ('[^']*'|None)\)", "value)", str(error).replace(f"{path}: ", ""))


def same_for_all(tmp_path, tokenizer, rows, sources):
    """Check that every reader says the same of rows, and a stream unless these are for reading whole."""
    expected = told("the list", tokenizer, rows)
    for source in sources:
        assert told(source, tokenizer, source) == expected, source
        if hasattr(source, "suffix") and source.suffix != ".json":
            found = told(source, tokenizer, source, streaming=True)
            assert found == expected or ("a stream has one" in found and expected[0] != SINGLE_LABEL), source


@given(labels=columns_of(WRITTEN), dialect=DIALECTS, bom=BOM)
@settings(max_examples=60)
def test_every_reader_and_format_takes_written_labels_for_the_same(tmp_path, tokenizer, labels, dialect, bom):
    rows = [{"text": f"good {number}", "label": label} for number, label in enumerate(labels)]
    paths = {kind: tmp_path / f"rows.{kind}" for kind in ("csv", "tsv", "json", "jsonl", "parquet")}
    table = [(row["text"], row["label"]) for row in rows]
    paths["csv"].write_bytes(bom + written(table, dialect))
    paths["json"].write_bytes(bom + json.dumps(rows).encode())
    paths["jsonl"].write_bytes(bom + "\n".join(map(json.dumps, rows)).encode())
    pq.write_table(pa.Table.from_pylist(rows), paths["parquet"])
    if not any(re.search("[\t\r\n]", label) for label in labels):
        paths["tsv"].write_bytes(bom + "\n".join("\t".join(row) for row in [("text", "label"), *table]).encode())
    else:
        del paths["tsv"]
    sources = [*paths.values(), pd.DataFrame(rows), Dataset.from_list(rows)]
    same_for_all(tmp_path, tokenizer, rows, sources)


@given(labels=columns_of(TYPED))
@settings(max_examples=30)
def test_every_reader_and_format_takes_typed_labels_for_the_same(tmp_path, tokenizer, labels):
    rows = [{"text": f"good {number}", "label": label} for number, label in enumerate(labels)]
    frame = pd.DataFrame(rows)
    paths = {kind: tmp_path / f"rows.{kind}" for kind in ("csv", "json", "jsonl", "parquet")}
    frame.to_csv(paths["csv"], index=False)
    frame.to_json(paths["json"], orient="records")
    frame.to_json(paths["jsonl"], orient="records", lines=True)
    frame.to_parquet(paths["parquet"])
    same_for_all(
        tmp_path, tokenizer, rows, [*paths.values(), frame, frame.to_dict("records"), Dataset.from_list(rows)]
    )


COLUMNS = st.sampled_from(["text", "sentence", "label", "labels", "premise"])


@given(available=st.lists(st.one_of(NAMES, HALVES, COLUMNS), min_size=1, max_size=5, unique=True),
       named=st.tuples(*[st.one_of(st.none(), NAMES, HALVES)] * 3))  # fmt: skip
def test_any_columns_are_told_apart_or_refused(available, named):
    try:
        columns = find_columns(available, *named)
    except ValueError as error:
        assert any(repr(name) in str(error) or name in str(error) for name in (*available, *filter(None, named)))
    else:
        used = [columns.text, columns.label, *([columns.text_pair] if columns.text_pair else [])]
        assert set(used) <= set(available) and len(set(used)) == len(used)


@given(names=st.lists(NAMES, min_size=2, max_size=6, unique_by=lambda name: name.strip().casefold()), data=st.data())
def test_labels_in_any_order_are_brought_into_the_asked_one(names, data):
    order = data.draw(st.permutations(range(len(names))))
    source, target = {at: names[place] for at, place in enumerate(order)}, dict(enumerate(names))
    aligned = Classes.of(target).positions_in(Classes.of(source))
    if aligned is not None:
        assert [source[at] for at in aligned] == names
    else:
        assert all(re.fullmatch(r"(label[_ ]?)?\d+", name, re.IGNORECASE) for name in names)


@given(source=st.dictionaries(st.integers(-1, 4), NAMES, max_size=4),
       target=st.dictionaries(st.integers(-1, 4), NAMES, max_size=4))  # fmt: skip
@settings(max_examples=200)
def test_any_two_label_maps_are_aligned_or_refused(source, target):
    try:
        aligned = Classes.of(target).positions_in(Classes.of(source))
    except ValueError as error:
        assert len(str(error)) > 20
    else:
        assert aligned is None or sorted(aligned) == sorted(source)


SPECS = st.one_of(
    st.sampled_from(["uniform", "last", "first", "learned", "1:2,2:4", "", ":", "1:", "0:0"]),
    st.text(st.sampled_from("0123456789:,- x²٣"), max_size=10),
    st.lists(st.tuples(st.integers(-2, 8), st.integers(-2, 14)), max_size=4),
    st.lists(st.one_of(st.integers(), st.text(LETTERS, max_size=2), st.lists(st.integers(), max_size=3)), max_size=3),
)


@given(spec=SPECS, student=st.integers(1, 6), teacher=st.integers(1, 12))
@settings(max_examples=300)
def test_any_layer_map_names_layers_that_there_are_or_is_refused(spec, student, teacher):
    try:
        pairs = map_layers(spec, student, teacher)
    except ValueError as error:
        assert len(str(error)) > 20
    else:
        assert pairs and all(0 <= ours <= student and 0 <= theirs <= teacher for ours, theirs in pairs)


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=6), side=st.sampled_from(["left", "right"]),
       multiple=st.sampled_from([None, 8]))  # fmt: skip
def test_a_batch_holds_every_token_of_its_rows_and_padding_beside_them(lengths, side, multiple):
    tokenizer = BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}, padding_side=side)
    rows = [{"input_ids": [4] * length, "attention_mask": [1] * length, "labels": 1} for length in lengths]
    batch = DistillationCollator(tokenizer, pad_to_multiple_of=multiple)(rows)
    width = max(lengths) if multiple is None else -(-max(lengths) // multiple) * multiple
    assert batch["input_ids"].shape == (len(rows), width)
    assert batch["attention_mask"].sum(dim=1).tolist() == lengths
    assert torch.equal(batch["input_ids"] != 0, batch["attention_mask"].bool())
    # Texts begin at the first place, whichever side the tokenizer was set to.
    assert batch["attention_mask"][:, 0].all()


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = Counter()

    def handle_starttag(self, tag, attrs):
        self.found[tag] += 1


def tags(text: str) -> Counter:
    parser = Tags()
    parser.feed(re.sub("(`{3,}).*?\\1", "", text, flags=re.DOTALL))
    return parser.found


@functools.cache
def plain_tags() -> set[str]:
    return set(tags(build_model_card(tiny_report(teacher="x"), model_name="y").content))


@given(labels=st.lists(TEXTS, min_size=2, max_size=4), name=FULL_TEXTS, value=TEXTS, role=FULL_TEXTS)
@settings(max_examples=200)
def test_a_card_shows_any_name_as_text_and_its_front_matter_is_parsed(labels, name, value, role):
    report = tiny_report(teacher=name)
    student = report.candidates["student"]
    report = replace(
        report,
        task=replace(report.task, labels=labels),
        run=replace(report.run, settings={"note": value}, license=value),
        candidates={"student": student, role: student},
    )
    content = build_model_card(report, model_name=name).content
    front = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    parsed = yaml.safe_load(front[1])
    assert parsed["library_name"] == "transformers" and "knowledge-distillation" in parsed["tags"]
    assert set(tags(content[front.end() :])) <= plain_tags()
    again = EvaluationReport.from_dict(json.loads(json.dumps(report.to_dict())))
    assert build_model_card(again, model_name=name).content == content


COMMANDS = ["train-teacher", "distill", "cache", "evaluate", "compress", "export", "verify", "push"]
FLAGS = ["--config", "--set", "--teacher", "--text", "--dry-run", "x=1", "run.yaml", "=", "--"]
WORDS = st.one_of(st.sampled_from(FLAGS), st.text(string.printable + "é\u202e\x00", max_size=8))  # fmt: skip


@pytest.fixture
def runner(monkeypatch) -> CliRunner:
    """A runner that makes the commands of the app once, and not for every call."""
    monkeypatch.setattr(typer.testing, "_get_command", functools.cache(typer.testing._get_command))
    return CliRunner()


@given(command=st.sampled_from(COMMANDS), words=st.lists(WORDS, max_size=4))
@settings(max_examples=150)
def test_any_words_on_the_command_line_are_a_wrong_use_or_a_value_error(command, words, tmp_path, monkeypatch, runner):
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, [command, *words])
    # What main() tells in one line.
    expected = (SystemExit, ValueError, OSError, RuntimeError)
    assert result.exception is None or isinstance(result.exception, expected), result.exception
    assert result.exit_code != 0 or "--help" in words
    assert not [path for path in tmp_path.iterdir() if path.name != "run.yaml"], "nothing half-done is left"


@given(content=st.one_of(CONTENT, st.recursive(VALUES, lambda inner: st.dictionaries(NAMES, inner, max_size=3))
                         .map(lambda value: yaml.safe_dump(value, allow_unicode=True).encode())))  # fmt: skip
@settings(max_examples=150)
def test_a_config_file_of_any_content_is_refused_without_a_traceback(content, tmp_path, runner):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    result = runner.invoke(app, ["distill", "--config", str(path)])
    assert isinstance(result.exception, SystemExit) and result.exit_code == 2, result.exception
    assert "Traceback" not in result.output


@pytest.mark.parametrize("text", [text for text in NASTY if text.strip()] + ["x y " * 250_000])
def test_a_text_of_any_kind_is_tokenised(tokenizer, text):
    rows = [{"text": text, "label": "a"}, {"text": "good", "label": "b"}]
    data = load_text_classification(rows, tokenizer=tokenizer, max_length=16)
    assert [len(row["input_ids"]) <= 16 for row in data["train"]] == [True, True]
    assert data["train"][0]["text"] == text

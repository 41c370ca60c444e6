"""A catalogue of the ways input goes wrong: each ends in an error that says what to do, and leaves nothing behind.

`python tests/test_bad_input.py` prints its table for README.md.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from paths import TESTS
from safetensors.torch import load_file, save_file
from samples import QUIET, fine_tuned_teacher, raw_rows, tiny_bert
from transformers import BertConfig, BertModel, BertTokenizer

from nlpkd import check_labels, distill, label
from nlpkd.objectives import AttentionMSELoss, CrossEntropyLoss, ForwardKLLoss, HiddenStateMSELoss

Call = dict[str, Any]


@pytest.fixture(scope="module")
def good(tmp_path_factory, tokenizer) -> Path:
    """A fine-tuned teacher and good files, which every case takes a copy of and spoils."""
    folder = tmp_path_factory.mktemp("good")
    fine_tuned_teacher(folder / "teacher", tokenizer)
    for name, rows in (("train", raw_rows(60, seed=2)), ("validation", raw_rows(30, seed=3))):
        frame = pd.DataFrame({"text": rows["text"], "label": [("neg", "pos")[at] for at in rows["label"]]})
        frame.to_csv(folder / f"{name}.csv", index=False)
    # As a downloaded model comes, without checksums.
    (folder / "teacher" / "checksums.json").rename(folder / "checksums.json")
    return folder


def run(folder: Path, **changes: Any) -> None:
    call: Call = {
        "teacher": folder / "teacher", "student": "layers:2", "train": folder / "train.csv",
        "validation": folder / "validation.csv", "objectives": "hinton",
    }  # fmt: skip
    settings = {**QUIET, "max_steps": 1, "rehearsal": True}
    distill(**(call | settings | changes), output_dir=folder / "out")


CASES: list[tuple[str, str, Callable[[Path], Call], str]] = []


def case(kind: str, what: str, message: str) -> Callable[[Callable[[Path], Call | None]], None]:
    """Add a case: a function that spoils the files of a folder, or gives other arguments, and what the error says."""

    def add(spoil: Callable[[Path], Call | None]) -> None:
        CASES.append((kind, what, lambda folder: spoil(folder) or {}, message))

    return add


def rewritten(name: str, change: Callable[[pd.DataFrame], Any]) -> Callable[[Path], Call]:
    """Change the rows of a file."""

    def spoil(folder: Path) -> Call:
        frame = pd.read_csv(folder / name)
        changed = change(frame)
        (frame if changed is None else changed).to_csv(folder / name, index=False)
        return {}

    return spoil


def content(name: str, data: bytes) -> Callable[[Path], Call]:
    """Give the train rows by a file with these bytes."""

    def spoil(folder: Path) -> Call:
        (folder / name).write_bytes(data)
        return {"train": folder / name}

    return spoil


def put(row: int, column: str, value: Any) -> Callable[[pd.DataFrame], Any]:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame[column] = frame[column].astype(object)
        frame.loc[row, column] = value
        return frame

    return change


def given(**changes: Any) -> Callable[[Path], Call]:
    return lambda folder: changes


def config(**changes: Any) -> Callable[[Path], Call]:
    """Change the teacher's config.json."""

    def spoil(folder: Path) -> Call:
        path = folder / "teacher" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return {}

    return spoil


def rows_of(folder: Path, name: str = "train") -> list[dict[str, Any]]:
    return pd.read_csv(folder / f"{name}.csv").to_dict("records")


def soft(folder: Path, probabilities: list[float]) -> Call:
    """Give soft labels in place of a teacher; the student is a saved model."""
    rows = [row | {"soft": probabilities} for row in rows_of(folder)]
    return {"train": rows, "soft_label_column": "soft", "teacher": None, "student": folder / "teacher"}


case("file", "it is not there", "File not found: .*nothing.csv")(lambda folder: {"train": folder / "nothing.csv"})
case("file", "it is empty", "rows.csv is empty")(content("rows.csv", b"\n \n"))
case("file", "a header and no rows", "train split has no rows")(content("rows.csv", b"text,label\n"))
case("file", "it is a folder", "is a folder: pass a file in it")(lambda folder: {"train": str(folder / "teacher")})
case("file", "an Excel workbook", "Unknown file type '.xlsx'")(content("rows.xlsx", b"PK"))
case(
    "file",
    "a web page in place of the csv",
    "Line 2 of .*rows.csv has 2 cells, and the header has 1: .*check that it is the right file",
)(content("rows.csv", b"<!DOCTYPE html>\n<html><body>Log in, please</body></html>\n"))
case("file", "compressed, under the name of a csv", "not UTF-8")(
    content("rows.csv", gzip.compress(b"text,label\ngood,pos\n"))
)
case("file", "a parquet file cut short", "not a readable parquet file")(content("rows.parquet", b"PAR1" + b"\0" * 40))
case("file", "a json object that is no row", "No column is known to be the label.*'data'")(
    content("rows.json", b'{"data": [1, 2]}')
)
case("file", "a jsonl line cut short", "Line 2 of .*rows.jsonl is not a JSON value")(
    content("rows.jsonl", b'{"text": "good", "label": "pos"}\n{"text": "ba')
)
case("file", "a row with too many cells", "Line 3 of .*rows.csv has 3 cells, and the header has 2: put a text")(
    content("rows.csv", b"text,label\ngood,pos\nbad, very bad,neg\n")
)
case("file", "a quote that is never closed", "rows.csv can't be read at line 4: a quote is opened and never closed")(
    content("rows.csv", b'text,label\ngood,pos\n"bad,neg\nfine,pos\n')
)
case("encoding", "Latin-1", r"not UTF-8 \(byte 12\)")(content("rows.csv", "text,label\nsé,pos\n".encode("latin-1")))
case("encoding", "UTF-16", "not UTF-8")(content("rows.csv", "text,label\ngood,pos\n".encode("utf-16")))
case("encoding", "half of a character", "Line 2 of .*, column 'text', holds half of a character .*remove it")(
    content("rows.jsonl", b'{"text": "good", "label": 1}\n{"text": "\\ud83d", "label": 0}')
)
case("encoding", "NUL bytes in the header", "NUL byte")(content("rows.csv", b"te\0xt,label\ngood,pos\nbad,neg\n"))
case("columns", "the named text column is missing", "'review'.*'text'")(given(text_column="review"))
case("columns", "the named label column is missing", "'stars'.*'label'")(given(label_column="stars"))
case("columns", "two could be the text", "Several columns could be the text: .'text', 'sentence'")(
    rewritten("train.csv", lambda frame: frame.assign(sentence=frame["text"]))
)
case("columns", "none could be the text", "No column is known to be the text")(
    rewritten("train.csv", lambda frame: frame.rename(columns={"text": "c1"}))
)
case("columns", "two of the same name", "columns with the same name: ")(
    content("rows.csv", b"text,label,label\ngood,pos,1\nbad,neg,0\n")
)
case("columns", "validation lacks the label", "validation split has no column 'label'")(
    rewritten("validation.csv", lambda frame: frame[["text"]])
)
case("columns", "the text holds numbers", "is not text but int64")(
    lambda folder: {"train": [{"text": 3, "label": "pos"}, {"text": 4, "label": "neg"}]}
)
case("columns", "text and label are the same", "named twice")(given(text_column="text", label_column="text"))
case("texts", "an empty one", r"train split has 1 empty texts \(row 3")(rewritten("train.csv", put(3, "text", "")))
case("texts", "blanks alone", r"validation split has 1 empty texts \(row 2")(
    rewritten("validation.csv", put(2, "text", "  \u3000"))
)
case("labels", "one class alone", "nothing to classify")(
    rewritten("train.csv", lambda frame: frame.assign(label="pos"))
)
case("labels", "one that train does not have", "'mixed' .row 4 of the validation split")(
    rewritten("validation.csv", put(4, "label", "mixed"))
)
case("labels", "missing in validation", "Row 4 of the validation split has no label")(
    rewritten("validation.csv", put(4, "label", ""))
)
case("labels", "two spellings of one", "differ only in case")(rewritten("train.csv", put(0, "label", "POS")))
case("labels", "the text column, by mistake", "different labels in 60 rows")(
    lambda folder: {
        "train": [{"review": "good", "text": f"text {at}"} for at in range(60)], "text_column": "review",
        "label_column": "text", "validation": None, "validation_split": 0.1,
    }
)  # fmt: skip
case("labels", "numbers and words", "its values mix str .row 0. and int .row 1.")(
    lambda folder: {"train": [{"text": "good", "label": "pos"}, {"text": "bad", "label": 0}]}
)
case("labels", "ids outside of the names", "outside 0..1")(
    lambda folder: {
        "train": Dataset.from_dict(
            {"text": ["good", "bad", "fine"], "label": [0, 1, 5]},
            features=Features({"text": Value("string"), "label": Value("int64")}),
        ).cast(Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})),
    }
)  # fmt: skip
case("labels", "scores that are infinite", "no finite float32")(
    lambda folder: {"train": [{"text": "good", "label": 0.5}, {"text": "bad", "label": float("inf")}]}
)
case("soft labels", "too few of them", "'soft': it has 1 numbers for 2 labels")(lambda folder: soft(folder, [1.0]))
case("soft labels", "less than nothing", "must be finite and not negative")(lambda folder: soft(folder, [-0.5, 1.5]))
case("soft labels", "the column is missing", "soft")(
    lambda folder: soft(folder, [0.5, 0.5]) | {"train": rows_of(folder)}
)
case("soft labels", "and a teacher too", "either a teacher or soft_label_column")(given(soft_label_column="soft"))
case("splits", "no validation rows", "no held-out rows")(given(validation=None))
case("splits", "a held-out part of everything", "validation_split=1.5")(given(validation=None, validation_split=1.5))
case("splits", "validation given twice", "leave one of them out")(given(validation_split=0.1))
case("splits", "a DatasetDict without train", "There is no 'train' split")(
    lambda folder: {"train": DatasetDict({"dev": raw_rows(8)}), "validation": None}
)
case("teacher", "nothing is there", "teacher-2")(lambda folder: {"teacher": str(folder / "teacher-2")})
case("teacher", "a folder without a model", "config.json")(
    lambda folder: (folder / "empty").mkdir() or {"teacher": folder / "empty"}
)


@case("teacher", "weights of which a bit flipped, where there are checksums", "its checksum is another one")
def _(folder: Path) -> None:
    (folder / "checksums.json").rename(folder / "teacher" / "checksums.json")
    path = folder / "teacher" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@case("teacher", "weights cut short", "cut short or damaged")
def _(folder: Path) -> None:
    path = folder / "teacher" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@case("teacher", "pickled weights alone", "safetensors")
def _(folder: Path) -> None:
    path = folder / "teacher" / "model.safetensors"
    torch.save(load_file(path), folder / "teacher" / "pytorch_model.bin")
    path.unlink()


@case("teacher", "no classification head", "classifier")
def _(folder: Path) -> None:
    BertModel(BertConfig(**json.loads((folder / "teacher" / "config.json").read_text()))).save_pretrained(
        folder / "teacher"
    )


@case("teacher", "weights that are not numbers", "NaN or infinite logits")
def _(folder: Path) -> None:
    path = folder / "teacher" / "model.safetensors"
    weights = load_file(path)
    save_file({name: torch.full_like(each, torch.nan) for name, each in weights.items()}, path, {"format": "pt"})


case("teacher", "config.json is no JSON", "config.json' is not a valid JSON")(
    lambda folder: (folder / "teacher" / "config.json").write_text("{") and {}
)
case("teacher", "a model type that is unknown", "some-new-model|model_type|model type")(
    config(model_type="some-new-model")
)
case("teacher", "names that contradict the data's", "contradict")(
    config(id2label={"0": "toxic", "1": "harmless"}, label2id={"toxic": 0, "harmless": 1})
)
case("teacher", "names in the wrong order", "its id2label is wrong")(
    config(id2label={"0": "pos", "1": "neg"}, label2id={"pos": 0, "neg": 1})
)


@case("teacher", "another number of labels", "different numbers of labels: 2 .* and 3")
def _(folder: Path) -> None:
    names = {0: "bad", 1: "neutral", 2: "good"}
    tiny_bert(layers=4, num_labels=3, id2label=names, label2id={v: k for k, v in names.items()}).save_pretrained(
        folder / "teacher"
    )


@case("teacher", "never trained", "no better than always answering")
def _(folder: Path) -> None:
    names = {0: "neg", 1: "pos"}
    tiny_bert(layers=4, seed=9, id2label=names, label2id={"neg": 0, "pos": 1}).save_pretrained(folder / "teacher")


@case("tokenizer", "it is missing", "no tokenizer's vocabulary")
def _(folder: Path) -> None:
    for path in (folder / "teacher").glob("*token*"):
        path.unlink()
    (folder / "teacher" / "vocab.txt").unlink(missing_ok=True)


@case("tokenizer", "more words than the model has", "embeddings of 24 tokens, and the training rows have token")
def _(folder: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{at}" for at in range(200)), "film", "good"]
    BertTokenizer(vocab={word: at for at, word in enumerate(words)}).save_pretrained(folder / "teacher")


case("tokenizer", "texts longer than the model takes", "max_length=4096 is more than the 64")(given(max_length=4096))
case("tokenizer", "no room for text", "max_length=2 leaves no room")(given(max_length=2))


@case("student", "another tokenizer, and objectives on tokens", "match token with token")
def _(folder: Path) -> Call:
    tiny_bert(layers=2, hidden=8, vocab_size=8).save_pretrained(folder / "other")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "movie", "bad", "film"]
    BertTokenizer(vocab={word: at for at, word in enumerate(words)}).save_pretrained(folder / "other")
    return {"student": folder / "other", "objectives": [HiddenStateMSELoss(), CrossEntropyLoss()]}


case("student", "more layers than the teacher has", "9 layers out of 4")(given(student="layers:9"))
case("student", "no layers", "can't choose 0 layers out of 4")(given(student="layers:0"))
case("student", "a layer that is not there", "ascending numbers from 1 to 4")(given(student="layers:1,7"))
case("student", "a name nobody knows", "tinybert-5l-1")(given(student="tinybert-5l-1"))
case("student", "no such folder", "my-student")(lambda folder: {"student": str(folder / "my-student")})
case("shapes", "attention maps of other head counts", "4 heads a layer, the teacher 2")(
    lambda folder: {"student": tiny_bert(layers=2, heads=4), "objectives": [AttentionMSELoss(), CrossEntropyLoss()]}
)
case("shapes", "a layer map beyond the student", "layer pair 3:4 is out of range")(
    given(objectives=[HiddenStateMSELoss(layers="3:4"), CrossEntropyLoss()])
)
case("shapes", "hidden states of a BiLSTM", "the student has none to give")(
    given(student="bilstm", objectives="tinybert")
)
case("settings", "a preset nobody knows", "hinton")(given(objectives="hintn"))
case("settings", "no objectives", "objectives is an empty list")(given(objectives=[]))
case("settings", "a temperature of 0", "temperature")(lambda folder: {"objectives": [ForwardKLLoss(temperature=0.0)]})
case("settings", "a negative weight", "weight")(lambda folder: {"objectives": [CrossEntropyLoss(weight=-1.0)]})
case("settings", "objectives that are a number", "objectives=5: give a preset's name")(given(objectives=5))
case("settings", "class weights that are a number", "class_weights=5")(given(class_weights=5))
case("settings", "a teacher that is a number", "a path, a Hub id or a PreTrainedModel, got 5")(given(teacher=5))
case("settings", "more layers than there are", "can't choose 5 layers out of 4")(given(student=5))
case("settings", "a student that is a fraction", "a path, a Hub id or a PreTrainedModel, got 5.5")(given(student=5.5))
case("settings", "a switch that is a text", "push_to_hub must be True or False, got push_to_hub='no'")(
    given(push_to_hub="no")
)
case("settings", "no seeds", "num_seeds must be a whole number of at least 1")(given(num_seeds=0))
case("settings", "a batch of no rows", "per_device_train_batch_size must be >= 1")(
    given(per_device_train_batch_size=0)
)
case("settings", "a negative learning rate", "learning_rate must be >= 0")(given(learning_rate=-1e-3))
case("settings", "an argument nobody knows", "learning_rat")(given(learning_rat=1e-3))
case("settings", "weights of the wrong number of classes", "got 3 class weights for 2 labels")(
    given(class_weights=[1.0, 2.0, 3.0])
)
case("settings", "a task nobody knows", "problem_type='ranking' is no task")(given(problem_type="ranking"))
case("settings", "single names, taken for lists of labels", "Row 0 of the train split has 'neg'")(
    given(problem_type="multi_label_classification")
)
case("settings", "windows that overlap whole", "window_stride must be from 0 to 13")(
    given(max_length=16, window_stride=16)
)


@pytest.mark.parametrize("spoil, message", [pytest.param(*each[2:], id=f"{each[0]}: {each[1]}") for each in CASES])
def test_bad_input_ends_in_its_error_and_writes_nothing(good, tmp_path, spoil, message):
    folder = tmp_path / "job"
    shutil.copytree(good, folder)
    with pytest.raises((ValueError, TypeError, OSError)) as caught:
        run(folder, **spoil(folder))
    text = " ".join(str(caught.value).split())
    assert re.search(message, text), text
    left = [path.name for path in (folder / "out").rglob("*") if path.is_file()]
    assert left in ([], [".lock"]), "nothing is written before the input is known to be good"


def table() -> str:
    """The catalogue, for README.md."""
    kinds = dict.fromkeys(kind for kind, *_ in CASES)
    lines = [f"| {kind} | {'; '.join(what for of, what, *_ in CASES if of == kind)} |" for kind in kinds]
    return "\n".join(["| what | how it goes wrong |", "|---|---|", *lines])


def test_the_catalogue_is_in_the_readme():
    text = (TESTS / "README.md").read_text(encoding="utf-8")
    assert table() in text, "run `python tests/test_bad_input.py` and put what it prints into tests/README.md"


if __name__ == "__main__":
    print(table())


@pytest.mark.parametrize("ask", [label, check_labels])
def test_rows_that_nobody_trains_on_are_not_called_train_rows(ask, tmp_path):
    rows = [{"text": "a", "label": "b"}, {"text": " ", "label": "c"}]
    given = {"output": tmp_path / "out.parquet"}
    given |= {"teacher": lambda texts: [[0.5, 0.5] for _ in texts], "classes": ["b", "c"]} if ask is label else {}
    with pytest.raises(ValueError, match="data, row 1|of the data") as refused:
        ask(**given, source=rows) if ask is label else ask(rows, **given)
    assert "train" not in str(refused.value)

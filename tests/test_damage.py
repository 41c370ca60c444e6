"""Files that nlpkd reads back, damaged: each error is one of two kinds, and names the folder or the file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from commands import Command, finish
from samples import tiny_bert
from transformers import TrainerState

from nlpkd import EvaluationReport
from nlpkd.compression.onnx import export_record
from nlpkd.evaluation.html_report import training_curves
from nlpkd.hub.push import files_to_push
from nlpkd.models.loading import load_classifier, load_config, load_tokenizer
from nlpkd.models.source import ModelSource
from nlpkd.pipeline.compress import _earlier_records
from nlpkd.training.checkpoints import last_whole
from nlpkd.training.resuming import resolve_resume_checkpoint

CONTENTS = {
    "empty": b"",
    "cut short": b'{"a": {"b": 1',
    "a list": b"[]",
    "null": b"null",
    "a number": b"3",
    "a list of numbers": b"[1, 2]",
    "bytes that are no text": b"\xff\xfe\x00\x81",
    "too deep": b"[" * 100_000,
    "a web page": b"<!doctype html><title>Log in</title>",
}
READERS = {
    "config.json": [load_config, load_classifier],
    "tokenizer.json": [load_tokenizer],
    "tokenizer_config.json": [load_tokenizer],
    "model.safetensors": [load_classifier],
    "model.safetensors.index.json": [load_classifier],
    "onnx/export.json": [export_record, lambda folder: files_to_push(folder, "a/b")],
    "report.json": [EvaluationReport.load],
    "compression.json": [lambda folder: _earlier_records(ModelSource.of(folder))],
}


@pytest.fixture(scope="module")
def student(tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "student"
    tiny_bert().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "onnx").mkdir()
    return folder


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_named(name, content, student, tmp_path):
    folder = shutil.copytree(student, tmp_path / "damaged")
    (folder / name).write_bytes(CONTENTS[content])
    if content == "a list" and name == "compression.json":
        return  # It says that nothing was done.
    for read in READERS[name]:
        with pytest.raises((ValueError, OSError), match=str(folder)):
            read(folder)


def test_settings_of_a_wrong_type_are_named_with_their_folder(student, tmp_path):
    config = json.loads((student / "config.json").read_text())
    for name in ("hidden_size", "num_hidden_layers", "id2label", "hidden_act", "model_type"):
        folder = shutil.copytree(student, tmp_path / name)
        (folder / "config.json").write_text(json.dumps(config | {name: "no such thing"}))
        with pytest.raises((ValueError, OSError), match=str(folder)):
            load_classifier(folder)


def test_a_damaged_history_costs_the_page_its_curves_and_nothing_else(tmp_path, caplog):
    for content in CONTENTS.values():
        (tmp_path / "trainer_state.json").write_bytes(content)
        caplog.clear()
        assert training_curves(tmp_path) == []
        assert f"{tmp_path}/trainer_state.json is damaged" in caplog.text


def test_a_checkpoint_whose_record_is_damaged_is_of_no_run(tmp_path):
    checkpoint = tmp_path / "checkpoint-2"
    checkpoint.mkdir()
    (checkpoint / "checksums.json").write_text('{"files": {}}')
    record = {"result": {}, "length": {}, "start": {}}
    for content in CONTENTS.values():
        (checkpoint / "distillation_run.json").write_bytes(content)
        assert last_whole(tmp_path, record) == checkpoint
        with pytest.raises(ValueError, match="checkpoint-2/distillation_run.json is damaged"):
            resolve_resume_checkpoint(True, str(tmp_path), record)


def test_a_checkpoint_whose_history_is_damaged_is_not_resumed_from(tmp_path):
    checkpoint = tmp_path / "checkpoint-2"
    checkpoint.mkdir()
    (checkpoint / "checksums.json").write_text('{"files": {}}')
    record = {"result": {}, "length": {}, "start": {}}
    (checkpoint / "distillation_run.json").write_text(json.dumps(record))
    assert resolve_resume_checkpoint(True, str(tmp_path), record) == str(checkpoint)
    numbers = {name for name, value in vars(TrainerState()).items() if isinstance(value, (int, float))}
    assert {"global_step", "total_flos", "num_input_tokens_seen", "epoch"} <= numbers
    wrong = [json.dumps({name: "two"}).encode() for name in sorted(numbers)]
    (checkpoint / "trainer_state.json").write_text(json.dumps({"epoch": 2, "best_metric": None, "save_steps": 1.0}))
    assert resolve_resume_checkpoint(True, str(tmp_path), record) == str(checkpoint)
    odd = (b'{"A": 1}', b'{"A": [{"args": 1}]}', b"[1]", b'"A"')
    callbacks = [b'{"stateful_callbacks": %s}' % each for each in odd]
    for content in (*CONTENTS.values(), b"[]", *wrong, b'{"log_history": [1]}', *callbacks):
        (checkpoint / "trainer_state.json").write_bytes(content)
        with pytest.raises(ValueError, match="checkpoint-2/trainer_state.json is damaged"):
            resolve_resume_checkpoint(True, str(tmp_path), record)


def test_the_command_line_says_so_in_one_line(student, tmp_path):
    folder = shutil.copytree(student, tmp_path / "damaged")
    (folder / "tokenizer.json").write_text("{")
    (tmp_path / "rows.csv").write_text("text,label\ngood,0\nbad,1\n")
    code, _, said = finish(Command("evaluate", "damaged", "--data", "rows.csv", cwd=tmp_path))
    assert code == 2 and "Traceback" not in said, said
    assert said.splitlines()[-1].startswith("nlpkd: the tokenizer in 'damaged' can't be loaded: "), said

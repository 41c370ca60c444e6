"""What a training proposes next is told wherever its folder is."""

from __future__ import annotations

from pathlib import Path

import pytest
from samples import QUIET, raw_rows, tiny_bert
from typer.testing import CliRunner

from nlpkd.cli import app
from nlpkd.cli.training import beside


@pytest.mark.parametrize("folder", ["a", "a/b", ".", "..", "../..", "/", "/a", "./a/"])
def test_a_folder_beside_another_one_is_in_the_same_folder(folder):
    found = beside(Path(folder), "student")
    assert found.resolve() == Path(folder).resolve().parent / "student"
    assert found.is_absolute() == Path(folder).is_absolute()


def test_a_teacher_in_the_folder_that_one_is_in_is_followed_by_a_student_beside_it(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_bert(layers=2).base_model.save_pretrained("backbone")
    tokenizer.save_pretrained("backbone")
    Path("train.csv").write_text("\n".join(["text,label", *(f"{row['text']},{row['label']}" for row in raw_rows(16))]))
    words = ["--model", "backbone", "--train", "train.csv", "--validation-split", "0.5", "--output-dir", "."]
    settings = [word for name, value in QUIET.items() for word in ("--set", f"{name}={str(value).lower()}")]
    done = CliRunner().invoke(app, ["train-teacher", *words, *settings, "--max-steps", "1"])
    assert done.exit_code == 0, done.exception
    assert "--output-dir ../student" in done.output and Path("model.safetensors").is_file()

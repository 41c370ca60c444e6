"""Folders with letters in their names that mean something elsewhere, through a whole training; and bytes, refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from samples import QUIET, raw_rows, tiny_bert

from nlpkd import EvaluationReport, distill, load, train_teacher
from nlpkd.hub.push import files_to_push
from nlpkd.hub.saving import save_student
from nlpkd.pipeline.compress import compress
from nlpkd.pipeline.evaluate import evaluate
from nlpkd.pipeline.export import export_student


@pytest.mark.parametrize("name", ["a[1]*?@b=c b'c\nd"])
def test_a_training_in_a_folder_of_any_name_is_saved_measured_and_ready_to_be_pushed(name, tmp_path, tokenizer):
    folder = tmp_path / name
    folder.mkdir()
    save_student(tiny_bert(layers=2), folder / "teacher", tokenizer)
    for split, rows in (("train", 24), ("validation", 12)):
        raw_rows(rows).to_pandas().to_csv(folder / f"{split}.csv", index=False)
    result = distill(
        str(folder / "teacher"), "layers:1", str(folder / "train.csv"), str(folder / "validation.csv"),
        objectives="hinton", output_dir=folder / "out", max_steps=2, save_steps=1, **QUIET,
        teacher_check="off", max_length=32, per_device_train_batch_size=8,
    )  # fmt: skip
    out = Path(result.output_dir)
    assert out == folder / "out" and load(out)("good film")
    assert {"README.md", "report.json", "model.safetensors"} <= files_to_push(out, "alice/student").keys()
    assert (out / "checkpoint-2" / "checksums.json").exists()
    evaluate(out, str(folder / "validation.csv"), latency_runs=0, bootstrap_samples=10, output_dir=folder / "eval")
    assert EvaluationReport.load(folder / "eval").task.rows == 12


@pytest.mark.parametrize("run", ["distill", "train_teacher", "compress", "export"])
def test_a_path_that_is_no_utf_8_is_refused_before_anything_is_done(run, tmp_path, tokenizer):
    """Only the save at the end would fail otherwise, of the tokenizer."""
    student = save_student(tiny_bert(layers=1), tmp_path / "student", tokenizer)
    out = os.fsencode(tmp_path) + b"/caf\xe9"
    rows = raw_rows(20)
    runs = {
        "distill": lambda folder: distill(student, "layers:1", rows, rows, output_dir=folder, objectives="hinton"),
        "train_teacher": lambda folder: train_teacher(student, rows, rows, output_dir=folder),
        "compress": lambda folder: compress(student, "half", rows, output_dir=folder),
        "export": lambda folder: export_student(student, output_dir=folder),
    }
    with pytest.raises(ValueError, match=r"caf\\xe9' is not UTF-8.*choose another output_dir"):
        runs[run](Path(os.fsdecode(out)))
    assert not os.path.exists(out) or os.listdir(out) == []

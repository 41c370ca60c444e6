"""Whether a finished student of a frontier is the one that is asked for, by what its sources hold, not their names."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pandas as pd
import pytest
from datasets import DatasetDict
from samples import raw_rows, tiny_bert, tiny_report

from nlpkd.comparison.student import FrontierStudent
from nlpkd.compression.int8 import INT8_FILE
from nlpkd.utils.disk.files import digest_of, weights_sha256


def model(folder, seed=0, names=("neg", "pos")):
    tiny_bert(seed=seed, id2label=dict(enumerate(names))).save_pretrained(folder)


def named_otherwise(folder):
    model(folder, names=("pos", "neg"))


def text(path, seed=1):
    path.write_text("\n".join(raw_rows(9, seed=seed)["text"]))


def rows(path, seed=1):
    raw_rows(9, seed=seed).to_csv(path)


def leave_measured(folder):
    """Weights, a file to deploy, and a report of both."""
    (folder / "onnx").mkdir()
    (folder / "model.safetensors").write_text("weights")
    (folder / INT8_FILE).write_text("int8")
    report = tiny_report()
    named = {
        "weights_sha256": weights_sha256(folder),
        "files_sha256": {INT8_FILE: {INT8_FILE: digest_of(folder / INT8_FILE)}},
    }
    candidates = report.candidates | {INT8_FILE: report.candidates["student"]}
    replace(report, run=report.run.updated({"student": named}), candidates=candidates).save(folder)


# Of each argument that names something: what is there, and how it changes under its name.
NAMED = {
    "teacher": (model, lambda path: model(path, seed=2)), "teacher's names": (model, named_otherwise),
    "student": (model, lambda path: model(path, seed=2)), "backbone": (model, lambda path: model(path, seed=2)),
    "augment_model": (model, lambda path: model(path, seed=2)), "augment_texts": (text, lambda path: text(path, 2)),
    "train": (rows, lambda path: rows(path, 2)), "validation": (rows, lambda path: rows(path, 2)),
    "test": (rows, lambda path: rows(path, 2)),
}  # fmt: skip


def student(folder, name="layers:1", finished=1, **own):
    """A student as a frontier finds it, and what it leaves once so many seeds are finished."""
    found = FrontierStudent.of(name, folder, {"teacher": "org/teacher", "train": "org/rows"}, own)
    folder.mkdir(exist_ok=True)
    if not (folder / "report.json").exists():
        leave_measured(folder)
    (folder / "job.json").write_text(json.dumps({"asked": found.asked, "finished": finished, "error": None}))
    return found


@pytest.mark.parametrize("what", NAMED)
def test_a_finished_student_is_refused_once_what_an_argument_names_has_changed(tmp_path, what):
    make, change = NAMED[what]
    argument, source = what.removesuffix("'s names"), tmp_path / "source"
    make(source)
    if argument == "student":
        given = {"name": str(source)}
    else:
        given = {argument: str(source)}
    student(tmp_path / "out", **given)
    assert student(tmp_path / "out", **given).finished == 1, "what is the same is kept"
    change(source)
    with pytest.raises(ValueError, match=f"was made otherwise: {argument}. Choose another output_dir"):
        student(tmp_path / "out", **given)


@pytest.mark.parametrize(
    "kind",
    [
        lambda each: each, lambda each: DatasetDict(train=each, test=each.select(range(3))),
        lambda each: each.to_list(),
        lambda each: pd.DataFrame(each.to_dict()),
    ],
    ids=["Dataset", "DatasetDict", "list", "DataFrame"],
)  # fmt: skip
def test_rows_in_memory_are_known_by_what_they_hold(tmp_path, kind):
    student(tmp_path / "out", train=kind(raw_rows(9, seed=1)))
    assert student(tmp_path / "out", train=kind(raw_rows(9, seed=1))).finished == 1
    with pytest.raises(ValueError, match="was made otherwise: train"):
        student(tmp_path / "out", train=kind(raw_rows(9, seed=2)))


def test_rows_whose_classes_are_named_otherwise_are_other_rows(tmp_path):
    student(tmp_path / "out", train=raw_rows(9))
    with pytest.raises(ValueError, match="was made otherwise: train"):
        student(tmp_path / "out", train=raw_rows(9, names=("pos", "neg")))


def test_a_plan_reads_the_labels_by_the_names_that_are_given(tmp_path, tokenizer):
    """`TrainingArguments` has a `label_names` too, which names columns."""
    model(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    given = {"teacher": str(tmp_path / "teacher"), "train": raw_rows(9, seed=1), "label_names": ["cold", "hot"]}
    planned = FrontierStudent.of("layers:1", tmp_path / "out", given, {"report_to": "none"})
    with pytest.raises(ValueError, match="are not those of the rows"):
        planned.plan(1)


LOST = {
    "the report": lambda folder: (folder / "report.json").unlink(),
    "a whole report": lambda folder: (folder / "report.json").write_text("{"),
    "the weights": lambda folder: (folder / "model.safetensors").unlink(),
    "these weights": lambda folder: (folder / "model.safetensors").write_text("another model's"),
    "the file": lambda folder: (folder / INT8_FILE).unlink(),
    "this file": lambda folder: (folder / INT8_FILE).write_text("another export"),
    "the file's figures": lambda folder: tiny_report().save(folder),
    "all": lambda folder: [path.unlink() for path in folder.rglob("*") if path.is_file() and path.name != "job.json"],
}


@pytest.mark.parametrize("lost", LOST)
def test_a_student_without_what_was_measured_is_not_finished(tmp_path, lost, caplog):
    student(tmp_path / "out", ship=True)
    assert student(tmp_path / "out", ship=True).finished == 1
    LOST[lost](tmp_path / "out")
    with caplog.at_level(logging.WARNING, logger="nlpkd"):
        found = FrontierStudent.of(
            "layers:1", tmp_path / "out", {"teacher": "org/teacher", "train": "org/rows"}, {"ship": True}
        )
    assert (found.started, found.finished) == (True, 0) and "it is made again" in caplog.text

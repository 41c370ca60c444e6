"""Every door that measures tells of rows whose figures say little: that were learnt from, or are of one class."""

from __future__ import annotations

from functools import partial

import pytest
from datasets import Dataset
from samples import QUIET, WORDS, fine_tuned_teacher, raw_rows, tiny_bert

import nlpkd
from nlpkd.data.splits.learned import LEARNED_NAME, LearnedTexts
from nlpkd.evaluation.report import EvaluationReport
from nlpkd.hub.model_card import build_model_card
from nlpkd.hub.push import files_to_push
from nlpkd.hub.saving import save_student
from nlpkd.pipeline.compress import compress
from nlpkd.pipeline.verify import verify

OF_TEACHER, OF_STUDENT = raw_rows(160, seed=1), raw_rows(60, seed=2)
NEW = Dataset.from_dict(
    {"text": [f"{WORDS[number % 19]} {'the ' * (number + 1)}" for number in range(40)], "label": [0, 1] * 20}
).cast_column("label", OF_TEACHER.features["label"])


def known(measured, train):
    return sum(text in set(train["text"]) for text in measured["text"])


@pytest.fixture(scope="module")
def models(tokenizer, tmp_path_factory):
    """A teacher and a student that learnt from other rows, each with its report."""
    folder = tmp_path_factory.mktemp("learned")
    fine_tuned_teacher(folder / "teacher", tokenizer)
    nlpkd.distill(
        folder / "teacher", "layers:2", OF_STUDENT, NEW, objectives="hinton", max_steps=2, save_strategy="no",
        output_dir=folder / "student", **QUIET | {"latency_runs": 1},
    )  # fmt: skip
    return folder


def told(caplog, whose):
    return [each.getMessage() for each in caplog.records if f"are training texts of the {whose} too" in each.message]


DOORS = {
    "evaluate": lambda folder, rows: nlpkd.evaluate(
        folder / "student", rows, teacher=folder / "teacher", latency_runs=0, bootstrap_samples=5
    ),
    "verify": lambda folder, rows: verify(
        folder / "student", rows, teacher=folder / "teacher", latency_runs=0, bootstrap_samples=5
    ),
    "cascade": lambda folder, rows: nlpkd.cascade(
        folder / "student", folder / "teacher", rows.remove_columns("label"), target_agreement=0.02
    ),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("rows", [OF_STUDENT, OF_TEACHER, NEW], ids=["the student's", "the teacher's", "new"])
def test_measured_texts_that_a_model_learned_from_are_told(door, rows, models, caplog):
    DOORS[door](models, rows)
    for whose, train in (("student", OF_STUDENT), ("teacher", OF_TEACHER)):
        count = known(rows, train)
        said = told(caplog, whose)
        assert len(said) == bool(count) and all(each.startswith(f"{count} of the {len(rows)} ") for each in said)


def test_the_gate_of_an_export_tells_it_and_the_files_take_it_along(models, tmp_path, caplog):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    nlpkd.export_student(models / "student", data=OF_STUDENT, output_dir=tmp_path, min_retention=0.5)
    assert len(told(caplog, "student")) == 1
    assert (tmp_path / LEARNED_NAME).read_bytes() == (models / "student" / LEARNED_NAME).read_bytes()


def test_an_evaluation_has_it_in_record_report_and_card(models, tmp_path):
    report = nlpkd.evaluate(
        models / "student", OF_STUDENT, teacher=models / "teacher", output_dir=tmp_path, latency_runs=0,
        bootstrap_samples=5,
    )  # fmt: skip
    theirs = known(OF_STUDENT, OF_TEACHER)
    assert report.run.data.learned_rows == 60 and report.run.data.teacher_learned_rows == theirs > 0
    assert EvaluationReport.load(tmp_path) == report
    for text in (report.to_markdown(), build_model_card(report, model_name="alice/student").content):
        assert "Of the 60 measured texts 60 are training texts too" in text
        assert f"Of the 60 measured texts {theirs} are training texts of the teacher too" in text


def test_a_distillation_tells_what_its_teacher_learned_from(models, tmp_path, caplog):
    job = partial(
        nlpkd.distill, models / "teacher", "layers:1", NEW, objectives="hinton", max_steps=1, teacher_check="off",
        save_strategy="no", **QUIET,
    )  # fmt: skip
    report = job(validation=OF_TEACHER, output_dir=tmp_path / "one").report
    assert len(told(caplog, "teacher")) == 1
    assert report.run.data.teacher_learned_rows == 160 and report.run.data.learned_rows == 0


def test_what_was_learned_from_is_never_pushed_and_goes_with_its_weights(models, tokenizer, tmp_path):
    assert LEARNED_NAME not in files_to_push(models / "student", "alice/student")
    compress(models / "student", "half", OF_TEACHER, output_dir=tmp_path)
    remembered = LearnedTexts.beside(tmp_path)
    assert remembered.texts == len({"".join(text.split()) for text in OF_STUDENT["text"]})
    save_student(tiny_bert(seed=5), tmp_path, tokenizer)
    assert LearnedTexts.beside(tmp_path) is None


ONE_CLASS = OF_TEACHER.filter(lambda row: row["label"] == 1)
MEASURED = {
    "evaluate": lambda folder, out: DOORS["evaluate"](folder, ONE_CLASS),
    "verify": lambda folder, out: DOORS["verify"](folder, ONE_CLASS),
    "distill": lambda folder, out: nlpkd.distill(
        folder / "teacher", "layers:1", OF_STUDENT, ONE_CLASS, objectives="hinton", max_steps=1, save_strategy="no",
        output_dir=out, **QUIET | {"rehearsal": True},
    ),
    "train-teacher": lambda folder, out: nlpkd.train_teacher(
        folder / "teacher", OF_STUDENT, ONE_CLASS, max_steps=1, save_strategy="no", output_dir=out, **QUIET
    ),
    "cascade": lambda folder, out: nlpkd.cascade(
        folder / "student", folder / "teacher", ONE_CLASS, target_accuracy=0.02
    ),
}  # fmt: skip


@pytest.mark.parametrize("door", MEASURED)
def test_rows_of_one_class_are_told_wherever_they_are_measured(door, models, tmp_path, caplog):
    MEASURED[door](models, tmp_path)
    said = [each.getMessage() for each in caplog.records if "are of one class" in each.getMessage()]
    assert len(said) == 1 and said[0].startswith(
        f"All {len(ONE_CLASS)} measured rows are of one class: the figures say nothing"
    )
    if door == "distill":
        assert all(said[0] in (tmp_path / name).read_text() for name in ("report.md", "README.md"))


def test_a_few_rows_of_one_class_that_are_tried_first_are_not_told(models, tmp_path, caplog):
    rows = Dataset.from_list([*OF_STUDENT.filter(lambda row: row["label"] == 1), *NEW], features=NEW.features)
    nlpkd.distill(
        models / "teacher", "layers:1", OF_STUDENT, rows, objectives="hinton", max_steps=1, save_strategy="no",
        output_dir=tmp_path, **QUIET | {"rehearsal": True},
    )  # fmt: skip
    assert "are of one class" not in caplog.text


@pytest.mark.parametrize("size", [0.25, 9])
def test_what_a_training_held_out_is_measured_again_by_every_door(size, models, tokenizer, tmp_path, caplog):
    """By another seed, and with the rows in another order."""
    rows = OF_TEACHER.shuffle(seed=3)
    nlpkd.train_teacher(
        tiny_bert(layers=3), rows, validation_split=size, seed=7, tokenizer=tokenizer, output_dir=tmp_path / "teacher",
        max_steps=1, save_strategy="no", **QUIET,
    )  # fmt: skip
    report = nlpkd.distill(
        tmp_path / "teacher", "layers:1", OF_TEACHER, validation_split=size, objectives="hinton", max_steps=1,
        save_strategy="no", teacher_check="off", output_dir=tmp_path / "student", **QUIET,
    ).report  # fmt: skip
    measured = {"latency_runs": 0, "bootstrap_samples": 5, "validation_split": size}
    again = nlpkd.evaluate(tmp_path / "student", OF_TEACHER, teacher=tmp_path / "teacher", **measured)
    verified = verify(tmp_path / "student", OF_TEACHER, teacher=tmp_path / "teacher", **measured)
    assert again.run.data.evaluated_sha256 == report.run.data.evaluated_sha256 and again.run.data.split == "validation"
    assert again.task.rows == report.task.rows < 160 and verified.holds
    assert "training texts" not in caplog.text
    with pytest.raises(ValueError, match="which no compression may look at"):
        compress(tmp_path / "student", "half", OF_TEACHER, validation_split=size, output_dir=tmp_path / "small")
    with pytest.raises(ValueError, match="holds out a part by its labels"):
        nlpkd.cascade(
            tmp_path / "student", tmp_path / "teacher", OF_TEACHER, target_agreement=0.5, validation_split=size
        )

"""A distillation whose teacher is paid for: what is refused is refused before it is asked."""

import shutil

import pytest
from label_server import LabelServer
from samples import QUIET, raw_rows
from torch import nn
from transformers import BertForSequenceClassification

from nlpkd import distill, read_splits
from nlpkd.config import DistillationConfig
from nlpkd.objectives import HiddenStateCosineLoss
from nlpkd.pipeline.cache import cache_for_distillation
from nlpkd.pipeline.dry_run import plan_distillation
from nlpkd.pipeline.tune import tune
from nlpkd.teachers import DecisionTeacher, FunctionTeacher

QUESTION = {"type": "choice", "instructions": "Is it good?", "criteria": {"neg": None, "pos": None}}

QUICK = {**QUIET, "max_steps": 1, "save_strategy": "no", "max_length": 64}


@pytest.fixture(scope="module")
def server():
    with LabelServer() as running:
        yield running


def asked_by(server):
    return DecisionTeacher("m", QUESTION, base_url=server.url, max_retries=0)


REFUSALS = {
    "no such student": ({"student": "/no/such/student"}, None),
    "the default student": ({"student": None}, "there is none"),
    "layers of a teacher": ({"student": "layers:3"}, "there is none"),
    "a damaged student": ({"student": "damaged"}, "cut short or damaged"),
    "a head of one's own": ({"student": "own head"}, "could not be read back once it is saved: .*classifier.0.bias"),
    "a typo": ({"objectives": "hintn"}, "no preset 'hintn'"),
    "a preset on layers": ({"objectives": "layerwise"}, "teacher"),
    "an objective on layers": ({"objectives": [HiddenStateCosineLoss()]}, "teacher"),
    "no objective": ({"objectives": []}, "objectives"),
    "a long length": ({"max_length": 5000}, "max_length|5000"),
    "a start": ({"start": "pretrained"}, "start"),
    "a latency": ({"student": None, "max_latency_ms": 5.0}, "there is none"),
    "no held-out rows": ({"validation": None}, "no held-out rows"),
    "a column": ({"text_column": "stars"}, "stars"),
    "other classes": ({"validation": [{"text": "a", "label": "good"}, {"text": "b", "label": "bad"}]}, "good|bad"),
    "class weights": ({"class_weights": [1.0, 2.0, 3.0]}, "weights"),
    "an augmentation": ({"augment": "auto"}, "augment"),
    "a vocabulary": ({"vocabulary": "half"}, "vocabulary"),
    "a task": ({"problem_type": "multi_label_classification"}, "leave problem_type and label_names out"),
    "names": ({"label_names": ["pos", "neg"]}, "leave problem_type and label_names out"),
}  # fmt: skip
"""What is asked for, and what is told."""


@pytest.mark.parametrize("refusal", REFUSALS)
def test_whatever_is_refused_is_refused_before_anything_is_asked(tmp_path, small, server, refusal):
    given, told = REFUSALS[refusal]
    given = {
        "student": small, "train": raw_rows(12, seed=1).remove_columns("label"), "validation": raw_rows(8, seed=2)
    } | given  # fmt: skip
    if given["student"] == "damaged":
        given["student"] = shutil.copytree(small, tmp_path / "damaged")
        (tmp_path / "damaged/model.safetensors").write_bytes(b"cut short")
    if given["student"] == "own head":
        given["student"] = BertForSequenceClassification.from_pretrained(small)
        given["student"].classifier = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    server.times.clear()
    with pytest.raises((ValueError, OSError), match=told):
        distill(asked_by(server), output_dir=tmp_path / "out", **QUICK | {"objectives": "hinton"} | given)
    assert not server.times


def test_what_asks_no_teacher_refuses_one_before_it_is_asked(tmp_path, small, server):
    teacher, args = asked_by(server), DistillationConfig(str(tmp_path / "out"), max_steps=1)
    rows = {"train": raw_rows(12, seed=1).remove_columns("label"), "validation": raw_rows(8, seed=2)}
    server.times.clear()
    for run in (
        lambda: plan_distillation(args, teacher=teacher, student=small, **rows),
        lambda: cache_for_distillation(args, teacher=teacher, student=small, **rows),
        lambda: tune(teacher, **rows, output_dir=tmp_path / "tuning"),
    ):
        with pytest.raises(ValueError, match="is one of `nlpkd.distill` alone"):
            run()
    assert not server.times


def test_texts_that_are_not_answered_are_told_by_their_split_and_left_out(tmp_path, small, caplog):
    rows = {"train": raw_rows(12, seed=1).remove_columns("label"), "validation": raw_rows(8, seed=2)}
    refused = [rows["train"]["text"][3], rows["validation"]["text"][5]]

    def judge(texts):
        return [[0.5, 0.9 if text in refused else 0.5] for text in texts]

    teacher = FunctionTeacher(judge, ["neg", "pos"])
    report = distill(teacher, small, **rows, output_dir=tmp_path / "out", objectives="hinton", **QUICK).report
    assert "row 3 of the train split (" in caplog.text and "row 5 of the validation split (" in caplog.text
    counts = {split: sum(text not in refused for text in data["text"]) for split, data in rows.items()}
    assert (report.run.data.train_rows, report.task.rows) == (counts["train"], counts["validation"])
    left_out = len(rows["validation"]) - counts["validation"]
    assert report.run.data.unanswered_rows == left_out > 0
    for name in ("report.md", "README.md"):
        assert f"{left_out} further rows of the split were left out" in (tmp_path / "out" / name).read_text()


def test_what_is_trained_on_are_the_answers_and_each_text_is_asked_about_once(tmp_path, small, server):
    server.times.clear()
    rows = {"train": raw_rows(12, seed=1).remove_columns("label"), "validation": raw_rows(8, seed=2)}
    distill(asked_by(server), small, **rows, output_dir=tmp_path / "out", objectives="hinton", **QUICK)
    texts = {*rows["train"]["text"][:], *rows["validation"]["text"][:]}
    assert len(server.times) == len(texts)
    labelled = read_splits(tmp_path / "out/teacher_labels.parquet")[0]["train"]
    assert [round(each["neg"], 4) for each in labelled["probabilities"]] == [
        len(text) % 10 / 10 for text in rows["train"]["text"][:]
    ]

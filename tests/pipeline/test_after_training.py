"""Whatever fails after a training: the model is whole, what could be measured is kept, and how to go on is said."""

from __future__ import annotations

import json
import logging
import re
import resource
import shlex
import shutil
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from datasets import DatasetDict
from samples import QUIET, raw_rows, tiny_bert
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification
from typer.testing import CliRunner

from nlpkd import EvaluationReport, distill, train_teacher
from nlpkd.cli import app
from nlpkd.utils.disk.files import weights_sha256

QUICK = {
    **QUIET, "rehearsal": True, "save_strategy": "no", "max_steps": 2, "teacher_check": "off",
    "per_device_train_batch_size": 8,
}  # fmt: skip
ROWS = 40


class Failing(BertForSequenceClassification):
    """Fails on as many rows as the held-out set has, which neither a training step nor the rehearsal gives it."""

    _broken = True

    def forward(self, input_ids=None, **inputs):
        if self._broken and len(input_ids) == ROWS and not torch.is_grad_enabled():
            raise RuntimeError("this machine's kernel has no such size")
        return super().forward(input_ids=input_ids, **inputs)


def failing(**options):
    plain = tiny_bert(**options)
    model = Failing(plain.config)
    model.load_state_dict(plain.state_dict())
    return model


def job(reader, out: Path, **options):
    splits = DatasetDict(train=raw_rows(24), validation=raw_rows(ROWS, 1))
    given = {
        "teacher": tiny_bert(layers=3, seed=1), "student": tiny_bert(), "train": splits, "objectives": "hinton",
        "tokenizer": reader, "teacher_tokenizer": reader, "output_dir": out,
    } | QUICK | options  # fmt: skip
    return distill(**given)


def told(caplog) -> str:
    return " ".join(record.getMessage() for record in caplog.records if record.levelno == logging.ERROR)


OBSTACLES = {
    # What is in the way, what else the job is given, the error, and what the report that is left says.
    "the report": ("report.json", {}, IsADirectoryError, None),
    "the report in words": ("report.md", {}, IsADirectoryError, None),
    "the card": ("README.md", {}, IsADirectoryError, "whole"),
    "a baseline's folder": ("baseline/same_start/model.safetensors", {"baseline": "same_start"}, OSError, "quality"),
    "the teacher": (None, {"teacher": lambda: failing(layers=3, seed=1)}, RuntimeError, "quality"),
    "the student": (None, {"student": failing}, RuntimeError, "origin"),
}


@pytest.mark.parametrize("what", OBSTACLES)
def test_a_student_outlives_what_fails_after_its_training(what, tokenizer, tmp_path, caplog):
    in_the_way, options, error, left = OBSTACLES[what]
    out = tmp_path / "out put"
    options = {name: value() if callable(value) else value for name, value in options.items()}
    if in_the_way is not None:
        (out / in_the_way / "something").mkdir(parents=True)
    with caplog.at_level(logging.WARNING, logger="nlpkd"), pytest.raises(error):
        job(tokenizer, out, **options)
    # The student is whole.
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert model.config.num_hidden_layers == 2 and len(AutoTokenizer.from_pretrained(out)) == len(tokenizer)
    # It is said, with a command that goes on.
    said = told(caplog)
    assert f"The student is trained and saved in {out}; what failed came after that." in said
    reading = "--text-column text --label-column label --max-length 64"
    assert f"nlpkd evaluate '{out}' --data DATA {reading} --output-dir '{out}'" in said
    assert "resume_from_checkpoint" not in said, "there is no checkpoint to go on from"
    # And what could be measured is there.
    assert ("What could be measured is in report.json" in said) == (left is not None)
    if left is None:
        return
    report = EvaluationReport.load(out)
    data = json.loads((out / "report.json").read_text())
    assert data["run"].get("incomplete", False) == (left != "whole")
    assert data["run"]["seed"] == 42 and data["run"]["settings"]["steps"] == 2
    if left == "whole":
        assert set(report.candidates) == {"student", "teacher"}
        return
    assert bool(report.candidates["student"].quality) == (left == "quality")
    for page in ("report.md", "README.md"):
        assert "This report is incomplete" in (out / page).read_text()
    assert ("The student was not measured." in (out / "report.md").read_text()) == (left == "origin")


def test_the_command_that_is_named_makes_the_report_whole(tokenizer, tmp_path, caplog):
    out, data = tmp_path / "out", tmp_path / "dev.csv"
    renamed = {"text": "what is said", "label": "what it is"}
    raw_rows(ROWS, 1).rename_columns(renamed).to_csv(data)
    train = raw_rows(24).rename_columns(renamed)
    columns = {"text_column": "what is said", "label_column": "what it is"}
    with caplog.at_level(logging.WARNING, logger="nlpkd"), pytest.raises(RuntimeError, match="no such size"):
        job(tokenizer, out, teacher=failing(layers=3, seed=1), train=train, validation=str(data), **columns)
    command = re.search("nlpkd (evaluate .*)", told(caplog)).group(1)
    outcome = CliRunner().invoke(app, [*shlex.split(command), "--latency-runs", "0"])
    assert outcome.exit_code == 0, outcome.output
    report = EvaluationReport.load(out)
    assert report.candidates["student"].quality and not report.run.incomplete


@pytest.mark.parametrize("what", ["of a folder", "of the Hub", "trained further"])
def test_the_command_that_is_named_measures_the_teacher_that_taught(what, tokenizer, tmp_path, caplog, monkeypatch):
    commit, cache = "0" * 40, tmp_path / "cache" / "models--alice--teacher"
    folder = cache / "snapshots" / commit
    failing(layers=3, seed=1).save_pretrained(folder)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache.parent))
    teacher = Failing.from_pretrained("alice/teacher" if what == "of the Hub" else folder)
    if what == "trained further":
        torch.nn.init.ones_(teacher.classifier.bias)
    with caplog.at_level(logging.WARNING, logger="nlpkd"), pytest.raises(RuntimeError, match="no such size"):
        job(tokenizer, tmp_path / "out", teacher=teacher)
    named = {"of a folder": str(folder), "of the Hub": f"alice/teacher@{commit}", "trained further": None}[what]
    assert re.findall(r"--teacher (\S+)", told(caplog)) == ([] if named is None else [named])
    record = EvaluationReport.load(tmp_path / "out").run.teacher
    assert f"{record.name}@{record.revision}" == {
        "of a folder": f"{folder}@None", "of the Hub": named, "trained further": "./Failing@None",
    }[what]  # fmt: skip


def test_with_a_checkpoint_a_resumed_run_is_named_and_trains_nothing_anew(tokenizer, tmp_path, caplog, monkeypatch):
    with caplog.at_level(logging.WARNING, logger="nlpkd"), pytest.raises(RuntimeError, match="no such size"):
        job(tokenizer, tmp_path, teacher=failing(layers=3, seed=1), save_strategy="epoch")
    assert "--resume_from_checkpoint True), which goes on from the last checkpoint" in told(caplog)
    before = (tmp_path / "model.safetensors").read_bytes()
    monkeypatch.setattr(Failing, "_broken", False)
    mended = {"teacher": failing(layers=3, seed=1), "save_strategy": "epoch"}
    result = job(tokenizer, tmp_path, resume_from_checkpoint=True, **mended)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert not result.report.run.incomplete and "teacher" in result.report.candidates


@pytest.mark.parametrize("what", ["evaluation", "eval_results.json"])
def test_a_teacher_outlives_what_fails_after_its_training(what, tokenizer, tmp_path, caplog):
    model = failing() if what == "evaluation" else tiny_bert()
    if what != "evaluation":
        (tmp_path / what).mkdir()
    with caplog.at_level(logging.WARNING, logger="nlpkd"), pytest.raises((RuntimeError, OSError)):
        train_teacher(
            model, raw_rows(24), raw_rows(ROWS, 1), tokenizer=tokenizer, output_dir=tmp_path,
            **QUICK | {"per_device_eval_batch_size": 64},
        )  # fmt: skip
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path).config.num_labels == 2
    assert f"The teacher is trained and saved in {tmp_path}; what failed came after that" in told(caplog)
    assert f"nlpkd evaluate {tmp_path} --data DATA" in told(caplog)


@contextmanager
def files_of_at_most(size: int):
    """As on a full disk: no file of this process can grow beyond a size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_what_a_student_that_can_t_be_saved_leaves_is_said_with_how_to_go_on(kept, tokenizer, tmp_path, caplog):
    (tmp_path / "model.safetensors" / "something").mkdir(parents=True)
    checkpoints = {"save_strategy": "steps", "save_steps": kept, "cache_teacher": "off"} if kept else {}
    with caplog.at_level(logging.ERROR, logger="nlpkd"), pytest.raises(OSError):
        job(tokenizer, tmp_path, **checkpoints)
    advice = "go on from checkpoint-2 with resume_from_checkpoint=True" if kept else "it begins anew"
    assert re.search(f"^The student is trained, can't be saved, and is lost .*run again: .*{advice}", told(caplog))
    if kept:
        shutil.rmtree(tmp_path / "model.safetensors")
        result = job(tokenizer, tmp_path, **checkpoints, resume_from_checkpoint=True)
        assert result.report.run.settings["steps"] == 2


def test_a_teacher_that_can_t_be_saved_is_said_to_be_lost_with_how_to_go_on(tokenizer, tmp_path, caplog):
    (tmp_path / "model.safetensors" / "something").mkdir(parents=True)
    with caplog.at_level(logging.ERROR, logger="nlpkd"), pytest.raises(OSError):
        train_teacher(tiny_bert(), raw_rows(24), tokenizer=tokenizer, output_dir=tmp_path, **QUICK)
    assert re.search(
        "^The teacher is trained, can't be saved, and is lost .*run again: .*it begins anew", told(caplog)
    )


def test_a_disk_that_is_too_small_for_the_student_is_known_before_it_is_trained(tokenizer, tmp_path, caplog):
    with files_of_at_most(10_000), pytest.raises(OSError, match="the model was not saved"):
        job(tokenizer, tmp_path, cache_teacher="off")
    assert not (tmp_path / "trainer_state.json").exists() and not told(caplog)


def test_a_hub_that_refuses_costs_nothing(tokenizer, tmp_path, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    with pytest.raises(RuntimeError) as raised:
        job(tokenizer, tmp_path, push_to_hub=True, hub_model_id="alice/student", hub_token="hf_none")
    assert "push" in str(raised.value)
    assert set(EvaluationReport.load(tmp_path).candidates) == {"student", "teacher"}
    assert (tmp_path / "README.md").is_file() and (tmp_path / "model.safetensors").is_file()


class Clumsy(BertForSequenceClassification):
    """Does something to a folder as soon as it is measured, that is, on as many rows as the held-out set has."""

    accident: ClassVar = None

    def forward(self, input_ids=None, **inputs):
        if type(self).accident is not None and len(input_ids) == ROWS and not torch.is_grad_enabled():
            type(self).accident, accident = None, type(self).accident
            accident()
        return super().forward(input_ids=input_ids, **inputs)


ACCIDENTS = {
    "the folder is deleted": shutil.rmtree,
    "the weights are deleted": lambda out: (out / "model.safetensors").unlink(),
    "other weights are put there": lambda out: tiny_bert(seed=9).save_pretrained(out),
}


@pytest.mark.parametrize("what", ACCIDENTS)
def test_a_report_lies_beside_the_student_that_was_measured_whatever_happened_meanwhile(what, tokenizer, tmp_path):
    out, plain = tmp_path / "out", tiny_bert(layers=3, seed=1)
    teacher = Clumsy(plain.config)
    teacher.load_state_dict(plain.state_dict())
    Clumsy.accident = partial(ACCIDENTS[what], out)
    found = job(tokenizer, out, teacher=teacher)
    assert Clumsy.accident is None, "it happened"
    model = AutoModelForSequenceClassification.from_pretrained(out)
    for name, weight in found.student.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight.cpu())
    report = EvaluationReport.load(out)
    assert report.run.student.weights_sha256 == weights_sha256(out) != {} and (out / "README.md").is_file()
    assert len(AutoTokenizer.from_pretrained(out)) == len(tokenizer)

"""The job in one call: teachers, students, baselines, seeds, reports; what is refused, locked, resumed and kept."""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import DatasetDict, concatenate_datasets
from hub_server import READ_TOKEN
from huggingface_hub import constants
from processes import Program
from safetensors.torch import load_file
from samples import QUIET, raw_rows, tiny_bert
from scipy.stats import binomtest
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertTokenizer, pipeline

from nlpkd import DistillationConfig, EvaluationReport, OnnxClassifier, distill, load, train_teacher
from nlpkd.augment import MaskingAndNGrams, augment
from nlpkd.compression import export_onnx
from nlpkd.evaluation.report import JSON_NAME
from nlpkd.objectives import CrossEntropyLoss, DISTLoss, ForwardKLLoss, HiddenStateMSELoss, Stage
from nlpkd.pipeline.cache import cache_for_distillation
from nlpkd.pipeline.evaluate import evaluate
from nlpkd.students.checkpoint import with_fresh_pooler

QUICK = {
    **QUIET, "per_device_train_batch_size": 8, "logging_steps": 1,
    "learning_rate": 2e-3, "num_train_epochs": 2, "save_strategy": "epoch",
}  # fmt: skip
ONLY = Path("baseline", "no_teacher")
"""Where the only baseline of a student lies that starts from a pre-trained checkpoint."""

HELD_OUT = raw_rows(41, seed=7)


def last_checkpoint(folder: Path) -> Path:
    whole = [path.parent for path in folder.glob("checkpoint-*/checksums.json")]
    return max(whole, key=lambda path: int(path.name.split("-")[1]))


def logged(checkpoint: Path, name: str) -> dict[int, float]:
    """A value of the training's log by step, up to a checkpoint."""
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry[name] for entry in history if name in entry}


def predict(folder: Path, rows) -> list[int]:
    """Row by row, without padding, with what transformers loads from a folder."""
    model, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return [int(model(**tokenizer(row["text"], return_tensors="pt")).logits.argmax()) for row in rows]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    tiny_bert(layers=4).base_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def taught(tmp_path_factory, backbone):
    """A teacher fine-tuned from a path, on csv files."""
    folder = tmp_path_factory.mktemp("taught")
    names = ["bad", "good"]
    for split, rows in (("train", raw_rows(160, seed=1)), ("dev", HELD_OUT)):
        lines = [f"{row['text']},{names[row['label']]}" for row in rows]
        (folder / f"{split}.csv").write_text("\n".join(["review,stars", *lines]))
    return train_teacher(
        str(backbone), str(folder / "train.csv"), folder / "dev.csv", text_column="review", label_column="stars",
        output_dir=folder / "teacher", **QUICK | {"num_train_epochs": 10, "save_strategy": "no"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def splits(taught) -> DatasetDict:
    rows = {"train": raw_rows(61, seed=2, names=("bad", "good")), "validation": raw_rows(41, 7, ("bad", "good"))}
    return DatasetDict(rows)


@pytest.fixture(scope="module")
def small(tmp_path_factory, tokenizer) -> Path:
    """A narrower student without a head, so that the head depends on the seed."""
    folder = tmp_path_factory.mktemp("small")
    tiny_bert(layers=2, hidden=8, seed=3).base_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def compared(tmp_path_factory, taught, splits):
    """The whole job on model objects: baseline and two seeds."""
    folder = tmp_path_factory.mktemp("compared")
    return distill(
        taught.model, "layers:2", splits, tokenizer=taught.tokenizer, teacher_tokenizer=taught.tokenizer,
        baseline=True, num_seeds=2, output_dir=folder, **QUICK,
    )  # fmt: skip


def test_a_teacher_from_csv_files_learns_and_is_saved_whole(taught):
    assert taught.metrics["eval_accuracy"] > 0.9
    gold = [row["label"] for row in HELD_OUT]
    predicted = predict(taught.output_dir, HELD_OUT)
    right = sum(a == b for a, b in zip(predicted, gold, strict=True))
    assert right / len(gold) == pytest.approx(taught.metrics["eval_accuracy"])
    assert json.loads((taught.output_dir / "eval_results.json").read_text())["eval_accuracy"] == right / len(gold)
    assert taught.model.config.id2label == {0: "bad", 1: "good"}


def test_a_teacher_from_a_model_and_a_dataset(tmp_path, tokenizer):
    given = tiny_bert()
    result = train_teacher(given, raw_rows(24), tokenizer=tokenizer, output_dir=tmp_path, max_steps=1, **QUICK)
    assert result.metrics == {}
    kept = tiny_bert().state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in given.state_dict().items())
    assert not all(torch.equal(tensor, kept[name]) for name, tensor in result.model.state_dict().items())
    assert len(predict(tmp_path, HELD_OUT)) == len(HELD_OUT)
    assert not result.model.training


MEASURED = {
    "at once": ({}, "On the held-out rows the teacher's accuracy is 0."),
    "by batch": ({"batch_eval_metrics": True}, "On the held-out rows the teacher's accuracy is 0."),
    "the loss": ({"prediction_loss_only": True}, "On the held-out rows only the teacher's loss was measured: 0."),
}


@pytest.mark.parametrize("how", MEASURED)
def test_a_teacher_that_was_measured_is_said_to_be(how, tmp_path, tokenizer):
    options, told = MEASURED[how]
    given = {"tokenizer": tokenizer, "output_dir": tmp_path, "max_steps": 1, **QUICK, **options}
    result = train_teacher(tiny_bert(layers=1), raw_rows(24), raw_rows(8, seed=9), **given)
    assert result.verdict().startswith(told)
    assert f"{result.metrics['eval_loss']:.3f}" in result.verdict() or how != "the loss"


def test_a_teacher_starts_from_a_fresh_pooler_where_asked(tmp_path, tokenizer):
    given, still = tiny_bert(), QUICK | {"learning_rate": 0.0, "max_steps": 1, "seed": 5, "fresh_pooler": True}
    result = train_teacher(given, raw_rows(24), tokenizer=tokenizer, output_dir=tmp_path, **still)
    drawn = with_fresh_pooler(tiny_bert(), seed=5).bert.pooler.dense.weight
    assert torch.equal(result.model.bert.pooler.dense.weight, drawn)
    assert not torch.equal(drawn, given.bert.pooler.dense.weight)


def test_a_backbone_may_be_called_what_a_shape_is(tmp_path, tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_bert().base_model.save_pretrained("bert-tiny")
    result = train_teacher("bert-tiny", raw_rows(24), tokenizer=tokenizer, output_dir="out", max_steps=1, **QUICK)
    assert result.model.config.num_hidden_layers == 2


def test_what_an_earlier_run_finished_in_a_folder_is_not_taken_by_a_resume_of_a_later_one(tmp_path, tokenizer):
    """The later run is killed in its first stage: the earlier one's reports and histories are none of its own."""
    stages = [Stage([ForwardKLLoss()]), Stage([CrossEntropyLoss()])]
    given = {"tokenizer": tokenizer, "teacher_tokenizer": tokenizer, "output_dir": tmp_path, "teacher_check": "off",
             "num_seeds": 2, "max_steps": 1, **QUICK}  # fmt: skip
    rows = DatasetDict(train=raw_rows(24), validation=raw_rows(16, seed=3))
    distill(tiny_bert(layers=4), "layers:2", rows, objectives=stages, **given)
    finished = [tmp_path / "seed-43" / "report.json", tmp_path / "stage-1" / "trainer_state.json"]
    assert all(path.exists() for path in finished)
    left: list[list[bool]] = []

    class Killed(ForwardKLLoss):
        def total(self, student, teacher, batch):
            # Before the training it is tried on some rows, without a backward.
            if student.logits.requires_grad:
                student.logits.register_hook(self.stop)
            return super().total(student, teacher, batch)

        @staticmethod
        def stop(gradient):
            left.append([path.exists() for path in finished])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(tiny_bert(layers=4), "layers:2", rows, objectives=[Stage([Killed()]), stages[1]], **given)
    assert left == [[False, False]]


def test_a_job_of_numpys_numbers_is_done_and_recorded(tmp_path, taught, splits):
    numbers = {
        "max_steps": 1, "num_train_epochs": 1, "num_seeds": 1, "max_length": 8, "window_stride": 2, "seed": 3,
        "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "learning_rate": 0.5, "weight_decay": 0.5,
    }  # fmt: skip
    given = {name: (np.int64 if isinstance(value, int) else np.float32)(value) for name, value in numbers.items()}
    objectives = [DISTLoss(temperature=np.float32(2)), HiddenStateMSELoss(weight=np.float32(0.5))]
    job = {"train": splits, "output_dir": tmp_path, "objectives": objectives, "ship": np.bool_(False)}
    report = distill(taught.output_dir, np.int64(2), **job, **QUIET | {"save_strategy": "no"} | given).report
    settings = json.loads((tmp_path / JSON_NAME).read_text())["run"]["settings"]
    assert settings["learning_rate"] == 0.5 and report.run.objectives[0]["temperature"] == 2.0


def test_the_best_preset_is_soft_targets_on_the_rows_and_ten_variants_of_each(tmp_path, taught, splits):
    given = {"teacher": taught.output_dir, "student": "layers:2", "train": splits, **QUICK, "num_train_epochs": 1}
    named = distill(objectives="best", output_dir=tmp_path / "named", **given)
    written = distill(
        objectives=[ForwardKLLoss(temperature=2.0)], augment="constituents", augment_copies=10,
        output_dir=tmp_path / "written", **given,
    )  # fmt: skip
    weights = written.student.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in named.student.state_dict().items())
    assert named.report.run.data.train_rows == written.report.run.data.train_rows > len(splits["train"])
    for result in (named, written):
        settings = result.report.run.settings
        assert (settings["augment"], settings["augment_copies"]) == ("constituents", 10)


def test_a_job_leaves_student_tokenizer_card_reports_and_baseline(compared):
    names = {path.name for path in compared.output_dir.iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "README.md", "report.json", "report.md",
                     "baseline", "seed-43"}  # fmt: skip
    assert EvaluationReport.load(compared.output_dir) == compared.report
    saved = load_file(compared.output_dir / "model.safetensors")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in compared.student.state_dict().items())
    assert not compared.student.training
    assert "student" in (compared.output_dir / "README.md").read_text()


def test_the_report_measures_the_models_that_were_saved(compared, taught):
    gold = [row["label"] for row in HELD_OUT]
    folders = {
        "teacher": taught.output_dir,
        "student": compared.output_dir,
        "no_teacher": compared.output_dir / "baseline" / "no_teacher",
        "same_start": compared.output_dir / "baseline" / "same_start",
    }
    right = {role: [a == b for a, b in zip(predict(folder, HELD_OUT), gold, strict=True)] for role, folder in folders.items()}  # fmt: skip  # noqa: E501
    assert set(compared.report.candidates) == set(folders)
    for role, hits in right.items():
        assert compared.report.candidates[role].quality["accuracy"].value == pytest.approx(sum(hits) / len(gold))
    for baseline in ("no_teacher", "same_start"):
        only = sum(a and not b for a, b in zip(right["student"], right[baseline], strict=True))
        other = sum(b and not a for a, b in zip(right["student"], right[baseline], strict=True))
        expected = binomtest(only, only + other).pvalue if only + other else 1.0
        assert compared.report.comparisons[f"student_vs_{baseline}"].mcnemar_p == pytest.approx(expected)
    agreed = sum(a == b for a, b in zip(right["student"], right["teacher"], strict=True)) / len(gold)
    assert compared.report.candidates["student"].agreement.value == pytest.approx(agreed)


def test_the_report_of_several_seeds_has_the_values_of_each(compared):
    values = compared.report.seeds["student"]["accuracy"].values
    each = [compared.report, EvaluationReport.load(compared.output_dir / "seed-43")]
    assert values == [report.candidates["student"].quality["accuracy"].value for report in each]
    assert [report.run.seed for report in each] == [42, 43]
    first, second = (load_file(folder / "model.safetensors") for folder in (compared.output_dir, compared.output_dir / "seed-43"))  # fmt: skip  # noqa: E501
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_the_record_says_what_made_the_figures(compared, splits):
    run = compared.report.run
    assert run.data.train_rows == len(splits["train"]) and run.data.evaluated_rows == 41
    assert run.settings["steps"] == 2 * -(-len(splits["train"]) // 8)
    assert [objective["name"] for objective in run.objectives][:2] == ["cross_entropy", "forward_kl"]
    assert run.student.name == "layers:2" and run.versions["torch"] == torch.__version__
    assert (run.data.evaluated_source, run.data.pairs) == ("in-memory data", False)
    assert run.student.checkpoint is False
    assert compared.report.candidates["no_teacher"].training_seconds > 0


def test_the_page_of_several_seeds_is_drawn_once_when_all_are_measured(tmp_path, tokenizer):
    seen: list[bool] = []

    class Looking(ForwardKLLoss):
        def total(self, *given):
            seen.append((tmp_path / "report.html").exists())
            return super().total(*given)

    rows = DatasetDict(train=raw_rows(24), validation=raw_rows(16, seed=3))
    distill(
        tiny_bert(layers=4), "layers:2", rows, tokenizer=tokenizer, teacher_tokenizer=tokenizer,
        objectives=[Looking()], output_dir=tmp_path, teacher_check="off", num_seeds=2, max_steps=1,
        **QUICK | {"html_report": True},
    )  # fmt: skip
    assert len(seen) >= 2 and not any(seen)
    assert "Over several seeds" in (tmp_path / "report.md").read_text() and (tmp_path / "report.html").exists()


def test_the_baseline_starts_from_the_student_s_weights_and_sees_the_same_batches(tmp_path, taught, splits, small):
    """With a learning rate of 0 both end where they started, and log the same gold loss step by step."""
    distill(
        taught.output_dir, small, splits, output_dir=tmp_path, objectives="layerwise", baseline=True, num_seeds=2,
        **QUICK | {"learning_rate": 0.0},
    )  # fmt: skip
    heads = []
    for folder in (tmp_path, tmp_path / "seed-43"):
        student, baseline = load_file(folder / "model.safetensors"), load_file(folder / ONLY / "model.safetensors")
        assert student.keys() == baseline.keys()
        assert [name for name in student if not torch.equal(student[name], baseline[name])] == []
        logs = [logged(last_checkpoint(at), "loss/cross_entropy") for at in (folder, folder / ONLY)]
        assert len(logs[0]) == 2 * -(-len(splits["train"]) // 8)
        assert logs[1] == pytest.approx(logs[0], rel=1e-6)
        heads.append(student["classifier.weight"])
    assert not torch.equal(heads[0], heads[1]), "another seed is another start"
    assert len(set(logs[0].values())) > 5


def test_a_student_with_another_tokenizer_learns_from_logits(tmp_path, taught, splits):
    words = sorted({word for row in splits["train"] for word in row["text"].split()}, reverse=True)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    other = BertTokenizer(vocab={token: number for number, token in enumerate(tokens)}, model_max_length=64)
    student = tiny_bert(layers=1, vocab_size=len(tokens))
    start = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    result = distill(
        taught.output_dir, student, splits, tokenizer=other, objectives=[ForwardKLLoss()], output_dir=tmp_path, **QUICK
    )
    assert result.report.candidates["teacher"].quality["accuracy"].value > 0.9
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == other.get_vocab()
    assert all(torch.equal(start[name], tensor) for name, tensor in student.state_dict().items()), "left as it was"
    assert list(result.report.candidates) == ["teacher", "student"]
    assert "No undistilled baseline" in (tmp_path / "report.md").read_text()


def test_a_saved_student_measured_again_gives_the_report_s_figures(compared, taught, splits):
    baselines = {name: compared.output_dir / "baseline" / name for name in ("no_teacher", "same_start")}
    report = evaluate(
        compared.output_dir, splits["validation"], teacher=taught.output_dir, candidates=baselines, latency_runs=0,
        bootstrap_samples=QUIET["bootstrap_samples"],
    )  # fmt: skip
    for role in ("teacher", "student", *baselines):
        assert report.candidates[role].quality == compared.report.candidates[role].quality
    assert report.comparisons == compared.report.comparisons


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"validation": None}, "no held-out rows"),
        ({"train": None}, "needs train"),
        ({"num_seeds": 0}, "num_seeds must be a whole number of at least 1"),
        ({"objectives": "hintom"}, "no preset 'hintom'"),
        ({"student": "layers:9"}, "9 layers"),
        ({"teacher": "nowhere/to/be/found"}, "no folder 'nowhere/to/be/found'"),
    ],
)
def test_what_can_t_work_is_refused_before_training(tmp_path, taught, splits, wrong, message):
    job = {"teacher": taught.output_dir, "student": "layers:2", "train": splits["train"],
           "validation": splits["validation"], "output_dir": tmp_path / "out"}  # fmt: skip
    with pytest.raises(ValueError, match=message):
        distill(**job | wrong, **QUICK)
    assert not list(tmp_path.rglob("model.safetensors"))


@pytest.mark.parametrize("role", ["teacher", "second teacher", "student", "backbone", "model in memory", "fine-tuned"])
@pytest.mark.parametrize("place", ["own folder", "link to it", "the training whose checkpoint it is"])
def test_a_model_s_own_folder_is_no_place_for_what_is_made_of_it(tmp_path, taught, splits, role, place):
    is_checkpoint = place.startswith("the training")
    folder = tmp_path / "run/checkpoint-3" if is_checkpoint else tmp_path / "own"
    shutil.copytree(taught.output_dir, folder)
    out = folder.parent if is_checkpoint else folder
    if place == "link to it":
        out = tmp_path / "link"
        out.symlink_to(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    of_role = {
        "teacher": {"teacher": folder},
        "second teacher": {"teacher": [taught.output_dir, str(folder)]},
        "student": {"student": f"{folder}/"},
        "backbone": {"backbone": folder, "start": "pretrained"},
        "model in memory": {"teacher": AutoModelForSequenceClassification.from_pretrained(folder)},
    }
    with pytest.raises(ValueError, match="is the folder of the model .* would be overwritten"):
        if role == "fine-tuned":
            train_teacher(folder, splits, output_dir=out, **QUICK)
        else:
            job = {"teacher": taught.output_dir, "student": "layers:1"} | of_role[role]
            distill(**job, train=splits, output_dir=out, **QUICK)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory, taught) -> Path:
    """Whose answers are not those of the weights beside it, so that either shows."""
    folder = tmp_path_factory.mktemp("exported")
    other = copy.deepcopy(taught.model)
    with torch.no_grad():
        other.classifier.weight.mul_(2.5)
    export_onnx(other, taught.tokenizer, folder)
    (folder / "onnx/export.json").unlink()
    taught.model.save_pretrained(folder)
    return folder / "onnx/model.onnx"


@pytest.mark.parametrize("given", ["file", "object"])
def test_an_onnx_file_teaches_by_its_logits_a_student_of_the_weights_beside_it(given, tmp_path, onnx_file, splits):
    teacher = onnx_file if given == "file" else OnnxClassifier.from_pretrained(onnx_file)
    job = {"teacher": teacher, "student": "layers:2", "train": splits}
    cached = cache_for_distillation(DistillationConfig(output_dir=tmp_path / "outputs", **QUICK), **job)
    answers, tokenizer = OnnxClassifier.from_pretrained(onnx_file), AutoTokenizer.from_pretrained(onnx_file.parents[1])
    own = [answers(**tokenizer(row["text"], return_tensors="pt")).logits[0].tolist() for row in splits["train"]]
    torch.testing.assert_close(torch.tensor(cached["teacher_logits"][:]), torch.tensor(own))
    # With a learning rate of next to nothing the student is what it started as.
    result = distill(**job, output_dir=tmp_path / "student", **QUICK | {"max_steps": 2, "learning_rate": 1e-30})
    head = load_file(onnx_file.parents[1] / "model.safetensors")["classifier.weight"]
    assert torch.equal(result.student.classifier.weight, head)
    assert result.report.run.teacher.name == str(onnx_file)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"teacher_dtype": "bfloat16"}, "teacher_dtype='bfloat16' is of weights in PyTorch, and .*model.onnx"),
        ({"objectives": "layerwise"}, "of which only logits can be had"),
    ],
)
def test_what_an_onnx_file_does_not_have_is_not_asked_of_it(wrong, message, tmp_path, onnx_file, splits):
    with pytest.raises(ValueError, match=message):
        distill(onnx_file, "layers:2", splits, output_dir=tmp_path, **wrong, **QUICK)


def test_an_onnx_file_alone_teaches_students_that_are_not_made_of_it(tmp_path, onnx_file, small, splits):
    folder = shutil.copytree(onnx_file.parents[1], tmp_path / "alone")
    (folder / "model.safetensors").unlink()
    job = {"teacher": folder / "onnx/model.onnx", "train": splits, "output_dir": tmp_path / "out", **QUICK}
    with pytest.raises(
        ValueError, match="no \\*.safetensors beside model.onnx.* name a student that is saved already"
    ):
        distill(student="layers:2", **job)
    assert distill(student=small, **job | {"max_steps": 2}).report.run.teacher.name == str(folder / "onnx/model.onnx")


def test_a_model_that_is_given_keeps_its_dtype(tmp_path, taught, splits):
    with pytest.raises(ValueError, match="teacher_dtype='bfloat16', and the model that is given has float32"):
        distill(taught.model, "layers:2", splits, teacher_dtype="bfloat16", output_dir=tmp_path, **QUICK)


def test_settings_are_given_once(settings, taught, splits):
    with pytest.raises(ValueError, match="not both: got args and .*learning_rate"):
        distill(taught.output_dir, "layers:2", splits, args=settings(), learning_rate=1.0)
    with pytest.raises(ValueError, match="not both"):
        train_teacher(taught.output_dir, splits, args=settings(), seed=1)


def test_a_backbone_without_a_fine_tuned_head_is_no_teacher(tmp_path, backbone, splits):
    with pytest.raises(ValueError, match="not fine-tuned for classification"):
        distill(backbone, "layers:2", splits, output_dir=tmp_path, **QUICK)


def test_a_failed_push_leaves_everything_on_disk_and_says_how_to_finish(tmp_path, taught, splits, hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    with pytest.raises(RuntimeError, match=rf"nlpkd push {tmp_path} --repo-id alice/student"):
        distill(
            taught.output_dir, "layers:1", splits, output_dir=tmp_path, objectives=[CrossEntropyLoss()],
            push_to_hub=True, hub_model_id="alice/student", hub_token=READ_TOKEN, **QUICK,
        )  # fmt: skip
    assert len(predict(tmp_path, HELD_OUT)) == len(HELD_OUT)
    assert {"README.md", "report.json", "report.md"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("vocabulary", ["whole", "trim"])
def test_whoever_reads_the_student_later_cuts_texts_where_the_report_did(vocabulary, tmp_path, taught, splits):
    quick = QUICK | {"num_train_epochs": 1, "save_strategy": "no"}
    found = distill(
        taught.model, "layers:1", splits, tokenizer=taught.tokenizer, output_dir=tmp_path, max_length=4,
        vocabulary=vocabulary, **quick,
    )  # fmt: skip
    rows = splits["validation"]
    again = evaluate(tmp_path, rows, latency_runs=0, bootstrap_samples=20)
    assert found.report.run.data.truncated_rows and again.run.data.max_length == 4
    assert again.candidates["student"].quality == found.report.candidates["student"].quality
    plain = pipeline("text-classification", model=str(tmp_path), truncation=True)
    assert plain(rows["text"][:]) == load(tmp_path)(rows["text"][:])
    gold = [("bad", "good")[label] for label in rows["label"]]
    right = [each["label"] == label for each, label in zip(plain(rows["text"][:]), gold, strict=True)]
    assert sum(right) / len(right) == again.candidates["student"].quality["accuracy"].value
    assert "Texts longer than 4 tokens, special ones included, were cut" in (tmp_path / "README.md").read_text()
    assert taught.tokenizer.model_max_length == 64


def test_finished_seeds_are_kept_by_a_resume_and_by_nothing_else(tmp_path, taught, splits):
    job = {"teacher": taught.output_dir, "student": "layers:1", "train": splits, "output_dir": tmp_path,
           "objectives": "hinton", "num_seeds": 2}  # fmt: skip
    distill(**job, **QUICK)
    finished = (tmp_path / "seed-43" / "report.json").stat().st_mtime_ns
    assert [path.parent for path in tmp_path.rglob("teacher_cache")] == [tmp_path], "the seeds share one"
    resumed = distill(**job, **QUICK, resume_from_checkpoint=True)
    assert (tmp_path / "seed-43" / "report.json").stat().st_mtime_ns == finished
    assert resumed.report.candidates["student"].training_seconds is None, "only a part of it was timed"
    # As a run leaves it whose student was saved, and then not measured beside its teacher.
    report = EvaluationReport.load(tmp_path / "seed-43")
    replace(report, candidates={"student": report.candidates["student"]}, comparisons={}).save(tmp_path / "seed-43")
    again = distill(**job, **QUICK, resume_from_checkpoint=True)
    assert EvaluationReport.load(tmp_path / "seed-43").candidates.keys() == report.candidates.keys()
    assert len(again.report.seeds["student"]["accuracy"].values) == 2
    # The same number of rows to measure on, in a split of the same name, with one label changed.
    edited = splits["validation"].map(
        lambda row, number: {"label": row["label"] if number else 1 - row["label"]}, with_indices=True
    )
    finished = (tmp_path / "seed-43" / "report.json").stat().st_mtime_ns
    other = DatasetDict(splits | {"validation": edited})
    measured = distill(**job | {"train": other}, **QUICK, resume_from_checkpoint=True)
    assert (tmp_path / "seed-43" / "report.json").stat().st_mtime_ns != finished
    rows = {EvaluationReport.load(folder).run.data.evaluated_sha256 for folder in (tmp_path, tmp_path / "seed-43")}
    assert rows == {measured.report.run.data.evaluated_sha256} and len(rows) == 1
    finished = (tmp_path / "seed-43" / "report.json").stat().st_mtime_ns
    distill(**job, **QUICK)
    assert (tmp_path / "seed-43" / "report.json").stat().st_mtime_ns != finished


def test_a_checkpoint_given_by_its_path_is_the_student_s_alone(tmp_path, taught, splits):
    job = {"teacher": taught.output_dir, "student": "layers:1", "train": splits, "objectives": "hinton"}
    distill(**job, output_dir=tmp_path / "first", **QUICK)
    checkpoint = str(last_checkpoint(tmp_path / "first"))
    distill(**job, output_dir=tmp_path / "second", baseline="same_start", **QUICK, resume_from_checkpoint=checkpoint)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    baseline = load_file(tmp_path / "second" / "baseline" / "same_start" / "model.safetensors")
    assert any(not torch.equal(first[name], baseline[name]) for name in first)


LONG_RUN = """
import json, sys
from nlpkd import distill
distill(**json.loads(sys.argv[1]), max_steps=100000)
"""


@pytest.fixture
def working(tmp_path, taught, splits, small):
    """A job that another process works on and has saved a checkpoint of, and that process."""
    for split, rows in splits.items():
        rows.to_parquet(tmp_path / f"{split}.parquet")
    job = {"teacher": str(taught.output_dir), "student": str(small), "train": str(tmp_path / "train.parquet"),
           "validation": str(tmp_path / "validation.parquet"), "output_dir": str(tmp_path / "out"),
           **QUICK, "save_strategy": "steps", "save_steps": 4, "save_total_limit": 3,
           "lr_scheduler_type": "constant"}  # fmt: skip
    log = tmp_path / "log"
    program = Program(["-c", LONG_RUN, json.dumps(job)], tmp_path, log, log)
    try:
        deadline = time.monotonic() + 300
        while not list((tmp_path / "out").glob("checkpoint-*/checksums.json")):
            assert program.process.is_alive() and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield job, program
    finally:
        program.wait(0)


def test_a_killed_run_frees_its_directory_and_is_resumed_from_its_last_whole_checkpoint(working, caplog):
    killed, program = working
    with pytest.raises(ValueError, match="another run is writing to"):
        distill(**killed, max_steps=1)
    program.wait(0)
    out = Path(killed["output_dir"])
    last = last_checkpoint(out)
    done = int(last.name.split("-")[1])
    before = logged(last, "loss")
    (out / f"checkpoint-{done + 1000}").mkdir()  # cut short by the kill
    with caplog.at_level(logging.WARNING):
        distill(**killed, max_steps=done + 6, resume_from_checkpoint="True")
    assert f"Resuming from {last}" in caplog.text
    after = logged(out / f"checkpoint-{done + 6}", "loss")
    assert {step: after[step] for step in before} == before
    assert sorted(after) == list(range(1, done + 7))


@pytest.fixture
def one_thread():
    """As many threads as the other process has: another number sums in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_sigterm_saves_a_checkpoint_from_which_the_run_ends_as_if_nothing_had_been(working, tmp_path, one_thread):
    job, program = working
    os.kill(program.process.pid, signal.SIGTERM)
    assert program.wait(120) == 143
    last = last_checkpoint(Path(job["output_dir"]))
    done = int(last.name.split("-")[1])
    log = (tmp_path / "log").read_text()
    assert f"SIGTERM: stopped after step {done}, whose checkpoint is in {job['output_dir']}" in log
    assert not (Path(job["output_dir"]) / "report.json").exists()
    distill(**job, max_steps=done + 3, resume_from_checkpoint="True")
    distill(**job | {"output_dir": str(tmp_path / "whole")}, max_steps=done + 3)
    resumed, whole = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "whole"))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    for part in ("loss", "loss/forward_kl", "loss/hidden_state_mse"):
        first, second = (logged(tmp_path / name / f"checkpoint-{done + 3}", part) for name in ("out", "whole"))
        assert first == second


def two_stages() -> list[Stage]:
    return [
        Stage([HiddenStateMSELoss(layers="last")], num_train_epochs=1, learning_rate=1e-3),
        Stage([ForwardKLLoss()], learning_rate=5e-4),
    ]


@pytest.fixture(scope="module")
def staged(tmp_path_factory, taught, splits, small):
    """A job of two stages with projections in the first, and its arguments."""
    job = {"teacher": taught.output_dir, "student": small, "train": splits, "baseline": True}
    folder = tmp_path_factory.mktemp("staged")
    return distill(**job, output_dir=folder, objectives=two_stages(), **QUICK), job


def test_stages_follow_each_other_with_settings_of_their_own(staged):
    result, _ = staged
    states = [json.loads(path.read_text()) for path in (
        last_checkpoint(result.output_dir / "stage-1") / "trainer_state.json",
        last_checkpoint(result.output_dir) / "trainer_state.json",
        last_checkpoint(result.output_dir / ONLY) / "trainer_state.json",
    )]  # fmt: skip
    assert [state["num_train_epochs"] for state in states] == [1, 2, 2]
    rates = [max(entry.get("learning_rate", 0.0) for entry in state["log_history"]) for state in states]
    assert rates == [1e-3, 5e-4, 5e-4]
    assert any("loss/hidden_state_mse" in entry for entry in states[0]["log_history"])
    assert not any("loss/hidden_state_mse" in entry for entry in states[1]["log_history"])
    recorded = [(entry["stage"], entry["name"]) for entry in result.report.run.objectives]
    assert recorded == [(1, "hidden_state_mse"), (2, "forward_kl")]


def test_a_run_killed_in_any_stage_ends_as_the_uninterrupted_one(staged, tmp_path, caplog):
    result, job = staged
    whole = load_file(result.output_dir / "model.safetensors")
    for name in ("first", "second"):
        shutil.copytree(result.output_dir, tmp_path / name, ignore=shutil.ignore_patterns("baseline", ".lock"))
        for left in ("model.safetensors", "report.json"):
            (tmp_path / name / left).unlink()
        for checkpoint in (tmp_path / name).glob("checkpoint-*"):
            if name == "first" or checkpoint == last_checkpoint(tmp_path / name):
                shutil.rmtree(checkpoint)
    killed_in_the_first = tmp_path / "first" / "stage-1"
    (killed_in_the_first / "trainer_state.json").unlink()
    (killed_in_the_first / "model.safetensors").unlink()
    for name, said in (("first", "Resuming from"), ("second", "is finished: its model is used")):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            distill(**job | {"baseline": False}, output_dir=tmp_path / name, objectives=two_stages(), **QUICK,
                    resume_from_checkpoint=True)  # fmt: skip
        assert said in caplog.text
        found = load_file(tmp_path / name / "model.safetensors")
        assert all(torch.equal(whole[key], found[key]) for key in whole)


def test_several_teachers_teach_one_student_and_are_one_candidate(tmp_path, taught, splits, tokenizer):
    other = train_teacher(
        tiny_bert(layers=2, seed=5), raw_rows(160, seed=3, names=("bad", "good")), tokenizer=tokenizer,
        output_dir=tmp_path / "other", **QUICK | {"num_train_epochs": 10, "save_strategy": "no"},
    )  # fmt: skip
    result = distill(
        [taught.output_dir, str(other.output_dir)], "layers:2", splits, objectives="hinton",
        output_dir=tmp_path / "student", ensemble_weights=[1.0, 3.0], **QUICK,
    )  # fmt: skip
    assert " and " in result.report.run.teacher.name
    assert result.report.run.settings["ensemble_weights"] == [0.25, 0.75]
    parameters = [sum(p.numel() for p in model.parameters()) for model in (taught.model, other.model)]
    assert result.report.candidates["teacher"].parameters == sum(parameters)
    assert len(predict(result.output_dir, HELD_OUT)) == len(HELD_OUT)
    with pytest.raises(ValueError, match="several teachers"):
        distill(
            [taught.output_dir, other.output_dir], "layers:2", splits, objectives="layerwise",
            output_dir=tmp_path / "never", **QUICK,
        )  # fmt: skip


def test_a_baseline_has_no_weights_that_move(tmp_path, taught, splits):
    result = distill(
        taught.output_dir, "layers:1", splits, objectives="hinton", weighting="linear", baseline=True,
        output_dir=tmp_path / "student", **QUICK | {"num_train_epochs": 1, "save_strategy": "no"},
    )  # fmt: skip
    assert list(result.report.candidates) == ["teacher", "student", "no_teacher", "same_start"]


def test_soft_labels_take_the_place_of_a_teacher(tmp_path, small, splits):
    votes = [[1.0, 4.0] if label else [4.0, 1.0] for label in splits["train"]["label"]]
    rows = DatasetDict(train=splits["train"].add_column("votes", votes), validation=splits["validation"])
    job = {"student": small, "train": rows, "objectives": "hinton"}
    result = distill(**job, soft_label_column="votes", output_dir=tmp_path / "student", **QUICK)
    assert "votes" in result.report.run.teacher.name and "teacher" not in result.report.candidates
    for wrong, message in (
        ({}, "give either a teacher or soft_label_column"),
        ({"soft_label_column": "votes", "student": "layers:2"}, "there is none"),
        ({"soft_label_column": "votes", "objectives": "layerwise"}, "teacher has none to give"),
    ):
        with pytest.raises(ValueError, match=message):
            distill(**job | wrong, output_dir=tmp_path / "never", **QUICK)


def test_unlabelled_rows_teach_the_student_and_leave_the_baseline_its_labels_and_as_many_steps(
    tmp_path, taught, splits
):
    more = augment(splits["train"], MaskingAndNGrams(taught.tokenizer), copies=2, exclude=[splits["validation"]])
    assert set(more["label"]) == {-100}
    rows = DatasetDict(train=concatenate_datasets([splits["train"], more]), validation=splits["validation"])
    result = distill(
        taught.output_dir,
        "layers:2",
        rows,
        objectives="hinton",
        baseline="same_start",
        output_dir=tmp_path / "student",
        **QUICK,
    )
    assert result.report.run.data.train_rows == len(splits["train"]) + len(more)
    student, baseline = (
        json.loads((last_checkpoint(folder) / "trainer_state.json").read_text())
        for folder in (result.output_dir, result.output_dir / "baseline" / "same_start")
    )
    assert student["global_step"] == baseline["global_step"] == 2 * -(-len(rows["train"]) // 8)
    assert baseline["epoch"] > 1.5 * student["epoch"]


@pytest.mark.parametrize("preset", ["pkd", "minilmv2"])
def test_a_student_of_its_teachers_size_is_distilled_by_any_preset(tmp_path, taught, splits, preset):
    short = QUICK | {"num_train_epochs": 1}
    result = distill(taught.output_dir, "layers:4", splits, objectives=preset, output_dir=tmp_path, **short)
    candidates = result.report.candidates
    assert candidates["student"].parameters == candidates["teacher"].parameters
    assert candidates["student"].agreement.value > 0.8

"""What goes wrong with machines, files and numbers, for real: nothing is lost, nothing is half-written."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jobs
import pytest
import torch
from safetensors import SafetensorError
from samples import tiny_bert

from nlpkd import DistillationTrainer, push_student
from nlpkd.models.loading import load_classifier, load_tokenizer
from nlpkd.models.onnx_classifier import OnnxClassifier
from nlpkd.objectives import CrossEntropyLoss
from nlpkd.objectives.base import Objective
from nlpkd.training.batches.loaders import ROWS
from nlpkd.training.checkpoints import RUN_RECORD, last_whole
from nlpkd.utils.disk.files import CHECKSUMS, refuse_damaged
from nlpkd.utils.disk.full_disk import explain_full_disk

# kill -9

# What the process is about to do when it dies, the how many-th time, and the step that a resume goes on from.
POINTS = {
    "teacher, before the first save": ("teacher", "mkdir checkpoint-2", 1, None),
    "teacher, between saves": ("teacher", "mkdir checkpoint-6", 1, 4),
    "teacher, inside a save": ("teacher", "open checkpoint-6/trainer_state.json", 1, 4),
    "caching, between shards": ("caching", r"open \.shard-00003\..*\.tmp", 1, None),
    "caching, inside a shard": ("caching", r"rename shard-00003\..*", 1, None),
    "distillation, between saves": ("distillation", "mkdir checkpoint-8", 1, 6),
    "distillation, inside a save": ("distillation", "open checkpoint-8/config.json", 1, 6),
    "distillation, before the checksums of a save": ("distillation", "rename checkpoint-8/checksums.json", 1, 6),
    # Every save starts on an empty folder, so that a deletion is the second one.
    "distillation, deleting an old checkpoint": ("distillation", "rmtree .*checkpoint-4", 2, 8),
    "distillation, inside the final save": ("distillation", "rename model.safetensors", 1, 12),
    "evaluation": ("distillation", "rename report.json", 1, 12),
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> jobs.Lab:
    """One fork server for all."""
    return jobs.Lab(jobs.prepare(tmp_path_factory.mktemp("given")))


@pytest.fixture(scope="module")
def whole(lab, tmp_path_factory) -> dict[str, Path]:
    """Where each stage that resumes has run to its end without a fault."""
    folders = {stage: tmp_path_factory.mktemp("whole") / "out" for stage in ("teacher", "caching", "distillation")}
    for stage, out in folders.items():
        code, log = lab.finish(stage, out)
        assert code == 0, log
    return folders


@pytest.mark.parametrize("name", POINTS)
def test_a_killed_job_ends_like_the_uninterrupted_one(name, lab, whole, tmp_path):
    stage, point, nth, step = POINTS[name]
    out = tmp_path / "out"
    code, log = lab.finish(stage, out, point=point, nth=nth)
    assert code == -signal.SIGKILL, log
    kept = {path: path.stat().st_mtime_ns for path in out.glob("shard-*")}
    code, log = lab.finish(stage, out, resume_from_checkpoint=True)
    assert code == 0, log
    if name == "evaluation":
        assert f"The training in {out} is finished: its model is used." in log
    elif step is not None:
        assert f"Resuming from {out}/checkpoint-{step}." in log
    if "save" in name and "inside" in name and step not in (None, 12):
        assert f"{out}/checkpoint-{step + 2} was cut short" in log
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "shards that were there are computed again"
    assert len(kept) == (3 if stage == "caching" else 0)
    ours, theirs = jobs.outcome(stage, out), jobs.outcome(stage, whole[stage])
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if ours[name] != theirs[name]] == []
    assert not list(out.rglob(".saving*")) and not list(out.rglob(".*.tmp"))


def test_a_killed_export_leaves_whole_files_alone_and_is_done_again(lab, tmp_path):
    """Killed further on each time, by which it has gone on from what the one before it left."""
    out = tmp_path / "out"
    points = (r"open \.exporting-0-.*/onnx/.*", "rename onnx/model.onnx", "rename onnx/model_int8.onnx",
              "rename onnx/export.json")  # fmt: skip
    for point in points:
        code, log = lab.finish("export", out, point=point)
        assert code == -signal.SIGKILL, (point, log)
        for path in (out / "onnx").glob("*.onnx"):
            OnnxClassifier.from_pretrained(path)
        assert not (out / "onnx" / "export.json").exists()
    code, log = lab.finish("export", out)
    assert code == 0, log
    names = ["model.onnx", "model_int8.onnx", "model_quantized.onnx"]
    assert {path.name for path in (out / "onnx").iterdir()} == {*names, "export.json"}
    recorded = json.loads((out / "onnx" / "export.json").read_text())["files"]
    assert sorted(recorded) == [f"onnx/{name}" for name in names] and not list(out.glob(".exporting*"))


def test_the_only_checkpoint_stays_until_the_next_one_has_its_checksums(lab, tmp_path):
    out = tmp_path / "out"
    code, log = lab.finish("teacher", out, point="rename checkpoint-4/checksums.json", save_total_limit=1)
    assert code == -signal.SIGKILL, log
    assert last_whole(out) == out / "checkpoint-2"
    refuse_damaged(out / "checkpoint-2")


def test_a_finished_run_takes_no_further_step_though_it_ended_within_an_epoch(lab, tmp_path):
    out = tmp_path / "out"
    code, log = lab.finish("teacher", out, max_steps=8)
    assert code == 0, log
    before = jobs.outcome("teacher", out)
    code, log = lab.finish("teacher", out, max_steps=8, resume_from_checkpoint=True)
    assert code == 0 and f"Resuming from {out}/checkpoint-8." in log, log
    assert jobs.outcome("teacher", out) == before and last_whole(out) == out / "checkpoint-8"


@pytest.mark.parametrize("stage", ["distillation", "trainer"])
def test_a_directory_has_one_run_and_is_free_after_a_kill(stage, lab, tmp_path):
    out = tmp_path / "out"
    first = lab.start(stage, out, point="mkdir checkpoint-4", number=signal.SIGSTOP)
    jobs.wait_until_stopped(first)
    try:
        code, log = lab.finish(stage, out)
        assert code == 1 and f"another run is writing to {out}" in log
    finally:
        first.kill()
        first.join()
    code, log = lab.finish(stage, out, resume_from_checkpoint=True)
    assert code == 0 and f"Resuming from {out}/checkpoint-2." in log, log


def test_of_two_runs_on_one_cache_the_second_waits_and_computes_nothing(lab, whole, tmp_path):
    out = tmp_path / "out"
    first = lab.start("caching", out, point=r"rename shard-00003\..*", number=signal.SIGSTOP)
    jobs.wait_until_stopped(first)
    second = lab.start("caching", out)
    deadline = time.monotonic() + 240
    while f"Waiting for another run, which is writing to {out}" not in Path(f"{out}.log").read_text():
        assert second.is_alive() and time.monotonic() < deadline, Path(f"{out}.log").read_text()
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGCONT)
    for process in (first, second):
        process.join(240)
    assert [first.exitcode, second.exitcode] == [0, 0], Path(f"{out}.log").read_text()
    assert jobs.outcome("caching", out) == jobs.outcome("caching", whole["caching"])


# Another run's checkpoint

CHANGES = {
    "learning rate": ({"learning_rate": 1e-3}, r"learning_rate (0.002 in the checkpoint, 0.001 here)"),
    "rows of a step": ({"per_device_train_batch_size": 4}, "rows of an optimizer step (8 in the checkpoint, 4 here)"),
    "data": ({"train": "other_train"}, "training rows (48 in the checkpoint, 47 here)"),
    "objectives": ({"objectives": "hotter"}, "forward_kl: temperature ("),
    "teacher": ({"teacher": "other_teacher"}, "what differs: the teacher's weights. "),
    "student": ({"student": "other_student"}, "the student's num_hidden_layers (2 in the checkpoint, 1 here)"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_run_with_other_settings_is_refused_with_the_difference(what, lab, whole, tmp_path):
    shutil.copytree(whole["distillation"], tmp_path / "out")
    change, said = CHANGES[what]
    code, log = lab.finish("distillation", tmp_path / "out", resume_from_checkpoint=True, **change)
    assert code == 1 and "checkpoint-12 is of another run" in log and said in log, log
    assert jobs.outcome("distillation", tmp_path / "out") == jobs.outcome("distillation", whole["distillation"])


def test_a_run_may_be_split_and_logged_otherwise_and_go_on_for_longer(lab, whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole["distillation"], out)
    other = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "logging_steps": 1, "save_steps": 3}
    code, log = lab.finish("distillation", out, resume_from_checkpoint=True, num_train_epochs=3, **other)
    assert code == 0, log
    assert "num_train_epochs (2 in the checkpoint, 3 here): the learning rate's schedule follows" in log
    assert last_whole(out) == out / "checkpoint-18"


@pytest.mark.parametrize(
    ("point", "said"),
    [("mkdir checkpoint-6", "go on from checkpoint-4 with resume_from_checkpoint=True"),
     ("mkdir checkpoint-2", "it had no whole checkpoint yet")],
)  # fmt: skip
def test_ctrl_c_says_how_to_go_on(point, said, lab, tmp_path):
    out = tmp_path / "out"
    code, log = lab.finish("trainer", out, point=point, number=signal.SIGINT)
    assert code == 1 and f"Stopped by Ctrl-C in {out}: {said}" in log and "KeyboardInterrupt" in log, log


def test_a_report_that_can_not_be_saved_costs_no_training(lab, whole, tmp_path):
    out = tmp_path / "out"
    (out / "report.json").mkdir(parents=True)
    code, log = lab.finish("distillation", out)
    assert code == 1 and f"The student is trained and saved in {out}; what failed came after that" in log, log
    assert (out / "model.safetensors").read_bytes() == (whole["distillation"] / "model.safetensors").read_bytes()
    (out / "report.json").rmdir()
    code, log = lab.finish("distillation", out, resume_from_checkpoint=True)
    assert code == 0 and f"The training in {out} is finished: its model is used." in log, log
    assert jobs.outcome("distillation", out) == jobs.outcome("distillation", whole["distillation"])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_run_overwrites_no_checkpoint_of_the_first_and_is_resumed_from_its_own(lab, whole, tmp_path):
    out, other = tmp_path / "out", {"learning_rate": 1e-3}
    shutil.copytree(whole["distillation"], out)
    before = {name: contents(out / name) for name in ("checkpoint-10", "checkpoint-12")}
    code, log = lab.finish("distillation", out, point="mkdir checkpoint-6", **other)
    assert code == -signal.SIGKILL, log
    assert f"were moved to {out}/earlier-1: 2." in log
    assert {path.name: contents(path) for path in (out / "earlier-1").iterdir()} == before
    code, log = lab.finish("distillation", out, resume_from_checkpoint=True, **other)
    assert code == 0 and f"Resuming from {out}/checkpoint-4." in log, log
    assert not (out / "earlier-2").exists()


def test_of_two_runs_in_one_folder_the_last_checkpoint_of_the_same_run_is_chosen(lab, whole, tmp_path):
    out = tmp_path / "out"
    code, log = lab.finish("distillation", out, point="mkdir checkpoint-6", learning_rate=1e-3)
    assert code == -signal.SIGKILL, log
    # As a version without `earlier-N` left them.
    shutil.copytree(whole["distillation"] / "checkpoint-12", out / "checkpoint-12")
    code, log = lab.finish("distillation", out, resume_from_checkpoint=True, learning_rate=1e-3)
    assert code == 0 and f"Resuming from {out}/checkpoint-4." in log, log
    assert contents(out / "earlier-1" / "checkpoint-12") == contents(whole["distillation"] / "checkpoint-12")


def test_a_run_started_again_with_the_same_settings_loses_no_progress(lab, whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole["distillation"], out)
    code, log = lab.finish("distillation", out, point="mkdir checkpoint-6", save_total_limit=1)
    assert code == -signal.SIGKILL and last_whole(out) == out / "checkpoint-12", log
    assert not (out / "earlier-1").exists()


def test_a_stage_or_seed_that_an_earlier_run_finished_is_not_taken_by_a_resumed_one(lab, tmp_path):
    out, options = tmp_path / "out", {"objectives": "stages", "num_train_epochs": 1}
    code, log = lab.finish("distillation", out, num_seeds=2, **options)
    assert code == 0, log
    other = options | {"learning_rate": 1e-3}
    code, log = lab.finish("distillation", out, resume_from_checkpoint=True, **other)
    assert code == 1 and "stage-1/checkpoint-6 is of another run; what differs: learning_rate" in log, log
    code, log = lab.finish("distillation", out, point="mkdir stage-1/checkpoint-4", num_seeds=2, **other)
    assert code == -signal.SIGKILL, log
    code, log = lab.finish("distillation", out, resume_from_checkpoint=True, num_seeds=2, **other)
    assert code == 0 and " is finished: its " not in log, log
    expected = tmp_path / "expected"
    code, log = lab.finish("distillation", expected, **other)
    assert code == 0, log
    assert (out / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()


def test_folders_of_the_user_stay_whatever_their_names_begin_with(lab, tmp_path):
    out = tmp_path / "out"
    names = ["checkpoint-4-backup", "checkpoint-keep", "checkpoint-best", "checkpoint-007", "stage-final", "seed-mine"]
    for name in names:
        for file in ("trainer_state.json", "report.json"):
            (out / name).mkdir(parents=True, exist_ok=True)
            (out / name / file).write_text("mine")
    # It has the name of a checkpoint, and no run of nlpkd wrote it.
    shutil.copytree(out / "checkpoint-keep", out / "checkpoint-1")
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "save_total_limit": 1}
    code, log = lab.finish("distillation", out, **best)
    assert code == 0 and (out / "README.md").is_file(), log
    assert len(list(out.glob("checkpoint-[1-9]*[02468]"))) == 1
    for folder in (*(out / name for name in names), out / "earlier-1" / "checkpoint-1"):
        assert {path.read_text() for path in folder.iterdir()} == {"mine"}


# Damage

DAMAGE = {
    "truncated": (lambda data: data[: len(data) // 2], "bytes of"),
    "bit-flipped": (lambda data: data[:-9] + bytes([data[-9] ^ 4]) + data[-8:], "its checksum is another one"),
    "missing": (None, "is missing"),
}


def damage(path: Path, how: str) -> str:
    spoil, said = DAMAGE[how]
    if spoil is None:
        path.unlink()
    else:
        path.write_bytes(spoil(path.read_bytes()))
    return said


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "objectives.safetensors", "rng_state.pth"])
def test_a_damaged_checkpoint_file_is_named(name, how, whole, tmp_path):
    shutil.copytree(whole["distillation"] / "checkpoint-12", tmp_path / "checkpoint-12")
    refuse_damaged(tmp_path / "checkpoint-12")
    said = damage(tmp_path / "checkpoint-12" / name, how)
    with pytest.raises(ValueError, match=f"checkpoint-12/{name} .*{said}"):
        refuse_damaged(tmp_path / "checkpoint-12")


def test_a_damaged_checkpoint_is_not_trained_on_and_the_one_before_it_serves_once_it_is_deleted(lab, whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole["distillation"], out)
    # Of a run that was stopped before its student was saved
    (out / RUN_RECORD).unlink()
    damage(out / "checkpoint-12" / "optimizer.pt", "bit-flipped")
    code, log = lab.finish("distillation", out, resume_from_checkpoint=True)
    assert code == 1 and f"{out}/checkpoint-12/optimizer.pt is damaged" in log
    assert f"To go on from the checkpoint before it, delete {out}/checkpoint-12" in log
    shutil.rmtree(out / "checkpoint-12")
    code, log = lab.finish("distillation", out, resume_from_checkpoint=True)
    assert code == 0 and "Resuming from " in log and "checkpoint-10." in log
    assert jobs.outcome("distillation", out) == jobs.outcome("distillation", whole["distillation"])


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize(
    ("name", "load"), [("model.safetensors", load_classifier), ("tokenizer.json", load_tokenizer)]
)
def test_damaged_weights_or_tokenizer_are_neither_loaded_nor_pushed(name, load, how, whole, tmp_path):
    folder = tmp_path / "student"
    shutil.copytree(whole["distillation"], folder)
    load(folder)
    said = damage(folder / name, how)
    with pytest.raises(ValueError, match=f"student/{name} .*{said}"):
        load(folder)
    with pytest.raises(ValueError, match=name):
        push_student(folder, "somebody/student")


@pytest.mark.parametrize("how", ["truncated", "bit-flipped"])
def test_a_damaged_cache_shard_is_named_and_not_read(how, lab, whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole["caching"], out)
    shard = sorted(out.glob("shard-*.arrow"))[2]
    damage(shard, how)
    code, log = lab.finish("caching", out)
    assert code == 1 and f"{shard} is damaged" in log
    shard.unlink()
    code, log = lab.finish("caching", out)
    assert code == 0 and jobs.outcome("caching", out) == jobs.outcome("caching", whole["caching"]), log


# A full disk


@pytest.fixture
def small_disk(tmp_path) -> Iterator:
    """Mount a tmpfs of so many pages as `out`, or change its size."""
    out, mounted = tmp_path / "out", []
    out.mkdir()

    def size(pages: int) -> Path:
        options = f"{'remount,' if mounted else ''}size={pages * 4096}"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", out], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a tmpfs can't be mounted here: {done.stderr.strip()}")
        mounted.append(out)
        return out

    yield size
    if mounted:
        subprocess.run(["umount", out], check=True)


def pages(folder: Path) -> int:
    return sum(-(-path.stat().st_size // 4096) for path in folder.rglob("*") if path.is_file())


def test_a_full_disk_while_a_push_is_prepared_is_told_as_one(small_disk, lab, whole, monkeypatch, tmp_path):
    student = shutil.copytree(whole["distillation"], tmp_path / "student")
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk(1)))
    with pytest.raises(RuntimeError, match="not pushed to a/b: the disk is full .*Nothing is lost.*nlpkd push"):
        push_student(student, "a/b")


def test_a_disk_that_fills_up_while_checkpoints_are_saved(lab, whole, small_disk):
    each = pages(whole["distillation"] / "checkpoint-12")
    out = small_disk(2 * each + each // 2)
    code, log = lab.finish("distillation", out, save_total_limit=None)
    assert code == 1 and "the disk is full: checkpoint-6 was not written" in log, log
    assert {path.name for path in out.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    for name in ("checkpoint-2", "checkpoint-4"):
        refuse_damaged(out / name)
    small_disk(20 * each)
    code, log = lab.finish("distillation", out, save_total_limit=None, resume_from_checkpoint=True)
    assert code == 0 and f"Resuming from {out}/checkpoint-4." in log, log
    assert jobs.outcome("distillation", out) == jobs.outcome("distillation", whole["distillation"])


def test_a_disk_that_fills_up_at_the_end_leaves_the_model_that_was_there(lab, whole, small_disk):
    names = ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", CHECKSUMS]
    before = {name: (whole["teacher"] / name).read_bytes() for name in names}
    out = small_disk(sum(-(-len(data) // 4096) for data in before.values()) + 4)
    for name, data in before.items():
        (out / name).write_bytes(data)
    code, log = lab.finish("teacher", out, save_strategy="no")
    assert code == 1 and "the disk is full: the model was not saved, and what was there before is as it was" in log
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".lock"} == before


def test_a_disk_that_fills_up_while_caching(lab, whole, small_disk):
    out = small_disk(4)
    code, log = lab.finish("caching", out)
    assert code == 1 and "the disk is full: shard-00003" in log, log
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*")}
    assert len(kept) == 3
    small_disk(20)
    code, log = lab.finish("caching", out)
    assert code == 0 and jobs.outcome("caching", out) == jobs.outcome("caching", whole["caching"]), log
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
def test_a_limit_on_file_sizes_is_told_as_one(name, lab, whole, tmp_path):
    size = (whole["distillation"] / "checkpoint-12" / name).stat().st_size
    # Without the rehearsal, which finds that the model can't be saved before anything is trained.
    code, log = lab.finish("small files", tmp_path / "out", limit_bytes=size - 512, rehearsal=False)
    said = r"larger than the limit on file sizes \(ulimit -f\): checkpoint-2 was not written\. .* it had no whole"
    assert code == 1 and re.search(said, log), log
    assert not (tmp_path / "out" / "checkpoint-2").exists()


def test_a_limit_on_file_sizes_that_no_model_fits_in_is_told_before_the_training(lab, whole, tmp_path):
    size = (whole["distillation"] / "model.safetensors").stat().st_size
    code, log = lab.finish("small files", tmp_path / "out", limit_bytes=size - 512, rehearsal=True)
    assert code == 1 and "larger than the limit on file sizes (ulimit -f): the model was not saved" in log, log
    assert "train_runtime" not in log and not list((tmp_path / "out").glob("checkpoint-*"))


def test_a_spent_quota_is_told_as_one(tmp_path):
    # No file system with quotas can be mounted here: these are the errors that Python and safetensors raise on one.
    system = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    for error in (system, SafetensorError("I/O error: Disk quota exceeded (os error 122)")):
        with pytest.raises(OSError, match="the disk quota is spent: not written") as told:
            with explain_full_disk(tmp_path, "not written"):
                raise error
        assert told.value.errno == errno.EDQUOT


# Numbers that are none


class Spoiled(Objective):
    """Bad on the row whose teacher's first logit is 77: NaN, or finite with a gradient that is not."""

    needs = frozenset({"logits"})

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def count(self, batch):
        return torch.tensor(float(len(batch["labels"])))

    def total(self, student, teacher, batch):
        zeros = student.logits[batch["teacher_logits"][:, 0] == 77.0] * 0
        bad = zeros / zeros if self.kind == "loss" else zeros.abs().sqrt()
        return bad.sum() + student.logits.square().sum()


@pytest.mark.parametrize(
    ("kind", "save_steps", "order"),
    [("loss", 1, "group_by_length"), ("gradient", 1, "random"), ("loss", 1000, "random"),
     ("gradient", 1000, "group_by_length"), ("loss", 1000, "sequential")],
)  # fmt: skip
def test_a_bad_number_stops_the_training_and_names_objective_step_and_rows(
    kind, save_steps, order, make_rows, settings, tokenizer
):
    bad = 29
    logits = [[77.0 if row == bad else 0.1, -0.1] for row in range(64)]
    rows = make_rows(64).add_column("teacher_logits", logits)
    args = settings(gradient_accumulation_steps=2, per_device_train_batch_size=4, logging_steps=4, num_train_epochs=4,
                    save_strategy="steps", save_steps=save_steps, learning_rate=1e-3, train_sampling_strategy=order,
                    seed=5)  # fmt: skip
    objectives = [CrossEntropyLoss(), Spoiled(kind)]
    trainer = DistillationTrainer(tiny_bert(hidden=8), None, args, objectives, rows, processing_class=tokenizer)
    batches = [batch[ROWS] for batch in trainer.get_train_dataloader()]
    for numbers, batch in zip(batches, trainer.get_train_dataloader(), strict=True):
        assert batch["labels"].tolist() == [rows["labels"][number] for number in numbers]
    at = next(k for k, numbers in enumerate(batches) if bad in numbers)
    step = at // 2 + 1
    assert 1 < step < 8, "the first step would say less"
    # Of a loss it is known which of the step's two micro-batches was bad, of gradients only the step.
    spoiled = batches[at] if kind == "loss" else batches[2 * step - 2] + batches[2 * step - 1]
    named = "spoiled" if kind == "loss" else "the gradients of cross_entropy, spoiled (the losses are finite)"
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    listed = ", ".join(map(str, spoiled))
    said = f"{named} became NaN or infinite in step {step}, on rows {listed} of the training data: "
    assert str(error.value).startswith(said)
    if save_steps == 1:
        last = last_whole(args.output_dir)
        assert last is not None and last.name == f"checkpoint-{step - 1}"
        refuse_damaged(last)
    else:
        assert trainer.state.global_step == -(-step // 4) * 4


# Memory

# Half of the rows at once fit, all of them do not.
SCARCE = {"spare_mb": 150, "per_device_train_batch_size": jobs.LONG_ROWS}


def test_memory_that_runs_out_says_what_to_lower(lab, tmp_path):
    code, log = lab.finish("scarce", tmp_path / "out", **SCARCE)
    said = f"MemoryError: memory ran out with {jobs.LONG_ROWS} rows a micro-batch: halve per_device_train_batch_size"
    assert code == 1 and said in log, log


def test_a_batch_size_that_fits_is_found_and_a_step_keeps_its_rows(lab, tmp_path):
    code, log = lab.finish("scarce", tmp_path / "out", **SCARCE, auto_find_batch_size=True)
    assert code == 0, log
    last = last_whole(tmp_path / "out")
    state = json.loads((last / "trainer_state.json").read_text())
    assert state["global_step"] == 1 and state["train_batch_size"] <= jobs.LONG_ROWS // 2

"""Files are written whole, by one writer, and never through a link that somebody else left."""

from __future__ import annotations

import json
import os
import resource
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from datasets import Dataset
from processes import Program
from samples import raw_rows, tiny_bert, tiny_report

from nlpkd import DistillationTrainer
from nlpkd.cli import app
from nlpkd.cli.settings import save_config
from nlpkd.evaluation.html_report import PAGE_PACKAGES
from nlpkd.evaluation.report import EvaluationReport
from nlpkd.hub.saving import save_report, save_student
from nlpkd.labelling.mislabelled import check_labels
from nlpkd.labelling.rows import save_rows
from nlpkd.objectives import ForwardKLLoss, HiddenStateMSELoss
from nlpkd.utils.disk.files import atomic_folder_update, cut_torn_line, staging_folder, write_atomic, write_together
from nlpkd.utils.disk.full_disk import explain_full_disk, temporary_folder
from nlpkd.utils.disk.links import copy_from_inside, link_file, move_into, refuse_outside
from nlpkd.utils.disk.locks import lock_of, only_writer


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A file of somebody else, to which links lead."""
    path = tmp_path / "foreign"
    path.write_text("theirs")
    return path


def test_no_link_under_a_name_that_can_be_known_is_written_through(tmp_path: Path, tokenizer, foreign: Path) -> None:
    folder = tmp_path / "student"
    folder.mkdir()
    names = ["report.json", "report.md", "README.md", "config.json", "model.safetensors", "checksums.json"]
    for name in [*names, *{f".{name.split('.')[0]}.tmp" for name in names}, ".saving"]:
        (folder / name).symlink_to(foreign)
    save_student(tiny_bert(), folder, tokenizer)
    (folder / "README.md").unlink()
    save_report(tiny_report(), folder)
    assert foreign.read_text() == "theirs"
    assert not [name for name in names if (folder / name).is_symlink()]
    assert EvaluationReport.load(folder) == tiny_report()


@pytest.mark.parametrize("name", [".lock", "onnx", "baseline", "checkpoint-2", "seed-43", "stage-1", "teacher_cache",
                                  "runs", "optuna.log", "run-0", "earlier-1", "baseline/same_start"])  # fmt: skip
def test_a_folder_with_a_link_where_a_run_writes_is_refused(name: str, tmp_path: Path, foreign: Path) -> None:
    folder = tmp_path / "out"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).symlink_to(foreign)
    with pytest.raises(ValueError, match=f"{name} is a link to {foreign}.*remove it"), only_writer(folder):
        pass
    assert foreign.read_text() == "theirs"
    # A link that leads to nothing would have something written there.
    foreign.unlink()
    with pytest.raises(ValueError, match=f"{name} is a link to {foreign}"), only_writer(folder):
        pass


def test_a_folder_that_is_a_link_is_not_written_to(tmp_path: Path) -> None:
    other, folder = tmp_path / "other", tmp_path / "out"
    other.mkdir()
    (other / "model.onnx").write_text("theirs")
    folder.mkdir()
    (folder / "onnx").symlink_to(other)
    with pytest.raises(ValueError, match="onnx is a link"), atomic_folder_update(folder) as temporary:
        (temporary / "onnx").mkdir()
        (temporary / "onnx" / "model.onnx").write_text("ours")
    assert (other / "model.onnx").read_text() == "theirs" and [path.name for path in folder.iterdir()] == ["onnx"]


def swap_on_open(monkeypatch: pytest.MonkeyPatch, path: Path, target: Path) -> None:
    """Put a link in a path's place at the last moment before something is opened or renamed."""
    swapped = []

    def swap(name: str) -> None:
        call = getattr(os, name)

        def swapping(*arguments: object, **options: object) -> object:
            if not swapped:
                swapped.append(path.rename(path.with_name("kept")))
                path.symlink_to(target)
            return call(*arguments, **options)

        monkeypatch.setattr(os, name, swapping)

    for name in ("open", "replace"):
        swap(name)


def test_a_link_that_takes_a_folder_s_place_meanwhile_is_not_written_through(tmp_path, monkeypatch) -> None:
    folder, other = tmp_path / "out", tmp_path / "other"
    (folder / "onnx").mkdir(parents=True)
    other.mkdir()
    (other / "model.onnx").write_text("theirs")
    (folder / "new").write_text("ours")
    swap_on_open(monkeypatch, folder / "onnx", other)
    with pytest.raises(OSError):
        move_into(folder, folder / "new", Path("onnx/model.onnx"))
    assert (other / "model.onnx").read_text() == "theirs"


@pytest.mark.parametrize("swapped", ["merges.txt", "onnx"])
def test_a_link_that_takes_a_file_s_place_meanwhile_is_not_read(swapped, tmp_path, monkeypatch) -> None:
    folder, other = tmp_path / "student", tmp_path / "other"
    (folder / "onnx").mkdir(parents=True)
    for name in ("merges.txt", "onnx/model.onnx"):
        (folder / name).write_text("ours")
    other.mkdir()
    (other / "model.onnx").write_text("theirs")
    swap_on_open(monkeypatch, folder / swapped, other if swapped == "onnx" else other / "model.onnx")
    name = "onnx/model.onnx" if swapped == "onnx" else swapped
    with pytest.raises((OSError, ValueError)):
        copy_from_inside(folder, name, tmp_path / "copy")
    assert not (tmp_path / "copy").exists() or (tmp_path / "copy").read_text() == ""


def test_a_file_that_is_no_lock_is_left_alone(tmp_path: Path, foreign: Path) -> None:
    """filelock before 3.25 empties what it locks, and a lock may be another name of somebody's file."""
    os.link(foreign, tmp_path / ".lock")
    with pytest.raises(ValueError, match=r"\.lock is no lock"), only_writer(tmp_path):
        pass
    with pytest.raises(ValueError, match="foreign is no lock"), lock_of(foreign, "at work"):
        pass
    assert foreign.read_text() == "theirs"


def test_written_files_have_the_permissions_that_other_files_have(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    write_atomic(tmp_path / "report.json", b"{}")
    plain, ours = ((tmp_path / name).stat().st_mode for name in ("plain", "report.json"))
    assert stat.S_IMODE(ours) == stat.S_IMODE(plain)


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600)])
def test_all_files_of_a_run_have_the_permissions_of_the_user_s_umask(
    umask: int, mode: int, tmp_path: Path, tokenizer, make_rows, settings
) -> None:
    before = os.umask(umask)
    try:
        trainer = DistillationTrainer(
            model=tiny_bert(hidden=8), teacher_model=tiny_bert(), train_dataset=make_rows(8),
            processing_class=tokenizer, objectives=[ForwardKLLoss(), HiddenStateMSELoss()],
            args=settings(output_dir=str(tmp_path), max_steps=1, save_strategy="steps", save_steps=1),
        )  # fmt: skip
        trainer.train()
        trainer.save_model()
        save_report(tiny_report(), tmp_path)
        save_student(tiny_bert(), tmp_path / "again", tokenizer)
        (tmp_path / "staged").touch(mode=0o600)
        move_into(tmp_path, tmp_path / "staged", Path("onnx/model.onnx"))
    finally:
        os.umask(before)
    found = {path.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("*") if path.is_file()}
    assert {"model.safetensors", "checkpoint-1/model.safetensors", "checkpoint-1/objectives.safetensors"} <= set(found)
    assert {"onnx/model.onnx", "again/model.safetensors"} <= set(found)
    assert {name: oct(stat.S_IMODE(path.stat().st_mode)) for name, path in found.items()} == dict.fromkeys(
        found, oct(mode)
    )


def test_what_killed_writers_left_goes_and_what_only_looks_like_it_stays(tmp_path: Path) -> None:
    (tmp_path / ".report.0123456789abcdef.tmp").write_text("half")
    (tmp_path / ".notes.tmp").write_text("mine")
    (tmp_path / ".exporting-0-x").mkdir()
    with only_writer(tmp_path), staging_folder(tmp_path, ".exporting-0-") as staged:
        assert not any(staged.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {".notes.tmp", ".lock"}


def test_files_that_lead_out_of_their_folder_are_named_but_those_of_the_hub_s_cache_are_read(
    tmp_path: Path, foreign: Path
) -> None:
    snapshot, blobs = tmp_path / "models--alice--tiny/snapshots/0123", tmp_path / "models--alice--tiny/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "abc").write_text("{}")
    (blobs / "evil").symlink_to(foreign)
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    (snapshot / "other.json").symlink_to("config.json")
    refuse_outside(snapshot, ["config.json", "other.json", "missing.json"])
    (snapshot / "merges.txt").symlink_to("../../blobs/evil")
    with pytest.raises(ValueError, match=r"^merges.txt in .* leads out of it by a link"):
        refuse_outside(snapshot, ["config.json", "merges.txt"])


WRITER = """
import sys, time
from pathlib import Path
from samples import tiny_report
folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
Path(f"{sys.argv[3]}.ready").touch()
while not Path("go").exists():
    time.sleep(0.001)
for _ in range(rounds):
    tiny_report("org/" + sys.argv[3] * 2000).save(folder)
"""


def test_two_writers_of_one_report_leave_a_whole_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    writers = [
        Program(["-c", WRITER, str(out), "60", name], tmp_path, tmp_path / f"{name}.out", tmp_path / f"{name}.err")
        for name in ("a", "b")
    ]
    while not all((tmp_path / f"{name}.ready").exists() for name in ("a", "b")):
        assert all(writer.process.is_alive() for writer in writers)
        time.sleep(0.01)
    (tmp_path / "go").touch()
    codes = [writer.wait() for writer in writers]
    assert codes == [0, 0], [(tmp_path / f"{name}.err").read_text() for name in ("a", "b")]
    assert EvaluationReport.load(out).run.teacher.name in ("org/" + "a" * 2000, "org/" + "b" * 2000)
    json.loads((out / "report.json").read_text())
    assert sorted(os.listdir(out)) == ["report.json", "report.md"]


def test_a_second_name_is_the_same_file_and_a_copy_where_the_disk_has_no_such_names(tmp_path, monkeypatch):
    (tmp_path / "one").write_bytes(b"content")
    link_file(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "two").samefile(tmp_path / "one")

    def refuse(*given):
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    link_file(tmp_path / "one", tmp_path / "three")
    assert (tmp_path / "three").read_bytes() == b"content"
    assert not (tmp_path / "three").samefile(tmp_path / "one")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow above so many bytes, which Python is told as it is of a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _save_config(folder: Path) -> None:
    context = typer.Context(typer.main.get_command(app).commands["push"], info_name="push")
    context.params = {"directory": "x" * 100}
    save_config(context, folder / "file")


WRITERS = {
    "whole": lambda folder: write_atomic(folder / "file", b"x" * 100),
    "report": lambda folder: save_report(tiny_report(), folder),
    "config": _save_config,
    "rows": lambda folder: save_rows(Dataset.from_dict({"text": ["x" * 100]}), folder / "file"),
    "wrong labels": lambda folder: check_labels(raw_rows(40), output=folder / "file.csv"),
    "staged": lambda folder: _stage(folder),
}
"""Ways to write files that have nothing of their own to say of a full disk, into a folder."""


def _stage(folder: Path) -> None:
    with staging_folder(folder, ".new-") as staged:
        (staged / "file").write_bytes(b"x" * 100)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_told_with_what_was_not_written_and_what_to_do(writer: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "file").write_text("before")
    said = "larger than the limit on file sizes.*not written, and what was there before is as it was. Free some space"
    with pytest.raises(OSError, match=said) as told, largest_file(16):
        WRITERS[writer](folder)
    assert str(told.value.filename).startswith(str(folder))
    assert {path.name: path.read_text() for path in folder.iterdir() if path.name != ".lock"} == {"file": "before"}


def test_a_full_temporary_folder_is_told_as_one_wherever_else_something_was_to_be_written(tmp_path: Path) -> None:
    said = f"larger than the limit on file sizes.*temporary files go to {tempfile.gettempdir()}.*set TMPDIR"
    with pytest.raises(OSError, match=said), largest_file(16), explain_full_disk(tmp_path, "the model is lost"):
        with temporary_folder() as folder:
            (folder / "file").write_bytes(b"x" * 100)
    assert not folder.exists()
    with pytest.raises(OSError, match="not written"), largest_file(16), temporary_folder():
        write_atomic(tmp_path / "file", b"x" * 100)


@pytest.mark.parametrize(("left", "stays"), [(b"one\ntwo\nthr", b"one\ntwo\n"), (b"one\n", b"one\n"), (b"on", b"")])
def test_what_a_kill_left_of_a_line_is_cut_off(left: bytes, stays: bytes, tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(left)
    with open(tmp_path / "lines", "r+b") as file:
        assert cut_torn_line(file) == len(stays)
        file.write(b"further\n")
    assert (tmp_path / "lines").read_bytes() == stays + b"further\n"


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("large", ["a", "b", "c"])
def test_files_that_belong_together_are_all_written_or_none(large: str, tmp_path: Path) -> None:
    before = dict.fromkeys("abc", "before")
    write_together(tmp_path / "new", {name: text.encode() for name, text in before.items()})
    assert contents(tmp_path / "new") == before
    after = {name: b"x" * (20_000 if name == large else 10) for name in "abc"}
    with pytest.raises(OSError, match="the new files were not written, and what was there before"), largest_file(1000):
        write_together(tmp_path / "new", after)
    (tmp_path / "new" / large).unlink()
    (tmp_path / "new" / large).mkdir()
    with pytest.raises(IsADirectoryError):
        write_together(tmp_path / "new", after)
    del before[large]
    assert contents(tmp_path / "new") == before and len(list((tmp_path / "new").iterdir())) == 3


@pytest.mark.parametrize("fitting", [0, 1, 2])
def test_the_three_files_of_a_report_are_of_one_measurement_where_the_disk_is_full(fitting, tmp_path: Path) -> None:
    for package in PAGE_PACKAGES:
        pytest.importorskip(package, reason="needs the extra `report`")
    report = tiny_report()
    save_report(report, tmp_path, card=False)
    before = contents(tmp_path)
    sizes = [16, *sorted(len(text.encode()) + 99 for text in before.values())]
    assert before.keys() == {"report.json", "report.md", "report.html"} and sizes[-1] > 2 * sizes[2]
    other = replace(report, run=report.run.updated({"seed": 7}))
    with (
        pytest.raises(OSError, match="what was there before is as it was"),
        largest_file(sizes[fitting]),
    ):
        save_report(other, tmp_path, card=False)
    assert contents(tmp_path) == before

"""Files are written whole, by one writer, and never through a link that somebody else left."""

from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path

import pytest
from processes import Program
from samples import tiny_bert, tiny_report

from nlpkd.evaluation.report import EvaluationReport
from nlpkd.hub.saving import save_report, save_student
from nlpkd.utils.files import atomic_folder_update, refuse_outside, staging_folder, write_atomic
from nlpkd.utils.locks import only_writer


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


@pytest.mark.parametrize("name", [".lock", "onnx", "baseline", "checkpoint-2", "seed-43", "stage-1", "teacher_cache"])
def test_a_folder_with_a_link_where_a_run_writes_is_refused(name: str, tmp_path: Path, foreign: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / name).symlink_to(foreign)
    with pytest.raises(ValueError, match=f"{name} is a link to {foreign}.*remove it"), only_writer(folder):
        pass
    assert foreign.read_text() == "theirs"


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


def test_written_files_have_the_permissions_that_other_files_have(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    write_atomic(tmp_path / "report.json", b"{}")
    plain, ours = ((tmp_path / name).stat().st_mode for name in ("plain", "report.json"))
    assert stat.S_IMODE(ours) == stat.S_IMODE(plain)


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

"""One writer a folder, also where the file system has no locks."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest
from filelock import FileLock
from processes import run as run_program

from nlpkd.utils.disk.locks import only_run, only_writer, refuse_unfit_folder

# Let the kernel answer every flock as an NFS without its lock service does, then write to a folder.
WITHOUT_LOCKS = """
import ctypes, errno, logging, struct, sys
from nlpkd.utils.disk.locks import only_writer
logging.basicConfig()
code = struct.pack("HBBIHBBIHBBIHBBI", 0x20, 0, 0, 0, 0x15, 0, 1, int(sys.argv[1]),
                   0x06, 0, 0, 0x50000 | getattr(errno, sys.argv[2]), 0x06, 0, 0, 0x7FFF0000)
instructions = ctypes.create_string_buffer(code)
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
given = Filter(4, ctypes.addressof(instructions))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, ctypes.byref(given)) == 0, ctypes.get_errno()
for _ in range(2):
    with only_writer("out", wait=True), only_writer("out"):
        print("written")
"""
FLOCK = {"x86_64": 73, "aarch64": 32}


@pytest.mark.skipif(platform.machine() not in FLOCK, reason="the number of flock is known on x86_64 and aarch64")
@pytest.mark.parametrize("answer", ["ENOLCK", "EOPNOTSUPP"])
def test_a_file_system_without_locks_is_written_to_with_a_warning(answer, tmp_path):
    words = ["-c", WITHOUT_LOCKS, str(FLOCK[platform.machine()]), answer]
    done = run_program(words, tmp_path, dict(os.environ), timeout=60)
    assert done.returncode == 0 and done.stdout == "written\n" * 2, done.stderr
    assert "The file system of out has no locks" in done.stderr


@pytest.mark.parametrize("folder", ["/", ".", "../../..", "//"])
def test_no_run_fills_the_root_of_all_folders(folder, monkeypatch):
    monkeypatch.chdir("/")
    before = sorted(os.listdir("/"))
    with pytest.raises(ValueError, match="is the root of all folders"), only_writer(folder):
        pass
    with pytest.raises(ValueError, match="is the root of all folders"):
        refuse_unfit_folder(Path(folder))
    assert sorted(os.listdir("/")) == before


def test_who_finds_another_run_at_work_is_told_to_wait_or_to_write_elsewhere_whatever_the_option_is_called(tmp_path):
    (tmp_path / "out").mkdir()
    message = f"another run is writing to {tmp_path / 'out'}: wait for it, or choose another output$"
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(ValueError, match=message), only_writer(tmp_path / "out"):
        pass


def test_of_a_run_that_is_refused_no_folder_stays_that_it_made(tmp_path):
    (tmp_path / "old").mkdir()
    for place, left in (("new/of/a/run", ["old"]), ("old/new", ["old"]), ("old", ["old"])):
        for _ in range(2):
            with pytest.raises(ValueError, match="wrong"), only_run(tmp_path / place), only_run(tmp_path / place):
                raise ValueError("wrong")
            assert os.listdir(tmp_path) == left and set(os.listdir(tmp_path / "old")) <= {".lock"}
    with pytest.raises(ValueError, match="wrong"), only_run(tmp_path / "written"):
        (tmp_path / "written/file").touch()
        raise ValueError("wrong")
    assert set(os.listdir(tmp_path / "written")) == {".lock", "file"}
    with only_run(tmp_path / "kept"):
        pass
    assert (tmp_path / "kept").is_dir()


@pytest.mark.parametrize("place", ["file", "file/x", "file/x/y", "link", "linked"])
def test_a_folder_that_no_run_can_have_is_refused_before_anything_is_made(place, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/onnx").symlink_to("..")
    with pytest.raises(ValueError) as planned:
        refuse_unfit_folder(tmp_path / place)
    with pytest.raises(ValueError) as refused, only_run(tmp_path / place):
        pass
    assert str(planned.value) == str(refused.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "link", "linked"]
    refuse_unfit_folder(tmp_path / "new/one")
    assert sorted(os.listdir(tmp_path)) == ["file", "link", "linked"]

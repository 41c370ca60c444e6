"""One writer a folder, also where the file system has no locks."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest
from processes import run as run_program

from nlpkd.utils.locks import only_writer, refuse_unfit_folder

# Let the kernel answer every flock as an NFS without its lock service does, then write to a folder.
WITHOUT_LOCKS = """
import ctypes, errno, logging, struct, sys
from nlpkd.utils.locks import only_writer
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


def test_a_folder_that_was_made_for_nothing_is_taken_away_again(tmp_path):
    (tmp_path / "there").mkdir()
    for folder in ("there", "new", "a/b"):
        with pytest.raises(OSError, match="refused"), only_writer(tmp_path / folder), only_writer(tmp_path / folder):
            raise OSError("refused")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]
    with pytest.raises(OSError, match="stopped"), only_writer(tmp_path / "written"):
        (tmp_path / "written" / "part").touch()
        raise OSError("stopped")
    assert (tmp_path / "written" / "part").exists()
    with only_writer(tmp_path / "done"):
        pass
    assert (tmp_path / "done").is_dir()

"""Programs in processes of their own, forked from one that has imported what takes seconds to import."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path

from paths import ROOT, TESTS

import nlpkd.cli
import nlpkd.pipeline  # noqa: F401


class Program:
    """A started Python script, or the command `nlpkd`; what it prints goes to two files.

    Args:
        words: the script's path, or "nlpkd", and its arguments.
        cwd: where it runs.
        stdout: what it prints.
        stderr: what it says else; the same file for both in their order.
        environment: variables beside those of this process; too late for what is read on import, like `HF_ENDPOINT`.
    """

    def __init__(
        self,
        words: Sequence[str],
        cwd: Path,
        stdout: Path,
        stderr: Path,
        environment: Mapping[str, str] | None = None,
    ):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["processes"])
        # What the server is to import is found by the variable alone.
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(TESTS), *([before] if before else [])])
        forkserver.ensure_running()
        os.environ.pop("PYTHONPATH")
        if before:
            os.environ["PYTHONPATH"] = before
        files = (str(stdout), str(stderr))
        self.process = context.Process(target=_be, args=([*words], str(cwd), files, dict(environment or {})))
        self.process.start()

    def wait(self, timeout: float = 500) -> int:
        """Wait for its end; one that takes longer is killed."""
        self.process.join(timeout)
        self.process.kill()
        self.process.join()
        assert self.process.exitcode is not None
        return self.process.exitcode


def _be(words: list[str], cwd: str, files: tuple[str, str], environment: dict[str, str]) -> None:
    os.chdir(cwd)
    os.environ.update(environment)
    opened = {name: os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND) for name in files}
    for number, name in enumerate(files, start=1):
        os.dup2(opened[name], number)
    sys.argv = words
    if words[0] == "nlpkd":
        nlpkd.cli.main()
    else:
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")

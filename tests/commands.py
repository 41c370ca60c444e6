"""The command `nlpkd` in a process of its own: as users start it, or forked."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from paths import ROOT
from processes import Program

# What the console script does that an installation writes.
SCRIPT = "import sys; sys.argv[0] = 'nlpkd'; from nlpkd.cli import main; main()"


def start(*arguments: str, cwd: Path | None = None, environment: dict[str, str] | None = None) -> subprocess.Popen:
    environment = environment or dict(os.environ)
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, "-c", SCRIPT, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=cwd, env=environment, **pipes)


class Command:
    """The command in a process that has little left to import."""

    def __init__(self, *arguments: str, cwd: Path, environment: Mapping[str, str] | None = None):
        self.said = [cwd / f"{arguments[0]}-{len(list(cwd.glob('*.out')))}.{kind}" for kind in ("out", "err")]
        variables = {**(environment or os.environ), "COLUMNS": "200"}
        self.program = Program(["nlpkd", *arguments], cwd, *self.said, variables)

    def communicate(self, timeout: float) -> tuple[str, str]:
        self.returncode = self.program.wait(timeout)
        out, err = (path.read_text() for path in self.said)
        return out, err


def finish(process: subprocess.Popen | Command) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err

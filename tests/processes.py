"""Programs in processes of their own, forked from one that has imported what takes seconds to import."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tempfile
import types
from collections.abc import Mapping, Sequence
from pathlib import Path

from forks import fork_server

# None of these imports a package that reads HF_ENDPOINT, HF_HOME and the like as it is imported.
BARE = ("pandas", "pyarrow.dataset", "pyarrow.parquet", "requests", "rich.console", "scipy.stats", "sklearn.metrics",
        "torch._dynamo", "torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.distributed.tensor",
        "torch.export", "torch.utils.data", "yaml")  # fmt: skip
WARM = (*BARE, "nlpkd.cli", "nlpkd.pipeline.distill")


class Program:
    """A started program: a Python script, a program as text, or the command `nlpkd`.

    Args:
        words: a script's path, "-c" and a program's text, or "nlpkd"; then its arguments.
        cwd: where it runs.
        stdout: the file for what it prints.
        stderr: the file for its errors and warnings; the same file takes both in their order.
        environment: all its variables; those of this process unless given.
        fresh: whether it imports huggingface_hub, transformers, datasets and nlpkd itself, with its own variables.
    """

    def __init__(
        self,
        words: Sequence[str],
        cwd: Path,
        stdout: Path,
        stderr: Path,
        environment: Mapping[str, str] | None = None,
        fresh: bool = False,
    ):
        variables = dict(os.environ if environment is None else environment)
        server = fork_server(*(BARE if fresh else WARM))
        self.process = server.start(_become, [*words], str(cwd), (str(stdout), str(stderr)), variables)

    def wait(self, timeout: float = 500) -> int:
        """Wait for its end and return its exit status; one that takes longer is killed."""
        self.process.join(timeout)
        self.process.kill()
        self.process.join()
        code = self.process.exitcode
        assert code is not None
        return code


def run(
    words: Sequence[str],
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    timeout: float = 300,
    fresh: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, as `subprocess.run` does with captured text; the arguments are those of `Program`."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("stdout", "stderr")]
        code = Program(words, cwd, *files, environment, fresh).wait(timeout)
        return subprocess.CompletedProcess([*words], code, *(file.read_text() for file in files))


def _become(words: list[str], cwd: str, files: tuple[str, str], environment: dict[str, str]) -> None:
    """Run a program in this process, which has been forked for it."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    opened = {name: os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND) for name in files}
    for number, name in enumerate(files, start=1):
        os.dup2(opened[name], number)
    if words[0] == "nlpkd":
        from nlpkd.cli import main

        sys.argv = words
        main()
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        sys.path.insert(0, "")
        sys.modules["__main__"] = module = types.ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), module.__dict__)
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")

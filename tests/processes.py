"""Programs in processes of their own, forked from one that has imported what takes seconds to import."""

from __future__ import annotations

import os
import runpy
import shlex
import signal
import subprocess
import sys
import tempfile
import types
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from forks import Forked, ForkServer, fork_server, share
from paths import TESTS

# None of these imports a package that reads HF_ENDPOINT, HF_HOME and the like as it is imported.
BARE = ("aiohttp", "fsspec.implementations.local", "pandas", "pyarrow.dataset", "pyarrow.parquet", "requests",
        "rich.console", "scipy.stats", "sklearn.metrics", "tokenizers", "torch._dynamo",
        "torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.distributed.tensor", "torch.export",
        "torch.utils.data", "typer.rich_utils", "yaml")  # fmt: skip
WARM = ("nlpkd.cli", "nlpkd.pipeline.distill", "transformers.models.bert.modeling_bert")
if find_spec("matplotlib"):
    BARE += ("matplotlib.backends.backend_svg", "matplotlib.figure")
    WARM += ("nlpkd.evaluation.charts",)
# What a launcher sends its processes.
RELAYED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


def server(*modules: str, environment: Mapping[str, str] | None = None) -> ForkServer:
    """Return the server that has imported nlpkd and these modules, with an environment's Hub and folders."""
    return fork_server(*WARM, *modules, parent=fork_server(*BARE), environment=environment)


def start(
    words: Sequence[str],
    cwd: Path,
    streams: Sequence[int],
    environment: Mapping[str, str] | None = None,
    fresh: bool = False,
    imported: Sequence[str] = (),
) -> Forked:
    """Start a program; see `Program` and, for its streams, `ForkServer.start`."""
    chosen = fork_server(*BARE) if fresh else server(*imported, environment=environment)
    variables = dict(os.environ if environment is None else environment)
    return chosen.start(_become, [*words], str(cwd), variables, streams=streams)


class Program:
    """A started program: a Python script, a program as text, a module, or the command `nlpkd`.

    Args:
        words: a script's path, "-c" and a program's text, "-m" and a module, or "nlpkd"; then its arguments.
        cwd: where it runs.
        stdout: the file for what it prints.
        stderr: the file for its errors and warnings; the same file takes both in their order.
        environment: all its variables; those of this process unless given.
        fresh: whether it imports huggingface_hub, transformers, datasets and nlpkd itself.
        imported: further modules that it need not import.
    """

    def __init__(
        self,
        words: Sequence[str],
        cwd: Path,
        stdout: Path,
        stderr: Path,
        environment: Mapping[str, str] | None = None,
        fresh: bool = False,
        imported: Sequence[str] = (),
    ):
        files = [os.open(os.devnull, os.O_RDONLY)]
        files += [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND) for path in (stdout, stderr)]
        self.process = start(words, cwd, files, environment, fresh, imported)
        for file in files:
            os.close(file)

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
    fresh: bool = False,
    imported: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, as `subprocess.run` does with captured text; the arguments are those of `Program`."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("stdout", "stderr")]
        code = Program(words, cwd, *files, environment, fresh, imported).wait(timeout)
        return subprocess.CompletedProcess([*words], code, *(file.read_text() for file in files))


def _become(words: list[str], cwd: str, environment: dict[str, str]) -> None:
    """Run a program in this process, which has been forked for it."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    if words[0] == "-u":
        sys.stdout.reconfigure(write_through=True)
        words = words[1:]
    if words[0] == "nlpkd":
        from nlpkd.cli import main

        sys.argv = words
        main()
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        sys.path.insert(0, "")
        sys.modules["__main__"] = module = types.ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), module.__dict__)
    elif words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, "")
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")


def warm_python() -> str:
    """Return the path of an interpreter whose programs are forked: what launchers find in PYTHON_EXEC."""
    path = share()[1] / "python"
    if not path.exists():
        program = f"import sys; sys.path.insert(0, {str(TESTS)!r}); import processes; processes._stand_in()"
        new = path.with_name(f"python-{os.getpid()}")
        new.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(program)} "$@"\n')
        new.chmod(0o755)
        new.rename(path)
    return str(path)


def _stand_in() -> None:
    """Have a program run by a forked process with this one's files and network, and end as it does."""
    network = os.open("/proc/self/ns/net", os.O_RDONLY)
    process = start(sys.argv[1:], Path.cwd(), [0, 1, 2, network])
    for number in RELAYED:
        signal.signal(number, lambda sent, _: os.kill(process.pid, sent))
    process.join()
    code = process.exitcode
    assert code is not None
    if code < 0:
        for number in RELAYED:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)

"""The memory that a saved model takes while it answers, measured in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nlpkd.report import EvaluationReport

_PROTOCOL = (
    "memory: what loading a model and forward passes over {batch} sequences of {tokens} random ordinary tokens add to "
    "the peak resident memory of a process of its own, libraries loaded before; rows of a table that no token needs "
    "are not read"
)


def add_memory(
    report: EvaluationReport,
    sources: Mapping[str, Any],
    *,
    batch: int = 32,
    tokens: int = 32,
    threads: int | None = None,
) -> EvaluationReport:
    """Measure each candidate's memory, one after another.

    Args:
        report: of the candidates.
        sources: their `nlpkd.model_source.ModelSource`s by name: paths, Hub ids or ONNX files.
        batch: sequences of the forward pass.
        tokens: of each sequence.
        threads: that it runs on; this process's if None.

    Returns:
        The report with every candidate's `memory_mb`.

    Raises:
        OSError: where the system has no /proc, as Linux has.
        RuntimeError: if a process fails; its last line is in the message.
    """
    if not Path("/proc/self/clear_refs").exists():
        raise OSError("memory is measured by /proc, which Linux alone has: leave it out")
    import torch

    threads = threads or torch.get_num_threads()
    measured = {}
    for name, source in sources.items():
        command = [sys.executable, "-m", "nlpkd.memory", str(source.given), str(batch), str(tokens)]
        command += ["--threads", str(threads)]
        command += ["--revision", source.revision] if source.revision else []
        command += ["--trust-remote-code"] if source.trust_remote_code else []
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise RuntimeError(
                f"the memory of {name} was not measured: {(done.stderr.splitlines() or ['no word'])[-1]}"
            )
        measured[name] = json.loads(done.stdout.splitlines()[-1])
    run = dict(report.run) | {"memory_protocol": _PROTOCOL.format(batch=batch, tokens=tokens)}
    candidates = {
        name: replace(candidate, memory_mb=measured.get(name)) for name, candidate in report.candidates.items()
    }
    return replace(report, run=run, candidates=candidates)


def main() -> None:
    """Load a model, run it once, and print the megabytes (10^6 bytes) that this took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("batch", type=int)
    parser.add_argument("tokens", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--revision")
    parser.add_argument("--trust-remote-code", action="store_true")
    arguments = parser.parse_args()
    import torch

    from nlpkd.benchmark import measure_latency
    from nlpkd.model_source import ModelSource

    torch.set_num_threads(arguments.threads)
    source = ModelSource.of(arguments.model, arguments.revision, arguments.trust_remote_code)
    before = _restart_peak()
    model: Any = source.classifier()
    measure_latency({"model": model}, batches=[arguments.batch], tokens=arguments.tokens, runs=1)
    print((_peak() - before) / 1e6)  # noqa: T201


def _restart_peak() -> int:
    """Let the peak be what is resident now, and give it in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


if __name__ == "__main__":
    main()

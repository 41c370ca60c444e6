"""The memory that a saved model takes while it answers, measured in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nlpkd.evaluation.report import EvaluationReport

_BATCH, _TOKENS = 32, 32

_PROTOCOL = (
    f"memory: what loading a model and forward passes over {_BATCH} sequences of {_TOKENS} random ordinary tokens "
    "(fewer where a model takes fewer) add to the peak resident memory of a process of its own, in which another "
    "small model has run before; rows of a table that no token needs are not read"
)


def add_memory(report: EvaluationReport, sources: Mapping[str, Any]) -> EvaluationReport:
    """Measure each candidate's memory, one after another.

    Args:
        report: of the candidates.
        sources: their `nlpkd.models.source.ModelSource`s by name: paths, Hub ids or ONNX files.

    Returns:
        The report with every candidate's `memory_mb`.

    Raises:
        OSError: where the system has no /proc, as Linux has.
        RuntimeError: if a process fails; its last line is in the message.
    """
    check_memory()
    import torch

    threads = torch.get_num_threads()
    measured = {}
    for name, source in sources.items():
        asked = asdict(source) | {"given": str(source.given), "threads": threads}
        command = [sys.executable, "-m", "nlpkd.evaluation.memory", json.dumps(asked)]
        # Without the working directory, whose modules would go before the library's.
        paths = os.pathsep.join(path for path in sys.path if path)
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": paths, "PYTHONSAFEPATH": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise RuntimeError(
                f"the memory of {name} was not measured: the process that loads {source.given} by itself ended with "
                f"status {done.returncode} ({(done.stderr.splitlines() or ['it said nothing'])[-1]}); mend that, or "
                "leave the memory out"
            )
        measured[name] = json.loads(done.stdout.splitlines()[-1])
    run = replace(report.run, memory_protocol=_PROTOCOL)
    candidates = {
        name: replace(candidate, memory_mb=measured.get(name)) for name, candidate in report.candidates.items()
    }
    return replace(report, run=run, candidates=candidates)


def check_memory() -> None:
    """Refuse a system on which memory can't be measured.

    Raises:
        OSError: where there is no /proc, as Linux has.
    """
    if not Path("/proc/self/clear_refs").exists():
        raise OSError("memory is measured by /proc, which Linux alone has: leave it out")


def main() -> None:
    """Load the model that `add_memory` asks for, run it, and print the megabytes (10^6 bytes) that this took."""
    asked = json.loads(sys.argv[1])
    threads = asked.pop("threads")
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from nlpkd.evaluation.benchmark import measure_latency
    from nlpkd.models.limits import positions_of
    from nlpkd.models.source import ModelSource
    from nlpkd.utils.packages import require

    torch.set_num_threads(threads)
    source = ModelSource(**asked)
    tokenizer, config = source.tokenizer(), source.config()
    tokens = min(_TOKENS, positions_of(config) or _TOKENS)
    if asked["given"].endswith(".onnx"):
        require("onnxruntime")
    small = BertConfig(vocab_size=99, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    measure_latency({"small": BertForSequenceClassification(small)}, batches=[1], tokens=8, runs=1)
    # The peak, set to what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak_bytes()
    model: Any = source.classifier()
    measure_latency({"model": model}, {"model": tokenizer}, batches=[_BATCH], tokens=tokens, runs=1)
    sys.stdout.write(f"{(_peak_bytes() - before) / 1e6}\n")


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


if __name__ == "__main__":
    main()

"""Parts of the check on a GPU that measure time: BERT-base's shape into DistilBERT's, on a real text's lengths."""

from __future__ import annotations

import copy
import cProfile
import dataclasses
import functools
import io
import pstats
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import training as benchmark
from datasets import Dataset
from findings import Findings, Setup
from torch import nn
from torch.autograd import DeviceType
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from nlpkd import cache_teacher_outputs, load_text_classification
from nlpkd.data.demo import demo_backbone, load_airline_tweets

GOAL_RATIO = 5
GOAL_THREE_EPOCHS_S = 60
STEPS = 100
"""Of the profile: most of them after the passes were recorded."""

LAUNCHES = {"cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernelEx"}
NAIVE, NAIVE_BF16, TEXTBREWER = "blog subclass", "blog subclass, bf16", "TextBrewer"


def speed(setup: Setup, findings: Findings) -> None:
    """Train with each contender in turn, on the same rows: at sizes that a GPU idles at, and at one that fills it.

    The others' rate is the same from the first step on. nlpkd records its passes first, so that it takes more steps.
    """
    rows, tokenizer = tokenised(setup)
    for size, steps, ours in ((4, 8, 16),) if setup.tiny else ((32, 200, 1000), (128, 50, 250)):
        with tempfile.TemporaryDirectory() as folder:
            some = rows.select(range(min(len(rows), size * ours)))
            bench = bench_of(setup, some, tokenizer, size, Path(folder))
            names = [NAIVE, NAIVE_BF16, "nlpkd", "nlpkd, cached logits", *available(TEXTBREWER)]
            rates: dict[str, list[float]] = {name: [] for name in names}
            for turn in range(3):
                for name in names:
                    count = 2 if turn == 0 else ours if name.startswith("nlpkd") else steps
                    share = range(min(len(bench.rows), size * count))
                    parts = {"rows": bench.rows.select(share), "cached": bench.cached.select(share)}
                    seconds = benchmark.CONTENDERS[name](dataclasses.replace(bench, **parts))
                    if turn:  # The first warms up.
                        rates[name].append(len(share) / seconds)
            medians = {name: statistics.median(values) for name, values in rates.items()}
            for name, rate in medians.items():
                note(findings, f"{name}, batches of {size}, examples/s", rate)
            for name in ("nlpkd", "nlpkd, cached logits"):
                for other in (NAIVE, NAIVE_BF16, *available(TEXTBREWER)):
                    note(findings, f"{name} / {other}, batches of {size}", medians[name] / medians[other])
            if setup.on_card and size == 32:
                findings.at_least(f"nlpkd / {NAIVE}, batches of {size}", medians["nlpkd"] / medians[NAIVE], GOAL_RATIO)


def epochs(setup: Setup, findings: Findings) -> None:
    """Train three epochs on all rows, the teacher's pass counted in, and compare its operations with the peak."""
    rows, tokenizer = tokenised(setup)
    rows = rows.select(range(64)) if setup.tiny else rows
    peak = matrix_product_rate(setup)
    note(findings, "peak of bf16 matrix products, TFLOP/s", peak / 1e12)
    kept = "nlpkd, three epochs, logits kept"
    for size, name in ((4, kept),) if setup.tiny else ((32, kept), (128, kept)):
        with tempfile.TemporaryDirectory() as folder:
            bench = bench_of(setup, rows, tokenizer, size, Path(folder), cached=False)
            seconds = 3 * benchmark.CONTENDERS[name](bench)
            text = f"{name}, {len(rows)} rows in batches of {size}"
            note(findings, f"{text}, s", seconds)
            if setup.on_card and size == 32:
                findings.at_most(f"{text}, s", seconds, GOAL_THREE_EPOCHS_S)
            # A backward pass takes twice a forward pass.
            done = forward_flop(bench.teacher, rows) + 9 * forward_flop(bench.student, rows)
            note(findings, f"{text}, model TFLOP/s", done / seconds / 1e12)
            note(findings, f"{text}, share of the peak", done / seconds / peak)


def note(findings: Findings, name: str, value: float) -> None:
    """Record a figure and show it at once."""
    findings.figure(name, value)
    print(f"  {name}: {value:.4g}", file=sys.stderr, flush=True)


def profile(setup: Setup, findings: Findings) -> None:
    """Record where the time of a step goes, by operation, into `profile.txt`."""
    if not setup.on_card:
        findings.not_run("profile of a step", "needs a GPU")
        return
    rows, tokenizer = tokenised(setup)
    with tempfile.TemporaryDirectory() as folder:
        bench = bench_of(setup, rows.select(range(STEPS * 32)), tokenizer, 32, Path(folder))
        lines = []
        for name in ("nlpkd", "nlpkd, cached logits"):
            benchmark.CONTENDERS[name](bench)
            lines.append(python_profile(lambda name=name: benchmark.CONTENDERS[name](bench)))
            activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
            with torch.profiler.profile(activities=activities) as profiler:
                seconds = benchmark.CONTENDERS[name](bench)
            events = profiler.key_averages()
            lines.append(f"{name}: {seconds / STEPS * 1e3:.2f} ms a step of 32 rows, profiled")
            lines += [
                events.table(sort_by=key, row_limit=30) for key in ("self_cpu_time_total", "self_cuda_time_total")
            ]
            launches = sum(event.count for event in events if event.key in LAUNCHES)
            findings.figure(f"{name}, kernels launched a step", launches / STEPS)
            kernels = (event for event in events if event.device_type == DeviceType.CUDA)
            busy = sum(event.self_device_time_total for event in kernels if not event.key.startswith("Memcpy"))
            findings.figure(f"{name}, time of the kernels, ms a step", busy / STEPS / 1e3)
    (setup.folder.parent / "profile.txt").write_text("\n".join(lines), encoding="utf-8")


def python_profile(call: Callable[[], object]) -> str:
    """Run a call under Python's profiler, and list where its time goes."""
    profiler, text = cProfile.Profile(), io.StringIO()
    profiler.runcall(call)
    pstats.Stats(profiler, stream=text).sort_stats("cumulative").print_stats(70)
    pstats.Stats(profiler, stream=text).sort_stats("tottime").print_stats(40)
    return text.getvalue()


PARTS = {part.__name__: part for part in (speed, epochs, profile)}


@functools.lru_cache(maxsize=1)
def tokenised(setup: Setup) -> tuple[Dataset, object]:
    """Load the text and its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(setup.tokenizer or demo_backbone())
    data = setup.train_file or load_airline_tweets()["train"]
    return load_text_classification(data, tokenizer=tokenizer)["train"].shuffle(seed=0), tokenizer


def bench_of(
    setup: Setup, rows: Dataset, tokenizer: object, batch: int, folder: Path, cached: bool = True
) -> benchmark.Bench:
    """Make what the contenders share: random weights, which cost the same time, and the teacher's logits."""
    sizes = (2, 1, 16, 2) if setup.tiny else (12, 6, 768, 12)
    teacher, student = shaped(len(tokenizer), max(rows["labels"]) + 1, *sizes)
    eager = copy.deepcopy(teacher)
    eager.set_attn_implementation("eager")
    teacher, student, eager = (model.to(setup.device) for model in (teacher, student, eager))
    kept = cache_teacher_outputs(teacher, rows, tokenizer, cache_dir=folder / "cache") if cached else rows
    return benchmark.Bench(teacher, student, eager, tokenizer, rows, kept, folder, batch)


def shaped(
    vocabulary: int, labels: int, teacher_layers: int, student_layers: int, hidden: int, heads: int
) -> tuple[nn.Module, nn.Module]:
    """Make a BERT and a DistilBERT of the same width."""
    torch.manual_seed(0)
    teacher = AutoConfig.for_model(
        "bert", vocab_size=vocabulary, num_labels=labels, num_hidden_layers=teacher_layers, hidden_size=hidden,
        num_attention_heads=heads, intermediate_size=4 * hidden,
    )  # fmt: skip
    student = AutoConfig.for_model(
        "distilbert", vocab_size=vocabulary, num_labels=labels, n_layers=student_layers, dim=hidden, n_heads=heads,
        hidden_dim=4 * hidden,
    )  # fmt: skip
    first, second = (AutoModelForSequenceClassification.from_config(config) for config in (teacher, student))
    return first.eval(), second


def forward_flop(model: nn.Module, rows: Dataset) -> float:
    """Count a forward pass over all rows: 2 a weight of a matrix and token, and the attention's two products."""
    config, lengths = model.config, [len(ids) for ids in rows["input_ids"]]
    weights = 12 * config.num_hidden_layers * config.hidden_size**2
    products = 4 * config.num_hidden_layers * config.hidden_size
    return sum(2.0 * weights * length + products * length**2 for length in lengths)


def matrix_product_rate(setup: Setup) -> float:
    """Measure the operations a second of a large bf16 matrix product."""
    size = 8192 if setup.on_card else 256
    a, b = (torch.randn(size, size, device=setup.device, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(8):
        start = time.perf_counter()
        torch.mm(a, b)
        if setup.on_card:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(times[3:])


def available(name: str) -> list[str]:
    """Return the name of a contender whose package is installed, or nothing."""
    try:
        import textbrewer  # noqa: F401
    except ImportError:
        return []
    return [name]

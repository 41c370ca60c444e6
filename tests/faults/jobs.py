"""Small real jobs in processes of their own, with a fault at a chosen point."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from forks import Forked
from hub_server import WRITE_TOKEN
from processes import server
from samples import QUIET, WORDS, raw_rows, tiny_bert
from transformers import BertTokenizer

from nlpkd import (
    DistillationConfig,
    DistillationTrainer,
    cache_teacher_outputs,
    distill,
    load_text_classification,
    train_teacher,
)
from nlpkd.hub.push import push_student
from nlpkd.models.loading import load_classifier, load_tokenizer
from nlpkd.objectives import CrossEntropyLoss, ForwardKLLoss, HiddenStateMSELoss, Stage
from nlpkd.pipeline.compress import compress
from nlpkd.pipeline.evaluate import evaluate
from nlpkd.pipeline.export import export_student
from nlpkd.students.small import small_student
from nlpkd.training.checkpoints import last_whole

# 12 steps, 6 of them followed by a checkpoint.
SETTINGS: dict[str, Any] = {
    **QUIET, "per_device_train_batch_size": 8, "logging_steps": 2,
    "learning_rate": 2e-3, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2,
    "teacher_check": "off",
}  # fmt: skip
SHARD_ROWS = 8
LONG_ROWS = 1024
OBJECTIVES = {
    "matching": lambda: [CrossEntropyLoss(), ForwardKLLoss(), HiddenStateMSELoss()],
    "hotter": lambda: [CrossEntropyLoss(), ForwardKLLoss(temperature=3.0), HiddenStateMSELoss()],
    "stages": lambda: [Stage([ForwardKLLoss()]), Stage([CrossEntropyLoss(), ForwardKLLoss()])],
}
# What an export imports, seconds of it.
EXPORTING = ("networkx", "onnxruntime.quantization", "onnxscript", "torch._inductor.codecache", "torch.export._trace")
PUSHED_TO = "alice/student"
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def prepare(folder: Path) -> Path:
    """Save a backbone, teachers, students with dropout, and rows."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(tokens)}, model_max_length=64)
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    models = {
        "backbone": tiny_bert(layers=4, **dropout).base_model,
        "teacher": tiny_bert(layers=4, seed=1),
        "other_teacher": tiny_bert(layers=4, seed=2),
        "student": tiny_bert(layers=2, hidden=8, seed=3, **dropout),
        "other_student": tiny_bert(layers=1, hidden=8, seed=3, **dropout),
        "table": small_student("static", id2label={0: "neg", 1: "pos"}, vocab_size=len(tokens), embedding_size=8),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for name, rows in {"train": 48, "other_train": 47, "validation": 20}.items():
        raw_rows(rows, seed=len(name)).to_parquet(folder / f"{name}.parquet")
    long = raw_rows(LONG_ROWS).map(lambda row: {"text": "the film was very good " * 12})
    long.to_parquet(folder / "long.parquet")
    return folder


def train_the_teacher(given: Path, out: Path, **options: Any) -> None:
    """Fine-tune the backbone."""
    train_teacher(given / "backbone", given / "train.parquet", given / "validation.parquet", output_dir=out,
                  **SETTINGS | options)  # fmt: skip


def cache(given: Path, out: Path, resume_from_checkpoint: bool | None = None) -> None:
    """Keep the teacher's outputs; a call takes up what is there by itself."""
    tokenizer = load_tokenizer(given / "teacher")
    rows = load_text_classification(str(given / "train.parquet"), tokenizer=tokenizer)["train"]
    model, _ = load_classifier(given / "teacher")
    cache_teacher_outputs(model, rows, tokenizer, cache_dir=out, shard_rows=SHARD_ROWS, bf16=False)


def distil(given: Path, out: Path, **options: Any) -> None:
    """Distil, measure and write the card."""
    names = {"teacher": "teacher", "student": "student", "train": "train", "objectives": "matching"}
    names = {name: options.pop(name, value) for name, value in names.items()}
    distill(
        str(given / names["teacher"]), str(given / names["student"]), given / f"{names['train']}.parquet",
        given / "validation.parquet", objectives=OBJECTIVES[names["objectives"]](), output_dir=out,
        **SETTINGS | options,
    )  # fmt: skip


def export(given: Path, out: Path, resume_from_checkpoint: bool | None = None) -> None:
    """Write the ONNX files of a student that takes little time to trace; a call begins anew."""
    export_student(given / "table", int8=True, output_dir=out, max_length=32)


def measure(given: Path, out: Path, resume_from_checkpoint: bool | None = None) -> None:
    """Measure student and teacher side by side; a call begins anew."""
    evaluate(given / "student", given / "validation.parquet", teacher=given / "teacher", output_dir=out,
             latency_runs=0, max_length=32, bootstrap_samples=100)  # fmt: skip


def shrink(given: Path, out: Path, resume_from_checkpoint: bool | None = None) -> None:
    """Prune the student; a call begins anew."""
    compress(given / "student", "prune-neurons", given / "train.parquet", output_dir=out, keep=0.5)


def push(given: Path, out: Path, resume_from_checkpoint: bool | None = None) -> None:
    """Push a measured student to the Hub of the environment; a call sends what is not there yet."""
    if not out.exists():
        whole = shutil.copytree(given / "measured", out.with_name(f"{out.name}.whole"), dirs_exist_ok=True)
        whole.rename(out)
    push_student(out, PUSHED_TO, token=WRITE_TOKEN)


def make_trainer(given: Path, out: Path, split: str, **options: Any) -> DistillationTrainer:
    """Make a trainer for gold labels."""
    tokenizer = load_tokenizer(given / "student")
    rows = load_text_classification(str(given / f"{split}.parquet"), tokenizer=tokenizer)["train"]
    model, _ = load_classifier(given / "student")
    args = DistillationConfig(output_dir=str(out), **SETTINGS | options)
    return DistillationTrainer(model, None, args, [CrossEntropyLoss()], rows, processing_class=tokenizer)


def train_directly(given: Path, out: Path, resume_from_checkpoint: bool | None = None) -> None:
    """Train with a trainer, and nothing around it."""
    make_trainer(given, out, "train").train(resume_from_checkpoint=resume_from_checkpoint)


def train_with_scarce_memory(given: Path, out: Path, spare_mb: int, **options: Any) -> None:
    """Train on long rows, in so much memory more than is in use before the first step."""
    trainer = make_trainer(given, out, "long", **{"save_steps": 1, "num_train_epochs": 1} | options)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + spare_mb * 2**20,) * 2)
    # oneDNN, out of memory, says that it could not create a primitive, which may have other causes too.
    with torch.backends.mkldnn.flags(enabled=False):
        trainer.train()


def distil_in_small_files(given: Path, out: Path, limit_bytes: int, **options: Any) -> None:
    """Distil where no file may become larger than so many bytes, as `ulimit -f` has it."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes,) * 2)
    distil(given, out, **options)


STAGES = {"teacher": train_the_teacher, "caching": cache, "distillation": distil, "export": export}
LATER = {"evaluation": measure, "compression": shrink, "push": push}
"""What follows a distillation; `soak.py` kills these too."""


def _strike_at(out: Path, point: str, nth: int, number: int) -> None:
    """Send this process a signal when it is about to write, rename or remove what `point` describes."""
    left = nth

    def listen(event: str, args: tuple) -> None:
        nonlocal left
        if event == "open" and isinstance(args[0], (str, os.PathLike)) and args[2] & _WRITING:
            path = args[0]
        elif event == "os.rename":
            # Where a folder is given by its descriptor, the path is inside of that.
            folder = os.readlink(f"/proc/self/fd/{args[3]}") if args[3] >= 0 else ""
            path = os.path.join(folder, os.fspath(args[1]))
        elif event in ("os.mkdir", "shutil.rmtree"):
            path = args[0]
        else:
            return
        text = f"{event.removeprefix('os.').removeprefix('shutil.')} {os.fspath(path).removeprefix(f'{out}/')}"
        if re.fullmatch(point, text):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), number)

    sys.addaudithook(listen)


def run(
    stage: str,
    given: Path,
    out: Path,
    options: dict[str, Any],
    point: str | None,
    nth: int,
    number: int,
) -> None:
    """Be the process of one job."""
    log = os.open(f"{out}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if point is not None:
        _strike_at(out, point, nth, number)
    others = {
        "scarce": train_with_scarce_memory,
        "trainer": train_directly,
        "small files": distil_in_small_files,
    }
    {**STAGES, **LATER, **others}[stage](given, out, **options)


class Lab:
    """Starts jobs on what `prepare` saved, each in a process forked from one that has imported everything."""

    def __init__(self, given: Path):
        self.given = given
        self._server = server("jobs", *(EXPORTING if find_spec("onnxscript") else ()))

    def start(
        self,
        stage: str,
        out: Path,
        point: str | None = None,
        nth: int = 1,
        number: int = signal.SIGKILL,
        **options: Any,
    ) -> Forked:
        """Start a job that writes to `out`, and its log beside it."""
        return self._server.start(run, stage, self.given, out, options, point, nth, int(number))

    def finish(self, stage: str, out: Path, **more: Any) -> tuple[int, str]:
        """Run a job to its end: exit code and log of this call."""
        log = Path(f"{out}.log")
        before = log.stat().st_size if log.exists() else 0
        process = self.start(stage, out, **more)
        process.join(240)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(log.read_text())
        return process.exitcode, log.read_bytes()[before:].decode()


def outcome(stage: str, out: Path) -> dict[str, Any]:
    """Give what a finished job leaves that depends on nothing but its inputs."""
    if stage == "caching":
        return {path.name: path.read_bytes() for path in sorted(out.glob("shard-*.arrow"))}
    if stage == "export":
        return {path.name: path.read_bytes() for path in sorted((out / "onnx").glob("*.onnx"))}
    if stage == "evaluation":
        report = json.loads((out / "report.json").read_text())
        return {name: report[name] for name in ("task", "candidates", "comparisons")}
    if stage in ("compression", "push"):
        files = [path for path in sorted(out.rglob("*")) if path.is_file() and path.name != ".lock"]
        return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}
    last = last_whole(out)
    assert last is not None
    found: dict[str, Any] = {path.name: path.read_bytes() for path in out.glob("*.safetensors")}
    found["objectives"] = [path.read_bytes() for path in last.glob("objectives.safetensors")]
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    found["losses"] = [entry for entry in history if "loss" in entry]
    if stage == "distillation":
        found["quality"] = json.loads((out / "report.json").read_text())["candidates"]["student"]["quality"]
    return found


def wait_until_stopped(process: Forked) -> None:
    """Wait until SIGSTOP has reached a process."""
    deadline = time.monotonic() + 240
    while Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "T":
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.02)

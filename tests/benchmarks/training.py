"""Training throughput: nlpkd beside TextBrewer, a blog's Trainer subclass, the stock Trainer and a bare loop.

    make bench

Every contender trains the same 3-layer student of the same 6-layer teacher on the same rows. Rounds are interleaved,
so that a busy moment of the machine hits all; before the first it is checked that all compute the same gradient.
"""

import argparse
import copy
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)
from transformers.utils import logging

from nlpkd import (
    DistillationConfig,
    DistillationTrainer,
    OnnxClassifier,
    cache_teacher_outputs,
    load_text_classification,
    make_student,
)
from nlpkd.compression import export_int8, export_onnx
from nlpkd.config import fast_at_bf16
from nlpkd.data.demo import demo_backbone, load_airline_tweets
from nlpkd.evaluation.benchmark import describe_environment
from nlpkd.models.layers import map_layers
from nlpkd.objectives import AttentionMSELoss, CrossEntropyLoss, ForwardKLLoss, HiddenStateMSELoss
from nlpkd.training.batches.samplers import LengthGroupedBatchSampler

TEMPERATURE = 2.0
LEARNING_RATE = 8e-5


@dataclass
class Bench:
    """What all contenders share: the models on their device, `rows` tokenised, `cached` with the teacher's logits."""

    teacher: nn.Module
    student: nn.Module
    eager_teacher: nn.Module
    tokenizer: object
    rows: Dataset
    cached: Dataset
    folder: Path
    batch: int = 32

    @property
    def device(self) -> torch.device:
        """Where the models are, and all contenders run."""
        return self.teacher.device

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Layers of the student with the teacher's that they learn from."""
        depths = (model.config.num_hidden_layers for model in (self.student, self.teacher))
        return map_layers("uniform", *depths)

    def fresh(self, eager: bool = False) -> nn.Module:
        """Give the student as it is at the start, with the attention implementation that the contender needs."""
        model = copy.deepcopy(self.student)
        if eager:
            model.set_attn_implementation("eager")
        return model


def main() -> None:
    arguments = parse()
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        bench = prepare(arguments, Path(folder))
        agree = check(bench)
        chosen = [name for name in CONTENDERS if not arguments.only or name in arguments.only]
        rates: dict[str, list[float]] = {name: [] for name in chosen}
        bar = tqdm(total=len(chosen) * (arguments.rounds + 1))
        for turn in range(arguments.rounds + 1):
            for name in chosen:
                bar.set_description(name)
                seconds = CONTENDERS[name](bench)
                if turn:  # The first round warms up.
                    rates[name].append(len(bench.rows) / seconds)
                bar.update()
        bar.close()
    medians = {name: statistics.median(values) for name, values in rates.items()}
    result = {"rows": arguments.rows, "rounds": arguments.rounds, "gradients differ by at most": agree}
    result |= {"examples_per_s": rates, "medians": medians, "ratios": ratios(medians), **describe_environment()}
    print(table(rates, medians))
    for name, ratio in result["ratios"].items():
        print(f"{ratio:6.2f}  {name}")
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(result, indent=2) + "\n")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train_file", help="labelled text; the embedded tweets by default")
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="names of contenders")
    parser.add_argument("--output", help="where the figures go as JSON")
    return parser.parse_args()


def prepare(arguments: argparse.Namespace, folder: Path) -> Bench:
    """Load a teacher (its head is random, which costs the same time), make the student, tokenise, and cache."""
    tokenizer = AutoTokenizer.from_pretrained(demo_backbone())
    data = arguments.train_file or load_airline_tweets()["train"]
    rows = load_text_classification(data, tokenizer=tokenizer)["train"].shuffle(seed=0).select(range(arguments.rows))
    torch.manual_seed(0)
    labels = max(rows["labels"]) + 1
    teacher = AutoModelForSequenceClassification.from_pretrained(demo_backbone(), num_labels=labels).eval()
    eager = copy.deepcopy(teacher)
    eager.set_attn_implementation("eager")
    cached = cache_teacher_outputs(teacher, rows, tokenizer, cache_dir=folder / "cache")
    return Bench(teacher, make_student(teacher, "layers:3"), eager, tokenizer, rows, cached, folder)


def ratios(medians: dict[str, float]) -> dict[str, float]:
    """Compare the medians of the pairs that the README speaks of."""
    pairs = [
        ("nlpkd", "TextBrewer"), ("nlpkd", "blog subclass"), ("nlpkd", "blog subclass, bf16"),
        ("nlpkd", "stock Trainer, student alone"), ("nlpkd, cached logits", "bare loop, student alone"),
        ("nlpkd, cached logits", "TextBrewer"), ("nlpkd, student alone", "bare loop, student alone"),
        ("nlpkd, student alone", "nlpkd, student alone, whole table"), ("nlpkd", "nlpkd, not lean"),
        ("nlpkd, student alone, lean", "nlpkd, student alone"),
        ("nlpkd, student alone, lean", "bare loop, student alone"),
        ("nlpkd, caching the logits", "teacher's forward alone"),
        ("nlpkd, caching the logits, int8 file", "teacher's forward alone"),
        ("nlpkd, three epochs", "TextBrewer, three epochs"),
        ("nlpkd, three epochs, logits kept", "TextBrewer, three epochs"),
    ]  # fmt: skip
    return {
        f"{ours} / {theirs}": medians[ours] / medians[theirs]
        for ours, theirs in pairs
        if {ours, theirs} <= medians.keys()
    }


def table(rates: dict[str, list[float]], medians: dict[str, float]) -> str:
    """Write the medians with their ranges."""
    lines = ["| contender | examples/s, median | range |", "|---|---|---|"]
    for name in sorted(medians, key=medians.get):
        lines.append(f"| {name} | {medians[name]:.0f} | {min(rates[name]):.0f} to {max(rates[name]):.0f} |")
    return "\n".join(lines)


# The contenders: each trains once over the rows, and says how many seconds that took.


def textbrewer_general(bench: Bench, epochs: int = 1) -> float:
    """TextBrewer's GeneralDistiller: soft targets, three hidden states, three attention maps, dynamic padding."""
    import textbrewer

    matches = [
        {"layer_T": t - shift, "layer_S": s - shift, "feature": feature, "loss": loss, "weight": 1}
        for feature, loss, shift in (("hidden", "hidden_mse", 0), ("attention", "attention_mse", 1))
        for s, t in bench.pairs
    ]
    student = bench.fresh(eager=True)
    distiller = textbrewer.GeneralDistiller(
        textbrewer.TrainingConfig(output_dir=str(bench.folder), log_dir=None, device=bench.device, ckpt_frequency=1),
        textbrewer.DistillationConfig(temperature=TEMPERATURE, kd_loss_type="ce", intermediate_matches=matches),
        bench.eager_teacher, student, adapt, adapt,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    loader = padded_batches(bench)
    with distiller:
        seconds = timed(
            lambda: distiller.train(
                optimizer,
                loader,
                num_epochs=epochs,
                max_grad_norm=1.0,
                output_hidden_states=True,
                output_attentions=True,
            ),  # fmt: skip
            bench,
        )
    return seconds / epochs


def adapt(batch: dict, outputs: object) -> dict:
    """Tell TextBrewer where everything is."""
    return {
        "logits": outputs.logits,
        "hidden": outputs.hidden_states,
        "attention": outputs.attentions,
        "inputs_mask": batch["attention_mask"],
    }


class BlogTrainer(Trainer):
    """A `compute_loss` as posts have it: the teacher on every batch, all layers' states and maps asked for."""

    def __init__(self, *args, teacher: nn.Module, pairs: list[tuple[int, int]], **kwargs):
        super().__init__(*args, **kwargs)
        self.teacher, self.pairs = teacher.eval(), pairs

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs.pop("labels", None)
        student = model(**inputs, output_hidden_states=True, output_attentions=True)
        with torch.no_grad():
            teacher = self.teacher(**inputs, output_hidden_states=True, output_attentions=True)
        loss = soft_targets(student.logits, teacher.logits)
        for s, t in self.pairs:
            loss = loss + F.mse_loss(student.hidden_states[s], teacher.hidden_states[t]) / len(self.pairs)
            loss = loss + F.mse_loss(student.attentions[s - 1], teacher.attentions[t - 1]) / len(self.pairs)
        return (loss, student) if return_outputs else loss


def soft_targets(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The divergence as posts write it."""
    log_student = F.log_softmax(student / TEMPERATURE, dim=-1)
    return F.kl_div(log_student, F.softmax(teacher / TEMPERATURE, dim=-1), reduction="batchmean") * TEMPERATURE**2


def blog(bf16: bool) -> Callable[[Bench], float]:
    """A blog's Trainer subclass with the stock Trainer's settings."""

    def run(bench: Bench) -> float:
        trainer = BlogTrainer(
            bench.fresh(eager=True), TrainingArguments(**stock(bench), bf16=bf16),
            teacher=bench.eager_teacher, pairs=bench.pairs,
            train_dataset=bench.rows, data_collator=DataCollatorWithPadding(bench.tokenizer),
        )  # fmt: skip
        return timed(trainer.train, bench)

    return run


def stock_trainer(bench: Bench) -> float:
    """The stock Trainer fine-tuning the student alone on gold labels."""
    trainer = Trainer(
        bench.fresh(), TrainingArguments(**stock(bench)), train_dataset=bench.rows,
        data_collator=DataCollatorWithPadding(bench.tokenizer),
    )  # fmt: skip
    return timed(trainer.train, bench)


def ours(
    objectives: Callable[[], list], rows: str = "rows", teacher: bool = True, epochs: int = 1, **settings: bool
) -> Callable[[Bench], float]:
    """nlpkd's trainer with its defaults, but for some settings; seconds of an epoch."""

    def run(bench: Bench) -> float:
        with tempfile.TemporaryDirectory(dir=bench.folder) as folder:
            given = stock(bench) | {"num_train_epochs": epochs, "teacher_cache_dir": folder, "teacher_check": "off"}
            trainer = DistillationTrainer(
                bench.fresh(),
                bench.teacher if teacher else None,
                DistillationConfig(**given, **settings),
                objectives(),
                train_dataset=getattr(bench, rows),
                processing_class=bench.tokenizer,
            )
            return timed(trainer.train, bench) / epochs

    return run


def everything() -> list:
    """What TextBrewer and the blog train on."""
    return [ForwardKLLoss(TEMPERATURE), HiddenStateMSELoss(), AttentionMSELoss()]


def bare_loop(bench: Bench) -> float:
    """A loop of one's own around the student alone: length-grouped, autocast, fused AdamW, clipped."""
    student = bench.fresh().train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    sampler = LengthGroupedBatchSampler([len(ids) for ids in bench.rows["input_ids"]], bench.batch)
    loader = DataLoader(inputs_of(bench), batch_sampler=sampler, collate_fn=DataCollatorWithPadding(bench.tokenizer))

    def run() -> None:
        for batch in loader:
            with autocast(bench):
                loss = student(**batch.to(bench.device)).loss
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return timed(run, bench)


def teacher_alone(bench: Bench) -> float:
    """The teacher's forward alone, in batches of like lengths."""
    sampler = LengthGroupedBatchSampler([len(ids) for ids in bench.rows["input_ids"]], bench.batch)
    loader = DataLoader(inputs_of(bench), batch_sampler=sampler, collate_fn=DataCollatorWithPadding(bench.tokenizer))

    def run() -> None:
        with torch.inference_mode(), autocast(bench):
            for batch in loader:
                bench.teacher(**batch.to(bench.device))

    return timed(run, bench)


def caching(bench: Bench, teacher: nn.Module | None = None) -> float:
    """The pass that keeps the teacher's logits on disk."""
    with tempfile.TemporaryDirectory(dir=bench.folder) as folder:
        return timed(
            lambda: cache_teacher_outputs(teacher or bench.teacher, bench.rows, bench.tokenizer, cache_dir=folder),
            bench,
        )


def caching_int8(bench: Bench) -> float:
    """The same by the teacher's int8 file, which is made before the time is taken."""
    folder = bench.folder / "exported"
    if not folder.exists():
        bench.teacher.save_pretrained(folder)
        bench.tokenizer.save_pretrained(folder)
        export_onnx(bench.teacher, bench.tokenizer, folder)
        export_int8(folder)
    return caching(bench, OnnxClassifier.from_pretrained(folder))


CONTENDERS: dict[str, Callable[[Bench], float]] = {
    "TextBrewer": textbrewer_general,
    "blog subclass": blog(bf16=False),
    "blog subclass, bf16": blog(bf16=True),
    "stock Trainer, student alone": stock_trainer,
    "nlpkd": ours(everything),
    "bare loop, student alone": bare_loop,
    "nlpkd, student alone": ours(lambda: [CrossEntropyLoss()], teacher=False),
    "nlpkd, student alone, lean": ours(lambda: [CrossEntropyLoss()], teacher=False, lean_training=True),
    "nlpkd, not lean": ours(everything, lean_training=False),
    "nlpkd, student alone, whole table": ours(lambda: [CrossEntropyLoss()], teacher=False, compact_embeddings=False),
    "nlpkd, cached logits": ours(lambda: [ForwardKLLoss(TEMPERATURE)], rows="cached", teacher=False),
    "TextBrewer, three epochs": lambda bench: textbrewer_general(bench, epochs=3),
    "nlpkd, three epochs": ours(everything, epochs=3),
    "nlpkd, three epochs, logits kept": ours(lambda: [ForwardKLLoss(TEMPERATURE)], epochs=3),
    "teacher's forward alone": teacher_alone,
    "nlpkd, caching the logits": caching,
    "nlpkd, caching the logits, int8 file": caching_int8,
}


def stock(bench: Bench) -> dict:
    """Settings that every Trainer gets."""
    return {
        "output_dir": str(bench.folder / "out"), "per_device_train_batch_size": bench.batch, "num_train_epochs": 1,
        "learning_rate": LEARNING_RATE, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
        "logging_strategy": "no", "use_cpu": bench.device.type == "cpu",
    }  # fmt: skip


def padded_batches(bench: Bench) -> DataLoader:
    """Batches in random order, padded to their longest text: plain dicts, which TextBrewer tells from tuples."""
    pad, rows = DataCollatorWithPadding(bench.tokenizer), inputs_of(bench).remove_columns("labels")
    return DataLoader(rows, batch_size=bench.batch, shuffle=True, collate_fn=lambda batch: dict(pad(batch)))


def inputs_of(bench: Bench) -> Dataset:
    """The columns that a model reads."""
    return bench.rows.select_columns(["input_ids", "attention_mask", "labels"])


def autocast(bench: Bench) -> AbstractContextManager:
    """What nlpkd's default is on this machine."""
    fast = fast_at_bf16(use_cpu=bench.device.type == "cpu")
    return torch.autocast(bench.device.type, torch.bfloat16) if fast else nullcontext()


def timed(call: Callable[[], object], bench: Bench) -> float:
    """Count the seconds of a call, until the device has done all that it was asked for."""
    start = time.perf_counter()
    call()
    if bench.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def check(bench: Bench) -> float:
    """Compare the gradients of soft targets on one batch without dropout, and refuse to time what differs.

    TextBrewer's term is the cross-entropy without T^2: it has another value, and T^2 times its gradient is the same.
    """
    from textbrewer.losses import kd_ce_loss

    model = bench.fresh().eval()
    batch = {name: tensor.to(bench.device) for name, tensor in next(iter(padded_batches(bench))).items()}
    with torch.no_grad():
        teacher = bench.teacher(**batch)
    gradients = []
    for loss in (
        lambda student: ForwardKLLoss(TEMPERATURE)(student, teacher, batch),
        lambda student: TEMPERATURE**2 * kd_ce_loss(student.logits, teacher.logits, TEMPERATURE),
        lambda student: soft_targets(student.logits, teacher.logits),
    ):
        model.zero_grad()
        loss(model(**batch)).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    scale = gradients[0].abs().max()
    apart = max(((other - gradients[0]).abs().max() / scale).item() for other in gradients[1:])
    if not apart < 1e-4:
        raise SystemExit(f"the contenders' gradients differ by {apart:.1e} of the largest: they compute other losses")
    return apart


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()

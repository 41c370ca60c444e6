"""From a fine-tuned teacher to the file that is shipped: distil, trim the vocabulary, 8 bits, measure what is left.

    python recipes/ship.py --teacher runs/sst2-teacher --train_file train.tsv --validation_file validation.tsv \
        --student layers:2 --output_dir runs/ship-l2

Leaves a student a seed with its `onnx/model_int8.onnx`, ready for `nlpkd push`; report, page and card with the files
of all seeds; and `shipped.md`: speed, size and accuracy against the teacher in PyTorch. Students that a finished run
left in the folder are shipped as they are. Every field of `DistillationConfig` is a flag. Results: recipes/README.md.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import concatenate_datasets
from scipy.stats import t
from transformers import AutoTokenizer, HfArgumentParser, PreTrainedModel

from nlpkd import DistillationConfig, distill, load_teacher, load_text_classification, make_student
from nlpkd.augment import MaskingAndNGrams, augment
from nlpkd.compare import evaluate
from nlpkd.compression import factorize_embeddings, prune_neurons
from nlpkd.compression.int8 import INT8_FILE
from nlpkd.exporting import export_student
from nlpkd.report import Candidate, EvaluationReport
from nlpkd.run import save_report
from nlpkd.sources import read_splits

SAMPLE = 2000
"""Training rows that the importance of neurons is measured on."""


@dataclass
class Recipe:
    """What to ship, and on what."""

    teacher: str
    train_file: str
    validation_file: str
    student: str = "layers:3"
    embedding_size: int | None = None
    intermediate_size: int | None = None
    copies: int = 0
    objectives: str = "hinton"
    max_length: int = 64
    min_retention: float = 0.98
    num_seeds: int = 3


def main() -> None:
    """Distil every seed, export it, compare the files with the teacher, print the table."""
    parser = HfArgumentParser([Recipe, DistillationConfig])  # type: ignore[list-item]
    parser.set_defaults(
        output_dir="runs/ship", num_train_epochs=2, learning_rate=8e-5, per_device_train_batch_size=64,
        warmup_steps=0.06, save_strategy="epoch", save_total_limit=1,
    )  # fmt: skip
    recipe, args = parser.parse_args_into_dataclasses()
    folder = Path(args.output_dir)
    if not (folder / "report.json").exists():
        whole = recipe.intermediate_size is None
        distill(
            recipe.teacher, recipe.student if whole else pruned(recipe), *rows(recipe), vocabulary="trim",
            embedding_size=recipe.embedding_size if whole else None, objectives=recipe.objectives,
            max_length=recipe.max_length, num_seeds=recipe.num_seeds, baseline=True, args=args,
        )  # fmt: skip
    if not args.should_save:
        return
    later = range(args.seed + 1, args.seed + recipe.num_seeds)
    students = {"int8": folder} | {f"int8, seed {seed}": folder / f"seed-{seed}" for seed in later}
    for student in students.values():
        export_student(
            student, int8=True, data=recipe.validation_file, max_length=recipe.max_length,
            min_retention=recipe.min_retention,
        )  # fmt: skip
    measured = evaluate(
        folder, recipe.validation_file, teacher=recipe.teacher, baseline=folder / "baseline",
        candidates={name: each / INT8_FILE for name, each in students.items()}, max_length=recipe.max_length,
        latency_runs=200,
    )  # fmt: skip
    trained = EvaluationReport.load(folder)
    protocols = {key: value for key, value in measured.run.items() if "protocol" in key}
    report = replace(measured, run=measured.run | trained.run | protocols, seeds=trained.seeds)
    save_report(report, folder, args.hub_model_id)
    table = summary(report, list(students))
    (folder / "shipped.md").write_text(f"{table}\n")
    print(table)


def pruned(recipe: Recipe) -> PreTrainedModel:
    """Make layers of the teacher with fewer feed-forward neurons, and factorised embeddings where asked for."""
    tokenizer = AutoTokenizer.from_pretrained(recipe.teacher)
    data = load_text_classification(recipe.train_file, tokenizer=tokenizer, max_length=recipe.max_length)["train"]
    sample = data.shuffle(seed=0).select(range(min(SAMPLE, len(data))))
    student = make_student(load_teacher(recipe.teacher), recipe.student)
    student, _ = prune_neurons(student, sample, tokenizer, intermediate_size=recipe.intermediate_size)
    if recipe.embedding_size is not None:
        student, _ = factorize_embeddings(student, rank=recipe.embedding_size)
    return student


def rows(recipe: Recipe) -> list[Any]:
    """Give the training and validation rows, the former with masked and cut variants that the teacher labels."""
    if not recipe.copies:
        return [recipe.train_file, recipe.validation_file]
    splits, _ = read_splits(recipe.train_file, recipe.validation_file)
    masking = MaskingAndNGrams(AutoTokenizer.from_pretrained(recipe.teacher))
    more = augment(splits["train"], masking, copies=recipe.copies, exclude=[splits["validation"]])
    return [concatenate_datasets([splits["train"], more]), splits["validation"]]


def summary(report: EvaluationReport, files: Sequence[str]) -> str:
    """Write what the files of all seeds keep of the teacher, the models they came from above them."""
    teacher, exported = report.candidates["teacher"], [report.candidates[name] for name in files]
    whole = accuracy(teacher)
    lines = ["| | accuracy | of the teacher's | p50, ms | times faster | MB | times smaller |", "|---" * 7 + "|"]
    lines.append(line("teacher, PyTorch", [whole], [teacher], teacher))
    for name, role in (("undistilled, PyTorch", "baseline"), ("distilled, PyTorch", "student")):
        seeds = report.seeds.get(role, {}).get("accuracy", {"values": [accuracy(report.candidates[role])]})
        lines.append(line(name, seeds["values"], [report.candidates[role]], teacher))
    lines.append(line("distilled, int8", [accuracy(each) for each in exported], exported, teacher))
    return "\n".join(lines)


def line(name: str, accuracies: list[float], measured: list[Candidate], teacher: Candidate) -> str:
    """Write one row; intervals are over seeds (Student's t, 95 %)."""
    time_ms, size_mb = statistics.median(map(latency_ms, measured)), max(each.size_mb for each in measured)
    kept = interval([100 * each / accuracy(teacher) for each in accuracies])
    return (
        f"| {name} | {interval([100 * each for each in accuracies])} % | {kept} % | {time_ms:.2f} | "
        f"{latency_ms(teacher) / time_ms:.1f} | {size_mb:.1f} | {teacher.size_mb / size_mb:.1f} |"
    )


def accuracy(candidate: Candidate) -> float:
    """Find the accuracy that was measured."""
    return candidate.quality["accuracy"].value


def latency_ms(candidate: Candidate) -> float:
    """Find the median time of one text of 32 tokens."""
    return next(each.p50_ms for each in candidate.latency if each.batch == 1)


def interval(values: list[float]) -> str:
    """Write the mean, and its 95 % interval where there are several values."""
    mean = statistics.mean(values)
    if len(values) < 2 or not statistics.stdev(values):
        return f"{mean:.1f}"
    error = statistics.stdev(values) / math.sqrt(len(values))
    low, high = t.interval(0.95, len(values) - 1, loc=mean, scale=error)
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


if __name__ == "__main__":
    main()

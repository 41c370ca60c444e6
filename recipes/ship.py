"""From a fine-tuned teacher to the file that is shipped: distil, trim the vocabulary, 8 bits, measure what is left.

    python recipes/ship.py --teacher runs/sst2-teacher --train train.tsv --validation validation.tsv \
        --student layers:2 --output_dir runs/ship-l2

Leaves a student a seed with its `onnx/model_int8.onnx`, the first one ready for `nlpkd push` with a report, a page and
a card of all seeds; and `shipped.md`: quality, speed and size against the teacher in PyTorch. Students that a finished
run left in the folder are shipped as they are. Every field of `DistillationConfig` is a flag. Results:
recipes/README.md.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common import TRAIN, VALIDATION, interval_over_seeds, make_parser
from datasets import concatenate_datasets
from transformers import PreTrainedModel

from nlpkd import (
    METRIC_NAMES,
    EvaluationReport,
    ModelSource,
    aggregate_seeds,
    distill,
    evaluate,
    export_student,
    load_text_classification,
    make_student,
    read_splits,
    save_report,
)
from nlpkd.augment import MaskingAndNGrams, augment
from nlpkd.compression import INT8_FILE, factorize_embeddings, prune_neurons

SAMPLE = 2000
"""Training rows that the importance of neurons is measured on."""


@dataclass
class Recipe:
    """What to ship, and on what."""

    teacher: str
    train: str = field(metadata=TRAIN)
    validation: str = field(metadata=VALIDATION)
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
    parser = make_parser(Recipe, output_dir="runs/ship", num_train_epochs=2, learning_rate=8e-5)
    recipe, args = parser.parse_args_into_dataclasses()
    if args.push_to_hub:
        raise ValueError(
            "push_to_hub would push a student before its int8 file is there: run `nlpkd push` on the folder afterwards"
        )
    folder = Path(args.output_dir)
    later = range(args.seed + 1, args.seed + recipe.num_seeds)
    students = {args.seed: folder} | {seed: folder / f"seed-{seed}" for seed in later}
    if not all((student / "report.json").exists() for student in students.values()):
        whole = recipe.intermediate_size is None
        distill(
            recipe.teacher, recipe.student if whole else pruned(recipe), *rows(recipe), vocabulary="trim",
            embedding_size=recipe.embedding_size if whole else None, objectives=recipe.objectives,
            max_length=recipe.max_length, num_seeds=recipe.num_seeds, baseline="same_start", args=args,
        )  # fmt: skip
    if not args.should_save:
        return
    for student in students.values():
        export_student(
            student, int8=True, data=recipe.validation, max_length=recipe.max_length,
            min_retention=recipe.min_retention,
        )  # fmt: skip
    reports = measure(recipe, students)
    save_report(replace(reports[0], seeds=aggregate_seeds(reports)), folder, args.hub_model_id)
    table = summary(reports)
    (folder / "shipped.md").write_text(f"{table}\n")
    print(table)


def pruned(recipe: Recipe) -> PreTrainedModel:
    """Make layers of the teacher with fewer feed-forward neurons, and factorised embeddings where asked for."""
    source = ModelSource.of(recipe.teacher)
    tokenizer = source.tokenizer()
    data = load_text_classification(recipe.train, tokenizer=tokenizer, max_length=recipe.max_length)["train"]
    sample = data.shuffle(seed=0).select(range(min(SAMPLE, len(data))))
    student = make_student(source.teacher(), recipe.student)
    student, _ = prune_neurons(student, sample, tokenizer, intermediate_size=recipe.intermediate_size)
    if recipe.embedding_size is not None:
        student, _ = factorize_embeddings(student, rank=recipe.embedding_size)
    return student


def rows(recipe: Recipe) -> list[Any]:
    """Return the training and validation rows, the former with masked and cut variants that the teacher labels."""
    if not recipe.copies:
        return [recipe.train, recipe.validation]
    splits, _ = read_splits(recipe.train, recipe.validation)
    masking = MaskingAndNGrams(ModelSource.of(recipe.teacher).tokenizer())
    more = augment(splits["train"], masking, copies=recipe.copies, exclude=[splits["validation"]])
    return [concatenate_datasets([splits["train"], more]), splits["validation"]]


def measure(recipe: Recipe, students: dict[int, Path]) -> list[EvaluationReport]:
    """Measure teacher, students, baselines and int8 files of all seeds on the same rows, in turns: a report a seed."""
    first = next(iter(students))
    paths = {
        (role, seed): folder / path
        for seed, folder in students.items()
        for role, path in (("student", "."), ("same_start", "baseline/same_start"), ("int8", INT8_FILE))
    }
    # `evaluate` knows the first seed's by their roles.
    names = {(role, seed): role if seed == first else f"{role}, seed {seed}" for role, seed in paths}
    measured = evaluate(
        paths["student", first], recipe.validation, teacher=recipe.teacher,
        candidates={names[key]: path for key, path in paths.items() if names[key] != "student"},
        max_length=recipe.max_length, latency_batches=(1,), latency_runs=200,
    )  # fmt: skip
    name, reports = f"{Path(recipe.train).name}, {Path(recipe.validation).name}", []
    for seed, folder in students.items():
        trained = EvaluationReport.load(folder)
        candidates = {"teacher": measured.candidates["teacher"]}
        for role in ("student", "same_start", "int8"):
            known = trained.candidates.get(role)
            seconds = None if known is None else known.training_seconds
            candidates[role] = replace(measured.candidates[names[role, seed]], training_seconds=seconds)
        about = replace(
            measured.run.data, name=name, split="validation", train_rows=trained.run.data.train_rows,
            evaluated_source=Path(recipe.validation).name,
        )  # fmt: skip
        run = replace(
            measured.run, seed=trained.run.seed, student=trained.run.student, objectives=trained.run.objectives,
            settings=trained.run.settings, data=about,
        )  # fmt: skip
        reports.append(replace(measured, candidates=candidates, run=run))
    return reports


def summary(reports: Sequence[EvaluationReport]) -> str:
    """Write what the files of all seeds keep of the teacher, the models they came from above them.

    Intervals are over seeds (Student's t, 95 %), times the median of the seeds'.
    """
    metric, teacher = reports[0].task.headline, reports[0].candidates["teacher"]
    whole, whole_ms = teacher.quality[metric].value, teacher.latency[0].p50_ms
    heads = ["", METRIC_NAMES[metric], "of the teacher's", "p50, ms", "times faster", "MB", "times smaller"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    titles = {"teacher": "teacher, PyTorch", "same_start": "undistilled, PyTorch", "student": "distilled, PyTorch"}
    for role, title in (titles | {"int8": "distilled, int8"}).items():
        found = [report.candidates[role] for report in reports]
        values = [each.quality[metric].value for each in found]
        time_ms = statistics.median(each.latency[0].p50_ms for each in found)
        size_mb = max(each.size_mb for each in found)
        lines.append(
            f"| {title} | {interval([100 * value for value in values])} % | "
            f"{interval([100 * value / whole for value in values])} % | {time_ms:.2f} | {whole_ms / time_ms:.1f} | "
            f"{size_mb:.1f} | {teacher.size_mb / size_mb:.1f} |"
        )
    return "\n".join(lines)


def interval(values: list[float]) -> str:
    """Write the mean, and its 95 % interval where there are several values."""
    found = interval_over_seeds(values)
    return f"{statistics.mean(values):.1f}" + (f" [{found[0]:.1f}, {found[1]:.1f}]" if found else "")


if __name__ == "__main__":
    main()

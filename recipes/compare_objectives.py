"""Which way of distilling helps a small student? Every preset and more, on equal steps and several seeds.

    python recipes/compare_objectives.py --teacher runs/quickstart/teacher --tweets --output_dir runs/compare-tweets
    python recipes/compare_objectives.py --teacher runs/sst2-teacher --train_rows 10000 \
        --train train.tsv --test validation.tsv --output_dir runs/compare-sst2

It takes hours, and resumes where it stopped: every finished run is a line of `runs.jsonl`. Results: recipes/README.md.
"""

import json
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from common import TEST, TRAIN, interval_over_seeds, make_parser
from datasets import DatasetDict, Value, concatenate_datasets
from transformers import AutoTokenizer

from nlpkd import (
    DistillationConfig,
    DistillationTrainer,
    load_airline_tweets,
    load_teacher,
    load_text_classification,
    make_student,
    only_run,
)
from nlpkd.augment import WAYS, MaskingAndNGrams, augment, follow_lengths, make_augmenter, unlabelled
from nlpkd.augment.splits import read_texts
from nlpkd.augment.ways import copies_of
from nlpkd.objectives import (
    PRESETS,
    AdversarialLoss,
    ContrastiveLoss,
    CrossEntropyLoss,
    ForwardKLLoss,
    RelationalDistanceLoss,
    Stage,
    resolve,
)


def taught(*more):
    """Return gold labels and soft targets in equal parts, and what is compared on top."""
    return [CrossEntropyLoss(weight=0.5), ForwardKLLoss(temperature=2.0, weight=0.5), *more]


METHODS = {name: lambda name=name: resolve(name) for name in PRESETS if name not in ("soft_targets", "best")} | {
    "undistilled": lambda: [Stage([CrossEntropyLoss()])],
    "label smoothing": lambda: [Stage([CrossEntropyLoss(label_smoothing=0.1)])],
    "soft targets only": lambda: resolve("soft_targets"),
    "skip teacher errors": lambda: [Stage([ForwardKLLoss(temperature=2.0, teacher_errors="skip")])],
    "adversarial": lambda: [Stage(taught(AdversarialLoss(weight=0.1)))],
    "contrastive": lambda: [Stage(taught(ContrastiveLoss(weight=0.1)))],
    "relational": lambda: [Stage(taught(RelationalDistanceLoss()))],
    "adaptive (linear)": lambda: [Stage(resolve("layerwise")[0].objectives, weighting="linear")],
    "adaptive (uncertainty)": lambda: [Stage(resolve("layerwise")[0].objectives, weighting="uncertainty")],
    "hinton + augmented text": lambda: resolve("hinton"),
    "hinton + unlabelled text": lambda: resolve("hinton"),
}
METHODS |= {f"soft targets only + {way}": METHODS["soft targets only"] for way in WAYS}
ALONE = ("undistilled", "label smoothing")
"""Methods without a teacher."""


@dataclass
class Comparison:
    """What to compare on which rows."""

    teacher: str
    student: str = "layers:3"
    tweets: bool = False
    train: str | None = field(default=None, metadata=TRAIN)
    test: str | None = field(default=None, metadata=TEST)
    train_rows: int | None = None
    curve_rows: int = 400
    label_shares: str = "1.0"
    label_noise: float = 0.0
    methods: str = ",".join(name for name in METHODS if " + " not in name and name != "label smoothing")
    gain_over: str = "undistilled"
    num_seeds: int = 3
    max_length: int = 128


def train(method: str, share: float, seed: int, teacher, tokenizer, data, comparison: Comparison, args) -> dict:
    """Train one student; every method has the same number of steps, whatever its stages and its share of the rows."""
    shuffled = data["train"].shuffle(seed=0)
    rows = shuffled.select(range(max(1, round(share * len(shuffled)))))
    if " + " in method and (method != "hinton + unlabelled text" or share < 1):
        rows = with_more_text(method, rows, shuffled, teacher, tokenizer, data, comparison, args)
    student, stages = make_student(teacher, comparison.student, seed=seed), METHODS[method]()
    steps = round(args.num_train_epochs * len(data["train"]) / args.per_device_train_batch_size)
    curve, started, before = [], time.perf_counter(), 0
    for number, stage in enumerate(stages, start=1):
        until = round(steps * number / len(stages))
        trainer = DistillationTrainer(
            model=student,
            teacher_model=None if method in ALONE else teacher,
            args=DistillationConfig(**settings(args), **stage.settings, seed=seed, max_steps=until - before),
            objectives=stage.objectives,
            train_dataset=rows,
            eval_dataset=data["validation"],
            processing_class=tokenizer,
        )
        trainer.train()
        history = trainer.state.log_history
        curve += [(before + entry["step"], entry["eval_accuracy"]) for entry in history if "eval_accuracy" in entry]
        before = until
    seconds = time.perf_counter() - started
    test = trainer.evaluate(data["test"], metric_key_prefix="test")
    about = {"method": method, "share": share, "label_noise": comparison.label_noise, "seed": seed}
    return about | {"seconds": seconds, "curve": curve} | test


def with_more_text(method: str, rows, every, teacher, tokenizer, data, comparison: Comparison, args):
    """Add unlabelled rows: variants of each labelled text, or the texts whose labels are left out."""
    columns = [name for name in rows.column_names if rows.features[name] == Value("string")] + ["labels"]
    raw, known = rows.select_columns(columns), [data["validation"], data["test"]]
    way, texts = method.partition(" + ")[2], [name for name in columns if name != "labels"]
    if way == "unlabelled text":
        more = unlabelled(every, raw, exclude=known)
    elif way == "augmented text":
        more = augment(raw, MaskingAndNGrams(tokenizer), copies=5, exclude=known)
    else:
        masked_lm = args.augment_model if way == "masked-lm" else None
        augmenter = make_augmenter(way, teacher, tokenizer, change=args.augment_change, masked_lm=masked_lm)
        more = augment(raw, augmenter, copies=copies_of(args), exclude=known)
        if args.augment_texts is not None:
            more = follow_lengths(more, read_texts(args.augment_texts), texts)
    text = load_text_classification(
        concatenate_datasets([raw, more]), tokenizer=tokenizer, max_length=comparison.max_length
    )
    return text["train"]


def settings(args: DistillationConfig) -> dict:
    """Return the settings that all methods share."""
    return {
        "output_dir": args.output_dir,
        "learning_rate": args.learning_rate,
        "per_device_train_batch_size": args.per_device_train_batch_size,
        "warmup_steps": args.warmup_steps,
        "save_strategy": "no",
        "eval_strategy": "steps",
        "eval_steps": 0.1,
        "disable_tqdm": args.disable_tqdm,
    }


def table(runs: list[dict], gain_over: str = "undistilled") -> str:
    """Compare with the student of the same seed and share that another method made."""
    heads = ["method", "labels", "seeds", "test accuracy", f"gain over {gain_over}", "agreement with the teacher"]
    heads += [f"steps to the {gain_over} accuracy", "minutes"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    plain = {(run["share"], run["seed"]): run for run in runs if run["method"] == gain_over}
    groups: dict[tuple, list[dict]] = {}
    for run in sorted(runs, key=lambda run: -run["test_accuracy"]):
        groups.setdefault((run["share"], run["method"]), []).append(run)
    for (share, method), group in sorted(groups.items(), key=lambda item: (item[0][0], -mean(item[1]))):
        paired = [(run, plain[share, run["seed"]]) for run in group if (share, run["seed"]) in plain]
        reached = [next((s for s, a in run["curve"] if a >= base["curve"][-1][1]), None) for run, base in paired]
        known, steps = [step for step in reached if step is not None], group[0]["curve"][-1][0]
        cells = [
            method,
            f"{share:.0%}",
            str(len(group)),
            spread([100 * run["test_accuracy"] for run in group]),
            gain([100 * (run["test_accuracy"] - base["test_accuracy"]) for run, base in paired]),
            spread([100 * run["test_agreement"] for run in group if "test_agreement" in run]),
            f"{statistics.median_high(known) if known else '-'} of {steps}, by {len(known)} of {len(paired)}",
            f"{statistics.mean(run['seconds'] for run in group) / 60:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def mean(runs: list[dict]) -> float:
    """Average the test accuracy."""
    return statistics.mean(run["test_accuracy"] for run in runs)


def spread(values: list[float]) -> str:
    """Write mean ± sample standard deviation."""
    if not values:
        return "-"
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def gain(differences: list[float]) -> str:
    """Write the mean of paired differences with its 95 % interval over seeds (Student's t)."""
    if not differences:
        return "-"
    found = interval_over_seeds(differences)
    return f"{statistics.mean(differences):+.1f}" + (f" [{found[0]:+.1f}, {found[1]:+.1f}]" if found else "")


def main() -> None:
    """Run what is missing, seed by seed, and print the table."""
    parser = make_parser(Comparison, output_dir="runs/compare", num_train_epochs=2, learning_rate=8e-5)
    comparison, args = parser.parse_args_into_dataclasses()
    if args.augment is not None:
        raise ValueError("ways of making text are methods here: --methods 'soft targets only + constituents'")
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "runs.jsonl"
    with only_run(folder):
        teacher, tokenizer = load_teacher(comparison.teacher), AutoTokenizer.from_pretrained(comparison.teacher)
        data = load(comparison, tokenizer)
        runs = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        if {run.get("label_noise", 0.0) for run in runs} - {comparison.label_noise}:
            raise ValueError(f"{log} has runs with another label_noise: choose another output_dir")
        done = {(run["method"], run["share"], run["seed"]) for run in runs}
        for seed in range(args.seed, args.seed + comparison.num_seeds):
            for share in map(float, comparison.label_shares.split(",")):
                for method in comparison.methods.split(","):
                    if (method, share, seed) not in done:
                        runs.append(train(method, share, seed, teacher, tokenizer, data, comparison, args))
                        with log.open("a") as lines:
                            lines.write(json.dumps(runs[-1]) + "\n")
                        (folder / "table.md").write_text(table(runs, comparison.gain_over) + "\n")
    print(table(runs, comparison.gain_over))


def load(comparison: Comparison, tokenizer):
    """Load the rows: a fixed part of train, held-out rows for the curves, test rows for nothing but the table."""
    if comparison.tweets:
        rows = load_airline_tweets()
        rows = DatasetDict(train=rows["train"], validation=rows["validation"], test=rows["test"])
        data = load_text_classification(rows, tokenizer=tokenizer, max_length=comparison.max_length)
    else:
        data = load_text_classification(
            comparison.train, test=comparison.test, validation_split=comparison.curve_rows,
            tokenizer=tokenizer, max_length=comparison.max_length,
        )  # fmt: skip
    splits = dict(data.splits)
    # Shuffled first: the tweets come in their own order. Sorted last: batches of like lengths need little padding.
    splits["validation"] = splits["validation"].shuffle(seed=1).select(range(comparison.curve_rows)).sort("length")
    splits["test"] = splits["test"].sort("length")
    if comparison.train_rows is not None:
        splits["train"] = splits["train"].shuffle(seed=1).select(range(comparison.train_rows))
    if comparison.label_noise:
        splits["train"] = mislabelled(splits["train"], comparison.label_noise)
    return splits


def mislabelled(rows, share: float):
    """Give a share of the rows another label, each of the others as often."""
    random, classes = np.random.default_rng(0), rows.features["labels"].num_classes
    wrong, steps = random.random(len(rows)) < share, random.integers(1, classes, len(rows))
    labels = np.where(wrong, (np.array(rows["labels"][:]) + steps) % classes, rows["labels"][:])
    return rows.remove_columns("labels").add_column("labels", labels.tolist(), feature=rows.features["labels"])


if __name__ == "__main__":
    main()

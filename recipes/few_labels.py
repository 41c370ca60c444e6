"""Few gold labels, much text without: what is a teacher worth that knows as little, and one that knows all?

    python recipes/few_labels.py --output_dir runs/few_labels
    python recipes/few_labels.py --train_file train.tsv --test_file dev.tsv --train_rows 10000 --teacher runs/teacher

The airline tweets, or rows of yours, of which 100 or 1,000 keep their label. Without a teacher, three pre-trained
layers learn those labels alone. One teacher is MiniLM fine-tuned on the same few labels; the other was fine-tuned on
all of them, as a teacher that somebody else has. Each teaches three of its layers on all rows, for as many steps as
the baseline has. Every field of `DistillationConfig` is a flag.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from common import TEACHERS_OWN, TEST, TRAIN, interval_over_seeds, make_parser, spread
from datasets import ClassLabel, Dataset, DatasetDict

from nlpkd import DistillationConfig, demo_backbone, distill, load_airline_tweets, read_splits, train_teacher
from nlpkd.data.columns import find_columns


@dataclass
class Recipe:
    """What to distil.

    Attributes:
        train: rows with a text and a label; the airline tweets if None.
        test: rows to measure on, for `train`.
        train_rows: how many rows of `train`, drawn at random; all of them if None.
        teacher: a teacher that knows all labels; MiniLM is fine-tuned on them if None.
        gold: how many training rows keep their label, a table row each.
        num_seeds: seeds of the trainings, and of which rows keep their label.
        student: what the teachers teach.
        objectives: how.
        max_length: tokens of a text.
        few_steps: steps of the teacher that learns from few labels.
        teacher_epochs: epochs of the teacher that knows all labels.
        teacher_learning_rate: of both.
    """

    train: str | None = field(default=None, metadata=TRAIN)
    test: str | None = field(default=None, metadata=TEST)
    train_rows: int | None = None
    teacher: str | None = None
    gold: list[int] = field(default_factory=lambda: [100, 1000])
    num_seeds: int = 3
    student: str = "layers:3"
    objectives: str = "hinton"
    max_length: int = 128
    few_steps: int = 200
    teacher_epochs: float = 3
    teacher_learning_rate: float = 8e-5


def main() -> None:
    """Train and measure; print a table, and keep its figures as JSON."""
    parser = make_parser(Recipe, output_dir="runs/few_labels", num_train_epochs=3, learning_rate=2e-4)
    recipe, args = parser.parse_args_into_dataclasses()
    folder, rows = Path(args.output_dir), read_rows(recipe)

    knowing = recipe.teacher or fine_tune(
        args, recipe, rows, folder / "teacher-of-all", num_train_epochs=recipe.teacher_epochs
    )
    measured: dict[int, list[dict[str, float]]] = {}
    for seed in range(args.seed, args.seed + recipe.num_seeds):
        for count in recipe.gold:
            few = DatasetDict(rows | {"train": keep_labels(rows["train"], count, seed)})
            labelled = DatasetDict(few | {"train": few["train"].filter(lambda row: row["label"] != -100)})
            own = dataclasses.replace(args, seed=seed)
            place = folder / f"gold-{count}-seed-{seed}"
            as_little = fine_tune(own, recipe, labelled, place / "teacher-of-few", max_steps=recipe.few_steps)
            job: dict[str, Any] = {"train": few, "objectives": recipe.objectives, "max_length": recipe.max_length}
            run: dict[str, float] = {}
            for name, teacher in {"few": as_little, "all": knowing}.items():
                settings = dataclasses.replace(own, output_dir=str(place / f"student-of-{name}"))
                # Without a teacher it is the same training whoever would teach.
                report = distill(
                    teacher, recipe.student, args=settings, baseline="no_teacher" if name == "few" else False, **job
                ).report
                accuracy = {key: each.quality["accuracy"].value for key, each in report.candidates.items()}
                run |= {f"{key} of {name}" if key != "no_teacher" else key: value for key, value in accuracy.items()}
            measured.setdefault(count, []).append(run)
            if args.should_log:
                (folder / "few_labels.json").write_text(json.dumps(measured, indent=2) + "\n")
    if args.should_log:
        print(table(measured, len(rows["train"]), len(rows["test"])))


def read_rows(recipe: Recipe) -> DatasetDict:
    """Read the tweets, or the files, as splits with the columns `text` and `label`."""
    if recipe.train is None:
        return load_airline_tweets()
    if recipe.test is None:
        raise ValueError("--train_file needs --test_file, rows to measure on")
    splits = {}
    for split, source in {"train": recipe.train, "test": recipe.test}.items():
        read = read_splits(source)[0]["train"]
        columns = find_columns(read.column_names)
        named = {columns.text: "text", columns.label: "label"}
        splits[split] = read.select_columns(list(named)).rename_columns(
            {old: new for old, new in named.items() if old != new}
        )
    if recipe.train_rows is not None:
        splits["train"] = splits["train"].shuffle(seed=1).select(range(recipe.train_rows))
    names = splits["train"].unique("label")
    if isinstance(names[0], str):
        # As numbers, of which -100 is a row's without a label.
        classes = ClassLabel(names=sorted(names))
        splits = {split: each.cast_column("label", classes) for split, each in splits.items()}
    return DatasetDict(splits)


def keep_labels(rows: Dataset, count: int, seed: int) -> Dataset:
    """Return the rows, all but some drawn at random without their label."""
    # By their places: several rows may have the same text.
    kept = set(np.random.default_rng(seed).permutation(len(rows))[:count].tolist())
    feature = rows.features["label"]
    hidden = rows.map(lambda row, place: {"label": row["label"] if place in kept else -100}, with_indices=True)
    return hidden.cast_column("label", feature)


def fine_tune(args: DistillationConfig, recipe: Recipe, rows: DatasetDict, folder: Path, **settings: Any) -> Path:
    """Fine-tune MiniLM on the rows, and return where it is saved."""
    fixed = {"output_dir": str(folder), "learning_rate": recipe.teacher_learning_rate, "push_to_hub": False}
    own = dataclasses.replace(args, **fixed | TEACHERS_OWN | settings)
    return train_teacher(demo_backbone(), rows, args=own, max_length=recipe.max_length).output_dir


def table(measured: dict[int, list[dict[str, float]]], train_rows: int, test_rows: int) -> str:
    """Return accuracies by gold labels, and each student's gain over no teacher with its interval over the seeds."""
    lines = [
        f"{train_rows} training and {test_rows} test rows; mean ± sd over the seeds, 95 % intervals of the gains\n",
        "| gold labels | no teacher | teacher of few | its student | gain | teacher of all | its student | gain |",
        "|---" * 8 + "|",
    ]
    for count, runs in measured.items():
        cells = [spread(runs, "no_teacher")]
        for name in ("few", "all"):
            gains = [run[f"student of {name}"] - run["no_teacher"] for run in runs]
            interval = interval_over_seeds(gains)
            shown = "" if interval is None else f" [{interval[0]:+.3f}, {interval[1]:+.3f}]"
            cells += [spread(runs, f"teacher of {name}"), spread(runs, f"student of {name}")]
            cells.append(f"{sum(gains) / len(gains):+.3f}{shown}")
        lines.append(f"| {count:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

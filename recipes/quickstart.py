"""Distil offline, on what the extra `demo` installs: MiniLM as the teacher, airline tweets in three classes.

    python recipes/quickstart.py                   # or `make demo`: fine-tune, distil, compare; 7 minutes on 2 cores
    accelerate launch recipes/quickstart.py --num_seeds 3

Every field of `DistillationConfig` is a flag. Results: model_cards/quickstart.md.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from common import make_parser

from nlpkd import demo_backbone, distill, load_airline_tweets, train_teacher


@dataclass
class Recipe:
    """What the demo leaves to choose."""

    student: str = "layers:3"
    start: str = "teacher"
    objectives: str = "layerwise"
    max_length: int = 128
    num_seeds: int = 1
    teacher_epochs: float = 3
    teacher_learning_rate: float = 8e-5


def main() -> None:
    """Fine-tune the teacher, distil it, train both baselines, and print the report."""
    parser = make_parser(Recipe, output_dir="runs/quickstart", num_train_epochs=3, learning_rate=2e-4)
    recipe, args = parser.parse_args_into_dataclasses()
    folder, tweets = Path(args.output_dir), load_airline_tweets()

    settings = {
        "output_dir": str(folder / "teacher"),
        "num_train_epochs": recipe.teacher_epochs,
        "learning_rate": recipe.teacher_learning_rate,
        "push_to_hub": False,
    }
    teacher = train_teacher(
        demo_backbone(), tweets, args=dataclasses.replace(args, **settings), max_length=recipe.max_length
    )
    result = distill(
        teacher.output_dir, recipe.student, tweets, start=recipe.start, objectives=recipe.objectives,
        max_length=recipe.max_length, num_seeds=recipe.num_seeds, baseline=True, baseline_dir=folder / "baseline",
        args=dataclasses.replace(args, output_dir=str(folder / "student")),
    )  # fmt: skip
    if args.should_log:
        result.report.save(folder)
        print(result.report.to_markdown())


if __name__ == "__main__":
    main()

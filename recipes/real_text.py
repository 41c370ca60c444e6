"""Teacher, student and baseline on one kind of real text: `--text news`, `uses`, `pairs` or `half_labelled`.

    python recipes/real_text.py --text news --output_dir runs/news

Long documents in windows, several labels a row, sentence pairs, and rows of which most have no label; texts.py says
where they come from. Every field of `DistillationConfig` is a flag.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import texts
from common import TEACHERS_OWN, make_parser, show_result
from datasets import DatasetDict

from nlpkd import demo_backbone, distill, train_teacher

# Twenty labels of which a row has one or two: in three epochs the teacher learns to say no to all of them.
DEFAULTS: dict[str, dict[str, float]] = {
    "news": {"window_stride": 32},
    "uses": {"teacher_epochs": 12, "teacher_learning_rate": 2e-4, "num_train_epochs": 12, "learning_rate": 4e-4},
}


@dataclass
class Recipe:
    """What to distil."""

    text: Literal["news", "uses", "pairs", "half_labelled"]
    student: str = "layers:3"
    objectives: str = "hinton"
    num_seeds: int = 3
    teacher_epochs: float = 3
    teacher_learning_rate: float = 8e-5
    max_length: int = 128
    window_stride: int | None = None


def main() -> None:
    """Fine-tune the teacher on the rows with labels, distil on all, and print the report."""
    parser = make_parser(Recipe, num_train_epochs=3, learning_rate=2e-4, per_device_train_batch_size=32)
    parser.set_defaults(**DEFAULTS.get(parser.parse_known_args()[0].text, {}))
    recipe, args = parser.parse_args_into_dataclasses()
    folder, data = Path(args.output_dir), getattr(texts, recipe.text)()
    labelled = DatasetDict({name: rows.filter(lambda row: row["label"] != -100) for name, rows in data.items()})
    settings = {
        "output_dir": str(folder / "teacher"),
        "num_train_epochs": recipe.teacher_epochs,
        "learning_rate": recipe.teacher_learning_rate,
        **TEACHERS_OWN,
    }
    lengths = {"max_length": recipe.max_length, "window_stride": recipe.window_stride}
    teacher = train_teacher(demo_backbone(), labelled, args=dataclasses.replace(args, **settings), **lengths)
    result = distill(
        teacher.output_dir, recipe.student, data, objectives=recipe.objectives, num_seeds=recipe.num_seeds,
        baseline=True, args=args, **lengths,
    )  # fmt: skip
    show_result(result, **{"teacher": teacher.output_dir})


if __name__ == "__main__":
    main()

"""Distil offline, on what the extra `demo` installs: MiniLM as the teacher, airline tweets in three classes.

    python recipes/quickstart.py                   # or `make demo`: fine-tune, distil, compare; ten minutes on 2 cores
    accelerate launch recipes/quickstart.py --num_seeds 3

Every field of `DistillationConfig` is a flag. Results: model_cards/quickstart.md.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import TEACHERS_OWN, make_parser, show_result

from nlpkd import DistillationConfig, demo_backbone, distill, load_airline_tweets, train_teacher
from nlpkd.pipeline.dry_run import Plan, plan_distillation, plan_teacher
from nlpkd.students.checkpoint import load_student
from nlpkd.utils.progress import quiet


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


def plans_here(
    teachers: DistillationConfig, students: DistillationConfig, job: dict[str, Any], seeds: int
) -> list[Plan]:
    """Time some steps of each training, and return what teacher and students will take on this machine."""
    names = dict(enumerate(job["train"]["train"].features["label"].names))
    # What there is to say of the rows is said when the trainings begin.
    with quiet("nlpkd"):
        # As fast as the teacher that is not there yet.
        teacher = load_student(demo_backbone(), id2label=names)
        return [
            plan_teacher(teachers, model=demo_backbone(), train=job["train"], max_length=job["max_length"]),
            plan_distillation(students, teacher=teacher, backbone=demo_backbone(), trainings=seeds, **job),
        ]


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
        **TEACHERS_OWN,
    }
    teachers_args = dataclasses.replace(args, **settings)
    student_args = dataclasses.replace(args, output_dir=str(folder / "student"))
    job = {
        "student": recipe.student, "train": tweets, "start": recipe.start, "objectives": recipe.objectives,
        "max_length": recipe.max_length, "baseline": True,
    }  # fmt: skip
    if args.world_size == 1:
        plans = plans_here(teachers_args, student_args, job, recipe.num_seeds)
        minutes = sum(plan.training_minutes + plan.measuring_minutes for plan in plans)
        told = f"a teacher, a student and {plans[1].baselines} baselines"
        print(f"A few timed steps say that all of it takes about {minutes:.0f} minutes here: {told}.", flush=True)

    teacher = train_teacher(demo_backbone(), tweets, args=teachers_args, max_length=recipe.max_length)
    result = distill(
        teacher.output_dir, num_seeds=recipe.num_seeds, baseline_dir=folder / "baseline", args=student_args, **job
    )
    if args.should_log:
        result.report.save(folder)
    show_result(result, teacher=teacher.output_dir)


if __name__ == "__main__":
    main()

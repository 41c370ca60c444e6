"""Fine-tune a backbone several times and let their average teach it once more: a better teacher of the same size.

After Furlanello et al. (2018), Born-Again Neural Networks, arXiv:1805.04770, with an ensemble as its first generation.

    python recipes/born_again.py --model google-bert/bert-base-uncased --train train.tsv \
        --validation validation.tsv --output_dir runs/teacher

Every field of `DistillationConfig` is a flag. Results: model_cards/README.md.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from common import TEACHERS_OWN, TRAIN, VALIDATION, make_parser, show_result

from nlpkd import ModelSource, distill, make_student, train_teacher, with_fresh_pooler
from nlpkd.objectives import CrossEntropyLoss, ForwardKLLoss


@dataclass
class Recipe:
    """What to fine-tune, and on what. `teachers`, fine-tuned from the model before, save the first part."""

    model: str
    train: str = field(metadata=TRAIN)
    validation: str = field(metadata=VALIDATION)
    teachers: list[str] | None = None
    num_teachers: int = 3
    fresh_pooler: bool = False
    temperature: float = 2.0
    gold_weight: float = 0.3
    max_length: int = 128


def main() -> None:
    """Fine-tune with one seed after the other, teach the backbone by the average, print the report."""
    parser = make_parser(Recipe, output_dir="runs/born-again", num_train_epochs=3, learning_rate=8e-5)
    recipe, args = parser.parse_args_into_dataclasses()
    if not recipe.teachers and recipe.num_teachers < 1:
        raise ValueError(f"--num_teachers must be at least 1, got {recipe.num_teachers}")
    objectives = [
        ForwardKLLoss(temperature=recipe.temperature, weight=1 - recipe.gold_weight),
        CrossEntropyLoss(weight=recipe.gold_weight),
    ]
    teachers = recipe.teachers or []
    for seed in range(args.seed, args.seed + (0 if teachers else recipe.num_teachers)):
        folder = str(Path(args.output_dir) / f"teacher-{seed}")
        # A checkpoint's folder is one training's: the others look for their own.
        resume = "True" if args.resume_from_checkpoint else None
        settings = dataclasses.replace(
            args,
            output_dir=folder,
            seed=seed,
            data_seed=None,
            resume_from_checkpoint=resume,
            push_to_hub=False,
            **TEACHERS_OWN,
        )
        train_teacher(
            recipe.model, recipe.train, recipe.validation, args=settings, fresh_pooler=recipe.fresh_pooler,
            max_length=recipe.max_length,
        )  # fmt: skip
        teachers.append(folder)
    first, backbone = ModelSource.of(teachers[0]).teacher(), ModelSource.of(recipe.model)
    student = make_student(first, checkpoint=backbone.given, revision=backbone.revision, seed=args.seed)
    result = distill(
        teachers,
        with_fresh_pooler(student, args.seed) if recipe.fresh_pooler else student,
        recipe.train,
        recipe.validation,
        objectives=objectives,
        max_length=recipe.max_length,
        args=args,
    )
    show_result(result, **vars(recipe) | {"teacher": teachers})


if __name__ == "__main__":
    main()

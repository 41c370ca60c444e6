"""Distil into a BiLSTM on augmented text, after Tang et al. (2019), beside the same BiLSTM on gold labels alone.

    python recipes/bilstm.py --teacher runs/sst2-teacher --train train.tsv --validation validation.tsv \
        --num_seeds 3 --output_dir runs/sst2-bilstm

Every field of `DistillationConfig` is a flag. Variants have no label but the teacher's. Results: recipes/README.md.
"""

from dataclasses import dataclass, field

from common import TRAIN, VALIDATION, make_parser, show_result
from datasets import concatenate_datasets
from transformers import AutoTokenizer

from nlpkd import distill, read_splits
from nlpkd.augment import MaskingAndNGrams, augment
from nlpkd.objectives import LogitMSELoss


@dataclass
class Recipe:
    """What to distil, and on what. Objectives are a preset, or the paper's distance of logits if None."""

    teacher: str
    train: str = field(metadata=TRAIN)
    validation: str = field(metadata=VALIDATION)
    student: str = "bilstm"
    copies: int = 5
    objectives: str | None = None
    max_length: int = 64
    num_seeds: int = 1


def main() -> None:
    """Parse, augment, distil with a baseline, print the report."""
    parser = make_parser(Recipe, output_dir="runs/bilstm", num_train_epochs=3, learning_rate=1e-3)
    recipe, args = parser.parse_args_into_dataclasses()
    splits, _ = read_splits(recipe.train, recipe.validation)
    tokenizer = AutoTokenizer.from_pretrained(recipe.teacher)
    variants = augment(
        splits["train"], MaskingAndNGrams(tokenizer), copies=recipe.copies, exclude=[splits["validation"]]
    )
    splits["train"] = concatenate_datasets([splits["train"], variants])
    result = distill(
        recipe.teacher, recipe.student, splits, objectives=recipe.objectives or [LogitMSELoss()],
        max_length=recipe.max_length, num_seeds=recipe.num_seeds, baseline=True, args=args,
    )  # fmt: skip
    show_result(result, **vars(recipe))


if __name__ == "__main__":
    main()

"""Distil BERT-base fine-tuned on SST-2 into DistilBERT, or any teacher into any student on any labelled text.

    accelerate launch recipes/sst2.py
    accelerate launch recipes/sst2.py --student layers:6 --num_seeds 3
    accelerate launch recipes/sst2.py --teacher runs/teacher --student layers:3 \
        --train train.tsv --validation validation.tsv --output_dir runs/student

Every field of `DistillationConfig` is a flag. Results: model_cards/README.md.
"""

from dataclasses import dataclass, field

from common import TEST, TRAIN, VALIDATION, make_parser, show_result

from nlpkd import distill


@dataclass
class Recipe:
    """What to distil, and on what: arguments of `nlpkd.distill`."""

    teacher: str = "sadhaklal/bert-base-uncased-finetuned-sst2-v2@61fb5941a875298b7422de4e336a599f279e6bbd"
    student: str = "distilbert/distilbert-base-uncased"
    start: str = "teacher"
    backbone: str | None = None
    train: str = field(default="stanfordnlp/sst2", metadata={"aliases": [*TRAIN["aliases"], "--dataset"]})
    validation: str | None = field(default=None, metadata=VALIDATION)
    test: str | None = field(default=None, metadata=TEST)
    dataset_config: str | None = None
    text_column: str | None = None
    text_pair_column: str | None = None
    label_column: str | None = None
    max_length: int = 128
    objectives: str | None = None
    baseline: bool = True
    num_seeds: int = 1


def main() -> None:
    """Parse, distil with a baseline, print the report."""
    parser = make_parser(Recipe, output_dir="runs/sst2", num_train_epochs=3, learning_rate=8e-5)
    recipe, args = parser.parse_args_into_dataclasses()
    result = distill(args=args, **vars(recipe))
    show_result(result, **vars(recipe))


if __name__ == "__main__":
    main()

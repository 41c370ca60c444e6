"""What the recipes share: the files that they read, their command line, what they print, and intervals over seeds."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from scipy.stats import t
from transformers import HfArgumentParser

from nlpkd import DistillationConfig
from nlpkd.cli.screen import after_distilling, hide_bars_of_weights, show_files, show_phases, show_report
from nlpkd.pipeline.distill import DistillResult

TRAIN: dict[str, Any] = {"aliases": ["--train_file", "--train-file"]}
VALIDATION: dict[str, Any] = {"aliases": ["--validation_file", "--validation-file"]}
TEST: dict[str, Any] = {"aliases": ["--test_file", "--test-file"]}
"""Further names of a recipe's fields, as metadata of `dataclasses.field`."""

TEACHERS_OWN: dict[str, Any] = {
    field.name: field.default for field in fields(DistillationConfig) if field.name.startswith("augment")
}
"""Settings of a teacher beside its student's: it learns from gold labels, which further rows lack."""


def make_parser(recipe: type, **defaults: Any) -> HfArgumentParser:
    """Make a parser of a recipe's fields and of all fields of `DistillationConfig`, with a recipe's own defaults."""
    show_phases()
    hide_bars_of_weights()
    parser = HfArgumentParser([recipe, DistillationConfig])  # type: ignore[list-item]
    shared = {"per_device_train_batch_size": 64, "warmup_steps": 0.06, "save_strategy": "epoch", "save_total_limit": 1}
    parser.set_defaults(**shared | defaults)
    return parser


def show_result(result: DistillResult, **given: Any) -> None:
    """Print what a distillation with the given arguments found, where its files are, and what may be typed next."""
    show_report(result.report)
    show_files("The student is", result.output_dir, *after_distilling(result.output_dir, given))


def interval_over_seeds(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval (Student's t) of a mean over seeds; None where the values have no spread."""
    if len(values) < 2 or not statistics.stdev(values):
        return None
    error = statistics.stdev(values) / math.sqrt(len(values))
    return t.interval(0.95, len(values) - 1, loc=statistics.mean(values), scale=error)


def spread(runs: list[dict[str, float]], key: str) -> str:
    """Return mean and standard deviation over the seeds; nothing where it was not measured."""
    values = [run[key] for run in runs if key in run]
    if not values:
        return ""
    return f"{statistics.fmean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")

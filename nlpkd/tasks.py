"""The tasks by the names that `config.problem_type` has for them."""

from __future__ import annotations

from typing import Any

SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


TASKS = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)


UNLABELLED = -100
"""The label of a row that nobody labelled: losses and metrics on gold labels leave it out, as torch does."""


_ERRORS = ("loss", "expected_calibration_error", "mean_squared_error", "mean_absolute_error")


def is_an_error(metric: str) -> bool:
    """Check whether less of a metric is better, by its name.

    Args:
        metric: a loss or one of `nlpkd.evaluation`, with a prefix (`eval_`) or without.

    Returns:
        True for losses and errors.
    """
    return metric.endswith(_ERRORS)


def task_of(config: Any) -> str | None:
    """Read a model's task from its config: `problem_type`, regression where it has one label, None if it says nothing.

    Args:
        config: a transformers config, or None.

    Returns:
        The problem type, or None.
    """
    only_one = getattr(config, "num_labels", None) == 1
    return getattr(config, "problem_type", None) or (REGRESSION if only_one else None)


def fill_in_task(config: Any) -> None:
    """Write the task of a model with one output into its config, which others take for a probability if it says none.

    Args:
        config: of a model that is saved or served; None of a module without one.
    """
    if task_of(config) == REGRESSION:
        config.problem_type = REGRESSION

"""The tasks by the names that `config.problem_type` has for them."""

from __future__ import annotations

from typing import Any

SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


TASKS = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)


UNLABELLED = -100
"""The label of a row that nobody labelled: losses and metrics on gold labels leave it out, as torch does."""


def is_unlabelled(labels: Any) -> Any:
    """Check of each row whether it has no gold label: it is marked with -100 or NaN, of several labels any of them.

    Args:
        labels: an array or a tensor of a task's labels, `(rows,)`, or `(rows, labels)`.

    Returns:
        booleans `(rows,)`, an array or a tensor.
    """
    marked = (labels == UNLABELLED) | (labels != labels)
    return marked if marked.ndim == 1 else marked.any(1)


_ERRORS = ("expected_calibration_error", "mean_squared_error", "mean_absolute_error")


MERITS = (
    "accuracy", "f1_macro", "f1_micro", "f1_weighted", "matthews_correlation", "pearson", "spearman", "agreement",
)  # fmt: skip
"""Metrics of an evaluation of which more is better."""


def more_is_better(metric: str) -> bool | None:
    """Tell whether more of a metric is better, by its name.

    Args:
        metric: a loss or one of an evaluation's, with a prefix (`eval_`, `eval_SET_`) or without.

    Returns:
        False for losses and errors; None for a metric that nlpkd does not report.
    """
    ending = f"_{metric}"
    if metric.endswith("loss") or ending.endswith(tuple(f"_{name}" for name in _ERRORS)):
        return False
    return True if ending.endswith(tuple(f"_{name}" for name in MERITS)) else None


def task_of(config: Any) -> str | None:
    """Read a model's task from its config: `problem_type`, regression where it has one label, None if it says nothing.

    Args:
        config: a transformers config, or None.

    Returns:
        The problem type, or None.
    """
    only_one = getattr(config, "num_labels", None) == 1
    return getattr(config, "problem_type", None) or (REGRESSION if only_one else None)


def refuse_other_than_one_class(model: Any, wanted: str, name: str = "this one") -> None:
    """Refuse what does not give a text one of several classes, where no other task makes sense.

    Args:
        model: the config of a model, or one of `nlpkd.teachers`.
        wanted: what needs one class a text, as the refusal begins.
        name: of the model.

    Raises:
        ValueError: if its task is another one.
    """
    outputs, task = len(model.classes) if hasattr(model, "classes") else model.num_labels, task_of(model)
    if outputs < 2 or task not in (None, SINGLE_LABEL):
        raise ValueError(
            f"{wanted} needs a model with one class a text, and {name} has {outputs} outputs, problem_type {task!r}"
        )


def fill_in_task(config: Any) -> None:
    """Write the task of a model with one output into its config, which others take for a probability if it says none.

    Args:
        config: of a model that is saved or served; None of a module without one.
    """
    if task_of(config) == REGRESSION:
        config.problem_type = REGRESSION

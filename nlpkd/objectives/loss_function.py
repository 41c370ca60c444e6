"""A loss function of the user's own, of the kind that `Trainer` takes, beside the objectives."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from nlpkd.tasks import is_unlabelled


class LossFunction(nn.Module):
    """A `compute_loss_func` of `Trainer`: a function of the student's outputs, the labels and their number.

    It is held to the contract of objectives. It divides by that number itself, so that what it returns is added as it
    is.

    Args:
        function: called as `function(outputs, labels, num_items_in_batch=count)`, with outputs that have `logits`,
            and the number of labelled rows.

    Raises:
        ValueError: if it can't be called so.
    """

    weight = 1.0

    def __init__(self, function: Callable[..., Tensor]):
        super().__init__()
        self.function = function
        try:
            takes: Any = inspect.signature(function)
        except ValueError:
            # Nothing tells what some functions take that are written in C.
            return
        try:
            takes.bind(None, None, num_items_in_batch=None)
        except TypeError as error:
            raise ValueError(
                f"compute_loss_func is called as compute_loss_func(outputs, labels, num_items_in_batch=...), and "
                f"takes {takes} ({error}): let it take these"
            ) from None

    def __deepcopy__(self, memo: dict[int, Any]) -> LossFunction:
        """Copy an object, which may remember what it has seen; a method would bring along all that it belongs to."""
        function = self.function
        return LossFunction(function if inspect.isroutine(function) else copy.deepcopy(function, memo))

    def count(self, batch: Mapping[str, Any]) -> Tensor:
        """Count labelled rows."""
        if "labels" not in batch:
            raise ValueError("compute_loss_func is given the labels, and the rows have none: give labelled rows")
        return (~is_unlabelled(batch["labels"])).sum()

    def value(self, student: Any, batch: Mapping[str, Any], count: Tensor) -> Tensor:
        """Call the function on a batch.

        Args:
            student: the student's outputs.
            batch: the collated batch.
            count: the labelled rows of the whole optimizer step.

        Returns:
            A scalar.
        """
        from transformers.modeling_outputs import SequenceClassifierOutput

        outputs = SequenceClassifierOutput(logits=student.logits)
        return self.function(outputs, batch.get("labels"), num_items_in_batch=count)

    def total(self, student: Any, teacher: Any, batch: Mapping[str, Any]) -> Tensor:
        """Call the function on a batch that is the whole step."""
        return self.value(student, batch, self.count(batch))

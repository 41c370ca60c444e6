"""What a student's predictions are measured by while it is trained: metrics, windows of long texts, agreement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor
from transformers import EvalPrediction

from nlpkd.data.columns import DOCUMENT
from nlpkd.data.windows import average_windows, one_row_a_document
from nlpkd.evaluation.scoring import Scoring
from nlpkd.tasks import UNLABELLED


class PredictionMetrics:
    """Metrics of an evaluation, the average over a text's windows as its prediction, and the agreement beside them.

    Args:
        scoring: of the task.
        compute_metrics: the user's metrics; those of the task if None.
        preprocess_logits: `preprocess_logits_for_metrics` of `Trainer`, if any.
        by_batch: whether metrics are computed batch by batch (`batch_eval_metrics`), of which no text's windows can be
            averaged and no agreement be summed up.
    """

    def __init__(
        self,
        scoring: Scoring,
        compute_metrics: Callable[..., dict[str, float]] | None,
        preprocess_logits: Callable[..., Any] | None,
        by_batch: bool,
    ):
        self._scoring, self._by_batch = scoring, by_batch
        self._compute_metrics, self._preprocess_logits = compute_metrics, preprocess_logits
        self._documents: Any = None

    def begin(self, rows: Any) -> None:
        """Remember which text each row of an evaluation set is a window of."""
        windows = not self._by_batch and DOCUMENT in (getattr(rows, "column_names", None) or ())
        self._documents = rows[DOCUMENT][:] if windows else None

    def with_agreement(self, student: Tensor, teacher: Tensor | None) -> Any:
        """Return the student's logits `(batch, labels)`, and beside them where the teacher's agree, if it is there."""
        if teacher is None or self._by_batch:
            return student
        return student, self._scoring.agreeing(student, teacher)

    def preprocess(self, logits: Any, labels: Any) -> Any:
        """Apply the user's preprocessing to the student's logits alone."""
        if self._preprocess_logits is None:
            return logits
        if isinstance(logits, tuple):
            return self._preprocess_logits(logits[0], labels), logits[1]
        return self._preprocess_logits(logits, labels)

    def __call__(self, prediction: EvalPrediction, **options: Any) -> dict[str, float]:
        """Compute the metrics of an evaluation, with `agreement` where there was a teacher."""
        predictions, labels, agreeing = prediction.predictions, prediction.label_ids, None
        if isinstance(predictions, tuple) and not self._by_batch:
            predictions, agreeing = predictions  # type: ignore[misc]
        if self._documents is not None:
            predictions = average_windows(np.asarray(predictions), self._documents)
            labels = one_row_a_document(labels, self._documents)
        if self._compute_metrics is None and _nobody_labelled(np.asarray(labels)):
            metrics = {}
        elif self._compute_metrics is None:
            metrics = self._scoring.metrics(np.asarray(predictions), np.asarray(labels))
        else:
            plain = EvalPrediction(predictions, labels, prediction.inputs, prediction.losses)
            metrics = dict(self._compute_metrics(plain, **options))
        return metrics if agreeing is None else metrics | {"agreement": self._scoring.agreement(agreeing)}


def _nobody_labelled(labels: np.ndarray) -> bool:
    """Check whether no row has a gold label; labels are `(rows,)`, or `(rows, labels)` of a multi-label task."""
    first = labels if labels.ndim == 1 else labels[:, 0]
    return bool(((first == UNLABELLED) | (first != first)).all())

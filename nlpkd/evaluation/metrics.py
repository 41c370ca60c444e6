"""Classification metrics as `evaluate.Metric` classes that need no network, and their bootstrap resamples."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy.sparse import csr_array
from scipy.special import softmax
from sklearn.metrics import accuracy_score, matthews_corrcoef, precision_recall_fscore_support

from nlpkd.evaluation.figures.intervals import bootstrap_totals
from nlpkd.evaluation.records import ClassMetrics, ReliabilityBin
from nlpkd.tasks import is_unlabelled

CALIBRATION_BINS = 15
"""Equal-width confidence bins of the calibration error."""


CONFUSIONS = 20
"""How many pairs of classes `common_confusions` names."""


BLOCK_ROWS = 1024
"""How many rows of `(rows, labels)` are turned into float64 probabilities at once."""


class InMemoryMetric(evaluate.Metric):
    """An `evaluate.Metric` that writes no cache file and never waits for another process.

    Every process computes on the rows it was given: gather them first, as `Trainer` does.
    """

    def __init__(self, **kwargs: Any):
        kwargs.setdefault("keep_in_memory", True)
        super().__init__(**kwargs)

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=inspect.cleandoc(self.__doc__ or ""),
            citation="",
            inputs_description="predictions: one entry a row; references: the label ids.",
            features=datasets.Features(features),
        )

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> Any:
        """Compute the metric; rows that are given all at once need no table of batches, which takes most of the time.

        Args:
            predictions: one entry a row; None for those of `add_batch`.
            references: the label ids.
            **kwargs: of `evaluate.Metric.compute`.

        Returns:
            The metric by its name.
        """
        if predictions is None or references is None or self.writer is not None:
            return super().compute(predictions=predictions, references=references, **kwargs)
        return self._compute(np.asarray(predictions), np.asarray(references), **kwargs)


class Accuracy(InMemoryMetric):
    """Share of rows whose predicted label id is the reference, as `{"accuracy": ..}`."""

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(references, predictions))}


class F1(InMemoryMetric):
    """Macro and support-weighted F1 over the labels that occur, as `{"f1_macro": .., "f1_weighted": ..}`."""

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        _, _, f1, support = precision_recall_fscore_support(references, predictions, zero_division=0)
        return {"f1_macro": float(np.mean(f1)), "f1_weighted": float(np.average(f1, weights=support))}


class MatthewsCorrelation(InMemoryMetric):
    """Matthews correlation of predictions and references of any number of labels, 0 where one side is constant."""

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        one_label = np.ptp([predictions, references]) == 0
        return {"matthews_correlation": 0.0 if one_label else float(matthews_corrcoef(references, predictions))}


IN_SCORES = {"mean_absolute_error", "mean_squared_error"}
"""Metrics in the unit of the scores, or its square; all others are shares or correlations."""


def classification_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Measure a classifier's logits against gold labels.

    Args:
        logits: `(rows, labels)`.
        labels: label ids `(rows,)`; rows labelled -100 are left out.

    Returns:
        `accuracy`, `f1_macro`, `f1_weighted`, `matthews_correlation` and `expected_calibration_error`.

    Raises:
        ValueError: when the shapes differ, no labelled row is left, a label is out of range or a logit is not finite.
    """
    logits, labels = _labelled_rows(logits, labels)
    predictions = logits.argmax(axis=1)
    values: dict[str, float] = {}
    for metric in (Accuracy(), F1(), MatthewsCorrelation()):
        values |= metric.compute(predictions=predictions, references=labels)
    error = calibration_error(softmax_confidence(logits), predictions == labels)
    return values | {"expected_calibration_error": error}


def resampled_metrics(
    logits: np.ndarray, labels: np.ndarray, *, samples: int = 1000, seed: int = 42
) -> dict[str, np.ndarray]:
    """Measure `classification_metrics` on bootstrap resamples of the rows.

    The resamples depend on `seed` and the number of rows alone, so two models measured on the same rows are paired.

    Args:
        logits: `(rows, labels)`.
        labels: label ids `(rows,)`; rows labelled -100 are left out.
        samples: number of resamples, each of as many rows as there are, drawn with replacement.
        seed: seed of the draw.

    Returns:
        For each metric its values `(samples,)`.

    Raises:
        ValueError: as `classification_metrics`, and when `samples` is below 1.
    """
    logits, labels = _labelled_rows(logits, labels)
    rows, classes = logits.shape
    return _metrics_of_counts(bootstrap_totals(_row_counts(logits, labels), samples, seed), rows, classes)


def row_blocks(rows: int) -> Iterator[slice]:
    """Cut rows into blocks, so that what is computed of `(rows, labels)` does not fill the memory at once.

    Args:
        rows: how many rows there are.

    Yields:
        Slices of `BLOCK_ROWS` rows at most.
    """
    for start in range(0, rows, BLOCK_ROWS):
        yield slice(start, start + BLOCK_ROWS)


def softmax_confidence(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return the largest probability of softmax(logits / temperature) of each row.

    Args:
        logits: `(rows, labels)`.
        temperature: that they are divided by.

    Returns:
        Probabilities, float64 `(rows,)`.
    """
    blocks = (np.asarray(logits[rows], dtype=np.float64) / temperature for rows in row_blocks(len(logits)))
    return np.concatenate([softmax(block, axis=1).max(axis=1) for block in blocks])


def calibration_bins(confidence: np.ndarray) -> np.ndarray:
    """Return the bin of each confidence p, ((m-1)/15, m/15] for m = 1..15, counted from 0."""
    return np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Return how far the confidence of decisions is from their accuracy.

    The decisions are split by confidence p into 15 bins ((m-1)/15, m/15], and

        ECE = sum over bins B of |B| / n * |accuracy(B) - mean confidence(B)|

    (Guo et al., 2017, "On Calibration of Modern Neural Networks", https://arxiv.org/abs/1706.04599).

    Args:
        confidence: of each decision, of any shape; of one label a row the largest probability.
        correct: whether it is right, likewise.

    Returns:
        The error, between 0 and 1.
    """
    gaps = (correct - confidence).ravel()
    per_bin = np.bincount(calibration_bins(confidence).ravel(), weights=gaps, minlength=CALIBRATION_BINS)
    return float(np.abs(per_bin).sum() / gaps.size)


def reliability_bins(confidence: np.ndarray, correct: np.ndarray) -> list[ReliabilityBin]:
    """Return what a reliability diagram shows, bin by bin.

    Args:
        confidence: of each decision, `(decisions,)`.
        correct: whether it is right, `(decisions,)`.

    Returns:
        Each bin of the calibration error that has decisions.
    """
    bins = calibration_bins(confidence)
    return [
        ReliabilityBin(
            confidence=float(confidence[bins == each].mean()),
            accuracy=float(correct[bins == each].mean()),
            rows=int((bins == each).sum()),
        )
        for each in np.unique(bins)
    ]


def common_confusions(gold: np.ndarray, predicted: np.ndarray, classes: int) -> list[list[int]]:
    """Count wrong predictions by gold and predicted class.

    Args:
        gold: class ids `(rows,)`.
        predicted: likewise.
        classes: how many there are.

    Returns:
        `[gold id, predicted id, rows]` of the `CONFUSIONS` commonest, the commonest first.
    """
    wrong = gold != predicted
    pairs, rows = np.unique(gold[wrong].astype(np.int64) * classes + predicted[wrong], return_counts=True)
    commonest = np.argsort(-rows, kind="stable")[:CONFUSIONS]
    return [[*divmod(int(pairs[place]), classes), int(rows[place])] for place in commonest]


def class_metrics(gold: np.ndarray, predicted: np.ndarray, **options: Any) -> list[ClassMetrics]:
    """Measure each class by itself.

    Args:
        gold: class ids `(rows,)`, or booleans `(rows, labels)`.
        predicted: likewise.
        **options: of scikit-learn's `precision_recall_fscore_support`.

    Returns:
        Precision, recall, F1 and rows of each class, in order.
    """
    if gold.ndim == 2 and gold.shape[1] == 1:
        # scikit-learn takes a single label for two classes, yes and no.
        gold, predicted, options = gold[:, 0], predicted[:, 0], options | {"labels": [True]}
    columns = precision_recall_fscore_support(gold, predicted, zero_division=0, **options)
    return [ClassMetrics(*map(float, entry)) for entry in zip(*columns, strict=True)]


def f1_of_counts(hits: np.ndarray, given_and_actual: np.ndarray) -> np.ndarray:
    """Return F1 = 2 * hits / (given + actual), 0 where both are 0."""
    out = np.zeros_like(hits, dtype=np.float64)
    return np.divide(2 * hits, given_and_actual, out=out, where=given_and_actual > 0)


def mean_f1(hits: np.ndarray, given_and_actual: np.ndarray) -> np.ndarray:
    """Return the mean F1 of the labels that occur, as scikit-learn does with `zero_division=nan`.

    Args:
        hits: how often each label is given and right, `(.., labels)`.
        given_and_actual: how often it is given, and how often it is right to give it, together.

    Returns:
        Means `(..,)`, NaN where no label occurs.
    """
    occurring = np.asarray((given_and_actual > 0).sum(axis=-1))
    total = f1_of_counts(hits, given_and_actual).sum(axis=-1)
    return np.divide(total, occurring, out=np.full(occurring.shape, np.nan), where=occurring > 0)


def f1_by_labels(hits: np.ndarray, given_and_actual: np.ndarray) -> dict[str, np.ndarray]:
    """Return macro and micro F1 of the counts of `mean_f1`, NaN where no label occurs."""
    pooled = (each.sum(axis=-1, keepdims=True) for each in (hits, given_and_actual))
    return {"f1_macro": mean_f1(hits, given_and_actual), "f1_micro": mean_f1(*pooled)}


def known_rows(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Leave out the rows without a label.

    Args:
        logits: `(rows, labels)`.
        labels: `(rows,)`, or `(rows, labels)` of a multi-label task.

    Returns:
        Logits and labels of the labelled rows.

    Raises:
        ValueError: when no row is left, or a logit is not finite.
    """
    logits, labels = np.asarray(logits), np.asarray(labels)
    known = ~is_unlabelled(labels)
    if not known.all():
        logits, labels = logits[known], labels[known]
    if not len(labels):
        raise ValueError("there is no labelled row to measure: give at least one row with a label that is not -100")
    finite = np.isfinite(logits).all(axis=1)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise ValueError(f"logits must be finite, found {logits[row].tolist()} in labelled row {row}")
    return logits, labels


def _labelled_rows(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Check logits and labels, and leave out the rows labelled -100."""
    logits, labels = np.asarray(logits), np.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"expected logits (rows, labels) and labels (rows,), found shapes {logits.shape} and {labels.shape}"
        )
    logits, labels = known_rows(logits, labels)
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(
            f"labels must lie in 0..{logits.shape[1] - 1}, found {labels.min()}..{labels.max()}: "
            "map them to the model's label ids"
        )
    return logits, labels


def _row_counts(logits: np.ndarray, labels: np.ndarray) -> csr_array:
    """Return the row-wise counts `(rows, 3 * labels + bins)` whose sum over any rows determines every metric there.

    The columns: correct by label, references by label, predictions by label, calibration gaps by confidence bin.
    """
    rows, classes = logits.shape
    predictions, confidence = logits.argmax(axis=1), softmax_confidence(logits)
    correct, bins = predictions == labels, calibration_bins(confidence)
    columns = np.stack([labels, classes + labels, 2 * classes + predictions, 3 * classes + bins], axis=1)
    values = np.stack([correct, np.ones(rows), np.ones(rows), correct - confidence], axis=1)
    shape = (rows, 3 * classes + CALIBRATION_BINS)
    return csr_array((values.ravel(), (np.arange(rows).repeat(4), columns.ravel())), shape=shape)


def _metrics_of_counts(totals: np.ndarray, rows: int, classes: int) -> dict[str, np.ndarray]:
    """Turn summed row counts `(samples, 3 * labels + bins)` into metrics `(samples,)`."""
    correct, actual, predicted, gaps = np.split(totals, [classes, 2 * classes, 3 * classes], axis=1)
    f1 = f1_of_counts(correct, actual + predicted)
    hits = correct.sum(axis=1)
    covariance = hits * rows - (actual * predicted).sum(axis=1)
    spread = np.sqrt((rows**2 - (actual**2).sum(axis=1)) * (rows**2 - (predicted**2).sum(axis=1)))
    return {
        "accuracy": hits / rows,
        "f1_macro": mean_f1(correct, actual + predicted),
        "f1_weighted": (f1 * actual).sum(axis=1) / rows,
        "matthews_correlation": np.divide(covariance, spread, out=np.zeros_like(spread), where=spread > 0),
        "expected_calibration_error": np.abs(gaps).sum(axis=1) / rows,
    }

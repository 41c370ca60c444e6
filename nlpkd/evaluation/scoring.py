"""How each task is measured: metrics and their resamples, the agreement of two models, paired tests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.special import expit, logit, softmax
from scipy.stats import binomtest, pearsonr, spearmanr
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    mean_absolute_error,
    mean_squared_error,
    precision_recall_curve,
)
from torch import Tensor

from nlpkd.evaluation.metrics import (
    CALIBRATION_BINS,
    bootstrap_draws,
    bootstrap_totals,
    calibration_bins,
    class_metrics,
    classification_metrics,
    reliability_bins,
    resampled_metrics,
)
from nlpkd.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL, UNLABELLED

HEAVY_IMBALANCE = 5.0
"""How many times as frequent as the rarest class the commonest must be for macro F1 to be the headline."""


CONFUSION_CLASSES = 40
"""Up to how many classes a confusion matrix is given: it grows with their square."""


DISAGREEMENTS = 20
"""How many rows `Scoring.disagreements` names."""


class Scoring(ABC):
    """What a task measures of logits `(rows, labels)` against gold labels.

    Attributes:
        problem_type: the task.
        labels_are: the shape and kind of its gold labels, for messages.
    """

    problem_type: ClassVar[str]
    labels_are: ClassVar[str]

    @abstractmethod
    def check(self, labels: np.ndarray, num_labels: int) -> None:
        """Refuse gold labels that are not what the task has.

        Args:
            labels: one entry a row, all rows labelled.
            num_labels: how many logits the models give.

        Raises:
            ValueError: if shape, kind or range is wrong.
        """

    @abstractmethod
    def headline(self, labels: np.ndarray) -> str:
        """Name the metric that a verdict rests on, given the gold labels."""

    @abstractmethod
    def describe(self, labels: np.ndarray) -> dict[str, float]:
        """Say how the gold labels are distributed, for the record."""

    @abstractmethod
    def metrics(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Measure logits against gold labels; unlabelled rows are left out."""

    @abstractmethod
    def resampled(self, logits: np.ndarray, labels: np.ndarray, *, samples: int, seed: int) -> dict[str, np.ndarray]:
        """Measure `metrics` on bootstrap resamples, `(samples,)` each; they depend on seed and rows alone."""

    @abstractmethod
    def agreeing(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Give each row's part in the agreement of two models, float32 `(rows, k)`, of logits `(rows, labels)`."""

    def agreement(self, agreeing: np.ndarray) -> float:
        """Sum up what `agreeing` gave: the share of decisions that are the same."""
        return float(agreeing.mean())

    def resampled_agreement(self, agreeing: np.ndarray, *, samples: int, seed: int) -> np.ndarray:
        """Measure `agreement` on the same resamples as `resampled`, `(samples,)`."""
        totals = bootstrap_totals(agreeing.mean(axis=1, keepdims=True), samples, seed)
        return totals[:, 0] / len(agreeing)

    def breakdown(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        """Break quality down: `per_class`, `reliability`, and `confusion` (gold by predicted) of one class a row."""
        return {}

    def disagreements(self, student: np.ndarray, teacher: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
        """Name the rows where two models differ most, `DISAGREEMENTS` at most, the largest difference first."""
        return []

    def paired_test(self, student: np.ndarray, other: np.ndarray, labels: np.ndarray, name: str) -> dict[str, Any]:
        """Test whether two models are right on the same rows, where the task has a right and a wrong."""
        return {}


class SingleLabelScoring(Scoring):
    """One class a row."""

    problem_type = SINGLE_LABEL
    labels_are = "one integer a row (single-label classification)"

    def check(self, labels: np.ndarray, num_labels: int) -> None:
        """Refuse labels that are no class ids; see `Scoring.check`."""
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"labels must be {self.labels_are}, found {labels.dtype} of shape {labels.shape}")
        if labels.min() < 0 or labels.max() >= num_labels:
            raise ValueError(
                f"labels must lie in 0..{num_labels - 1}, found {labels.min()}..{labels.max()}: map them or drop "
                "those rows"
            )

    def headline(self, labels: np.ndarray) -> str:
        """Choose accuracy, or macro F1 where a class is rare."""
        counts = np.unique(labels, return_counts=True)[1]
        return "f1_macro" if counts.max() >= HEAVY_IMBALANCE * counts.min() else "accuracy"

    def describe(self, labels: np.ndarray) -> dict[str, float]:
        """Give the share of the commonest class."""
        return {"majority_share": float(np.bincount(labels).max() / len(labels))}

    def metrics(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """See `nlpkd.evaluation.metrics.classification_metrics`."""
        return classification_metrics(logits, labels)

    def resampled(self, logits: np.ndarray, labels: np.ndarray, *, samples: int, seed: int) -> dict[str, np.ndarray]:
        """See `nlpkd.evaluation.metrics.resampled_metrics`."""
        return resampled_metrics(logits, labels, samples=samples, seed=seed)

    def agreeing(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Say of each row whether both choose the same class, `(rows, 1)`."""
        return (student.argmax(dim=-1) == teacher.argmax(dim=-1)).float()[:, None]

    def breakdown(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        """Give confusion matrix, figures by class and reliability; see `Scoring.breakdown`."""
        predictions, classes = logits.argmax(axis=1), list(range(logits.shape[1]))
        probabilities = softmax(np.asarray(logits, dtype=np.float64), axis=1)
        matrix = confusion_matrix(labels, predictions, labels=classes).tolist()
        return {
            **({"confusion": matrix} if len(classes) <= CONFUSION_CLASSES else {}),
            "per_class": class_metrics(labels, predictions, labels=classes),
            "reliability": reliability_bins(probabilities.max(axis=1), predictions == labels),
        }

    def disagreements(self, student: np.ndarray, teacher: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
        """Order rows by the total variation 1/2 * sum over classes |p - q| of both models' probabilities."""
        own, theirs = (softmax(np.asarray(each, dtype=np.float64), axis=1) for each in (student, teacher))
        distances = np.abs(own - theirs).sum(axis=1) / 2
        return [
            {
                "row": int(row),
                "gold": int(labels[row]),
                "predicted": int(own[row].argmax()),
                "probability": float(own[row].max()),
                "teacher_predicted": int(theirs[row].argmax()),
                "teacher_probability": float(theirs[row].max()),
                "distance": float(distances[row]),
            }
            for row in np.argsort(-distances, kind="stable")[:DISAGREEMENTS]
        ]

    def paired_test(self, student: np.ndarray, other: np.ndarray, labels: np.ndarray, name: str) -> dict[str, Any]:
        """Give McNemar's exact test."""
        right, theirs = student.argmax(axis=1) == labels, other.argmax(axis=1) == labels
        student_only, other_only = int((right & ~theirs).sum()), int((theirs & ~right).sum())
        discordant = student_only + other_only
        return {
            "mcnemar_p": float(binomtest(student_only, discordant).pvalue) if discordant else 1.0,
            "student_only_correct": student_only,
            f"{name}_only_correct": other_only,
        }


class MultiLabelScoring(Scoring):
    """Any number of labels a row: a label is given where its probability is above its threshold.

    Two models agree by their decisions at 0.5. `accuracy` is the share of rows with every label right; `f1_micro`
    pools all decisions, `f1_macro` is the mean over labels; the calibration error is that of all decisions at 0.5
    pooled, by the confidence max(p, 1 - p).

    Args:
        thresholds: one a label; 0.5 if None.
    """

    problem_type = MULTI_LABEL
    labels_are = "a 0 or 1 for each label (multi-label classification)"

    def __init__(self, thresholds: Sequence[float] | None = None):
        self.cut = np.zeros(1) if thresholds is None else logit(np.asarray(thresholds, dtype=np.float64))

    def check(self, labels: np.ndarray, num_labels: int) -> None:
        """Refuse anything but zeros and ones, `(rows, labels)`; see `Scoring.check`."""
        if labels.ndim != 2 or labels.shape[1] != num_labels or not np.isin(labels, (0, 1)).all():
            raise ValueError(
                f"labels must be {self.labels_are}, {num_labels} of them; found {labels.dtype} of shape {labels.shape}"
            )

    def headline(self, labels: np.ndarray) -> str:
        """Choose macro F1."""
        return "f1_macro"

    def describe(self, labels: np.ndarray) -> dict[str, float]:
        """Give how many labels a row has."""
        return {"labels_a_row": float(labels.sum(axis=1).mean())}

    def metrics(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Measure with scikit-learn; labels `(rows, labels)`."""
        logits, labels = _known(logits, labels, labels[:, 0] != UNLABELLED)
        decisions, gold = logits > self.cut, labels == 1
        values = {"accuracy": float(accuracy_score(gold, decisions))}
        for average in ("macro", "micro"):
            values[f"f1_{average}"] = float(f1_score(gold, decisions, average=average, zero_division=0))
        bins, gaps = _decision_gaps(logits, gold)
        error = np.abs(np.bincount(bins.ravel(), weights=gaps.ravel(), minlength=CALIBRATION_BINS)).sum() / gaps.size
        return values | {"expected_calibration_error": float(error)}

    def resampled(self, logits: np.ndarray, labels: np.ndarray, *, samples: int, seed: int) -> dict[str, np.ndarray]:
        """Resample each row's counts, whose sums determine every metric."""
        logits, labels = _known(logits, labels, labels[:, 0] != UNLABELLED)
        decisions, gold = logits > self.cut, labels == 1
        bins, gaps = _decision_gaps(logits, gold)
        by_bin = np.zeros((len(bins), CALIBRATION_BINS))
        np.add.at(by_bin, (np.arange(len(bins))[:, None], bins), gaps)
        exact = (decisions == gold).all(axis=1, keepdims=True)
        counts = np.concatenate([decisions & gold, decisions, gold, exact, by_bin], axis=1).astype(float)
        totals = bootstrap_totals(counts, samples, seed)
        width = logits.shape[1]
        hits, given, actual, exact_total, error = np.split(
            totals, [width, 2 * width, 3 * width, 3 * width + 1], axis=1
        )
        return {
            "accuracy": exact_total[:, 0] / len(logits),
            "f1_macro": _f1(hits, given + actual).mean(axis=1),
            "f1_micro": _f1(hits.sum(axis=1), (given + actual).sum(axis=1)),
            "expected_calibration_error": np.abs(error).sum(axis=1) / gaps.size,
        }

    def breakdown(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        """Give figures by label, and the reliability of all decisions at 0.5 pooled; see `Scoring.breakdown`."""
        gold, confidence = labels == 1, expit(np.abs(np.asarray(logits, dtype=np.float64)))
        return {
            "per_class": class_metrics(gold, logits > self.cut),
            "reliability": reliability_bins(confidence.ravel(), ((logits > 0) == gold).ravel()),
        }

    def agreeing(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Say of each label of each row whether both give it or neither does, `(rows, labels)`."""
        return ((student > 0) == (teacher > 0)).float()


class RegressionScoring(Scoring):
    """A score a row; the agreement of two models is the Pearson correlation of theirs."""

    problem_type = REGRESSION
    labels_are = "one score a row (regression)"

    def check(self, labels: np.ndarray, num_labels: int) -> None:
        """Refuse anything but finite numbers `(rows,)`; see `Scoring.check`."""
        if labels.ndim != 1 or num_labels != 1 or not np.isfinite(labels).all():
            raise ValueError(
                f"labels must be {self.labels_are}, and models have one output; found {labels.dtype} of shape "
                f"{labels.shape}, and {num_labels} outputs"
            )

    def headline(self, labels: np.ndarray) -> str:
        """Choose the Pearson correlation."""
        return "pearson"

    def describe(self, labels: np.ndarray) -> dict[str, float]:
        """Give mean and standard deviation of the scores."""
        return {"score_mean": float(labels.mean()), "score_sd": float(labels.std())}

    def metrics(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Measure with scipy and scikit-learn; labels `(rows,)`. Correlations are 0 where one side is constant."""
        logits, labels = _known(logits, labels, ~np.isnan(labels))
        scores = logits[:, 0]
        return {
            "pearson": _correlation(pearsonr, scores, labels),
            "spearman": _correlation(spearmanr, scores, labels),
            "mean_squared_error": float(mean_squared_error(labels, scores)),
            "mean_absolute_error": float(mean_absolute_error(labels, scores)),
        }

    def resampled(self, logits: np.ndarray, labels: np.ndarray, *, samples: int, seed: int) -> dict[str, np.ndarray]:
        """Measure every resample."""
        logits, labels = _known(logits, labels, ~np.isnan(labels))
        measured = [self.metrics(logits[rows], labels[rows]) for rows in bootstrap_draws(len(labels), samples, seed)]
        return {name: np.array([each[name] for each in measured]) for name in measured[0]}

    def agreeing(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Give both scores, `(rows, 2)`."""
        return torch.cat([student, teacher], dim=-1).float()

    def agreement(self, agreeing: np.ndarray) -> float:
        """Correlate both scores."""
        return _correlation(pearsonr, agreeing[:, 0], agreeing[:, 1])

    def resampled_agreement(self, agreeing: np.ndarray, *, samples: int, seed: int) -> np.ndarray:
        """Correlate both scores on each resample."""
        return np.array([self.agreement(agreeing[rows]) for rows in bootstrap_draws(len(agreeing), samples, seed)])


def scoring_of(problem_type: str | None, thresholds: Sequence[float] | None = None) -> Scoring:
    """Make a task's scoring; of a single label where the task is not said.

    Args:
        problem_type: the task.
        thresholds: of a multi-label task, one a label.

    Returns:
        The scoring.
    """
    if problem_type == MULTI_LABEL:
        return MultiLabelScoring(thresholds)
    return RegressionScoring() if problem_type == REGRESSION else SingleLabelScoring()


def per_length(scoring: Scoring, logits: np.ndarray, labels: np.ndarray, lengths: np.ndarray) -> list[dict[str, Any]]:
    """Measure the headline metric on texts of similar length, in quarters of the rows.

    Args:
        scoring: of the task.
        logits: `(rows, labels)`.
        labels: gold labels, one entry a row.
        lengths: tokens of each row, `(rows,)`.

    Returns:
        `{"shortest", "longest", "rows", "value"}` for each group, the shortest first; rows of one length share one.
    """
    headline = scoring.headline(labels)
    edges = np.unique(np.quantile(lengths, [0.25, 0.5, 0.75], method="lower"))
    groups = np.searchsorted(edges, lengths, side="left")
    measured = []
    for group in np.unique(groups):
        rows = groups == group
        value = scoring.metrics(logits[rows], labels[rows])[headline]
        ends = {"shortest": int(lengths[rows].min()), "longest": int(lengths[rows].max())}
        measured.append(ends | {"rows": int(rows.sum()), "value": value})
    return measured


def best_thresholds(logits: np.ndarray, labels: np.ndarray) -> list[float]:
    """Choose each label's threshold by the F1 it gives; on held-out rows, and not those that are reported on.

    Args:
        logits: `(rows, labels)`.
        labels: zeros and ones `(rows, labels)`.

    Returns:
        A probability a label, halfway between the scores that it separates; 0.5 for a label that no row has.
    """
    chosen = []
    for scores, gold in zip(expit(np.asarray(logits, dtype=np.float64)).T, np.asarray(labels).T, strict=True):
        if not gold.any():
            chosen.append(0.5)
            continue
        precision, recall, thresholds = precision_recall_curve(gold, scores)
        best = int(np.argmax(_f1(precision * recall, precision + recall)[:-1]))
        below = scores[scores < thresholds[best]]
        lower = below.max() if len(below) else 0.0
        chosen.append(float((thresholds[best] + lower) / 2))
    return chosen


def _known(logits: np.ndarray, labels: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drop unlabelled rows, and refuse what can't be measured."""
    logits, labels = np.asarray(logits, dtype=np.float64)[known], np.asarray(labels)[known]
    if not len(labels):
        raise ValueError("there is no labelled row to measure: give at least one with a label")
    if not np.isfinite(logits).all():
        row = int(np.flatnonzero(~np.isfinite(logits).all(axis=1))[0])
        raise ValueError(f"logits must be finite, found {logits[row].tolist()} in labelled row {row}")
    return logits, labels


def _decision_gaps(logits: np.ndarray, gold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give each decision's confidence bin, and its correctness (0 or 1) minus its confidence, `(rows, labels)`."""
    confidence = expit(np.abs(logits))
    return calibration_bins(confidence), ((logits > 0) == gold) - confidence


def _f1(hits: np.ndarray, given_and_actual: np.ndarray) -> np.ndarray:
    return np.divide(2 * hits, given_and_actual, out=np.zeros_like(hits), where=given_and_actual > 0)


def _correlation(correlate: Callable[[np.ndarray, np.ndarray], Any], first: np.ndarray, second: np.ndarray) -> float:
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(correlate(first, second).statistic)

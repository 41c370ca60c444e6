"""How each task is measured: metrics and their resamples, the agreement of two models, paired tests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.sparse import csr_array, hstack
from scipy.special import softmax
from scipy.stats import binomtest, pearsonr, spearmanr
from sklearn.metrics import confusion_matrix, mean_absolute_error, mean_squared_error
from torch import Tensor

from nlpkd.data.labels.classes import given_labels, thresholds_of
from nlpkd.data.rows import labelled_rows
from nlpkd.evaluation.calibration import decision_confidence, gaps_by_bin
from nlpkd.evaluation.figures.intervals import bootstrap_totals, resampled_correlation
from nlpkd.evaluation.metrics import (
    class_metrics,
    classification_metrics,
    common_confusions,
    f1_by_labels,
    known_rows,
    reliability_bins,
    resampled_metrics,
    row_blocks,
    softmax_confidence,
)
from nlpkd.evaluation.prediction import gold_labels
from nlpkd.evaluation.records import AGREEMENT, Breakdown, Disagreement
from nlpkd.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL, is_unlabelled, task_of

HEAVY_IMBALANCE = 5.0
"""How many times as frequent as the rarest class the commonest must be for macro F1 to be the headline."""

CONFUSION_CLASSES = 40
"""Up to how many classes a confusion matrix is given: it grows with their square. Of more the commonest confusions."""

DISAGREEMENTS = 20
"""How many rows `Scoring.disagreements` names."""


class Scoring(ABC):
    """What a task measures of logits `(rows, labels)` against gold labels.

    Attributes:
        problem_type: the task.
    """

    problem_type: ClassVar[str]

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
        """Return the name of the metric that a verdict rests on, given the gold labels."""

    def can_tell(self, labels: np.ndarray) -> bool:
        """Check whether the headline metric says anything of rows, given their gold labels."""
        return True

    @abstractmethod
    def describe(self, labels: np.ndarray) -> dict[str, Any]:
        """Return how the gold labels are distributed, for the record."""

    @abstractmethod
    def metrics(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Measure logits against gold labels; unlabelled rows are left out."""

    @abstractmethod
    def resampled(self, logits: np.ndarray, labels: np.ndarray, *, samples: int, seed: int) -> dict[str, np.ndarray]:
        """Measure `metrics` on bootstrap resamples, `(samples,)` each; they depend on seed and rows alone."""

    @abstractmethod
    def answers(self, logits: Tensor) -> Tensor:
        """Return what a model answers, `(rows, k)`, given its logits `(rows, labels)`."""

    def agreeing(self, student: Tensor, teacher: Tensor, by: Scoring) -> Tensor:
        """Return each row's part in the agreement of two models, float32 `(rows, k)`, of logits `(rows, labels)`.

        The student decides by this scoring, the teacher by its own, `by`.
        """
        return (self.answers(student) == by.answers(teacher)).float()

    def agreement(self, agreeing: np.ndarray) -> float:
        """Sum up what `agreeing` gave: the share of decisions that are the same."""
        return float(agreeing.mean())

    def resampled_agreement(self, agreeing: np.ndarray, *, samples: int, seed: int) -> np.ndarray:
        """Measure `agreement` on the same resamples as `resampled`, `(samples,)`."""
        totals = bootstrap_totals(agreeing.mean(axis=1, keepdims=True), samples, seed)
        return totals[:, 0] / len(agreeing)

    def breakdown(self, logits: np.ndarray, labels: np.ndarray) -> Breakdown:
        """Return the quality by class and by confidence, as far as the task has them."""
        return Breakdown()

    def disagreements(self, student: np.ndarray, teacher: np.ndarray, labels: np.ndarray) -> list[Disagreement]:
        """Return the rows where two models differ most, `DISAGREEMENTS` at most, the largest difference first."""
        return []

    def paired_test(self, student: np.ndarray, other: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        """Test whether both models are right on the same rows; return fields of `Comparison`, none for scores."""
        return {}


class SingleLabelScoring(Scoring):
    """One class a row."""

    problem_type = SINGLE_LABEL

    def check(self, labels: np.ndarray, num_labels: int) -> None:
        """Refuse labels that are no class ids; see `Scoring.check`."""
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                "labels must be one integer a row (single-label classification), found "
                f"{labels.dtype} of shape {labels.shape}"
            )
        if labels.min() < 0 or labels.max() >= num_labels:
            raise ValueError(
                f"labels must lie in 0..{num_labels - 1}, found {labels.min()}..{labels.max()}: map them or drop "
                "those rows"
            )

    def headline(self, labels: np.ndarray) -> str:
        """Choose accuracy, or macro F1 where a class is rare."""
        counts = np.unique(labels, return_counts=True)[1]
        return "f1_macro" if counts.max() >= HEAVY_IMBALANCE * counts.min() else "accuracy"

    def describe(self, labels: np.ndarray) -> dict[str, Any]:
        """Return the share of the commonest class."""
        return {"majority_share": float(np.bincount(labels).max() / len(labels))}

    def metrics(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """See `nlpkd.evaluation.metrics.classification_metrics`."""
        return classification_metrics(logits, labels)

    def resampled(self, logits: np.ndarray, labels: np.ndarray, *, samples: int, seed: int) -> dict[str, np.ndarray]:
        """See `nlpkd.evaluation.metrics.resampled_metrics`."""
        return resampled_metrics(logits, labels, samples=samples, seed=seed)

    def answers(self, logits: Tensor) -> Tensor:
        """Return each row's class, `(rows, 1)`."""
        return logits.argmax(dim=-1, keepdim=True)

    def breakdown(self, logits: np.ndarray, labels: np.ndarray) -> Breakdown:
        """Return confusion matrix, figures by class and reliability."""
        predictions, classes = logits.argmax(axis=1), list(range(logits.shape[1]))
        small = len(classes) <= CONFUSION_CLASSES
        return Breakdown(
            confusion=confusion_matrix(labels, predictions, labels=classes).tolist() if small else None,
            confusions=None if small else common_confusions(labels, predictions, len(classes)),
            per_class=class_metrics(labels, predictions, labels=classes),
            reliability=reliability_bins(softmax_confidence(logits), predictions == labels),
        )

    def disagreements(self, student: np.ndarray, teacher: np.ndarray, labels: np.ndarray) -> list[Disagreement]:
        """Order rows by the total variation 1/2 * sum over classes |p - q| of both models' probabilities."""
        distances = np.concatenate(
            [
                np.abs(_probabilities(student[rows]) - _probabilities(teacher[rows])).sum(axis=1) / 2
                for rows in row_blocks(len(labels))
            ]
        )
        largest = np.argsort(-distances, kind="stable")[:DISAGREEMENTS]
        own, theirs = _probabilities(student[largest]), _probabilities(teacher[largest])
        return [
            Disagreement(
                row=int(row),
                gold=int(labels[row]),
                predicted=int(own[place].argmax()),
                probability=float(own[place].max()),
                teacher_predicted=int(theirs[place].argmax()),
                teacher_probability=float(theirs[place].max()),
                distance=float(distances[row]),
            )
            for place, row in enumerate(largest)
        ]

    def paired_test(self, student: np.ndarray, other: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        """Return the p value of McNemar's exact test, and the rows that either model alone has right."""
        right, theirs = student.argmax(axis=1) == labels, other.argmax(axis=1) == labels
        student_only, other_only = int((right & ~theirs).sum()), int((theirs & ~right).sum())
        discordant = student_only + other_only
        return {
            "mcnemar_p": float(binomtest(student_only, discordant).pvalue) if discordant else 1.0,
            "student_only_correct": student_only,
            "other_only_correct": other_only,
        }


class MultiLabelScoring(Scoring):
    """Any number of labels a row: a label is given where its probability is above its threshold.

    `accuracy` is the share of rows with every label right; `f1_micro` pools all decisions, `f1_macro` is the mean over
    the labels that occur, in gold or as given; both are 0 of rows where none does, and such resamples are left out.
    The calibration error is that of all decisions at 0.5 pooled, by the confidence max(p, 1 - p).

    Args:
        thresholds: one a label; 0.5 if None.
    """

    problem_type = MULTI_LABEL

    def __init__(self, thresholds: Sequence[float] | None = None):
        self.thresholds = thresholds

    def check(self, labels: np.ndarray, num_labels: int) -> None:
        """Refuse anything but zeros and ones, `(rows, labels)`; see `Scoring.check`."""
        if labels.ndim != 2 or labels.shape[1] != num_labels or not np.isin(labels, (0, 1)).all():
            raise ValueError(
                f"labels must be a 0 or 1 for each label (multi-label classification), {num_labels} of them; found "
                f"{labels.dtype} of shape {labels.shape}"
            )

    def headline(self, labels: np.ndarray) -> str:
        """Choose macro F1."""
        return "f1_macro"

    def can_tell(self, labels: np.ndarray) -> bool:
        """Check whether any row has a label."""
        return bool((labels == 1).any())

    def describe(self, labels: np.ndarray) -> dict[str, Any]:
        """Return how many labels a row has."""
        return {"labels_a_row": float(labels.sum(axis=1).mean())}

    def metrics(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Measure decisions by their counts; labels `(rows, labels)`."""
        logits, labels = known_rows(logits, labels)
        decisions, gold = self._given(logits), labels == 1
        # By counts: scikit-learn takes a single label for two classes, yes and no.
        hits, total = (gold & decisions).sum(axis=0), gold.sum(axis=0) + decisions.sum(axis=0)
        values = {
            "accuracy": float((decisions == gold).all(axis=1).mean()),
            **{name: float(np.nan_to_num(value)) for name, value in f1_by_labels(hits, total).items()},
        }
        error = np.abs(gaps_by_bin(logits, gold).sum(axis=0)).sum() / logits.size
        return values | {"expected_calibration_error": float(error)}

    def resampled(self, logits: np.ndarray, labels: np.ndarray, *, samples: int, seed: int) -> dict[str, np.ndarray]:
        """Resample each row's counts, whose sums determine every metric."""
        logits, labels = known_rows(logits, labels)
        rows, width = logits.shape
        decisions, gold = self._given(logits), labels == 1
        exact = (decisions == gold).all(axis=1, keepdims=True)
        parts = (decisions & gold, decisions, gold, exact)
        counts = hstack([*(csr_array(part.astype(np.float64)) for part in parts), gaps_by_bin(logits, gold)], "csr")
        totals = bootstrap_totals(counts, samples, seed)
        hits, given, actual, exact_total, gaps = np.split(totals, [width, 2 * width, 3 * width, 3 * width + 1], axis=1)
        return {
            "accuracy": exact_total[:, 0] / rows,
            **f1_by_labels(hits, given + actual),
            "expected_calibration_error": np.abs(gaps).sum(axis=1) / logits.size,
        }

    def breakdown(self, logits: np.ndarray, labels: np.ndarray) -> Breakdown:
        """Return figures by label, and the reliability of all decisions at 0.5 pooled."""
        gold = labels == 1
        # Scikit-learn takes a single label for two classes, of which the second is meant.
        meant = [True] if gold.shape[1] == 1 else None
        return Breakdown(
            per_class=class_metrics(gold, self._given(logits), labels=meant),
            reliability=reliability_bins(decision_confidence(logits).ravel(), ((logits > 0) == gold).ravel()),
        )

    def answers(self, logits: Tensor) -> Tensor:
        """Check of each label of each row whether it is given, `(rows, labels)`."""
        return torch.from_numpy(self._given(logits.float().cpu().numpy())).to(logits.device)

    def _given(self, logits: np.ndarray) -> np.ndarray:
        return given_labels(logits, self.thresholds)


class RegressionScoring(Scoring):
    """A score a row; the agreement of two models is the Pearson correlation of theirs."""

    problem_type = REGRESSION

    def check(self, labels: np.ndarray, num_labels: int) -> None:
        """Refuse anything but finite numbers `(rows,)`; see `Scoring.check`."""
        lacking = int(is_unlabelled(labels).sum())
        if labels.ndim != 1 or num_labels != 1 or lacking or not np.isfinite(labels).all():
            raise ValueError(
                "labels must be one score a row (regression), and models have one output; found "
                f"{labels.dtype} of shape {labels.shape}, {lacking} rows without a score, and {num_labels} outputs"
            )

    def headline(self, labels: np.ndarray) -> str:
        """Choose the Pearson correlation."""
        return "pearson"

    def can_tell(self, labels: np.ndarray) -> bool:
        """Check whether rows differ in their scores."""
        return bool(np.ptp(labels) > 0)

    def describe(self, labels: np.ndarray) -> dict[str, Any]:
        """Return mean and standard deviation of the scores."""
        return {"score_mean": float(labels.mean()), "score_sd": float(labels.std())}

    def metrics(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Measure with scipy and scikit-learn; labels `(rows,)`. Correlations are 0 where one side is constant."""
        scores, labels = _known_scores(logits, labels)
        return {
            "pearson": _correlation(pearsonr, scores, labels),
            "spearman": _correlation(spearmanr, scores, labels),
            "mean_squared_error": float(mean_squared_error(labels, scores)),
            "mean_absolute_error": float(mean_absolute_error(labels, scores)),
        }

    def resampled(self, logits: np.ndarray, labels: np.ndarray, *, samples: int, seed: int) -> dict[str, np.ndarray]:
        """Measure every resample by how often it holds each row."""
        scores, labels = _known_scores(logits, labels)
        errors = np.stack([(scores - labels) ** 2, np.abs(scores - labels)], axis=1)
        squared, absolute = bootstrap_totals(errors, samples, seed).T / len(labels)
        return {
            "pearson": resampled_correlation(scores, labels, samples=samples, seed=seed),
            "spearman": resampled_correlation(scores, labels, samples=samples, seed=seed, ranked=True),
            "mean_squared_error": squared,
            "mean_absolute_error": absolute,
        }

    def answers(self, logits: Tensor) -> Tensor:
        """Return each row's score, `(rows, 1)`."""
        return logits.float()

    def agreeing(self, student: Tensor, teacher: Tensor, by: Scoring) -> Tensor:
        """Return both scores, `(rows, 2)`."""
        return torch.cat([self.answers(student), by.answers(teacher)], dim=-1)

    def agreement(self, agreeing: np.ndarray) -> float:
        """Correlate both scores."""
        return _correlation(pearsonr, agreeing[:, 0], agreeing[:, 1])

    def resampled_agreement(self, agreeing: np.ndarray, *, samples: int, seed: int) -> np.ndarray:
        """Correlate both scores on each resample."""
        student, teacher = np.asarray(agreeing, dtype=np.float64).T
        return resampled_correlation(student, teacher, samples=samples, seed=seed)


def scoring_of(config: Any) -> Scoring:
    """Make a model's scoring, by its task and the thresholds of its own; of a single label where no task is said.

    Args:
        config: of the model, or None.

    Raises:
        ValueError: if its thresholds are not of its labels.
    """
    return task_scoring(task_of(config), thresholds_of(config))


def task_scoring(problem_type: str | None, thresholds: Sequence[float] | None) -> Scoring:
    """Make a task's scoring; of a single label where the task is not said.

    Args:
        problem_type: the task.
        thresholds: of a multi-label model, one a label in the order of the logits; 0.5 if None.

    Returns:
        The scoring.
    """
    if problem_type == MULTI_LABEL:
        return MultiLabelScoring(thresholds)
    return RegressionScoring() if problem_type == REGRESSION else SingleLabelScoring()


def headline_of(problem_type: str | None, rows: Any) -> str:
    """Return the name of the metric that a verdict on a task rests on, given its rows, windows of texts too."""
    labelled = labelled_rows(rows)
    return task_scoring(problem_type, None).headline(gold_labels(labelled)) if len(labelled) else AGREEMENT


def _probabilities(logits: np.ndarray) -> np.ndarray:
    return softmax(np.asarray(logits, dtype=np.float64), axis=1)


def _known_scores(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return predicted and gold scores of the labelled rows, float64 `(rows,)` each."""
    logits, labels = known_rows(logits, labels)
    return logits[:, 0].astype(np.float64), labels.astype(np.float64)


def _correlation(correlate: Callable[[np.ndarray, np.ndarray], Any], first: np.ndarray, second: np.ndarray) -> float:
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(correlate(first, second).statistic)

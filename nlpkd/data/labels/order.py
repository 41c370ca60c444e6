"""In which order a model has its labels, as gold labels tell it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix

from nlpkd.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL

_FEWEST_ROWS = 30


_FEWEST_CORRELATED = 8
"""From so many rows on a model that is wrong on a single one correlates with gold labels above chance."""


def best_order(predictions: np.ndarray, labels: np.ndarray, num_labels: int) -> list[int]:
    """Find the assignment of predicted indices to gold labels that gets most rows right.

    Args:
        predictions: predicted indices, `(rows,)`.
        labels: gold labels, `(rows,)`.
        num_labels: how many labels there are.

    Returns:
        `order` with order[k] the predicted index that means gold label k; the identity wins a tie.
    """
    return best_assignment(confusion_matrix(labels, predictions, labels=np.arange(num_labels)).astype(float))


def best_assignment(fits: np.ndarray) -> list[int]:
    """Assign each row of `(labels, labels)` the column that fits best over all; the identity wins a tie."""
    rows, columns = linear_sum_assignment(fits + 1e-6 * np.eye(len(fits)), maximize=True)
    return [int(column) for _, column in sorted(zip(rows, columns, strict=True))]


def swapped_classes(
    predictions: np.ndarray, labels: np.ndarray, order: Sequence[int], best: Sequence[int]
) -> list[list[int]]:
    """Find the classes that a teacher surely has in each other's places, however right it is on the others.

    Args:
        predictions: predicted indices, `(rows,)`.
        labels: gold labels, `(rows,)`.
        order: index of each label in the teacher's output.
        best: the order that fits the gold labels best.

    Returns:
        Groups of gold labels that change places between the two orders. Every class of a group is right more often in
        the best order, and the group by a sign test at the level 0.01 / classes.
    """
    groups = []
    for group in cycles_between(order, best):
        own, other = (predictions == np.asarray(each)[labels] for each in (order, best))
        wins = [(int(other[labels == label].sum()), int(own[labels == label].sum())) for label in group]
        more, fewer = np.sum(wins, axis=0)
        if all(won > lost for won, lost in wins):
            chance = binomtest(int(more), int(more + fewer), alternative="greater").pvalue
            groups += [group] if chance < 0.01 / len(order) else []
    return groups


def cycles_between(order: Sequence[int], other: Sequence[int]) -> list[list[int]]:
    """Split the labels that have another index in the other order into the smallest groups that change places."""
    label_at = {index: label for label, index in enumerate(order)}
    cycles, seen = [], set()
    for label in range(len(order)):
        cycle = []
        while label not in seen:
            seen.add(label)
            cycle.append(label)
            label = label_at[other[label]]
        cycles += [cycle] if len(cycle) > 1 else []
    return cycles


def correlations(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Correlate each gold label, or score, with each logit.

    Args:
        logits: `(rows, labels)`.
        labels: zeros and ones, or scores, `(rows, labels)`.

    Returns:
        The Pearson correlations `(gold labels, logits)`, 0 where one side is constant; and which gold labels are not
        constant, `(labels,)`.
    """
    table, usable = np.zeros((logits.shape[1],) * 2), np.ptp(labels, axis=0) > 0
    if usable.any() and (np.ptp(logits, axis=0) > 0).all():
        table[usable] = np.corrcoef(labels[:, usable].T, logits.T)[: usable.sum(), usable.sum() :]
    return table, usable


def swapped_labels(table: np.ndarray, rows: int, order: Sequence[int], best: Sequence[int]) -> list[list[int]]:
    """Find the labels of several a row that a model surely has in each other's places; see `swapped_classes`.

    Args:
        table: by `correlations`.
        rows: that it was computed on.
        order: index of each label in the model's output.
        best: the order that fits the gold labels best.

    Returns:
        Groups of labels, each of which correlates better in the best order, and on average by three standard errors
        of a difference.
    """
    groups = []
    for group in cycles_between(order, best):
        gain = [table[label, best[label]] - table[label, order[label]] for label in group]
        groups += [group] if min(gain) > 0 and np.mean(gain) > 3 * np.sqrt(2 / rows) else []
    return groups


@dataclass(frozen=True)
class Knowledge:
    """How well predictions know gold labels, each figure beside that of an answer that knows nothing.

    Attributes:
        rows: gold labels.
        accuracy: the share that is right.
        majority: that of always answering the most frequent label.
        recall: mean over the classes that are there.
        constant_recall: that of a constant answer, 1 / classes.
        recall_error: its standard error, with 1/2 / sqrt(n) at most for each class.
        mcc: Matthews' correlation; 0 for a constant answer.
        needed_mcc: three standard errors of that of the same predictions in any other order, and one right answer
            more: few answers stray further. 0 for a constant answer.
    """

    rows: int
    accuracy: float
    majority: float
    recall: float
    constant_recall: float
    recall_error: float
    mcc: float
    needed_mcc: float

    @classmethod
    def of(cls, predictions: np.ndarray, labels: np.ndarray, order: Sequence[int]) -> Knowledge:
        """Measure predictions.

        Args:
            predictions: predicted indices, `(rows,)`.
            labels: gold labels, `(rows,)`.
            order: index of each label in the model's output.
        """
        indices, rows = np.asarray(order), len(labels)
        right, (classes, counts) = predictions == indices[labels], np.unique(labels, return_counts=True)
        # How often each class is predicted, and each index, be it of a class that is there or not.
        predicted = (predictions[:, None] == indices[classes]).sum(axis=0).astype(float)
        answers = np.unique(predictions, return_counts=True)[1].astype(float)
        by_chance = predicted * counts
        spread = by_chance @ ((rows - predicted) * (rows - counts)) + by_chance.sum() ** 2 - (by_chance**2).sum()
        scale = np.sqrt((rows**2 - (answers**2).sum()) * (rows**2 - (counts**2).sum()))
        return cls(
            rows=rows,
            accuracy=float(right.mean()),
            majority=float(counts.max() / rows),
            recall=float(np.mean([right[labels == label].mean() for label in classes])),
            constant_recall=1 / len(classes),
            recall_error=float(np.sqrt((0.25 / counts).sum()) / len(classes)),
            mcc=float((right.sum() * rows - by_chance.sum()) / scale) if scale else 0.0,
            needed_mcc=float((3 * np.sqrt(spread / (rows - 1)) + rows) / scale) if scale else 0.0,
        )

    @property
    def needed_accuracy(self) -> float:
        """The majority's by two standard errors."""
        return self.majority + 2 * float(np.sqrt(self.majority * (1 - self.majority) / self.rows))

    @property
    def needed_recall(self) -> float:
        """That of a constant answer by two standard errors."""
        return self.constant_recall + 2 * self.recall_error

    @property
    def beats_constant(self) -> bool:
        """Whether more is right than by the most frequent label, or more of a class than by a constant answer."""
        several = self.majority < 1
        return several and (self.accuracy >= self.needed_accuracy or self.recall > self.needed_recall)

    @property
    def is_there(self) -> bool:
        """Whether there is any, such as of a rare class that is found now and then."""
        return self.beats_constant or self.mcc > self.needed_mcc

    def lacking(self) -> str:
        """Say in words what there is, and what would do."""
        accuracy, recall, mcc = self.needed_accuracy, self.needed_recall, self.needed_mcc
        enough = [
            (accuracy, f"{100 * accuracy:.1f} %"),
            (recall, f"a mean recall over classes above {100 * recall:.1f} % (it is {100 * self.recall:.1f} %)"),
            (mcc or np.inf, f"an MCC above {mcc:.2f} (it is {self.mcc:.2f})"),
        ]
        return (
            f"gets {100 * self.accuracy:.1f} % of {self.rows} gold labels right, which is, but for chance, no better "
            f"than always answering the most frequent one ({100 * self.majority:.1f} %); more than chance would be "
            f"{', or '.join(words for least, words in enough if least <= 1)}"
        )


def can_tell(labels: np.ndarray, problem_type: str | None) -> bool:
    """Check whether gold labels could tell a good teacher: one that is wrong on a single row must pass the check.

    Args:
        labels: gold labels of a sample, as the task has them.
        problem_type: the task; None is one class a row.

    Returns:
        False for a few rows, and for rows that are all of one class, or nearly so.
    """
    if problem_type not in (None, SINGLE_LABEL):
        return len(labels) >= _FEWEST_CORRELATED and bool((np.ptp(labels, axis=0) > 0).any())
    classes, counts = np.unique(labels, return_counts=True)
    wrong_once = labels.copy()
    wrong_once[np.argmax(labels == classes[counts.argmin()])] = -1
    return Knowledge.of(wrong_once, labels, range(int(labels.max()) + 1)).beats_constant


def describe_swapped(
    groups: Sequence[Sequence[int]],
    order: Sequence[int],
    best: Sequence[int],
    names: Mapping[int, str] | Sequence[str],
    rows: int,
) -> str | None:
    """Say which classes a model has in each other's places; None where there are none."""
    if not groups:
        return None
    listed = "; ".join(", ".join(repr(names[label]) for label in group) for group in groups)
    fitting = {names[label]: best[label] for group in groups for label in group}
    found = {names[label]: order[label] for group in groups for label in group}
    return (
        f"has classes in each other's places on {rows} gold labels ({listed}): its id2label, or the order of the "
        f"data's labels, says {found}, and {fitting} fits"
    )


def wrong_order(
    logits: np.ndarray, labels: np.ndarray, names: Mapping[int, str] | Sequence[str], problem_type: str
) -> str | None:
    """Say which labels gold ones surely find in each other's places; None where there are none, or too few rows.

    Args:
        logits: `(rows, labels)`, in the order of the gold labels.
        labels: gold labels as the task has them, all rows labelled.
        names: of the labels by id.
        problem_type: the task.
    """
    rows, own = len(logits), list(range(logits.shape[1]))
    if rows < _FEWEST_ROWS or problem_type == REGRESSION:
        return None
    if problem_type == MULTI_LABEL:
        table, _ = correlations(logits, labels)
        best = best_assignment(table)
        return describe_swapped(swapped_labels(table, rows, own, best), own, best, names, rows)
    predictions = logits.argmax(axis=1)
    best = best_order(predictions, labels, len(own))
    return describe_swapped(swapped_classes(predictions, labels, own, best), own, best, names, rows)

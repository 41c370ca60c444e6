"""Whether a teacher knows the gold labels, and in which order it has them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import confusion_matrix

from nlpkd.data.columns import TEACHER_LOGITS
from nlpkd.data.label_names import label_column
from nlpkd.tasks import MULTI_LABEL, SINGLE_LABEL, UNLABELLED, task_of
from nlpkd.teachers.teacher import LiveTeacher, Teacher

logger = logging.getLogger(__name__)


def best_order(predictions: np.ndarray, labels: np.ndarray, num_labels: int) -> list[int]:
    """Find the assignment of predicted indices to gold labels that gets most rows right.

    Args:
        predictions: predicted indices, `(rows,)`.
        labels: gold labels, `(rows,)`.
        num_labels: how many labels there are.

    Returns:
        `order` with order[k] the predicted index that means gold label k; the identity wins a tie.
    """
    counts = confusion_matrix(labels, predictions, labels=np.arange(num_labels)).astype(float)
    gold, predicted = linear_sum_assignment(counts + 1e-6 * np.eye(num_labels), maximize=True)
    return [int(p) for _, p in sorted(zip(gold, predicted, strict=True))]


def check_teacher(
    logits: np.ndarray, labels: np.ndarray, order: Sequence[int] | None, names: Mapping[int, str]
) -> tuple[list[int], str | None]:
    """Compare a teacher with gold labels.

    Args:
        logits: the teacher's logits on a sample, in its own order, `(rows, labels)`.
        labels: gold labels, `(rows,)`.
        order: index of each label in the teacher's output where names tell it, else None.
        names: id2label of the gold labels, for messages.

    Returns:
        The order to use, and what is wrong with the teacher, or None. Where names tell nothing, the order that fits
        the gold labels is used if it is right significantly more often than the given one. A teacher must be right
        more often than the sample's majority class by two standard errors, or, since a teacher that finds a rare class
        may be right less often, have a mean recall over classes that is as much above that of a constant answer.
    """
    rows, num_labels = logits.shape
    # How often it is right in its own order, and in the order that fits best.
    predictions = logits.argmax(axis=1)
    accuracy = _accuracy(predictions, labels, range(num_labels) if order is None else order)
    best = best_order(predictions, labels, num_labels)
    best_accuracy = _accuracy(predictions, labels, best)
    if order is None:
        order = list(range(num_labels))
        if best_accuracy - accuracy > 2 * np.sqrt(0.25 / rows):
            logger.warning(
                "The teacher's label names say nothing; on %d gold labels its own order is right in %.1f %% and %s in "
                "%.1f %%: the latter is used.",
                rows,
                100 * accuracy,
                {names[k]: index for k, index in enumerate(best)},
                100 * best_accuracy,
            )
            order, accuracy = best, best_accuracy
    # How often the most frequent label would be.
    majority = np.bincount(labels, minlength=num_labels).max() / rows
    needed = min(majority + 2 * np.sqrt(majority * (1 - majority) / rows), 1.0)
    if (accuracy >= needed and accuracy > majority) or _recalls_classes(predictions, labels, order):
        return list(order), None
    problem = (
        f"the teacher gets {100 * accuracy:.1f} % of {rows} gold labels right, no better than always answering the "
        f"most frequent one ({100 * majority:.1f} %)"
    )
    if best_accuracy >= needed:
        fitting = {names[k]: index for k, index in enumerate(best)}
        problem += f"; with the label order {fitting} it would be {100 * best_accuracy:.1f} %: its id2label is wrong"
    return list(order), problem


def check_correlated(
    logits: np.ndarray, labels: np.ndarray, order: Sequence[int] | None, names: Mapping[int, str]
) -> tuple[list[int], str | None]:
    """Compare a teacher of several labels a row, or of scores, with gold labels by how they correlate.

    Args:
        logits: the teacher's on a sample, in its own order, `(rows, labels)`.
        labels: zeros and ones, or scores, `(rows, labels)`.
        order: index of each label in the teacher's output where names tell it, else None.
        names: id2label of the gold labels, for messages.

    Returns:
        The order to use, and what is wrong with the teacher, or None. The mean over labels of the correlation of
        logits with gold labels must be above two standard errors of a single one, 2 / sqrt(rows); where names tell
        nothing, the order of the highest mean is used if it is higher by that much.
    """
    rows, num_labels = logits.shape
    # The correlation of each gold label with each of the teacher's, and the order that fits best.
    table = np.zeros((num_labels, num_labels))
    usable = np.ptp(labels, axis=0) > 0
    if usable.any() and (np.ptp(logits, axis=0) > 0).all():
        table[usable] = np.corrcoef(labels[:, usable].T, logits.T)[: usable.sum(), usable.sum() :]
    gold, predicted = linear_sum_assignment(table + 1e-6 * np.eye(num_labels), maximize=True)
    best = [int(index) for _, index in sorted(zip(gold, predicted, strict=True))]

    def mean(candidate: Sequence[int]) -> float:
        return float(table[np.arange(num_labels), candidate][usable].mean()) if usable.any() else 0.0

    # Above chance in the order given by names, or in the best one where names say nothing.
    needed = 2 / np.sqrt(rows)
    if order is None:
        order = list(range(num_labels))
        if mean(best) - mean(order) > needed:
            logger.warning(
                "The teacher's label names say nothing; its outputs fit %d gold labels best as %s: so they are used.",
                rows,
                {names[k]: index for k, index in enumerate(best)},
            )
            order = best
    if not usable.any() or mean(order) > needed:
        return list(order), None
    problem = (
        f"the teacher's outputs correlate with {rows} gold labels by {mean(order):.2f} on average, no more than chance"
    )
    if mean(best) > needed:
        fitting = {names[k]: index for k, index in enumerate(best)}
        problem += f"; with the label order {fitting} it would be {mean(best):.2f}: its id2label is wrong"
    return list(order), problem


def stratified_sample(labels: Sequence[int] | np.ndarray, rows: int, seed: int) -> list[int]:
    """Choose rows with every label as equally often as the data allow.

    Args:
        labels: gold labels; -100 is passed over. Of those that are no classes (several a row, or scores) rows are
            chosen evenly, unlabelled ones (-100, NaN) passed over.
        rows: how many to choose at the most.
        seed: of the choice.

    Returns:
        Row numbers in ascending order.
    """
    array = np.asarray(labels)
    shuffled = np.random.default_rng(seed).permutation(len(array))
    if array.ndim > 1 or array.dtype.kind == "f":
        first = array.reshape(len(array), -1)[:, 0]
        known = ~np.isnan(first) & ((first != UNLABELLED) | (array.ndim == 1))
        return sorted(shuffled[known[shuffled]][:rows].tolist())
    shuffled = shuffled[array[shuffled] >= 0]
    rank = np.empty(len(shuffled), dtype=int)
    for label in np.unique(array[shuffled]):
        members = array[shuffled] == label
        rank[members] = np.arange(members.sum())
    return sorted(shuffled[np.argsort(rank, kind="stable")][:rows].tolist())


def looks_like_probabilities(logits: np.ndarray) -> bool:
    """Check whether every row, `(rows, labels)`, lies in [0, 1] and sums to 1: then these are no logits."""
    return bool(
        logits.size and logits.min() >= 0 and logits.max() <= 1 and np.allclose(logits.sum(axis=1), 1, atol=1e-3)
    )


def _recalls_classes(predictions: np.ndarray, labels: np.ndarray, order: Sequence[int]) -> bool:
    """Check whether the mean recall is above 1 / classes by two standard errors (1/2 / sqrt(n) each at most)."""
    right, (classes, counts) = predictions == np.asarray(order)[labels], np.unique(labels, return_counts=True)
    recall = np.mean([right[labels == label].mean() for label in classes])
    error = np.sqrt((0.25 / counts).sum()) / len(classes)
    return len(classes) > 1 and bool(recall - 1 / len(classes) > 2 * error)


def _accuracy(predictions: np.ndarray, labels: np.ndarray, order: Sequence[int]) -> float:
    return float((predictions == np.asarray(order)[labels]).mean())


CHECKED_ROWS = 256
"""Gold labels that a teacher is compared with."""


def check_teacher_on_gold_labels(
    teacher: Teacher,
    dataset: Any,
    collate: Callable[[list[Any]], Mapping[str, Any]],
    batch_size: int,
    device: torch.device,
    student_config: Any,
    check: str,
    seed: int,
) -> None:
    """Run a teacher on a sample of gold labels: settle its label order, and refuse one that teaches noise.

    Args:
        teacher: live or cached; a live one whose label names say nothing is given the order that fits; of an ensemble
            each teacher is, alone.
        dataset: the training rows.
        collate: makes a batch of rows.
        batch_size: rows of a batch.
        device: where batches go.
        student_config: for the number and names of labels.
        check: `"error"`, `"warn"` or `"off"`.
        seed: of the sample.

    Raises:
        ValueError: if the teacher gives probabilities, NaN or another number of labels; or, with `"error"`, if no
            order of its labels beats the majority class.
    """
    # A sample with every label in it, where there are labels.
    column = label_column(dataset)
    labels = np.full(len(dataset), UNLABELLED) if column is None else np.asarray(dataset[column][:])
    sample = list(range(min(CHECKED_ROWS, len(dataset))))
    if column is not None:
        sample = stratified_sample(labels, CHECKED_ROWS, seed)
    if not sample:
        return
    for member in teacher.members():
        who = f"{member.name}: " if member.name else ""
        # What the teacher says of it.
        found = []
        for at in range(0, len(sample), batch_size):
            batch = collate([dataset[row] for row in sample[at : at + batch_size]])
            batch = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
            found.append(member.outputs(batch).logits.float().cpu().numpy())
        logits = np.concatenate(found)
        _refuse_no_logits(logits, student_config, who)
        if check == "off" or column is None:
            continue
        # Whether that is better than chance, and in which label order.
        movable = isinstance(member, LiveTeacher) and not member.order_known
        given = None if movable else list(range(logits.shape[1]))
        names = student_config.id2label if student_config is not None else {k: str(k) for k in range(logits.shape[1])}
        if task_of(student_config) in (None, SINGLE_LABEL):
            order, problem = check_teacher(logits, labels[sample], given, names)
        else:
            gold = labels[sample].reshape(logits.shape).astype(float)
            order, problem = check_correlated(logits, gold, given, names)
        if problem is not None and check == "error":
            raise ValueError(
                f"{who}{problem}. Check teacher, tokenizer and label order, or set teacher_check='warn' or 'off'"
            )
        if problem is not None:
            logger.warning("%s%s.", who, problem)
        elif isinstance(member, LiveTeacher) and movable:
            member.reorder(order)


def _refuse_no_logits(logits: np.ndarray, student_config: Any, who: str) -> None:
    expected = getattr(student_config, "num_labels", logits.shape[1])
    if logits.shape[1] != expected:
        raise ValueError(f"{who}the teacher gives {logits.shape[1]} logits a row, the student has {expected} labels")
    if not np.isfinite(logits).all():
        raise ValueError(f"{who}the teacher gives NaN or infinite logits: check its weights and its dtype")
    if looks_like_probabilities(logits):
        raise ValueError(
            f"{who}the teacher's logits ({TEACHER_LOGITS}) are probabilities: every row lies in [0, 1] and sums to 1. "
            "Pass logits, or their logarithm"
        )
    if task_of(student_config) == MULTI_LABEL and logits.min() >= 0 and logits.max() <= 1 and np.ptp(logits) > 0.5:
        raise ValueError(
            f"{who}the teacher's logits ({TEACHER_LOGITS}) are probabilities: all of them lie in [0, 1]. Pass logits, "
            "log(p / (1 - p))"
        )

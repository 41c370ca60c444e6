"""Label order: teacher, student and data must mean the same class by the same index."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import confusion_matrix

logger = logging.getLogger(__name__)

_GENERIC = re.compile(r"(label[_ ]?)?\d+", re.IGNORECASE)


def is_generic(id2label: Mapping[int, str]) -> bool:
    """Say whether label names carry no meaning (`LABEL_0`, `1`), as many checkpoints have them."""
    return all(_GENERIC.fullmatch(str(name)) for name in id2label.values())


def telling_names(id2label: Mapping[int, str]) -> list[str]:
    """Give the label names in the order of their ids, none where they carry no meaning."""
    return [] if is_generic(id2label) else [str(id2label[number]) for number in range(len(id2label))]


def align_names(source: Mapping[int, str], target: Mapping[int, str]) -> list[int] | None:
    """Find for each label of `target` the index that `source` gives it.

    Args:
        source: id2label of a teacher or a dataset.
        target: id2label to follow.

    Returns:
        `order` with source[order[k]] the same name as target[k], letter case and outer spaces aside; None where
        either has generic names, so that names say nothing.

    Raises:
        ValueError: if the numbers of labels differ, or the names contradict each other.
    """
    if len(source) != len(target):
        raise ValueError(
            f"different numbers of labels: {len(source)} ({_listed(source)}) and {len(target)} ({_listed(target)})"
        )
    for names in (source, target):
        if sorted(names) != list(range(len(names))):
            raise ValueError(f"label ids must count from 0 without gaps, got {_listed(names)}: mend config.id2label")
    if is_generic(source) or is_generic(target):
        return None
    index = {_plain(name): k for k, name in source.items()}
    wanted = [_plain(target[k]) for k in range(len(target))]
    if len(index) != len(source) or set(index) != set(wanted):
        raise ValueError(
            f"label names contradict each other: {_listed(source)} and {_listed(target)}. If they mean the same, set "
            "config.id2label of one model to the other's names, in its own order"
        )
    return [index[name] for name in wanted]


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
    """Hold a teacher against gold labels.

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
    """Hold a teacher of several labels a row, or of scores, against gold labels by how they correlate.

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
    table = np.zeros((num_labels, num_labels))
    usable = np.ptp(labels, axis=0) > 0
    if usable.any() and (np.ptp(logits, axis=0) > 0).all():
        table[usable] = np.corrcoef(labels[:, usable].T, logits.T)[: usable.sum(), usable.sum() :]
    gold, predicted = linear_sum_assignment(table + 1e-6 * np.eye(num_labels), maximize=True)
    best = [int(index) for _, index in sorted(zip(gold, predicted, strict=True))]

    def mean(candidate: Sequence[int]) -> float:
        return float(table[np.arange(num_labels), candidate][usable].mean()) if usable.any() else 0.0

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
        known = ~np.isnan(first) & ((first != -100) | (array.ndim == 1))
        return sorted(shuffled[known[shuffled]][:rows].tolist())
    shuffled = shuffled[array[shuffled] >= 0]
    rank = np.empty(len(shuffled), dtype=int)
    for label in np.unique(array[shuffled]):
        members = array[shuffled] == label
        rank[members] = np.arange(members.sum())
    return sorted(shuffled[np.argsort(rank, kind="stable")][:rows].tolist())


def looks_like_probabilities(logits: np.ndarray) -> bool:
    """Say whether every row, `(rows, labels)`, lies in [0, 1] and sums to 1: then these are no logits."""
    return bool(
        logits.size and logits.min() >= 0 and logits.max() <= 1 and np.allclose(logits.sum(axis=1), 1, atol=1e-3)
    )


def _recalls_classes(predictions: np.ndarray, labels: np.ndarray, order: Sequence[int]) -> bool:
    """Say whether the mean recall is above 1 / classes by two standard errors (1/2 / sqrt(n) each at most)."""
    right, (classes, counts) = predictions == np.asarray(order)[labels], np.unique(labels, return_counts=True)
    recall = np.mean([right[labels == label].mean() for label in classes])
    error = np.sqrt((0.25 / counts).sum()) / len(classes)
    return len(classes) > 1 and bool(recall - 1 / len(classes) > 2 * error)


def _accuracy(predictions: np.ndarray, labels: np.ndarray, order: Sequence[int]) -> float:
    return float((predictions == np.asarray(order)[labels]).mean())


def _plain(name: object) -> str:
    return str(name).strip().casefold()


def _listed(id2label: Mapping[int, str]) -> str:
    return ", ".join(f"{k}: {id2label[k]!r}" for k in sorted(id2label))

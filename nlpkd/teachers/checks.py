"""Whether a teacher knows the gold labels, and in which order it has them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from nlpkd.data.columns import TEACHER_LOGITS
from nlpkd.data.label_names import label_column
from nlpkd.data.labels.order import (
    Knowledge,
    best_assignment,
    best_order,
    can_tell,
    correlations,
    describe_swapped,
    swapped_classes,
    swapped_labels,
)
from nlpkd.data.labels.values import label_values
from nlpkd.models.inference import evaluating
from nlpkd.models.structure import classification_head, permute_head
from nlpkd.tasks import MULTI_LABEL, SINGLE_LABEL, is_unlabelled, task_of
from nlpkd.teachers.teacher import LiveTeacher, Teacher
from nlpkd.utils.randomness import random_state_kept

logger = logging.getLogger(__name__)

_COMPARED_ROWS = 64
"""Rows on which logits that are kept with the rows are held against the teacher's."""


def check_teacher(
    logits: np.ndarray,
    labels: np.ndarray,
    order: Sequence[int] | None,
    names: Mapping[int, str],
    only_sure: bool = False,
) -> tuple[list[int], str | None]:
    """Compare a teacher with gold labels.

    Args:
        logits: the teacher's logits on a sample, in its own order, `(rows, labels)`.
        labels: gold labels, `(rows,)`.
        order: index of each label in the teacher's output where names tell it, else None.
        names: id2label of the gold labels, for messages.
        only_sure: where names tell nothing, move only classes that are surely swapped.

    Returns:
        The order to use, and what is wrong with the teacher, or None. Where names tell nothing, the order that fits
        the gold labels is used if it is right significantly more often than the given one, or for those classes alone
        that are surely swapped; where names tell the order, swapped classes are what is wrong. A teacher must be right
        more often than the sample's majority class by two standard errors, or, since a teacher that finds a rare class
        may be right less often, have a mean recall over classes that is as much above that of a constant answer, or
        an MCC that is three standard errors above that of its answers in another order.
    """
    rows, num_labels = logits.shape
    predictions = logits.argmax(axis=1)

    def accuracy(candidate: Sequence[int]) -> float:
        return float((predictions == np.asarray(candidate)[labels]).mean())

    # The order that names tell, or else that which fits.
    best = best_order(predictions, labels, num_labels)
    own = list(range(num_labels)) if order is None else list(order)
    swapped = swapped_classes(predictions, labels, own, best)
    margin = np.inf if only_sure else 2 * np.sqrt(0.25 / rows)
    used = own if order is not None else _fitting_order(own, best, accuracy, margin, swapped, names, rows)
    known = Knowledge.of(predictions, labels, used)
    if known.is_there:
        return used, None if order is None else _of_teacher(describe_swapped(swapped, own, best, names, rows))
    problem = f"the teacher {known.lacking()}"
    if order is not None and Knowledge.of(predictions, labels, best).beats_constant:
        problem += _describe_fit(best, names, f"{100 * accuracy(best):.1f} %")
    return used, problem


def _fitting_order(
    own: list[int],
    best: list[int],
    fit: Callable[[Sequence[int]], float],
    margin: float,
    swapped: Sequence[Sequence[int]],
    names: Mapping[int, str],
    rows: int,
) -> list[int]:
    """Choose the order where names tell nothing: the best one, or its own but for the labels that are swapped."""
    if fit(best) - fit(own) <= margin:
        moved = {label for group in swapped for label in group}
        best = [best[label] if label in moved else own[label] for label in range(len(own))]
    if best != own:
        logger.warning(
            "The model's label names say nothing; %d gold labels are fitted by its own order to %.1f %% and by %s "
            "to %.1f %%: the latter is used.",
            rows,
            100 * fit(own),
            {names[k]: index for k, index in enumerate(best)},
            100 * fit(best),
        )
    return best


def _of_teacher(problem: str | None) -> str | None:
    return problem and f"the teacher {problem}"


def _describe_fit(best: Sequence[int], names: Mapping[int, str], fit: str) -> str:
    fitting = {names[k]: index for k, index in enumerate(best)}
    return f"; with the label order {fitting} it would be {fit}: its id2label is wrong"


def check_correlated(
    logits: np.ndarray,
    labels: np.ndarray,
    order: Sequence[int] | None,
    names: Mapping[int, str],
    only_sure: bool = False,
) -> tuple[list[int], str | None]:
    """Compare a teacher of several labels a row, or of scores, with gold labels by how they correlate.

    The arguments are those of `check_teacher`, but labels are zeros and ones, or scores, `(rows, labels)`.

    Returns:
        The order to use, and what is wrong with the teacher, or None. The mean over labels of the correlation of
        logits with gold labels must be above two standard errors of a single one, 2 / sqrt(rows); where names tell
        nothing, the order of the highest mean is used if it is higher by that much; labels that are surely swapped are
        treated as in `check_teacher`.
    """
    rows, num_labels = logits.shape
    labels = labels.reshape(logits.shape).astype(float)
    # The correlation of each gold label with each of the teacher's, and the order that fits best.
    table, usable = correlations(logits, labels)
    best = best_assignment(table)

    def mean(candidate: Sequence[int]) -> float:
        return float(table[np.arange(num_labels), candidate][usable].mean()) if usable.any() else 0.0

    own = list(range(num_labels)) if order is None else list(order)
    swapped = swapped_labels(table, rows, own, best)
    # The order that names tell, or else that which fits, must be above chance.
    needed = 2 / np.sqrt(rows)
    margin = np.inf if only_sure else needed
    used = own if order is not None else _fitting_order(own, best, mean, margin, swapped, names, rows)
    if not usable.any() or mean(used) > needed:
        return used, None if order is None else _of_teacher(describe_swapped(swapped, own, best, names, rows))
    problem = (
        f"the teacher's outputs correlate with {rows} gold labels by {mean(used):.2f} on average, no more than chance"
    )
    if order is not None and mean(best) > needed:
        problem += _describe_fit(best, names, f"{mean(best):.2f}")
    return used, problem


def stratified_sample(labels: Sequence[int] | np.ndarray, rows: int, seed: int) -> list[int]:
    """Choose rows with every label as equally often as the data allow.

    Args:
        labels: gold labels; unlabelled rows are passed over. Of those that are no classes (several a row, or scores)
            rows are chosen evenly.
        rows: how many to choose at the most.
        seed: of the choice.

    Returns:
        Row numbers in ascending order.
    """
    array = np.asarray(labels)
    shuffled = np.random.default_rng(seed).permutation(len(array))
    shuffled = shuffled[~is_unlabelled(array)[shuffled]]
    if array.ndim > 1 or array.dtype.kind == "f":
        return sorted(shuffled[:rows].tolist())
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


def checked_rows(num_labels: int) -> int:
    """Return how many gold labels a teacher is compared with: enough to tell two swapped classes of many."""
    return min(max(256, 10 * num_labels), 5000)


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
        dataset: the training rows, or a sample of those that are no plain data set.
        collate: makes a batch of rows.
        batch_size: rows of a batch.
        device: where batches go.
        student_config: for the number and names of labels.
        check: `"error"`, `"warn"` or `"off"`, which still settles an order that names do not tell; so do gold labels
            that can't tell a good teacher, see `nlpkd.data.labels.order.can_tell`.
        seed: of the sample.

    Raises:
        ValueError: if the teacher gives probabilities, NaN or another number of labels; or, with `"error"`, if no
            order of its labels beats the majority class, or its names have classes in each other's places.
    """
    # A sample with every label in it, where there are labels.
    labels, sample = _sample_of_labels(dataset, student_config, seed)
    if not sample:
        return
    task = task_of(student_config)
    if labels is not None and check != "off" and not can_tell(labels[sample], task):
        told = "The teacher is not checked: its answers to %d gold labels, few or nearly all the same, tell nothing."
        logger.warning(told, len(sample))
        check = "off"
    for member in teacher.members():
        who = f"{member.name}: " if member.name else ""

        # What the teacher says of it.
        def run(batch: Mapping[str, Any], member: Teacher = member) -> Any:
            if isinstance(member, LiveTeacher):
                member.capture.refuse_other_columns(member.model, batch, "teacher")
            return member.outputs(batch)

        logits = _logits_of(run, dataset, sample, collate, batch_size, device)
        _refuse_no_logits(logits, student_config, who)
        movable = isinstance(member, LiveTeacher) and not member.order_known
        if labels is None or (check == "off" and not movable):
            continue
        # Whether that is better than chance, and in which label order.
        given = None if movable else list(range(logits.shape[1]))
        names = student_config.id2label if student_config is not None else {k: str(k) for k in range(logits.shape[1])}
        order, problem = _check_of(task)(logits, labels[sample], given, names, only_sure=check == "off")
        if problem is not None and check == "error":
            raise ValueError(
                f"{who}{problem}. Check teacher, tokenizer and label order, or set teacher_check='warn' or 'off'"
            )
        if problem is not None and check == "warn":
            logger.warning("%s%s.", who, problem)
        if isinstance(member, LiveTeacher) and movable:
            member.reorder(order)


def settle_unnamed_head(
    student: nn.Module,
    run: Callable[[Mapping[str, Any]], Any],
    dataset: Any,
    collate: Callable[[list[Any]], Mapping[str, Any]],
    batch_size: int,
    device: torch.device,
    seed: int,
) -> None:
    """Put a trained head whose labels had no names into the order that gold labels surely fit.

    Args:
        student: its config has the names of the rows by now. A head whose biases are all 0 was just drawn, and has no
            order that could be wrong.
        run: from a batch to the student's outputs.
        dataset: the training rows, or a sample of those that are no plain data set.
        collate: makes a batch of rows.
        batch_size: rows of a batch.
        device: where batches go.
        seed: of the sample.
    """
    config: Any = student.config
    head, check = classification_head(student), _check_of(task_of(config))
    labels, sample = _sample_of_labels(dataset, config, seed)
    if head is None or (head.bias is not None and not head.bias.any()) or labels is None or not sample:
        return
    with evaluating(student), random_state_kept():
        logits = _logits_of(run, dataset, sample, collate, batch_size, device)
    permute_head(student, check(logits, labels[sample], None, config.id2label, only_sure=True)[0])


def _check_of(task: str | None) -> Callable[..., tuple[list[int], str | None]]:
    return check_teacher if task in (None, SINGLE_LABEL) else check_correlated


def _sample_of_labels(dataset: Any, student_config: Any, seed: int) -> tuple[np.ndarray | None, list[int]]:
    """Return the gold labels of rows, None without any, and the numbers of rows to look at."""
    column, size = label_column(dataset), checked_rows(getattr(student_config, "num_labels", 1))
    if column is None:
        return None, list(range(min(size, len(dataset))))
    labels = label_values(dataset, column)
    if labels.dtype == bool:
        # As they are they would pick rows, not classes.
        labels = labels.astype(np.int64)
    return labels, stratified_sample(labels, size, seed)


def check_kept_logits(
    kept: Teacher,
    live: LiveTeacher,
    rows: Any,
    collate: Callable[[list[Any]], Mapping[str, Any]],
    batch_size: int,
    device: torch.device,
    check: str,
) -> None:
    """Refuse logits that came with the rows where the teacher that is given gives others: they would teach, not it.

    Args:
        kept: gives those of the rows.
        live: the teacher that is given too.
        rows: training rows, of which some are compared.
        collate: makes a batch of rows.
        batch_size: rows of a batch.
        device: where batches go.
        check: `"error"` or `"warn"`.

    Raises:
        ValueError: with `"error"`, if they differ by more than half precision explains.
    """
    sample = range(min(len(rows), _COMPARED_ROWS))
    theirs, own = (
        _logits_of(teacher.outputs, rows, sample, collate, batch_size, device).astype(np.float64)
        for teacher in (kept, live)
    )
    if not live.order_known:
        # Which label is which is not known of the teacher.
        theirs, own = np.sort(theirs, axis=1), np.sort(own, axis=1)
    allowed = 0.25 * np.std(own, axis=1).mean() + 0.02 * np.sqrt(np.square(own).mean())
    if (apart := float(np.sqrt(np.square(theirs - own).mean()))) <= allowed:
        return
    told = (
        f"the rows bring logits along (column {TEACHER_LOGITS}) that are not those of the teacher that is given too: "
        f"on {len(sample)} rows they are {apart:.2g} apart (root of the mean square). The column is what teaches. "
        "Remove it to learn from the teacher, or leave the teacher out"
    )
    if check == "error":
        raise ValueError(f"{told}, or set teacher_check='warn' or 'off'")
    logger.warning("%s.", told[0].upper() + told[1:])


def _logits_of(
    run: Callable[[Mapping[str, Any]], Any],
    dataset: Any,
    sample: Sequence[int],
    collate: Callable[[list[Any]], Mapping[str, Any]],
    batch_size: int,
    device: torch.device,
) -> np.ndarray:
    """Run a model on some rows: float32 logits `(rows, labels)`."""
    found = []
    for at in range(0, len(sample), batch_size):
        batch = collate([dataset[row] for row in sample[at : at + batch_size]])
        batch = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        found.append(run(batch).logits.float().cpu().numpy())
    return np.concatenate(found)


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

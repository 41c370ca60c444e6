"""A part of the training rows that is held out, by the texts themselves."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict

from nlpkd.data.columns import TEACHER_LOGITS
from nlpkd.data.labels.single_label import tell_lacking
from nlpkd.data.labels.values import label_values
from nlpkd.data.rows import has_unlabelled, unlabelled_rows
from nlpkd.data.splits.hashes import text_hashes

logger = logging.getLogger(__name__)


def hold_out_validation(
    splits: DatasetDict, columns: Sequence[str], size: float | int, alone: bool = False
) -> DatasetDict:
    """Move a part of the training rows to a validation set, stratified by class where there are classes.

    Which texts are held out follows from the texts, their labels and the size alone: in any order of the rows, and by
    every command, they are the same. Equal texts stay together.

    Args:
        splits: without a validation set.
        columns: of the texts.
        size: a share of the rows, or their number; it is met as nearly as equal texts allow.
        alone: return the held-out rows alone, as "train": they are to be measured on, and nothing is trained.

    Returns:
        The splits, with a validation set. A warning names rare classes that a part has no row of.

    Raises:
        ValueError: if there is a validation set, the size leaves nothing, rows without labels would be held out, or
            all texts are equal.
    """
    train = splits["train"]
    if "validation" in splits:
        raise ValueError("There is a validation split and validation_split too: leave one of them out.")
    taught = TEACHER_LOGITS in train.column_names and unlabelled_rows(train).all()
    if has_unlabelled(train) and not taught:
        raise ValueError(
            "validation_split would hold out rows without labels, or rows that others were made from: make the "
            "validation set first, and pass it as validation."
        )
    rows, classed = len(train), isinstance(train.features["labels"], ClassLabel) and not taught
    wanted = round(rows * size) if isinstance(size, float) else size
    if not 0 < wanted < rows:
        raise ValueError(f"validation_split={size!r}: give a fraction between 0 and 1, or fewer rows than the {rows}.")
    labels = np.asarray(train["labels"][:]) if classed else np.zeros(rows, dtype=int)
    classes = Counter(labels.tolist())
    if classed and (min(classes.values()) < 2 or min(wanted, rows - wanted) < len(classes)):
        raise ValueError(
            f"validation_split={size!r} can't hold out a part with all {len(classes)} classes: {rows} train rows, "
            f"{min(classes.values())} of them of the rarest class. Give more rows, or a validation set."
        )
    # In another order than that in which `LearnedTexts` keeps some: these stand for held-out texts as for others.
    held_out = _held_out(text_hashes(train, columns).byteswap(), labels, wanted)
    if not held_out.any():
        raise ValueError(
            f"validation_split={size!r} can't hold out a part of so few different texts, since equal ones stay "
            "together: give more texts, or a validation set."
        )
    parts = {"train": train.select(np.flatnonzero(~held_out)), "validation": train.select(np.flatnonzero(held_out))}
    if alone:
        return DatasetDict(train=parts["validation"])
    for split, part in parts.items() if classed else ():
        if classes.keys() > set(part["labels"][:]):
            tell_lacking(part["labels"][:], part.features["labels"].names, split)
    return DatasetDict({**splits, **parts})


def _held_out(hashes: np.ndarray, labels: np.ndarray, wanted: int) -> np.ndarray:
    """Choose rows, `(rows,)` booleans: of each class the texts with the smallest hashes."""
    # Classes from the rarest to the commonest, whatever their ids. A text with several labels is of the rarest.
    counts, least = np.bincount(labels), np.full(labels.max() + 1, np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(least, labels, hashes)
    places = np.argsort(np.lexsort((least, counts)))[labels]
    order = np.lexsort((places, hashes))
    texts, first, sizes = np.unique(hashes[order], return_index=True, return_counts=True)
    places = places[order][first]
    # The rows of each class that are wanted: the largest remainders are rounded up.
    shares = np.bincount(places, sizes, minlength=len(counts)) * (wanted / len(hashes))
    quotas = np.floor(shares).astype(int)
    quotas[np.argsort(quotas - shares, kind="stable")[: wanted - quotas.sum()]] += 1
    chosen, missing = [], 0
    for place, quota in enumerate(quotas):
        missing += quota
        # A text is taken where that brings the rows nearer to their number; the last one of a class stays.
        for text in np.flatnonzero(places == place)[:-1]:
            if missing < 1:
                break
            if sizes[text] < 2 * missing:
                chosen.append(text)
                missing -= sizes[text]
    return np.isin(hashes, texts[chosen])


def tell_contradictions(train: Dataset, columns: Sequence[str]) -> None:
    """Warn of training texts that are there with different labels.

    Args:
        train: rows with the column "labels".
        columns: of the texts.
    """
    known = np.flatnonzero(~unlabelled_rows(train))
    labels = np.unique(label_values(train, "labels")[known], axis=0, return_inverse=True)[1].reshape(-1)
    hashes = text_hashes(train, columns)[known]
    order = np.lexsort((labels, hashes))
    hashes, labels = hashes[order], labels[order]
    differ = (hashes[1:] == hashes[:-1]) & (labels[1:] != labels[:-1])
    texts = np.unique(hashes[1:][differ])
    if len(texts):
        logger.warning(
            "%d texts of the train split are there with different labels, in %d rows: a model can't get all of them "
            "right. Correct them, or leave them out.",
            len(texts),
            np.isin(hashes, texts).sum(),
        )

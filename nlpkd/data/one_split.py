"""The one split of a source that is read where nobody trains: that to measure on, to label or to check."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, DatasetDict

from nlpkd.data.arguments import DataArguments
from nlpkd.data.columns import LABEL_NAMES, usual_form
from nlpkd.data.files.tables import MayRead
from nlpkd.data.labels.kind import is_missing, parse_list, whole_number
from nlpkd.data.sources import (
    MAY_READ,
    SPLIT_NAMES,
    Source,
    name_of,
    read_source,
    read_splits,
    without_training_words,
)

logger = logging.getLogger(__name__)


_HELD_OUT = re.compile(r"(test|validation|valid|val|dev|evaluation|eval)(?![a-z])")
"""How names begin of splits that are made to measure on, such as "validation_matched"."""


@dataclass(frozen=True)
class MeasuredRows:
    """The rows to measure on.

    Attributes:
        splits: the rows and, where there is another split to train on, "train", which settles what their labels mean;
            without one the rows themselves are "train".
        key: the rows' name in `splits`.
        split: their name for the record: "test", "validation" or "train" where they are called so, else their own.
        name: of the source, for the record.
    """

    splits: DatasetDict
    key: str
    split: str
    name: str

    @property
    def rows(self) -> Dataset:
        """The rows."""
        return self.splits[self.key]

    @property
    def source(self) -> Dataset | DatasetDict:
        """The rows alone, or with those that are trained on."""
        return self.splits if len(self.splits) > 1 else self.rows


def read_measured_rows(
    source: Source, wanted: Sequence[str], asked: DataArguments, labelled: bool = True
) -> MeasuredRows:
    """Read a source, and choose the split of it to measure on.

    Args:
        source: as for `read_splits`.
        wanted: names of splits, the first that is there is taken; "validation" is called "valid", "val" or "dev" too.
            Where "train" comes after others, it is taken only where it is all there is, and a single split that is
            made to measure on by its name, such as "validation_matched", before it. Of several names it is "train"
            where a part of it is to be held out.
        asked: configuration and revision of a Hub dataset, the label's column, and whether a part is held out.
        labelled: whether the rows need labels, so that a test split whose labels are hidden is passed over.

    Returns:
        The rows.

    Raises:
        ValueError: if none of these splits is there, or several could be meant; it says which there are.
        ConnectionError: the Hub can't be reached.
    """
    holds_out = asked.validation_split is not None
    if holds_out and not labelled:
        raise ValueError("validation_split holds out a part by its labels, which are not read here: leave it out")
    if holds_out and len(wanted) > 1:
        wanted = ("train",)
    found = read_source(source, asked.dataset_config, asked.dataset_revision, asked.may_read)
    splits = {"train": found} if isinstance(found, Dataset) else {str(split): rows for split, rows in found.items()}
    hidden = _hidden(splits, asked.label_column) if labelled and len(splits) > 1 else []
    chosen = _choose(sorted(set(splits).difference(hidden)), hidden, wanted, name_of(source))
    if hidden:
        logger.warning("Not measured on, since their labels are hidden (-1, null, or no column): %s.", hidden)
    role = next((role for role, names in SPLIT_NAMES.items() if usual_form(chosen) in names), None)
    trained = [split for split in splits if usual_form(split) in SPLIT_NAMES["train"] and role != "train"]
    key = (role or "validation") if trained else "train"
    kept = DatasetDict({"train": splits[min(trained)], key: splits[chosen]}) if trained else splits[chosen]
    with without_training_words(kept):
        return MeasuredRows(read_splits(kept)[0], key, "validation" if holds_out else role or chosen, name_of(source))


def read_one_split(
    source: Source, split: str | None = None, may_read: MayRead = MAY_READ, how: str = "give its rows alone"
) -> tuple[Dataset, str | None]:
    """Read the rows of one split, and say in the log which others there are.

    Args:
        source: as for `read_splits`.
        split: its name; if None "train", or the only one that there is.
        may_read: as for `read_splits`.
        how: another one is chosen, for messages.

    Returns:
        The rows, untouched, and the name of their split; None where the source has no splits.

    Raises:
        ValueError: if there is no such split, several could be meant, or the source can't be read.
        ConnectionError: the Hub can't be reached.
    """
    found = read_source(source, may_read=may_read)
    if isinstance(found, Dataset) and split is not None:
        raise ValueError(f"{name_of(source)} is one set of rows, which has no split {split!r}: leave split out")
    splits = {"train": found} if isinstance(found, Dataset) else {str(name): rows for name, rows in found.items()}
    named = _named(splits, split or "train") or (list(splits) if split is None else [])
    if len(named) != 1:
        missing = split is not None and not named
        problem = f"{name_of(source)} has no split {split!r}" if missing else "Can't tell which split to read"
        raise ValueError(f"{problem}: there are {sorted(splits)}. To choose one, {how}.")
    chosen = named[0]
    if others := sorted(splits.keys() - {chosen}):
        told = "Of %s the split %r alone is read, not %s. To choose another one, %s."
        logger.warning(told, name_of(source), chosen, ", ".join(map(repr, others)), how)
    with without_training_words(splits[chosen]):
        return read_splits(splits[chosen])[0]["train"], None if isinstance(found, Dataset) else chosen


def _named(splits: Iterable[str], wanted: str) -> list[str]:
    """Return the splits that a name stands for: the one that is called so, or else those of this role."""
    exact = [split for split in splits if split == wanted]
    return exact or [split for split in splits if usual_form(split) in SPLIT_NAMES.get(wanted, ())]


def _choose(usable: Sequence[str], hidden: Sequence[str], wanted: Sequence[str], name: str) -> str:
    """Return the split that is meant."""
    for place, each in enumerate(wanted):
        if each in SPLIT_NAMES["train"] and place > 0:
            continue
        if len(called := _named(usable, each)) == 1:
            return called[0]
    lacking = f" ({hidden} without labels)" if hidden else ""
    if not set(wanted[1:]).intersection(SPLIT_NAMES["train"]):
        raise ValueError(f"{name} has no split {' or '.join(map(repr, wanted))}, found {list(usable)}{lacking}")
    if len(usable) == 1 and not hidden:
        return usable[0]
    held_out = [split for split in usable if _HELD_OUT.match(usual_form(split))]
    if len(held_out) == 1:
        return held_out[0]
    raise ValueError(
        f"Can't tell which split of {name} to measure on: there are {list(usable)}{lacking}. Give the rows of "
        "one alone; to evaluate or verify, its name as split= will do."
    )


def without_hidden_test(splits: DatasetDict, label_column: str | Sequence[str] | None) -> DatasetDict:
    """Leave out a test split whose labels are all hidden, with a warning, whatever the task.

    Args:
        splits: under "train", "validation" and "test".
        label_column: the label's column, or one a label; usual names if None.

    Returns:
        The splits; "test" among them unless each of its labels is -1 or null, as GLUE has them.
    """
    labels = _label_columns(splits, label_column)
    if "test" not in splits or labels.isdisjoint(splits["test"].column_names) or not _lacks(splits["test"], labels):
        return splits
    logger.warning("The test split is not used: its labels are hidden (all of them are -1 or null).")
    return DatasetDict({split: rows for split, rows in splits.items() if split != "test"})


def _hidden(splits: Mapping[str, Dataset], label_column: str | Sequence[str] | None) -> list[str]:
    """Return the test splits that lack the labels which others have: no column of them, or all are -1 or null."""
    labels = _label_columns(splits, label_column)
    return [split for split, rows in splits.items() if usual_form(split).startswith("test") and _lacks(rows, labels)]


def _label_columns(splits: Mapping[str, Dataset], named: str | Sequence[str] | None) -> set[str]:
    """Return the columns of labels: those that are named, or all of usual names."""
    if named:
        return {named} if isinstance(named, str) else set(named)
    columns = {column for rows in splits.values() for column in rows.column_names}
    return {column for column in columns if usual_form(column) in LABEL_NAMES}


def _lacks(rows: Dataset, labels: set[str]) -> bool:
    there = sorted(labels.intersection(rows.column_names))
    return bool(labels) and all(_is_hidden(value) for column in there for value in rows.with_format(None)[column][:])


def _is_hidden(label: Any) -> bool:
    """Check whether a label is none: -1, null, or a list of these, however it is written."""
    listed = parse_list(label) if isinstance(label, str) else label
    if isinstance(listed, list) and listed:
        return all(map(_is_hidden, listed))
    return is_missing(label) or whole_number(label) == -1

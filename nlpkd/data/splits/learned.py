"""Measured texts that a model learnt from: counted, and told."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from nlpkd.data.columns import DOCUMENT
from nlpkd.data.splits.hashes import text_hashes
from nlpkd.data.windows import one_row_a_document
from nlpkd.utils.disk.files import explain_damage, write_json

logger = logging.getLogger(__name__)

LEARNED_NAME = "learned_texts.json"
"""The file beside a model's weights that tells which texts it learnt from.

It is never pushed: by the hashes a stranger could test whether a text was learnt from.
"""

_KEPT = 4_096
_DIGITS = 16


@dataclass(frozen=True)
class LearnedRows:
    """How many measured texts a model learnt from.

    Attributes:
        rows: how many.
        estimated: whether it is an estimate.
    """

    rows: int
    estimated: bool = False


@dataclass(frozen=True, eq=False)
class LearnedTexts:
    """The texts that a model learnt from, as the smallest hashes of them.

    A measured text whose hash is not above the largest that is kept is known to be one of them or not. Of up to 4,096
    texts all hashes are kept; of more, those measured texts that are known stand for all.

    Attributes:
        texts: how many different ones.
        smallest: hashes of 64 bits in ascending order, as `nlpkd.data.splits.hashes.text_hashes` makes them.
    """

    texts: int
    smallest: np.ndarray

    @classmethod
    def of(cls, train: Any, columns: Sequence[str]) -> LearnedTexts | None:
        """Take the training rows' texts; None of a stream, which is read as it is needed."""
        if not isinstance(train, Dataset):
            return None
        hashes = np.unique(text_hashes(train, columns))
        return cls(len(hashes), hashes[:_KEPT])

    @classmethod
    def beside(cls, folder: Path | None) -> LearnedTexts | None:
        """Read what is told beside a model.

        Args:
            folder: the model's; None of a model in memory.

        Returns:
            Its texts; None where nothing tells them.

        Raises:
            ValueError: if the file is damaged.
        """
        path = None if folder is None else folder / LEARNED_NAME
        if path is None or not path.is_file():
            return None
        with explain_damage(path, "delete it, and nobody is told of measured texts that were learnt from"):
            told = json.loads(path.read_text(encoding="utf-8"))
            smallest = np.frombuffer(bytes.fromhex(told["smallest"]), dtype=">u8").astype(np.uint64)
            return cls(int(told["texts"]), np.sort(smallest))

    def save(self, folder: Path) -> None:
        """Write them beside a model."""
        smallest = "".join(f"{each:0{_DIGITS}x}" for each in self.smallest.tolist())
        write_json(folder / LEARNED_NAME, {"texts": self.texts, "smallest": smallest})

    def count_among(self, measured: np.ndarray) -> LearnedRows | None:
        """Count the measured texts that are among them; None where none of these is known."""
        known = measured
        if self.texts > len(self.smallest):
            known = measured[measured <= self.smallest[-1]]
        if not len(known):
            return None
        share = np.isin(known, self.smallest).mean()
        return LearnedRows(round(share * len(measured)), len(known) < len(measured))


def remember_texts(texts: LearnedTexts | None, folder: Path) -> None:
    """Write which texts a model learnt from into its folder, in place of what is told there of an earlier model.

    Args:
        texts: None where nobody knows them.
        folder: the model's.
    """
    if texts is not None:
        texts.save(folder)
    else:
        (folder / LEARNED_NAME).unlink(missing_ok=True)


def count_learned(
    measured: Dataset, train: Any, columns: Sequence[str], split: str, learned: str = "training texts"
) -> int | None:
    """Count the texts to measure on that are training texts too, but for case, blanks and Unicode form; warn of them.

    Args:
        measured: the rows to measure on; of the windows of a text one counts.
        train: the training rows.
        columns: of the texts, one or two.
        split: what the measured rows are called in the warning.
        learned: what the texts of the training rows are called there.

    Returns:
        How many; None where the training rows are a stream, which is read once.
    """
    if not isinstance(train, Dataset):
        return None
    texts = _hashes_of_texts(measured, columns)
    count = int(np.isin(texts, text_hashes(train, columns)).sum())
    _tell(LearnedRows(count), len(texts), split, learned)
    return count


def count_remembered(
    measured: Dataset, columns: Sequence[str], split: str, models: Mapping[str, Path | None]
) -> dict[str, LearnedRows]:
    """Count the texts to measure on that models learnt from, as is told beside them; warn of them.

    Args:
        measured: the rows to measure on; of the windows of a text one counts.
        columns: of the texts, one or two.
        split: what the measured rows are called in the warnings.
        models: the models' folders by what they are called there; None of a model in memory.

    Returns:
        How many, by model; without those of which nothing is told.
    """
    remembered: dict[str, LearnedTexts] = {}
    folders: set[Path | None] = set()
    for name, folder in models.items():
        # Files of one model lie in one folder.
        texts = None if folder in folders else LearnedTexts.beside(folder)
        folders.add(folder)
        if texts is not None:
            remembered[name] = texts
    hashes = _hashes_of_texts(measured, columns) if remembered else np.empty(0)
    found = {}
    for name, texts in remembered.items():
        if (count := texts.count_among(hashes)) is not None:
            found[name] = count
            _tell(count, len(hashes), split, f"training texts of the {name}")
    return found


def learned_entries(student: LearnedRows | int | None, *teachers: LearnedRows) -> dict[str, Any]:
    """Return what a report says of measured texts that were learnt from.

    Args:
        student: of the student; a number that is counted, or None where nothing is known.
        *teachers: of those teachers of which something is known; the one that knows most counts.

    Returns:
        Entries of `nlpkd.evaluation.origin.DataRecord`.
    """
    student = LearnedRows(student) if isinstance(student, int) else student
    told = {"learned_rows": student, "teacher_learned_rows": max(teachers, key=lambda each: each.rows, default=None)}
    known = {name: each for name, each in told.items() if each is not None}
    estimates = [name for name, each in known.items() if each.estimated]
    return {name: each.rows for name, each in known.items()} | ({"learned_estimates": estimates} if estimates else {})


def count_all_learned(
    measured: Dataset,
    train: Any,
    columns: Sequence[str],
    split: str,
    teachers: Mapping[str, Path | None],
    corrected_by: Sequence[str] = (),
) -> dict[str, Any]:
    """Count the texts to measure on that student or teachers learnt from; warn of them.

    Args:
        measured: the rows to measure on; of the windows of a text one counts.
        train: the student's training rows.
        columns: of the texts, one or two.
        split: what the measured rows are called in the warnings.
        teachers: the teachers' folders by what they are called there; None of a model in memory.
        corrected_by: the single texts with gold labels by which a teacher that labels texts was corrected.

    Returns:
        Entries of `nlpkd.evaluation.origin.DataRecord`.
    """
    own = count_learned(measured, train, columns, split)
    theirs = [*count_remembered(measured, columns, split, teachers).values()]
    if corrected_by:
        gold, told = {columns[0]: list(corrected_by)}, "rows of gold, which correct the teacher,"
        count = count_learned(measured, Dataset.from_dict(gold), columns, split, told)
        theirs.append(LearnedRows(count or 0))
    return learned_entries(own, *theirs)


def _hashes_of_texts(measured: Dataset, columns: Sequence[str]) -> np.ndarray:
    hashes = text_hashes(measured, columns)
    return one_row_a_document(hashes, measured[DOCUMENT][:]) if DOCUMENT in measured.column_names else hashes


def _tell(learned: LearnedRows, texts: int, split: str, what: str) -> None:
    if learned.rows:
        # Rows alone are called so too where they are measured.
        measured = "measured texts" if split == "train" else f"texts of the {split} split"
        logger.warning(
            "%s%d of the %d %s (%.0f %%) are %s too: figures say more of them than of new texts. "
            "Measure on texts that nothing learnt from.",
            "About " if learned.estimated else "",
            learned.rows,
            texts,
            measured,
            100 * learned.rows / texts,
            what,
        )

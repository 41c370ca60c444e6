"""The rows of a distillation whose teacher labels texts: read and checked first, and asked about last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import PartialState
from datasets import DatasetDict

from nlpkd.data.arguments import DataArguments
from nlpkd.data.sources import Source, read_splits, refuse_as_output
from nlpkd.labelling.answer import Answer
from nlpkd.labelling.answers import AnswerFile
from nlpkd.labelling.calibration import GoldRows
from nlpkd.labelling.costs import SpendingLimits
from nlpkd.labelling.rows import (
    answers_beside,
    reading_of,
    save_answered,
    texts_to_label,
    with_answers,
    with_equal_probabilities,
)
from nlpkd.teachers.base import LabelingTeacher

LABELS_NAME = "teacher_labels.parquet"
"""What a distillation calls its labelled training rows."""


@dataclass(frozen=True)
class RowsToLabel:
    """The splits that a teacher is to label: those to train on, and those that it is measured on.

    Attributes:
        teacher: the teacher.
        splits: the rows.
        texts: theirs, one list a split.
        read_as: how they are read once they are labelled: with the teacher's answers as soft labels.
        output: the parquet file of the training rows; answers of an earlier run with the same file are not asked
            again.
        limits: the limits.
        gold: a few rows with gold labels, by which the teacher is corrected.
    """

    teacher: LabelingTeacher
    splits: DatasetDict
    texts: Mapping[str, list[str]]
    read_as: DataArguments
    output: Path
    limits: SpendingLimits
    gold: GoldRows | None

    @classmethod
    def of(
        cls,
        teacher: LabelingTeacher,
        train: Source,
        validation: Source | None,
        test: Source | None,
        output: Path,
        asked: DataArguments,
        limits: SpendingLimits | None = None,
        gold: Source | None = None,
    ) -> RowsToLabel:
        """Read the rows of a distillation; nothing is asked.

        Args:
            teacher: the teacher.
            train: the training rows, which need no label column.
            validation: the validation rows, with gold labels or without.
            test: the test rows, likewise.
            output: the parquet file of the training rows that is to be written.
            asked: how rows are read.
            limits: the limits.
            gold: a few rows with gold labels, by which the teacher is to be corrected.

        Raises:
            ValueError: if soft labels, streaming or pairs are asked for too, or the task or the classes' names are
                given, which the teacher says; if the rows can't be labelled, or the output is one of their files.
        """
        if asked.soft_label_column is not None or asked.streaming or asked.text_pair_column is not None:
            raise ValueError(
                "a teacher that labels texts reads single texts that fit into memory, and gives the soft labels "
                "itself: leave soft_label_column, streaming and text_pair_column out"
            )
        if asked.problem_type is not None or asked.label_names:
            raise ValueError(
                f"a teacher that labels texts says the task ({teacher.problem_type}) and the classes "
                f"({', '.join(teacher.classes[:20])}) itself: leave problem_type and label_names out"
            )
        refuse_as_output(output, train=train, validation=validation, test=test)
        hub = asked.dataset_config, asked.dataset_revision
        splits, _ = read_splits(train, validation, test, *hub, asked.may_read)
        texts = {str(split): texts_to_label(rows, str(split), asked.text_column) for split, rows in splits.items()}
        read_as = replace(reading_of(teacher, asked), dataset_config=None, dataset_revision=None)
        few = None
        if gold is not None:
            few = GoldRows.beside(output, teacher, gold, asked.text_column, asked.label_column)
        return cls(teacher, splits, texts, read_as, output, limits or SpendingLimits(), few)

    def unanswered(self) -> DatasetDict:
        """Return the splits as they will be, but for the answers: in their place all classes are equally likely."""
        filled = {split: with_equal_probabilities(rows, self.teacher) for split, rows in self.splits.items()}
        return DatasetDict(filled)

    def answered(self) -> tuple[DatasetDict, LabelingTeacher]:
        """Ask the teacher, and save the training rows.

        Returns:
            The labelled splits, and the teacher; the corrected one where there are gold labels.
        """
        answers, state = answers_beside(self.output, self.teacher), PartialState()
        teacher = self.teacher if self.gold is None else self.gold.fit(self.teacher, answers, self.limits)
        # One process asks, the others find all answers there.
        with state.main_process_first():
            found = {split: self._asked(answers, split) for split in self.texts}
        labelled = DatasetDict(
            {
                split: with_answers(rows, self.texts[str(split)], found[str(split)], teacher, self.limits.prices)
                for split, rows in self.splits.items()
            }
        )
        if state.is_main_process:
            save_answered(labelled["train"], teacher, self.output)
        return labelled, teacher

    def _asked(self, answers: AnswerFile, split: str) -> list[Answer]:
        names = [f"row {row} of the {split} split" for row in range(len(self.texts[split]))]
        return answers.ask(self.texts[split], self.limits, names, once_more=PartialState().is_main_process)

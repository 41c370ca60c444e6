"""What is fitted on rows that are not measured: temperatures, or thresholds where there are several labels."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import datasets
import numpy as np

from nlpkd.data.label_names import align_rows
from nlpkd.data.labels.classes import Classes
from nlpkd.data.rows import count_texts, unlabelled_rows
from nlpkd.data.splits.fitted import apart_from
from nlpkd.evaluation.calibration import best_thresholds, temperature_scaling
from nlpkd.evaluation.prediction import CandidateModels, gold_labels
from nlpkd.evaluation.records import TemperatureScaling
from nlpkd.evaluation.scoring import Scoring
from nlpkd.tasks import MULTI_LABEL, REGRESSION

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fitted:
    """What was fitted, by candidate.

    Attributes:
        thresholds: of several labels, one a label.
        scaling: temperatures of a task with one class a row.
        protocol: what was fitted on which rows; None where nothing was.
    """

    thresholds: dict[str, list[float]] = field(default_factory=dict)
    scaling: dict[str, TemperatureScaling] = field(default_factory=dict)
    protocol: str | None = None


@dataclass(frozen=True)
class HeldOut:
    """Labelled rows to fit on, none of which is measured.

    Attributes:
        scoring: of the task.
        rows: tokenised.
        labels: their gold labels, one entry a text.
        left_out: how many texts were left out, since they are measured.
    """

    scoring: Scoring
    rows: datasets.Dataset
    labels: np.ndarray
    left_out: int

    @classmethod
    def of(
        cls, given: datasets.Dataset | None, measured: datasets.Dataset, scoring: Scoring, classes: Classes | None
    ) -> HeldOut | None:
        """Leave out what is measured, and refuse what nothing can be fitted on, before any model is run.

        Args:
            given: the rows, if any.
            measured: the rows that are measured, with label ids as the student has them.
            scoring: of the task.
            classes: the student's; None where nothing says them.

        Returns:
            The rows; None without any, or, with a warning, where there is nothing to fit.

        Raises:
            ValueError: if all rows are measured ones, or labels are not the task's.
        """
        if given is None:
            return None
        useless = ""
        if scoring.problem_type == REGRESSION:
            useless = "a regression has no temperature and no thresholds"
        elif unlabelled_rows(measured).all():
            useless = "no measured row has a gold label"
        if useless:
            logger.warning("Nothing is fitted on the held-out rows: %s.", useless)
            return None
        given = align_rows(given, classes, "held-out")
        gold_labels(given)
        rows, texts = apart_from(given, measured), count_texts(given)
        left_out = texts - count_texts(rows)
        if left_out == texts:
            raise ValueError(
                f"all {texts:,} held-out rows are measured ones: what is fitted on the rows that are measured says "
                "nothing of new texts. Give other rows (held_out, threshold_dataset)"
            )
        if left_out:
            logger.warning("%d of %d held-out rows are measured ones: nothing is fitted on these.", left_out, texts)
        found = cls(scoring, rows, gold_labels(rows), left_out)
        if classes is not None:
            found._check(len(classes))
        return found

    def _check(self, num_labels: int) -> None:
        """Refuse labels that are not the task's."""
        try:
            self.scoring.check(self.labels, num_labels)
        except ValueError as error:
            raise ValueError(f"nothing can be fitted on the held-out rows: {error}") from error

    def fit(
        self,
        running: CandidateModels,
        batch_size: int,
        measured: Mapping[str, np.ndarray],
        measured_labels: np.ndarray,
        student_files: Collection[str] = (),
    ) -> Fitted:
        """Run every model on the rows, and fit each one's temperature, or choose its thresholds.

        Args:
            running: the models.
            batch_size: rows a forward pass.
            measured: each one's logits of the measured rows, `(rows, labels)`.
            measured_labels: their gold labels.
            student_files: names of the candidates that decide by the student's thresholds.

        Returns:
            What was fitted.
        """
        self._check(measured["student"].shape[1])
        found = running.predict(self.rows, batch_size)
        apart = f"; {self.left_out:,} more are measured ones, and were left out" if self.left_out else ""
        where = f"on {len(self.labels):,} held-out rows, none of which is measured{apart}"
        if self.scoring.problem_type == MULTI_LABEL:
            found |= dict.fromkeys(student_files, found["student"])
            thresholds = {name: best_thresholds(each, self.labels) for name, each in found.items()}
            return Fitted(thresholds=thresholds, protocol=f"thresholds: chosen for each label by its F1 {where}")
        scaling = {
            name: temperature_scaling(each, self.labels, measured[name], measured_labels)
            for name, each in found.items()
        }
        return Fitted(scaling=scaling, protocol=f"temperatures: fitted {where}")

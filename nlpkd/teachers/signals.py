"""Where a run's teacher outputs come from: columns of the data where they suffice, else a model, run live or once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from nlpkd.config import DistillationConfig
from nlpkd.data.columns import HIDDEN_STATES, TEACHER_LOGITS
from nlpkd.data.labels.classes import Classes, thresholds_of
from nlpkd.data.rows import sample_of_classes, visible_columns
from nlpkd.data.tokenization import TeacherTokenizers, original_ids, per_teacher
from nlpkd.models.attention import Wanted
from nlpkd.models.capture import CapturedOutput
from nlpkd.models.ensemble import TeacherEnsemble
from nlpkd.models.padding import refuse_unknown_padding
from nlpkd.teachers.cache import cache_teacher_outputs
from nlpkd.teachers.checks import check_kept_logits, check_teacher_on_gold_labels, checked_rows
from nlpkd.teachers.compatibility import (
    align_copied_head,
    fit_ensemble,
    label_order,
    refuse_unknown_tokens,
    refuse_unpadded,
    teacher_prefix,
    too_long,
)
from nlpkd.teachers.teacher import CachedTeacher, LiveTeacher, Teacher

logger = logging.getLogger(__name__)


class TeacherSignals:
    """A run's teacher, fitted to its student.

    Args:
        teacher: a model, an ensemble, or None where the data bring a teacher's outputs along.
        student: the model to train.
        wanted: kinds and layers that the objectives need of the teacher.
        match_tokens: names of the objectives that match token with token.
        tokenizer: the student's.
        teacher_tokenizer: the teacher's where it is another one; of an ensemble a list.
        columns: of the training data, empty if unknown.
        classes: the student's, in the order of its logits; None where nothing names them.
        device: where the teacher runs.
        autocast: makes the context that it runs in.

    Raises:
        ValueError: if student, teacher, tokenizers and columns do not fit together.
    """

    def __init__(
        self,
        teacher: nn.Module | None,
        student: nn.Module,
        wanted: Wanted,
        match_tokens: Sequence[str],
        tokenizer: PreTrainedTokenizerBase | None,
        teacher_tokenizer: TeacherTokenizers,
        columns: Sequence[str],
        classes: Classes | None,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager],
    ):
        self.wanted = wanted
        self.device = device
        self.cached = CachedTeacher()
        self.live: LiveTeacher | None = None
        self._order: list[int] | None = None
        self._tokenizer: Any = tokenizer
        self._student, self._teacher_ids = student, ""
        refuse_unknown_padding(student, tokenizer, "student")
        if teacher is None:
            return
        prefix, token_ids = "", None
        if isinstance(teacher, TeacherEnsemble):
            own_tokenizers = per_teacher(teacher_tokenizer, len(teacher))
            fit_ensemble(teacher, student, tokenizer, own_tokenizers, columns, classes)
        else:
            own: Any = teacher_tokenizer
            self._order = label_order(teacher, classes)
            # A trimmed vocabulary spells a word that it lacks out: the student's tokens by the teacher's ids line up.
            token_ids = original_ids(tokenizer, own) if match_tokens else None
            if token_ids is None:
                prefix = teacher_prefix(student, teacher, tokenizer, own, columns, match_tokens)
            self._tokenizer = own if prefix else tokenizer
            refuse_unknown_padding(teacher, self._tokenizer, "teacher")
            self._teacher_ids = "" if token_ids is not None else f"{prefix}input_ids"
        self.live = LiveTeacher(
            teacher, wanted, device, order=self._order, prefix=prefix, token_ids=token_ids, autocast=autocast
        )
        self.cached = CachedTeacher(self.live.capture)

    def release(self) -> None:
        """Drop the copy that is run in a live teacher's place; the next batch makes it anew."""
        if self.live is not None:
            self.live.release()

    def source(self, columns: Container[str]) -> Teacher | None:
        """Choose where the outputs come from for data with these columns."""
        return self.cached if self.cached.gives(columns, self.wanted) else self.live

    def describe(self, columns: Container[str]) -> str:
        """Describe where the outputs come from for data with these columns."""
        kept = self.source(columns) is self.cached
        return "the teacher's outputs kept with the rows" if kept else "the teacher run on every batch"

    def outputs(self, batch: Mapping[str, Any]) -> CapturedOutput | None:
        """Return the teacher's outputs for a collated batch; None without a teacher."""
        source = self.source(batch)
        return None if source is None else source.outputs(batch)

    @property
    def columns(self) -> set[str]:
        """The columns of the data that the teacher or the objectives' targets are read from."""
        columns = {TEACHER_LOGITS, *(HIDDEN_STATES.format(layer) for layer in self.wanted.get("hidden_states", ()))}
        if self.live is not None:
            columns |= {self.live.capture.prefix + name for name in self.live.capture.arguments}
        return columns

    @property
    def order(self) -> list[int] | None:
        """The index that a live teacher gives each of the student's labels; None where it is the student's own."""
        order = None if self.live is None else self.live.order
        return None if order is None else order.tolist()

    @property
    def thresholds(self) -> list[float] | None:
        """The thresholds of a live multi-label teacher, in the student's label order; None where it has none."""
        if self.live is None:
            return None
        if isinstance(self.live.model, TeacherEnsemble):
            return self.live.model.thresholds()
        return thresholds_of(getattr(self.live.model, "config", None), self.order)

    def refuse_unknown_tokens(self, rows: Any, split: str) -> None:
        """Refuse rows with token ids that student or teacher has no embedding for."""
        refuse_unknown_tokens(self._student, rows, "input_ids", "student", split)
        if self.live is not None:
            refuse_unknown_tokens(self.live.model, rows, self._teacher_ids, "teacher", split)

    def too_long(self, rows: Any, split: str) -> str:
        """Say that rows have more tokens than student or teacher has positions; see `compatibility.too_long`."""
        told = too_long(self._student, rows, "input_ids", "student", split)
        if self.live is not None and not told:
            told = too_long(self.live.model, rows, self._teacher_ids, "teacher", split)
        return told

    def check(
        self,
        rows: Any,
        collate: Callable[[list[Any]], Mapping[str, Any]],
        batch_size: int,
        student_config: Any,
        check: str,
        seed: int,
    ) -> bool:
        """Refuse token ids that a model does not have, and hold the teacher against a sample of gold labels.

        Where the rows bring a teacher's logits along, the teacher that is given too must be the one that gave them.

        A student's head that is a copy of the teacher's follows the order that is found.

        See `nlpkd.teachers.compatibility.refuse_unknown_tokens` and
        `nlpkd.teachers.checks.check_teacher_on_gold_labels`.

        Returns:
            Whether the student's head is such a copy.
        """
        if rows is None:
            return False
        rows = sample_of_classes(rows, checked_rows(getattr(student_config, "num_labels", 1)))
        refuse_unpadded(rows, collate)
        self.refuse_unknown_tokens(rows, "training")
        source = self.source(rows.column_names)
        if source is not None:
            try:
                check_teacher_on_gold_labels(
                    source, rows, collate, batch_size, self.device, student_config, check, seed
                )
                if source is self.cached and self.live is not None and check != "off":
                    check_kept_logits(source, self.live, rows, collate, batch_size, self.device, check)
            except (RuntimeError, IndexError) as error:
                told = self.too_long(rows, "training")
                raise (ValueError(told) if told else error) from error
        return self.live is not None and align_copied_head(self._student, self.live.model, self.order)

    def run_once(self, rows: Dataset, args: DistillationConfig) -> Dataset:
        """Run the live teacher on all rows now, for objectives that read its logits alone.

        Several teachers, any with a tokenizer of its own, are run on every batch.

        Args:
            rows: the training rows.
            args: of the training: its precision, and where outputs are kept.

        Returns:
            The rows with the teacher's outputs, or as they were where these can't be kept.
        """
        if self.live is None:
            raise ValueError("there is no teacher to run: pass teacher_model")
        # What a format hides, a live teacher would not read.
        shown = rows.select_columns(visible_columns(rows))
        folder, model = args.teacher_cache, self.live.model
        self.release()
        try:
            return cache_teacher_outputs(
                model, shown, self._tokenizer, cache_dir=folder, order=self.order, bf16=bool(args.bf16)
            )
        except ValueError as error:
            logger.warning("The teacher is run on every batch, since its outputs can't be kept: %s", error)
            return rows

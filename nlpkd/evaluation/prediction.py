"""The logits of several models on the same rows, in one label order, and what each costs, with its own tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import tqdm

from nlpkd.data.collator import DistillationCollator
from nlpkd.data.columns import DOCUMENT, TEACHER_LOGITS
from nlpkd.data.labels.classes import Classes, thresholds_of
from nlpkd.data.labels.values import as_numbers
from nlpkd.data.rows import list_lengths
from nlpkd.data.tokenization import TEACHER_PREFIX, TeacherTokenizers, column_prefixes, per_teacher, refuse_no_tokens
from nlpkd.data.windows import average_windows, one_row_a_document
from nlpkd.evaluation.benchmark import (
    count_flops,
    latency_protocol,
    measure_latency,
    measure_text_to_label,
    refuse_more_tokens,
)
from nlpkd.evaluation.origin import TaskRecord
from nlpkd.evaluation.records import Latency
from nlpkd.evaluation.report_text import one_line
from nlpkd.models.capture import logits_of
from nlpkd.models.ensemble import TeacherEnsemble, as_ensemble
from nlpkd.models.inference import evaluating, inference_copy, placement
from nlpkd.models.onnx_classifier import MODEL_INPUTS
from nlpkd.models.padding import reads_padding, refuse_unknown_padding
from nlpkd.models.structure import forward_arguments
from nlpkd.tasks import SINGLE_LABEL
from nlpkd.teachers.compatibility import refuse_unknown_tokens

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class CandidateModels:
    """Models that are measured side by side.

    Attributes:
        models: the candidates by name, "student" among them; several teachers are one `TeacherEnsemble`.
        alone: what is run: the same, but each model of an ensemble by itself.
        tokenizers: of each of `alone`.
        prefixes: of each of `alone` what the names of its columns start with.
        orders: of each of `alone` which of its logit columns make the student's label order, None for all in order.
    """

    models: dict[str, nn.Module]
    alone: dict[str, nn.Module]
    tokenizers: dict[str, PreTrainedTokenizerBase]
    prefixes: dict[str, str]
    orders: dict[str, list[int] | None]

    @classmethod
    def of(
        cls,
        models: Mapping[str, nn.Module],
        tokenizer: PreTrainedTokenizerBase,
        columns: Sequence[str],
        *,
        classes: Classes | None = None,
        rows_classes: Classes | None = None,
        teacher_tokenizer: TeacherTokenizers = None,
        candidate_tokenizers: Mapping[str, PreTrainedTokenizerBase] | None = None,
        teacher_order: Sequence[int] | None = None,
    ) -> CandidateModels:
        """Work out what each model reads and how its labels are ordered; see `nlpkd.evaluate_student`.

        `classes` are the student's, in whose order all logits are put; `rows_classes` are the rows' own.
        """
        teacher = models.get("teacher")
        teachers = members_by_name(teacher)
        alone = teachers | {name: model for name, model in models.items() if name != "teacher"}
        own = per_teacher(teacher_tokenizer, len(teachers)) if teachers else []
        others = dict(candidate_tokenizers or {})
        prefixes = dict(zip([*teachers, *others], column_prefixes(tokenizer, [*own, *others.values()]), strict=True))
        separate = "teacher_input_ids" in columns
        if separate and teachers and not any(own) and not others:
            raise ValueError(
                "the dataset has teacher_input_ids, which the teacher's tokenizer pads: give teacher_tokenizer"
            )
        if "teacher" in teachers:
            # The columns decide: a single teacher's tokenizer may read texts as the student's does.
            prefixes["teacher"] = TEACHER_PREFIX if separate and any(own) else ""
        tokenizers = dict.fromkeys(alone, tokenizer) | others
        tokenizers |= {name: each or tokenizer for name, each in zip(teachers, own, strict=True)}
        given = _given_orders(teacher, teacher_order)
        orders = {
            name: _column_order(name, model, classes, given.get(name), rows_classes) for name, model in alone.items()
        }
        return cls(dict(models), alone, tokenizers, prefixes, orders)

    def predict(self, rows: datasets.Dataset, batch_size: int) -> dict[str, np.ndarray]:
        """Run every model.

        Args:
            rows: tokenised rows, or windows of texts, whose logits are averaged.
            batch_size: rows a forward pass.

        Returns:
            For each candidate float32 logits `(texts, labels)` in the student's label order.

        Raises:
            ValueError: when the widths differ or a logit is not finite.
        """
        found: dict[str, np.ndarray] = {}
        for name in sorted(self.alone, key="student".__ne__):
            reading: dict[str, Any] = {"batch_size": batch_size, "prefix": self.prefixes.get(name, "")}
            values = predict_logits(self.alone[name], rows, self.tokenizers[name], name=name, **reading)
            if DOCUMENT in rows.column_names:
                values = average_windows(values, rows[DOCUMENT][:])
            _check_logits(name, values, found.get("student", values).shape[1])
            order = self.orders[name]
            found[name] = values if order is None else values[:, order]
        teacher = self.models.get("teacher")
        if teacher is not None:
            ensemble = as_ensemble(teacher)
            own = [torch.from_numpy(found.pop(name)).to(ensemble.weights.device) for name in ensemble.names]
            found["teacher"] = ensemble.mean(own).cpu().numpy()
        return found

    def parts(self, name: str) -> dict[str, nn.Module]:
        """Return the models that a candidate consists of, by their names in `alone`."""
        return members_by_name(self.models[name]) if name == "teacher" else {name: self.models[name]}

    def thresholds(self, name: str) -> list[float] | None:
        """Return a candidate's own thresholds of several labels a row, in the student's label order; None without."""
        model = self.models.get(name)
        if isinstance(model, TeacherEnsemble):
            return model.thresholds([self.orders[each] for each in model.names])
        return thresholds_of(getattr(model, "config", None), self.orders.get(name))


def members_by_name(teacher: nn.Module | None) -> dict[str, nn.Module]:
    """Name the models that a teacher consists of.

    Args:
        teacher: a model, an ensemble, or None.

    Returns:
        Each model by its name in messages and measurements.
    """
    if teacher is None:
        return {}
    ensemble = as_ensemble(teacher)
    return dict(zip(ensemble.names, ensemble.members, strict=True))


def predict_logits(
    model: nn.Module,
    dataset: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int = 64,
    prefix: str = "",
    name: str = "model",
) -> np.ndarray:
    """Run a classifier over tokenised rows, in eval mode, on its own device.

    Args:
        model: a `PreTrainedModel`, or a module that returns logits, first of a tuple or by that name too.
        dataset: tokenised rows; of their columns the model is given those its `forward` names.
        tokenizer: pads the rows.
        batch_size: rows a forward pass, of similar lengths; of equal ones where a model reads the padding beside a
            text (`nlpkd.models.padding.reads_padding`), so that each row is read as it is alone.
        prefix: what the names of the columns to read start with, `"teacher_"` for a teacher's own.
        name: of the model, for errors.

    Returns:
        float32 logits `(rows, labels)` in the order of the rows.

    Raises:
        ValueError: when there is no row, no `input_ids` column that the model takes, or an id in it that the model
            has no embedding for, or when the model would take padding for text.
    """
    if not len(dataset):
        raise ValueError("there are no rows to predict: give a dataset with at least one")
    accepted = set(MODEL_INPUTS) & forward_arguments(model)
    columns = {
        prefix + name: name for name in MODEL_INPUTS if name in accepted and prefix + name in dataset.column_names
    }
    if "input_ids" not in columns.values():
        raise ValueError(
            f"the model's forward must take input_ids, read from the column {prefix}input_ids: found arguments "
            f"{sorted(accepted)} and columns {dataset.column_names}; tokenise the dataset first"
        )
    refuse_unknown_padding(model, tokenizer, name, min(batch_size, len(dataset)))
    refuse_unknown_tokens(model, dataset, prefix + "input_ids", name, "measured")
    rows = dataset.with_format(None).select_columns(list(columns)).rename_columns(columns)
    lengths = list_lengths(rows, "input_ids")
    refuse_no_tokens(lengths.tolist(), "the measured rows")
    batches = _batches(lengths, batch_size, reads_padding(model))
    loader = DataLoader(rows, batch_sampler=batches, collate_fn=DistillationCollator(tokenizer))  # type: ignore[arg-type]
    device, _ = placement(model)
    logits = np.empty((0, 0), dtype=np.float32)
    with evaluating(model):
        running = inference_copy(model, device.type, first_token=True)
        for number, batch in enumerate(tqdm(loader, desc="Predicting", leave=False, disable=None)):
            inputs = {name: tensor.to(device) for name, tensor in batch.items() if name in accepted}
            answers = logits_of(running(**inputs)).float().cpu().numpy()
            if number == 0:
                # Of many rows and classes there is room for them once.
                logits = np.empty((len(rows), *answers.shape[1:]), dtype=np.float32)
            logits[batches[number]] = answers
    return logits


def _batches(lengths: np.ndarray, batch_size: int, equal: bool) -> list[list[int]]:
    """Cut rows into batches, the longest first; `equal`: of rows of one length each."""
    order = np.argsort(-lengths, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1) if equal else [order]
    return [group[at : at + batch_size].tolist() for group in groups for at in range(0, len(group), batch_size)]


def refuse_untimed(running: CandidateModels, tokens: int | Sequence[int], runs: int) -> None:
    """Refuse to time any of the models on more tokens than it takes; `runs` is 0 where nothing is timed."""
    if runs:
        refuse_more_tokens(running.alone, [tokens] if isinstance(tokens, int) else list(tokens))


def latency_of_candidates(
    running: CandidateModels, batches: Sequence[int], tokens: int | Sequence[int], runs: int, seed: int
) -> tuple[dict[str, list[Latency]], str]:
    """Time every model, an ensemble's one after another; return latencies by candidate, and how they were taken."""
    protocol = latency_protocol(running.alone, tokens, runs)
    if not runs:
        return {}, protocol
    lengths = [tokens] if isinstance(tokens, int) else list(tokens)
    timing: dict[str, Any] = {"batches": batches, "tokens": lengths, "runs": runs, "seed": seed}
    measured = _if_it_can_be("latency", partial(measure_latency, running.alone, running.tokenizers, **timing))
    if measured is None:
        return {}, latency_protocol(running.alone, tokens, 0)
    teacher = running.models.get("teacher")
    if isinstance(teacher, TeacherEnsemble):
        measured["teacher"] = _one_after_another([measured.pop(name) for name in members_by_name(teacher)])
        protocol += f"; the teacher's times are sums over its {len(teacher)} models"
    return measured, protocol


def text_to_label_of_candidates(
    running: CandidateModels, rows: datasets.Dataset, columns: Sequence[str], runs: int
) -> dict[str, float]:
    """Time every model from text to label on some of the measured rows, an ensemble's one after another."""
    # Of windows, one text's label takes several passes.
    if not (runs and columns) or DOCUMENT in rows.column_names:
        return {}
    chosen = rows.with_format(None).select(np.linspace(0, len(rows) - 1, num=min(runs, len(rows)), dtype=int))
    texts = list(zip(*(chosen[column][:] for column in columns), strict=True))
    max_tokens = {name: int(token_lengths(rows, running.prefixes.get(name, "")).max()) for name in running.alone}
    timing: dict[str, Any] = {"max_tokens": max_tokens, "runs": runs}
    times = _if_it_can_be(
        "time from text to label",
        partial(measure_text_to_label, running.alone, running.tokenizers, texts, **timing),
    )
    if times is None:
        return {}
    if "teacher" in running.models:
        times["teacher"] = sum(times.pop(name) for name in members_by_name(running.models["teacher"]))
    return times


def _one_after_another(measured: Sequence[Sequence[Latency]]) -> list[Latency]:
    """Add up what models take, `(models, batch sizes and lengths)`."""
    return [
        replace(
            each[0],
            p50_ms=sum(one.p50_ms for one in each),
            p95_ms=sum(one.p95_ms for one in each),
            p99_ms=sum(one.p99_ms or 0.0 for one in each),
        )
        for each in zip(*measured, strict=True)
    ]


def _if_it_can_be(figure: str, measure: Callable[[], T]) -> T | None:
    """Measure what a report can do without; where that fails, warn, and return None."""
    try:
        return measure()
    except Exception as error:
        # What runs is the models' own code, which may raise anything.
        logger.warning("The %s was not measured: %s: %s", figure, type(error).__name__, one_line(error))
        return None


def flops_of_candidate(running: CandidateModels, name: str, tokens: int) -> int | None:
    """Count a candidate's operations, an ensemble's as a sum; None where one of its models can't be counted."""
    counts = [
        _if_it_can_be(
            f"number of operations of the {own}",
            partial(count_flops, model, running.tokenizers[own], tokens=tokens),
        )
        for own, model in running.parts(name).items()
    ]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def token_lengths(dataset: datasets.Dataset, prefix: str = "") -> np.ndarray:
    """Return the tokens of each text as the student reads it, `(texts,)`; of windows their sum.

    `prefix` is of the columns that another model reads.
    """
    lengths = list_lengths(dataset, f"{prefix}input_ids")
    if DOCUMENT not in dataset.column_names:
        return lengths
    _, places = np.unique(np.asarray(dataset[DOCUMENT][:]), return_inverse=True)
    return np.bincount(places, weights=lengths).astype(np.int64)


def teacher_answers(dataset: datasets.Dataset) -> dict[str, np.ndarray]:
    """Read the logits that the rows have of an absent teacher, one entry a text."""
    if TEACHER_LOGITS not in dataset.column_names:
        return {}
    values = pc.list_flatten(dataset.select_columns(TEACHER_LOGITS).with_format("arrow")[:][TEACHER_LOGITS])
    logits = values.to_numpy().reshape(len(dataset), -1).astype(np.float32)
    return {
        "teacher": logits if DOCUMENT not in dataset.column_names else one_row_a_document(logits, dataset[DOCUMENT][:])
    }


def gold_labels(dataset: datasets.Dataset) -> np.ndarray:
    """Read the gold labels, one entry a row."""
    if not len(dataset):
        raise ValueError("there are no rows to evaluate: give a dataset with at least one")
    if "labels" not in dataset.column_names:
        raise ValueError(f'evaluation needs a column "labels", found {dataset.column_names}: rename the label column')
    labels = as_numbers(dataset.with_format(None)["labels"][:])
    return labels if DOCUMENT not in dataset.column_names else one_row_a_document(labels, dataset[DOCUMENT][:])


def warn_of_one_class(labels: np.ndarray, names: Sequence[str], problem_type: str | None) -> None:
    """Warn of gold labels, one entry a row, that are all of one class, in the words of a report."""
    if problem_type == SINGLE_LABEL and len(names) > 1 and len(np.unique(labels)) == 1:
        logger.warning("%s", TaskRecord(labels=list(names), rows=len(labels), majority_share=1.0).one_class_note())


def _given_orders(teacher: nn.Module | None, order: Sequence[int] | None) -> dict[str, list[int]]:
    """Return the label orders that are known without looking at names, by the model's name."""
    if teacher is None:
        return {}
    ensemble = as_ensemble(teacher)
    if order is None:
        return {name: each for name, each in zip(ensemble.names, ensemble.orders, strict=True) if each is not None}
    if len(ensemble) > 1:
        raise ValueError("teacher_order is of one teacher: set those of an ensemble by TeacherEnsemble.reorder")
    if sorted(order) != list(range(len(order))):
        raise ValueError(f"teacher_order must hold each index of the teacher's labels once, found {list(order)}")
    return {"teacher": list(order)}


def _check_logits(name: str, logits: np.ndarray, expected: int) -> None:
    """Refuse logits `(rows, labels)` of another width than the student's or not finite."""
    if logits.shape[1] != expected:
        raise ValueError(
            f"the {name} gives {logits.shape[1]} logits a row, the student {expected}: they don't compare"
        )
    if not np.isfinite(logits).all():
        row = int(np.flatnonzero(~np.isfinite(logits).all(axis=1))[0])
        raise ValueError(
            f"the {name} gives logits that are not finite, first in row {row}: {logits[row].tolist()}; "
            "its training has diverged or its weights are damaged"
        )


def _column_order(
    name: str, model: nn.Module, wanted: Classes | None, given: list[int] | None, rows: Classes | None
) -> list[int] | None:
    """Return which of a model's logit columns make the wanted order; None for its own.

    Names tell it, or what is given. Where they say nothing of each other, both are matched to the rows, as each would
    be if it were measured alone: by name, or else by place.
    """
    own = Classes.of_config(getattr(model, "config", None))
    try:
        order = None if own is None or wanted is None else wanted.positions_in(own)
        if order is not None or given is not None or own is None or wanted is None or rows is None:
            return given if order is None else order
        same = list(range(len(wanted)))
        in_rows = wanted.positions_in(rows) if len(rows) == len(wanted) else None
        in_own = rows.positions_in(own) if len(rows) == len(own) else None
        return [(in_own or same)[place] for place in in_rows or same] if in_rows or in_own else None
    except ValueError as error:
        if given is not None:
            return given
        raise ValueError(f"the {name} can't be compared with the student: {error}") from error

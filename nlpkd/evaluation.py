"""Quality, agreement, size and latency of a student beside its teacher and its baseline, as an `EvaluationReport`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import datasets
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase
from transformers.utils.logging import tqdm

from nlpkd.benchmark import (
    count_parameters,
    describe_environment,
    evaluating,
    latency_protocol,
    measure_latency,
    model_size_mb,
    placement,
)
from nlpkd.capture import without_adapter
from nlpkd.data import TeacherTokenizers, column_prefixes, per_teacher
from nlpkd.ensemble import TeacherEnsemble, as_one_teacher
from nlpkd.labels import align_names
from nlpkd.report import Candidate, EvaluationReport, Interval, Latency
from nlpkd.scoring import Scoring, best_thresholds, scoring_of
from nlpkd.task import task_of
from nlpkd.windows import DOCUMENT, average_windows, one_row_a_document

MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")

_INTERVAL_PROTOCOL = (
    "95 % intervals: percentile bootstrap over the {rows} rows, {samples} resamples, seed {seed}, the same resamples "
    "for every candidate; resampling inflates a calibration error, so that its interval lies high"
)


def evaluate_student(
    student: nn.Module,
    teacher: nn.Module | Sequence[nn.Module] | None = None,
    dataset: datasets.Dataset | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    baseline: nn.Module | None = None,
    teacher_tokenizer: TeacherTokenizers = None,
    teacher_order: Sequence[int] | None = None,
    candidates: Mapping[str, nn.Module] | None = None,
    run: Mapping[str, Any] | None = None,
    training_seconds: float | Mapping[str, float] | None = None,
    threshold_dataset: datasets.Dataset | None = None,
    batch_size: int = 64,
    bootstrap_samples: int = 1000,
    latency_batches: Sequence[int] = (1, 32),
    latency_tokens: int = 32,
    latency_runs: int = 30,
    seed: int = 42,
) -> EvaluationReport:
    """Measure a student, its teacher, its undistilled baseline and any further models on the same rows.

    Args:
        student: the distilled model, a `PreTrainedModel` or a module giving logits; like all of them on any device.
        teacher: the model it learned from; its logits are put in the student's label order by name. Several are an
            ensemble (`nlpkd.ensemble.TeacherEnsemble`), or a list whose probabilities are averaged; they are one
            candidate, whose size and times are sums.
        dataset: tokenised rows: `input_ids`, `attention_mask`, perhaps `token_type_ids`, and `labels` in the student's
            order: class ids, zeros and ones for each label, or scores, as the student's `problem_type` says; where
            there are `teacher_input_ids`, ... the teacher reads those. Of windows (`nlpkd.windows`), the logits of a
            text are the average over its own.
        tokenizer: pads the rows.
        baseline: the same student trained on the gold labels alone.
        teacher_tokenizer: pads the teacher's own columns; of several teachers a list, None where it is the student's.
        teacher_order: where names don't say it, the index that the teacher gives each label of the student; an
            ensemble knows the orders itself.
        candidates: further models by name, such as an `OnnxClassifier`, reading what the student reads.
        run: what made the student, for the report; versions, machine and protocols are added.
        training_seconds: of the student, or of each candidate by name.
        threshold_dataset: of a multi-label task, other held-out rows on which every candidate's thresholds are chosen,
            one a label by its F1 (`run["thresholds"]`); without them a model's `config.thresholds` are used, or 0.5.
        batch_size: rows a forward pass when predicting.
        bootstrap_samples: resamples behind the 95 % intervals.
        latency_batches: batch sizes to time.
        latency_tokens: tokens a sequence to time.
        latency_runs: timed rounds a batch size; 0 skips the timing.
        seed: seed of the resamples and of the timed tokens.

    Returns:
        The report.

    Raises:
        ValueError: for rows that can't be measured (none, no labels, labels that are not the task's, out of range),
            models whose labels differ or contradict each other, and logits that are not finite.
    """
    if dataset is None or tokenizer is None:
        raise ValueError("evaluate_student needs the tokenised dataset to measure on and the student's tokenizer")
    teacher = as_one_teacher(teacher)
    models = _name_models(student, teacher, baseline, candidates or {})
    teachers = _teachers(teacher)
    several = teacher if isinstance(teacher, TeacherEnsemble) else None
    # What is run: of several teachers each alone.
    alone = teachers | {name: model for name, model in models.items() if name != "teacher"}
    own = per_teacher(teacher_tokenizer, len(teachers)) if teachers else []
    prefixes = dict.fromkeys(teachers, "teacher_" if "teacher_input_ids" in dataset.column_names else "")
    if any(prefixes.values()) and not any(own):
        raise ValueError(
            "the dataset has teacher_input_ids, which the teacher's tokenizer pads: give teacher_tokenizer"
        )
    if several is not None:
        prefixes = dict(zip(teachers, column_prefixes(tokenizer, own), strict=True))
    tokenizers = dict.fromkeys(alone, tokenizer)
    tokenizers |= {name: each or tokenizer for name, each in zip(teachers, own, strict=True)}
    given = _given_orders(teacher, teacher_order)
    orders = {name: given.get(name) or _column_order(name, model, student) for name, model in alone.items()}
    labels, task = _gold_labels(dataset), task_of(getattr(student, "config", None))

    def predict(rows: datasets.Dataset) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for name in sorted(alone, key="student".__ne__):
            prefix = prefixes.get(name, "")
            values = predict_logits(alone[name], rows, tokenizers[name], batch_size=batch_size, prefix=prefix)
            if DOCUMENT in rows.column_names:
                values = average_windows(values, rows[DOCUMENT][:])
            _check_logits(name, values, found.get("student", values).shape[1])
            found[name] = values if orders[name] is None else values[:, orders[name]]
        if several is not None:
            own = [torch.from_numpy(found.pop(name)).to(several.weights.device) for name in teachers]
            found["teacher"] = several.mean(own).cpu().numpy()
        return found

    logits = predict(dataset)
    scoring_of(task).check(labels, logits["student"].shape[1])
    latencies: dict[str, list[Latency]] = {}
    if latency_runs:
        latencies = measure_latency(
            alone, tokenizers, batches=latency_batches, tokens=latency_tokens, runs=latency_runs, seed=seed
        )
    protocol = latency_protocol(alone, latency_tokens, latency_runs)
    if several is not None and latency_runs:
        latencies["teacher"] = _one_after_another([latencies.pop(name) for name in teachers])
        protocol += f"; the teacher's times are sums over its {len(several)} models"
    seconds = training_seconds if isinstance(training_seconds, Mapping) else {"student": training_seconds}
    resampling = {"samples": bootstrap_samples, "seed": seed}
    thresholds = {name: _thresholds(model) for name, model in models.items()}
    if threshold_dataset is not None:
        gold = _gold_labels(threshold_dataset)
        thresholds = {name: best_thresholds(values, gold) for name, values in predict(threshold_dataset).items()}
    scorings = {name: scoring_of(task, thresholds[name]) for name in models}
    resampled = {name: scorings[name].resampled(values, labels, **resampling) for name, values in logits.items()}
    return EvaluationReport(
        task=_describe_task(student, scorings["student"], logits["student"], labels),
        run={
            **describe_environment(),
            "interval_protocol": _INTERVAL_PROTOCOL.format(rows=len(labels), **resampling),
            "latency_protocol": protocol,
            **({"thresholds": thresholds} if threshold_dataset is not None else {}),
            **(run or {}),
        },
        candidates={
            name: Candidate(
                quality={
                    metric: _interval(value, resampled[name][metric])
                    for metric, value in scorings[name].metrics(logits[name], labels).items()
                },
                agreement=None
                if name == "teacher" or "teacher" not in logits
                else _agreement(scorings[name], logits[name], logits["teacher"], resampling),
                parameters=count_parameters(model),
                size_mb=model_size_mb(model),
                latency=latencies.get(name, []),
                training_seconds=seconds.get(name),
            )
            for name, model in models.items()
        },
        comparisons={
            f"student_vs_{other}": _compare(other, scorings, logits, labels, resampled)
            for other in ("baseline", "teacher")
            if other in models
        },
    )


def predict_logits(
    model: nn.Module,
    dataset: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int = 64,
    prefix: str = "",
) -> np.ndarray:
    """Run a classifier over tokenised rows, in eval mode, on its own device.

    Args:
        model: a `PreTrainedModel`, or a module that returns logits or an output with `.logits`.
        dataset: tokenised rows; of their columns the model is given those its `forward` names.
        tokenizer: pads the rows.
        batch_size: rows a forward pass, of similar lengths.
        prefix: what the names of the columns to read start with, `"teacher_"` for a teacher's own.

    Returns:
        float32 logits `(rows, labels)` in the order of the rows.

    Raises:
        ValueError: when there is no row, or no `input_ids` column that the model takes.
    """
    if not len(dataset):
        raise ValueError("there are no rows to predict: give a dataset with at least one")
    accepted = set(MODEL_INPUTS) & set(inspect.signature(without_adapter(model).forward).parameters)
    columns = {
        prefix + name: name for name in MODEL_INPUTS if name in accepted and prefix + name in dataset.column_names
    }
    if "input_ids" not in columns.values():
        raise ValueError(
            f"the model's forward must take input_ids, read from the column {prefix}input_ids: found arguments "
            f"{sorted(accepted)} and columns {dataset.column_names}; tokenise the dataset first"
        )
    rows = dataset.with_format(None).select_columns(list(columns)).rename_columns(columns)
    order = np.argsort([-len(ids) for ids in rows["input_ids"][:]], kind="stable").tolist()
    loader = DataLoader(rows, batch_size=batch_size, sampler=order, collate_fn=DataCollatorWithPadding(tokenizer))
    device, _ = placement(model)
    batches = []
    with evaluating(model):
        for batch in tqdm(loader, desc="Predicting", leave=False, disable=None):
            inputs = {name: tensor.to(device) for name, tensor in batch.items() if name in accepted}
            batches.append(_logits(model(**inputs)).float().cpu().numpy())
    logits = np.concatenate(batches)
    return logits[np.argsort(order)]


def _name_models(
    student: nn.Module, teacher: nn.Module | None, baseline: nn.Module | None, further: Mapping[str, nn.Module]
) -> dict[str, nn.Module]:
    """Put the models in the order of the report."""
    if taken := {"teacher", "student", "baseline"} & set(further):
        raise ValueError(
            f"further candidates can't be called {sorted(taken)}: these names have arguments of their own"
        )
    named = {"teacher": teacher, "student": student, "baseline": baseline, **further}
    return {name: model for name, model in named.items() if model is not None}


def _teachers(teacher: nn.Module | None) -> dict[str, nn.Module]:
    """Name the models that a teacher consists of."""
    if isinstance(teacher, TeacherEnsemble):
        return {f"teacher {number} of {len(teacher)}": each for number, each in enumerate(teacher.members, start=1)}
    return {} if teacher is None else {"teacher": teacher}


def _given_orders(teacher: nn.Module | None, order: Sequence[int] | None) -> dict[str, list[int]]:
    """Give the label orders that are known without looking at names, by the model's name."""
    if isinstance(teacher, TeacherEnsemble):
        if order is not None:
            raise ValueError("teacher_order is of one teacher: set those of an ensemble by TeacherEnsemble.reorder")
        return {name: each for name, each in zip(_teachers(teacher), teacher.orders, strict=True) if each is not None}
    if order is not None and sorted(order) != list(range(len(order))):
        raise ValueError(f"teacher_order must hold each index of the teacher's labels once, found {list(order)}")
    return {} if order is None else {"teacher": list(order)}


def _one_after_another(measured: Sequence[Sequence[Latency]]) -> list[Latency]:
    """Add up what models take, `(models, batch sizes)`."""
    return [
        replace(each[0], p50_ms=sum(one.p50_ms for one in each), p95_ms=sum(one.p95_ms for one in each))
        for each in zip(*measured, strict=True)
    ]


def _gold_labels(dataset: datasets.Dataset) -> np.ndarray:
    """Read the gold labels, one entry a row."""
    if not len(dataset):
        raise ValueError("there are no rows to evaluate: give a dataset with at least one")
    if "labels" not in dataset.column_names:
        raise ValueError(f'evaluation needs a column "labels", found {dataset.column_names}: rename the label column')
    labels = np.asarray(dataset.with_format(None)["labels"][:])
    return labels if DOCUMENT not in dataset.column_names else one_row_a_document(labels, dataset[DOCUMENT][:])


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


def _id2label(model: nn.Module) -> dict[int, str]:
    """Give a model's label names, nothing for a module without a config."""
    return getattr(getattr(model, "config", None), "id2label", None) or {}


def _thresholds(model: nn.Module) -> Sequence[float] | None:
    """Give the thresholds that were chosen for a multi-label model, where any were."""
    return getattr(getattr(model, "config", None), "thresholds", None)


def _column_order(name: str, model: nn.Module, student: nn.Module) -> list[int] | None:
    """Say which of a model's logit columns make the student's label order, None for its own order."""
    own, wanted = _id2label(model), _id2label(student)
    if not own or not wanted:
        return None
    try:
        return align_names(own, wanted)
    except ValueError as error:
        raise ValueError(f"the {name} can't be compared with the student: {error}") from error


def _describe_task(student: nn.Module, scoring: Scoring, logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    id2label = _id2label(student)
    return {
        "problem_type": scoring.problem_type,
        "headline": scoring.headline(labels),
        "labels": [str(id2label.get(index, index)) for index in range(logits.shape[1])],
        "rows": len(labels),
        **scoring.describe(labels),
    }


def _interval(value: float, resampled: np.ndarray) -> Interval:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Interval(float(value), float(low), float(high))


def _agreement(
    scoring: Scoring, logits: np.ndarray, teacher_logits: np.ndarray, resampling: Mapping[str, int]
) -> Interval:
    agreeing = scoring.agreeing(torch.from_numpy(logits), torch.from_numpy(teacher_logits)).numpy()
    return _interval(scoring.agreement(agreeing), scoring.resampled_agreement(agreeing, **resampling))


def _compare(
    other: str,
    scorings: Mapping[str, Scoring],
    logits: Mapping[str, np.ndarray],
    labels: np.ndarray,
    resampled: Mapping[str, Mapping[str, np.ndarray]],
) -> dict[str, Any]:
    """Compare the student with another candidate on the same rows, by every metric and a paired test."""
    values = {name: scorings[name].metrics(logits[name], labels) for name in ("student", other)}
    comparison: dict[str, Any] = {}
    for metric, value in values["student"].items():
        resamples = resampled["student"][metric] - resampled[other][metric]
        comparison[f"{metric}_difference"] = asdict(_interval(value - values[other][metric], resamples))
    comparison |= scorings["student"].paired_test(logits["student"], logits[other], labels, other)
    if other == "teacher":
        headline = scorings["student"].headline(labels)
        gold = values[other][headline]
        comparison["retention"] = values["student"][headline] / gold if gold > 0 else None
    return comparison


def _logits(output: Any) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output.logits

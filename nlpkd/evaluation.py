"""Quality, agreement, size and latency of a student beside its teacher and its baseline, as an `EvaluationReport`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import datasets
import numpy as np
import torch
from scipy.stats import binomtest
from torch import nn
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase
from transformers.utils.logging import tqdm

from nlpkd.benchmark import (
    describe_environment,
    evaluating,
    latency_protocol,
    measure_latency,
    model_size_mb,
    placement,
)
from nlpkd.data import TeacherTokenizers, column_prefixes, per_teacher
from nlpkd.ensemble import TeacherEnsemble, as_one_teacher
from nlpkd.labels import align_names
from nlpkd.metrics import classification_metrics, resampled_metrics
from nlpkd.report import Candidate, EvaluationReport, Interval, Latency

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
            order; where there are `teacher_input_ids`, ... the teacher reads those.
        tokenizer: pads the rows.
        baseline: the same student trained on the gold labels alone.
        teacher_tokenizer: pads the teacher's own columns; of several teachers a list, None where it is the student's.
        teacher_order: where names don't say it, the index that the teacher gives each label of the student; an
            ensemble knows the orders itself.
        candidates: further models by name, reading what the student reads.
        run: what made the student, for the report; versions, machine and protocols are added.
        training_seconds: of the student, or of each candidate by name.
        batch_size: rows a forward pass when predicting.
        bootstrap_samples: resamples behind the 95 % intervals.
        latency_batches: batch sizes to time.
        latency_tokens: tokens a sequence to time.
        latency_runs: timed rounds a batch size; 0 skips the timing.
        seed: seed of the resamples and of the timed tokens.

    Returns:
        The report.

    Raises:
        ValueError: for rows that can't be measured (none, no labels, not a single-label task, a label out of range),
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
    labels = _gold_labels(dataset)
    logits: dict[str, np.ndarray] = {}
    for name in sorted(alone, key="student".__ne__):
        values = predict_logits(
            alone[name], dataset, tokenizers[name], batch_size=batch_size, prefix=prefixes.get(name, "")
        )
        _check_logits(name, values, logits.get("student", values).shape[1], labels)
        logits[name] = values if orders[name] is None else values[:, orders[name]]

    latencies: dict[str, list[Latency]] = {}
    if latency_runs:
        latencies = measure_latency(
            alone, tokenizers, batches=latency_batches, tokens=latency_tokens, runs=latency_runs, seed=seed
        )
    protocol = latency_protocol(alone, latency_tokens, latency_runs)
    if several is not None:
        found = [torch.from_numpy(logits.pop(name)).to(several.weights.device) for name in teachers]
        logits["teacher"] = several.mean(found).cpu().numpy()
        if latency_runs:
            latencies["teacher"] = _one_after_another([latencies.pop(name) for name in teachers])
            protocol += f"; the teacher's times are sums over its {len(several)} models"
    seconds = training_seconds if isinstance(training_seconds, Mapping) else {"student": training_seconds}
    resampling = {"samples": bootstrap_samples, "seed": seed}
    resampled = {name: resampled_metrics(values, labels, **resampling) for name, values in logits.items()}
    return EvaluationReport(
        task=_describe_task(student, logits["student"], labels),
        run={
            **describe_environment(),
            "interval_protocol": _INTERVAL_PROTOCOL.format(rows=len(labels), **resampling),
            "latency_protocol": protocol,
            **(run or {}),
        },
        candidates={
            name: Candidate(
                quality=_quality(logits[name], labels, resampled[name]),
                agreement=None if name == "teacher" else _agreement(logits[name], logits.get("teacher"), resampling),
                parameters=sum(parameter.numel() for parameter in model.parameters()),
                size_mb=model_size_mb(model),
                latency=latencies.get(name, []),
                training_seconds=seconds.get(name),
            )
            for name, model in models.items()
        },
        comparisons={
            f"student_vs_{other}": _compare(other, logits, labels, resampled)
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
    accepted = set(MODEL_INPUTS) & set(inspect.signature(model.forward).parameters)
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
    """Read the label ids `(rows,)`."""
    if not len(dataset):
        raise ValueError("there are no rows to evaluate: give a dataset with at least one")
    if "labels" not in dataset.column_names:
        raise ValueError(f'evaluation needs a column "labels", found {dataset.column_names}: rename the label column')
    labels = np.asarray(dataset.with_format(None)["labels"][:])
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels must be one integer a row (single-label classification), found {labels.dtype} of shape "
            f"{labels.shape}"
        )
    return labels


def _check_logits(name: str, logits: np.ndarray, expected: int, labels: np.ndarray) -> None:
    """Refuse logits `(rows, labels)` of another width than the student's or not finite, and labels beyond them."""
    if logits.shape[1] != expected:
        raise ValueError(
            f"the {name} gives {logits.shape[1]} logits a row, the student {expected}: they don't compare"
        )
    if labels.min() < 0 or labels.max() >= expected:
        raise ValueError(
            f"labels must lie in 0..{expected - 1}, found {labels.min()}..{labels.max()}: map them or drop those rows"
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


def _column_order(name: str, model: nn.Module, student: nn.Module) -> list[int] | None:
    """Say which of a model's logit columns make the student's label order, None for its own order."""
    own, wanted = _id2label(model), _id2label(student)
    if not own or not wanted:
        return None
    try:
        return align_names(own, wanted)
    except ValueError as error:
        raise ValueError(f"the {name} can't be compared with the student: {error}") from error


def _describe_task(student: nn.Module, logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    id2label = _id2label(student)
    return {
        "problem_type": "single_label_classification",
        "labels": [str(id2label.get(index, index)) for index in range(logits.shape[1])],
        "rows": len(labels),
        "majority_share": float(np.bincount(labels).max() / len(labels)),
    }


def _quality(logits: np.ndarray, labels: np.ndarray, resampled: Mapping[str, np.ndarray]) -> dict[str, Interval]:
    values = classification_metrics(logits, labels)
    return {metric: _interval(value, resampled[metric]) for metric, value in values.items()}


def _interval(value: float, resampled: np.ndarray) -> Interval:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Interval(float(value), float(low), float(high))


def _agreement(
    logits: np.ndarray, teacher_logits: np.ndarray | None, resampling: Mapping[str, int]
) -> Interval | None:
    """Give the share of rows with the teacher's predicted label: the accuracy, were the teacher always right."""
    if teacher_logits is None:
        return None
    predictions = teacher_logits.argmax(axis=1)
    resampled = resampled_metrics(logits, predictions, **resampling)["accuracy"]
    return _interval((logits.argmax(axis=1) == predictions).mean(), resampled)


def _compare(
    other: str, logits: Mapping[str, np.ndarray], labels: np.ndarray, resampled: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, Any]:
    """Compare the student with another candidate row by row (exact McNemar test)."""
    right = {name: logits[name].argmax(axis=1) == labels for name in ("student", other)}
    student_only = int((right["student"] & ~right[other]).sum())
    other_only = int((right[other] & ~right["student"]).sum())
    discordant = student_only + other_only
    difference = resampled["student"]["accuracy"] - resampled[other]["accuracy"]
    comparison = {
        "mcnemar_p": float(binomtest(student_only, discordant).pvalue) if discordant else 1.0,
        "student_only_correct": student_only,
        f"{other}_only_correct": other_only,
        "accuracy_difference": asdict(_interval((student_only - other_only) / len(labels), difference)),
    }
    if other == "teacher":
        comparison["retention"] = float(right["student"].mean() / right[other].mean()) if right[other].any() else None
    return comparison


def _logits(output: Any) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output.logits

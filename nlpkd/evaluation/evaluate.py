"""Quality, agreement, size and latency of a student beside its teacher and its baseline, as an `EvaluationReport`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import datasets
import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from nlpkd.data.tokenization import TeacherTokenizers
from nlpkd.data.windows import DOCUMENT, one_row_a_document
from nlpkd.evaluation.benchmark import (
    count_flops,
    count_parameters,
    describe_environment,
    latency_protocol,
    measure_latency,
    model_size_mb,
)
from nlpkd.evaluation.calibration import temperature_scaling
from nlpkd.evaluation.prediction import Lineup, id2label_of, members_by_name
from nlpkd.evaluation.report import Candidate, EvaluationReport, Interval, Latency
from nlpkd.evaluation.scoring import Scoring, best_thresholds, per_length, scoring_of
from nlpkd.models.ensemble import TeacherEnsemble, as_one_teacher
from nlpkd.tasks import MULTI_LABEL, REGRESSION, task_of

_INTERVAL_PROTOCOL = (
    "95 % intervals: percentile bootstrap over the {rows} rows, {samples} resamples, seed {seed}, the same resamples "
    "for every candidate; resampling inflates a calibration error, so that its interval lies high"
)


_FLOPS_PROTOCOL = (
    "FLOPs: one forward pass over one sequence of {tokens} tokens, matrix products alone, a multiply and an add are "
    "two (torch.utils.flop_counter)"
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
    candidate_tokenizers: Mapping[str, PreTrainedTokenizerBase] | None = None,
    threshold_dataset: datasets.Dataset | None = None,
    batch_size: int = 64,
    bootstrap_samples: int = 1000,
    latency_batches: Sequence[int] = (1, 32),
    latency_tokens: int | Sequence[int] = 32,
    latency_runs: int = 30,
    seed: int = 42,
) -> EvaluationReport:
    """Measure a student, its teacher, its undistilled baseline and any further models on the same rows.

    Args:
        student: the distilled model, a `PreTrainedModel` or a module giving logits; like all of them on any device.
        teacher: the model it learned from; its logits are put in the student's label order by name. Several are an
            ensemble (`nlpkd.models.ensemble.TeacherEnsemble`), or a list whose probabilities are averaged; they are
            one candidate, whose size and times are sums.
        dataset: tokenised rows: `input_ids`, `attention_mask`, perhaps `token_type_ids`, and `labels` in the student's
            order: class ids, zeros and ones for each label, or scores, as the student's `problem_type` says; where
            there are `teacher_input_ids`, ... the teacher reads those. Of windows (`nlpkd.data.windows`), the logits
            of a text are the average over its own.
        tokenizer: pads the rows.
        baseline: the same student trained on the gold labels alone.
        teacher_tokenizer: pads the teacher's own columns; of several teachers a list, None where it is the student's.
        teacher_order: where names don't say it, the index that the teacher gives each label of the student; an
            ensemble knows the orders itself.
        candidates: further models by name, such as an `OnnxClassifier`, reading what the student reads, unless
            `candidate_tokenizers` names them.
        run: what made the student, for the report; versions, machine and protocols are added.
        training_seconds: of the student, or of each candidate by name.
        candidate_tokenizers: of further candidates, and of the baseline, that read other tokens than the student: the
            rows have their columns as `nlpkd.data.tokenization.column_prefixes` names them, after the teacher's.
        threshold_dataset: other held-out rows, on which every candidate's temperature is fitted
            (`Candidate.temperature_scaling`), or in a multi-label task its thresholds are chosen, one a label by its
            F1 (`run["thresholds"]`); without them a model's `config.thresholds` are used, or 0.5.
        batch_size: rows a forward pass when predicting.
        bootstrap_samples: resamples behind the 95 % intervals.
        latency_batches: batch sizes to time.
        latency_tokens: tokens a sequence to time, or several lengths; operations are counted at the first.
        latency_runs: timed passes a batch size and length; 0 skips the timing, and the counting of operations.
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
    if unknown := set(candidate_tokenizers or {}) - set(models):
        raise ValueError(f"candidate_tokenizers names {sorted(unknown)}, the candidates are {sorted(models)}")
    lineup = Lineup.of(
        models,
        tokenizer,
        dataset.column_names,
        teacher_tokenizer=teacher_tokenizer,
        candidate_tokenizers=candidate_tokenizers,
        teacher_order=teacher_order,
    )
    labels, task = _gold_labels(dataset), task_of(getattr(student, "config", None))
    logits = lineup.predict(dataset, batch_size)
    scoring_of(task).check(labels, logits["student"].shape[1])
    latency = _latency(lineup, latency_batches, latency_tokens, latency_runs, seed)
    held_out = None
    if threshold_dataset is not None:
        held_out = lineup.predict(threshold_dataset, batch_size), _gold_labels(threshold_dataset)
        scoring_of(task).check(held_out[1], logits["student"].shape[1])
    chosen, scaling = _fitted(task, held_out, logits, labels)
    scorings = {name: scoring_of(task, chosen.get(name, _thresholds(model))) for name, model in models.items()}
    resampling = {"samples": bootstrap_samples, "seed": seed}
    resampled = {name: scorings[name].resampled(values, labels, **resampling) for name, values in logits.items()}
    counted = latency_tokens if isinstance(latency_tokens, int) else latency_tokens[0]
    seconds = training_seconds if isinstance(training_seconds, Mapping) else {"student": training_seconds}
    lengths = _lengths(dataset)
    return EvaluationReport(
        task=_describe_task(student, scorings["student"], logits["student"], labels),
        run={
            **describe_environment(),
            "interval_protocol": _INTERVAL_PROTOCOL.format(rows=len(labels), **resampling),
            "latency_protocol": latency.protocol,
            **({"flops_protocol": _FLOPS_PROTOCOL.format(tokens=counted)} if latency_runs else {}),
            **({"thresholds": chosen} if chosen else {}),
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
                latency=latency.measured.get(name, []),
                training_seconds=seconds.get(name),
                flops=_flops(lineup, name, counted) if latency_runs else None,
                temperature_scaling=scaling.get(name),
                breakdown=_breakdown(name, scorings[name], logits, labels, lengths),
            )
            for name, model in models.items()
        },
        comparisons={
            f"student_vs_{other}": _compare(other, scorings, logits, labels, resampled)
            for other in ("baseline", "teacher")
            if other in models
        },
    )


@dataclass(frozen=True)
class _Timed:
    """Latencies by candidate, and how they were taken."""

    measured: dict[str, list[Latency]]
    protocol: str


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


def _latency(lineup: Lineup, batches: Sequence[int], tokens: int | Sequence[int], runs: int, seed: int) -> _Timed:
    """Time every model; an ensemble's models run one after another."""
    protocol = latency_protocol(lineup.alone, tokens, runs)
    if not runs:
        return _Timed({}, protocol)
    measured = measure_latency(lineup.alone, lineup.tokenizers, batches=batches, tokens=tokens, runs=runs, seed=seed)
    teacher = lineup.models.get("teacher")
    if isinstance(teacher, TeacherEnsemble):
        measured["teacher"] = _one_after_another([measured.pop(name) for name in members_by_name(teacher)])
        protocol += f"; the teacher's times are sums over its {len(teacher)} models"
    return _Timed(measured, protocol)


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


def _flops(lineup: Lineup, name: str, tokens: int) -> int | None:
    """Count a candidate's operations, an ensemble's as a sum; None where one of its models can't be counted."""
    members = members_by_name(lineup.models["teacher"]) if name == "teacher" else {name: lineup.models[name]}
    counts = [count_flops(model, lineup.tokenizers[own], tokens=tokens) for own, model in members.items()]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _fitted(
    task: str | None,
    held_out: tuple[dict[str, np.ndarray], np.ndarray] | None,
    logits: Mapping[str, np.ndarray],
    labels: np.ndarray,
) -> tuple[dict[str, list[float]], dict[str, dict[str, float]]]:
    """Fit on held-out rows what the task has to fit: thresholds of several labels, the temperature of one."""
    if held_out is None or task == REGRESSION:
        return {}, {}
    values, gold = held_out
    if task == MULTI_LABEL:
        return {name: best_thresholds(each, gold) for name, each in values.items()}, {}
    return {}, {name: temperature_scaling(each, gold, logits[name], labels) for name, each in values.items()}


def _breakdown(
    name: str, scoring: Scoring, logits: Mapping[str, np.ndarray], labels: np.ndarray, lengths: np.ndarray
) -> dict[str, Any]:
    """Break a candidate's quality down by class, confidence and length; name the rows where it leaves its teacher."""
    parts = scoring.breakdown(logits[name], labels)
    parts["per_length"] = per_length(scoring, logits[name], labels, lengths)
    if name != "teacher" and "teacher" in logits:
        parts["disagreements"] = scoring.disagreements(logits[name], logits["teacher"], labels)
    return parts


def _lengths(dataset: datasets.Dataset) -> np.ndarray:
    """Give the tokens of each text as the student reads it, `(texts,)`; of windows their sum."""
    lengths = np.array([len(ids) for ids in dataset.with_format(None)["input_ids"][:]])
    if DOCUMENT not in dataset.column_names:
        return lengths
    _, places = np.unique(np.asarray(dataset[DOCUMENT][:]), return_inverse=True)
    return np.bincount(places, weights=lengths).astype(np.int64)


def _gold_labels(dataset: datasets.Dataset) -> np.ndarray:
    """Read the gold labels, one entry a row."""
    if not len(dataset):
        raise ValueError("there are no rows to evaluate: give a dataset with at least one")
    if "labels" not in dataset.column_names:
        raise ValueError(f'evaluation needs a column "labels", found {dataset.column_names}: rename the label column')
    labels = np.asarray(dataset.with_format(None)["labels"][:])
    return labels if DOCUMENT not in dataset.column_names else one_row_a_document(labels, dataset[DOCUMENT][:])


def _thresholds(model: nn.Module) -> Sequence[float] | None:
    """Give the thresholds that were chosen for a multi-label model, where any were."""
    return getattr(getattr(model, "config", None), "thresholds", None)


def _describe_task(student: nn.Module, scoring: Scoring, logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    id2label = id2label_of(student)
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

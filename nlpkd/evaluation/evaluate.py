"""Quality, agreement, size and latency of a student beside its teacher and its baseline, as an `EvaluationReport`."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from nlpkd.data.label_names import align_rows, classes_of
from nlpkd.data.labels.classes import Classes
from nlpkd.data.labels.order import wrong_order
from nlpkd.data.rows import refuse_other_than_dataset, unlabelled_rows
from nlpkd.data.tokenization import TeacherTokenizers
from nlpkd.evaluation.benchmark import TEXT_PROTOCOL, count_parameters, describe_environment, size_mb_if_known
from nlpkd.evaluation.figures.intervals import INTERVAL_PROTOCOL, interval_of
from nlpkd.evaluation.figures.names import check_candidate_names
from nlpkd.evaluation.inputs.arguments import check_measuring, check_text_columns
from nlpkd.evaluation.inputs.files import file_sha256, runtime_of, with_files
from nlpkd.evaluation.inputs.held_out import Fitted, HeldOut
from nlpkd.evaluation.origin import RunRecord, TaskRecord, retention
from nlpkd.evaluation.prediction import (
    CandidateModels,
    flops_of_candidate,
    gold_labels,
    latency_of_candidates,
    refuse_untimed,
    teacher_answers,
    text_to_label_of_candidates,
    token_lengths,
    warn_of_one_class,
)
from nlpkd.evaluation.records import (
    AGREEMENT,
    BASELINES,
    Breakdown,
    Candidate,
    Comparison,
    Interval,
    LengthGroup,
)
from nlpkd.evaluation.report import EvaluationReport
from nlpkd.evaluation.scoring import Scoring, task_scoring
from nlpkd.models.ensemble import TeacherEnsemble, as_one_teacher
from nlpkd.models.structure import unwrapped
from nlpkd.tasks import MULTI_LABEL, task_of
from nlpkd.utils.field_types import plain_arguments

logger = logging.getLogger(__name__)


_FLOPS_PROTOCOL = (
    "FLOPs: one forward pass over one sequence of {tokens} tokens, matrix products alone, a multiply and an add are "
    "two (torch.utils.flop_counter)"
)


@plain_arguments
def evaluate_student(
    student: nn.Module,
    teacher: nn.Module | Sequence[nn.Module] | None = None,
    dataset: datasets.Dataset | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    baseline: nn.Module | None = None,
    teacher_tokenizer: TeacherTokenizers = None,
    teacher_order: Sequence[int] | None = None,
    teacher_thresholds: Sequence[float] | None = None,
    candidates: Mapping[str, nn.Module] | None = None,
    run: Mapping[str, Any] | None = None,
    training_seconds: float | Mapping[str, float] | None = None,
    candidate_tokenizers: Mapping[str, PreTrainedTokenizerBase] | None = None,
    threshold_dataset: datasets.Dataset | None = None,
    student_files: Collection[str] = (),
    text_columns: Sequence[str] = (),
    size_mb: Mapping[str, float | None] | None = None,
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
        dataset: tokenised rows: `input_ids`, `attention_mask`, perhaps `token_type_ids`, and `labels`: class ids,
            zeros and ones for each label, or scores, as the student's `problem_type` says. Labels that carry names are
            put in the student's order, others are taken to be in it; a model whose names say nothing of the student's
            is matched to them. Where no row has a gold label (-100), all that is measured is the agreement with the
            teacher. Where there are `teacher_input_ids`, ... the teacher reads those; where there is no teacher, a
            column `teacher_logits` holds the answers of one. Of windows (`nlpkd.data.windows`), the logits of a text
            are the average over its own.
        tokenizer: pads the rows.
        baseline: the same student trained on the gold labels alone, whatever its start.
        teacher_tokenizer: pads the teacher's own columns; of several teachers a list, None where it is the student's.
        teacher_order: where names don't say it, the index that the teacher gives each label of the student; an
            ensemble knows the orders itself.
        teacher_thresholds: of several labels those that an earlier report chose for the teacher, one for each label of
            the student; if None its config's.
        candidates: further models by name, such as an `OnnxClassifier`, reading what the student reads, unless
            `candidate_tokenizers` names them; `"no_teacher"` and `"same_start"` are baselines, with which the student
            is compared (`nlpkd.evaluation.records.BASELINES`).
        run: what made the student, entries of `RunRecord`; versions, machine and protocols are added.
        training_seconds: of the student, or of each candidate by name.
        candidate_tokenizers: of further candidates, and of the baseline, that read other tokens than the student: the
            rows have their columns as `nlpkd.data.tokenization.column_prefixes` names them, after the teacher's.
        threshold_dataset: other held-out rows, on which every candidate's temperature is fitted
            (`Candidate.temperature_scaling`), or in a multi-label task its thresholds are chosen, one a label by its
            F1 (`RunRecord.thresholds`); without them a model's `config.thresholds` are used, or 0.5, and
            `Candidate.decides_by` says which. Rows that are measured too are left out.
        student_files: names of the candidates that are files of the student, such as its ONNX file: they have its
            config, and decide by the thresholds that are chosen for it.
        text_columns: columns of the rows that hold their texts, one, or two of pairs; with them every model is timed
            from text to label too.
        size_mb: megabytes (10^6 bytes) of candidates by name, such as those of the files that one was loaded from in
            another dtype, None where it can't be told; of all others those of the file that the model is saved as.
        batch_size: rows a forward pass when predicting.
        bootstrap_samples: resamples behind the 95 % intervals.
        latency_batches: batch sizes to time.
        latency_tokens: tokens a sequence to time, or several lengths; operations are counted at the first.
        latency_runs: timed passes a batch size and length; 0 skips the timing, and the counting of operations.
        seed: seed of the resamples, the same for all models, and of the timed tokens.

    Returns:
        The report.

    Raises:
        ValueError: for an argument that can't be, rows that can't be measured (none, no labels, labels that are not
            the task's, out of range, neither gold labels nor a teacher), held-out rows that are all measured ones,
            models whose labels differ, and logits that are not finite.
    """
    # Which model reads what, and in which order its labels come.
    if dataset is None or tokenizer is None:
        raise ValueError("evaluate_student needs the tokenised dataset to measure on and the student's tokenizer")
    refuse_other_than_dataset(dataset, "dataset")
    if threshold_dataset is not None:
        refuse_other_than_dataset(threshold_dataset, "threshold_dataset")
    teacher, task = as_one_teacher(teacher), task_of(getattr(student, "config", None))
    if isinstance(teacher, TeacherEnsemble):
        teacher.task = task or teacher.task
    models = _name_models(student, teacher, baseline, candidates or {})
    check_measuring(
        models, batch_size=batch_size, bootstrap_samples=bootstrap_samples, latency_batches=latency_batches,
        latency_tokens=latency_tokens, latency_runs=latency_runs, seed=seed, training_seconds=training_seconds,
        teacher_order=teacher_order, teacher_thresholds=teacher_thresholds, teacher_tokenizer=teacher_tokenizer,
        run=run,
    )  # fmt: skip
    check_text_columns(text_columns, dataset.column_names)
    if unknown := {*(candidate_tokenizers or {}), *student_files, *(size_mb or {})} - set(models):
        raise ValueError(
            f"candidate_tokenizers, student_files or size_mb names {sorted(unknown)}, the candidates are "
            f"{sorted(models)}"
        )
    # Of a student without a config the rows' names are followed.
    classes = Classes.of_config(getattr(student, "config", None)) or classes_of(dataset)
    running = CandidateModels.of(
        models,
        tokenizer,
        dataset.column_names,
        classes=classes,
        rows_classes=classes_of(dataset),
        teacher_tokenizer=teacher_tokenizer,
        candidate_tokenizers=candidate_tokenizers,
        teacher_order=teacher_order,
    )
    refuse_untimed(running, latency_tokens, latency_runs)

    # Gold labels in the student's order, of the rows to fit on too.
    dataset = align_rows(dataset, classes, "evaluation")
    labels = gold_labels(dataset)
    has_gold = not unlabelled_rows(dataset).all()
    answers = teacher_answers(dataset) if teacher is None else {}
    if not has_gold and teacher is None and not answers:
        raise ValueError("no row has a gold label, and there is no teacher to agree with: nothing can be measured")
    scoring = task_scoring(task, None)
    if has_gold and classes is not None:
        scoring.check(labels, len(classes))
    held_out = HeldOut.of(threshold_dataset, dataset, scoring, classes)

    # Logits of every model, and latencies.
    logits = running.predict(dataset, batch_size) | answers
    width = logits["student"].shape[1]
    if has_gold:
        scoring.check(labels, width)
    if teacher_thresholds is not None and len(teacher_thresholds) != width:
        raise ValueError(f"{len(teacher_thresholds)} teacher_thresholds, and {width} labels: give one a label")
    latency, protocol = latency_of_candidates(running, latency_batches, latency_tokens, latency_runs, seed)
    text_to_label_ms = text_to_label_of_candidates(running, dataset, text_columns, latency_runs)

    # What is fitted on other rows, and what each model decides by.
    own = running.thresholds("student")
    fitted = Fitted() if held_out is None else held_out.fit(running, batch_size, logits, labels, student_files)
    known = {} if teacher_thresholds is None else {"teacher": teacher_thresholds}
    several = scoring.problem_type == MULTI_LABEL
    rules = {name: _rule(name, fitted, known, running) for name in logits} if several else {}
    thresholds = {name: list(cut) for name, (_, cut) in rules.items() if cut is not None}

    # A model whose names say another order than its head has is measured as they say.
    lengths, names = token_lengths(dataset), list(map(str, range(width) if classes is None else classes.names))
    warn_of_one_class(labels if has_gold else labels[:0], names, scoring.problem_type)
    for name, each in logits.items() if has_gold else ():
        if problem := wrong_order(each, labels, names, scoring.problem_type):
            logger.warning("The %s %s.", name, problem)

    # Quality of every model on all rows, and on the same resamples of them.
    resampling, measured = {"samples": bootstrap_samples, "seed": seed}, {}
    for name in [each for each in ("teacher", *models) if each in logits]:
        own_scoring = task_scoring(task, thresholds.get(name))
        measured[name] = _Measured.of(own_scoring, logits[name], labels if has_gold else None, resampling)

    # The report.
    counted = latency_tokens if isinstance(latency_tokens, int) else latency_tokens[0]
    seconds = training_seconds if isinstance(training_seconds, Mapping) else {"student": training_seconds}
    known_mb = size_mb or {}
    sizes = {name: known_mb[name] if name in known_mb else size_mb_if_known(each) for name, each in models.items()}
    made_by = {
        **describe_environment(),
        "interval_protocol": INTERVAL_PROTOCOL.format(rows=len(labels), **resampling),
        "latency_protocol": protocol + (TEXT_PROTOCOL if text_to_label_ms else ""),
        **({"flops_protocol": _FLOPS_PROTOCOL.format(tokens=counted)} if latency_runs else {}),
        "thresholds": {name: dict(zip(names, each, strict=True)) for name, each in thresholds.items()},
        "thresholds_kept": thresholds["student"] == own if "student" in thresholds else None,
        "held_out_protocol": fitted.protocol,
    }
    told = with_files(run or {}, {name: models[name] for name in ("student", *student_files)})
    return EvaluationReport(
        task=TaskRecord(
            problem_type=scoring.problem_type,
            headline=scoring.headline(labels) if has_gold else AGREEMENT,
            labels=names,
            rows=len(labels),
            **(scoring.describe(labels) if has_gold else {}),
        ),
        run=RunRecord.from_dict({key: value for key, value in made_by.items() if value not in (None, {})} | told),
        candidates={
            name: Candidate(
                quality=own.intervals(),
                agreement=own.agreement(measured["teacher"]) if name != "teacher" and "teacher" in measured else None,
                parameters=count_parameters(models[name]) if name in models else None,
                size_mb=sizes.get(name),
                latency=latency.get(name, []),
                text_to_label_ms=text_to_label_ms.get(name),
                training_seconds=seconds.get(name),
                flops=flops_of_candidate(running, name, counted) if latency_runs and name in models else None,
                temperature_scaling=fitted.scaling.get(name),
                breakdown=_breakdown(name, measured, labels, lengths) if has_gold else Breakdown(),
                runtime=runtime_of(running.parts(name)) if name in models else None,
                file_sha256=file_sha256(running.parts(name)) if name in models else None,
                decides_by=rules[name][0] if name in rules else None,
            )
            for name, own in measured.items()
        },
        comparisons={
            f"student_vs_{other}": _compare(measured, other, labels)
            for other in (*BASELINES, "teacher")
            if other in measured and has_gold
        },
    )


@dataclass(frozen=True)
class _Measured:
    """A model's quality.

    Attributes:
        scoring: of the task.
        logits: `(rows, labels)`.
        metrics: on all rows, by name.
        resampled: on the resamples, `(samples,)` each.
        resampling: how they are drawn.
    """

    scoring: Scoring
    logits: np.ndarray
    metrics: dict[str, float]
    resampled: dict[str, np.ndarray]
    resampling: Mapping[str, int]

    @classmethod
    def of(
        cls, scoring: Scoring, logits: np.ndarray, labels: np.ndarray | None, resampling: Mapping[str, int]
    ) -> _Measured:
        """Measure logits against gold labels; without any there are no metrics."""
        if labels is None:
            return cls(scoring, logits, {}, {}, resampling)
        metrics = scoring.metrics(logits, labels)
        return cls(scoring, logits, metrics, scoring.resampled(logits, labels, **resampling), resampling)

    def intervals(self) -> dict[str, Interval]:
        """Return every metric with its interval."""
        return {metric: interval_of(value, self.resampled[metric]) for metric, value in self.metrics.items()}

    def agreement(self, teacher: _Measured) -> Interval:
        """Return the agreement with the teacher and its interval."""
        own, theirs = torch.from_numpy(self.logits), torch.from_numpy(teacher.logits)
        agreeing = self.scoring.agreeing(own, theirs, teacher.scoring).numpy()
        resampled = self.scoring.resampled_agreement(agreeing, **self.resampling)
        return interval_of(self.scoring.agreement(agreeing), resampled)


def _name_models(
    student: nn.Module, teacher: nn.Module | None, baseline: nn.Module | None, further: Mapping[str, nn.Module]
) -> dict[str, nn.Module]:
    """Put the models in the order of the report."""
    check_candidate_names(further)
    named: dict[str, Any] = {"teacher": teacher, "student": student, "baseline": baseline, **further}
    known = {name: model for name, model in named.items() if model is not None or name == "student"}
    return {name: unwrapped(model, name) for name, model in known.items()}


def _rule(
    name: str, fitted: Fitted, known: Mapping[str, Sequence[float]], running: CandidateModels
) -> tuple[str, Sequence[float] | None]:
    """Return by which of `DECISIONS` a candidate gives labels, and its thresholds, None where they are 0.5."""
    found = {"held-out": fitted.thresholds.get(name), "report": known.get(name), "config": running.thresholds(name)}
    return next(((rule, cut) for rule, cut in found.items() if cut is not None), ("0.5", None))


def _breakdown(name: str, measured: Mapping[str, _Measured], labels: np.ndarray, lengths: np.ndarray) -> Breakdown:
    """Break a candidate's quality down by class, confidence and length; name the rows where it leaves its teacher."""
    own, teacher = measured[name], measured.get("teacher")
    return replace(
        own.scoring.breakdown(own.logits, labels),
        per_length=_per_length(own, labels, lengths),
        disagreements=None
        if teacher is None or name == "teacher"
        else own.scoring.disagreements(own.logits, teacher.logits, labels),
    )


def _per_length(own: _Measured, labels: np.ndarray, lengths: np.ndarray) -> list[LengthGroup]:
    """Measure the headline metric in quarters of the rows by tokens `(rows,)`; rows of one length share a group."""
    headline = own.scoring.headline(labels)
    edges = np.unique(np.quantile(lengths, [0.25, 0.5, 0.75], method="lower"))
    groups = np.searchsorted(edges, lengths, side="left")
    measured = []
    for group in np.unique(groups):
        rows = groups == group
        known = own.scoring.can_tell(labels[rows])
        value = own.scoring.metrics(own.logits[rows], labels[rows])[headline] if known else None
        measured.append(LengthGroup(int(lengths[rows].min()), int(lengths[rows].max()), int(rows.sum()), value))
    return measured


def _compare(measured: Mapping[str, _Measured], name: str, labels: np.ndarray) -> Comparison:
    """Compare the student with another candidate on the same rows, by every metric and a paired test."""
    student, other, teacher = measured["student"], measured[name], measured.get("teacher")
    headline = student.scoring.headline(labels)
    return Comparison(
        differences={
            metric: interval_of(value - other.metrics[metric], student.resampled[metric] - other.resampled[metric])
            for metric, value in student.metrics.items()
        },
        retention=retention(student.metrics[headline], other.metrics[headline]) if other is teacher else None,
        **(_gap(student, other, teacher, headline) if name == "no_teacher" and teacher is not None else {}),
        **student.scoring.paired_test(student.logits, other.logits, labels),
    )


def _gap(student: _Measured, other: _Measured, teacher: _Measured, metric: str) -> dict[str, Any]:
    """Measure the gap between no teacher and the teacher, and the share of it that the student closes.

    There is a gap to close where the paired 95 % interval of the difference lies above 0.
    """
    gaps = teacher.resampled[metric] - other.resampled[metric]
    gap = interval_of(teacher.metrics[metric] - other.metrics[metric], gaps)
    if not gap.low > 0:
        return {"gap": gap}
    # Few resamples have no gap, and no share of it either.
    known = gaps > 0
    gained = (student.resampled[metric] - other.resampled[metric])[known]
    share = (student.metrics[metric] - other.metrics[metric]) / gap.value
    return {"gap": gap, "gap_closed": interval_of(share, gained / gaps[known])}

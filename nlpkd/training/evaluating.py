"""How a student is evaluated while it is trained: its loss, metrics, windows of long texts, agreement."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, SequentialSampler
from transformers import EvalPrediction
from transformers.trainer_pt_utils import nested_numpify
from transformers.trainer_utils import EvalLoopOutput, has_length

from nlpkd.data.columns import DOCUMENT
from nlpkd.data.label_names import align_labels_to_student, classes_of
from nlpkd.data.labels.classes import Classes
from nlpkd.data.rows import visible_columns
from nlpkd.data.windows import average_windows, one_row_a_document
from nlpkd.evaluation.scoring import Scoring, scoring_of, task_scoring
from nlpkd.tasks import is_unlabelled
from nlpkd.teachers.compatibility import refuse_untokenised_rows
from nlpkd.training.best import refuse_unkept
from nlpkd.training.loss import DistillationLoss
from nlpkd.training.resumable import ResumableTrainer
from nlpkd.utils.object_hashes import is_foreign
from nlpkd.utils.randomness import random_state_kept


class PredictionMetrics:
    """Metrics of an evaluation, the average over a text's windows as its prediction, and the agreement beside them.

    Args:
        scorings: gives those of student and teacher.
        compute_metrics: the user's metrics; those of the task if None.
        preprocess_logits: the user's `preprocess_logits_for_metrics`, if any.
        by_batch: whether the user's metrics are computed batch by batch (`batch_eval_metrics`), in which no text's
            windows can be averaged. Those of the task, and the agreement, are computed of all batches at the end.

    Raises:
        ValueError: if the user's metrics can't be computed batch by batch.
    """

    def __init__(
        self,
        scorings: Callable[[], tuple[Scoring, Scoring]],
        compute_metrics: Callable[..., dict[str, float]] | None,
        preprocess_logits: Callable[..., Any] | None,
        by_batch: bool,
    ):
        self.compute_metrics, self.preprocess_logits = compute_metrics, preprocess_logits
        self.sums_up = by_batch and compute_metrics is not None
        """Whether the user's metrics get one batch after the other, and tell their result at the last one."""
        if self.sums_up and "compute_result" not in inspect.signature(compute_metrics).parameters:  # type: ignore[arg-type]
            raise ValueError(
                "batch_eval_metrics=True calls compute_metrics for each batch, with compute_result=True at the last "
                "one, and this compute_metrics has no argument compute_result: give it one, or leave "
                "batch_eval_metrics out"
            )
        self._scorings = scorings
        self._documents: Any = None
        self._batches: list[Any] = []

    def begin(self, rows: Any) -> None:
        """Remember which text each row of an evaluation set is a window of, and forget the batches before."""
        windows = not self.sums_up and DOCUMENT in (getattr(rows, "column_names", None) or ())
        self._documents = rows[DOCUMENT][:] if windows else None
        self._batches = []

    def with_agreement(self, student: Tensor, teacher: Tensor | None) -> Any:
        """Return the student's logits `(batch, labels)`, and beside them where the teacher's agree, if it is there."""
        if teacher is None:
            return student
        own, teachers = self._scorings()
        return student, own.agreeing(student, teacher, teachers)

    def preprocess(self, logits: Any, labels: Any) -> Any:
        """Apply the user's preprocessing to the student's logits alone."""
        if self.preprocess_logits is None:
            return logits
        if isinstance(logits, tuple):
            return self.preprocess_logits(logits[0], labels), logits[1]
        return self.preprocess_logits(logits, labels)

    def __call__(self, prediction: EvalPrediction, **options: Any) -> dict[str, float]:
        """Compute the metrics of an evaluation, with `agreement` where there was a teacher.

        Args:
            prediction: of all rows; of a batch where `options` has `compute_result`.
            **options: as Trainer gives them to the user's metrics. Of batches the last one's result alone counts.
        """
        by_batch, last = "compute_result" in options, options.get("compute_result", True)
        predictions: Any = prediction.predictions
        labels: Any = prediction.label_ids
        scoring, _ = self._scorings()
        if by_batch and self.compute_metrics is None:
            self._batches.append(nested_numpify((predictions, labels)))
            if not last:
                return {}
            predictions, labels = map(list, zip(*self._batches, strict=True))
        predictions, agreeing = split_agreement(predictions)
        if isinstance(predictions, list) and (self.compute_metrics is None or self._documents is not None):
            predictions, labels = np.concatenate(predictions), np.concatenate(labels)
        if self._documents is not None:
            predictions = average_windows(np.asarray(predictions), self._documents)
            labels = one_row_a_document(labels, self._documents)
        if self.compute_metrics is None and is_unlabelled(np.asarray(labels)).all():
            metrics = {}
        elif self.compute_metrics is None:
            metrics = scoring.metrics(np.asarray(predictions), np.asarray(labels))
        else:
            plain = EvalPrediction(predictions, labels, prediction.inputs, prediction.losses)
            found = self.compute_metrics(plain, **options)
            if by_batch and agreeing is not None:
                self._batches.append(nested_numpify(agreeing))
                agreeing = np.concatenate(self._batches) if last else None
            metrics = {} if by_batch and (found is None or not last) else dict(found)
        return metrics if agreeing is None else metrics | {"agreement": scoring.agreement(agreeing)}


def split_agreement(predictions: Any) -> tuple[Any, Any]:
    """Split what an evaluation gathered into the student's logits, and where the teacher agrees (None without one).

    Args:
        predictions: logits, a pair, or one of these for each batch (`eval_do_concat_batches=False`).

    Returns:
        The logits, of batches a list of them; and an array for all rows.
    """
    if isinstance(predictions, tuple):
        return predictions  # type: ignore[return-value]
    if isinstance(predictions, list) and predictions and isinstance(predictions[0], tuple):
        logits, agreeing = zip(*predictions, strict=True)
        return list(logits), np.concatenate(agreeing)
    return predictions, None


class EvaluationLoss:
    """The loss of an evaluation: each objective's total over all rows by its count, weighed as at the training's end.

    So it is the same for every size of batches and number of processes, but for objectives that relate the rows of a
    batch (`Objective.couples_rows`), whose value is that of `per_device_eval_batch_size` rows at a time.

    Args:
        loss: of the training.
        accelerator: of the training.
        finite: leave batches out whose loss is not finite (`logging_nan_inf_filter`).
    """

    def __init__(self, loss: DistillationLoss, accelerator: Any, finite: bool):
        self.loss, self.accelerator, self.finite = loss, accelerator, finite
        self.sums: Tensor | None = None

    def add(self, student: Any, teacher: Any, batch: dict[str, Any]) -> Tensor:
        """Add a batch, and return its own loss, a scalar."""
        counts = self.loss.counts(batch)
        parts = self.loss(student, teacher, batch, counts)[1].float()
        added = torch.stack([parts * counts, counts])
        if self.finite:
            added = torch.where(parts.isfinite(), added, torch.zeros_like(added))
        self.sums = added if self.sums is None else self.sums + added
        return self._weigh(parts)

    def value(self) -> float | None:
        """Compute the loss on all rows; all processes call it. None where no row could be judged."""
        parts = len(self.loss.names)
        sums = torch.zeros(2, parts, device=self.loss.device) if self.sums is None else self.sums
        seen = torch.full((2, 1), float(self.sums is not None), device=sums.device)
        totals, counts = self.accelerator.reduce(torch.cat([sums, seen], dim=1), "sum")
        if not counts[-1]:
            return None
        return float(self._weigh(totals[:-1] / torch.where(counts == 0, torch.ones_like(counts), counts)[:-1]))

    def _weigh(self, parts: Tensor) -> Tensor:
        """Sum the parts by their weights; a loss function of the user's has the weight 1."""
        factors = [*self.loss.objectives.weighting.at_the_end(), *[1.0] * (self.loss.own is not None)]
        return (parts * torch.tensor(factors, device=parts.device)).sum()


@contextmanager
def _weights_kept(model: nn.Module) -> Iterator[None]:
    """Give a model its weights back, which `Trainer` rounds to half precision for an evaluation."""
    kept = [(tensor, tensor.data) for tensor in (*model.parameters(), *model.buffers())]
    try:
        yield
    finally:
        for tensor, data in kept:
            tensor.data = data


class EvaluatingTrainer(ResumableTrainer):
    """A `ResumableTrainer` that evaluates a student beside its teacher."""

    # What a subclass sets

    _loss: DistillationLoss

    def _measure_by(self, compute_metrics: Callable[..., dict[str, float]] | None) -> None:
        """Choose the metrics: those of the task, or the user's."""
        by_batch, preprocess = self.args.batch_eval_metrics, self.preprocess_logits_for_metrics
        self._metrics = PredictionMetrics(self._scorings, compute_metrics, preprocess, by_batch)
        self.compute_metrics = self._metrics
        self.preprocess_logits_for_metrics = self._metrics.preprocess

    def _scorings(self) -> tuple[Scoring, Scoring]:
        """Make the scorings of student and teacher, by the thresholds that each has by now."""
        scoring = scoring_of(getattr(self.model, "config", None))
        return scoring, task_scoring(scoring.problem_type, self._loss.signals.thresholds)

    def follow_assigned_metrics(self) -> None:
        """Take what was assigned to `compute_metrics` or `preprocess_logits_for_metrics` since as the user's own."""
        ours, metrics, preprocess = self._metrics, self.compute_metrics, self.preprocess_logits_for_metrics
        if metrics in (ours, None) and preprocess == ours.preprocess:
            return
        if preprocess == ours.preprocess:
            self.preprocess_logits_for_metrics = ours.preprocess_logits
        self._measure_by(ours.compute_metrics if metrics in (ours, None) else metrics)

    # Classes

    @property
    def classes(self) -> Classes | None:
        """The classes in the order of the student's logits; the training rows' own of a student without a config."""
        return Classes.of_config(getattr(self.model, "config", None)) or classes_of(self.train_dataset)

    def _aligned(self, rows: Any, split: str) -> Any:
        """Return rows with label ids as the student has them; refuse rows that nobody tokenised."""
        for name, each in rows.items() if isinstance(rows, dict) else [("", rows)]:
            refuse_untokenised_rows(
                visible_columns(each), self.data_collator, f"{split} set {name}" if name else split
            )
        return align_labels_to_student(rows, getattr(self.model, "config", None), split, self.classes)

    # Batches

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Make the loader of an evaluation set, whichever way it was given, with label ids as the student has them."""
        if eval_dataset is None or isinstance(eval_dataset, str):
            # It may have been assigned since the constructor aligned what it was given.
            self.eval_dataset = self._aligned(self.eval_dataset, "evaluation")
        else:
            eval_dataset = self._aligned(eval_dataset, "evaluation")
        return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Make the loader of rows to predict, with label ids as the student has them."""
        return super().get_test_dataloader(self._aligned(test_dataset, "test"))

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler | None:
        """Keep predictions in the data set's order, which length grouping would not."""
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 and has_length(eval_dataset) else None

    # Evaluation

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """Evaluate as `Trainer` does; a training draws the same random numbers with it and without it."""
        with self._random_state_kept():
            return super().evaluate(*arguments, **options)

    def predict(self, *arguments: Any, **options: Any) -> Any:
        """Predict as `Trainer` does; a training draws the same random numbers with it and without it."""
        with self._random_state_kept():
            return super().predict(*arguments, **options)

    def _random_state_kept(self) -> AbstractContextManager[None]:
        """Give a training that goes on its random numbers back: loaders and metrics draw some."""
        return random_state_kept(self.args.device) if self.is_in_train else nullcontext()

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor | None, Any, Tensor | None]:
        """Return loss, logits and labels of a batch, and beside the logits where student and teacher agree."""
        inputs = self._prepare_inputs(inputs)
        labels: Any = inputs.get("labels")
        loss: Any = None
        with torch.no_grad(), self.compute_loss_context_manager():
            student = self._loss.student(model, inputs)
            teacher = self._loss.signals.outputs(inputs)
            if labels is not None and (teacher is not None or not self._loss.objectives.need_teacher):
                if is_foreign(type(self).compute_loss):
                    loss = self.compute_loss(model, dict(inputs))
                else:
                    loss = self._add_to_loss(student, teacher, inputs)
        if prediction_loss_only:
            return loss, None, None
        logits = self._metrics.with_agreement(student.logits.detach(), None if teacher is None else teacher.logits)
        return loss, logits, labels

    @property
    def _has_own_loss(self) -> bool:
        """Whether a subclass of the user's says what the loss of an evaluation is, batch by batch."""
        return is_foreign(type(self).compute_loss) or is_foreign(type(self).prediction_step)

    def _add_to_loss(self, student: Any, teacher: Any, inputs: dict[str, Any]) -> Tensor:
        """Add a batch to the evaluation's loss, without the rows that fill up the last batch of several processes."""
        state, rows = self.accelerator.gradient_state, len(student.logits)
        real = rows
        if self.args.world_size > 1 and state.end_of_dataloader and state.remainder > 0:
            real = min(max(state.remainder - self.args.process_index * rows, 0), rows)
        if real == rows or self.is_fsdp_enabled or self.is_deepspeed_enabled or self._has_own_loss:
            return self._evaluation.add(student, teacher, inputs)
        if real:
            # By the model itself, since the other processes may have no such rows.
            some = {k: v[:real] if isinstance(v, Tensor) and len(v) == rows else v for k, v in inputs.items()}
            self._evaluation.add(self._loss.student(self.model, some), self._loss.signals.outputs(some), some)
        return torch.zeros((), device=self.args.device)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: Any = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate as `Trainer` does; predictions are the student's logits alone, metrics of windows by text."""
        self.follow_assigned_metrics()
        self._metrics.begin(dataloader.dataset)
        self._loss.objectives.refuse_rebound()
        if not self.is_in_train:
            self._loss.signals.release()
        self._evaluation = EvaluationLoss(self._loss, self.accelerator, self.args.logging_nan_inf_filter)
        rounded = (self.args.bf16_full_eval or self.args.fp16_full_eval) and not self.is_in_train
        whole = not (self.is_fsdp_enabled or self.is_deepspeed_enabled)
        kept = _weights_kept(self.model) if rounded and whole else nullcontext()
        with self._loss.evaluating(), kept:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        loss = None if self._has_own_loss else self._evaluation.value()
        if loss is not None and output.metrics is not None:
            output.metrics[f"{metric_key_prefix}_loss"] = loss
        if self.is_in_train:
            refuse_unkept(output.metrics or {}, self.args)
        return output._replace(predictions=split_agreement(output.predictions)[0])

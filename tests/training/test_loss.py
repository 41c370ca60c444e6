"""What the loss of a training is computed from, and what is said where that is missing."""

from __future__ import annotations

import math

import pytest
import torch
from samples import tiny_bert

from nlpkd import DistillationTrainer
from nlpkd.objectives import CrossEntropyLoss, ForwardKLLoss


class Counts:
    """A loss function of the user's that keeps what it is told to divide by."""

    def __init__(self):
        self.seen = []

    def __call__(self, outputs, labels, num_items_in_batch=None):
        self.seen.append(int(num_items_in_batch))
        return outputs.logits.sum() * 0


def _targets(task, row, labelled):
    if task == "multi_label_classification":
        return [float(row % 2), 1.0, 0.0] if labelled else [-100.0] * 3
    if task == "regression":
        return row / 8 if labelled else math.nan
    return row % 2 if labelled else -100


@pytest.mark.parametrize(
    ("task", "labels"), [("single_label_classification", 2), ("multi_label_classification", 3), ("regression", 1)]
)
def test_a_loss_function_of_ones_own_is_told_the_labelled_rows_of_a_step(task, labels, settings, make_rows, tokenizer):
    values = [_targets(task, row, row not in (3, 7)) for row in range(16)]
    rows = make_rows(16).remove_columns("labels").add_column("labels", values)
    counts = Counts()
    DistillationTrainer(
        tiny_bert(num_labels=labels, problem_type=task), None,
        settings(train_sampling_strategy="sequential", per_device_train_batch_size=4, gradient_accumulation_steps=2),
        [CrossEntropyLoss()], rows, processing_class=tokenizer, compute_loss_func=counts,
    ).train()  # fmt: skip
    assert counts.seen == [6, 6, 8, 8]


@pytest.mark.parametrize("kind", [lambda rows: rows, list, lambda rows: rows.with_transform(lambda batch: batch)])
def test_rows_without_labels_are_refused_where_a_loss_function_of_ones_own_reads_them(
    kind, settings, make_rows, tokenizer
):
    trainer = DistillationTrainer(
        tiny_bert(), tiny_bert(seed=1), settings(), [ForwardKLLoss()],
        kind(make_rows(16).remove_columns("labels")), processing_class=tokenizer, compute_loss_func=Counts(),
    )  # fmt: skip
    with pytest.raises(ValueError, match="compute_loss_func is given the labels, and the rows have none"):
        trainer.train()


@pytest.mark.parametrize("kind", [lambda rows: rows, list])
def test_rows_without_a_teachers_logits_that_are_assigned_are_refused_where_there_is_no_teacher(
    kind, settings, make_rows, tokenizer
):
    rows = make_rows(16)
    taught = rows.add_column("teacher_logits", torch.zeros(16, 2).tolist())
    trainer = DistillationTrainer(tiny_bert(), None, settings(), [ForwardKLLoss()], taught, processing_class=tokenizer)
    trainer.train_dataset = kind(rows)
    with pytest.raises(ValueError, match="forward_kl need a teacher: pass teacher_model, or data with a column"):
        trainer.train()

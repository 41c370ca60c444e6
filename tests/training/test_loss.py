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


EVERY_SETTING = {
    "nothing": {}, "smoothing": {"label_smoothing_factor": 0.1}, "linear": {"weighting": "linear"},
    "both": {"label_smoothing_factor": 0.1, "weighting": "linear"},
}  # fmt: skip


@pytest.mark.parametrize("config", EVERY_SETTING.values(), ids=EVERY_SETTING)
def test_the_very_objectives_that_are_given_are_trained(config, settings, make_rows, tokenizer):
    """What is assigned to them, as by a callback, holds from the next micro-batch on."""
    given = [CrossEntropyLoss(), ForwardKLLoss(), CrossEntropyLoss(class_weights=[1.0, 2.0], label_smoothing=0.2)]
    trainer = DistillationTrainer(
        tiny_bert(), tiny_bert(seed=1), settings(**config), given, make_rows(16), processing_class=tokenizer
    )
    assert all(one is other for one, other in zip(trainer.objectives, given, strict=True))
    for objective in given:
        objective.weight = 0.0
    before = [each.clone() for each in trainer.model.parameters()]
    trainer.train()
    assert all(torch.equal(one, other) for one, other in zip(before, trainer.model.parameters(), strict=True))


def test_the_smoothing_of_a_run_holds_in_it_alone_and_where_an_objective_has_none(settings, make_rows, tokenizer):
    plain, own = CrossEntropyLoss(), CrossEntropyLoss(label_smoothing=0.2)

    def shares(factor):
        args = settings(label_smoothing_factor=factor)
        trainer = DistillationTrainer(tiny_bert(), None, args, [plain, own], make_rows(8), processing_class=tokenizer)
        again = [each.again(weight=2.0).label_smoothing for each in trainer.objectives]
        return [each.config()["label_smoothing"] for each in trainer.objectives] + again

    assert [shares(0.1), shares(0.0), shares(0.3)] == [
        [0.1, 0.2, 0.0, 0.2], [0.0, 0.2, 0.0, 0.2], [0.3, 0.2, 0.0, 0.2],
    ]  # fmt: skip
    plain.label_smoothing = 0.4
    assert shares(0.1) == [0.4, 0.2, 0.4, 0.2]


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

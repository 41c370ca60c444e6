"""What the loss of a training is computed from, and what is said where that is missing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from datasets import ClassLabel
from references import REFERENCES, bound
from samples import Bag, tiny_bert

from nlpkd import DistillationTrainer
from nlpkd.models.capture import CapturedOutput
from nlpkd.objectives import (
    AdversarialLoss,
    ContrastiveLoss,
    CrossEntropyLoss,
    ForwardKLLoss,
    TeacherLabelLoss,
)
from nlpkd.objectives.examples import ExampleObjective


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


ON_LOGITS = [
    kind() if kind().needs <= {"logits", "labels"} else kind(on="logits")
    for kind in REFERENCES
    if kind().needs <= {"logits", "labels"} or issubclass(kind, ExampleObjective)
]


@pytest.mark.parametrize("objective", ON_LOGITS, ids=lambda objective: objective.name)
@pytest.mark.parametrize("taught", ["a model", "any module", "several", "kept logits"])
def test_a_student_that_is_any_module_learns_by_every_objective_on_logits(
    objective, taught, settings, make_rows, tokenizer
):
    rows, student, teacher = make_rows(8), Bag(), tiny_bert(1)
    if taught == "any module":
        teacher = Bag()
        rows = rows.cast_column("labels", ClassLabel(names=["neg", "pos"]))
    if taught == "several":
        teacher = [tiny_bert(1), tiny_bert(1, seed=1)]
    if taught == "kept logits":
        rows, teacher = rows.add_column("teacher_logits", torch.randn(8, 2).tolist()), None
    args = settings(max_steps=1, teacher_check="off")
    before = student.table.weight.detach().clone()
    made = DistillationTrainer(student, teacher, args, [objective.again()], rows, processing_class=tokenizer)
    made.train()
    assert not torch.equal(student.table.weight, before)


@pytest.mark.parametrize("kind", [ContrastiveLoss, AdversarialLoss])
def test_an_objective_that_must_know_the_number_of_labels_says_so_where_no_config_tells_it(kind):
    with pytest.raises(ValueError, match=rf"{kind.__name__}\(on='logits'\) is built for a number of labels, which"):
        kind(on="logits").bind(None, None)


CUTS = {"a": 0.2, "b": 0.5, "c": 0.9}


def of_three_labels(names="abc", seed=1, **config):
    named = {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}
    task = {"num_labels": 3, "problem_type": "multi_label_classification", "initializer_range": 2.0}
    return tiny_bert(1, seed=seed, **named, **task, **config)


def learned_decisions(trainer, batch):
    """Which labels the objective wants a student to give that is undecided: its gradient lets their logits rise."""
    teacher = trainer._signals.outputs(batch)
    student = CapturedOutput(logits=torch.zeros_like(teacher.logits, requires_grad=True))
    trainer.objectives[0].total(student, teacher, batch).backward()
    return student.logits.grad < 0, teacher.logits


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize(
    ("teachers", "cuts"),
    [
        (lambda: of_three_labels(thresholds=CUTS), [0.2, 0.5, 0.9]),
        (lambda: of_three_labels("cab", thresholds=[0.9, 0.2, 0.5]), [0.2, 0.5, 0.9]),
        (lambda: of_three_labels(), [0.5] * 3),
        (lambda: [of_three_labels(thresholds=CUTS), of_three_labels(seed=2, thresholds=CUTS)], [0.2, 0.5, 0.9]),
    ],
)
def test_a_teachers_decisions_are_learned_by_the_thresholds_that_its_agreement_goes_by(
    kept, teachers, cuts, settings, make_rows, tokenizer
):
    rows = make_rows(16).remove_columns("labels").add_column("labels", [[1.0, 0.0, float(n % 2)] for n in range(16)])
    args = settings(teacher_check="off")
    if kept:
        rows = rows.add_column("teacher_logits", torch.randn(16, 3).mul(2).tolist())
    trainer = DistillationTrainer(
        of_three_labels(seed=3), teachers(), args, [TeacherLabelLoss()], rows, rows, processing_class=tokenizer
    )
    batch = trainer.data_collator([rows[number] for number in range(16)])
    given, logits = learned_decisions(trainer, batch)
    assert torch.equal(given, logits.double().sigmoid() > torch.tensor(cuts, dtype=torch.float64))
    agreeing = trainer._scorings()
    student = torch.where(given, 50.0, -50.0)
    assert np.asarray(agreeing[0].agreeing(student, logits, agreeing[1])).all()


def test_thresholds_that_a_teacher_is_given_later_are_those_that_are_learned(settings, make_rows, tokenizer):
    rows = make_rows(16).remove_columns("labels").add_column("labels", [[1.0, 0.0, float(n % 2)] for n in range(16)])
    teacher, args = of_three_labels(), settings(teacher_check="off", max_steps=1, cache_teacher="off")
    trainer = DistillationTrainer(
        of_three_labels(seed=3), teacher, args, [TeacherLabelLoss()], rows, processing_class=tokenizer
    )
    teacher.config.thresholds = [1.0, 0.0, 1.0]
    trainer.train()
    batch = trainer.data_collator([rows[number] for number in range(16)])
    assert learned_decisions(trainer, batch)[0].tolist() == [[False, True, False]] * 16


def test_a_teacher_must_give_its_decision_the_probability_that_is_asked_for():
    objective = bound(TeacherLabelLoss(threshold=0.6), problem_type="multi_label_classification")
    # Probabilities of 0.3, 0.3 and 0.9: no, yes by its own threshold, no by its own threshold.
    logits = torch.tensor([[0.3, 0.3, 0.9]]).logit()
    teacher = CapturedOutput(logits=logits, least_logits=torch.tensor([0.5, 0.2, 0.95]).logit())
    student = CapturedOutput(logits=torch.zeros_like(logits, requires_grad=True))
    objective.total(student, teacher, {"labels": torch.zeros(1, 3)}).backward()
    assert student.logits.grad.tolist() == [[pytest.approx(0.5 / 3), 0.0, 0.0]]

"""What a run's result depends on: a checkpoint is resumed by a run in which all of it is the same."""

from __future__ import annotations

import shutil
import threading
from dataclasses import dataclass, fields
from typing import ClassVar

import pytest
import torch
from samples import tiny_bert

from nlpkd import DistillationConfig, DistillationTrainer, cache_teacher_outputs, make_student
from nlpkd.objectives import (
    ContrastiveLoss,
    CrossEntropyLoss,
    ForwardKLLoss,
    LinearTemperature,
    Objective,
    Temperature,
)
from nlpkd.training.checkpoints import _SETTINGS, _WITHOUT_INFLUENCE, LENGTH


@pytest.fixture
def run(settings, make_rows, tokenizer, tmp_path):
    """Make a trainer of the same run but for what is given."""
    teacher = tiny_bert(4, seed=1)

    def make(config=None, **given):
        given = {"model": make_student(teacher, 2), "train_dataset": make_rows(32)} | given
        config = {"output_dir": str(tmp_path / "run"), "save_strategy": "steps", "save_steps": 2} | (config or {})
        return DistillationTrainer(
            teacher_model=teacher,
            args=settings(**config),
            processing_class=tokenizer,
            **{"objectives": [CrossEntropyLoss(), ForwardKLLoss()]} | given,
        )

    make.teacher = teacher
    return make


def double(outputs, labels, num_items_in_batch=None):
    return 2 * outputs.logits.square().sum()


def zero(outputs, labels, num_items_in_batch=None):
    return 0 * outputs.logits.sum()


def stepper(kind, rate, **more):
    """Give a student, and a ready-made optimizer of its weights."""
    return lambda run: {
        "model": (student := make_student(run.teacher, 2)),
        "optimizers": (kind(student.parameters(), lr=rate, **more), None),
    }


def frozen(run):
    student = make_student(run.teacher, 2)
    student.bert.embeddings.requires_grad_(False)
    return {"model": student}


OWN = {
    "nothing": lambda run: {},
    "a loss": lambda run: {"compute_loss_func": double},
    "another loss": lambda run: {"compute_loss_func": zero},
    "SGD": stepper(torch.optim.SGD, 0.1),
    "faster SGD": stepper(torch.optim.SGD, 0.5),
    "SGD with momentum": stepper(torch.optim.SGD, 0.1, momentum=0.9),
    "AdamW": stepper(torch.optim.AdamW, 0.1),
    "a class": lambda run: {"optimizer_cls_and_kwargs": (torch.optim.AdamW, {"lr": 0.1})},
    "a class and another rate": lambda run: {"optimizer_cls_and_kwargs": (torch.optim.AdamW, {"lr": 0.2})},
    "frozen embeddings": frozen,
}


def test_what_a_user_gave_beside_the_settings_is_part_of_a_run(run):
    first, second = ({name: run(**own(run)).describe_run()["result"] for name, own in OWN.items()} for _ in range(2))
    for name, record in first.items():
        assert [other for other, theirs in second.items() if theirs == record] == [name]


@pytest.mark.parametrize(
    ("first", "second", "differing"),
    [
        ("nothing", "a loss", "the loss function"),
        ("SGD", "nothing", "the optimizer"),
        ("nothing", "frozen embeddings", "the student's frozen weights"),
    ],
)
def test_another_run_is_not_resumed(first, second, differing, run, tmp_path):
    run(**OWN[first](run)).train()
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    with pytest.raises(ValueError, match=f"is of another run; what differs: {differing}"):
        run(**OWN[second](run)).train(resume_from_checkpoint=True)
    run(**OWN[first](run)).train(resume_from_checkpoint=True)


class Margin(Objective):
    """Has numbers that no settings name."""

    needs = frozenset({"logits"})

    def __init__(self, weight=1.0, margin=0.0, centre=None):
        super().__init__(weight)
        self.other = margin
        self.register_buffer("centre", torch.zeros(2) if centre is None else centre)
        self.calls = 0

    def total(self, student, teacher, batch):
        return (student.logits - teacher.logits - self.centre - self.other).square().sum()


class Smaller(Margin):
    """The same by another code."""

    def total(self, student, teacher, batch):
        return super().total(student, teacher, batch) / 2


Smaller.__name__, Smaller.__qualname__ = Margin.__name__, Margin.__qualname__


@dataclass(frozen=True)
class Rising(Temperature):
    """A temperature of one's own."""

    slope: ClassVar[float] = 1.0

    def __call__(self, student_logits, teacher_logits, progress):
        return 1.0 + self.slope * progress


class Steeper(Rising):
    """The same by another code."""

    slope = 2.0


Steeper.__name__, Steeper.__qualname__ = Rising.__name__, Rising.__qualname__


class Loss:
    """A loss function that holds a number."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, outputs, labels, num_items_in_batch=None):
        return self.factor * outputs.logits.square().sum()


def scaled(factor):
    def loss(outputs, labels, num_items_in_batch=None):
        return factor * outputs.logits.square().sum()

    return loss


OF_ONES_OWN = {
    "an objective": lambda: {"objectives": [Margin()]},
    "another margin": lambda: {"objectives": [Margin(margin=50.0)]},
    "another centre": lambda: {"objectives": [Margin(centre=torch.ones(2))]},
    "other code": lambda: {"objectives": [Smaller()]},
    "a temperature": lambda: {"objectives": [ForwardKLLoss(Rising())]},
    "another temperature": lambda: {"objectives": [ForwardKLLoss(Steeper())]},
    "a loss": lambda: {"compute_loss_func": Loss(1.0)},
    "another loss": lambda: {"compute_loss_func": Loss(2.0)},
    "a closure": lambda: {"compute_loss_func": scaled(1.0)},
    "another closure": lambda: {"compute_loss_func": scaled(2.0)},
}


def test_code_and_numbers_of_objectives_and_losses_of_ones_own_are_part_of_a_run(run):
    first, second = ({name: run(**own()).describe_run()["result"] for name, own in OF_ONES_OWN.items()} for _ in "12")
    for name, record in first.items():
        assert [other for other, theirs in second.items() if theirs == record] == [name]


def test_a_run_is_resumed_with_the_same_objective_of_ones_own_alone(run, tmp_path):
    run(objectives=[Margin()]).train()
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    with pytest.raises(ValueError, match="is of another run; what differs: margin: code or attributes"):
        run(objectives=[Margin(margin=50.0)]).train(resume_from_checkpoint=True)
    trainer = run(objectives=[Margin()])
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4


@pytest.mark.parametrize(("name", "resumed"), [("lock", False), ("_lock", True)])
def test_an_objective_that_holds_what_nothing_tells_is_resumed_with_where_that_is_private(name, resumed, run):
    records = []
    for _ in range(2):
        setattr(objective := Margin(), name, threading.Lock())
        records.append(run(objectives=[objective]).describe_run()["result"]["margin: code or attributes"])
    assert (records[0] == records[1]) == resumed and ("lock" in records[0]) != resumed


def test_the_librarys_objectives_are_told_by_their_settings_alone(run):
    given = [CrossEntropyLoss(), ForwardKLLoss(LinearTemperature()), ContrastiveLoss()]
    assert not [name for name in run(objectives=given).describe_run()["result"] if ": code" in name]


def test_a_run_with_its_own_optimizer_is_resumed_by_the_trainer_that_began_it(run, tmp_path):
    trainer = run(**OWN["SGD"](run))
    trainer.train()
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4


def test_logits_that_came_with_the_rows_are_part_of_a_run(run, make_rows, tokenizer, tmp_path):
    def kept(teacher, folder):
        return cache_teacher_outputs(teacher, make_rows(32), tokenizer, cache_dir=tmp_path / folder)

    ours = kept(run.teacher, "ours")
    run(train_dataset=ours).train()
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    with pytest.raises(ValueError, match="what differs: the training rows' teacher_logits"):
        run(train_dataset=kept(tiny_bert(4, seed=2), "other")).train(resume_from_checkpoint=True)
    run(train_dataset=ours).train(resume_from_checkpoint=True)


def sized(rows, factor=7):
    return rows.add_column("size", [factor * number % len(rows) for number in range(len(rows))])


def order(trainer):
    """The texts in the order in which an epoch has them."""
    torch.manual_seed(0)
    batches = [batch["input_ids"] for batch in trainer.get_train_dataloader()]
    return [[token for token in text if token] for batch in batches for text in batch.tolist()]


ORDERED = {
    "length_column_name": {"length_column_name": "size"},
    "accelerator_config": {"accelerator_config": {"use_seedable_sampler": False}},
    "seed": {"seed": 7},
    "data_seed": {"data_seed": 7},
    "dataloader_drop_last": {"dataloader_drop_last": True, "per_device_train_batch_size": 7},
    "train_sampling_strategy": {"train_sampling_strategy": "sequential"},
}
KINDS = {
    "group_by_length": {"length_column_name", "seed", "data_seed", "dataloader_drop_last", "train_sampling_strategy"},
    "batch_rebalance": {"dataloader_drop_last", "train_sampling_strategy"},
    "random": {"accelerator_config", "data_seed", "dataloader_drop_last", "train_sampling_strategy"},
}
"""What changes the order here, where torch's own seed is set beside it."""


@pytest.mark.parametrize("kind", KINDS)
def test_what_changes_the_order_of_rows_is_part_of_a_run(kind, run, make_rows):
    usual, rows = {"train_sampling_strategy": kind, "gradient_accumulation_steps": 2}, sized(make_rows(32))
    plain = run(usual, train_dataset=rows)
    record, texts = plain.describe_run()["result"], order(plain)
    assert order(run(usual, train_dataset=rows)) == texts
    changed = set()
    for name, config in ORDERED.items():
        other = run(usual | config, train_dataset=rows)
        if order(other) != texts:
            changed.add(name)
            assert other.describe_run()["result"] != record, name
    assert changed == KINDS[kind]


def test_a_run_whose_rows_would_come_in_another_order_is_not_resumed(run, make_rows, tmp_path):
    rows = sized(make_rows(32))
    run(train_dataset=rows).train()
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    for config, said in (
        ({"length_column_name": "size"}, "length_column_name .None in the checkpoint, size here."),
        (ORDERED["accelerator_config"], "accelerator_config .None in the checkpoint, {'use_seedable_sampler': False}"),
    ):
        with pytest.raises(ValueError, match=said):
            run(config, train_dataset=rows).train(resume_from_checkpoint=True)
    by_size = {"length_column_name": "size"}
    first, second = (run(by_size, train_dataset=sized(make_rows(32), factor)) for factor in (7, 5))
    told = [trainer.describe_run()["result"]["the training rows' size"] for trainer in (first, second)]
    assert told[0] != told[1], "the numbers that the order goes by count, though nothing else reads them"


def test_workers_count_where_they_share_out_rows_without_a_length(run, make_rows):
    told = {}
    for name, rows in (("sized", make_rows(32)), ("unsized", make_rows(32).to_iterable_dataset(2))):
        for workers in (0, 2):
            config = {"dataloader_num_workers": workers, "max_steps": 2}
            told[name, workers] = run(config, train_dataset=rows).describe_run()["result"]
    assert told["sized", 0] == told["sized", 2] and told["unsized", 0] != told["unsized", 2]


def test_the_record_of_usual_settings_has_no_more_of_them_than_in_earlier_versions(run):
    """So that their checkpoints are resumed from."""
    told = run().describe_run()["result"].keys() & {field.name for field in fields(DistillationConfig)}
    assert told == set(_SETTINGS)
    assert not _WITHOUT_INFLUENCE & {*_SETTINGS, *LENGTH}
    assert {*_SETTINGS, *LENGTH, *_WITHOUT_INFLUENCE} <= {field.name for field in fields(DistillationConfig)}

"""What a run's result depends on: a checkpoint is resumed by a run in which all of it is the same."""

from __future__ import annotations

import shutil

import pytest
import torch
from samples import tiny_bert

from nlpkd import DistillationTrainer, cache_teacher_outputs, make_student
from nlpkd.objectives import CrossEntropyLoss, ForwardKLLoss


@pytest.fixture
def run(settings, make_rows, tokenizer, tmp_path):
    """Make a trainer of the same run but for what is given."""
    teacher = tiny_bert(4, seed=1)

    def make(**given):
        given = {"model": make_student(teacher, 2), "train_dataset": make_rows(32)} | given
        return DistillationTrainer(
            teacher_model=teacher,
            args=settings(output_dir=str(tmp_path / "run"), save_strategy="steps", save_steps=2),
            objectives=[CrossEntropyLoss(), ForwardKLLoss()],
            processing_class=tokenizer,
            **given,
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

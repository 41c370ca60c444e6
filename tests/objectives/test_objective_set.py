"""What objectives ask of a run together: micro-batches of enough rows for those that relate rows."""

from __future__ import annotations

import pytest
from samples import tiny_bert

from nlpkd import DistillationTrainer
from nlpkd.objectives import (
    ContrastiveLoss,
    CrossEntropyLoss,
    DISTLoss,
    FocalTemperature,
    ForwardKLLoss,
    RelationalAngleLoss,
    RelationalDistanceLoss,
)
from nlpkd.objectives.objective_set import ObjectiveSet, names_of, with_settings


@pytest.fixture
def trainer(settings, make_rows, tokenizer):
    """Make a trainer of gold labels and one more objective."""

    def make(objective, **config):
        return DistillationTrainer(
            tiny_bert(seed=1, num_labels=3), tiny_bert(seed=2, num_labels=3), settings(**config),
            [CrossEntropyLoss(), objective], make_rows(24, names=("neg", "pos", "mixed")), processing_class=tokenizer,
        )  # fmt: skip

    return make


@pytest.mark.parametrize(
    ("make", "fewest"),
    [
        (DISTLoss, 2), (ContrastiveLoss, 2), (RelationalDistanceLoss, 2), (RelationalAngleLoss, 3),
        (lambda: ForwardKLLoss(FocalTemperature()), 2),
    ],
)  # fmt: skip
def test_micro_batches_of_too_few_rows_to_relate_are_refused(make, fewest, trainer):
    with pytest.raises(ValueError, match=f"relate the rows .* set per_device_train_batch_size to {fewest} at least"):
        trainer(make(), per_device_train_batch_size=fewest - 1, gradient_accumulation_steps=8)
    trainer(make(), per_device_train_batch_size=fewest)


def test_other_objectives_take_single_rows(trainer):
    trainer(ForwardKLLoss(), per_device_train_batch_size=1)


class CrossEntropy(CrossEntropyLoss):
    """Called what the library's is called in logs."""


class lower_case_loss(ForwardKLLoss):  # noqa: N801
    """Has no word that begins with a capital letter."""


class Loss(ForwardKLLoss):
    """Has no word but the one that is left out."""


class AnchorLoss(ForwardKLLoss):
    """Called what the pull towards the start is called."""


SAME_NAMES = [
    [CrossEntropyLoss(0.5), CrossEntropy(3.0)],
    [CrossEntropy(), CrossEntropyLoss(), CrossEntropy()],
    [lower_case_loss(), Loss(), lower_case_loss()],
    [AnchorLoss(), ForwardKLLoss()],
]


@pytest.mark.parametrize("objectives", SAME_NAMES)
def test_every_objective_has_a_name_of_its_own_in_logs_and_settings(objectives, trainer):
    names = names_of(objectives)
    assert all(names) and len({*names, "anchor", "compute_loss_func"}) == len(objectives) + 2
    weights = [float(number) for number, _ in enumerate(names, start=2)]
    changed = with_settings(objectives, {f"{name}.weight": each for name, each in zip(names, weights, strict=True)})
    assert [(type(each), each.weight) for each in changed] == [
        (type(each), weight) for each, weight in zip(objectives, weights, strict=True)
    ]
    assert list(ObjectiveSet(changed).factors().values()) == weights


def test_a_run_is_not_resumed_with_another_weight_of_one_of_two_objectives_that_share_a_name(trainer):
    saved = {"save_strategy": "steps", "save_steps": 2}
    trainer(CrossEntropy(0.1), **saved).train()
    other = trainer(CrossEntropy(0.1), **saved)
    other._loss.objectives[0].weight = 0.5
    with pytest.raises(ValueError, match="what differs: cross_entropy: weight"):
        other.train(resume_from_checkpoint=True)


class Greedy(ContrastiveLoss):
    """Takes more memory than any machine has."""

    def total(self, student, teacher, batch):
        raise RuntimeError("CUDA out of memory. Tried to allocate")


def test_memory_that_runs_out_shrinks_micro_batches_no_further_than_rows_can_be_related(trainer):
    made = trainer(Greedy(), auto_find_batch_size=True)
    with pytest.raises(ValueError, match="greedy relate the rows of a micro-batch, and one of 1 has too few"):
        made.train()


@pytest.mark.parametrize(("objective", "refused"), [(DISTLoss(), True), (ForwardKLLoss(), False)])
def test_a_run_is_resumed_with_other_micro_batches_unless_objectives_relate_their_rows(objective, refused, trainer):
    saved = {"save_strategy": "steps", "save_steps": 2}
    trainer(objective, per_device_train_batch_size=8, **saved).train()
    other = trainer(objective.again(), per_device_train_batch_size=4, gradient_accumulation_steps=2, **saved)
    if refused:
        with pytest.raises(ValueError, match="what differs: rows of a micro-batch"):
            other.train(resume_from_checkpoint=True)
    else:
        other.train(resume_from_checkpoint=True)

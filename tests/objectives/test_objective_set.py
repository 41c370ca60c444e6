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

"""How much of each objective there is in a loss, and that a weight is followed whenever it is assigned."""

from __future__ import annotations

import pytest
import torch
from samples import tiny_bert
from transformers import TrainerCallback

from nlpkd import DistillationTrainer
from nlpkd.objectives import CrossEntropyLoss, ForwardKLLoss


class SetsWeight(TrainerCallback):
    """Sets an objective's weight before each step, as a schedule of the user's would."""

    def __init__(self, objective, weight):
        self.objective, self.weight = objective, weight

    def on_step_begin(self, args, state, control, **kwargs):
        self.objective.weight = self.weight


@pytest.fixture
def trainer(settings, make_rows, tokenizer):
    """Make a trainer of two objectives, the first one of a weight."""

    def make(weight, weighting="fixed"):
        args = settings(weighting=weighting, learning_rate=1e-2, lean_training=True)
        return DistillationTrainer(
            tiny_bert(seed=1), tiny_bert(seed=2), args, [CrossEntropyLoss(weight), ForwardKLLoss()], make_rows(24),
            make_rows(16, seed=1), processing_class=tokenizer,
        )  # fmt: skip

    return make


def _learned(trainer):
    trainer.train()
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


@pytest.mark.parametrize("weighting", ["fixed", "linear", "uncertainty"])
def test_a_weight_that_is_assigned_is_followed_as_one_that_is_given(weighting, trainer):
    given, assigned, by_a_callback = trainer(0.25, weighting), trainer(1.0, weighting), trainer(1.0, weighting)
    assigned.objectives[0].weight = 0.25
    by_a_callback.add_callback(SetsWeight(by_a_callback.objectives[0], 0.25))
    assert assigned.evaluate()["eval_loss"] == given.evaluate()["eval_loss"]
    expected = _learned(given)
    torch.testing.assert_close(_learned(assigned), expected)
    torch.testing.assert_close(_learned(by_a_callback), expected)
    assert assigned.run_record == given.run_record


def test_a_weight_out_of_range_is_refused_when_it_is_assigned():
    with pytest.raises(ValueError, match="ForwardKLLoss: weight must be >= 0 and finite, got -1"):
        ForwardKLLoss().weight = -1

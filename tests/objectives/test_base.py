"""What of an objective can be changed once it is bound to student and teacher."""

from __future__ import annotations

import pytest
import torch
from references import batch, bound, outputs
from samples import tiny_config

from nlpkd.objectives import (
    AdversarialLoss,
    AttentionMSELoss,
    ContrastiveLoss,
    CrossEntropyLoss,
    DecoupledKDLoss,
    DISTLoss,
    ForwardKLLoss,
    HiddenStateMSELoss,
    RelationalDistanceLoss,
    ReverseKLLoss,
    SelfAttentionRelationLoss,
)
from nlpkd.objectives.objective_set import ObjectiveSet

SETTLED = [
    (CrossEntropyLoss, "class_weights", [1.0, 5.0]),
    (HiddenStateMSELoss, "layers", "last"),
    (AttentionMSELoss, "on", "scores"),
    (RelationalDistanceLoss, "on", "logits"),
    (ContrastiveLoss, "width", 8),
    (AdversarialLoss, "width", 8),
    (SelfAttentionRelationLoss, "relation_heads", 2),
]


@pytest.mark.parametrize(("kind", "setting", "value"), SETTLED)
def test_what_an_objective_was_bound_by_is_not_assigned_until_it_is_made_again(kind, setting, value):
    objective = kind()
    setattr(objective, setting, getattr(objective, setting))
    bound = ObjectiveSet([objective])
    bound.bind(tiny_config(2), tiny_config(4), seed=0)
    with pytest.raises(ValueError, match=rf"{kind.__name__}\.{setting} was settled .* again\({setting}=\.\.\.\)"):
        setattr(objective, setting, value)
    other = ObjectiveSet([objective.again(**{setting: value})])
    other.bind(tiny_config(2), tiny_config(4), seed=0)
    assert other[0].config()[setting] != objective.config()[setting]
    bound.bind(tiny_config(2), tiny_config(4), seed=0)


@pytest.mark.parametrize("kind", [ForwardKLLoss, ReverseKLLoss, DecoupledKDLoss, DISTLoss, ContrastiveLoss])
def test_a_temperature_that_is_assigned_is_taken_as_in_the_constructor(kind):
    student, teacher = outputs(0), outputs(1)
    assigned, made = bound(kind()), bound(kind(temperature=4.0))
    assigned.temperature = 4.0
    assert assigned.config() == made.config()
    found, expected = (each.total(student, teacher, batch()) for each in (assigned, made))
    torch.testing.assert_close(found, expected)


def test_class_weights_that_are_assigned_before_are_taken_as_given_ones():
    objective = CrossEntropyLoss()
    objective.class_weights = [1, 5]
    assert objective.config() == CrossEntropyLoss(class_weights=[1, 5]).config()
    with pytest.raises(ValueError, match="give one number a class"):
        objective.class_weights = "balanced"

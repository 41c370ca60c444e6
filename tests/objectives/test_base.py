"""What of an objective can be changed once it is bound to student and teacher."""

from __future__ import annotations

import dataclasses
import inspect
import json

import numpy as np
import pytest
import torch
from references import batch, bound, outputs
from samples import tiny_config

from nlpkd import objectives
from nlpkd.objectives import (
    AdversarialLoss,
    AttentionMSELoss,
    ConstantTemperature,
    ContrastiveLoss,
    CrossEntropyLoss,
    DecoupledKDLoss,
    DISTLoss,
    FocalTemperature,
    ForwardKLLoss,
    HiddenStateMSELoss,
    LinearTemperature,
    Objective,
    RelationalDistanceLoss,
    ReverseKLLoss,
    SelfAttentionRelationLoss,
)
from nlpkd.objectives.base import setting_names
from nlpkd.objectives.objective_set import ObjectiveSet
from nlpkd.objectives.temperature import TemperatureSetting

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


EVERY_SETTING = [
    (kind, name)
    for kind in vars(objectives).values()
    if isinstance(kind, type) and issubclass(kind, Objective) and not inspect.isabstract(kind)
    for name in setting_names(kind)
]
VALUES = [
    True, -1, -0.5, 0, 0.5, 1, 1.0, 2, 2.5, 1e9, float("nan"), float("inf"), None, "1", "skp", "skip", "keep",
    "scores", "logits", "linear", "last", [1.0], [-1.0], {"a": 1.0},
]  # fmt: skip


def refusal(act, *given, **options):
    try:
        act(*given, **options)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize(("kind", "name"), EVERY_SETTING)
def test_a_setting_is_refused_or_followed_alike_by_the_constructor_by_again_and_when_it_is_assigned(kind, name):
    refusals = 0
    for value in VALUES:
        objective, told = kind(), refusal(kind, **{name: value})
        before = objective.config(), objective.needs
        assert refusal(objective.again, **{name: value}) == told
        assert refusal(setattr, objective, name, value) == told
        if told is None:
            assert (objective.config(), objective.needs) == ((made := kind(**{name: value})).config(), made.needs)
        else:
            assert name in told and (objective.config(), objective.needs) == before
            refusals += 1
        if name not in kind.fixed_by_bind and objective.config() != before[0]:
            # What recorded passes have in them is seen to have changed.
            assert ObjectiveSet([objective]).constants() != ObjectiveSet([kind()]).constants()
    # What layers there are is known when student and teacher are.
    assert refusals or name == "layers"


@pytest.mark.parametrize("kind", sorted({kind for kind, _ in EVERY_SETTING}, key=lambda kind: kind.__name__))
def test_every_setting_that_a_run_records_has_a_limit(kind):
    bounded = {name for name in kind.settings if isinstance(getattr(kind, name, None), TemperatureSetting)}
    assert set(kind.settings) <= bounded | kind.limits.keys()


@pytest.mark.parametrize("value", ["False", "no", "", 0, 1, 0.0, None])
@pytest.mark.parametrize("name", ["standardize", "confidence_weighting"])
def test_what_is_not_true_or_false_is_no_switch(name, value):
    with pytest.raises(ValueError, match=f"{name} must be True or False, got"):
        ForwardKLLoss(**{name: value})


OF_NUMPY = [
    (True, np.bool_(True)), (2, np.int64(2)), (0.5, np.float32(0.5)), (2.5, np.float64(2.5)),
    ([1.0, 2.0], np.array([1.0, 2.0])), ([[1, 2], [2, 4]], np.array([[1, 2], [2, 4]])),
    ({"a": 1.5}, {"a": np.float32(1.5)}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), EVERY_SETTING)
def test_a_number_of_numpy_is_taken_as_pythons(kind, name):
    for value, of_numpy in OF_NUMPY:
        told = refusal(kind, **{name: value})
        assert (refusal(kind, **{name: of_numpy}) is None) == (told is None)
        if told is None:
            assigned, made = kind(), kind(**{name: of_numpy})
            setattr(assigned, name, of_numpy)
            expected = json.dumps(kind(**{name: value}).config())
            assert json.dumps(made.config()) == json.dumps(assigned.config()) == expected


@pytest.mark.parametrize("kind", [ConstantTemperature, LinearTemperature, FocalTemperature])
def test_a_temperature_of_numpys_numbers_is_one_of_pythons(kind):
    count = len(dataclasses.fields(kind))
    assert repr(kind(*[np.float32(2)] * count)) == repr(kind(*[2.0] * count))


def test_layers_are_bound_by_an_array_of_pairs():
    assert bound(HiddenStateMSELoss(layers=np.array([[1, 2], [2, 3]]))).pairs == [(1, 2), (2, 3)]


def test_relation_heads_that_are_assigned_before_are_those_that_it_is_bound_with():
    objective = SelfAttentionRelationLoss()
    objective.relation_heads = 2
    assert bound(objective, 4, 12, heads=(2, 3)).config()["relation_heads"] == 2
    assert bound(SelfAttentionRelationLoss(), 4, 12, heads=(2, 3)).config()["relation_heads"] == 4


class Resolves(ForwardKLLoss):
    """One's own, whose `bind` keeps what it found under an argument's name."""

    settings = (*ForwardKLLoss.settings, "margin")

    def __init__(self, temperature=2.0, weight=1.0, *, margin=None):
        super().__init__(temperature, weight)
        self.margin = margin

    def bind(self, student_config, teacher_config):
        super().bind(student_config, teacher_config)
        self.margin = student_config.hidden_size if self.margin is None else self.margin


def bound_to(objective, pair):
    """What is recorded of an objective that is bound to a pair, and the shapes of its own parameters."""
    ObjectiveSet([objective]).bind(*pair, seed=0)
    return objective.config(), {name: tensor.shape for name, tensor in objective.state_dict().items()}


def pair_of(layers, hidden, names):
    named = {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}
    return tiny_config(layers, hidden, **named), tiny_config(2 * layers, 48, **named)


@pytest.mark.parametrize(
    "make",
    [
        *sorted({kind for kind, _ in EVERY_SETTING}, key=lambda kind: kind.__name__),
        lambda: HiddenStateMSELoss(layers="learned"),
        lambda: CrossEntropyLoss(class_weights={"pos": 3.0, "neg": 1.0}),
        Resolves,
    ],
)
def test_what_is_made_or_bound_again_keeps_nothing_of_the_pair_that_it_was_bound_to(make):
    first, second = pair_of(2, 48, ("neg", "pos")), pair_of(3, 36, ("pos", "neg"))
    objective, fresh = make(), bound_to(make(), second)
    bound_to(objective, first)
    assert bound_to(objective.again(), second) == fresh
    assert bound_to(objective.again(weight=2.0).again(weight=1.0), second) == fresh
    assert bound_to(objective, second) == fresh and bound_to(objective.again(), first) == bound_to(make(), first)


def test_a_setting_that_is_assigned_is_kept_by_what_is_made_again():
    objective = Resolves()
    objective.temperature = 4.0
    bound_to(objective, pair_of(2, 48, ("neg", "pos")))
    objective.weight, objective.margin = 0.5, 7
    again = objective.again()
    assert (again.temperature.value, again.weight, again.margin) == (4.0, 0.5, 7)

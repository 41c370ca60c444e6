"""What is left of stages without their teacher."""

import pytest
import torch
from torch.nn import functional as F

from nlpkd.objectives import CrossEntropyLoss, ForwardKLLoss, HiddenStateMSELoss, Objective, Stage
from nlpkd.objectives.presets import gold_labels_alone, resolve


class Margin(Objective):
    """Another objective on gold labels."""

    needs = frozenset({"logits", "labels"})
    teacher_needed = False

    def total(self, student, teacher, batch):
        return F.multi_margin_loss(student.logits, batch["labels"], reduction="sum")


def test_what_is_left_of_an_objective_on_gold_labels_is_a_copy_and_weights_sum_to_one():
    given = [CrossEntropyLoss(0.5, label_smoothing=0.1), ForwardKLLoss(0.5), Margin(1.5), CrossEntropyLoss(0.0)]
    hidden = [HiddenStateMSELoss()]
    first, second = gold_labels_alone([Stage(given), Stage(hidden)])
    for left in (first, second):
        assert [(type(each), each.weight) for each in left] == [(CrossEntropyLoss, 0.25), (Margin, 0.75)]
        assert left[0].label_smoothing == 0.1
    assert len({id(each) for each in [*given, *first, *second]}) == 8
    assert [each.weight for each in given] == [0.5, 1.0, 1.5, 0.0]


OTHERS = ["hinton", ["hinton"], ForwardKLLoss(), ForwardKLLoss, [ForwardKLLoss], [ForwardKLLoss(), None], 3, None]


@pytest.mark.parametrize("given", OTHERS, ids=repr)
def test_a_stage_takes_a_list_of_objectives_alone(given):
    with pytest.raises(ValueError, match="objectives must be a list of objectives"):
        Stage(given)


@pytest.mark.parametrize("given", [*OTHERS[1:], {"a": ForwardKLLoss()}], ids=repr)
def test_what_is_neither_a_preset_nor_a_list_of_objectives_or_stages_is_refused(given):
    with pytest.raises(ValueError, match="^objectives"):
        resolve(given)


def test_where_nothing_learns_from_gold_labels_the_cross_entropy_has_the_class_weights_of_the_run():
    for objectives in ([ForwardKLLoss()], [ForwardKLLoss(), CrossEntropyLoss(0.0)]):
        [[left]] = gold_labels_alone([Stage(objectives)], [1.0, 3.0])
        assert (type(left), left.weight) == (CrossEntropyLoss, 1.0)
        torch.testing.assert_close(left.class_weights, torch.tensor([1.0, 3.0]))

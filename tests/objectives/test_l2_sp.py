"""The anchor's pull against autograd of the penalty written out."""

import pytest
import torch
from samples import tiny_bert

from nlpkd.objectives.l2_sp import Anchor


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_the_gradient_of_the_penalty_is_added_to_the_gradients(scale):
    model = tiny_bert()
    anchor = Anchor(model, 0.3)
    start = [parameter.detach().clone() for parameter in model.parameters()]
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.add_(0.01 * (number + 1))
    penalty = 0.3 / 2 * sum(((now - then) ** 2).sum() for now, then in zip(model.parameters(), start, strict=True))
    expected = torch.autograd.grad(penalty, list(model.parameters()))
    first, *others = model.parameters()
    first.grad = torch.ones_like(first)
    assert anchor.pull(scale).item() == pytest.approx(penalty.item(), rel=1e-5)
    torch.testing.assert_close(first.grad, 1 + scale * expected[0])
    for parameter, gradient in zip(others, expected[1:], strict=True):
        torch.testing.assert_close(parameter.grad, scale * gradient)


def test_frozen_parameters_are_not_pulled():
    model = tiny_bert()
    model.base_model.embeddings.requires_grad_(False)
    anchor = Anchor(model, 1.0)
    anchor.pull()
    assert model.base_model.embeddings.word_embeddings.weight.grad is None
    assert model.classifier.weight.grad is not None

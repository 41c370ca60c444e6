"""The anchor's pull against autograd of the penalty written out."""

import pytest
import torch
from samples import tiny_bert

from nlpkd import DistillationTrainer
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


def test_what_is_frozen_later_stays_and_what_is_trained_later_is_pulled_to_where_it_was():
    model = tiny_bert()
    embeddings, head = model.base_model.embeddings.word_embeddings.weight, model.classifier.weight
    embeddings.requires_grad_(False)
    anchor = Anchor(model, 1.0)
    embeddings.requires_grad_(True)
    head.requires_grad_(False)
    anchor.pull()
    with torch.no_grad():
        embeddings += 0.5
        head += 0.5
    model.zero_grad()
    assert anchor.pull().item() == pytest.approx(embeddings.numel() * 0.5**2 / 2)
    assert head.grad is None
    torch.testing.assert_close(embeddings.grad, torch.full_like(embeddings, 0.5))


def test_a_resumed_run_pulls_what_was_frozen_when_it_was_made_to_the_same_start(
    settings, make_rows, tokenizer, tmp_path
):
    trained = []
    for checkpoint in (None, str(tmp_path / "out" / "checkpoint-2")):
        model = tiny_bert(seed=1)
        model.base_model.embeddings.requires_grad_(False)
        args = settings(anchor_weight=0.5, optim="sgd", learning_rate=1.0, save_strategy="steps", save_steps=2)
        trainer = DistillationTrainer(model, None, args, None, make_rows(32), processing_class=tokenizer)
        model.base_model.embeddings.requires_grad_(True)
        trainer.train(resume_from_checkpoint=checkpoint)
        trained.append(model.base_model.embeddings.word_embeddings.weight.detach())
    torch.testing.assert_close(*trained, rtol=0, atol=1e-7)

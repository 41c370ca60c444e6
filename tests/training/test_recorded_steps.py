"""Recorded steps: an optimizer and a clipping that are recorded give what torch's own give."""

import pytest
import torch
from torch import nn

from nlpkd.training.speed.recorded_steps import RecordedAdamW, RecordedCalls, RecordedClipping


class Recorder:
    """Stands for the GPU: a replay does the call again, and is counted."""

    def __init__(self, error: Exception | None = None):
        self.error, self.recorded, self.replayed = error, 0, 0

    def __call__(self, call):
        if self.error is not None:
            raise self.error
        self.recorded += 1

        def replay():
            self.replayed += 1
            return call()

        return replay


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(3, 2))


def groups(module: nn.Module) -> list[dict]:
    weights = [each for each in module.parameters() if each.dim() > 1]
    biases = [each for each in module.parameters() if each.dim() == 1]
    return [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0, "lr": 0.02}]


def train(module: nn.Module, optimizer, steps: int, clip=None) -> list[float]:
    """Leave each step's gradients in one of two places, as passes of two shapes do."""
    places = [[torch.zeros_like(each) for each in module.parameters()] for _ in range(2)]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    norms = []
    for step in range(steps):
        module.zero_grad()
        inputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
        found = torch.autograd.grad(module(inputs).square().sum(), list(module.parameters()))
        for parameter, place, gradient in zip(module.parameters(), places[step % 2], found, strict=True):
            parameter.grad = place.copy_(gradient)
        norms.append((clip or (lambda most: nn.utils.clip_grad_norm_(module.parameters(), most)))(1.0))
        optimizer.step()
        schedule.step()
    return [norm.item() for norm in norms]


def test_recorded_steps_move_weights_as_torch_s_own_do_under_a_schedule_with_two_groups():
    usual, ours = model(), model()
    norms = train(usual, torch.optim.AdamW(groups(usual), lr=0.1, fused=True), 12)
    recorder, clipper = Recorder(), Recorder()
    optimizer = RecordedAdamW(groups(ours), lr=0.1, fused=True)
    optimizer.calls = RecordedCalls(recorder)
    clipping = RecordedClipping(optimizer, clipper)
    assert train(ours, optimizer, 12, clipping) == pytest.approx(norms, rel=1e-5)
    assert recorder.recorded == clipper.recorded == 2
    assert recorder.replayed > 5 and clipper.replayed > 5
    for one, other in zip(ours.parameters(), usual.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_whether_steps_are_recorded_changes_no_bit():
    recorded, usual, recorder = model(), model(), Recorder()
    optimizer = RecordedAdamW(groups(recorded), lr=0.1, fused=True)
    optimizer.calls = RecordedCalls(recorder)
    train(recorded, optimizer, 12)
    train(usual, RecordedAdamW(groups(usual), lr=0.1, fused=True), 12)
    assert recorder.replayed > 5
    for one, other in zip(recorded.parameters(), usual.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_the_state_of_a_recorded_optimizer_is_torch_s_own():
    module, recorder = model(), Recorder()
    optimizer = RecordedAdamW(groups(module), lr=0.1, fused=True)
    optimizer.calls = RecordedCalls(recorder)
    train(module, optimizer, 8)
    other = torch.optim.AdamW(groups(module), lr=0.1, fused=True)
    train(module, other, 8)
    ours, theirs = optimizer.state_dict(), other.state_dict()
    assert [group.keys() for group in ours["param_groups"]] == [group.keys() for group in theirs["param_groups"]]
    assert all(type(group["lr"]) is float and group["capturable"] is False for group in ours["param_groups"])
    assert ours["state"][0]["step"] == 8


def test_after_a_state_is_loaded_steps_are_recorded_anew():
    module, recorder = model(), Recorder()
    optimizer = RecordedAdamW(groups(module), lr=0.1, fused=True)
    optimizer.calls = RecordedCalls(recorder)
    train(module, optimizer, 8)
    optimizer.load_state_dict(optimizer.state_dict())
    before = recorder.recorded
    train(module, optimizer, 8)
    assert recorder.recorded == before + 2


def test_a_closure_a_scaler_or_an_unrecorded_optimizer_takes_the_usual_step():
    module, recorder = model(), Recorder()
    optimizer = RecordedAdamW(groups(module), lr=0.1, fused=True)
    train(module, optimizer, 6)
    optimizer.calls = RecordedCalls(recorder)
    for _ in range(6):
        assert optimizer.step(lambda: torch.tensor(3.0)) == 3.0
    optimizer.grad_scale, optimizer.found_inf = torch.ones(()), torch.zeros(())
    for _ in range(6):
        optimizer.step()
    assert recorder.recorded == 0


def test_where_no_place_comes_up_again_nothing_is_recorded_and_nothing_is_kept():
    recorder = Recorder()
    calls, kept = RecordedCalls(recorder), [torch.zeros(1) for _ in range(600)]
    assert [calls(lambda number=number: number, [place]) for number, place in enumerate(kept)] == list(range(600))
    assert recorder.recorded == 0 and len(calls.seen) < 300


def test_after_a_failed_recording_every_call_is_the_usual_one_and_it_is_said_once(caplog):
    calls, place = RecordedCalls(Recorder(RuntimeError("operation not permitted\nmore"))), torch.zeros(1)
    assert [calls(lambda number=number: number, [place]) for number in range(6)] == list(range(6))
    assert caplog.text.count("could not be recorded") == 1


def test_other_settings_are_another_recording():
    recorder, place = Recorder(), torch.zeros(1)
    calls = RecordedCalls(recorder)
    for most in (1.0, 2.0):
        assert [calls(lambda most=most: most, [place], most) for _ in range(4)] == [most] * 4
    assert recorder.recorded == 2

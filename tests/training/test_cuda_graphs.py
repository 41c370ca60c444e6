"""Recorded passes: which are recorded, when, and that their outputs are those of the usual pass."""

import copy
from contextlib import nullcontext

import pytest
import torch
from samples import tiny_bert
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nlpkd import DistillationConfig, DistillationTrainer
from nlpkd.models.capture import Capture
from nlpkd.objectives import AttentionMSELoss, CrossEntropyLoss, ForwardKLLoss, HiddenStateMSELoss
from nlpkd.objectives.temperature import LinearTemperature
from nlpkd.training.loss import DistillationLoss
from nlpkd.training.speed import cuda_graphs
from nlpkd.training.speed.cuda_graphs import CudaGraphs, RecordedPasses, can_be_recorded
from nlpkd.training.speed.lean import CUDA_GRAPHS, refused_speed_ups

WANTED = {"hidden_states": frozenset({0, 2}), "attentions": frozenset({1}), "values": frozenset({2})}


class Recorder:
    """Stands for the GPU: a module that it has recorded is run as it is."""

    def __init__(self, error: Exception | None = None):
        self.error, self.samples = error, []

    def __call__(self, module: nn.Module, samples: tuple) -> nn.Module:
        if self.error is not None:
            raise self.error
        self.samples.append(samples)
        return module


def batch(rows: int, tokens: int, seed: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 20, (rows, tokens), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def student(wanted=WANTED) -> tuple[nn.Module, Capture, Recorder]:
    model = tiny_bert().train()
    capture, recorder = Capture(model, wanted, "student"), Recorder()
    capture.recorded = RecordedPasses(capture.run, trains=True, record=recorder)
    return model, capture, recorder


def test_a_recorded_pass_gives_every_kind_of_output_where_the_usual_pass_has_it():
    model, capture, recorder = student()
    inputs = batch(3, 8)
    usual = capture.run(model, inputs)
    for _ in range(3):
        found = capture(model, inputs)
    assert len(recorder.samples) == 1
    torch.testing.assert_close(found.logits, usual.logits, rtol=0, atol=0)
    for kind in ("hidden_states", "attentions", "queries", "keys", "values"):
        ours, theirs = getattr(found, kind), getattr(usual, kind)
        assert (ours is None) == (theirs is None), kind
        for one, other in zip(ours or (), theirs or (), strict=True):
            assert (one is None) == (other is None), kind
            if other is not None:
                torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert found.pooled_index is None


def test_a_shape_is_recorded_when_it_comes_for_the_third_time_with_samples_of_its_own():
    model, capture, recorder = student({})
    for tokens, recorded in ((8, 0), (16, 0), (8, 0), (8, 1), (8, 1), (16, 1), (16, 2)):
        inputs = batch(2, tokens)
        capture(model, inputs)
        assert len(recorder.samples) == recorded
    assert [sample[0].shape[1] for sample in recorder.samples] == [8, 16]
    assert all(sample[0].data_ptr() != inputs["input_ids"].data_ptr() for sample in recorder.samples)


def test_another_model_is_recorded_anew():
    model, capture, recorder = student({})
    for _ in range(4):
        capture(model, batch(2, 8))
    other = copy.deepcopy(model)
    other.classifier.bias.data += 1
    for _ in range(4):
        found = capture(other, batch(2, 8))
    assert len(recorder.samples) == 2
    torch.testing.assert_close(found.logits, model(**batch(2, 8)).logits + 1)


def test_evaluation_is_never_recorded_for_a_student_and_training_never_for_a_teacher():
    model, capture, recorder = student({})
    with torch.no_grad():
        for _ in range(4):
            capture(model, batch(2, 8))
    model.eval()
    for _ in range(4):
        capture(model, batch(2, 8))
    assert not recorder.samples
    capture.recorded = RecordedPasses(capture.run, trains=False, record=recorder)
    for _ in range(4):
        capture(model, batch(2, 8))
    assert not recorder.samples
    with torch.no_grad():
        for _ in range(4):
            capture(model, batch(2, 8))
    assert len(recorder.samples) == 1


def test_after_a_failed_recording_every_pass_is_the_usual_one_and_it_is_said_once(caplog):
    model, capture, _ = student({})
    tried = Recorder(RuntimeError("operation not permitted when stream is capturing\nmore"))
    capture.recorded = RecordedPasses(capture.run, trains=True, record=tried)
    for tokens in (8, 16):
        for _ in range(4):
            torch.testing.assert_close(
                capture(model, batch(2, tokens)).logits, capture.run(model, batch(2, tokens)).logits
            )
    assert caplog.text.count("could not be recorded") == 1 and "stream is capturing" in caplog.text


def test_a_hook_of_somebody_s_own_or_another_family_is_not_recorded():
    model, _, _ = student({})
    assert can_be_recorded(model)
    model.bert.encoder.layer[0].register_forward_hook(lambda *_: None)
    assert not can_be_recorded(model)
    assert not can_be_recorded(nn.Linear(2, 2))


def test_on_the_cpu_nothing_is_recorded_and_lengths_are_not_rounded(tmp_path, make_rows, tokenizer):
    args = DistillationConfig(str(tmp_path), report_to="none", teacher_check="off")
    trainer = DistillationTrainer(
        tiny_bert(1), tiny_bert(), args, [ForwardKLLoss()], train_dataset=make_rows(8), processing_class=tokenizer
    )
    assert refused_speed_ups(trainer._parts())[CUDA_GRAPHS] == "", "there is nothing to gain, and nothing to say"
    assert trainer.data_collator.pad_to_multiple_of is None


def losses_with(recorder, objectives, tmp_path, make_rows, tokenizer, **settings) -> list[float]:
    """Train eight steps with dropout, every pass as the recorder leaves it."""
    args = DistillationConfig(
        str(tmp_path), report_to="none", teacher_check="off", logging_steps=1, per_device_train_batch_size=4,
        learning_rate=1e-2, max_steps=8, cache_teacher="off", save_strategy="no", train_sampling_strategy="random",
        **settings,
    )  # fmt: skip
    student = tiny_bert(1, hidden_dropout_prob=0.1)
    trainer = DistillationTrainer(
        student, tiny_bert(), args, copy.deepcopy(objectives), train_dataset=make_rows(32), processing_class=tokenizer
    )
    if recorder is not None:
        graphs = CudaGraphs(trainer._loss)
        for changed in graphs.changed:
            changed.recorded.record = recorder
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


EVERYTHING = [CrossEntropyLoss(0.5), ForwardKLLoss(4.0), HiddenStateMSELoss(), AttentionMSELoss()]


def test_a_training_on_recorded_passes_has_the_same_losses_whether_or_not_the_objectives_are_in_them(
    tmp_path, make_rows, tokenizer
):
    arguments = (tmp_path, make_rows, tokenizer)
    for objectives, modules in ((EVERYTHING, 2), ([ForwardKLLoss(LinearTemperature(4.0, 1.0))], 2)):
        usual, recorder = losses_with(None, objectives, *arguments), Recorder()
        assert losses_with(recorder, objectives, *arguments) == usual
        assert len(recorder.samples) >= modules


def test_what_changes_from_step_to_step_on_the_host_is_not_recorded(tmp_path, make_rows, tokenizer):
    class Own(ForwardKLLoss):
        pass

    def changed(objectives, **settings):
        args = DistillationConfig(str(tmp_path), report_to="none", teacher_check="off", **settings)
        trainer = DistillationTrainer(
            tiny_bert(1), tiny_bert(), args, objectives, train_dataset=make_rows(8), processing_class=tokenizer
        )
        return [type(each).__name__ for each in CudaGraphs(trainer._loss).changed]

    assert changed([ForwardKLLoss(), CrossEntropyLoss()]) == ["Capture", "DistillationLoss", "Capture"]
    assert changed([ForwardKLLoss(LinearTemperature(4.0, 1.0))]) == ["Capture", "Capture"]
    assert changed([ForwardKLLoss(), CrossEntropyLoss()], weighting="linear") == ["Capture", "Capture"]
    assert changed([Own()]) == ["Capture", "Capture"]


class Tape(TorchDispatchMode):
    """A CUDA graph's stand-in on the CPU: it repeats the recorded operations on the same tensors."""

    def __init__(self):
        super().__init__()
        self.operations: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, found))
        return found

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, found in self.operations:
                again = func(*args, **kwargs)
                for place, value in zip(tree_leaves(found), tree_leaves(again), strict=True):
                    if isinstance(place, torch.Tensor) and place is not value:
                        place.copy_(value)


@pytest.fixture
def taped(monkeypatch):
    """Record on tapes what a GPU would record as graphs."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Tape)
    monkeypatch.setattr(cuda_graphs, "recording", lambda tape, pool: tape)
    monkeypatch.setattr(cuda_graphs, "own_stream", nullcontext)
    return lambda module, samples: cuda_graphs._Graphs(module, samples, None)


@pytest.fixture
def drawing_alike(taped, monkeypatch):
    """Record on tapes without drawing numbers; on a GPU those that are drawn meanwhile are given back."""
    monkeypatch.setattr(cuda_graphs, "_WARM_UPS", 0)

    def record(module, samples):
        drawn = torch.get_rng_state()
        recorded = taped(module, samples)
        torch.set_rng_state(drawn)
        return recorded

    return record


def run_steps(
    record=None, scale: float = 1.0, objectives=None, weights=()
) -> tuple[list[float], list[torch.Tensor], int]:
    """Train on batches of two shapes, the first objective weighed by step; recorded passes are counted too."""
    torch.manual_seed(0)
    model = tiny_bert(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1).train()
    args = DistillationConfig(output_dir="unused", use_cpu=True, report_to="none")
    loss = DistillationLoss(
        model, None, objectives or [CrossEntropyLoss(), CrossEntropyLoss(weight=0.5)], None, args, tokenizer=None,
        teacher_tokenizer=None, rows=None, classes=None, autocast=nullcontext,
    )  # fmt: skip
    passes = RecordedPasses(loss.run, trains=True, others=loss.objectives, shared="teacher", record=record)
    if record is not None:
        loss.recorded = passes
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(12):
        optimizer.zero_grad()
        loss.objectives.members[0].weight = dict(weights).get(step, loss.objectives.members[0].weight)
        inputs = batch(3, 8 * (1 + step % 2), seed=step) | {"labels": torch.tensor([0, 1, step % 2])}
        value, _, _ = loss.on(model, inputs, loss.counts(inputs))
        # What a scaler of gradients does
        (scale * value).backward()
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad /= scale
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        losses.append(value.item())
    return losses, [each.detach() for each in model.parameters()], len(passes.passes)


def test_a_weight_that_is_assigned_between_two_steps_holds_from_there_on_in_recorded_passes_too(drawing_alike):
    weights = [(0, 1.0), (6, 0.0)]
    usual, found = run_steps(weights=weights), run_steps(drawing_alike, weights=weights)
    assert found[:2] != run_steps()[:2] and found[2] == 4
    assert found[0] == usual[0]


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_a_training_on_recorded_passes_is_the_usual_training_to_the_last_bit_dropout_too(drawing_alike, scale):
    usual, found = run_steps(scale=scale), run_steps(drawing_alike, scale)
    assert usual[2] == 0 and found[2] == 2
    assert found[0] == usual[0]
    for one, other in zip(found[1], usual[1], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_gradients_that_share_a_place_are_given_places_of_their_own(taped):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))

        def forward(self, inputs):
            return ((self.first + self.second + inputs).sum(),)

    module = Sum()
    replay = taped(module, (torch.zeros(3),))
    (value,) = replay(torch.tensor([1.0, 2.0, 3.0]))
    (2 * value).backward()
    assert value.item() == 12.0
    module.first.grad.mul_(10)
    assert module.first.grad.tolist() == [20.0] * 3 and module.second.grad.tolist() == [2.0] * 3

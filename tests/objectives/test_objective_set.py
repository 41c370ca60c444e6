"""What objectives ask of a run together: micro-batches of enough rows for those that relate rows."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from samples import tiny_bert
from torch import nn

from nlpkd import DistillationTrainer
from nlpkd.objectives import (
    ContrastiveLoss,
    CrossEntropyLoss,
    DISTLoss,
    FocalTemperature,
    ForwardKLLoss,
    Objective,
    RelationalAngleLoss,
    RelationalDistanceLoss,
)
from nlpkd.objectives.objective_set import OBJECTIVES_FILE, ObjectiveSet, names_of, with_settings


@pytest.fixture
def trainer(settings, make_rows, tokenizer):
    """Make a trainer of gold labels and one more objective."""

    def make(*objectives, **config):
        return DistillationTrainer(
            tiny_bert(seed=1, num_labels=3), tiny_bert(seed=2, num_labels=3), settings(**config),
            [CrossEntropyLoss(), *objectives], make_rows(24, names=("neg", "pos", "mixed")),
            processing_class=tokenizer,
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


class Own(Objective):
    """Has whatever modules it is given."""

    needs = frozenset({"logits"})

    def __init__(self, weight=1.0, **modules):
        super().__init__(weight)
        self.held = nn.ModuleDict(modules)

    def total(self, student, teacher, batch):
        return sum(each(student.logits).square().sum() for each in self.held.values())


class Halves(nn.Module):
    """Two tensors that lie in one, one of them as a buffer."""

    def __init__(self):
        super().__init__()
        whole = torch.rand(6, 3)
        self.weight = nn.Parameter(whole[:3])
        self.register_buffer("other", whole[3:])

    def forward(self, logits):
        return logits @ self.weight + self.other.sum()


class ExtraTensor(nn.Linear):
    """Has an extra state that a file can hold."""

    seen = torch.zeros(3)

    def get_extra_state(self):
        return self.seen

    def set_extra_state(self, state):
        self.seen = state


def shared_layers():
    one = nn.Linear(3, 3)
    return [Own(first=one, second=one)], 2


def shared_between_objectives():
    one = nn.Linear(3, 3)
    return [Own(held=one), CrossEntropyLoss(), Own(held=one)], 2


def tied_weights():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    return [Own(first=first, second=second)], 3


def alone(kind, count):
    return lambda: ([Own(held=kind())], count)


SHARED = {
    "layers": shared_layers, "objectives": shared_between_objectives, "tied": tied_weights,
    "views": alone(Halves, 2), "extra": alone(lambda: ExtraTensor(3, 3), 3),
}  # fmt: skip


@pytest.mark.parametrize("case", SHARED)
def test_whatever_tensors_objectives_share_is_saved_once_and_loaded_right(case, tmp_path):
    (wrote, count), (read, _) = SHARED[case](), SHARED[case]()
    ObjectiveSet(wrote).save(tmp_path)
    saved, loaded = ObjectiveSet(wrote).state_dict(), ObjectiveSet(read)
    loaded.load(tmp_path)
    assert all(torch.equal(each, saved[name]) for name, each in loaded.state_dict().items())
    assert len(load_file(tmp_path / OBJECTIVES_FILE)) == count
    # What was one tensor is one still.
    assert len(loaded.trained()) == len(ObjectiveSet(wrote).trained())


SAVES = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}


@pytest.mark.parametrize("case", SHARED)
def test_a_training_of_objectives_that_share_tensors_saves_checkpoints_and_resumes(case, trainer, tmp_path):
    found = []
    for resume in (False, True):
        torch.manual_seed(0)
        made = trainer(*SHARED[case]()[0], output_dir=str(tmp_path), rehearsal=True, **SAVES)
        made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1") if resume else None)
        found.append(made.objectives.state_dict())
    assert all(torch.allclose(each, found[1][name]) for name, each in found[0].items())

"""An objective of one's own that does not keep the contract is refused by name before a training."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from samples import tiny_bert, tiny_config

from nlpkd import DistillationTrainer
from nlpkd.objectives import CrossEntropyLoss, ForwardKLLoss, LinearTemperature, Objective, Stage
from nlpkd.objectives.objective_set import ObjectiveSet, with_settings
from nlpkd.objectives.presets import resolve


class Gap(Objective):
    """What is right; what is wrong derives from it."""

    needs = frozenset({"logits"})

    def total(self, student, teacher, batch):
        return (student.logits - teacher.logits).abs().sum()


class States(Gap):
    """Reads layers, by a class that knows none."""

    needs = frozenset({"hidden_states"})

    def total(self, student, teacher, batch):
        return (student.hidden_states[2] - teacher.hidden_states[4]).square().sum()


class Kept(Gap):
    """Records whatever it is given."""

    settings = ("held",)

    def __init__(self, weight=1.0, held=None):
        super().__init__(weight)
        self.held = held


class NoConstructor(Gap):
    def __init__(self):
        pass


def derived(base=Gap, **members):
    return type("Own", (base,), members)


STATED = [
    (derived(Objective, total=Gap.total), "Own.needs must be a set"),
    (derived(needs=["logits"]), "Own.needs must be a set"),
    (derived(needs="logits"), "Own.needs must be a set"),
    (derived(needs=frozenset({"logit"})), r"Own.needs .*some of \['attentions', .*got frozenset\(\{'logit'\}\)"),
    (derived(tasks="regression"), "Own.tasks must be a set"),
    (derived(tasks={"sorting"}), "Own.tasks must be a set"),
    (derived(settings=("nothing",)), r"Own.settings must name attributes .*no \['nothing'\]"),
    (derived(settings="weight"), "Own.settings must name attributes"),
    (NoConstructor, r"NoConstructor must call super\(\).__init__\(weight\)"),
]


@pytest.mark.parametrize(("kind", "said"), STATED)
def test_what_an_objective_says_of_itself_is_checked_where_a_list_of_objectives_is_given(kind, said, settings):
    for take in (Stage, resolve, lambda given: DistillationTrainer(tiny_bert(), None, settings(), given)):
        with pytest.raises(ValueError, match=said):
            take([ForwardKLLoss(), kind()])


@pytest.mark.parametrize("held", [torch.zeros(2), Path("x"), print, float("nan"), {1: {2}}, [b"x"]], ids=repr)
def test_a_setting_that_no_report_can_hold_is_refused_with_the_list(held):
    with pytest.raises(ValueError, match=f"Kept: held is recorded with the run, and a {type(held).__name__} can't be"):
        Stage([Kept(held=held)])


def test_what_an_objective_records_once_it_is_bound_is_checked_too():
    own = derived(config=lambda self: Gap.config(self) | {"file": Path("x")})
    with pytest.raises(ValueError, match="Own: file is recorded with the run, and a PosixPath can't be"):
        ObjectiveSet([own()]).bind(tiny_config(2), tiny_config(4), seed=0)


@pytest.mark.parametrize("held", [None, "a", 2, 0.5, [1, 2], {"a": [True]}, LinearTemperature()], ids=repr)
def test_what_a_report_can_hold_passes(held):
    assert Stage([Kept(held=held)]).objectives[0].held == held


class Counts(Gap):
    """Keeps what no file of tensors can hold."""

    def get_extra_state(self):
        return {"seen": 3}

    def set_extra_state(self, state):
        pass


def test_a_state_that_no_checkpoint_can_hold_is_refused_when_the_models_are_known(trainer):
    with pytest.raises(ValueError, match=r"Counts: _extra_state .*alone, got \{'seen': 3\}: keep it as a buffer"):
        trainer(Counts())


def test_the_same_instance_is_taken_once_alone(settings):
    twice = ForwardKLLoss()
    for take in (Stage, resolve, lambda given: DistillationTrainer(tiny_bert(), None, settings(), given)):
        with pytest.raises(ValueError, match="the same ForwardKLLoss twice.*give a second instance"):
            take([twice, Gap(), twice])


LAYERS = [
    (None, r"needs \['hidden_states'\] and names none"),
    (({}, {}), r"needs \['hidden_states'\] and names none"),
    (({"hidden_states": set()}, {}), r"names set\(\) as 'hidden_states' of the student"),
    ({"hidden_states": {2}}, "needs layers and names none"),
    (({"hidden_states": {3}}, {"hidden_states": {4}}), "of the student: give a set of whole numbers from 0 to 2"),
    (({"hidden_states": {2}}, {"hidden_states": {-1}}), "of the teacher: give a set of whole numbers from 0 to 4"),
    (({"hidden_states": {2}}, {"hidden_states": 4}), "of the teacher: give a set of whole numbers from 0 to 4"),
    (({"hidden_states": {1.5}}, {"hidden_states": {4}}), r"names \{1.5\} as 'hidden_states' of the student"),
    (({"hidden_states": {2}, "attentions": {0}}, {}), r"names \{0\} as 'attentions' of the student: .* from 1 to 2"),
    (({"hidden_states": {2}, "logits": {1}}, {}), r"names \{1\} as 'logits' of the student"),
]


@pytest.mark.parametrize(("layers", "said"), LAYERS)
def test_layers_that_are_not_named_or_not_there_are_refused_when_the_models_are_known(layers, said):
    members = {} if layers is None else {"required_layers": lambda self: layers}
    with pytest.raises(ValueError, match=f"Own.*{said}"):
        ObjectiveSet([derived(States, **members)()]).bind(tiny_config(2), tiny_config(4), seed=0)


@pytest.fixture
def trainer(settings, make_rows, tokenizer):
    """Make a trainer of a student of 2 layers and a teacher of 4."""

    def make(*objectives):
        return DistillationTrainer(
            tiny_bert(2), tiny_bert(4, seed=1), settings(max_steps=1), [*objectives, ForwardKLLoss()], make_rows(16),
            processing_class=tokenizer,
        )  # fmt: skip

    return make


@pytest.mark.parametrize("kind", [frozenset, set, list, tuple, np.array])
def test_layers_may_be_listed_in_any_way(kind, trainer):
    layers = {"hidden_states": kind([2])}, {"hidden_states": kind([4])}
    made = trainer(derived(States, required_layers=lambda self: layers)())
    made.train()
    assert made.state.global_step == 1


SCALARS = [
    ({"count": lambda self, batch: len(batch["input_ids"])}, "Own.count must give a single number.*gave 8$"),
    ({"count": lambda self, batch: batch["attention_mask"].sum(1)}, r"Own.count must .*gave torch.int64 \(8,\)"),
    ({"total": lambda self, student, *rest: student.logits.sum(1)}, r"Own.total must .*gave torch.float32 \(8,\)"),
    ({"total": lambda self, *given: None}, "Own.total must .*gave None"),
]


@pytest.mark.parametrize(("members", "said"), SCALARS)
def test_a_count_or_a_total_that_is_no_single_number_is_refused_before_the_first_step(members, said, trainer):
    with pytest.raises(ValueError, match=said):
        trainer(derived(**members)())


UNLEARNED = {
    "argmax": lambda student, teacher: (student.logits.argmax(-1) != 1 - student.logits.argmax(-1)).float().sum(),
    "argmax that is right": lambda student, teacher: (student.logits.argmax(-1) != 0).float().sum(),
    "argmax that is wrong": lambda student, teacher: (student.logits.argmax(-1) != 1).float().sum(),
    "whole number": lambda student, teacher: (student.logits < 1e9).sum(),
    "detached": lambda student, teacher: student.logits.detach().square().sum(),
    "of the teacher alone": lambda student, teacher: teacher.logits.square().sum(),
    "of no model": lambda student, teacher: torch.tensor(3.5),
    "a number": lambda student, teacher: 3.5,
    "no number": lambda student, teacher: float("nan"),
}
"""Totals that a student can't learn from."""


@pytest.mark.parametrize("how", UNLEARNED)
def test_a_loss_without_a_gradient_is_refused_by_name_before_the_first_step(how, trainer, loss_function):
    total = UNLEARNED[how]
    said = "gave .* without a gradient, and nothing would be learned"
    with pytest.raises(ValueError, match=f"Own.total {said}"):
        trainer(derived(total=lambda self, student, teacher, batch: total(student, teacher))())
    if "teacher" not in how:
        with pytest.raises(ValueError, match=f"compute_loss_func {said}"):
            loss_function(lambda outputs, labels, num_items_in_batch=None: total(outputs, None))


LEARNED = {
    "no row": lambda student: torch.zeros(()),
    "no row, a whole number": lambda student: torch.tensor(0),
    "no row, a plain number": lambda student: 0,
    "a hinge at 0": lambda student: (student.logits - 1e9).clamp(min=0).sum(),
    "an operation in place": lambda student: student.logits.mul_(2.0).square().sum(),
    "float64": lambda student: student.logits.double().square().sum(),
    "its own weight": lambda student: torch.nn.Parameter(torch.ones(())) * 2.0,
}
"""Totals that a student learns from, or that rightly have no gradient on these rows."""


@pytest.mark.parametrize("how", LEARNED)
def test_a_loss_that_needs_no_gradient_or_has_one_passes(how, trainer):
    total = LEARNED[how]
    trainer(derived(total=lambda self, student, *given: total(student))())


def test_an_objective_may_differentiate_by_what_the_student_computed_its_outputs_from(trainer):
    def total(self, student, *given):
        if not torch.is_grad_enabled():
            return student.logits.sum() * 0.0
        (slope,) = torch.autograd.grad(
            student.logits.square().sum(), student.hidden_states[1], create_graph=True, retain_graph=True
        )
        return slope.square().sum()

    layers = {"required_layers": lambda self: ({"hidden_states": frozenset({1})}, {})}
    trainer(derived(needs=frozenset({"logits", "hidden_states"}), total=total, **layers)())


def test_an_objective_that_is_logged_alone_needs_no_gradient(trainer):
    made = trainer(derived(total=lambda self, student, *given: student.logits.detach().square().sum())(weight=0.0))
    made.train()
    assert made.state.log_history[0]["loss/own"] > 0


def test_what_fails_with_gradients_alone_is_refused(trainer):
    own = derived(total=lambda self, student, *given: torch.tensor(student.logits.numpy().sum()))
    with pytest.raises(
        ValueError, match="Own.total fails where the student's outputs have a gradient: Can't call numpy"
    ):
        trainer(own())


COUNTED = [-8.0, math.inf, math.nan, True]


@pytest.mark.parametrize("count", COUNTED)
def test_a_count_that_a_mean_can_not_run_over_is_refused_before_the_first_step(count, trainer):
    with pytest.raises(ValueError, match="Own.count must give how many the mean runs over.*and gave"):
        trainer(derived(count=lambda self, batch: torch.tensor(count))())


@pytest.fixture
def loss_function(settings, make_rows, tokenizer):
    """Make a trainer with a loss function of one's own beside an objective."""

    def make(function):
        return DistillationTrainer(
            tiny_bert(2), None, settings(max_steps=1), [CrossEntropyLoss()], make_rows(16), processing_class=tokenizer,
            compute_loss_func=function,
        )  # fmt: skip

    return make


RETURNED = {
    "None": lambda loss: None,
    "a plain number": lambda loss: loss.item(),
    "a mapping": lambda loss: {"loss": loss},
    "a pair": lambda loss: (loss, loss),
    "one element": lambda loss: loss[None],
    "a loss a row": lambda loss: loss.expand(8),
}


@pytest.mark.parametrize("what", RETURNED)
def test_what_a_loss_function_may_not_return_is_refused_before_the_first_step(what, loss_function):
    def own(outputs, labels, num_items_in_batch=None):
        return RETURNED[what](torch.nn.functional.cross_entropy(outputs.logits, labels))

    with pytest.raises(ValueError, match="compute_loss_func (must give a single number|gave .* without a gradient)"):
        loss_function(own)


@pytest.mark.parametrize("own", [lambda outputs, labels: 0, lambda outputs: 0, lambda *given: 0], ids=range(3))
def test_a_loss_function_that_does_not_take_what_it_is_given_is_refused(own, loss_function):
    with pytest.raises(ValueError, match=r"is called as compute_loss_func\(outputs, labels, num_items_in_batch=...\)"):
        loss_function(own)


def test_a_loss_function_that_is_tried_is_as_it_was(loss_function):
    class Own:
        seen = 0

        def __call__(self, outputs, labels, **options):
            self.seen += 1
            return outputs.logits.square().sum()

    own = Own()
    made = loss_function(own)
    assert own.seen == 0
    made.train()
    assert own.seen == 1 and made.state.log_history[0]["loss/compute_loss_func"] > 0


class Remembers(Gap):
    """Keeps how often it was asked, and fails where nothing of a training is there."""

    asked, ready = 0, False

    def total(self, student, teacher, batch):
        self.asked += 1
        assert self.ready, "not prepared"
        return super().total(student, teacher, batch)


def test_an_objective_that_is_tried_is_as_it_was_and_may_need_what_a_training_brings(trainer):
    objective = Remembers()
    made = trainer(objective)
    assert objective.asked == 0
    objective.ready = True
    made.train()
    assert objective.asked > 0


class Renames(Gap):
    """Keeps an argument under another name."""

    def __init__(self, weight=1.0, *, margin=1.0):
        super().__init__(weight)
        self.other = margin


def test_an_objective_that_can_not_be_made_again_says_which_argument_it_does_not_keep():
    with pytest.raises(ValueError, match="Renames can't be made again: its constructor takes margin, and it has no"):
        with_settings([Renames(), ForwardKLLoss()], {"forward_kl.temperature": 3.0})
    assert Renames().again(margin=3.0).other == 3.0


class Noisy(Gap):
    def total(self, student, teacher, batch):
        return super().total(student, teacher, batch) * torch.rand(())


def test_trying_an_objective_draws_none_of_the_training_s_random_numbers(settings, make_rows, tokenizer):
    states = []
    for objective in (Gap(), Noisy()):
        torch.manual_seed(0)
        DistillationTrainer(
            tiny_bert(layers=2), tiny_bert(layers=4), settings(teacher_check="off"), [objective], make_rows(16), None,
            tokenizer,
        )  # fmt: skip
        states.append(torch.get_rng_state())
    assert torch.equal(*states)

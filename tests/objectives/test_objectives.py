"""Each objective against a naive loop written from its paper, and the contract that all of them keep."""

import dataclasses
import inspect
import json
import logging
import math

import numpy as np
import pytest
import torch
from references import LAYERS, MASK, REFERENCES, batch, bound, changed, doubled, outputs, tensors
from samples import tiny_bert
from transformers.modeling_outputs import SequenceClassifierOutput

from nlpkd import objectives
from nlpkd.config import DistillationConfig
from nlpkd.models.capture import CapturedOutput
from nlpkd.objectives import (
    AdversarialLoss,
    AttentionMSELoss,
    ContrastiveLoss,
    CrossEntropyLoss,
    DecoupledKDLoss,
    DISTLoss,
    FocalTemperature,
    ForwardKLLoss,
    GramLoss,
    HiddenStateMSELoss,
    JSDLoss,
    LinearTemperature,
    LogitMSELoss,
    Objective,
    RelationalAngleLoss,
    RelationalDistanceLoss,
    ReverseKLLoss,
    SelfAttentionRelationLoss,
    Stage,
    TeacherLabelLoss,
    Temperature,
    ValueRelationLoss,
)
from nlpkd.objectives.examples import ExampleObjective
from nlpkd.objectives.objective_set import ObjectiveSet
from nlpkd.objectives.presets import PRESETS, resolve, with_preset_settings
from nlpkd.objectives.temperature import TemperatureSetting

CASES = [
    pytest.param(make, naive, id=f"{kind.__name__}-{number}")
    for kind, cases in REFERENCES.items()
    for number, (make, naive) in enumerate(cases)
]
EVERY = [
    pytest.param(make, id=f"{kind.__name__}-{n}") for kind, c in REFERENCES.items() for n, (make, _) in enumerate(c)
]


def test_every_objective_has_a_reference_value():
    def family(cls):
        return [cls, *(one for child in cls.__subclasses__() for one in family(child))]

    public = {getattr(objectives, name) for name in objectives.__all__ if name.endswith("Loss")}
    concrete = {c for c in family(Objective) if c.__module__.startswith("nlpkd.") and not inspect.isabstract(c)}
    assert concrete == set(REFERENCES)
    assert concrete <= public


@pytest.mark.parametrize(("make", "naive"), CASES)
def test_value_and_gradient_equal_the_naive_loop(make, naive):
    """A mean over the wrong axis, a forgotten T^2 or swapped arguments would all train, and all be wrong."""
    objective, student, teacher = bound(make()), outputs(0), outputs(1)
    if objective.needs & {"hidden_states"} and getattr(objective, "layer_scores", None) is not None:
        torch.nn.init.normal_(objective.layer_scores)
    value = objective(student, teacher, batch())
    value.backward()
    ours = doubled(student)
    reference = naive(objective, ours, doubled(teacher))
    reference.backward()
    assert value.item() == pytest.approx(reference.item(), rel=1e-4, abs=1e-6)
    turned = -1.0 if isinstance(objective, AdversarialLoss) else 1.0
    for found, expected in zip(tensors(student), tensors(ours), strict=True):
        zero = torch.zeros_like(expected)
        found = zero if found.grad is None else found.grad.double()
        torch.testing.assert_close(
            found, turned * (zero if expected.grad is None else expected.grad), rtol=1e-3, atol=1e-5
        )


def test_kl_of_a_case_done_by_hand():
    """Teacher (3/4, 1/4), student (1/2, 1/2), T = 1: 3/4 ln(3/2) + 1/4 ln(1/2)."""
    student = SequenceClassifierOutput(logits=torch.zeros(1, 2))
    teacher = SequenceClassifierOutput(logits=torch.tensor([[math.log(3.0), 0.0]]))
    value = ForwardKLLoss(temperature=1.0)(student, teacher, {"labels": torch.tensor([0])})
    assert value.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-7)


def test_jsd_of_opposite_certainties_is_log_two_and_the_kls_grow_without_bound():
    student = SequenceClassifierOutput(logits=torch.tensor([[30.0, -30.0]]))
    teacher = SequenceClassifierOutput(logits=torch.tensor([[-30.0, 30.0]]))
    rows = {"labels": torch.tensor([0])}
    assert JSDLoss(temperature=1.0)(student, teacher, rows).item() == pytest.approx(math.log(2), rel=1e-6)
    assert ForwardKLLoss(temperature=1.0)(student, teacher, rows).item() == pytest.approx(60.0, rel=1e-5)
    assert ReverseKLLoss(temperature=1.0)(student, teacher, rows).item() == pytest.approx(60.0, rel=1e-5)


@pytest.mark.parametrize("kind", [ForwardKLLoss, ReverseKLLoss, JSDLoss, DecoupledKDLoss])
def test_gradient_of_soft_targets_keeps_its_size_when_the_temperature_rises(kind):
    """Without T^2 the gradient at T = 64 would be about 16 times smaller than at T = 16."""
    norms = []
    for temperature in (16.0, 32.0, 64.0):
        student, teacher = outputs(0), outputs(1)
        kind(temperature=temperature)(student, teacher, batch()).backward()
        norms.append(student.logits.grad.norm().item())
    assert max(norms) / min(norms) < 1.15


@dataclasses.dataclass(frozen=True)
class Given(Temperature):
    """A temperature of one's own that is whatever it is told to be."""

    value: object = None

    def __call__(self, student_logits, teacher_logits, progress):
        return self.value(student_logits) if callable(self.value) else self.value


SOFTENED = [kind for kind in REFERENCES if isinstance(getattr(kind, "temperature", None), TemperatureSetting)]


@pytest.mark.parametrize("kind", SOFTENED)
@pytest.mark.parametrize(
    "value",
    [
        None, "2", -2.0, 0, math.inf, math.nan, True, np.float32(-1), [2.0], np.full((4, 1), 2.0),
        lambda logits: torch.full((4,), 2.0), lambda logits: torch.full((4, 3), 2.0),
        lambda logits: torch.full((3, 1), 2.0), lambda logits: torch.tensor([[1.0], [2.0], [0.0], [2.0]]),
        lambda logits: torch.full((4, 1), math.nan),
    ],
)  # fmt: skip
def test_a_temperature_of_ones_own_that_is_none_is_refused_by_name(kind, value):
    with pytest.raises(ValueError, match=r"^Given must give a temperature .*\(4, 1\) for these 4 rows. It gave"):
        bound(kind(Given(value))).total(outputs(0), outputs(1), batch())


@pytest.mark.parametrize("kind", SOFTENED)
@pytest.mark.parametrize(
    "value",
    [
        2, np.float32(2.0), np.int64(2), lambda logits: torch.tensor(2.0), lambda logits: torch.full((4, 1), 2.0),
        # With a gradient, which is not followed.
        lambda logits: 2.0 + 0.0 * logits[:, :1], lambda logits: 2.0 + logits[:, :1] - logits[:, :1].detach(),
    ],
)  # fmt: skip
def test_a_temperature_of_ones_own_is_a_number_or_one_a_row_and_has_no_gradient(kind, value):
    values, gradients = [], []
    for temperature in (Given(value), 2.0):
        student = outputs(0)
        total = bound(kind(temperature)).total(student, outputs(1), batch())
        values.append(total.detach())
        gradients.append(torch.autograd.grad(total, student.logits)[0])
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients)


def test_a_linear_temperature_follows_the_progress_of_training():
    objective, student, teacher = bound(ForwardKLLoss(LinearTemperature(4.0, 1.0))), outputs(0), outputs(1)
    together = ObjectiveSet([objective])
    for progress, temperature in [(0.0, 4.0), (0.5, 2.5), (1.0, 1.0)]:
        together.set_progress(progress)
        constant = bound(ForwardKLLoss(temperature))(student, teacher, batch())
        assert objective(student, teacher, batch()).item() == pytest.approx(constant.item(), rel=1e-6)


def test_multi_label_targets_are_one_yes_and_no_a_label():
    student, teacher, rows = outputs(0), outputs(1), batch()
    rows["labels"] = torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 0], [-100, -100, -100]])
    task = {"problem_type": "multi_label_classification"}
    p, q = (output.logits.div(2.0).sigmoid().double() for output in (teacher, student))
    naive = 4.0 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum() / 4
    assert bound(ForwardKLLoss(2.0), **task)(student, teacher, rows).item() == pytest.approx(naive.item(), rel=1e-4)
    gold = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 5.0]))(student.logits[:3], rows["labels"][:3])
    weighted = bound(CrossEntropyLoss(class_weights=[1, 2, 5]), **task)(student, None, rows)
    assert weighted.item() == pytest.approx(gold.item(), rel=1e-5)
    hard = torch.nn.BCEWithLogitsLoss()(student.logits, (teacher.logits > 0).float())
    assert bound(TeacherLabelLoss(), **task)(student, teacher, rows).item() == pytest.approx(hard.item(), rel=1e-5)
    mse = torch.nn.MSELoss()(student.logits, teacher.logits)
    assert bound(LogitMSELoss(), **task)(student, teacher, rows).item() == pytest.approx(mse.item(), rel=1e-5)


@pytest.mark.parametrize("mark", [-100.0, float("nan")])
def test_the_order_of_the_classes_changes_no_loss_of_rows_that_are_marked_in_any_place(mark):
    gold = torch.tensor([[1.0, 0, 1], [mark, 0, 0], [0, 1, mark], [mark, mark, mark]])
    task = {"problem_type": "multi_label_classification"}
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        student = SequenceClassifierOutput(logits=outputs(0).logits.detach()[:, order].requires_grad_())
        loss = bound(CrossEntropyLoss(), **task)(student, None, batch() | {"labels": gold[:, order]})
        known = torch.nn.BCEWithLogitsLoss()(student.logits[:1], gold[:1, order])
        assert loss.item() == pytest.approx(known.item(), rel=1e-5)
        loss.backward()
        assert not student.logits.grad[1:].any()


@pytest.mark.parametrize("mark", [-100.0, float("nan")])
def test_regression_has_squared_errors_and_leaves_unlabelled_rows_out(mark):
    student, teacher, rows = outputs(0, labels=1), outputs(1, labels=1), batch()
    rows["labels"] = torch.tensor([0.5, 2.0, -1.0, mark])
    gold = bound(CrossEntropyLoss(), labels=1)(student, None, rows)
    reference = torch.nn.MSELoss()(student.logits[:3, 0], rows["labels"][:3])
    assert gold.item() == pytest.approx(reference.item(), rel=1e-5)
    gold.backward()
    assert torch.isfinite(student.logits.grad).all()
    soft = bound(LogitMSELoss(), labels=1)(student, teacher, rows)
    assert soft.item() == pytest.approx(torch.nn.MSELoss()(student.logits, teacher.logits).item(), rel=1e-5)
    with pytest.raises(ValueError, match="the task is 'regression'"):
        bound(ForwardKLLoss(), labels=1)


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        (DecoupledKDLoss(), "beta does nothing"),
        (DISTLoss(), "correlation over classes is always"),
        (ForwardKLLoss(standardize=True), "keeps the sign alone"),
    ],
)
def test_two_classes_are_said_aloud_where_a_method_degenerates(objective, said, caplog):
    with caplog.at_level(logging.WARNING):
        bound(objective, labels=2)
    assert said in caplog.text


def test_decoupled_kd_of_two_classes_is_the_kl():
    student, teacher, rows = outputs(0, labels=2), outputs(1, labels=2), batch()
    rows["labels"] = torch.tensor([0, 1, 1, -100])
    decoupled = bound(DecoupledKDLoss(alpha=1.0, beta=8.0), labels=2)(student, teacher, rows)
    assert decoupled.item() == pytest.approx(bound(ForwardKLLoss(), labels=2)(student, teacher, rows).item(), rel=1e-5)


def test_dist_of_two_classes_and_of_one_row_stay_finite():
    pair = bound(DISTLoss(), labels=2)(outputs(0, labels=2), outputs(1, labels=2), batch())
    assert pair.item() > 0
    one = SequenceClassifierOutput(logits=torch.tensor([[1.0, 0.0]], requires_grad=True))
    value = bound(DISTLoss(), labels=2)(one, SequenceClassifierOutput(logits=torch.zeros(1, 2)), {"x": torch.zeros(1)})
    value.backward()
    assert value.item() == 0.0 and torch.isfinite(one.logits.grad).all()


@pytest.mark.parametrize("kind", [RelationalDistanceLoss, RelationalAngleLoss, ContrastiveLoss])
def test_relations_of_a_single_row_are_zero_and_have_a_gradient(kind):
    student = changed(outputs(0), lambda name, tensor: tensor.detach()[:1].requires_grad_())
    value = bound(kind())(student, student, {name: column[:1] for name, column in batch().items()})
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-6) and torch.isfinite(student.hidden_states[LAYERS].grad).all()


@pytest.mark.parametrize("kind", [RelationalDistanceLoss, RelationalAngleLoss])
def test_the_same_text_twice_leaves_the_gradient_finite(kind):
    student = changed(outputs(0), lambda name, tensor: tensor.detach()[[0, 0, 1, 2]].requires_grad_())
    bound(kind())(student, outputs(1), batch()).backward()
    assert torch.isfinite(student.hidden_states[LAYERS].grad).all()


def test_relations_compare_other_widths_and_other_heads():
    student, teacher = outputs(0, hidden=4, heads=2), outputs(1, hidden=12, heads=3)
    for objective in (SelfAttentionRelationLoss(), ValueRelationLoss(), RelationalDistanceLoss(), ContrastiveLoss()):
        value = bound(objective, 4, 12, heads=(2, 3))(student, teacher, batch())
        assert torch.isfinite(value) and value > 0
    assert bound(SelfAttentionRelationLoss(), 4, 12, heads=(2, 3)).heads == 4


def test_hidden_states_of_another_width_are_projected_one_matrix_a_pair():
    student, teacher = outputs(0, hidden=4), outputs(1, hidden=6)
    for make, naive in (case for kind in REFERENCES for case in REFERENCES[kind]):
        objective = make()
        if not hasattr(objective, "projections") or isinstance(objective, (GramLoss, objectives.PatientLoss)):
            continue
        objective = bound(objective, 4, 6)
        assert [tuple(p.weight.shape) for p in objective.projections] == [(6, 4)] * len(objective.pairs)
        value = objective(student, teacher, batch())
        if objective.layer_scores is None:
            assert value.item() == pytest.approx(naive(objective, doubled(student), doubled(teacher)).item(), rel=1e-4)
        value.backward()
        assert all(projection.weight.grad.abs().sum() > 0 for projection in objective.projections)


def test_learned_layers_move_to_the_teacher_layer_that_is_nearest():
    student, teacher = outputs(0), outputs(1)
    teacher.hidden_states = (*teacher.hidden_states[:2], student.hidden_states[1].detach(), teacher.hidden_states[3])
    objective = bound(HiddenStateMSELoss("learned"))
    optimizer = torch.optim.SGD([objective.layer_scores], lr=1.0)
    for _ in range(200):
        optimizer.zero_grad()
        objective(student, teacher, batch()).backward()
        optimizer.step()
    assert objective.layer_scores.argmax(dim=1)[0].item() == 1


def test_the_discriminator_learns_to_tell_them_apart_and_the_student_to_be_taken_for_the_teacher():
    student, teacher = outputs(0), outputs(1)
    objective = bound(AdversarialLoss(width=16))
    own = torch.optim.Adam(objective.parameters(), lr=1e-2)
    for _ in range(300):
        own.zero_grad()
        value = objective(student, teacher, batch())
        value.backward()
        own.step()
    assert value.item() < 0.5
    states = student.hidden_states[LAYERS].detach().clone().requires_grad_()
    student.hidden_states = (*student.hidden_states[:LAYERS], states)
    step = torch.optim.Adam([states], lr=1e-1)
    for _ in range(300):
        step.zero_grad()
        fooled = objective(student, teacher, batch())
        fooled.backward()
        step.step()
    assert fooled.item() > 2.0


def test_cross_entropy_without_a_labelled_row_is_zero_and_not_nan():
    rows = batch() | {"labels": torch.full((4,), -100)}
    assert bound(CrossEntropyLoss())(outputs(0), None, rows).item() == 0.0


@pytest.mark.parametrize(
    ("objective", "name"),
    [
        (kind, name)
        for kind in vars(objectives).values()
        if isinstance(kind, type) and issubclass(kind, Objective) and not inspect.isabstract(kind)
        for name, each in inspect.signature(kind).parameters.items()
        if isinstance(each.default, (int, float)) and not isinstance(each.default, bool)
    ],
)
def test_a_text_is_no_number_to_an_objective(objective, name):
    with pytest.raises(ValueError, match=name):
        objective(**{name: "1"})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ForwardKLLoss(temperature=0), "temperature must be > 0"),
        (lambda: ForwardKLLoss(temperature=1e6), "at most 1000.*LogitMSELoss"),
        (lambda: LinearTemperature(2.0, 0.0), "temperature must be > 0"),
        (lambda: FocalTemperature(beta=-1.0), "beta must be >= 0"),
        (lambda: FocalTemperature(beta=float("inf")), "beta must be >= 0"),
        (lambda: FocalTemperature(beta="1"), "beta must be >= 0"),
        (lambda: ForwardKLLoss(weight=-1), "weight must be >= 0"),
        (lambda: ForwardKLLoss(teacher_errors="fix"), "teacher_errors must be one of"),
        (lambda: bound(ForwardKLLoss(teacher_errors="skip"), problem_type="multi_label_classification"), "drop them"),
        (lambda: JSDLoss(beta=1.0), "between 0 and 1"),
        (lambda: DecoupledKDLoss(alpha=-1.0), "must be >= 0"),
        (lambda: TeacherLabelLoss(threshold=2.0), "threshold"),
        (lambda: CrossEntropyLoss(weight=float("nan")), "weight must be >= 0"),
        (lambda: CrossEntropyLoss(label_smoothing=1.0), "label_smoothing"),
        (
            lambda: CrossEntropyLoss().smooth_by_run(-0.5),
            r"label_smoothing_factor must be in \[0, 1\)",
        ),
        (lambda: bound(CrossEntropyLoss(class_weights=[1.0, 2.0])), "2 class weights for 3 labels"),
        (lambda: bound(CrossEntropyLoss(label_smoothing=0.1), labels=1), "the task is regression"),
        (lambda: HiddenStateMSELoss().bind(None, tiny_bert().config), "student has none to give"),
        (lambda: HiddenStateMSELoss().bind(tiny_bert().config, None), "teacher has none to give"),
        (lambda: HiddenStateMSELoss().bind(tiny_bert().config, [tiny_bert().config] * 2), "several teachers"),
        (lambda: bound(AttentionMSELoss(layers=[(0, 0)])), "embedding output"),
        (lambda: bound(AttentionMSELoss(on="maps")), "on must be"),
        (lambda: bound(AttentionMSELoss(), heads=(2, 4)), "2 heads a layer, the teacher 4"),
        (lambda: bound(SelfAttentionRelationLoss(relation_heads=3)), "3 relation heads do not divide"),
        (lambda: bound(SelfAttentionRelationLoss(layers=[(0, 0)])), "embedding output"),
        (lambda: bound(GramLoss("last")), "name at least two pairs"),
        (lambda: bound(GramLoss("learned")), "name at least two pairs"),
        (lambda: RelationalDistanceLoss(on="tokens"), "on must be"),
        (lambda: ContrastiveLoss(temperature=0.0), "temperature must be > 0"),
        (lambda: AdversarialLoss(reversal=-1.0), "reversal must be >= 0"),
        (lambda: resolve("hintom"), "choose one of"),
        (lambda: resolve([]), "at least one"),
        (lambda: ObjectiveSet([ForwardKLLoss()], "gradnorm"), "weighting must be one of"),
        (lambda: ObjectiveSet([ForwardKLLoss()], "linear"), "needs objectives on both"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "weights",
    [
        [1, -1], [0, 0], [1, float("nan")], [1, float("inf")], "balanced", ["1", "x"], 2, {"a": "x"}, [[1, 2]],
        {0: 1, "b": 2}, {0: 1, 1: 2}, {None: 1, "b": 2},
    ],
)  # fmt: skip
def test_class_weights_that_weigh_no_class_are_refused_when_they_are_given(weights):
    with pytest.raises(ValueError, match="class_weights=.*each at least 0 and not all 0"):
        CrossEntropyLoss(class_weights=weights)
    kept = CrossEntropyLoss(class_weights={"a": 1, "b": 2})
    with pytest.raises(ValueError, match="class_weights=.*each at least 0 and not all 0"):
        kept.class_weights = weights
    assert kept.again().config() == kept.config() and kept.class_weights.tolist() == [1, 2]


def test_a_mean_over_nothing_is_0_and_teaches_nothing():
    gold = bound(CrossEntropyLoss(class_weights=[0.0, 1.0, 1.0], label_smoothing=0.3))
    given, rows = outputs(0), batch() | {"labels": torch.zeros(4, dtype=torch.long)}
    assert gold.count(rows) == 0 and gold.total(given, None, rows) > 0
    together = ObjectiveSet([gold])
    counts = together.counts(rows)
    values = [gold(given, None, rows)]
    values += [together.parts(given, None, rows, each)[0] for each in (counts, counts.long(), counts.double())]
    for value in values:
        [gradient] = torch.autograd.grad(value, given.logits)
        assert value.item() == 0 and not gradient.any()


@pytest.mark.parametrize("weighting", ["fixed", "uncertainty"])
def test_micro_batches_of_classes_without_weight_are_part_of_a_step_that_has_others(weighting):
    gold = bound(CrossEntropyLoss(class_weights=[0.0, 1.0, 2.0], label_smoothing=0.3))
    given, rows = outputs(0), batch() | {"labels": torch.tensor([0, 0, 1, 2])}
    together = ObjectiveSet([gold], weighting)
    counts = together.counts(rows)
    halves = [
        together.parts(CapturedOutput(given.logits[part]), None, {"labels": rows["labels"][part]}, counts)[0]
        for part in (slice(0, 2), slice(2, 4))
    ]
    torch.testing.assert_close(sum(halves), gold(given, None, rows))


@pytest.mark.parametrize("kind", [kind for kind in REFERENCES if issubclass(kind, ExampleObjective)])
def test_the_record_of_an_objective_names_layers_where_it_reads_some(kind):
    assert bound(kind()).config()["layers"] == [[3, 3]]
    for objective in (kind(on="logits"), bound(kind(on="logits"))):
        assert (objective.config()["layers"], objective.config()["on"]) == (None, "logits")


@pytest.mark.parametrize("objective", [CrossEntropyLoss(), DecoupledKDLoss(), ForwardKLLoss(teacher_errors="shift")])
def test_a_batch_without_labels_is_refused_by_name(objective):
    with pytest.raises(ValueError, match=f"no labels, which {type(objective).__name__} needs"):
        objective(outputs(0), outputs(1), {"attention_mask": MASK})


@pytest.mark.parametrize("make", EVERY)
class TestContract:
    def test_value_is_a_finite_float32_scalar_even_from_bf16(self, make):
        student, teacher = outputs(0, dtype=torch.bfloat16), outputs(1, dtype=torch.bfloat16)
        objective = bound(make())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = objective(student, teacher, batch())
        assert value.shape == () and value.dtype == torch.float32 and torch.isfinite(value)
        value.backward()
        assert all(torch.isfinite(t.grad).all() for t in tensors(student) if t.grad is not None)
        assert value.item() == pytest.approx(objective(outputs(0), outputs(1), batch()).item(), rel=0.1, abs=0.02)

    def test_student_equal_to_teacher_is_the_minimum(self, make):
        objective, same = bound(make()), outputs(0)
        if isinstance(objective, CrossEntropyLoss | TeacherLabelLoss | ContrastiveLoss | AdversarialLoss):
            pytest.skip("not a distance between student and teacher")
        if getattr(objective, "layer_scores", None) is not None:
            pytest.skip("every layer is compared with every other")
        if getattr(objective, "teacher_errors", "") == "shift":
            pytest.skip("the target is not the teacher's where it is wrong")
        if any(s != t for s, t in getattr(objective, "pairs", [])):
            objective.pairs = [(s, s) for s, _ in objective.pairs]
        assert objective(same, same, batch()).item() == pytest.approx(0.0, abs=1e-6)

    def test_gradient_goes_to_the_student_and_not_to_the_teacher(self, make):
        student, teacher = outputs(0), outputs(1)
        frozen = changed(teacher, lambda kind, tensor: tensor.detach())
        objective = bound(make())
        objective(student, frozen, batch()).backward()
        assert any(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in tensors(student))
        assert all(parameter.grad is not None for parameter in objective.parameters())

    def test_it_reads_what_it_says_it_needs_and_nothing_else(self, make):
        objective = bound(make())
        student, teacher = outputs(0), outputs(1)
        wants = objective.required_layers()
        for output, wanted in ((student, wants[0]), (teacher, wants[1])):
            for kind in ("hidden_states", "attentions", "queries", "keys", "values"):
                first = 0 if kind == "hidden_states" else 1
                kept = getattr(output, kind)
                setattr(
                    output, kind, tuple(t if k in wanted.get(kind, ()) else None for k, t in enumerate(kept, first))
                )
        rows = batch() if "labels" in objective.needs else {k: v for k, v in batch().items() if k != "labels"}
        assert torch.isfinite(objective(student, teacher if objective.teacher_needed else None, rows))

    def test_padding_changes_nothing(self, make):
        def padded(output, value):
            def pad(kind, tensor):
                sides = (0, 3, 0, 3) if kind == "attentions" else (0, 0, 0, 3)
                return torch.nn.functional.pad(tensor, sides, value=value)

            return changed(output, pad, only_features=True)

        wide = batch()
        for column in ("input_ids", "attention_mask"):
            wide[column] = torch.nn.functional.pad(wide[column], (0, 3))
        objective, student, teacher = bound(make()), outputs(0), outputs(1)
        value = objective(padded(student, 7.0), padded(teacher, 5.0), wide)
        assert value.item() == pytest.approx(objective(student, teacher, batch()).item(), rel=1e-5)

    def test_order_of_the_rows_changes_nothing(self, make):
        order = torch.tensor([2, 3, 0, 1])
        objective, student, teacher = bound(make()), outputs(0), outputs(1)
        rows = {name: column[order] for name, column in batch().items()}
        shuffled = [changed(output, lambda kind, tensor: tensor[order]) for output in (student, teacher)]
        assert objective(*shuffled, rows).item() == pytest.approx(
            objective(student, teacher, batch()).item(), rel=1e-5, abs=1e-7
        )

    def test_totals_and_counts_recombine_over_uneven_micro_batches(self, make):
        objective, student, teacher = bound(make()), outputs(0), outputs(1)
        if objective.couples_rows:
            pytest.skip("relates the rows of a micro-batch")
        total, count = 0.0, 0.0
        for part in (slice(0, 1), slice(1, 4)):
            micro = {name: column[part] for name, column in batch().items()}
            parts = [changed(output, lambda kind, tensor, part=part: tensor[part]) for output in (student, teacher)]
            total += objective.total(*parts, micro)
            count += objective.count(micro)
        assert (total / count).item() == pytest.approx(objective(student, teacher, batch()).item(), rel=1e-5)

    def test_config_names_class_weight_and_paper_and_is_plain(self, make):
        objective = bound(make(weight=0.25))
        config = objective.config()
        assert config["class"] == type(objective).__name__ and config["weight"] == 0.25
        assert isinstance(objective, CrossEntropyLoss) or "arXiv" in config["citation"] or "CVPR" in config["citation"]
        assert json.loads(json.dumps(config)) == config
        arguments = inspect.signature(type(objective)).parameters.values()
        assert {each.name for each in arguments if each.kind is not each.VAR_KEYWORD} <= config.keys()

    def test_own_parameters_survive_save_and_load(self, make, tmp_path):
        first, second = (ObjectiveSet([bound(make(), 4, 8)]) for _ in range(2))
        if not first.trained():
            pytest.skip("has no parameters of its own")
        for parameter in first.parameters():
            torch.nn.init.normal_(parameter)
        first.save(tmp_path)
        second.load(tmp_path)
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_two_objectives_of_a_class_have_two_names():
    together = ObjectiveSet([ForwardKLLoss(), HiddenStateMSELoss(), ForwardKLLoss(temperature=4.0)])
    assert together.names == ["forward_kl", "hidden_state_mse", "forward_kl_2"]


def test_the_set_wants_the_union_of_layers_and_no_more():
    together = ObjectiveSet(
        [HiddenStateMSELoss(layers=[(0, 0)]), HiddenStateMSELoss(layers="last"), AttentionMSELoss()]
    )
    together.bind(tiny_bert(layers=2).config, tiny_bert(layers=6).config, seed=0)
    student, teacher = together.required_layers()
    assert student == {"hidden_states": frozenset({0, 2}), "attentions": frozenset({1, 2})}
    assert teacher == {"hidden_states": frozenset({0, 6}), "attentions": frozenset({3, 6})}


def test_parameters_of_the_set_survive_save_and_load_and_refuse_another_set(tmp_path):
    def make(hidden):
        together = ObjectiveSet([HiddenStateMSELoss()])
        together.bind(tiny_bert(hidden=8).config, tiny_bert(hidden=hidden).config, seed=hidden)
        return together

    saved, other = make(16), make(16)
    torch.nn.init.zeros_(other[0].projections[0].weight)
    saved.save(tmp_path)
    other.load(tmp_path)
    assert torch.equal(saved[0].projections[0].weight, other[0].projections[0].weight)
    with pytest.raises(ValueError, match="resume with the objectives of the run"):
        make(32).load(tmp_path)


def test_binding_depends_on_the_seed_alone_and_leaves_the_global_generator_alone():
    def weights(seed):
        together = ObjectiveSet([HiddenStateMSELoss()])
        together.bind(tiny_bert(hidden=8).config, tiny_bert(hidden=16).config, seed=seed)
        return together[0].projections[0].weight

    before = torch.random.get_rng_state()
    first = weights(1)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(5)
    assert torch.equal(first, weights(1)) and not torch.equal(first, weights(2))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_give_fresh_objectives(name):
    first, second = ([o for stage in resolve(name) for o in stage.objectives] for _ in range(2))
    assert all(a is not b for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_bind_name_their_paper_and_say_where_they_differ(name):
    preset = PRESETS[name]
    assert "arXiv" in preset.paper and len(preset.differs) > 40
    for stage in resolve(name):
        ObjectiveSet(stage.objectives).bind(tiny_bert(layers=2).config, tiny_bert(layers=4).config, seed=0)


def test_a_preset_brings_settings_that_a_run_does_not_name(tmp_path):
    plain = DistillationConfig(tmp_path)
    best = with_preset_settings(plain, "best")
    assert (best.augment, best.augment_copies) == ("auto", 10) and plain.augment is None
    for copies in range(1, 12):
        own = with_preset_settings(DistillationConfig(tmp_path, augment_copies=copies), "best")
        assert (own.augment, own.augment_copies) == ("auto", copies)
    own = with_preset_settings(DistillationConfig(tmp_path, augment="neighbours"), "best")
    assert (own.augment, own.augment_copies) == ("neighbours", 10)
    for other in (*(name for name in PRESETS if name != "best"), None, [ForwardKLLoss()], "unknown"):
        assert with_preset_settings(plain, other) is plain
    # Only None tells what was not named from what was named and is the default.
    defaults = {field.name: field.default for field in dataclasses.fields(DistillationConfig)}
    assert {defaults[name] for preset in PRESETS.values() for name in preset.settings} == {None}


def test_a_stage_takes_settings_of_a_run_and_no_others():
    assert Stage([ForwardKLLoss()], learning_rate=1e-4).settings == {"learning_rate": 1e-4}
    for wrong in ({"learning_rates": 1.0}, {"output_dir": "elsewhere"}, {"seed": 3}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: no setting of a stage"):
            Stage([ForwardKLLoss()], **wrong)
    with pytest.raises(ValueError, match="mixes stages and objectives"):
        resolve([Stage([ForwardKLLoss()]), CrossEntropyLoss()])
    single = [ForwardKLLoss()]
    assert resolve(single)[0].objectives == single

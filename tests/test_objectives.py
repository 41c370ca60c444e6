"""Each objective against hand arithmetic or a naive loop, and the contract that all of them keep."""

import math

import pytest
import torch
from conftest import tiny_bert
from transformers.modeling_outputs import SequenceClassifierOutput

from nlpkd.objectives import AttentionMSELoss, CrossEntropyLoss, ForwardKLLoss, HiddenStateMSELoss, Objective
from nlpkd.objectives.presets import PRESETS, resolve
from nlpkd.objectives.together import ObjectiveSet

MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
LABELS = torch.tensor([0, 2, 1])


def outputs(seed: int, hidden: int = 4, layers: int = 3, heads: int = 2, dtype=torch.float32, **config):
    """Random outputs of a model on three texts of 3, 5 and 1 tokens."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

    return SequenceClassifierOutput(
        logits=random(3, 3),
        hidden_states=tuple(random(3, 5, hidden) for _ in range(layers + 1)),
        attentions=tuple(random(3, heads, 5, 5) for _ in range(layers)),
    )


def batch() -> dict:
    return {"input_ids": torch.zeros_like(MASK), "attention_mask": MASK, "labels": LABELS.clone()}


def bound(objective: Objective, student_hidden: int = 4, teacher_hidden: int = 4, heads: int = 2) -> Objective:
    config = {"num_labels": 3, "heads": heads}
    student = tiny_bert(layers=3, hidden=student_hidden, **config).config
    teacher = tiny_bert(layers=3, hidden=teacher_hidden, **config).config
    objective.bind(student, teacher)
    return objective


def naive_kl(student, teacher, temperature: float) -> float:
    total = 0.0
    for row_s, row_t in zip(student.tolist(), teacher.tolist(), strict=True):
        weights_s = [math.exp(x / temperature) for x in row_s]
        weights_t = [math.exp(x / temperature) for x in row_t]
        for s, t in zip(weights_s, weights_t, strict=True):
            p, q = t / sum(weights_t), s / sum(weights_s)
            total += p * (math.log(p) - math.log(q))
    return temperature**2 * total / len(student)


def naive_hidden(student, teacher, pairs, projections=None) -> float:
    per_pair = []
    for position, (s, t) in enumerate(pairs):
        errors = []
        for row in range(3):
            for token in range(int(MASK[row].sum())):
                ours = student.hidden_states[s][row, token]
                if projections is not None:
                    ours = projections[position] @ ours
                theirs = teacher.hidden_states[t][row, token]
                errors.append(sum((float(a) - float(b)) ** 2 for a, b in zip(ours, theirs, strict=True)) / len(theirs))
        per_pair.append(sum(errors) / len(errors))
    return sum(per_pair) / len(per_pair)


def naive_attention(student, teacher, pairs) -> float:
    errors = []
    for s, t in pairs:
        for row in range(3):
            length = int(MASK[row].sum())
            for head in range(2):
                for i in range(length):
                    for j in range(length):
                        ours = float(student.attentions[s - 1][row, head, i, j])
                        errors.append((ours - float(teacher.attentions[t - 1][row, head, i, j])) ** 2)
    return sum(errors) / len(errors)


def test_kl_of_a_case_done_by_hand():
    """Teacher (3/4, 1/4), student (1/2, 1/2), T = 1: 3/4 ln(3/2) + 1/4 ln(1/2)."""
    student = SequenceClassifierOutput(logits=torch.zeros(1, 2))
    teacher = SequenceClassifierOutput(logits=torch.tensor([[math.log(3.0), 0.0]]))
    value = ForwardKLLoss(temperature=1.0)(student, teacher, {"labels": torch.tensor([0])})
    assert value.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-7)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
def test_kl_equals_the_naive_loop_in_value_and_gradient(temperature):
    """A mean over classes, a forgotten T^2 or swapped arguments would all train, and all be wrong."""
    student, teacher = outputs(0), outputs(1)
    value = bound(ForwardKLLoss(temperature=temperature))(student, teacher, batch())
    assert value.item() == pytest.approx(naive_kl(student.logits, teacher.logits, temperature), rel=1e-5)
    value.backward()
    for row, column in [(0, 0), (1, 2), (2, 1)]:
        step = torch.zeros(3, 3, dtype=torch.float64)
        step[row, column] = 1e-5
        up = naive_kl(student.logits.double() + step, teacher.logits.double(), temperature)
        down = naive_kl(student.logits.double() - step, teacher.logits.double(), temperature)
        assert student.logits.grad[row, column].item() == pytest.approx((up - down) / 2e-5, rel=1e-3, abs=1e-5)


def test_gradient_of_the_kl_keeps_its_size_when_the_temperature_rises():
    """Without T^2 the gradient at T = 32 would be about 1000 times smaller than at T = 1."""
    norms = []
    for temperature in (16.0, 32.0, 64.0):
        student, teacher = outputs(0), outputs(1)
        ForwardKLLoss(temperature=temperature)(student, teacher, batch()).backward()
        norms.append(student.logits.grad.norm().item())
    assert max(norms) / min(norms) < 1.1


def test_cross_entropy_equals_torch_with_weights_smoothing_and_unlabelled_rows():
    student, rows = outputs(0), batch()
    rows["labels"][1] = -100
    for arguments in ({}, {"class_weights": [1.0, 2.0, 5.0]}, {"label_smoothing": 0.1}):
        value = bound(CrossEntropyLoss(**arguments))(student, None, rows)
        weight = torch.tensor(arguments["class_weights"]) if "class_weights" in arguments else None
        reference = torch.nn.CrossEntropyLoss(weight=weight, label_smoothing=arguments.get("label_smoothing", 0.0))
        assert value.item() == pytest.approx(reference(student.logits, rows["labels"]).item(), rel=1e-6)


def test_cross_entropy_without_a_labelled_row_is_zero_and_not_nan():
    rows = batch() | {"labels": torch.full((3,), -100)}
    assert bound(CrossEntropyLoss())(outputs(0), None, rows).item() == 0.0


def test_hidden_states_equal_the_naive_loop_over_real_tokens():
    student, teacher = outputs(0), outputs(1)
    objective = bound(HiddenStateMSELoss(layers=[(0, 0), (1, 2), (3, 3)]))
    reference = naive_hidden(student, teacher, [(0, 0), (1, 2), (3, 3)])
    assert objective(student, teacher, batch()).item() == pytest.approx(reference, rel=1e-5)


def test_hidden_states_of_another_width_are_projected_one_matrix_a_pair():
    student, teacher = outputs(0, hidden=4), outputs(1, hidden=6)
    objective = bound(HiddenStateMSELoss(layers="uniform"), 4, 6)
    assert [tuple(p.weight.shape) for p in objective.projections] == [(6, 4)] * 3
    matrices = [projection.weight.detach() for projection in objective.projections]
    reference = naive_hidden(student, teacher, objective.pairs, matrices)
    value = objective(student, teacher, batch())
    assert value.item() == pytest.approx(reference, rel=1e-5)
    value.backward()
    assert all(projection.weight.grad.abs().sum() > 0 for projection in objective.projections)


def test_attention_equals_the_naive_loop_over_pairs_of_real_tokens():
    student, teacher = outputs(0), outputs(1)
    value = bound(AttentionMSELoss(layers="first"))(student, teacher, batch())
    assert value.item() == pytest.approx(naive_attention(student, teacher, [(1, 1), (2, 2), (3, 3)]), rel=1e-5)


def test_attention_with_other_head_counts_is_refused_with_advice():
    student, teacher = tiny_bert(heads=2).config, tiny_bert(heads=4).config
    with pytest.raises(ValueError, match="2 heads a layer, the teacher 4.*layers:N"):
        AttentionMSELoss().bind(student, teacher)


def test_attention_of_the_embeddings_is_refused():
    with pytest.raises(ValueError, match="embedding output"):
        bound(AttentionMSELoss(layers=[(0, 0)]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ForwardKLLoss(temperature=0), "temperature must be > 0"),
        (lambda: ForwardKLLoss(weight=-1), "weight must be >= 0"),
        (lambda: CrossEntropyLoss(weight=float("nan")), "weight must be >= 0"),
        (lambda: CrossEntropyLoss(label_smoothing=1.0), "label_smoothing"),
        (lambda: bound(CrossEntropyLoss(class_weights=[1.0, 2.0])), "2 class weights for 3 labels"),
        (lambda: HiddenStateMSELoss().bind(None, tiny_bert().config), "student has none to give"),
        (lambda: HiddenStateMSELoss().bind(tiny_bert().config, None), "teacher has none to give"),
        (lambda: resolve("hintom"), "choose one of"),
        (lambda: resolve([]), "at least one"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_another_task_is_refused():
    config = tiny_bert(problem_type="regression", num_labels=1).config
    with pytest.raises(ValueError, match="single-label classification, the task is 'regression'"):
        CrossEntropyLoss().bind(config, None)


def test_a_batch_without_labels_is_refused_by_name():
    with pytest.raises(ValueError, match="no labels"):
        CrossEntropyLoss()(outputs(0), None, {"attention_mask": MASK})


EVERY = [CrossEntropyLoss, ForwardKLLoss, HiddenStateMSELoss, AttentionMSELoss]


def test_every_objective_is_in_the_contract_tests():
    def family(cls):
        return [cls, *(one for child in cls.__subclasses__() for one in family(child))]

    concrete = {cls for cls in family(Objective) if "needs" in cls.__dict__ and cls.__module__.startswith("nlpkd.")}
    assert concrete == set(EVERY)


@pytest.mark.parametrize("make", EVERY)
class TestContract:
    def test_value_is_a_finite_float32_scalar_even_from_bf16(self, make):
        value = bound(make())(outputs(0, dtype=torch.bfloat16), outputs(1, dtype=torch.bfloat16), batch())
        assert value.shape == () and value.dtype == torch.float32 and torch.isfinite(value)

    def test_student_equal_to_teacher_is_the_minimum(self, make):
        if not make.teacher_needed:
            pytest.skip("measured against gold labels")
        same = outputs(0)
        assert bound(make())(same, same, batch()).item() == pytest.approx(0.0, abs=1e-6)

    def test_gradient_goes_to_the_student_and_not_to_the_teacher(self, make):
        student, teacher = outputs(0), outputs(1)
        frozen = SequenceClassifierOutput(
            logits=teacher.logits.detach(),
            hidden_states=tuple(state.detach() for state in teacher.hidden_states),
            attentions=tuple(attention.detach() for attention in teacher.attentions),
        )
        bound(make())(student, frozen, batch()).backward()
        tensors = [student.logits, *student.hidden_states, *student.attentions]
        assert any(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in tensors)

    def test_padding_changes_nothing(self, make):
        def padded(output, value):
            def pad(tensor, sides):
                return torch.nn.functional.pad(tensor, sides, value=value)

            return SequenceClassifierOutput(
                logits=output.logits,
                hidden_states=tuple(pad(state, (0, 0, 0, 3)) for state in output.hidden_states),
                attentions=tuple(pad(attention, (0, 3, 0, 3)) for attention in output.attentions),
            )

        wide = batch()
        for column in ("input_ids", "attention_mask"):
            wide[column] = torch.nn.functional.pad(wide[column], (0, 3))
        objective, student, teacher = bound(make()), outputs(0), outputs(1)
        value = objective(padded(student, 7.0), padded(teacher, -7.0), wide)
        assert value.item() == pytest.approx(objective(student, teacher, batch()).item(), rel=1e-6)

    def test_order_of_the_rows_changes_nothing(self, make):
        order = torch.tensor([2, 0, 1])

        def shuffled(output):
            return SequenceClassifierOutput(
                logits=output.logits[order],
                hidden_states=tuple(state[order] for state in output.hidden_states),
                attentions=tuple(attention[order] for attention in output.attentions),
            )

        objective, student, teacher = bound(make()), outputs(0), outputs(1)
        rows = {name: column[order] for name, column in batch().items()}
        assert objective(shuffled(student), shuffled(teacher), rows).item() == pytest.approx(
            objective(student, teacher, batch()).item(), rel=1e-6
        )

    def test_totals_and_counts_recombine_over_uneven_micro_batches(self, make):
        def rows(output, part):
            return SequenceClassifierOutput(
                logits=output.logits[part],
                hidden_states=tuple(state[part] for state in output.hidden_states),
                attentions=tuple(attention[part] for attention in output.attentions),
            )

        objective, student, teacher = bound(make()), outputs(0), outputs(1)
        total, count = 0.0, 0.0
        for part in (slice(0, 2), slice(2, 3)):
            micro = {name: column[part] for name, column in batch().items()}
            total += objective.total(rows(student, part), rows(teacher, part), micro)
            count += objective.count(micro)
        assert (total / count).item() == pytest.approx(objective(student, teacher, batch()).item(), rel=1e-6)

    def test_config_names_class_weight_and_paper(self, make):
        config = bound(make(weight=0.25)).config()
        assert config["class"] == make.__name__ and config["weight"] == 0.25
        assert make is CrossEntropyLoss or "arXiv" in config["citation"]


def test_two_objectives_of_a_class_have_two_names():
    together = ObjectiveSet([ForwardKLLoss(), HiddenStateMSELoss(), ForwardKLLoss(temperature=4.0)])
    assert together.names == ["forward_kl", "hidden_state_mse", "forward_kl_2"]


def test_the_set_wants_the_union_of_layers_and_no_more():
    together = ObjectiveSet(
        [HiddenStateMSELoss(layers=[(0, 0)]), HiddenStateMSELoss(layers="last"), AttentionMSELoss()]
    )
    together.bind(tiny_bert(layers=2).config, tiny_bert(layers=6).config, seed=0)
    student, teacher = together.wants()
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
    assert all(a is not b for a, b in zip(resolve(name), resolve(name), strict=True))

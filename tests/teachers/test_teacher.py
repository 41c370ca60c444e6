"""A teacher is in eval mode, frozen, unchanged, and speaks in the student's label order."""

import copy

import pytest
import torch
import torch.nn.utils.prune
from samples import tiny_bert
from torch import nn
from transformers import AutoModelForSequenceClassification, BertModel

from nlpkd import load_teacher
from nlpkd.models.inference import inference_copy
from nlpkd.teachers.teacher import CachedTeacher, LiveTeacher

CPU = torch.device("cpu")


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 24, (4, 6), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1, 0, 1])}


def dropping_bert():
    """A model whose outputs are random in train mode, where a forgotten eval() shows."""
    return tiny_bert(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5, num_labels=3).train()


def test_outputs_are_those_of_eval_mode_and_carry_no_gradient(batch):
    model = dropping_bert()
    expected = copy.deepcopy(model).eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    teacher = LiveTeacher(model, {"hidden_states": frozenset({1})}, CPU)
    outputs = teacher.outputs(batch)
    assert torch.equal(outputs.logits, expected)
    assert torch.equal(teacher.outputs(batch).logits, outputs.logits)
    assert not outputs.logits.requires_grad and not outputs.hidden_states[1].requires_grad
    assert not model.training and not any(module.training for module in model.modules())


def test_outputs_may_be_saved_for_a_losss_backward(batch):
    logits = LiveTeacher(dropping_bert(), {}, CPU).outputs(batch).logits
    weight = torch.ones(3, requires_grad=True)
    (logits * weight).sum().backward()
    torch.testing.assert_close(weight.grad, logits.sum(dim=0))


def test_parameters_are_frozen_and_their_bytes_unchanged(batch):
    model = dropping_bert()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    teacher = LiveTeacher(model, {"attentions": frozenset({1, 2})}, CPU, order=[2, 0, 1])
    for _ in range(3):
        teacher.outputs(batch)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_cast_once_give_the_bits_that_autocast_gives(batch, dtype):
    model = dropping_bert()
    # Of other attention than sdpa the copy changes nothing else.
    model.set_attn_implementation("eager")
    wanted = {"hidden_states": frozenset({2})}
    cast_once = LiveTeacher(model, wanted, CPU, autocast=lambda: torch.autocast("cpu", dtype))
    found = [cast_once.outputs(batch).logits for _ in range(2)]
    with torch.no_grad(), torch.autocast("cpu", dtype):
        expected = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert expected.dtype == dtype and all(torch.equal(each, expected) for each in found)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    copied = cast_for(model, dtype)
    assert copied.classifier.weight.dtype == dtype and copied.bert.pooler.dense.bias.dtype == dtype
    assert copied.bert.embeddings.word_embeddings.weight is model.bert.embeddings.word_embeddings.weight
    assert copied.bert.embeddings.LayerNorm.weight is model.bert.embeddings.LayerNorm.weight


def test_the_copy_is_what_runs_and_follows_the_teacher(batch):
    model, seen = dropping_bert(), []
    model.classifier.register_forward_hook(lambda module, *_: seen.append(module.weight.dtype))
    teacher = LiveTeacher(model, {}, CPU, autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    first = teacher.outputs(batch).logits
    with torch.no_grad():
        model.classifier.bias.add_(1.0)
    torch.testing.assert_close(teacher.outputs(batch).logits, first + 1, rtol=0.02, atol=0.02)
    teacher.release()
    assert seen == [torch.bfloat16] * 2 and torch.equal(teacher.outputs(batch).logits, teacher.outputs(batch).logits)


@pytest.mark.parametrize("logits_alone", [True, False])
def test_a_teacher_that_is_set_to_train_teaches_in_eval_mode_all_the_same(logits_alone, batch):
    model = tiny_bert(seed=1, hidden_dropout_prob=0.5)
    wanted = {} if logits_alone else {"hidden_states": frozenset({1})}
    teacher = LiveTeacher(model, wanted, torch.device("cpu"))
    expected = model(**batch).logits
    for _ in range(2):
        model.train()
        torch.testing.assert_close(teacher.outputs(batch).logits, expected)


def test_a_teacher_that_can_not_be_copied_is_run_as_it_is(batch):
    model = dropping_bert()
    nn.utils.prune.random_unstructured(model.classifier, "weight", amount=0.5)
    assert cast_for(model, torch.bfloat16) is model
    teacher = LiveTeacher(model, {}, CPU, autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    assert teacher.outputs(batch).logits.isfinite().all()


def cast_for(model, dtype):
    with torch.autocast("cpu", dtype):
        return inference_copy(model, "cpu", first_token=False)


def test_where_hidden_states_are_read_and_nothing_is_cast_the_teacher_itself_is_run():
    model = dropping_bert()
    assert inference_copy(model, "cpu", first_token=False) is model


def test_a_linear_weight_that_is_an_embedding_table_too_stays_as_it_is():
    model = dropping_bert()
    model.classifier.weight = model.bert.embeddings.token_type_embeddings.weight
    copied = cast_for(model, torch.bfloat16)
    assert copied.bert.embeddings.token_type_embeddings.weight.dtype == torch.float32
    assert copied.classifier.weight is model.classifier.weight


def test_where_logits_alone_are_read_the_last_layer_gives_the_first_token_and_the_teacher_stays(batch):
    model = dropping_bert().eval()
    copied = inference_copy(model, "cpu", first_token=True)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert copied.bert(**inputs).last_hidden_state.shape[1] == 1
    assert model.bert(**inputs).last_hidden_state.shape[1] == batch["input_ids"].shape[1]
    torch.testing.assert_close(copied(**inputs).logits, model(**inputs).logits)
    assert all(ours is theirs for ours, theirs in zip(copied.parameters(), model.parameters(), strict=True))


def test_logits_come_in_the_students_label_order(batch):
    model = dropping_bert()
    own = LiveTeacher(model, {}, CPU).outputs(batch).logits
    ordered = LiveTeacher(model, {}, CPU, order=[2, 0, 1]).outputs(batch).logits
    assert torch.equal(ordered[:, 0], own[:, 2])
    assert torch.equal(ordered[:, 1], own[:, 0])
    assert torch.equal(ordered[:, 2], own[:, 1])


def test_the_order_can_be_set_later_and_the_identity_is_none(batch):
    teacher = LiveTeacher(dropping_bert(), {}, CPU)
    own = teacher.outputs(batch).logits
    teacher.reorder([0, 2, 1])
    assert torch.equal(teacher.outputs(batch).logits, own[:, [0, 2, 1]])
    teacher.reorder([0, 1, 2])
    assert teacher.order is None and torch.equal(teacher.outputs(batch).logits, own)


def test_a_teacher_reads_its_own_columns_where_it_has_its_own_tokenizer(batch):
    model = dropping_bert()
    own = {"teacher_input_ids": batch["input_ids"].flip(0), "teacher_attention_mask": batch["attention_mask"]}
    found = LiveTeacher(model, {}, CPU, prefix="teacher_").outputs(batch | own).logits
    assert torch.equal(found, LiveTeacher(model, {}, CPU).outputs(batch).logits.flip(0))


def test_autocast_wraps_the_forward(batch):
    teacher = LiveTeacher(dropping_bert(), {}, CPU, autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    assert teacher.outputs(batch).logits.dtype == torch.bfloat16


def test_a_cached_teacher_gives_the_column_as_it_is():
    logits = torch.tensor([[1.0, -1.0]])
    outputs = CachedTeacher().outputs({"teacher_logits": logits})
    assert outputs.logits is logits and outputs.hidden_states is None


# Loading


def test_a_fine_tuned_teacher_is_loaded_in_eval_mode_with_its_weights(tmp_path):
    saved = tiny_bert()
    saved.save_pretrained(tmp_path)
    loaded = load_teacher(tmp_path, device="cpu")
    assert not loaded.training
    assert all(torch.equal(tensor, saved.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path).config.id2label == loaded.config.id2label


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dtype_is_the_one_asked_for_whatever_the_checkpoint_has(tmp_path, dtype):
    tiny_bert().to(torch.float16).save_pretrained(tmp_path)
    loaded = load_teacher(tmp_path, dtype=str(dtype).removeprefix("torch."))
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}


def test_float32_is_the_default_dtype(tmp_path):
    tiny_bert().to(torch.bfloat16).save_pretrained(tmp_path)
    assert load_teacher(tmp_path).dtype == torch.float32


def test_a_backbone_whose_head_would_be_random_is_refused_with_the_parameters_names(tmp_path):
    BertModel(tiny_bert().config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no weights for classifier.bias, classifier.weight: .*nlpkd train-teacher"):
        load_teacher(tmp_path)

"""What is pruned is what matters least on data; what is left is the model without it, saved and loaded as it is."""

import copy

import pytest
import torch
from families import (
    NAMES,
    SIZE,
    bert,
    by_finite_differences,
    distilbert,
    electra,
    llama,
    logits_of,
    make,
    modernbert,
    reloaded,
    roberta,
)  # fmt: skip
from samples import tiny_bert
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    CanineConfig,
    CanineForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    NomicBertConfig,
    NomicBertForSequenceClassification,
)

from nlpkd.compression import prune_heads, prune_neurons


def llama_without_groups():
    return LlamaForSequenceClassification(
        LlamaConfig(**(SIZE | {"num_attention_heads": 4, "pad_token_id": 0}), **NAMES)
    )


def nomic():
    return NomicBertForSequenceClassification(NomicBertConfig(**SIZE, **NAMES))


def albert():
    return AlbertForSequenceClassification(AlbertConfig(**SIZE, embedding_size=8, **NAMES))


def mpnet():
    return MPNetForSequenceClassification(MPNetConfig(**SIZE, max_position_embeddings=40, **NAMES))


def without_shares(model, width: int, unused: list[int]) -> None:
    """Let nothing of some inputs through the layers that read `width` of them."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and module.in_features == width and module.out_features == 16:
                module.weight[:, unused] = 0


def test_the_neurons_kept_change_the_loss_most(make_rows, tokenizer):
    model, rows = tiny_bert(initializer_range=0.3, seed=3), make_rows(7)
    smaller, record = prune_neurons(model, rows, tokenizer, intermediate_size=10, batch_size=6)
    layers = [f"bert.encoder.layer.{number}.output.dense" for number in range(2)]
    for number, importance in enumerate(by_finite_differences(model, layers, 32, rows[:])):
        kept = importance.argsort(descending=True)[:10].sort().values
        before, after = model.bert.encoder.layer[number], smaller.bert.encoder.layer[number]
        assert torch.equal(after.intermediate.dense.weight, before.intermediate.dense.weight[kept])
        assert torch.equal(after.intermediate.dense.bias, before.intermediate.dense.bias[kept])
        assert torch.equal(after.output.dense.weight, before.output.dense.weight[:, kept])
    assert record.details == {"intermediate_size": [32, 10], "rows": 7}


def test_the_heads_kept_change_the_loss_most(make_rows, tokenizer):
    model, rows = tiny_bert(heads=4, initializer_range=0.3, seed=3), make_rows(7)
    smaller, _ = prune_heads(model, rows, tokenizer, heads=2, batch_size=6)
    layers = [f"bert.encoder.layer.{number}.attention.output.dense" for number in range(2)]
    for number, importance in enumerate(by_finite_differences(model, layers, 4, rows[:])):
        kept = importance.argsort(descending=True)[:2].sort().values
        units = (kept[:, None] * 4 + torch.arange(4)).flatten()
        before, after = model.bert.encoder.layer[number].attention, smaller.base.bert.encoder.layer[number].attention
        for name in ("query", "key", "value"):
            assert torch.equal(getattr(after.self, name).weight, getattr(before.self, name).weight[units])
        assert torch.equal(after.output.dense.weight, before.output.dense.weight[:, units])


@pytest.mark.parametrize("family", [bert, distilbert, roberta, electra, albert, mpnet, modernbert, nomic, llama])
def test_neurons_that_nothing_reads_are_the_ones_to_go(family, make_rows, tokenizer, batch, tmp_path):  # noqa: F811
    model = make(family)
    without_shares(model, 32, list(range(1, 32, 2)))
    smaller, record = prune_neurons(model, make_rows(16), tokenizer, keep=0.5)
    loaded = reloaded(smaller, tmp_path)
    assert type(loaded) is type(model)
    assert getattr(loaded.config, "hidden_dim" if family is distilbert else "intermediate_size") == 16
    torch.testing.assert_close(logits_of(loaded, batch), logits_of(model, batch), rtol=0, atol=1e-5)
    assert record.parameters_after == sum(p.numel() for p in smaller.parameters()) < record.parameters_before
    assert record.size_mb_after < record.size_mb_before


@pytest.mark.parametrize("family", [bert, distilbert, roberta, electra])
def test_heads_of_a_bert_go_into_a_model_that_loads_with_nlpkd(
    family, make_rows, tokenizer, batch, tmp_path  # noqa: F811
):  # fmt: skip
    model = make(family)
    for name, module in model.named_modules():
        if name.endswith(("attention.output.dense", "out_lin")):
            module.weight.data[:, 8:] = 0
    smaller, record = prune_heads(model, make_rows(16), tokenizer, heads=1)
    loaded = reloaded(smaller, tmp_path)
    assert loaded.config.model_type == "nlpkd_reshaped" and loaded.config.num_attention_heads == 1
    torch.testing.assert_close(logits_of(loaded, batch), logits_of(model, batch), rtol=0, atol=1e-5)
    assert record.details["heads"] == [2, 1] and record.size_mb_after < record.size_mb_before


@pytest.mark.parametrize("family", [nomic, llama])
def test_heads_stay_plain_where_the_config_gives_their_width(
    family, make_rows, tokenizer, batch, tmp_path  # noqa: F811
):  # fmt: skip
    """Llama's four heads share two keys and values: two of them go together."""
    model = make(family)
    for name, module in model.named_modules():
        if name.endswith("o_proj"):
            module.weight.data[:, :8] = 0
    smaller, _ = prune_heads(model, make_rows(16), tokenizer, keep=0.5)
    loaded = reloaded(smaller, tmp_path)
    assert type(loaded) is type(model)
    assert loaded.config.num_attention_heads == model.config.num_attention_heads // 2
    torch.testing.assert_close(logits_of(loaded, batch), logits_of(model, batch), rtol=0, atol=1e-5)


@pytest.mark.parametrize("prune", [prune_neurons, prune_heads])
def test_the_model_given_is_left_as_it_is(prune, make_rows, tokenizer):
    model = tiny_bert(hidden_dropout_prob=0.5).train()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    smaller, _ = prune(model, make_rows(8), tokenizer, keep=0.5)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert model.training and smaller.training and model.config.problem_type is None
    assert torch.equal(state, torch.get_rng_state())
    assert not any(module._forward_pre_hooks for module in [*model.modules(), *smaller.modules()])


@pytest.mark.parametrize(
    ("prune", "family", "settings", "message"),
    [
        (prune_neurons, bert, {}, "either keep"),
        (prune_neurons, bert, {"keep": 0.5, "intermediate_size": 4}, "either keep"),
        (prune_neurons, bert, {"keep": 1.0}, "keep must be a share above 0 and below 1"),
        (prune_neurons, bert, {"intermediate_size": 32}, "fewer than the model's 32"),
        (prune_heads, bert, {"heads": 2}, "fewer than the model's 2"),
        (prune_heads, llama, {"heads": 1}, "2 heads share keys and values and go together"),
        (prune_heads, llama_without_groups, {"heads": 3}, "choose a number that divides its hidden_size, 16"),
        (prune_heads, modernbert, {"heads": 1}, "prune its neurons instead"),
        (prune_heads, mpnet, {"heads": 1}, "can't run with fewer heads: prune its neurons instead"),
    ],
)
def test_what_can_not_be_pruned_is_refused(prune, family, settings, message, make_rows, tokenizer):
    with pytest.raises(ValueError, match=message):
        prune(make(family), make_rows(8), tokenizer, **settings)


@pytest.mark.parametrize("prune", [prune_neurons, prune_heads])
@pytest.mark.parametrize(("max_rows", "used"), [(2000, 5), (3, 3)])
def test_the_record_counts_the_rows_that_were_used(prune, max_rows, used, make_rows, tokenizer):
    rows = make_rows(8)
    labels = [-100, -100, -100, *rows["labels"][3:]]
    rows = rows.remove_columns("labels").add_column("labels", labels)
    assert prune(tiny_bert(), rows, tokenizer, keep=0.5, max_rows=max_rows)[1].details["rows"] == used


def test_rows_without_labels_are_refused(make_rows, tokenizer):
    rows = make_rows(8)
    rows = rows.remove_columns("labels").add_column("labels", [-100] * 8)
    with pytest.raises(ValueError, match="no gold labels"):
        prune_neurons(tiny_bert(), rows, tokenizer, keep=0.5)


@pytest.mark.parametrize("prune", [prune_heads, prune_neurons])
def test_layers_that_the_loss_does_not_depend_on_are_named(prune, make_rows, tokenizer):
    """CANINE's last layer gives a state for each character, which its classifier does not read."""
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = CanineForSequenceClassification(CanineConfig(**size, num_hash_buckets=32, max_position_embeddings=64))
    with pytest.raises(ValueError, match=r"doesn't depend on canine.final_char_encoder.*: take layers"):
        prune(model, make_rows(4), tokenizer, keep=0.5)

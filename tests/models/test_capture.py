"""Attention maps, Q/K/V and hidden states of the layers asked for, under sdpa, and never silently nothing."""

import json

import pytest
import torch
from samples import tiny_bert
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.overrides import TorchFunctionMode
from transformers import (
    AlbertConfig,
    AttentionInterface,
    AutoConfig,
    BartConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
    T5Config,
)
from transformers import AutoModelForSequenceClassification as Auto

from nlpkd import make_student
from nlpkd.models.attention import CAPTURING_SDPA, _record, _recording, attention_probabilities
from nlpkd.models.capture import Capture

SIZE = {
    "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32,
    "initializer_range": 0.5, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip
ENCODERS = {
    "bert": lambda: tiny_bert(layers=3, initializer_range=0.5),
    "distilbert": lambda: build(
        DistilBertConfig(vocab_size=30, dim=16, n_layers=3, n_heads=2, hidden_dim=32, initializer_range=0.5)
    ),
    "roberta": lambda: build(RobertaConfig(**SIZE, max_position_embeddings=40)),
    "electra": lambda: build(ElectraConfig(**SIZE, embedding_size=8)),
    "albert": lambda: build(AlbertConfig(**SIZE, embedding_size=8)),
    # A window of 4 tokens and a global layer in between: local attention has a mask of its own.
    "modernbert": lambda: build(
        ModernBertConfig(**SIZE, local_attention=4, global_attn_every_n_layers=2, cls_token_id=2, sep_token_id=3)
    ),
}
DECODERS = {
    "gpt2": lambda: build(
        GPT2Config(
            vocab_size=30, n_embd=16, n_layer=3, n_head=2, pad_token_id=0, bos_token_id=2, eos_token_id=3,
            initializer_range=0.5,
        )
    ),
    "llama_with_grouped_queries": lambda: build(
        LlamaConfig(**(SIZE | {"num_attention_heads": 4, "num_key_value_heads": 2}))
    ),
}  # fmt: skip
EAGER_ONLY = {
    "mpnet": lambda: build(MPNetConfig(**SIZE)),
    "deberta": lambda: build(DebertaV2Config(**SIZE, relative_attention=True, pos_att_type=["p2c", "c2p"])),
}
SDPA = ENCODERS | DECODERS
ALL = frozenset({1, 2, 3})


def build(config) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Auto.from_config(config).eval()


def rows(padded: bool = True) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 24, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    if padded:
        mask[1, 5:] = mask[2, 8:] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def capture(model, batch, **layers):
    return Capture(model, {kind: frozenset(chosen) for kind, chosen in layers.items()}, "student")(model, batch)


def by_eager(model, batch):
    """The maps that transformers itself gives of the same weights under eager attention."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return model.eval()(**batch, output_attentions=True)


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "unpadded"])
@pytest.mark.parametrize("family", SDPA)
def test_maps_under_sdpa_are_those_of_eager_attention(family, padded):
    model, batch = SDPA[family]().eval(), rows(padded)
    assert model.config._attn_implementation == "sdpa"
    with torch.no_grad():
        captured = capture(model, batch, attentions=ALL)
    expected = by_eager(model, batch)
    assert len(captured.attentions) == len(expected.attentions) == 3
    torch.testing.assert_close(captured.logits, expected.logits, rtol=0, atol=1e-5)
    real = batch["attention_mask"].bool()
    for found, reference in zip(captured.attentions, expected.attentions, strict=True):
        # (batch, seq, heads, seq)[real] leaves out the rows of padding, of which families make different things.
        torch.testing.assert_close(found.transpose(1, 2)[real], reference.transpose(1, 2)[real], rtol=0, atol=1e-5)
        if padded:
            assert found[1, :, :5, 5:].abs().max() == 0


@pytest.mark.parametrize("family", SDPA)
def test_recording_changes_no_logits(family):
    model, batch = SDPA[family]().eval(), rows()
    with torch.no_grad():
        plain = model(**batch).logits
        assert torch.equal(capture(model, batch, queries={2}, values={1}).logits, plain)
        # A map that is wanted is computed once, where sdpa would do it by other kernels.
        torch.testing.assert_close(capture(model, batch, attentions={2}).logits, plain, rtol=1e-5, atol=1e-5)
        assert torch.equal(model(**batch).logits, plain), "outside of a capture it is sdpa and nothing else"


@pytest.mark.parametrize("family", SDPA)
def test_gradients_through_a_map_that_is_kept_are_those_of_sdpa(family):
    model, batch = SDPA[family]().eval(), rows()
    gradients = []
    for wanted in ({"values": ALL}, {"values": ALL, "attentions": ALL}):
        captured = capture(model, batch, **wanted)
        gradients.append(torch.autograd.grad(captured.logits.square().sum(), captured.values[1])[0])
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


class CountSdpa(TorchFunctionMode):
    """Counts how often torch's own attention is run."""

    found = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.found += func is nn.functional.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("wanted", "calls"), [({}, 3), ({"queries": {2}}, 3), ({"attentions": {1, 3}}, 1)])
def test_a_map_that_is_wanted_is_computed_once(wanted, calls):
    with CountSdpa() as count:
        capture(tiny_bert(layers=3).eval(), rows(), **wanted)
    assert count.found == calls


def test_a_query_that_may_see_no_key_has_an_empty_map_as_it_has_under_sdpa():
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 4, 8, generator=generator)
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1]], dtype=torch.bool)[None, None]
    found = attention_probabilities(query, key, mask, None)
    assert found[:, :, 1].abs().max() == 0 and torch.allclose(found[:, :, [0, 2, 3]].sum(-1), torch.ones(1, 2, 3))
    torch.testing.assert_close(found @ value, nn.functional.scaled_dot_product_attention(query, key, value, mask))


def test_attention_dropout_acts_on_the_values_and_not_on_the_map():
    model, batch = tiny_bert(layers=1, attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.0).train(), rows()
    torch.manual_seed(0)
    first, second = (capture(model, batch, attentions={1}) for _ in range(2))
    assert torch.equal(first.attentions[0], second.attentions[0])
    assert not torch.allclose(first.logits, second.logits)
    with torch.no_grad():
        mean = torch.stack([capture(model, batch, attentions={1}).logits for _ in range(1000)]).mean(0)
        plain = torch.stack([model(**batch).logits for _ in range(1000)]).mean(0)
    torch.testing.assert_close(mean, plain, rtol=0, atol=0.05 * float(plain.abs().max()))


@pytest.mark.parametrize("family", [*ENCODERS, *EAGER_ONLY])
def test_only_the_layers_asked_for_are_kept(family):
    model = (ENCODERS | EAGER_ONLY)[family]().eval()
    captured = capture(model, rows(), attentions={2}, hidden_states={0, 3})
    assert [found is not None for found in captured.attentions] == [False, True, False]
    assert [found is not None for found in captured.hidden_states] == [True, False, False, True]
    assert captured.queries is captured.keys is captured.values is None


@pytest.mark.parametrize("family", EAGER_ONLY)
def test_a_family_without_sdpa_gives_its_own_eager_maps(family):
    model, batch = EAGER_ONLY[family]().eval(), rows()
    with torch.no_grad():
        captured = capture(model, batch, attentions={1, 3})
        expected = model(**batch, output_attentions=True).attentions
    assert torch.equal(captured.attentions[0], expected[0]) and torch.equal(captured.attentions[2], expected[2])


@pytest.mark.parametrize("family", [*ENCODERS, *EAGER_ONLY])
def test_hidden_states_are_those_of_output_hidden_states(family):
    model, batch = (ENCODERS | EAGER_ONLY)[family]().eval(), rows()
    with torch.no_grad():
        captured = capture(model, batch, hidden_states={0, 2, 3})
        expected = model(**batch, output_hidden_states=True).hidden_states
    assert len(captured.hidden_states) == 4 and captured.hidden_states[1] is None
    assert all(torch.equal(captured.hidden_states[k], expected[k]) for k in (0, 2, 3))
    assert captured.attentions is None


def test_queries_keys_and_values_have_heads_apart_and_are_what_the_layer_computes():
    model, batch = tiny_bert(layers=3).eval(), rows()
    with torch.no_grad():
        captured = capture(model, batch, queries={2}, keys={2}, values={1, 2}, hidden_states={0, 1})
        own = model.bert.encoder.layer[1].attention.self
        for kind, linear in (("queries", own.query), ("keys", own.key), ("values", own.value)):
            found = getattr(captured, kind)[1]
            assert found.shape == (3, 2, 9, 8)
            expected = linear(captured.hidden_states[1]).view(3, 9, 2, 8).transpose(1, 2)
            torch.testing.assert_close(found, expected)
    assert captured.queries[0] is captured.queries[2] is None and captured.values[0] is not None


def test_a_map_is_the_softmax_of_scaled_scores():
    query = torch.tensor([[[[1.0, 0.0], [0.0, 2.0]]]])
    key = torch.tensor([[[[1.0, 1.0], [3.0, 0.0]]]])
    # scores: [1, 3] and [2, 0]; halved: differences of 1 and -1
    expected = torch.tensor([[[[0.2689414, 0.7310586], [0.7310586, 0.2689414]]]])
    torch.testing.assert_close(attention_probabilities(query, key, None, 0.5), expected)
    by_default = torch.tensor([2.0, -2.0]).div(2**0.5).sigmoid()
    torch.testing.assert_close(attention_probabilities(query, key, None, None)[0, 0, :, 1], by_default)
    allowed = torch.tensor([[True, False], [True, True]])
    assert attention_probabilities(query, key, allowed, 0.5)[0, 0, 0].tolist() == [1, 0]
    additive = torch.tensor([[0.0, -1.0], [0.0, 0.0]])
    torch.testing.assert_close(attention_probabilities(query, key, additive, 0.5)[0, 0, 0], torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize("tokens", [1, 2, 9, 15, 16, 17, 33])
def test_maps_of_any_length_are_the_naive_softmax_and_so_are_their_gradients(tokens):
    generator = torch.Generator().manual_seed(tokens)
    query, key = torch.randn(2, 2, 3, tokens, 4, generator=generator, dtype=torch.float64)
    weights = torch.randn(2, 3, tokens, tokens, generator=generator, dtype=torch.float64)
    seen = torch.rand(2, 1, tokens, tokens, generator=generator) < 0.7
    seen[..., 0] = True
    found, expected = query.clone().requires_grad_(), query.clone().requires_grad_()
    (attention_probabilities(found.float(), key.float(), seen, None) * weights).sum().backward()
    powers = (expected @ key.transpose(-1, -2) / 2).exp() * seen
    (powers / powers.sum(-1, keepdim=True) * weights).sum().backward()
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        maps = attention_probabilities(query.float(), key.float(), seen, None)
    assert maps.shape == seen.expand(2, 3, -1, -1).shape and maps[~seen.expand(2, 3, -1, -1)].abs().sum() == 0
    torch.testing.assert_close(
        maps.double(), powers.detach() / powers.detach().sum(-1, keepdim=True), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "unpadded"])
@pytest.mark.parametrize("family", SDPA)
def test_in_bf16_on_the_cpu_few_scores_are_plain_products_that_give_what_sdpa_gives(family, padded):
    model, batch = SDPA[family]().eval(), rows(padded)
    with torch.no_grad():
        exact = model(**batch).logits
        with torch.autocast("cpu", torch.bfloat16), CountSdpa() as by_sdpa:
            usual = model(**batch).logits
        model.set_attn_implementation(CAPTURING_SDPA)
        with torch.autocast("cpu", torch.bfloat16), CountSdpa() as count:
            found = model(**batch).logits
        with CountSdpa() as in_float32:
            assert torch.equal(model(**batch).logits, exact)
        model.set_attn_implementation("eager")
        with torch.autocast("cpu", torch.bfloat16):
            eager = model(**batch).logits
    assert by_sdpa.found == in_float32.found == 3 and count.found == 0
    # As near to float32 as transformers' own two ways are in bf16.
    usual_error = max(float((logits - exact).abs().max()) for logits in (usual, eager))
    assert (found - exact).abs().max() <= 2 * usual_error + 0.01 * exact.abs().max()


@pytest.mark.parametrize(("queries", "keys", "by_sdpa"), [(1, 5, 0), (5, 5, 0), (1, 1, 0), (1200, 1200, 1)])
def test_plain_products_see_what_a_causal_sdpa_sees_and_leave_many_scores_to_it(queries, keys, by_sdpa):
    generator, module = torch.Generator().manual_seed(0), nn.Module()
    query, key, value = (torch.randn(1, 2, n, 8, generator=generator).bfloat16() for n in (queries, keys, keys))
    with CountSdpa() as count:
        found, _ = AttentionInterface()[CAPTURING_SDPA](module, query, key, value, None, is_causal=True)
    # A single query is the last token, which sees all.
    expected = nn.functional.scaled_dot_product_attention(
        query.float(), key.float(), value.float(), is_causal=queries > 1
    )
    torch.testing.assert_close(found.float(), expected.transpose(1, 2), rtol=0.05, atol=0.05)
    assert count.found == by_sdpa


def test_maps_are_float32_in_a_bfloat16_model():
    captured = capture(tiny_bert().to(torch.bfloat16).eval(), rows(), attentions={1})
    assert captured.attentions[0].dtype == torch.float32
    torch.testing.assert_close(captured.attentions[0].sum(dim=-1), torch.ones(3, 2, 9))


def test_gradients_flow_through_captured_maps_as_through_eager_ones():
    gradients = []
    for implementation in ("sdpa", "eager"):
        model = tiny_bert(layers=3, initializer_range=0.5).train()
        model.set_attn_implementation(implementation)
        captured = capture(model, rows(), attentions={2})
        (captured.attentions[1][:, :, 0].square().sum()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert gradients[0]["bert.encoder.layer.1.attention.self.query.weight"].abs().max() > 1e-4
    assert not any("layer.2" in name or "classifier" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("of", ["transformers", "fsdp"])
def test_maps_are_the_same_under_gradient_checkpointing(of):
    found = []
    for checkpointing in (False, True):
        model = tiny_bert(layers=3, initializer_range=0.5).train()
        if checkpointing and of == "transformers":
            model.gradient_checkpointing_enable()
        elif checkpointing:
            model.bert.encoder.layer = nn.ModuleList(map(checkpoint_wrapper, model.bert.encoder.layer))
        captured = capture(model, rows(), attentions={1, 3})
        assert len(captured.attentions) == 3
        (captured.attentions[2].square().sum() + captured.logits.square().sum()).backward()
        first = next(weight for name, weight in model.named_parameters() if name.endswith("self.value.weight"))
        found.append((captured.attentions[2], first.grad))
    # Computed again, the map comes out of other products in another order; the gradient is up to 3.
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("family", ENCODERS)
def test_padding_changes_nothing_of_real_tokens(family):
    model = ENCODERS[family]().eval()
    short = {name: value[:, :6] for name, value in rows(padded=False).items()}
    long = {name: nn.functional.pad(value, (0, 7)) for name, value in short.items()}
    with torch.no_grad():
        alone, padded = (capture(model, batch, attentions=ALL, hidden_states={3}) for batch in (short, long))
    for one, other in zip(alone.attentions, padded.attentions, strict=True):
        torch.testing.assert_close(one, other[:, :, :6, :6], rtol=0, atol=1e-5)
        assert other[:, :, :6, 6:].abs().max() == 0
    torch.testing.assert_close(alone.hidden_states[3], padded.hidden_states[3][:, :6], rtol=0, atol=1e-5)


def test_two_models_in_turn_keep_apart():
    student, teacher, batch = tiny_bert(layers=2, seed=1).eval(), tiny_bert(layers=3).eval(), rows()
    captures = (
        Capture(student, {"attentions": frozenset({1})}, "student"),
        Capture(teacher, {"attentions": frozenset({3})}, "teacher"),
    )
    ours, theirs = captures[0](student, batch), captures[1](teacher, batch)
    assert [len(ours.attentions), len(theirs.attentions)] == [2, 3]
    assert torch.equal(captures[0](student, batch).attentions[0], ours.attentions[0])


def test_a_saved_model_bears_no_trace_of_the_recording(tmp_path):
    model = tiny_bert().eval()
    before = model.config.to_dict()
    logits = capture(model, rows(), attentions={1}, queries={2}).logits
    assert model.config.to_dict() == before
    model.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert "nlpkd" not in text and "attn_implementation" not in text and "output_attentions" not in json.loads(text)
    loaded = Auto.from_pretrained(tmp_path)
    assert loaded.config._attn_implementation == "sdpa"
    torch.testing.assert_close(loaded(**rows()).logits, logits, rtol=0, atol=1e-6)


def test_recording_ends_with_the_forward_even_if_that_fails():
    model = tiny_bert().eval()
    capture(model, rows(), attentions={1})
    assert _recording.get() is None
    with pytest.raises(IndexError):
        capture(model, {"input_ids": torch.tensor([[99]])}, attentions={1})
    assert _recording.get() is None


def test_a_student_of_a_teacher_that_was_recorded_can_be_recorded():
    teacher = tiny_bert(layers=4).eval()
    capture(teacher, rows(), attentions={1})
    student = make_student(teacher, 2).eval()
    assert capture(student, rows(), attentions={2}).attentions[1].shape == (3, 2, 9, 9)


def test_nothing_wanted_leaves_the_model_as_it_is():
    model = tiny_bert().eval()
    captured = capture(model, rows(), attentions=(), hidden_states=())
    assert model.config._attn_implementation == "sdpa"
    assert captured.attentions is captured.hidden_states is None


def test_only_what_the_forward_takes_is_passed_on_and_never_labels():
    batch = rows() | {"labels": torch.tensor([0, 1, 99]), "teacher_logits": torch.zeros(3, 2), "length": [1]}
    found = Capture(
        build(DistilBertConfig(vocab_size=30, dim=16, n_layers=1, n_heads=2, hidden_dim=32)), {}, "student"
    )
    assert found.inputs(batch | {"token_type_ids": batch["input_ids"]}).keys() == {"input_ids", "attention_mask"}


def test_a_plain_module_gives_logits_as_tensor_or_tuple():
    class Bag(nn.Module):
        def __init__(self, as_tuple):
            super().__init__()
            self.embedding, self.as_tuple = nn.EmbeddingBag(30, 2), as_tuple

        def forward(self, input_ids):
            logits = self.embedding(input_ids)
            return (logits,) if self.as_tuple else logits

    for model in (Bag(False), Bag(True)):
        assert torch.equal(capture(model, rows()).logits, model.embedding(rows()["input_ids"]))
        with pytest.raises(ValueError, match=r"\['hidden_states'\] of the student, and Bag is no .*only logits"):
            capture(model, rows(), hidden_states={1})


# What can't be given is refused


def test_an_implementation_that_gives_no_maps_is_refused_with_the_ones_that_do():
    model = tiny_bert()
    model.set_attn_implementation("flex_attention")
    with pytest.raises(ValueError, match="the student runs attention by 'flex_attention'.*'sdpa' .or 'eager'."):
        capture(model, rows(), attentions={1})


@pytest.mark.parametrize("kind", ["queries", "keys", "values"])
def test_eager_attention_gives_no_queries_keys_or_values(kind):
    model = tiny_bert()
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="queries, keys or values of the student.*attn_implementation='sdpa'"):
        capture(model, rows(), **{kind: {1}})


SEQUENCES = {
    "bart": lambda: build(
        BartConfig(
            vocab_size=30, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, pad_token_id=0, bos_token_id=2,
            eos_token_id=3, decoder_start_token_id=2, forced_eos_token_id=3, num_labels=2,
        )
    ),
    "t5": lambda: build(
        T5Config(
            vocab_size=30, d_model=16, num_layers=2, num_heads=2, d_ff=32, d_kv=8, eos_token_id=3, pad_token_id=0,
            decoder_start_token_id=0,
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["attentions", "hidden_states", "queries"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", SEQUENCES)
def test_layers_of_an_encoder_with_a_decoder_are_refused_with_advice_that_helps(family, attention, kind):
    model = SEQUENCES[family]()
    model.set_attn_implementation(attention)
    with pytest.raises(ValueError, match=f"need .'{kind}'. .*has an encoder and a decoder.*use objectives on logits"):
        capture(model, rows(), **{kind: {1}})
    batch = rows(padded=False)
    batch["input_ids"][:, -1] = 3
    assert capture(model, batch).logits.shape == (len(batch["input_ids"]), 2)


SIZES = {"vocab_size": 40, "hidden_size": 16, "num_attention_heads": 2, "ffn_dim": 32, "word_embed_proj_dim": 16}


@pytest.mark.parametrize(
    "family, settings, message",
    [
        (
            "opt",
            SIZES | {"num_hidden_layers": 2, "layerdrop": 0.1},
            "at random .*layerdrop=0.1.: set layerdrop to 0",
        ),
        (
            "perceiver",
            {"num_latents": 4, "d_latents": 16, "d_model": 16},
            "no num_hidden_layers: use objectives on",
        ),
    ],
)
def test_a_student_without_the_same_layers_at_every_step_has_none_to_match(family, settings, message):
    model = Auto.from_config(AutoConfig.for_model(family, **settings))
    with pytest.raises(ValueError, match=message):
        capture(model, rows(), hidden_states={1})
    Capture(model, {}, "student")


def test_a_position_bias_is_refused_where_attention_is_recorded():
    states = torch.zeros(1, 2, 3, 4)
    with _record({"attentions": frozenset({1})}, at_once=True), pytest.raises(ValueError, match="a position bias"):
        AttentionInterface()[CAPTURING_SDPA](nn.Identity(), states, states, states, None, position_bias=states)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_outside_of_the_interface_is_refused_and_not_empty(attention):
    class Silent(type(tiny_bert())):
        def forward(self, input_ids, **kwargs):
            return {"logits": torch.zeros(len(input_ids), 2)}

    model = Silent(tiny_bert().config)
    model.set_attn_implementation(attention)
    with pytest.raises(RuntimeError, match="were asked for attentions, and the model gave 0"):
        capture(model, rows(), attentions={1})

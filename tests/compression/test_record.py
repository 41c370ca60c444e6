"""What every compression is asked for, whatever the family: a model that runs, or an error that says which can't."""

from __future__ import annotations

import copy

import pytest
import torch
from datasets import Dataset
from samples import WORDS, sentences, tiny_bert
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    FNetConfig,
    FNetForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from nlpkd.compression import factorize_linear, prune_heads, prune_neurons, to_half, trim_vocabulary
from nlpkd.compression.record import measure_change
from nlpkd.evaluation.prediction import predict_logits
from nlpkd.tasks import MULTI_LABEL

VOCABULARY = 5 + len(WORDS)


def bart():
    return BartForSequenceClassification(
        BartConfig(
            vocab_size=VOCABULARY,
            d_model=16,
            num_labels=2,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            max_position_embeddings=64,
            pad_token_id=0,
            eos_token_id=3,
            bos_token_id=2,
        )  # fmt: skip
    )


def fnet():
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 32}
    return FNetForSequenceClassification(FNetConfig(vocab_size=VOCABULARY, **shape))


def gpt2():
    shape = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "pad_token_id": 0}
    return GPT2ForSequenceClassification(GPT2Config(vocab_size=VOCABULARY, **shape))


def t5():
    shape = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    shape |= {"pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 3}
    return T5ForSequenceClassification(T5Config(vocab_size=VOCABULARY, **shape))


def xlnet():
    shape = {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 32}
    return XLNetForSequenceClassification(XLNetConfig(vocab_size=VOCABULARY, **shape))


def test_the_change_of_decisions_is_that_by_each_models_own_thresholds(tokenizer):
    before = tiny_bert(1, num_labels=3, problem_type=MULTI_LABEL, initializer_range=0.5).eval()
    after = copy.deepcopy(before)
    rows = Dataset.from_dict(dict(tokenizer(sentences(30)[0])))
    given = torch.from_numpy(predict_logits(before, rows, tokenizer)).sigmoid()
    cuts = given.quantile(0.45, dim=0).tolist()
    for own, others in ((cuts, None), (None, cuts), (cuts, cuts)):
        after.config.thresholds, before.config.thresholds = own, others
        decisions = [given > torch.tensor(each or [0.5] * 3) for each in (own, others)]
        agreement, difference = measure_change(before, after, rows, tokenizer)
        assert agreement == pytest.approx((decisions[0] == decisions[1]).double().mean().item())
        assert difference == 0 and (agreement == 1.0) == (own == others)


METHODS = {
    "factorize-linear": lambda model, tokenizer, rows: factorize_linear(model, rank=2),
    "half": lambda model, tokenizer, rows: to_half(model),
    "prune-heads": lambda model, tokenizer, rows: prune_heads(model, rows, tokenizer, heads=1),
    "prune-neurons": lambda model, tokenizer, rows: prune_neurons(model, rows, tokenizer, keep=0.5),
    "trim-vocabulary": lambda model, tokenizer, rows: trim_vocabulary(model, tokenizer, ["a good film"]),
}


@pytest.mark.parametrize("family", [bart, fnet, gpt2, t5, xlnet])
@pytest.mark.parametrize("method", METHODS)
def test_a_compression_gives_a_model_that_runs_or_says_what_can_not(method, family, tokenizer):
    model = family().eval()
    encoded = tokenizer(["a good film"] * 4, return_token_type_ids=False)
    rows = Dataset.from_dict({**encoded, "labels": [0, 1] * 2})
    try:
        smaller, *_ = METHODS[method](model, tokenizer, rows)
    except ValueError as error:
        assert type(model).__name__ in str(error)
        return
    ids = torch.tensor([[2, 5, 3]])
    with torch.no_grad():
        assert smaller.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.shape == (1, 2)


@pytest.mark.parametrize(
    "family, method, said",
    [
        (t5, "factorize-linear", "that can't run .*compress it by another method"),
        (t5, "prune-heads", "no form with these layers"),
        (xlnet, "half", "that can't run"),
        (fnet, "half", "that can't run"),
    ],
)
def test_a_family_that_a_method_breaks_is_refused_before_anything_is_saved(family, method, said, tokenizer):
    rows = Dataset.from_dict({**tokenizer(["a good film"] * 4, return_token_type_ids=False), "labels": [0, 1] * 2})
    with pytest.raises(ValueError, match=said):
        METHODS[method](family().eval(), tokenizer, rows)

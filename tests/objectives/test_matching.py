"""Whether a preset can match a model's layers is what a padded batch of texts says of it."""

import copy

import numpy as np
import pytest
import torch
from families import SIZE, bert, distilbert, electra, llama, make, modernbert, roberta
from samples import tiny_bert
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BigBirdConfig,
    BigBirdForSequenceClassification,
    CanineConfig,
    CanineForSequenceClassification,
    FalconConfig,
    FalconForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LongformerConfig,
    LongformerForSequenceClassification,
    SqueezeBertConfig,
    SqueezeBertForSequenceClassification,
    YosoConfig,
    YosoForSequenceClassification,
)

from nlpkd.models.capture import Capture
from nlpkd.objectives.matching import shows_layers


def bart():
    sizes = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    return BartForSequenceClassification(
        BartConfig(vocab_size=30, d_model=16, encoder_layers=2, decoder_layers=2, eos_token_id=3, **sizes)
    )


def canine():
    return CanineForSequenceClassification(CanineConfig(**SIZE, num_hash_buckets=32, max_position_embeddings=64))


def falcon():
    return FalconForSequenceClassification(FalconConfig(**SIZE, pad_token_id=0, alibi=False))


def longformer():
    return LongformerForSequenceClassification(LongformerConfig(**SIZE, attention_window=4))


def squeezebert():
    return SqueezeBertForSequenceClassification(SqueezeBertConfig(**SIZE, embedding_size=16))


def yoso():
    return YosoForSequenceClassification(YosoConfig(**SIZE, use_expectation=False, hash_code_len=4))


def gives(model, kinds, batch) -> bool:
    """Whether a pass of a padded batch gives the kinds of all layers."""
    try:
        layers, tried = frozenset(range(1, model.config.num_hidden_layers + 1)), copy.deepcopy(model)
        Capture(tried, dict.fromkeys(kinds, layers), "teacher")(tried, batch)
    except (AttributeError, RuntimeError, ValueError):
        return False
    return True


SHOWN = [bert, distilbert, roberta, electra, modernbert, llama]
HIDDEN = [bart, canine, falcon, longformer, squeezebert, yoso]


@pytest.mark.parametrize("family", [*SHOWN, *HIDDEN], ids=lambda family: family.__name__)
@pytest.mark.parametrize(
    ("preset", "kinds"), [("layerwise", ["hidden_states", "attentions"]), ("dynabert", ["hidden_states"])]
)
def test_what_is_said_of_a_family_is_what_a_padded_batch_gives(family, preset, kinds, batch):
    model = make(family)
    shown = shows_layers([model], preset)
    assert shown == gives(model, kinds, batch)
    assert shown or family in HIDDEN
    if preset == "layerwise":
        assert shown == (family in SHOWN) == shows_layers([make(bert), model], preset)
    # Logits all of them have.
    assert shows_layers([model], "hinton")


def bigbird():
    return BigBirdForSequenceClassification(BigBirdConfig(**SIZE, attention_type="block_sparse"))


@pytest.mark.parametrize("family", [bert, longformer, yoso, bigbird], ids=lambda family: family.__name__)
def test_a_model_that_was_tried_is_as_it_was(family):
    model = make(family).train()
    model.dropout = torch.nn.Dropout(0.5).eval()
    before = copy.deepcopy(model)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    shows_layers([model], "layerwise")
    assert torch.equal(torch.get_rng_state(), states[0]) and (np.random.get_state()[1] == states[1]).all()
    assert model.config._attn_implementation == before.config._attn_implementation
    assert model.config.to_dict() == before.config.to_dict()
    assert repr(model) == repr(before)
    assert [each.training for each in model.modules()] == [each.training for each in before.modules()]
    for (name, tensor), other in zip(model.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(tensor, other) and tensor.requires_grad and tensor.grad is None, name


def test_weights_that_are_not_here_are_not_tried():
    with torch.device("meta"):
        assert shows_layers([tiny_bert()], "layerwise")


def test_a_vocabulary_of_few_tokens_is_enough():
    assert shows_layers([tiny_bert(vocab_size=5)], "layerwise")


def test_an_end_token_beyond_the_vocabulary_hides_no_layers():
    # GPT-2's config has the end token of GPT-2's own vocabulary where nobody names another one.
    config = GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=2, n_positions=32, num_labels=2, pad_token_id=0)
    assert config.eos_token_id >= config.vocab_size
    assert shows_layers([GPT2ForSequenceClassification(config)], "layerwise")

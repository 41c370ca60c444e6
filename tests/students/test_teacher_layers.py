"""Layers of families whose stacks, weights and settings are not as BERT's."""

import copy

import pytest
import torch
from families import NAMES, SIZE, logits_of
from torch import nn
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BigBirdConfig,
    BigBirdForSequenceClassification,
    EsmConfig,
    EsmForSequenceClassification,
)

from nlpkd import make_student

READ = {"input_ids": torch.tensor([[2, 5, 9, 12, 7, 3], [2, 8, 6, 3, 1, 1]]), "attention_mask": torch.ones(2, 6)}
"""Rows that end with BART's 3, as often each as it wants to see it."""


def bart(encoder_layers: int, decoder_layers: int):
    depths = {"encoder_layers": encoder_layers, "decoder_layers": decoder_layers}
    sizes = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    config = BartConfig(vocab_size=30, d_model=16, pad_token_id=1, eos_token_id=3, **depths, **sizes, init_std=0.2)
    return BartForSequenceClassification(config)


@pytest.mark.parametrize("left", [1, 2, 3, 4])
def test_the_encoder_s_layers_are_the_chosen_ones_however_many_the_decoder_has(left):
    torch.manual_seed(0)
    teacher = bart(4, 2)
    chosen = {1: [4], 2: [2, 4], 3: [1, 3, 4], 4: [1, 2, 3, 4]}[left]
    student, by_hand = make_student(teacher, chosen), copy.deepcopy(teacher)
    encoder = by_hand.model.encoder
    encoder.layers = nn.ModuleList([encoder.layers[layer - 1] for layer in chosen])
    assert len(student.model.encoder.layers) == left and len(student.model.decoder.layers) == 2
    assert torch.equal(logits_of(student, READ), logits_of(by_hand, READ))


def test_halves_of_the_same_depth_are_no_single_stack():
    with pytest.raises(ValueError, match="no single stack of 2 layers .*encoder.layers.*decoder.layers"):
        make_student(bart(2, 2), 1)


@pytest.mark.parametrize("attention", ["original_full", "block_sparse"])
def test_layers_of_a_bigbird_are_the_chosen_ones_whatever_random_blocks_they_draw(attention):
    torch.manual_seed(0)
    teacher = BigBirdForSequenceClassification(BigBirdConfig(**SIZE, **NAMES, attention_type=attention))
    student = make_student(teacher, 2)
    assert student.config.attention_type == attention
    for layer, original in zip(student.bert.encoder.layer, (3, 6), strict=True):
        of_teacher = teacher.bert.encoder.layer[original - 1].state_dict()
        assert all(torch.equal(tensor, of_teacher[name]) for name, tensor in layer.state_dict().items())


def test_weights_beside_the_layers_that_depend_on_their_number_are_named():
    teacher = EsmForSequenceClassification(EsmConfig(**SIZE, **NAMES, pad_token_id=1, mask_token_id=4))
    with pytest.raises(ValueError, match=r"contact_head.* is \(1, 12\), and of 2 layers \(1, 4\)\): choose 'width:"):
        make_student(teacher, 2)
    assert torch.equal(logits_of(make_student(teacher, 6), READ), logits_of(teacher, READ))

"""Words replaced by their neighbours in a model's embeddings."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from samples import WORDS, raw_rows, tiny_bert
from transformers import BertTokenizer

from nlpkd.augment import EmbeddingNeighbours


def draws(texts: int, copies: int = 1) -> list[list[np.random.Generator]]:
    return [[np.random.default_rng((row, copy)) for copy in range(copies)] for row in range(texts)]


def nearest(model, tokenizer, word: str, top_k: int) -> set[str]:
    """The words of the largest cosine, one by one."""
    vectors = model.get_input_embeddings().weight.detach()

    def cosine(other: str) -> float:
        one, two = (vectors[tokenizer.convert_tokens_to_ids(each)] for each in (word, other))
        return float(one @ two / (one.norm() * two.norm()))

    return set(sorted(set(WORDS) - {word}, key=cosine)[-top_k:])


def test_every_word_becomes_one_of_its_neighbours(tokenizer):
    model, text = tiny_bert(), "the film was not very good"
    augmenter = EmbeddingNeighbours(model, tokenizer, change=1, top_k=3)
    variants = [variant.split() for variant in next(augmenter.variants([text], draws(1, 100)))]
    for place, word in enumerate(text.split()):
        assert {variant[place] for variant in variants} == nearest(model, tokenizer, word, 3)


@pytest.mark.parametrize("change", [0.0, 0.1, 0.3, 1.0])
def test_the_share_of_replaced_words_is_the_one_asked_for(tokenizer, change):
    texts = [*raw_rows(60, seed=4)["text"], "good xx yy zz film", "xx, yy"]
    augmenter = EmbeddingNeighbours(tiny_bert(), tokenizer, change, top_k=5)
    for text, variants in zip(texts, augmenter.variants(texts, draws(len(texts), 4)), strict=True):
        words = text.split()
        known = sum(word in WORDS for word in words)
        expected = min(known, max(1, int(change * len(words) + 0.5))) if change else 0
        for variant in variants:
            changed = [new != old for new, old in zip(variant.split(), words, strict=True)]
            assert sum(changed) == expected
            assert not any(new and word not in WORDS for new, word in zip(changed, words, strict=True))


@pytest.mark.parametrize("change", [0.1, 0.3, 1.0])
def test_of_texts_without_blanks_the_share_is_one_of_their_signs(change):
    text = "这部电影非常好看我很喜欢演员的表演"
    tokens = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *text])
    signs = BertTokenizer(vocab={token: number for number, token in enumerate(tokens)})
    augmenter = EmbeddingNeighbours(tiny_bert(vocab_size=len(signs)), signs, change, top_k=3)
    for variant in next(augmenter.variants([text], draws(1, 20))):
        changed = sum(new != old for new, old in zip(variant, text, strict=True))
        assert changed == int(change * len(text) + 0.5)


def test_variants_depend_neither_on_batches_nor_on_the_texts_beside(tokenizer):
    texts = raw_rows(12, seed=3)["text"][:]
    augmenter = EmbeddingNeighbours(tiny_bert(), tokenizer, top_k=5)
    together = list(augmenter.variants(texts, draws(12, 4)))
    fresh = EmbeddingNeighbours(tiny_bert(), tokenizer, top_k=5)
    alone = [next(fresh.variants([text], [own])) for text, own in zip(texts, draws(12, 4), strict=True)]
    assert alone[::-1] == together[::-1] and augmenter.fingerprint() == fresh.fingerprint()


def test_vectors_tokenizer_and_settings_tell_augmenters_apart(tokenizer):
    model = tiny_bert()
    before = EmbeddingNeighbours(model, tokenizer, top_k=5).fingerprint()
    assert EmbeddingNeighbours(model, tokenizer, 0.2, top_k=5).fingerprint() != before
    assert EmbeddingNeighbours(model, tokenizer, top_k=6).fingerprint() != before
    assert EmbeddingNeighbours(tiny_bert(seed=1), tokenizer, top_k=5).fingerprint() != before
    assert EmbeddingNeighbours(tiny_bert(layers=1).bfloat16(), tokenizer, top_k=5).fingerprint() != before


def test_the_model_stays_as_it_is(tokenizer):
    model = tiny_bert().train()
    weights = copy.deepcopy(model.state_dict())
    list(EmbeddingNeighbours(model, tokenizer, top_k=5).variants(["good film"], draws(1)))
    assert model.training and all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_what_does_not_fit_is_refused(tokenizer):
    with pytest.raises(ValueError, match="change must be a share of at least 0 and at most 1"):
        EmbeddingNeighbours(tiny_bert(), tokenizer, 1.1)
    with pytest.raises(ValueError, match=f"top_k={len(WORDS)}: give 1 to {len(WORDS) - 1}"):
        EmbeddingNeighbours(tiny_bert(), tokenizer, top_k=len(WORDS))
    more = BertTokenizer(vocab={token: number for number, token in enumerate([*tokenizer.get_vocab(), "more"])})
    with pytest.raises(ValueError, match="has 24 input embeddings, the tokenizer 25 tokens"):
        EmbeddingNeighbours(tiny_bert(), more, top_k=5)

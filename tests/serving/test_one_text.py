"""One text through the tokenizers library alone: the inputs that the tokenizer's own call gives."""

import numpy as np
import pytest
from samples import WORDS
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertTokenizer, PreTrainedTokenizerFast

from nlpkd.serving.one_text import one_text

TEXTS = ["", "the film was good", "GOOD  film\n", "é 中 [MASK] [SEP] 🙂", "very " * 40, "[CLS] the film [PAD]"]
INPUTS = ["input_ids", "attention_mask", "token_type_ids"]


def wordpiece(**settings):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    return BertTokenizer(vocab={token: number for number, token in enumerate(tokens)}, model_max_length=12, **settings)


def byte_level(**settings):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: number for number, piece in enumerate(["<pad>", "<s>", "</s>", "<unk>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", model_max_length=16,
        model_input_names=["input_ids", "attention_mask"], **settings,
    )  # fmt: skip


def unigram(**settings):
    backend = Tokenizer(models.Unigram([("<unk>", 0.0), *((piece, -2.0) for piece in ("▁", "good", "▁film", "o"))], 0))
    backend.normalizer, backend.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="o", **settings)


@pytest.mark.parametrize("settings", [{}, {"truncation_side": "left"}, {"split_special_tokens": True}], ids=str)
@pytest.mark.parametrize("make", [wordpiece, byte_level, unigram])
def test_it_is_what_the_tokenizer_s_call_gives(make, settings):
    tokenizer = make(**settings)
    read = one_text(tokenizer, INPUTS)
    # What other calls leave in the tokenizer is not followed.
    tokenizer(TEXTS, truncation=True, padding="max_length", max_length=5)
    for text in TEXTS:
        expected = tokenizer(text, truncation=True, return_tensors="np")
        found = read(text)
        assert list(found) == INPUTS and all(each.dtype == np.int64 for each in found.values())
        for name in INPUTS:
            np.testing.assert_array_equal(found[name], expected.get(name, np.zeros_like(expected["input_ids"])))


def test_it_gives_what_the_model_reads():
    assert list(one_text(wordpiece(), ["input_ids"])("good")) == ["input_ids"]


def test_a_tokenizer_with_code_of_its_own_has_none():
    class Own(BertTokenizer):
        def __call__(self, text, **settings):
            return super().__call__(text.upper(), **settings)

    vocabulary = {token: number for number, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])}
    assert one_text(Own(vocab=vocabulary), INPUTS) is None

"""What each tokenizer makes of a text that several of them read."""

from __future__ import annotations

from itertools import permutations

import pytest
from datasets import Dataset, Value, concatenate_datasets
from samples import WORDS, masking_tokenizers, raw_rows

from nlpkd import load_text_classification
from nlpkd.augment import MaskingAndNGrams, augment

TOKENIZERS = masking_tokenizers()


def refuse_other_reading(row, tokenizer, prefix, masks):
    """Check that a text of so many masked words is read as these, and the words beside them."""
    ids = row[f"{prefix}input_ids"]
    assert ids.count(tokenizer.mask_token_id) == masks
    rest = tokenizer.decode([number for number in ids if number != tokenizer.mask_token_id], skip_special_tokens=True)
    assert set(rest.split()) <= set(WORDS)


@pytest.mark.parametrize(("student", "teacher"), [*permutations(TOKENIZERS, 2)])
@pytest.mark.parametrize("streaming", [False, True])
def test_each_tokenizer_reads_a_masked_word_of_a_training_row_as_its_own_mask_token(
    student, teacher, streaming, tmp_path
):
    own, other = TOKENIZERS[student], TOKENIZERS[teacher]
    rows = raw_rows(30, seed=1).cast_column("label", Value("int64"))
    made = augment(rows, MaskingAndNGrams(other, 0.3, 0.2), copies=2, cache_dir=tmp_path)
    train, more = concatenate_datasets([rows, made]), {}
    if streaming:
        train.to_json(str(tmp_path / "train.jsonl"))
        train, more = str(tmp_path / "train.jsonl"), {"streaming": True}
    data = load_text_classification(train, rows, tokenizer=own, teacher_tokenizer=other, **more)
    read = data["train"].head(30 + len(made)) if streaming else data["train"]
    texts = [*rows["text"][:], *made["text"][:]]
    assert sum(text.count(other.mask_token) for text in texts) > 20 and len(read) == len(texts)
    for row, text in zip(read, texts, strict=True):
        masks = text.count(other.mask_token)
        refuse_other_reading(row, own, "", masks)
        refuse_other_reading(row, other, "teacher_", masks)


def test_a_row_that_is_measured_is_read_as_it_is_served(tmp_path):
    own, other = TOKENIZERS["BPE"], TOKENIZERS["WordPiece"]
    rows = Dataset.from_dict({"text": ["a [MASK] film", "a <mask> film"] * 3, "label": [0, 1] * 3})
    data = load_text_classification(rows, rows, tokenizer=own, teacher_tokenizer=other)
    assert data["validation"]["input_ids"][:] == own(rows["text"][:])["input_ids"]
    assert data["validation"]["teacher_input_ids"][:] == other(rows["text"][:])["input_ids"]
    alone = load_text_classification(rows, tokenizer=own)
    assert alone["train"]["input_ids"][:] == own(rows["text"][:])["input_ids"]


def test_a_tokenizer_without_a_mask_token_reads_the_text_as_it_is():
    own, other = masking_tokenizers()["Unigram"], TOKENIZERS["WordPiece"]
    own.mask_token = None
    rows = Dataset.from_dict({"text": ["a [MASK] film", "a film"] * 3, "label": [0, 1] * 3})
    data = load_text_classification(rows, tokenizer=own, teacher_tokenizer=other)
    assert data["train"]["input_ids"][:] == own(rows["text"][:])["input_ids"]

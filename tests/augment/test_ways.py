"""Ways by name, and what the kind of student says about them."""

from __future__ import annotations

import re

import pytest
import torch
from samples import WORDS, raw_rows, tiny_bert
from transformers import BertConfig, BertForMaskedLM

from nlpkd import make_student
from nlpkd.augment import (
    WAYS,
    ConstituentSwap,
    EmbeddingNeighbours,
    MaskedLanguageModel,
    MaskingAndNGrams,
    augment,
    make_augmenter,
)

KINDS = {
    "constituents": ConstituentSwap, "neighbours": EmbeddingNeighbours, "masked-lm": MaskedLanguageModel,
    "masking": MaskingAndNGrams, "ngrams": MaskingAndNGrams,
}  # fmt: skip


@pytest.fixture(scope="module")
def masked_lm(tmp_path_factory, tokenizer) -> str:
    folder = tmp_path_factory.mktemp("masked-lm")
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertForMaskedLM(BertConfig(vocab_size=5 + len(WORDS), **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_every_way_names_its_paper_and_makes_new_text(tokenizer, masked_lm, tmp_path):
    assert set(WAYS) == set(KINDS)
    rows = raw_rows(60, seed=2)
    # Sentences with clauses.
    rows = rows.map(lambda row: {"text": f"{row['text']} film , a film and it was"})
    for name, way in WAYS.items():
        assert re.search(r"arXiv:\d{4}\.\d{5}", way.paper) and way.differs.endswith(".")
        model = masked_lm if name == "masked-lm" else None
        augmenter = make_augmenter(name, tiny_bert(), tokenizer, change=0.5, masked_lm=model)
        assert type(augmenter) is KINDS[name]
        made = augment(rows, augmenter, copies=2, cache_dir=tmp_path)
        assert len(made) > 20 and not set(made["text"]) & set(rows["text"]) and set(made["label"]) == {-100}
        again = make_augmenter(name, tiny_bert(), tokenizer, change=0.5, masked_lm=model)
        assert again.fingerprint() == augmenter.fingerprint()
        assert make_augmenter(name, tiny_bert(), tokenizer, change=0.4, masked_lm=model).fingerprint() != (
            augmenter.fingerprint()
        )


@pytest.mark.parametrize("student", ["bilstm", "textcnn"])
def test_n_grams_are_cut_for_students_that_read_words_in_their_order(student, tokenizer):
    teacher = tiny_bert()
    for named in (student, make_student(teacher, student).config):
        augmenter = make_augmenter("auto", teacher, tokenizer, named)
        assert isinstance(augmenter, MaskingAndNGrams) and augmenter.ngram_probability > 0


@pytest.mark.parametrize("student", ["layers:1", "width:0.5", "static", None])
def test_n_grams_are_cut_for_no_other_student_unless_asked_for(student, tokenizer):
    teacher = tiny_bert()
    for named in (student, make_student(teacher, student).config if student == "static" else teacher.config):
        assert isinstance(make_augmenter("auto", teacher, tokenizer, named), ConstituentSwap)
    assert make_augmenter("masking", teacher, tokenizer, student).ngram_probability == 0
    assert make_augmenter("ngrams", teacher, tokenizer, student).ngram_probability > 0


def test_what_a_way_lacks_or_has_no_use_for_is_refused(tokenizer, masked_lm):
    teacher = tiny_bert()
    with pytest.raises(ValueError, match="there is no way 'swap' to augment: choose one of .*, or 'auto'"):
        make_augmenter("swap", teacher, tokenizer)
    with pytest.raises(ValueError, match="'masked-lm' needs a masked language model: name one as augment_model"):
        make_augmenter("masked-lm", teacher, tokenizer)
    with pytest.raises(ValueError, match="'neighbours' has no use for a masked language model"):
        make_augmenter("neighbours", teacher, tokenizer, masked_lm=masked_lm)
    with pytest.raises(ValueError, match="/nowhere"):
        make_augmenter("masked-lm", teacher, tokenizer, masked_lm="/nowhere")


def test_a_masked_language_model_runs_in_float32_where_the_teacher_is(tokenizer, masked_lm):
    augmenter = make_augmenter("masked-lm", tiny_bert().bfloat16(), tokenizer, change=0.2, masked_lm=masked_lm)
    assert augmenter.model.dtype == torch.float32 and augmenter.replace_probability == 0.2 and augmenter.top_k == 15

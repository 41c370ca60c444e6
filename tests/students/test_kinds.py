"""Every family gives a student of each kind, or a refusal that says what to do."""

import pytest
import torch
from datasets import Dataset
from families import NAMES, SIZE
from samples import tiny_bert
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from nlpkd import make_student
from nlpkd.students.kinds import KINDS, StudentKind

FAMILIES = {
    "bart": {"d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2,
             "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32},
    "canine": {"num_hash_buckets": 32, "max_position_embeddings": 64},
    "convbert": {"embedding_size": 16, "head_ratio": 1, "conv_kernel_size": 3},
    "esm": {"pad_token_id": 1, "mask_token_id": 4},
    "fnet": {},
    "funnel": {"d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 32, "block_sizes": [1, 1]},
    "esmc": {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 1, "cls_token_id": 0, "eos_token_id": 2},
    "lilt": {"hidden_size": 24},
    "luke": {"entity_vocab_size": 5, "entity_emb_size": 16},
    "longformer": {"attention_window": 4},
    "perceiver": {"num_latents": 4, "d_latents": 16, "d_model": 16, "num_blocks": 1, "num_self_attends_per_block": 2,
                  "num_self_attention_heads": 2, "num_cross_attention_heads": 2},
    "roc_bert": {"pronunciation_vocab_size": 9, "shape_vocab_size": 9, "pronunciation_embed_dim": 8,
                 "shape_embed_dim": 8},
    "roformer": {},
    "squeezebert": {"embedding_size": 16},
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 1, "num_heads": 2,
           "decoder_start_token_id": 0},
    "xlm": {"emb_dim": 16, "n_heads": 2, "n_layers": 2},
    "xlnet": {"d_model": 16, "n_head": 2, "n_layer": 2, "d_inner": 32},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
}  # fmt: skip
"""The settings of families whose code is not as BERT's, beside those that most have."""
OWN_SIZES = ("bart", "funnel", "perceiver", "t5", "xlm", "xlnet")
ASKED = [
    {"layers": "layers:1"}, {"layers": "layers:1", "hidden_size": 8}, {"layers": "layers:2", "intermediate_size": 8},
    {"layers": "layers:1", "hidden_size": 8, "initialization": "random"}, {"layers": "width:1"},
    {"layers": "width:0.5"}, {"layers": "bilstm"}, {"layers": "static"},
]  # fmt: skip


@pytest.mark.parametrize("family", [family for family in FAMILIES if family in CONFIG_MAPPING])
def test_a_student_of_a_family_runs_or_is_refused_with_what_to_do(family, tokenizer):
    sizes = {"vocab_size": 30} if family in OWN_SIZES else SIZE | {"num_hidden_layers": 2}
    config = AutoConfig.for_model(family, **(sizes | NAMES | FAMILIES[family]))
    teacher = AutoModelForSequenceClassification.from_config(config)
    rows = Dataset.from_dict({**tokenizer(["good film"] * 3, return_token_type_ids=False), "labels": [0, 1, 2]})
    for asked in ASKED:
        try:
            student = make_student(teacher, **asked, rows=rows, tokenizer=tokenizer)
        except ValueError as error:
            advice = ("take ", "try ", "choose ", "pass ", "keep ", "prune ", "load ", "by another method")
            assert any(word in str(error) for word in advice), (asked, error)
            continue
        assert student.config.num_labels == 3
        ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11, getattr(config, "eos_token_id", 1) or 1]])
        with torch.no_grad():
            assert student.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.shape == (1, 3)


@pytest.mark.parametrize("error", [AttributeError, NotImplementedError, AssertionError, RuntimeError, KeyError])
def test_what_a_family_s_code_raises_is_told_with_the_family_and_what_was_asked(error):
    def odd(teacher, name, *, id2label, seed):
        raise error("no such part")

    kind = StudentKind("odd".__eq__, "'odd'", odd, lambda teacher: ())
    KINDS.append(kind)
    try:
        message = f"a BertForSequenceClassification can't be made into 'odd' .{error.__name__}: .?no such part.*: try "
        with pytest.raises(ValueError, match=message) as found:
            make_student(tiny_bert(), "odd")
        assert isinstance(found.value.__cause__, error)
    finally:
        KINDS.remove(kind)


def test_a_student_that_can_not_run_is_no_student():
    def broken(teacher, name, *, id2label, seed):
        student = tiny_bert()
        student.bert.encoder.layer[0].output.LayerNorm = torch.nn.LayerNorm(8)
        return student

    kind = StudentKind("broken".__eq__, "'broken'", broken, lambda teacher: ())
    KINDS.append(kind)
    try:
        with pytest.raises(ValueError, match="can't be made into 'broken' .RuntimeError: .*: try another kind of"):
            make_student(tiny_bert(), "broken")
    finally:
        KINDS.remove(kind)


def test_a_lack_of_memory_is_no_matter_of_the_family():
    def large(teacher, name, *, id2label, seed):
        raise torch.OutOfMemoryError("out of memory")

    kind = StudentKind("large".__eq__, "'large'", large, lambda teacher: ())
    KINDS.append(kind)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            make_student(tiny_bert(), "large")
    finally:
        KINDS.remove(kind)

"""Token vectors of a student that is no transformer, made by its teacher's encoder."""

import numpy as np
import pytest
import torch
from families import electra, llama, make
from samples import raw_rows, tiny_bert
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    CanineConfig,
    CanineForSequenceClassification,
    FunnelConfig,
    FunnelForSequenceClassification,
    PerceiverConfig,
    PerceiverForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
)

from nlpkd import distill, make_student
from nlpkd.pipeline.jobs.distillation import prepare_job
from nlpkd.students.small import small_student, token_vectors


def bart():
    sizes = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    return BartForSequenceClassification(
        BartConfig(vocab_size=24, d_model=16, encoder_layers=2, decoder_layers=2, max_position_embeddings=64, **sizes)
    )


def t5():
    return T5ForSequenceClassification(T5Config(vocab_size=24, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2))


def naive_vectors(teacher, size: int, tokens=None) -> np.ndarray:
    """Each token alone through the encoder, averaged, and the principal axes by a singular value decomposition."""
    vectors = []
    for token in range(teacher.config.vocab_size) if tokens is None else tokens:
        with torch.no_grad():
            states = teacher.bert(input_ids=torch.tensor([[2, token, 3]])).last_hidden_state  # [CLS] token [SEP]
        vectors.append(states[0].numpy().mean(axis=0))
    centred = np.array(vectors, dtype=np.float64) - np.mean(vectors, axis=0, dtype=np.float64)
    found = centred @ np.linalg.svd(centred)[2][:size].T
    return found / np.sqrt((found**2).sum() / len(found))


def test_vectors_are_those_of_a_naive_loop(tokenizer):
    teacher = tiny_bert(initializer_range=0.5).train()
    for size in (5, 16):
        found = token_vectors(teacher, tokenizer, size).numpy()
        # An axis may point either way.
        expected = naive_vectors(teacher.eval(), size)
        signs = np.sign((found * expected).sum(axis=0))
        np.testing.assert_allclose(found * signs, expected, atol=1e-4)
    # Other weights are another teacher, and the same ones are the same.
    again = token_vectors(teacher, tokenizer, 16)
    assert torch.equal(token_vectors(tiny_bert(initializer_range=0.5), tokenizer, 16), again)
    with torch.no_grad():
        teacher.bert.encoder.layer[0].output.dense.weight.mul_(2)
    assert not torch.allclose(token_vectors(teacher, tokenizer, 16).abs(), again.abs(), atol=1e-3)


def test_vectors_of_some_tokens_have_the_principal_axes_of_these(tokenizer):
    teacher, some = tiny_bert(initializer_range=0.5).eval(), [0, 2, 3, *range(7, 20, 2)]
    found = token_vectors(teacher, tokenizer, 5, some).numpy()
    expected = naive_vectors(teacher, 5, some)
    signs = np.sign((found[some] * expected).sum(axis=0))
    np.testing.assert_allclose(found[some] * signs, expected, atol=1e-4)
    assert not np.delete(found, some, axis=0).any()


@pytest.mark.parametrize("door", ["distill", "make_student"])
def test_a_trimmed_student_has_the_vectors_of_the_tokens_that_stay_alone(door, tokenizer, tmp_path, caplog):
    caplog.set_level("INFO", "nlpkd")
    # Vectors of the same teacher would not be computed twice.
    teacher = tiny_bert(initializer_range=0.5, id2label={0: "neg", 1: "pos"}, seed=len(door))
    if door == "make_student":
        texts = raw_rows(24)["text"][:]
        student, trimmed = make_student(teacher, "static", vocabulary="trim", tokenizer=tokenizer, texts=texts)
    else:
        made = distill(
            teacher, "static", raw_rows(24), raw_rows(8, seed=7), teacher_tokenizer=tokenizer, objectives="hinton",
            vocabulary="trim", output_dir=tmp_path, bf16=False, report_to="none", disable_tqdm=True, use_cpu=True,
            max_steps=1, teacher_check="off", rehearsal=False, save_strategy="no", learning_rate=1e-30,
        )  # fmt: skip
        student, trimmed = made.student, made.tokenizer
    rows = len(trimmed)
    assert rows < len(tokenizer) and f"Computing the vectors of {rows} tokens ..." in caplog.messages
    table = student.get_input_embeddings().weight.detach().numpy()
    kept = [tokenizer.convert_tokens_to_ids(trimmed.convert_ids_to_tokens(at)) for at in range(rows)]
    expected = naive_vectors(teacher.eval(), 16, kept)
    np.testing.assert_allclose(table * np.sign((table * expected).sum(axis=0)), expected, atol=1e-4)


def test_a_static_student_starts_from_them_and_is_trained(tokenizer, batch):
    teacher = tiny_bert(initializer_range=0.5).to(torch.bfloat16)
    student = make_student(teacher, "static", tokenizer=tokenizer)
    table = student.get_input_embeddings().weight
    assert torch.equal(table, token_vectors(teacher, tokenizer, 16)) and table.dtype == torch.float32
    assert student.config.projection_size is None
    student(**batch).logits.sum().backward()
    assert table.grad.any() and not teacher.get_input_embeddings().weight.grad
    # What a student learns, the next one does not start from.
    with torch.no_grad():
        table.zero_()
    narrow = small_student("static", teacher, tokenizer=tokenizer, embedding_size=4, num_pairs=8)
    assert narrow.get_input_embeddings().weight.shape == (24, 4) and narrow.pairs.weight.shape == (8, 4)
    another = make_student(teacher, "static", tokenizer=tokenizer, num_pairs=8)
    assert another.get_input_embeddings().weight.any() and another.config.num_pairs == 8


def test_which_vectors_a_student_starts_from(tokenizer):
    teacher = tiny_bert(initializer_range=0.5)
    table, vectors = teacher.get_input_embeddings().weight, token_vectors(teacher, tokenizer, 16)

    def start(kind: str, **given) -> torch.Tensor:
        return make_student(teacher, kind, **given).get_input_embeddings().weight

    assert torch.equal(start("static"), table)
    assert torch.equal(start("static", tokenizer=tokenizer, embeddings="teacher"), table)
    assert torch.equal(start("bilstm", tokenizer=tokenizer), table)
    assert torch.equal(start("bilstm", tokenizer=tokenizer, embeddings="contextual"), vectors)


@pytest.mark.parametrize("family", [llama, electra, bart, t5, lambda: make_student(llama(), "bilstm"), None])
def test_teachers_of_every_kind_have_vectors_or_their_table(family, make_rows, tokenizer):
    if family is None:
        # One of a share of the width, a teacher of its own.
        teacher = make_student(tiny_bert(), "width:0.5", rows=make_rows(4), tokenizer=tokenizer)
    else:
        teacher = make(family)
    table = make_student(teacher, "static", tokenizer=tokenizer).get_input_embeddings().weight
    theirs = teacher.get_input_embeddings().weight
    copied = table.shape == theirs.shape and torch.equal(table, theirs)
    assert len(table) == len(theirs) and table.shape[1] == 16 and table.isfinite().all()
    assert copied == (teacher.config.model_type == "nlpkd_bilstm")


def test_a_job_by_name_starts_from_them_too(tokenizer, settings):
    teacher = tiny_bert(initializer_range=0.5, id2label={0: "neg", 1: "pos"})
    job = prepare_job(
        settings(), teacher, "static", raw_rows(16), raw_rows(8, seed=7), teacher_tokenizer=tokenizer,
        objectives="hinton",
    )  # fmt: skip
    table = job.make_untrained_student(3).get_input_embeddings().weight
    assert torch.equal(table, token_vectors(teacher, tokenizer, 16))


@pytest.mark.parametrize(
    "given, message",
    [
        ({"embeddings": "contextual"}, "'contextual', which needs its tokenizer too, .* got 'contextual'"),
        ({"embeddings": "contextual", "tokenizer": True, "embedding_size": 17}, "embedding_size=17 must be from 1 to"),
        ({"embeddings": "contextual", "tokenizer": True, "vocab_size": 9}, r"is \(24, 16\), and \(9, 16\) is asked"),
        ({"num_pairs": -1}, "num_pairs=-1"),
    ],
)
def test_vectors_that_can_not_be_made_are_refused(given, message, tokenizer):
    given = given | ({"tokenizer": tokenizer} if "tokenizer" in given else {})
    with pytest.raises(ValueError, match=message):
        small_student("static", tiny_bert(), **given)


def test_a_family_that_can_not_read_single_tokens_is_refused_by_name(tokenizer):
    shape = {"d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 32, "block_sizes": [1, 1, 1]}
    teacher = FunnelForSequenceClassification(FunnelConfig(vocab_size=24, **shape))
    with pytest.raises(ValueError, match="FunnelBaseModel can't read single tokens .*use embeddings='teacher'"):
        make_student(teacher, "static", tokenizer=tokenizer)
    assert make_student(teacher, "static", embeddings="teacher").config.vocab_size == 24


def test_a_tokenizer_of_another_teacher_is_refused(tokenizer):
    with pytest.raises(ValueError, match="special tokens beyond the 3 of the teacher"):
        token_vectors(tiny_bert(vocab_size=3), tokenizer, 4)


def canine():
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return CanineForSequenceClassification(CanineConfig(**size, num_hash_buckets=32))


def perceiver():
    size = {"num_latents": 4, "d_latents": 16, "d_model": 16, "num_blocks": 1, "num_self_attends_per_block": 1}
    heads = {"num_self_attention_heads": 2, "num_cross_attention_heads": 2}
    return PerceiverForSequenceClassification(PerceiverConfig(**size, **heads))


@pytest.mark.parametrize("family", [canine, perceiver])
@pytest.mark.parametrize("kind", ["bilstm", "textcnn", "static"])
def test_a_teacher_without_a_vector_for_each_token_is_refused_by_name(family, kind):
    with pytest.raises(ValueError, match="Classification has no table with a vector for each token.*choose"):
        small_student(kind, family())

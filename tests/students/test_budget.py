"""A student by what it may cost: what is measured, which is chosen, and what is said when nothing fits."""

from __future__ import annotations

import math

import pytest
from samples import QUIET, raw_rows, tiny_bert
from transformers import (
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PerceiverConfig,
    PerceiverForSequenceClassification,
)

from nlpkd import DistillationConfig, distill, make_student
from nlpkd.evaluation.benchmark import model_size_mb
from nlpkd.pipeline.jobs.distillation import prepare_job
from nlpkd.students.budget import choose_within, make_candidates, student_within


def test_the_deepest_student_within_the_size_is_chosen_and_the_table_said(caplog):
    teacher = tiny_bert(layers=4, hidden=32)
    sizes = {depth: model_size_mb(make_student(teacher, depth)) for depth in (4, 3, 2, 1)}
    student = make_student(teacher, max_size_mb=(sizes[2] + sizes[3]) / 2)
    assert student.config.num_hidden_layers == 2
    assert model_size_mb(student) == sizes[2]
    assert all(f"layers:{depth} {size:.1f} MB" in caplog.text for depth, size in sizes.items())
    assert make_student(teacher, max_size_mb=sizes[4]).config.num_hidden_layers == 4


def wide_teacher(**config):
    return tiny_bert(layers=4, hidden=320, heads=5, intermediate_size=1280, vocab_size=50, **config)


def test_shapes_and_small_models_are_candidates_too_by_their_weights_beside_embeddings(caplog):
    teacher = wide_teacher()
    # By hand: a layer of width h has 12 h^2 + 13 h weights in use where the inner width is 4 h.
    layer = {h: 12 * h * h + 13 * h for h in (320, 256, 128)}
    assert 3 * layer[320] > 4 * layer[256] > 2 * layer[320] > layer[320] > 2 * layer[128]
    candidates = make_candidates(teacher, None, lambda name, config: True)
    names = list(candidates)
    assert {"layers:4", "layers:1", "bert-mini", "bert-tiny", "bilstm", "textcnn", "static"} <= set(names)
    assert "tinybert-6l-768" not in names and "bert-small" not in names
    order = [name for name in names if name not in ("bilstm", "textcnn", "static")]
    assert order == ["layers:4", "layers:3", "bert-mini", "layers:2", "layers:1", "bert-tiny"]
    tiny = model_size_mb(candidates["bert-tiny"])
    assert make_student(teacher, max_size_mb=tiny).config.hidden_size == 128
    assert "bert-tiny fits" in caplog.text and "layers:1" in caplog.text
    deep = make_candidates(teacher, None, lambda name, config: getattr(config, "num_hidden_layers", 0) > 2)
    assert list(deep) == ["layers:4", "layers:3", "bert-mini"]
    with pytest.raises(ValueError, match="no student of this teacher that the objectives can match"):
        make_candidates(teacher, None, lambda name, config: False)


@pytest.mark.parametrize(
    ("objectives", "chosen"),
    [("hinton", "bilstm"), ("pkd", "bert-tiny"), ("minilmv2", "bert-tiny"), ("layerwise", None)],
)
def test_a_distillation_leaves_out_what_its_objectives_can_not_match(objectives, chosen, tokenizer, tmp_path):
    """A BiLSTM has no layers, and attention maps of other numbers of heads can't be compared."""
    teacher = wide_teacher()
    sizes = {name: model_size_mb(make_student(teacher, name)) for name in ("bilstm", "bert-tiny", "layers:1")}
    assert max(sizes["bilstm"], sizes["bert-tiny"]) < sizes["layers:1"]
    args = DistillationConfig(output_dir=str(tmp_path))
    given = {"tokenizer": tokenizer, "teacher_tokenizer": tokenizer, "objectives": objectives,
             "max_size_mb": max(sizes["bilstm"], sizes["bert-tiny"])}  # fmt: skip
    if chosen is None:
        with pytest.raises(ValueError, match="no candidate fits"):
            prepare_job(args, teacher, None, raw_rows(24), raw_rows(16, seed=2), **given)
        return
    job = prepare_job(args, teacher, None, raw_rows(24), raw_rows(16, seed=2), **given)
    assert job.origin["student"]["name"] == chosen
    assert model_size_mb(job.make_untrained_student(0)) == sizes[chosen]


def test_a_budget_counts_factorised_embeddings():
    """Of which a BiLSTM has none, so that it is no candidate."""
    teacher = tiny_bert(layers=2, hidden=32, vocab_size=5000)
    whole, thin = (model_size_mb(make_student(teacher, 2, embedding_size=size)) for size in (None, 4))
    student = make_student(teacher, max_size_mb=(whole + thin) / 2, embedding_size=4)
    assert student.config.num_hidden_layers == 2 and model_size_mb(student) == thin
    with pytest.raises(ValueError, match="no candidate fits") as refused:
        make_student(teacher, max_size_mb=thin / 10, embedding_size=4)
    assert "bilstm" not in str(refused.value)


def test_a_budget_is_held_by_a_student_whose_vocabulary_is_trimmed(tokenizer):
    # Of a narrower teacher a static student would have the most weights in use.
    teacher = tiny_bert(layers=2, hidden=32, vocab_size=len(tokenizer))
    texts = raw_rows(3)["text"]
    whole = make_student(teacher, 2)
    small, trimmed = make_student(teacher, 2, vocabulary="trim", tokenizer=tokenizer, texts=texts)
    limit = (model_size_mb(small) + model_size_mb(whole)) / 2
    student, own = make_student(teacher, max_size_mb=limit, vocabulary="trim", tokenizer=tokenizer, texts=texts)
    assert student.config.num_hidden_layers == 2 and model_size_mb(student) <= limit
    assert own.get_vocab() == trimmed.get_vocab()


def test_depths_that_make_no_student_are_left_out_and_said(caplog):
    """Only the first layer of a ModernBERT has no norm before its attention."""
    config = ModernBertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
                              intermediate_size=16, pad_token_id=0, cls_token_id=2, sep_token_id=3)  # fmt: skip
    teacher = ModernBertForSequenceClassification(config)
    with pytest.raises(ValueError, match="make no model of its kind"):
        make_student(teacher, 2)
    assert (
        student_within(teacher, max_size_mb=1.0, fits=lambda name, config: config.model_type == "modernbert")
        == "layers:4"
    )
    assert "No student can be made of layers:" in caplog.text and "try layers that start with 1" in caplog.text


def test_a_teacher_without_layers_has_a_budget_of_small_students_or_a_word_on_what_it_lacks():
    found = make_candidates(make_student(tiny_bert(), "static"), None, lambda name, config: True)
    assert set(found) == {"bilstm", "textcnn", "static"}
    size = {"num_latents": 4, "d_latents": 16, "d_model": 16, "num_blocks": 1, "num_self_attends_per_block": 1}
    heads = {"num_self_attention_heads": 2, "num_cross_attention_heads": 2}
    perceiver = PerceiverForSequenceClassification(PerceiverConfig(**size, **heads))
    with pytest.raises(ValueError, match="PerceiverForSequenceClassification has no layers to make narrower: choose"):
        make_student(perceiver, max_size_mb=1.0)


def test_a_distillation_takes_a_budget_in_place_of_a_student(tokenizer, tmp_path):
    teacher = tiny_bert(layers=4, hidden=32)
    size = model_size_mb(make_student(teacher, 2))
    rows, held_out = raw_rows(24, seed=1), raw_rows(16, seed=2)
    settings = {"tokenizer": tokenizer, "teacher_tokenizer": tokenizer, "objectives": "hinton", "max_steps": 1,
                "teacher_check": "off", **QUIET, "output_dir": tmp_path, "max_size_mb": size}  # fmt: skip
    result = distill(teacher, None, rows, held_out, **settings)
    assert result.student.config.num_hidden_layers == 2 and result.report.run.student.name == "layers:2"
    with pytest.raises(ValueError, match="a budget chooses the student itself, and student='layers:3' is given too"):
        distill(teacher, "layers:3", rows, held_out, **settings)
    with pytest.raises(ValueError, match="no candidate fits"):
        distill(teacher, None, rows, held_out, **settings | {"max_size_mb": 1e-6})


def test_latency_decides_where_it_is_asked_for():
    candidates = {"deep": tiny_bert(layers=48, hidden=64), "shallow": tiny_bert(layers=1)}
    _, table = choose_within(candidates, max_latency_ms=1e6, runs=5)
    deep, shallow = table
    assert deep.latency_ms > 4 * shallow.latency_ms and deep.fits and shallow.fits
    # Far from both, since a busy machine measures twice as long as a quiet one.
    name, _ = choose_within(candidates, max_latency_ms=math.sqrt(deep.latency_ms * shallow.latency_ms), runs=5)
    assert name == "shallow"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"max_size_mb": 1e-6}, r"no candidate fits max_size_mb=1e-06 .*layers:2 0\.0 MB .* Raise the budget"),
        ({"max_latency_ms": 0}, "max_latency_ms must be > 0"),
        ({"max_size_mb": 5.0, "layers": 2}, "give the teacher, and no layers"),
        ({"max_size_mb": 5.0, "hidden_size": 8}, "give the teacher, and no layers"),
        ({"max_size_mb": 5.0, "checkpoint": "somewhere"}, "give the teacher, and no layers"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        make_student(tiny_bert(), **asked)
    with pytest.raises(ValueError, match="there is no budget"):
        choose_within({})

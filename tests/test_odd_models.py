"""Models of other kinds than BERT's: taken as they are, or refused by name before the first step."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from samples import QUIET, WORDS, raw_rows, tiny_bert
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    BartForSequenceClassification,
    BertTokenizer,
    FNetConfig,
    FNetForSequenceClassification,
    FunnelConfig,
    FunnelForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPTNeoConfig,
    GPTNeoForSequenceClassification,
    LongformerConfig,
    LongformerForSequenceClassification,
    MobileBertConfig,
    MobileBertForSequenceClassification,
    SmolLM3Config,
    SmolLM3ForSequenceClassification,
    SqueezeBertConfig,
    SqueezeBertForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
)

from nlpkd import DistillationTrainer, distill, evaluate_student, load_teacher, make_student, train_teacher
from nlpkd.evaluation.benchmark import count_flops, measure_latency
from nlpkd.objectives import AttentionMSELoss, ForwardKLLoss, HiddenStateMSELoss, SelfAttentionRelationLoss
from nlpkd.teachers.teacher import LiveTeacher

VOCABULARY = 5 + len(WORDS)
QUICK = {
    **QUIET, "rehearsal": True, "save_strategy": "no", "max_steps": 2, "teacher_check": "off",
}  # fmt: skip
SIZE = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "pad_token_id": 0, "num_labels": 2,
}  # fmt: skip


def seeded(kind, config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(config)


def t5():
    sizes = {"d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 32, "d_kv": 8, "vocab_size": VOCABULARY}
    special = {"eos_token_id": 3, "pad_token_id": 0, "decoder_start_token_id": 0}
    return seeded(T5ForSequenceClassification, T5Config(**sizes, **special, num_labels=2))


def bart():
    sizes = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    special = {"eos_token_id": 3, "pad_token_id": 0, "bos_token_id": 2, "decoder_start_token_id": 3}
    config = BartConfig(
        **sizes, **special, d_model=16, encoder_ffn_dim=32, decoder_ffn_dim=32, vocab_size=VOCABULARY,
        max_position_embeddings=64, num_labels=2,
    )  # fmt: skip
    return seeded(BartForSequenceClassification, config)


@pytest.mark.parametrize("make", [bart, t5])
def test_an_encoder_decoder_learns_from_logits(make, tokenizer, make_rows, settings):
    trainer = DistillationTrainer(
        make(), tiny_bert(), settings(max_steps=2), [ForwardKLLoss()], make_rows(16), processing_class=tokenizer
    )
    assert trainer.train().global_step == 2


@pytest.mark.parametrize("make", [bart, t5])
def test_an_encoder_decoder_is_timed_and_counted_on_texts_with_an_end(make, tokenizer):
    timed = measure_latency({"student": make()}, {"student": tokenizer}, batches=(1, 3), tokens=8, runs=1)
    assert [entry.batch for entry in timed["student"]] == [1, 3]
    assert count_flops(make(), tokenizer, tokens=8) > 0


FAMILIES = {
    "Longformer": lambda: seeded(
        LongformerForSequenceClassification, LongformerConfig(**SIZE, attention_window=8, max_position_embeddings=70)
    ),
    "Funnel": lambda: seeded(
        FunnelForSequenceClassification,
        FunnelConfig(vocab_size=VOCABULARY, d_model=16, n_head=2, d_head=8, d_inner=32, block_sizes=[1, 1]),
    ),
    "SqueezeBERT": lambda: seeded(
        SqueezeBertForSequenceClassification, SqueezeBertConfig(**SIZE, embedding_size=16, max_position_embeddings=64)
    ),
    "FNet": lambda: seeded(
        FNetForSequenceClassification,
        FNetConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, intermediate_size=32),
    ),
}


@pytest.mark.parametrize(
    "family, objective, said",
    [
        ("Longformer", AttentionMSELoss, r"attentions of the shape \(\d+, 2, \d+, 10\)"),
        ("Funnel", HiddenStateMSELoss, r"hidden_states of the shape"),
        ("Funnel", AttentionMSELoss, r"attentions of the shape"),
        ("SqueezeBERT", AttentionMSELoss, "attention maps are no probabilities"),
        ("FNet", AttentionMSELoss, "'fnet' has no attention heads to match"),
    ],
)
def test_layers_of_another_shape_or_meaning_are_refused_by_name(
    family, objective, said, tokenizer, make_rows, settings
):
    with pytest.raises((ValueError, RuntimeError), match=f"{said}.*use objectives on logits"):
        DistillationTrainer(
            tiny_bert(), FAMILIES[family](), settings(max_steps=1), [objective(layers="last")], make_rows(24),
            processing_class=tokenizer,
        ).train()  # fmt: skip


def test_gpt_2_reads_no_segments_which_it_would_look_up_among_the_words(tokenizer):
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=64, pad_token_id=0)
    model = seeded(GPT2ForSequenceClassification, config).eval()
    pair = dict(tokenizer("good film", "bad plot", return_tensors="pt"))
    assert pair["token_type_ids"].any()
    with torch.no_grad():
        found = LiveTeacher(model, {}, torch.device("cpu")).outputs(pair).logits
        expected = model(input_ids=pair["input_ids"], attention_mask=pair["attention_mask"]).logits
    assert torch.equal(found, expected)


def test_the_tokenizer_saved_beside_gpt_2_gives_no_segments(tokenizer, make_rows, settings, tmp_path):
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=64, pad_token_id=0)
    trainer = DistillationTrainer(
        seeded(GPT2ForSequenceClassification, config), tiny_bert(), settings(max_steps=1), [ForwardKLLoss()],
        make_rows(8), processing_class=tokenizer,
    )  # fmt: skip
    trainer.save_model(str(tmp_path))
    assert set(AutoTokenizer.from_pretrained(tmp_path)("good film")) == {"input_ids", "attention_mask"}
    assert "token_type_ids" in tokenizer("good film"), "the one in hand is left as it is"


@pytest.mark.filterwarnings("ignore:.*quantiz.*")
def test_a_quantised_teacher_is_run_without_mixed_precision(tokenizer, make_rows, settings):
    teacher = torch.ao.quantization.quantize_dynamic(tiny_bert().eval(), {nn.Linear})
    rows = make_rows(16)
    for objective in (ForwardKLLoss(), HiddenStateMSELoss()):
        trainer = DistillationTrainer(
            tiny_bert(seed=1), teacher, settings(bf16=True, max_steps=2), [objective], rows, processing_class=tokenizer
        )
        assert trainer.train().global_step == 2
    batch = trainer.data_collator([rows[0], rows[1]])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        assert torch.equal(trainer._signals.outputs(batch).logits, teacher(**inputs).logits)


def test_a_teacher_of_one_output_is_no_score_where_all_labels_are_classes(tokenizer, tmp_path):
    teacher = tiny_bert(num_labels=1)
    rows = [{"text": row["text"], "label": row["label"]} for row in raw_rows(20)]
    options = {
        "student": "layers:1", "tokenizer": tokenizer, "teacher_tokenizer": tokenizer, "objectives": "hinton",
        "output_dir": tmp_path,
    } | QUICK  # fmt: skip
    advice = "A teacher has one output.*give it two.*problem_type='regression'"
    with pytest.raises(ValueError, match=f"All labels are 0 or 1. {advice}"):
        distill(teacher, train=rows, validation=rows, **options)
    named = [row | {"label": ("bad", "good")[row["label"]]} for row in rows]
    with pytest.raises(ValueError, match=f"the score '(bad|good)'.*{advice}"):
        distill(teacher, train=named, validation=named, **options)
    told = distill(teacher, train=rows, validation=rows, problem_type="regression", **options)
    assert told.report.task.problem_type == "regression"


# Layers that differ


def smollm():
    """Every fourth layer has no rotary positions."""
    config = SmolLM3Config(
        **SIZE | {"num_hidden_layers": 4}, num_key_value_heads=1, bos_token_id=2, eos_token_id=3, initializer_range=0.3
    )
    return seeded(SmolLM3ForSequenceClassification, config).eval()


def gpt_neo():
    """Global and local attention in turn."""
    config = GPTNeoConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_layers=4, num_heads=2, attention_types=[[["global", "local"], 2]],
        window_size=3, max_position_embeddings=64, pad_token_id=0, bos_token_id=2, eos_token_id=3,
        initializer_range=0.3,
    )  # fmt: skip
    return seeded(GPTNeoForSequenceClassification, config).eval()


def longformer():
    config = LongformerConfig(
        **SIZE | {"num_hidden_layers": 4}, attention_window=[4, 8, 4, 16], max_position_embeddings=70
    )
    return seeded(LongformerForSequenceClassification, config).eval()


@pytest.mark.parametrize("make, stack", [(smollm, "model"), (gpt_neo, "transformer"), (longformer, "longformer")])
@pytest.mark.parametrize("layers", [[2, 4], [1, 4], [3]])
def test_layers_keep_their_own_settings_when_others_go_and_when_they_are_loaded(make, stack, layers, tmp_path):
    teacher = make()
    student = make_student(teacher, layers).eval()
    student.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    # The teacher with its other layers taken out by hand.
    body = getattr(teacher, stack)
    holder, name = (body.encoder, "layer") if stack == "longformer" else (body, "layers" if stack == "model" else "h")
    kept = [getattr(holder, name)[layer - 1] for layer in layers]
    setattr(holder, name, nn.ModuleList(kept))
    for place, layer in enumerate(kept):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = place
    teacher.config.num_hidden_layers = len(layers)
    inputs = {"input_ids": torch.tensor([[2, 5, 9, 11, 8, 12, 10, 3]]), "attention_mask": torch.ones(1, 8).long()}
    extra = {} if stack == "longformer" else {"use_cache": False}
    with torch.no_grad():
        expected = teacher(**inputs, **extra).logits
        for model in (student, loaded):
            torch.testing.assert_close(model(**inputs).logits, expected, rtol=0, atol=1e-6)


def test_a_setting_of_a_layer_that_no_config_can_say_is_refused():
    teacher = tiny_bert(layers=4)
    teacher.bert.encoder.layer[3].attention.self.scaling = 0.5
    with pytest.raises(ValueError, match="layer 4 of BertFor.*attention.self.scaling=0.5.*try layers that start"):
        make_student(teacher, [2, 4])
    assert make_student(teacher, [1, 2]).config.num_hidden_layers == 2


# Students and teachers in other wrappers


def test_a_student_object_reads_with_the_tokenizer_that_lies_beside_it(tokenizer, tmp_path, caplog):
    tokens = tokenizer.convert_ids_to_tokens(range(5)) + WORDS[::-1]
    own = BertTokenizer(vocab={token: number for number, token in enumerate(tokens)}, model_max_length=64)
    tiny_bert(seed=5).save_pretrained(tmp_path / "student")
    own.save_pretrained(tmp_path / "student")
    student = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    options = {"train": raw_rows(16), "validation": raw_rows(8, 1), "objectives": "hinton", **QUICK}
    teaching = {"teacher": tiny_bert(layers=3), "teacher_tokenizer": tokenizer}
    result = distill(**teaching, student=student, output_dir=tmp_path / "out", **options)
    assert result.tokenizer.get_vocab() == own.get_vocab() != tokenizer.get_vocab()
    with caplog.at_level(logging.WARNING, logger="nlpkd"):
        result = distill(**teaching, student=tiny_bert(), output_dir=tmp_path / "alone", **options)
    assert result.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert "it reads with the teacher's" in caplog.text


def test_a_wrapped_student_is_refused_by_its_kind(tokenizer, tmp_path):
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(tiny_bert(), peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    with pytest.raises(ValueError, match="student is a PeftModelForSequenceClassification.*merge_and_unload"):
        distill(
            tiny_bert(), wrapped, raw_rows(8), raw_rows(8), tokenizer=tokenizer, output_dir=tmp_path / "out", **QUICK
        )


@pytest.mark.parametrize("with_tokenizer", [True, False], ids=["beside a tokenizer", "as peft writes it"])
def test_an_adapter_alone_is_refused_alike_by_all_that_take_a_name(with_tokenizer, tokenizer, tmp_path):
    base, folder = tmp_path / "base", tmp_path / "adapter"
    tiny_bert().save_pretrained(base)
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    if with_tokenizer:
        tokenizer.save_pretrained(folder)
    rows = {"train": raw_rows(8), "validation": raw_rows(8, 1), "output_dir": tmp_path / "out"} | QUICK
    for call in (
        lambda: load_teacher(folder),
        lambda: distill(folder, "layers:1", **rows),
        lambda: distill(tiny_bert(), folder, teacher_tokenizer=tokenizer, **rows),
        lambda: train_teacher(folder, **rows),
    ):
        with pytest.raises(ValueError, match="an adapter alone, of the base model.*merge the adapter"):
            call()


@pytest.mark.parametrize("checkpointing, objectives, expected", [
    (True, [HiddenStateMSELoss()], True), (True, [ForwardKLLoss()], False), (False, [HiddenStateMSELoss()], True),
])  # fmt: skip
def test_ddp_looks_for_weights_that_no_objective_trains(
    checkpointing, objectives, expected, tokenizer, make_rows, settings
):
    args = settings(gradient_checkpointing=checkpointing)
    trainer = DistillationTrainer(
        tiny_bert(), tiny_bert(seed=1), args, objectives, make_rows(8), processing_class=tokenizer
    )
    found = trainer.accelerator.ddp_handler.find_unused_parameters
    assert found if expected else found is not checkpointing
    args = settings(gradient_checkpointing=checkpointing, ddp_find_unused_parameters=False)
    asked = DistillationTrainer(
        tiny_bert(), tiny_bert(seed=1), args, objectives, make_rows(8), processing_class=tokenizer
    )
    assert asked.accelerator.ddp_handler.find_unused_parameters is False


@pytest.mark.parametrize("task, gold", [("multi_label_classification", [1.0, 0.0, 1.0]), ("regression", 0.5)])
def test_a_list_of_teachers_of_another_task_is_averaged_by_that_task(task, gold, tokenizer, make_rows):
    labels = 3 if task == "multi_label_classification" else 1
    options = {"num_labels": labels, "problem_type": task, "initializer_range": 0.5}
    teachers = [tiny_bert(seed=seed, **options) for seed in (1, 2)]
    rows = make_rows(6).remove_columns("labels").add_column("labels", [gold] * 6)
    report = evaluate_student(tiny_bert(**options), teachers, rows, tokenizer, latency_runs=0, bootstrap_samples=5)
    with torch.no_grad():
        each = [
            np.concatenate([model.eval()(input_ids=torch.tensor([row["input_ids"]])).logits.numpy() for row in rows])
            for model in teachers
        ]
    if task == "regression":
        error = np.abs(np.mean(each, axis=0)[:, 0] - 0.5).mean()
        assert report.candidates["teacher"].quality["mean_absolute_error"].value == pytest.approx(error, abs=1e-5)
    else:
        given = np.mean([1 / (1 + np.exp(-logits)) for logits in each], axis=0) > 0.5
        right = (given == (np.array(gold) == 1)).all(axis=1).mean()
        hits, total = (given & (np.array(gold) == 1)).sum(), given.sum() + 12
        assert report.candidates["teacher"].quality["accuracy"].value == pytest.approx(right)
        assert report.candidates["teacher"].quality["f1_micro"].value == pytest.approx(2 * hits / total)


def test_models_whose_weights_have_no_values_are_refused_as_student_and_teacher(make_rows, settings, tokenizer):
    rows = make_rows(16)
    lazy = torch.nn.Sequential(torch.nn.Embedding(30, 4), torch.nn.LazyLinear(2))
    for student, teacher, role in (
        (tiny_bert().to("meta"), None, "student"),
        (tiny_bert(), tiny_bert(seed=1).to("meta"), "teacher"),
        (lazy, None, "student"),
    ):
        with pytest.raises(ValueError, match=f"the {role} has weights without values"):
            DistillationTrainer(student, teacher, settings(), None, rows, rows, processing_class=tokenizer)


def test_a_training_that_would_train_nothing_is_refused_before_its_first_step(make_rows, settings, tokenizer):
    rows = make_rows(16)
    frozen = tiny_bert().requires_grad_(False)
    trainer = DistillationTrainer(frozen, tiny_bert(seed=1), settings(), None, rows, rows, processing_class=tokenizer)
    assert "eval_loss" in trainer.evaluate()
    with pytest.raises(ValueError, match="nothing of the student would be trained"):
        trainer.train()
    foreign = torch.optim.SGD(tiny_bert().parameters(), lr=0.1)
    trainer = DistillationTrainer(
        tiny_bert(), None, settings(), None, rows, rows, processing_class=tokenizer, optimizers=(foreign, None)
    )
    with pytest.raises(ValueError, match="the optimizer has none of the student's weights"):
        trainer.train()
    nobody = rows.remove_columns("labels").add_column("labels", [-100] * len(rows))
    with pytest.raises(ValueError, match="no training row has a gold label, and no objective reads a teacher"):
        DistillationTrainer(tiny_bert(), None, settings(), None, nobody, rows, processing_class=tokenizer)
    DistillationTrainer(tiny_bert(), tiny_bert(seed=1), settings(), None, nobody, rows, processing_class=tokenizer)


def test_a_model_without_a_plain_number_of_layers_gives_no_layers():
    with pytest.raises(ValueError, match="a funnel has no plain number of layers to leave some out"):
        make_student(FAMILIES["Funnel"](), 1)


def test_relation_heads_that_do_not_divide_the_attentions_width_are_refused(tokenizer, make_rows, settings):
    size = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    narrow = {"embedding_size": 8, "intra_bottleneck_size": 8, "num_feedforward_networks": 1}
    teacher, student = (
        MobileBertForSequenceClassification(MobileBertConfig(**size, **narrow, num_hidden_layers=layers))
        for layers in (2, 1)
    )
    with pytest.raises(ValueError, match="16 relation heads do not divide a width of 8: choose relation_heads"):
        DistillationTrainer(
            student, teacher, settings(max_steps=1), [SelfAttentionRelationLoss()], make_rows(8),
            processing_class=tokenizer,
        ).train()  # fmt: skip

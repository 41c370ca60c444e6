"""A config.json says how many labels a model has and asks for logits alone, wherever it was written and is read."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from samples import QUIET, WORDS, raw_rows, sentences, tiny_bert
from transformers import (
    AutoModelForSequenceClassification,
    BartConfig,
    BartForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

import nlpkd
from nlpkd import distill, train_teacher
from nlpkd.compression import factorize_linear
from nlpkd.hub.saving import save_student
from nlpkd.models.files.saved_config import settle_model
from nlpkd.models.loading import load_classifier, load_config
from nlpkd.models.structure import as_student

SIZES = {"vocab_size": 5 + len(WORDS), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
SIDES = {"layers": 1, "attention_heads": 2, "ffn_dim": 16}


def tiny_bart(labels: int) -> BartForSequenceClassification:
    """Of a family that has three labels where its file does not say how many."""
    sides = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in SIDES.items()}
    return BartForSequenceClassification(
        BartConfig(**SIZES, **sides, d_model=16, max_position_embeddings=64, num_labels=labels)
    ).eval()


def tiny_llama() -> LlamaForSequenceClassification:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForSequenceClassification(LlamaConfig(**SIZES, **sizes)).eval()


def unnamed_rows(labels: int = 2) -> Dataset:
    return Dataset.from_dict({"text": sentences(8)[0], "label": [number % labels for number in range(8)]})


# How many labels


def save_checkpoint(model, folder: Path, tokenizer) -> Path:
    args = nlpkd.DistillationConfig(str(folder), max_steps=1, save_strategy="steps", save_steps=1, **QUIET)
    rows = nlpkd.load_text_classification(unnamed_rows(model.config.num_labels), tokenizer=tokenizer)["train"]
    objectives = [nlpkd.objectives.CrossEntropyLoss()]
    nlpkd.DistillationTrainer(
        model, args=args, train_dataset=rows, processing_class=tokenizer, objectives=objectives
    ).train()
    return folder / "checkpoint-1"


@pytest.mark.parametrize("labels", [2, 3, 4])
@pytest.mark.parametrize("save", [save_student, save_checkpoint])
def test_a_saved_model_says_its_labels_whatever_its_family_takes_for_granted(
    save, labels, tmp_path: Path, tokenizer
) -> None:
    model = tiny_bart(labels)
    folder = save(model, tmp_path, tokenizer)
    saved = json.loads((folder / "config.json").read_text())
    assert saved["id2label"] == {str(number): f"LABEL_{number}" for number in range(labels)}
    # Plain transformers reads them.
    loaded, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not info["mismatched_keys"]
    assert (loaded.config.id2label, loaded.config.label2id) == (model.config.id2label, model.config.label2id)


def test_a_teacher_of_two_classes_without_names_is_trained_of_a_backbone_of_three_and_served(
    tmp_path: Path, tokenizer
) -> None:
    tiny_bart(3).save_pretrained(tmp_path / "backbone")
    tokenizer.save_pretrained(tmp_path / "backbone")
    train_teacher(
        str(tmp_path / "backbone"), unnamed_rows(), output_dir=tmp_path / "teacher", max_steps=1, **QUIET,
        save_strategy="no",
    )  # fmt: skip
    answers = nlpkd.load(tmp_path / "teacher")("good film", top_k=None)
    assert {each["label"] for each in answers} == {"LABEL_0", "LABEL_1"}


def test_a_model_with_layers_of_other_shapes_says_its_labels_and_those_of_the_model_within(tmp_path: Path) -> None:
    smaller, _ = factorize_linear(tiny_bart(2), rank=2)
    save_student(smaller, tmp_path)
    loaded, missing = load_classifier(tmp_path)
    assert not missing
    assert (loaded.config.num_labels, loaded.base.config.num_labels) == (2, 2)


@pytest.mark.parametrize("labels", [2, 3])
def test_two_labels_that_transformers_left_out_are_read_as_two(labels, tmp_path: Path) -> None:
    tiny_bart(labels).save_pretrained(tmp_path)
    assert ("id2label" in json.loads((tmp_path / "config.json").read_text())) == (labels == 3)
    model, missing = load_classifier(tmp_path)
    assert (model.config.num_labels, missing) == (labels, [])
    assert load_config(tmp_path).num_labels == labels
    # Other names, and another number of them, go before what the file leaves out.
    names = {number: f"class {number}" for number in range(5)}
    other, _ = load_classifier(tmp_path, id2label=names, ignore_mismatched_sizes=True)
    assert other.config.id2label == names


def test_weights_tell_of_as_many_labels_as_the_family_has_where_the_file_says_nothing(tmp_path: Path) -> None:
    tiny_bart(3).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps({name: said[name] for name in said.keys() - {"id2label", "label2id"}}))
    model, missing = load_classifier(tmp_path)
    assert (model.config.num_labels, missing, load_config(tmp_path).num_labels) == (3, [], 3)


def test_a_backbone_has_as_many_labels_as_its_family_takes_for_granted(tmp_path: Path) -> None:
    tiny_bart(2).model.save_pretrained(tmp_path)
    assert load_config(tmp_path).num_labels == 3


# What a model answers


ASKED = [{"output_attentions": True}, {"output_hidden_states": True}, {"return_dict": False}]


def with_settings(model, folder: Path, tokenizer, **settings) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


@pytest.mark.parametrize("settings", ASKED, ids=str)
@pytest.mark.parametrize("family", [tiny_bert, tiny_llama])
def test_a_model_is_read_to_answer_logits_alone_whatever_its_file_asks_for(
    family, settings, tmp_path: Path, tokenizer, caplog
) -> None:
    folder = with_settings(family(), tmp_path, tokenizer, **settings)
    model, _ = load_classifier(folder)
    assert [*model(input_ids=torch.tensor([[5, 6]]))] == ["logits", *(["past_key_values"] * (family is tiny_llama))]
    (name,) = settings
    assert f"{name}={settings[name]}: a classifier is read, and saved, with {name}={not settings[name]}" in caplog.text
    assert nlpkd.load(folder)("good film")[0]["label"] in ("LABEL_0", "LABEL_1")


@pytest.mark.parametrize("settings", ASKED, ids=str)
def test_a_student_in_memory_is_trained_and_saved_to_answer_logits_alone(settings, tmp_path: Path, tokenizer) -> None:
    student = tiny_bert(layers=1)
    for name, value in settings.items():
        # transformers' own check looks at new values alone.
        setattr(student.config, {"output_attentions": "_output_attentions"}.get(name, name), value)
    student = as_student(student)
    assert [*student(input_ids=torch.tensor([[5, 6]]))] == ["logits"]
    save_student(student, tmp_path, tokenizer)
    assert [*AutoModelForSequenceClassification.from_pretrained(tmp_path)(torch.tensor([[5, 6]]))] == ["logits"]


@pytest.mark.parametrize("settings", ASKED, ids=str)
def test_a_student_of_a_teacher_that_asks_for_more_is_distilled_saved_and_served(
    settings, tmp_path: Path, tokenizer
) -> None:
    teacher = with_settings(tiny_bert(), tmp_path / "teacher", tokenizer, **settings)
    distill(
        str(teacher), "layers:1", raw_rows(8), validation=raw_rows(8, seed=1), output_dir=tmp_path / "student",
        max_steps=1, teacher_check="off", **QUIET,
    )  # fmt: skip
    assert nlpkd.load(tmp_path / "student")("good film")[0]["label"] in ("neg", "pos", "LABEL_0", "LABEL_1")


def test_a_model_within_another_asks_for_logits_alone_too() -> None:
    smaller, _ = factorize_linear(tiny_bert(), rank=2)
    smaller.base.config.return_dict = False
    settle_model(smaller)
    assert smaller(input_ids=torch.tensor([[5, 6]])).logits.shape == (1, 2)


@pytest.mark.parametrize("settings", [{"max_length": 20}, {"own": {5}}], ids=str)
def test_a_student_whose_config_can_not_be_saved_is_refused_before_it_is_trained(settings) -> None:
    student = tiny_bert(layers=1)
    vars(student.config).update(settings)
    with pytest.raises(ValueError, match="student could not be saved after its training"):
        as_student(student)


def test_a_student_s_config_is_left_as_it_is() -> None:
    student = tiny_bert(layers=1)
    before = dict(vars(student.config))
    as_student(student)
    assert vars(student.config) == before

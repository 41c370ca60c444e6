"""A student that starts from its teacher's pre-trained backbone has exactly its layers; the backbone is on record."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from samples import QUIET, raw_rows, tiny_bert
from transformers import AutoModelForSequenceClassification, BertConfig

from nlpkd import distill, make_student, train_teacher
from nlpkd.models.loading import load_teacher
from nlpkd.students.backbone import CONFIG_KEY, find_backbone, record_backbone, without_local_backbone
from nlpkd.students.checkpoint import load_student, with_fresh_pooler

QUICK = {
    **QUIET, "per_device_train_batch_size": 8,
    "learning_rate": 2e-3, "max_steps": 2, "save_strategy": "no",
}  # fmt: skip


@pytest.fixture(scope="module")
def backbone(tmp_path_factory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    tiny_bert(layers=4, seed=5).base_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def taught(tmp_path_factory, backbone) -> Path:
    folder = tmp_path_factory.mktemp("taught")
    return train_teacher(str(backbone), raw_rows(24, names=("bad", "good")), output_dir=folder, **QUICK).output_dir


def test_a_trained_teacher_s_folder_names_its_backbone(taught, backbone, monkeypatch, tmp_path):
    expected = {"name": str(backbone.resolve()), "revision": None, "fresh_pooler": False}
    assert json.loads((taught / "config.json").read_text())[CONFIG_KEY] == expected
    AutoModelForSequenceClassification.from_pretrained(taught).save_pretrained(tmp_path / "copy")
    assert json.loads((tmp_path / "copy/config.json").read_text())[CONFIG_KEY] == expected
    # By a relative path it is found from another working directory too.
    monkeypatch.chdir(backbone.parent)
    again = train_teacher(backbone.name, raw_rows(24), output_dir=tmp_path / "again", **QUICK)
    assert getattr(again.model.config, CONFIG_KEY) == expected
    # Fine-tuned once more, it still comes from there.
    further = train_teacher(taught, raw_rows(24, names=("bad", "good")), output_dir=tmp_path / "further", **QUICK)
    assert getattr(further.model.config, CONFIG_KEY) == expected


def test_the_commit_of_a_hub_id_is_recorded_and_a_model_without_a_name_has_no_record():
    config = BertConfig(name_or_path="org/bert")
    config._commit_hash = "a" * 40
    record_backbone(config)
    assert getattr(config, CONFIG_KEY) == {"name": "org/bert", "revision": "a" * 40, "fresh_pooler": False}
    unnamed = BertConfig()
    record_backbone(unnamed)
    assert not hasattr(unnamed, CONFIG_KEY) and find_backbone(unnamed) is None


def test_a_pretrained_student_is_the_backbone_s_layers_bit_by_bit_with_a_seeded_head(taught, backbone):
    teacher, before = load_teacher(taught), load_file(backbone / "model.safetensors")
    student = make_student(teacher, layers=2, start="pretrained", seed=7)
    ours = student.base_model.state_dict()
    # Of four layers 2 and 4, which are numbered 1 and 3 in the names.
    for name, tensor in ours.items():
        for new, old in (("layer.0.", "layer.1."), ("layer.1.", "layer.3.")):
            if new in name:
                name = name.replace(new, old)
                break
        assert torch.equal(tensor, before[name]), name
    head = load_student(backbone, id2label=teacher.config.id2label, seed=7).classifier.weight
    assert torch.equal(student.classifier.weight, head)
    assert not torch.equal(make_student(teacher, layers=2, start="pretrained", seed=8).classifier.weight, head)
    assert student.config.id2label == teacher.config.id2label == {0: "bad", 1: "good"}
    fine_tuned = make_student(teacher, layers=2).base_model.state_dict()
    assert not all(torch.equal(tensor, ours[name]) for name, tensor in fine_tuned.items())
    # Its layers are not the whole backbone, so that its config claims none.
    assert not hasattr(student.config, CONFIG_KEY) and hasattr(teacher.config, CONFIG_KEY)


@pytest.mark.parametrize("name", ["bilstm", "static", "textcnn"])
def test_a_small_student_takes_the_backbone_s_embeddings(taught, backbone, name):
    teacher = load_teacher(taught)
    tables = [make_student(teacher, name, start=start).state_dict() for start in ("pretrained", "teacher")]
    theirs = load_file(backbone / "model.safetensors")["embeddings.word_embeddings.weight"]
    matching = [
        any(each.shape == theirs.shape and torch.equal(each, theirs) for each in table.values()) for table in tables
    ]
    assert matching == [True, False]


def test_a_pooler_that_was_drawn_anew_for_the_teacher_is_for_the_student(backbone, tmp_path):
    result = train_teacher(backbone, raw_rows(24), output_dir=tmp_path, fresh_pooler=True, **QUICK)
    student = make_student(result.model, layers=4, start="pretrained", seed=3)
    drawn = with_fresh_pooler(load_student(backbone), seed=3).bert.pooler.dense.weight
    assert torch.equal(student.bert.pooler.dense.weight, drawn)


def test_an_unknown_backbone_is_refused_early_and_one_that_is_named_is_used(backbone, tokenizer, tmp_path):
    teacher = tiny_bert(layers=4)
    with pytest.raises(ValueError, match="nlpkd_backbone.*backbone=") as refusal:
        make_student(teacher, layers=2, start="pretrained")
    assert "--backbone" in str(refusal.value)
    job = {"teacher": teacher, "train": raw_rows(24), "validation": raw_rows(16, seed=2), "tokenizer": tokenizer}
    job |= {"teacher_tokenizer": tokenizer, "output_dir": tmp_path, "start": "pretrained"}
    with pytest.raises(ValueError, match="needs the pre-trained backbone"):
        distill(**job, **QUICK)
    assert not (tmp_path / "config.json").exists()
    named = make_student(teacher, layers=[1], start="pretrained", backbone=backbone)
    first = load_file(backbone / "model.safetensors")["encoder.layer.0.attention.self.query.weight"]
    assert torch.equal(named.bert.encoder.layer[0].attention.self.query.weight, first)
    still = QUICK | {"learning_rate": 0.0, "teacher_check": "off"}
    result = distill(**job, backbone=str(backbone), student="layers:2", **still)
    assert torch.equal(result.student.bert.embeddings.word_embeddings.weight,
                       load_file(backbone / "model.safetensors")["embeddings.word_embeddings.weight"])  # fmt: skip
    assert json.loads((tmp_path / "report.json").read_text())["run"]["student"]["start"] == "pretrained"


def test_a_recorded_folder_that_is_gone_and_a_backbone_of_another_shape_are_refused(taught, tmp_path, tokenizer):
    teacher = load_teacher(taught)
    getattr(teacher.config, CONFIG_KEY)["name"] = "/gone/away"
    with pytest.raises(ValueError, match="'/gone/away', which is not there"):
        make_student(teacher, layers=2, start="pretrained")
    tiny_bert(layers=4, hidden=8).base_model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is not what the teacher was fine-tuned from"):
        make_student(teacher, layers=2, start="pretrained", backbone=tmp_path)


@pytest.mark.parametrize(
    "given", [{"start": "scratch"}, {"layers": None, "checkpoint": "x", "start": "pretrained"},
              {"layers": None, "checkpoint": "x", "backbone": "y"}],
)  # fmt: skip
def test_starts_that_there_are_not_are_refused(given):
    with pytest.raises(ValueError, match="start="):
        make_student(tiny_bert(), **{"layers": 1} | given)


def test_a_folder_of_this_machine_is_struck_out_of_a_config_to_publish_and_a_hub_id_stays():
    local = {"hidden_size": 4, CONFIG_KEY: {"name": "/home/canary/minilm", "revision": None}}
    assert json.loads(without_local_backbone(json.dumps(local))) == {"hidden_size": 4}
    assert without_local_backbone(json.dumps({CONFIG_KEY: {"name": "org/bert"}})) is None
    assert without_local_backbone('{"hidden_size": 4}') is None


@pytest.mark.parametrize("names", [["bad"], ["bad", "good"], ["bad", "good", "so so"], list("abcd")])
@pytest.mark.parametrize("own", [["x", "y"], ["bad", "good", "so so"]])
def test_a_checkpoint_of_any_classes_is_loaded_for_others_without_a_word_of_transformers(names, own, tmp_path, caplog):
    labels = {"id2label": dict(enumerate(own)), "label2id": {name: number for number, name in enumerate(own)}}
    tiny_bert(num_labels=len(own), problem_type="single_label_classification", **labels).save_pretrained(tmp_path)
    student = load_student(tmp_path, id2label=names)
    assert student.config.id2label == dict(enumerate(names)) and student.config.num_labels == len(names)
    assert student.config.label2id == {name: number for number, name in enumerate(names)}
    assert student.classifier.out_features == len(names)
    assert [record for record in caplog.records if record.name.startswith("transformers")] == []

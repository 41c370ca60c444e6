"""Where a model comes from, and what tells it from others."""

import copy
import json
import shutil

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from samples import tiny_bert, tiny_onnx
from transformers import AutoModelForSequenceClassification

from nlpkd.models.onnx_classifier import OnnxClassifier
from nlpkd.models.source import LocalModel, ModelSource, identity_of_model
from nlpkd.utils.disk.files import weights_in_use


@pytest.fixture
def folder(tmp_path, tokenizer):
    tiny_bert().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def in_a_cache(folder, cache, monkeypatch):
    """The snapshot of the folder as `alice/half` in a cache of the Hub."""
    snapshot = cache / "models--alice--half" / "snapshots" / ("0" * 40)
    shutil.copytree(folder, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(snapshot.name)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return snapshot


def other_weights(folder):
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"] = weights["classifier.bias"] + 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def other_names(folder):
    config = json.loads((folder / "config.json").read_text()) | {"id2label": {"0": "b", "1": "a"}}
    (folder / "config.json").write_text(json.dumps(config))


def other_words(folder):
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text().replace("film", "flim"))


def another_pooling(folder):
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')


def own_code(folder):
    (folder / "modeling_own.py").write_text("pass")


@pytest.mark.parametrize("change", [other_weights, other_names, other_words, another_pooling, own_code])
def test_a_folder_is_another_model_once_what_its_answers_depend_on_has_changed(folder, change):
    before = identity_of_model(folder)
    assert set(before) == {"weights"} and identity_of_model(str(folder)) == before
    change(folder)
    assert identity_of_model(folder) != before


def test_a_folder_stays_the_same_model_whatever_is_written_beside_it(folder):
    before = identity_of_model(folder)
    for name in ("distillation_report.json", "cascade.json", "README.md", "training_args.bin", "onnx/model.onnx"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    (folder / "checkpoint-4").mkdir()
    tiny_bert(seed=3).save_pretrained(folder / "checkpoint-4")
    assert identity_of_model(folder) == before


def test_the_weight_files_of_a_name_are_those_that_are_loaded_by_it(folder, tmp_path_factory, monkeypatch):
    whole = folder / "model.safetensors"
    assert ModelSource.of(folder).weights_folder() == folder and weights_in_use(folder) == [whole]
    # One whole file is loaded in place of shards, and of variants.
    for beside in ("model-00001-of-00002.safetensors", "model.fp16.safetensors"):
        shutil.copy(whole, folder / beside)
    assert weights_in_use(folder) == [whole]
    # A repository of the Hub lies in the cache.
    snapshot = in_a_cache(folder, tmp_path_factory.mktemp("cache"), monkeypatch)
    assert ModelSource.of("alice/half").weights_folder() == snapshot
    assert ModelSource.of(f"alice/half@{snapshot.name}").weights_folder() == snapshot
    for file in snapshot.glob("*.safetensors"):
        file.unlink()
    for source in ("alice/half", "alice/other", tiny_bert(), tiny_onnx(folder / "model.onnx")):
        assert ModelSource.of(source).weights_folder() is None


def test_a_model_in_memory_is_known_by_its_weights_and_names(tokenizer):
    given = {"id2label": {0: "a", 1: "b"}}
    before = identity_of_model(tiny_bert(**given))
    assert before == identity_of_model(tiny_bert(**given))
    assert before != identity_of_model(tiny_bert(seed=1, **given))
    assert before != identity_of_model(tiny_bert(id2label={0: "b", 1: "a"}))


def test_a_name_on_the_hub_is_known_by_its_revision():
    assert identity_of_model("org/model") == {} and identity_of_model("org/model", "v2") == {"revision": "v2"}


def test_an_onnx_file_is_another_once_it_or_its_config_has_changed(folder):
    (folder / "onnx").mkdir()
    file = folder / "onnx" / "model.onnx"
    file.write_bytes(b"one")
    first = identity_of_model(file)
    file.write_bytes(b"two")
    second = identity_of_model(file)
    other_names(folder)
    assert len({each["weights"] for each in (first, second, identity_of_model(file))}) == 3


def test_what_a_local_model_is_loaded_with_is_told_as_files_and_objects_are_now(folder, tokenizer, tmp_path_factory):
    other = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(other)
    local = LocalModel(str(folder), {"tokenizer": str(other), "dtype": torch.bfloat16, "device": "cpu", "token": "x"})
    told = local.describe()
    assert told["settings"]["dtype"] == "bfloat16" and set(told["settings"]) == {"tokenizer", "dtype"}
    assert LocalModel(str(folder), {"device": "cpu"}).describe() == identity_of_model(folder)
    other_words(other)
    changed = local.describe()
    assert changed["weights"] == told["weights"] and changed["settings"] != told["settings"]


def with_lora(model):
    peft = pytest.importorskip("peft", reason="the extra 'peft' is not installed")
    return peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))


def with_lora_inside(model):
    return with_lora(model).get_base_model()


def trained_further(model):
    with torch.no_grad():
        model.classifier.bias += 1
    return model


def in_eight_bits(model):
    return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)


CHANGES = {
    "nothing": (lambda model: model, True),
    "dtype": (lambda model: model.to(torch.bfloat16), True),
    "labels": (lambda model: model.config.update({"id2label": {0: "b", 1: "a"}}) or model, True),
    "adapter": (with_lora, False),
    "adapter inside": (with_lora_inside, False),
    "weights": (trained_further, False),
    "quantised": (in_eight_bits, False),
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_teacher_in_memory_has_the_name_of_files_only_while_its_weights_are_theirs(what, folder, caplog):
    change, theirs = CHANGES[what]
    given = change(AutoModelForSequenceClassification.from_pretrained(folder))
    told = ModelSource.of(given).describe_weights()
    assert told == {"name": str(folder) if theirs else f"./{type(given).__name__}", "revision": None}
    assert ("not known to be those of" in caplog.text) == (not theirs)


@pytest.mark.parametrize("change", [other_weights, shutil.rmtree])
def test_a_teacher_in_memory_has_no_name_of_files_that_are_others_by_now_or_gone(change, folder):
    given = copy.deepcopy(AutoModelForSequenceClassification.from_pretrained(folder))
    change(folder)
    assert ModelSource.of(given).describe_weights()["name"] == "./BertForSequenceClassification"


def test_a_teacher_in_memory_has_the_revision_that_it_was_loaded_at(folder, tmp_path_factory, monkeypatch):
    snapshot = in_a_cache(folder, tmp_path_factory.mktemp("cache"), monkeypatch)
    given = AutoModelForSequenceClassification.from_pretrained("alice/half")
    assert ModelSource.of(given).describe_weights() == {"name": "alice/half", "revision": snapshot.name}


@pytest.mark.parametrize("given", ["folder", "file", "name of the file", "ONNX model"])
def test_nothing_is_written_where_a_model_or_a_file_of_it_is_read(given, folder, tmp_path_factory):
    file = folder / "onnx" / "model_int8.onnx"
    file.parent.mkdir()
    tiny_onnx(file)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "link").symlink_to(file.parent)
    model = {
        "folder": lambda: folder,
        "file": lambda: file,
        "name of the file": lambda: str(file),
        "ONNX model": lambda: OnnxClassifier.from_pretrained(file),
    }[given]()
    source = ModelSource.of(model)
    for output in (folder, file.parent, f"{file.parent}/", elsewhere / "link"):
        with pytest.raises(ValueError, match="is the folder of the model .* would be overwritten"):
            source.refuse_as_output(output)
    for output in (folder / "student", file.parent / "student", folder.parent, elsewhere):
        source.refuse_as_output(output)


def test_nothing_is_written_beside_a_file_whose_config_is_elsewhere(folder):
    for file in (folder / "small" / "model.onnx", folder.parent / f"{folder.name}.int8.onnx"):
        file.parent.mkdir(exist_ok=True)
        file.touch()
        source = ModelSource.of(file)
        assert source.name == folder
        for output in (folder, file.parent):
            with pytest.raises(ValueError, match=f"is the folder of the model '{file}'"):
                source.refuse_as_output(output)
        file.unlink()

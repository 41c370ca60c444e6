"""An ONNX file as a module: whose config it has, and which file it was loaded from."""

import pytest
from samples import tiny_config, tiny_onnx

import nlpkd
from nlpkd.models.onnx_classifier import OnnxClassifier, model_folder


def test_a_file_in_a_folder_called_onnx_is_of_the_model_above_it_whatever_is_beside(tmp_path, tokenizer, monkeypatch):
    folder, file = tmp_path / "teacher", tmp_path / "teacher" / "onnx" / "model.onnx"
    file.parent.mkdir(parents=True)
    tiny_onnx(file)
    tokenizer.save_pretrained(folder)
    tiny_config(id2label={0: "bad", 1: "good"}).save_pretrained(folder)
    before = nlpkd.load(folder)("good film")
    tiny_config(id2label={0: "x", 1: "y"}).save_pretrained(file.parent)
    assert nlpkd.load(folder)("good film") == nlpkd.load(file)("good film") == before
    monkeypatch.chdir(file.parent)
    assert OnnxClassifier.from_pretrained(file.name).config.id2label == {0: "bad", 1: "good"}


@pytest.mark.parametrize(
    ("file", "config"),
    [
        ("m/model.onnx", "m"), ("m/onnx/model.onnx", "m"), ("onnx/model.onnx", "onnx"), ("m/small/model.onnx", "m"),
        ("m.int8.onnx", "m"), ("onnx/m.int8.onnx", "onnx/m"),
    ],
)  # fmt: skip
def test_a_file_s_config_lies_beside_it_above_it_or_in_a_folder_of_its_name(file, config, tmp_path):
    for path in (tmp_path / file, tmp_path / config / "config.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert model_folder(tmp_path / file) == tmp_path / config

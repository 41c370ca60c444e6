"""An ONNX file as a module: whose config it has, and which file it was loaded from."""

import copy
import os
import pickle
import shutil
import threading
from contextlib import suppress
from itertools import cycle

import pytest
import torch
from samples import tiny_config, tiny_onnx

import nlpkd
from nlpkd.evaluation.benchmark import count_parameters, model_size_mb
from nlpkd.evaluation.evaluate import evaluate_student
from nlpkd.models.files.onnx_weights import external_weights
from nlpkd.models.onnx_classifier import OnnxClassifier, model_folder
from nlpkd.models.source import identity_of_model
from nlpkd.utils.disk.files import digest_of


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


@pytest.fixture
def file(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    return tiny_onnx(tmp_path / "model.onnx")


IDS = torch.tensor([[2, 7, 9, 3]])


def replaced(file, how):
    """Put another model's file in the place of one, or write it into the same."""
    other = tiny_onnx(file.with_name("other.onnx"), seed=1)
    if how == "replaced":
        os.replace(other, file)
    else:
        shutil.copyfile(other, file)


@pytest.mark.parametrize("how", ["replaced", "overwritten"])
def test_a_model_in_memory_is_told_by_the_file_that_it_was_loaded_from(file, how, make_rows, tokenizer):
    model = OnnxClassifier.from_pretrained(file)
    told, logits, sha256 = identity_of_model(model), model(IDS).logits, digest_of(file)
    size, count = model_size_mb(model), count_parameters(model)
    assert size == file.stat().st_size / 1e6 and count == 2 * model.config.vocab_size
    replaced(file, how)
    assert torch.equal(model(IDS).logits, logits)
    assert identity_of_model(model) == told and (model_size_mb(model), count_parameters(model)) == (size, count)
    report = evaluate_student(model, None, make_rows(4), tokenizer, latency_runs=0, bootstrap_samples=2)
    assert report.candidates["student"].file_sha256 == sha256
    other = OnnxClassifier.from_pretrained(file)
    assert not torch.equal(other(IDS).logits, logits) and identity_of_model(other) != told


def test_what_was_not_asked_of_a_file_before_it_was_changed_is_not_said_of_another(file):
    model = OnnxClassifier.from_pretrained(file)
    replaced(file, "replaced")
    with pytest.raises(ValueError, match="model.onnx was changed since it was loaded"):
        count_parameters(model)


def test_one_file_is_one_model_by_any_name_with_any_threads_and_whatever_was_asked_of_it(file):
    model = OnnxClassifier.from_pretrained(file)
    told = identity_of_model(model)
    count_parameters(model)
    another = shutil.copyfile(file, file.with_name("another.onnx"))
    assert identity_of_model(model) == told
    assert identity_of_model(OnnxClassifier(another, model.config, threads=model.threads + 1)) == told


def test_weights_beside_a_file_are_told_and_counted_with_it(file):
    model = OnnxClassifier(tiny_onnx(file, external=True), tiny_config())
    told, data = identity_of_model(model), file.with_name("model.onnx.data")
    assert model.size_mb == (file.stat().st_size + data.stat().st_size) / 1e6
    tiny_onnx(file, external=True, seed=1)
    other = OnnxClassifier(file, model.config)
    assert model.sha256["model.onnx"] == other.sha256["model.onnx"]
    assert not torch.equal(model(IDS).logits, other(IDS).logits) and identity_of_model(other) != told


def saved_beside(file, location, seed=0):
    """Write an ONNX file whose weights lie in a file of another name."""
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(tiny_onnx(file, seed=seed))
    (file.parent / location).parent.mkdir(exist_ok=True)
    (file.parent / location).unlink(missing_ok=True)
    onnx.save_model(
        graph, file, save_as_external_data=True, location=location, size_threshold=0, convert_attribute=False
    )
    return file.parent / location


@pytest.mark.parametrize("location", ["weights.bin", "parts/" + "w" * 150, "model.onnx.data"])
def test_what_belongs_to_a_file_is_what_it_names_whatever_it_is_called_and_nothing_else(file, location):
    data = saved_beside(file, location)
    for other in ("model.onnx_data", "model.onnx.data.old", "other.bin"):
        file.with_name(other).write_bytes(b"x" * 1000)
    assert external_weights(file) == [data]
    model = OnnxClassifier(file, tiny_config())
    assert model.sha256 == {"model.onnx": digest_of(file), location: digest_of(data)}
    assert model.size_mb == (file.stat().st_size + data.stat().st_size) / 1e6
    told, beside = identity_of_model(model), identity_of_model(file)
    saved_beside(file, location, seed=1)
    assert identity_of_model(OnnxClassifier(file, tiny_config())) != told and identity_of_model(file) != beside


@pytest.mark.parametrize("location", ["../weights.bin", "/tmp/weights.bin", "parts/../../weights.bin", "C:/w.bin"])
def test_weights_outside_of_a_file_s_own_folder_are_refused_before_anything_is_read(file, location):
    onnx = pytest.importorskip("onnx")
    saved_beside(file, "weights.bin")
    graph = onnx.load(file, load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            entry.value = location if entry.key == "location" else entry.value
    file.write_bytes(graph.SerializeToString())
    for read in (external_weights, identity_of_model, lambda path: OnnxClassifier(path, tiny_config())):
        with pytest.raises(ValueError, match="which lies outside of it"):
            read(file)


def test_what_is_told_is_what_was_loaded_though_the_file_is_replaced_meanwhile(file):
    files = [file.read_bytes(), tiny_onnx(file.with_name("other.onnx"), seed=1).read_bytes()]
    logits = {}
    for content in files:
        file.write_bytes(content)
        logits[digest_of(file)] = OnnxClassifier.from_pretrained(file)(IDS).logits
    ended = threading.Event()

    def replace():
        for content in cycle(files):
            file.with_name("new").write_bytes(content)
            os.replace(file.with_name("new"), file)
            if ended.wait(0.005):
                return

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        for _ in range(100):
            with suppress(ValueError):
                model = OnnxClassifier(file, tiny_config())
                assert torch.equal(model(IDS).logits, logits[model.sha256["model.onnx"]])
    finally:
        ended.set()
        writer.join()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_opens_the_file_again_which_must_be_the_same(file, copied):
    model = OnnxClassifier.from_pretrained(file, threads=1).eval()
    again = copied(model)
    assert torch.equal(again(IDS).logits, model(IDS).logits) and identity_of_model(again) == identity_of_model(model)
    assert again.threads == 1 and again.session is not model.session and not again.training
    replaced(file, "replaced")
    with pytest.raises(ValueError, match="model.onnx was changed since it was loaded"):
        copied(model)


def test_a_state_is_taken_where_it_is_of_the_same_file_alone(file):
    model = OnnxClassifier.from_pretrained(file)
    model.load_state_dict(OnnxClassifier.from_pretrained(file).state_dict())
    torch.nn.ModuleDict({"teacher": model}).load_state_dict({"teacher._extra_state": model.get_extra_state()})
    other = OnnxClassifier(tiny_onnx(file.with_name("other.onnx"), seed=1), model.config)
    for state in (other.state_dict(), {"_extra_state": "text"}, {"_extra_state": torch.zeros(3)}):
        with pytest.raises(ValueError, match="the state is of another file than .*model.onnx"):
            model.load_state_dict(state)

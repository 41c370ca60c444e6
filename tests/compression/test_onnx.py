"""ONNX files: PyTorch's logits for any batch and length, int8 beside them, and nothing kept that was not compared."""

import ast
import json
import shutil
import sys
from collections import Counter
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import DatasetDict
from samples import raw_rows, sentences, tiny_bert
from transformers import (
    AutoConfig,
    BertForSequenceClassification,
    BertTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    PreTrainedConfig,
)

import nlpkd
from nlpkd.compression import export_int8, export_onnx, factorize_linear, quantize_dynamic, to_half
from nlpkd.compression.onnx import refuse_another_model
from nlpkd.hub.saving import save_student
from nlpkd.models.loading import load_teacher
from nlpkd.models.onnx_classifier import OnnxClassifier, config_sha256, refuse_stale
from nlpkd.pipeline.export import export_student
from nlpkd.students.small import small_student
from nlpkd.tasks import MULTI_LABEL

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

TEXTS = sentences(40, seed=3)[0]


def trained(model):
    """Give every weight a value of its own, large enough for a wrong logit to show."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.4, generator=generator)
    return model


def bert(**config) -> BertForSequenceClassification:
    return trained(tiny_bert(hidden_dropout_prob=0.5, **config))


@cache
def session_of(path: Path):
    # Where 8 bits are near to a half, the last bit of a fused layer norm would decide.
    without = ["SkipLayerNormFusion"]
    return runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"], disabled_optimizers=without)


def run(path: Path, **inputs: torch.Tensor) -> np.ndarray:
    """Run a file by ONNX Runtime alone."""
    return session_of(path).run(["logits"], {name: tensor.numpy() for name, tensor in inputs.items()})[0]


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def model() -> BertForSequenceClassification:
    return bert().train()


@pytest.fixture(scope="module")
def exported(tmp_path_factory, model, tokenizer):
    """A student's folder with its ONNX files, and their records."""
    folder = tmp_path_factory.mktemp("exported")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    records = [export_onnx(model, tokenizer, folder, texts=TEXTS), export_int8(folder, texts=TEXTS)]
    return folder, records


def table():
    """A student that is exported in half the time, for what is about files."""
    return trained(small_student("static", id2label={0: "neg", 1: "pos"}, vocab_size=24, embedding_size=16)).eval()


@pytest.fixture(scope="module")
def exported_table(tmp_path_factory, tokenizer):
    """Its folder with its ONNX files, and the record of the int8 one."""
    folder = tmp_path_factory.mktemp("table")
    table().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    export_onnx(table(), tokenizer, folder, texts=TEXTS)
    return folder, export_int8(folder, texts=TEXTS)


def test_a_file_gives_pytorchs_logits_for_any_batch_and_length(exported, model):
    folder, (record, _) = exported
    model = bert().eval()
    generator = torch.Generator().manual_seed(1)
    for batch, length in ((1, 1), (1, 64), (2, 2), (4, 4), (7, 5), (64, 9)):
        ids = torch.randint(5, 20, (batch, length), generator=generator)
        kinds = torch.randint(2, (batch, length), generator=generator)
        real = torch.randint(1, length + 1, (batch, 1), generator=generator)
        for mask in (torch.arange(length) < real, torch.arange(length) >= length - real, torch.ones_like(ids)):
            inputs = {"input_ids": ids, "attention_mask": mask.long(), "token_type_ids": kinds}
            with torch.no_grad():
                expected = model(**inputs).logits.numpy()
            np.testing.assert_allclose(run(folder / record.file, **inputs), expected, atol=1e-5)
    assert record.largest_difference < 1e-5 and record.agreement == 1.0 and record.rows == 40


def test_a_file_makes_its_mask_of_few_operators(exported):
    folder, (record, _) = exported
    kinds = Counter(node.op_type for node in onnx.load(folder / record.file).graph.node)
    assert not {"GatherND", "Range", "IsNaN", "Expand"} & kinds.keys() and kinds["Softmax"] == 2


def test_the_model_is_left_as_it_was(exported, model):
    assert model.training and all(module.training for module in model.modules())
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in bert().state_dict().items())


def test_the_files_lie_where_other_runtimes_look_for_them(exported):
    folder, records = exported
    assert [record.file for record in records] == ["onnx/model.onnx", "onnx/model_int8.onnx"]
    onnx_files = {"onnx", "onnx/model.onnx", "onnx/model_int8.onnx", "onnx/model_quantized.onnx", "onnx/export.json"}
    assert files(folder) == onnx_files | {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    noted = json.loads((folder / "onnx" / "export.json").read_text())["files"]
    assert noted["onnx/model.onnx"]["largest_difference"] == records[0].largest_difference
    assert noted["onnx/model_int8.onnx"]["agreement"] == records[1].agreement
    for record in records:
        assert record.size_mb == (folder / record.file).stat().st_size / 1e6
        shapes = [each.shape for each in runtime.InferenceSession(str(folder / record.file)).get_inputs()]
        assert shapes == [["batch", "sequence"]] * 3


def test_the_name_that_browsers_ask_for_is_the_same_file_on_the_disk(exported):
    folder, _ = exported
    assert (folder / "onnx/model_quantized.onnx").samefile(folder / "onnx/model_int8.onnx")
    assert not (folder / "onnx/model_quantized.onnx").is_symlink()


def test_the_record_of_int8_is_what_both_files_say_of_the_texts(exported, tokenizer):
    folder, (_, record) = exported
    largest, agreements = 0.0, []
    for size in (1, 3, 32):
        rows = []
        for at in range(0, len(TEXTS), size):
            batch = tokenizer(TEXTS[at : at + size], padding=True, return_tensors="pt")
            whole, small = (run(folder / f"onnx/{name}.onnx", **batch) for name in ("model", "model_int8"))
            largest = max(largest, np.abs(whole - small).max())
            rows += (whole.argmax(1) == small.argmax(1)).tolist()
        agreements.append(np.mean(rows))
    assert record.largest_difference == pytest.approx(largest) and largest > 0
    assert record.agreement == pytest.approx(min(agreements))


def test_the_agreement_of_files_is_that_of_what_both_decide_by_the_models_thresholds(tmp_path, tokenizer):
    model = trained(tiny_bert(1, num_labels=3, problem_type=MULTI_LABEL)).eval()
    with torch.no_grad():
        between = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits.quantile(0.47, dim=0)
    # Half of the texts are above a threshold, which is far from 0.5.
    model.classifier.bias.data += 3.0 - between
    model.config.thresholds = [torch.tensor(3.0).sigmoid().item()] * 3
    agreement = quantize_dynamic(model, tokenizer, tmp_path, texts=TEXTS).agreement
    whole, small = (nlpkd.load(tmp_path, file=f"onnx/{name}.onnx") for name in ("model", "model_int8"))
    differing = []
    for size in (1, 3, 32):
        pairs = zip(whole(TEXTS, decide=True), small(TEXTS, decide=True, batch_size=size), strict=True)
        sets = [({each["label"] for each in one}, {each["label"] for each in other}) for one, other in pairs]
        differing.append(sum(len(one ^ other) for one, other in sets))
    assert 0 < max(differing) and agreement == pytest.approx(1 - max(differing) / (3 * len(TEXTS)))


def test_int8_weights_are_bytes_with_a_scale_for_each_column(exported, tmp_path, tokenizer):
    folder, _ = exported
    graph = onnx.load(folder / "onnx/model_int8.onnx").graph
    tables = [each for each in graph.initializer if list(each.dims) == [len(tokenizer), 16]]
    assert [each.data_type for each in tables] == [onnx.TensorProto.UINT8]
    weights = [each for each in graph.initializer if list(each.dims) == [16, 32]]
    assert [each.data_type for each in weights] == [onnx.TensorProto.INT8] * 2
    scales = {each.name: list(each.dims) for each in graph.initializer if each.name.endswith("_scale")}
    assert any(dims == [32] for dims in scales.values())
    shutil.copytree(folder, tmp_path / "other")
    export_int8(tmp_path / "other", texts=TEXTS, embeddings=False, per_channel=False)
    graph = onnx.load(tmp_path / "other/onnx/model_int8.onnx").graph
    tables = [each for each in graph.initializer if list(each.dims) == [len(tokenizer), 16]]
    assert [each.data_type for each in tables] == [onnx.TensorProto.FLOAT]
    scales = [list(each.dims) for each in graph.initializer if each.name.endswith("_scale")]
    assert scales and all(dims in ([], [1]) for dims in scales)


def test_sums_of_two_products_of_the_portable_form_fit_into_16_bits(exported, tmp_path, tokenizer):
    """vpmaddubsw, what x86 without VNNI has: int16(a_1 w_1 + a_2 w_2), saturated, a in 0 to 255."""
    folder, (_, record) = exported
    shutil.copytree(folder, tmp_path / "portable")
    portable = export_int8(tmp_path / "portable", texts=TEXTS, reduce_range=True)
    assert portable.portable_agreement is None and portable.size_mb == pytest.approx(record.size_mb, rel=0.01)
    largest = {}
    for path in (folder, tmp_path / "portable"):
        graph = onnx.load(path / "onnx/model_int8.onnx").graph
        read = {node.input[1] for node in graph.node if node.op_type == "MatMulInteger"}
        weights = [onnx.numpy_helper.to_array(each).astype(int) for each in graph.initializer if each.name in read]
        assert len(weights) == len(read) > 12
        largest[path.name] = max(
            255 * abs(column[at] + column[at + 1])
            for weight in weights for column in weight.T for at in range(0, len(column) - 1, 2)
        )  # fmt: skip
    assert largest["portable"] < 2**15 < largest[folder.name]
    # The record of the ordinary form says what this one gives.
    batches = [tokenizer(TEXTS[at : at + 32], padding=True, return_tensors="pt") for at in range(0, len(TEXTS), 32)]
    whole, small = (
        np.concatenate([run(path, **batch).argmax(1) for batch in batches])
        for path in (folder / "onnx/model.onnx", tmp_path / "portable/onnx/model_int8.onnx")
    )
    assert record.portable_agreement == np.mean(whole == small)


def test_sums_of_large_8_bit_products_are_exact(tmp_path):
    weight = np.full((64, 2), 127, dtype=np.int8)
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Cast", ["input_ids"], ["a"], to=onnx.TensorProto.UINT8),
            onnx.helper.make_node("MatMulInteger", ["a", "w"], ["sums"]),
            onnx.helper.make_node("Cast", ["sums"], ["logits"], to=onnx.TensorProto.FLOAT),
        ],
        "sums",
        [onnx.helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, ["batch", 64])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 2])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    # Of the oldest version that has these operators, which each ONNX Runtime reads.
    operators = [onnx.helper.make_opsetid("", 13)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=operators, ir_version=8), tmp_path / "m.onnx")
    classifier = OnnxClassifier(tmp_path / "m.onnx", PreTrainedConfig(num_labels=2))
    logits = classifier(torch.full((3, 64), 255)).logits
    assert logits.tolist() == [[64 * 255 * 127.0] * 2] * 3


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="what the processor has is read from /proc/cpuinfo")
def test_exact_sums_which_take_longer_are_asked_for_on_x86_without_vnni_alone(exported):
    flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    options = OnnxClassifier.from_pretrained(exported[0]).session.get_session_options()
    without_vnni = "sse4_1" in flags and not flags & {"avx512_vnni", "avx_vnni"}
    with nullcontext() if without_vnni else pytest.raises(RuntimeError):
        assert options.get_session_config_entry("session.x64quantprecision") == "1"


def test_with_calibration_a_texts_logits_do_not_depend_on_the_texts_beside_it(exported, tmp_path, tokenizer):
    folder, (_, dynamic) = exported
    shutil.copytree(folder, tmp_path / "static")
    static = export_int8(tmp_path / "static", texts=TEXTS, calibration=TEXTS[:20])
    assert static.agreement >= 0.9 and static.size_mb == pytest.approx(dynamic.size_mb, rel=0.5)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    apart = {}
    for name, path in (("dynamic", folder), ("static", tmp_path / "static")):
        file = path / "onnx/model_int8.onnx"
        alone = np.concatenate([run(file, **tokenizer([text], return_tensors="pt")) for text in TEXTS])
        apart[name] = np.abs(alone - run(file, **batch)).max()
    assert apart["static"] < 1e-4 < apart["dynamic"]
    graph = onnx.load(tmp_path / "static/onnx/model_int8.onnx").graph
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in graph.node}
    whole, few = (OnnxClassifier.from_pretrained(tmp_path / "static", file=f"onnx/{each}.onnx") for each in
                  ("model", "model_int8"))  # fmt: skip
    assert whole.num_weights <= few.num_weights < 1.1 * whole.num_weights


def test_the_weights_of_a_file_are_counted(exported, model):
    folder, records = exported
    whole, small = (
        OnnxClassifier.from_pretrained(folder, file=f"onnx/{each}.onnx") for each in ("model", "model_int8")
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters <= whole.num_weights < parameters + 20
    assert parameters <= small.num_weights < 1.1 * parameters


def distilbert_of_several_labels() -> DistilBertForSequenceClassification:
    return trained(DistilBertForSequenceClassification(
        DistilBertConfig(
            vocab_size=24, dim=16, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=64, num_labels=3,
            problem_type="multi_label_classification",
        )
    ))  # fmt: skip


def mpnet() -> MPNetForSequenceClassification:
    """Its attention has a bias of positions beside the mask."""
    return trained(MPNetForSequenceClassification(
        MPNetConfig(vocab_size=24, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    ))  # fmt: skip


def bilstm():
    return trained(small_student("bilstm", id2label={0: "neg", 1: "pos"}, vocab_size=24, hidden_size=8))


@pytest.mark.parametrize("make", [distilbert_of_several_labels, mpnet, bilstm])
def test_other_tasks_and_students_export_too(make, tmp_path, tokenizer):
    model = make().eval()
    assert export_onnx(model, tokenizer, tmp_path, texts=TEXTS).largest_difference < 1e-5
    assert export_int8(tmp_path, texts=TEXTS).agreement > 0.8
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    classifier = OnnxClassifier.from_pretrained(tmp_path, file="onnx/model.onnx")
    with torch.no_grad():
        expected = model(**{name: batch[name] for name in classifier.inputs}).logits
    torch.testing.assert_close(classifier(**batch).logits, expected, atol=1e-5, rtol=1e-4)


def test_without_texts_both_files_are_compared_on_64_of_random_tokens(tmp_path, tokenizer):
    record = export_onnx(table(), tokenizer, tmp_path)
    assert record.largest_difference < 1e-5 and record.rows == 64
    assert export_int8(tmp_path).size_mb < record.size_mb


def test_a_tokenizer_that_names_no_limit_is_held_to_the_models_positions(tmp_path, tokenizer):
    unlimited = BertTokenizer(vocab=tokenizer.get_vocab())
    assert unlimited.model_max_length > 1e9
    model = bert(layers=1, max_position_embeddings=16)
    assert export_onnx(model, unlimited, tmp_path).largest_difference < 1e-5
    assert export_int8(tmp_path, max_length=99).rows == 64


def test_a_tokenizer_of_another_model_is_refused_by_its_ids(tmp_path, tokenizer):
    words = [*tokenizer.get_vocab(), "another", "more"]
    larger = BertTokenizer(vocab={word: number for number, word in enumerate(words)}, model_max_length=64)
    with pytest.raises(ValueError, match="embeddings of 24 tokens, and the compared rows have token 25"):
        export_onnx(table(), larger, tmp_path, texts=["a good film", "more"])
    assert files(tmp_path) == set()


class Forgetful(BertForSequenceClassification):
    """A model that torch exports as another one."""

    def forward(self, input_ids, **inputs):
        output = super().forward(input_ids, **inputs)
        if not torch.compiler.is_exporting():
            output.logits = output.logits + 0.01
        return output


def test_a_file_with_other_logits_is_refused_and_what_was_there_stays(tmp_path, tokenizer):
    model = Forgetful(tiny_bert(layers=1).config)
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"before")
    with pytest.raises(RuntimeError, match=r"other logits than PyTorch, off by up to 0\.01 on 40 texts"):
        export_onnx(model, tokenizer, tmp_path, texts=TEXTS)
    assert files(tmp_path) == {"onnx", "onnx/model.onnx"}
    assert (tmp_path / "onnx" / "model.onnx").read_bytes() == b"before"


class Undecided(BertForSequenceClassification):
    """A model whose path depends on its input."""

    def forward(self, input_ids, **inputs):
        output = super().forward(input_ids, **inputs)
        if output.logits.sum() > 0:
            output.logits = output.logits * 2
        return output


def test_a_model_that_torch_can_not_export_is_an_error(tmp_path, tokenizer):
    said = r"torch 2\S+ can't export this Undecided to ONNX: .*(: try that|serve it by PyTorch)$"
    with pytest.raises(RuntimeError, match=said):
        export_onnx(Undecided(tiny_bert(layers=1).config), tokenizer, tmp_path, texts=TEXTS)
    assert files(tmp_path) == set()


def test_the_folder_of_another_model_is_refused(exported, tokenizer):
    folder, _ = exported
    before = {name: (folder / name).stat().st_mtime_ns for name in files(folder)}
    with pytest.raises(ValueError, match=r"another model \(num_hidden_layers in config.json, model.safetensors\)"):
        export_onnx(bert(layers=1), tokenizer, folder, texts=TEXTS)
    with pytest.raises(ValueError, match=r"another model \(model.safetensors\)"):
        export_onnx(tiny_bert(hidden_dropout_prob=0.5), tokenizer, folder, texts=TEXTS)
    other = type(tokenizer)(vocab={token: n for n, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])})
    with pytest.raises(ValueError, match=r"another model \(the tokenizer\)"):
        export_onnx(bert(), other, folder, texts=TEXTS)
    assert {name: (folder / name).stat().st_mtime_ns for name in files(folder)} == before


def test_a_reshaped_student_in_half_precision_is_the_one_in_its_folder_and_no_other_is(tmp_path, tokenizer):
    in_half, _ = to_half(trained(tiny_bert(layers=1)))
    student, _ = factorize_linear(in_half, rank=4)
    save_student(student, tmp_path, tokenizer)
    loaded = load_teacher(tmp_path)
    assert loaded.dtype == torch.float32 and loaded.config.base_config.dtype != student.config.base_config.dtype
    refuse_another_model(tmp_path, loaded, tokenizer)
    loaded.config.base_config.hidden_act = "relu"
    with pytest.raises(ValueError, match=r"another model \(base_config in config.json\)"):
        refuse_another_model(tmp_path, loaded, tokenizer)
    # What is loaded in float32 and saved again computes the same.
    before = config_sha256(tmp_path)
    load_teacher(tmp_path).config.save_pretrained(tmp_path)
    assert "bfloat16" not in (tmp_path / "config.json").read_text() and config_sha256(tmp_path) == before
    loaded.config.save_pretrained(tmp_path)
    assert config_sha256(tmp_path) != before


def test_a_student_is_exported_into_its_own_folder_by_any_name_of_it(tmp_path, tokenizer, monkeypatch):
    student, _ = factorize_linear(to_half(trained(tiny_bert(layers=1)))[0], rank=4)
    save_student(student, tmp_path / "student", tokenizer)
    monkeypatch.chdir(tmp_path)
    export_student("student", output_dir=tmp_path / "student")
    OnnxClassifier.from_pretrained(tmp_path / "student")


def test_files_of_other_weights_are_refused_and_deleted_by_the_next_export(exported_table, tmp_path, tokenizer):
    folder = tmp_path / "trained again"
    shutil.copytree(exported_table[0], folder)
    again = table()
    again.embeddings.weight.data[7] += 1
    again.save_pretrained(folder)
    with pytest.raises(ValueError, match="were made from other weights.*export again"):
        OnnxClassifier.from_pretrained(folder)
    export_onnx(again, tokenizer, folder, texts=TEXTS)
    assert {path.name for path in (folder / "onnx").iterdir()} == {"model.onnx", "export.json"}
    assert OnnxClassifier.from_pretrained(folder).path == folder / "onnx/model.onnx"


def weakened(file: Path) -> None:
    """Change the file's weights a little, as somebody else may."""
    graph = onnx.load(file)
    table = max(graph.graph.initializer, key=lambda each: len(each.raw_data) * (each.data_type == 1))
    values = onnx.numpy_helper.to_array(table)
    table.CopyFrom(onnx.numpy_helper.from_array(0.999 * values, table.name))
    onnx.save(graph, file)


@pytest.mark.parametrize("file", ["onnx/model.onnx", "onnx/model_int8.onnx", "onnx/model_quantized.onnx"])
def test_a_file_that_was_changed_since_its_export_is_not_served(exported_table, tmp_path, file):
    folder = tmp_path / "changed"
    shutil.copytree(exported_table[0], folder)
    others = {path for path in folder.glob("onnx/*.onnx") if path != folder / file}
    weakened(folder / file)
    with pytest.raises(ValueError, match=f"{Path(file).name} was changed since it was exported"):
        OnnxClassifier.from_pretrained(folder, file=file)
    with pytest.raises(ValueError, match="was changed since it was exported"):
        refuse_stale(folder, *folder.glob("onnx/*.onnx"))
    for other in others:
        OnnxClassifier.from_pretrained(folder, file=f"onnx/{other.name}")


def test_an_export_takes_away_what_belonged_to_the_file_before_and_to_no_other(exported_table, tmp_path, tokenizer):
    folder = tmp_path / "external"
    shutil.copytree(exported_table[0], folder, ignore=shutil.ignore_patterns("*.onnx", "export.json"))
    paths = {name: folder / "onnx" / name for name in ("model.onnx", "other.onnx")}
    for name, file in paths.items():
        graph = onnx.load(exported_table[0] / "onnx/model.onnx")
        for number, tensor in enumerate(graph.graph.initializer):
            onnx.external_data_helper.set_external_data(tensor, "shared.bin" if number else f"{name}.weights")
        onnx.save_model(graph, file)
    (folder / "onnx" / "model.onnx.data").write_bytes(b"somebody's own")
    record = export_student(folder).records[0]
    assert files(folder / "onnx") == {
        "model.onnx", "export.json", "model.onnx.data", "other.onnx", "other.onnx.weights", "shared.bin"
    }  # fmt: skip
    assert record.size_mb == paths["model.onnx"].stat().st_size / 1e6
    assert OnnxClassifier.from_pretrained(folder).size_mb == record.size_mb


def test_a_file_with_another_number_of_logits_than_its_config_has_labels_is_refused(exported_table):
    folder, _ = exported_table
    config = AutoConfig.from_pretrained(folder, num_labels=3)
    with pytest.raises(ValueError, match="gives 2 logits, and its config names 3 labels"):
        OnnxClassifier(folder / "onnx/model.onnx", config)


def test_int8_files_of_another_model_do_not_outlive_an_export_to_a_folder_without_weights(
    exported_table, tmp_path, tokenizer
):
    shutil.copytree(exported_table[0] / "onnx", tmp_path / "onnx")
    record = json.loads((tmp_path / "onnx" / "export.json").read_text())
    assert len(record["state_sha256"]) == 64
    (tmp_path / "onnx" / "export.json").write_text(json.dumps(record | {"weights_sha256": {}}))
    again = table()
    again.embeddings.weight.data[7] += 1
    export_onnx(again, tokenizer, tmp_path, texts=TEXTS)
    assert {path.name for path in (tmp_path / "onnx").iterdir()} == {"model.onnx", "export.json"}


def test_a_record_that_lacks_the_weights_sum_costs_no_file(exported, tmp_path):
    shutil.copytree(exported[0], tmp_path / "made before")
    noted = tmp_path / "made before" / "onnx" / "export.json"
    record = json.loads(noted.read_text())
    del record["state_sha256"]
    noted.write_text(json.dumps(record))
    export_int8(tmp_path / "made before", texts=TEXTS)
    names = {"model.onnx", "model_int8.onnx", "model_quantized.onnx", "export.json"}
    assert {path.name for path in noted.parent.iterdir()} == names


@pytest.mark.parametrize("texts", [[], "one text"])
def test_texts_must_be_a_list_of_some(texts, tmp_path, model, tokenizer):
    with pytest.raises(ValueError, match="texts must be a list"):
        export_onnx(model, tokenizer, tmp_path, texts=texts)


def test_a_model_in_hand_is_quantised_as_its_exported_file_is(exported_table, tmp_path, tokenizer):
    folder, whole = exported_table
    shutil.copytree(folder, tmp_path / "parts")
    part = export_int8(tmp_path / "parts", texts=TEXTS, embeddings=False)
    found = quantize_dynamic(table(), tokenizer, tmp_path / "one", texts=TEXTS)
    assert found == whole and found.size_mb != part.size_mb
    assert quantize_dynamic(table(), tokenizer, tmp_path / "two", texts=TEXTS, embeddings=False) == part
    assert {"onnx/model.onnx", "onnx/model_int8.onnx", "tokenizer.json", "config.json"} <= files(tmp_path / "two")


def test_int8_needs_the_float_file(tmp_path, model, tokenizer):
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no ONNX file 'onnx/model.onnx'; found: none"):
        export_int8(tmp_path)


def test_what_is_no_classifier_is_refused(tmp_path, model):
    model.config.save_pretrained(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ValueError, match="can't be loaded by ONNX Runtime"):
        OnnxClassifier.from_pretrained(tmp_path)
    value = onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["pixels"], ["logits"])
    result = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([node], "g", [value], [result])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10),
              tmp_path / "model.onnx")  # fmt: skip
    with pytest.raises(ValueError, match=r"has the inputs \['pixels'\]"):
        OnnxClassifier.from_pretrained(tmp_path)


@pytest.mark.parametrize("package", ["onnxruntime", "onnxscript", "onnx"])
def test_a_missing_package_says_what_to_install(package, monkeypatch, tmp_path, model, tokenizer):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'{package} is missing.*pip install "nlpkd\[export\]"'):
        export_onnx(model, tokenizer, tmp_path, texts=TEXTS)
    assert files(tmp_path) == set()


def test_no_module_needs_onnx_to_be_imported():
    for path in Path(nlpkd.__file__).parent.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"onnx", "onnxruntime", "onnxscript"}, path


def test_an_export_is_calibrated_on_the_training_split_and_portable(exported_table, tmp_path):
    shutil.copytree(exported_table[0], tmp_path / "student", ignore=shutil.ignore_patterns("onnx"))
    shutil.copytree(exported_table[0], tmp_path / "same")
    train, test = raw_rows(40, seed=1), raw_rows(40, seed=2)
    data = DatasetDict(train=train, test=test)
    with pytest.raises(ValueError, match="calibration is of an int8 file"):
        export_student(tmp_path / "student", calibration=data)
    with pytest.raises(ValueError, match="portable is of an int8 file"):
        export_student(tmp_path / "student", portable=True)
    export_student(tmp_path / "student", int8=True, calibration=data, portable=True, max_length=32)
    same = {"texts": test["text"][:], "calibration": train["text"][:], "max_length": 32}
    export_int8(tmp_path / "same", reduce_range=True, **same)
    found, expected = ((tmp_path / name / "onnx/model_int8.onnx").read_bytes() for name in ("student", "same"))
    assert found == expected

"""Every public function that takes a model: of another kind of model it says what it takes, at once."""

import pytest
from samples import QUIET, raw_rows, tiny_bert, tiny_onnx
from torch import nn

import nlpkd
from nlpkd import compression

WRONG = ["file", "ONNX model", "module", "number", "None"]

NAMED = {
    "compress": lambda model, have: compression.compress(model, "half", have["rows"], output_dir=have["out"]),
    "cascade": lambda model, have: nlpkd.cascade(model, teacher=have["name"], data=have["rows"], target_accuracy=0.9),
    "evaluate": lambda model, have: nlpkd.evaluate(model, have["rows"]),
    "evaluate beside": lambda model, have: nlpkd.evaluate(have["name"], have["rows"], candidates={"other": model}),
    "export_int8": lambda model, have: compression.export_int8(model),
    "export_student": lambda model, have: nlpkd.export_student(model, output_dir=have["out"]),
    "frontier": lambda model, have: nlpkd.frontier(model, have["rows"], output_dir=have["out"], **QUIET),
    "load": lambda model, have: nlpkd.load(model),
    "load_teacher": lambda model, have: nlpkd.load_teacher(model),
    "OnnxClassifier": lambda model, have: nlpkd.OnnxClassifier(model, tiny_bert().config),
    "push_student": lambda model, have: nlpkd.push_student(model, "user/name"),
    "train_teacher": lambda model, have: nlpkd.train_teacher(model, have["rows"], output_dir=have["out"], **QUIET),
}
"""Functions of a path or a Hub id; some of these take models and ONNX files too."""

GIVEN = {
    "cache_teacher_outputs": lambda model, have: nlpkd.cache_teacher_outputs(
        model, have["tokens"], have["tokenizer"], cache_dir=have["out"]
    ),
    "calibrate_teacher": lambda model, have: nlpkd.calibrate_teacher(model, have["rows"]),
    "evaluate_student": lambda model, have: nlpkd.evaluate_student(model, None, have["tokens"], have["tokenizer"]),
    "export_onnx": lambda model, have: compression.export_onnx(model, have["tokenizer"], have["out"]),
    "factorize_embeddings": lambda model, have: compression.factorize_embeddings(model, rank=4),
    "factorize_linear": lambda model, have: compression.factorize_linear(model, rank=4),
    "label": lambda model, have: nlpkd.label(model, have["rows"], output=have["out"] / "rows.parquet"),
    "make_student": lambda model, have: nlpkd.make_student(model, 1),
    "prune_heads": lambda model, have: compression.prune_heads(model, have["tokens"], have["tokenizer"], keep=0.5),
    "prune_neurons": lambda model, have: compression.prune_neurons(model, have["tokens"], have["tokenizer"], keep=0.5),
    "quantize_dynamic": lambda model, have: compression.quantize_dynamic(model, have["tokenizer"], have["out"]),
    "small_student": lambda model, have: nlpkd.small_student("bilstm", model),
    "TextClassifier": lambda model, have: nlpkd.TextClassifier(model, have["tokenizer"]),
    "to_half": lambda model, have: compression.to_half(model),
    "trim_vocabulary": lambda model, have: compression.trim_vocabulary(model, have["tokenizer"], ["good"]),
    "with_fresh_pooler": lambda model, have: nlpkd.with_fresh_pooler(model),
}
"""Functions of a model in memory, or of a teacher that labels texts."""

TAKEN = {
    *(("file", name) for name in ("OnnxClassifier", "load", "evaluate", "evaluate beside")),
    *(("ONNX model", name) for name in ("cache_teacher_outputs", "evaluate_student", "TextClassifier")),
    ("None", "small_student"),
}
"""What is no wrong model for a function."""

ELSEWHERE = {
    # Of rows, reports, settings or texts, or what others of these call.
    *("BiLSTMForSequenceClassification", "StaticForSequenceClassification", "TextCNNForSequenceClassification"),
    *("DistillationConfig", "ModelSource", "aggregate_seeds", "check_labels", "demo_backbone", "load_airline_tweets"),
    *("load_text_classification", "load_tweets", "only_run", "read_decisions", "read_splits", "save_report"),
    *("BiLSTMConfig", "StaticConfig", "TextCNNConfig", "EvaluationReport", "CompressionRecord", "CompressResult"),
    *("LiteRTRecord", "OnnxRecord", "METRIC_NAMES", "INT8_FILE"),
    # Measures what those of compression give, and needs a package that is rarely there.
    *("measure_change", "export_litert"),
    # Tested in test_rows_and_models.py and in pipeline/test_distill.py.
    *("DistillationTrainer", "distill"),
}


@pytest.fixture(scope="module")
def have(tmp_path_factory, tokenizer, make_rows):
    folder = tmp_path_factory.mktemp("model")
    tiny_bert(id2label={0: "neg", 1: "pos"}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    out = tmp_path_factory.mktemp("out")
    return {"name": folder, "tokens": make_rows(8), "rows": raw_rows(8), "tokenizer": tokenizer, "out": out}


@pytest.mark.parametrize(
    ("wrong", "name"),
    [(wrong, name) for name in (*NAMED, *GIVEN) for wrong in WRONG if (wrong, name) not in TAKEN],
)
def test_what_is_no_model_for_a_function_is_refused_with_what_it_takes(wrong, name, have):
    (have["name"] / "onnx").mkdir(exist_ok=True)
    file = tiny_onnx(have["name"] / "onnx" / "model.onnx")
    model = {
        "file": lambda: str(file),
        "ONNX model": lambda: nlpkd.OnnxClassifier.from_pretrained(file),
        "module": lambda: nn.Linear(2, 2),
        "number": lambda: 7,
        "None": lambda: None,
    }[wrong]()
    takes = r"path|folder|directory|of transformers|nlpkd\.teachers|must be a model|pass the teacher|forward|a module"
    with pytest.raises(ValueError, match=takes):
        (NAMED | GIVEN)[name](model, have)
    assert not [path for path in have["out"].iterdir() if not path.name.startswith(".")]


def test_the_list_has_every_public_function():
    public = {*nlpkd.__all__, *compression.__all__} - {"compression", "objectives"}
    known = {*NAMED, *GIVEN} - {"evaluate beside"} | ELSEWHERE
    assert public == known
    for name in public - ELSEWHERE:
        home = nlpkd if name in nlpkd.__all__ else compression
        assert callable(getattr(home, name))


def test_a_tokenizer_that_is_a_name_is_refused(have):
    with pytest.raises(ValueError, match="the tokenizer is .*: load it first"):
        nlpkd.load_text_classification(have["rows"], tokenizer=str(have["name"]))

"""A loaded classifier answers as transformers' pipeline does, whatever runs it, and is measured like any model."""

import contextlib
import copy
import json
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from hub_server import WRITE_TOKEN, HubServer, hub_environment
from processes import run as run_program
from safetensors.torch import save_file
from samples import WORDS, raw_rows, sentences, tiny_bert
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    pipeline,
)

import nlpkd
from nlpkd import EvaluationReport
from nlpkd.compression import export_int8, export_onnx
from nlpkd.data.text_classification import load_text_classification
from nlpkd.evaluation.prediction import predict_logits
from nlpkd.evaluation.records import Interval
from nlpkd.hub.saving import save_student
from nlpkd.models.onnx_classifier import OnnxClassifier
from nlpkd.pipeline.evaluate import LATENCY_GRID, evaluate
from nlpkd.pipeline.export import export_student
from nlpkd.pipeline.verify import verify
from nlpkd.serving.classifier import TextClassifier

pytest.importorskip("onnxruntime")

TEXTS = sentences(12, seed=4)[0]
PAIRS = [{"text": first, "text_pair": second} for first, second in zip(TEXTS, TEXTS[::-1], strict=True)]
LONG = " ".join(["the film was very very good"] * 30)


def saved(folder: Path, tokenizer, texts=TEXTS, **config) -> Path:
    model = tiny_bert(layers=1, initializer_range=0.5, **config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    export_onnx(model, tokenizer, folder, texts=texts)
    return folder


@pytest.fixture(scope="module")
def student(tmp_path_factory, tokenizer) -> Path:
    folder = saved(tmp_path_factory.mktemp("student"), tokenizer, id2label={0: "neg", 1: "pos"})
    export_int8(folder, texts=TEXTS)
    return folder


@pytest.fixture(scope="module")
def several(tmp_path_factory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("several")
    return saved(
        folder, tokenizer, num_labels=3, problem_type="multi_label_classification", thresholds=[0.3, 0.5, 0.7]
    )


def same(found, expected) -> None:
    """The same lists, labels and scores, up to the last digits of a float32."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert found == {"label": expected["label"], "score": pytest.approx(expected["score"], abs=1e-5)}
    else:
        assert len(found) == len(expected)
        for each, other in zip(found, expected, strict=True):
            same(each, other)


@pytest.mark.parametrize(
    ("inputs", "settings"),
    [
        (TEXTS[0], {}),
        (TEXTS[0], {"top_k": None}),
        (TEXTS[:1], {}),
        (TEXTS, {"batch_size": 5, "top_k": 1}),
        (TEXTS, {"batch_size": 5, "top_k": None, "function_to_apply": "none"}),
        (PAIRS[0], {}),
        (PAIRS, {"top_k": 2, "batch_size": 4}),
        ([LONG, TEXTS[0]], {"truncation": True}),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_answers_are_those_of_the_pipeline(inputs, settings, student):
    expected = pipeline("text-classification", model=str(student))(inputs, **settings)
    same(nlpkd.load(student, file="onnx/model.onnx")(inputs, **settings), expected)
    assert nlpkd.load(student, file="model.safetensors")(inputs, **settings) == expected


FILES = ["onnx/model.onnx", "model.safetensors"]


@pytest.mark.parametrize("file", FILES)
def test_long_texts_are_truncated_and_refused_where_they_are_not_to_be(file, student):
    classify = nlpkd.load(student, file=file)
    same(classify(LONG), pipeline("text-classification", model=str(student))(LONG, truncation=True))
    same(classify(TEXTS, truncation=False), classify(TEXTS))
    for given in (LONG, [TEXTS[0], LONG], {"text": TEXTS[0], "text_pair": LONG}):
        for truncation in (False, "do_not_truncate"):
            with pytest.raises(ValueError, match=r"the model has 64 positions, and the text .* has 1\d\d tokens: let"):
                classify(given, truncation=truncation)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("most", [-1, 0, 1, 2, 3, 4, 5, 8, 64, 65, 600])
def test_a_largest_length_is_taken_or_refused_as_where_rows_are_read(most, file, student, tokenizer):
    def error_of(door, *given, **settings):
        with contextlib.suppress(ValueError):
            return door(*given, **settings) and None
        with pytest.raises(ValueError) as found:
            door(*given, **settings)
        return str(found.value)

    classify = nlpkd.load(student, file=file)
    given = {None: (TEXTS[0], [LONG, LONG]), "text_pair": (PAIRS[0], PAIRS[:3])}
    rows = [pair | {"label": row % 2} for row, pair in enumerate(PAIRS)]
    asked = {"tokenizer": tokenizer, "max_length": most}
    for column, texts in given.items():
        read = error_of(load_text_classification, rows, text_column="text", text_pair_column=column, **asked)
        assert [error_of(classify, each, max_length=most) for each in texts] == [read, read]
    read = error_of(load_text_classification, raw_rows(4), **asked)
    assert error_of(classify, LONG, window_stride=0, max_length=most) == read
    assert error_of(TextClassifier, classify.model, classify.tokenizer, max_length=most) == read


@pytest.mark.parametrize("most", [10**30, 2.5, "8", True, [8]])
def test_a_largest_length_that_is_no_whole_number_is_refused(most, student):
    with pytest.raises(ValueError, match="max_length must be a whole number of at least 1"):
        nlpkd.load(student)(TEXTS, max_length=most)


def test_without_special_tokens_there_is_more_room_for_text(student):
    classify = nlpkd.load(student)
    assert classify("film bad", max_length=1, add_special_tokens=False) == classify("film", add_special_tokens=False)


@pytest.mark.parametrize("file", FILES)
def test_a_tokenizer_without_a_limit_has_the_model_s(file, student, tokenizer):
    unlimited = copy.deepcopy(tokenizer)
    unlimited.model_max_length = int(1e30)
    classify = nlpkd.load(student, file=file)
    assert TextClassifier(classify.model, unlimited, truncation=True)(LONG) == classify(LONG)
    with pytest.raises(ValueError, match="max_length=65 is more than the 64 tokens"):
        TextClassifier(classify.model, unlimited)(LONG, max_length=65)


@pytest.mark.parametrize("file", FILES)
def test_a_text_with_a_token_that_the_model_has_no_embedding_for_is_refused(file, student, tokenizer, tmp_path):
    folder, more = shutil.copytree(student, tmp_path / "student"), copy.deepcopy(tokenizer)
    more.add_tokens(["@USER"])
    more.save_pretrained(folder)
    classify, known = nlpkd.load(folder, file=file), len(tokenizer)
    same(classify(TEXTS), nlpkd.load(student, file=file)(TEXTS))
    advice = "load model and tokenizer .* from the same place, or call model.resize_token_embeddings"
    told = f"has embeddings of {known} tokens, and the text .* has token {known}: {advice}"
    for given in ("good @USER", ["good", "@USER film"], {"text": "good", "text_pair": "@USER"}):
        with pytest.raises(ValueError, match=told):
            classify(given)
    with pytest.raises(ValueError, match=told):
        classify(f"{LONG} @USER", window_stride=3)


@pytest.mark.parametrize("file", ["onnx/model.onnx", "model.safetensors"])
@pytest.mark.parametrize("stride", [0, 3])
def test_with_a_window_stride_a_long_text_is_read_whole(stride, file, student, tokenizer):
    model = AutoModelForSequenceClassification.from_pretrained(student).eval()
    longer = f"bad {LONG} " * 9

    def scores(text: str, size: int) -> dict[str, float]:
        tokens, at, logits = tokenizer(text, add_special_tokens=False)["input_ids"], 0, []
        while True:
            window = [tokenizer.cls_token_id, *tokens[at : at + size - 2], tokenizer.sep_token_id]
            logits.append(model(torch.tensor([window])).logits.detach())
            if at + size - 2 >= len(tokens):
                break
            at += size - 2 - stride
        return dict(zip(("neg", "pos"), torch.cat(logits).mean(0).softmax(-1).tolist(), strict=True))

    texts, most = [LONG, TEXTS[0], longer], tokenizer.model_max_length
    for classify, settings, size in (
        (nlpkd.load(student, file=file), {"window_stride": stride}, most),
        (nlpkd.load(student, file=file, window_stride=stride), {}, most),
        (nlpkd.load(student, file=file), {"window_stride": stride, "max_length": 12, "batch_size": 2}, 12),
    ):
        for found, text in zip(classify(texts, top_k=None, **settings), texts, strict=True):
            assert {each["label"]: each["score"] for each in found} == pytest.approx(scores(text, size), abs=1e-5)
        assert classify(longer, **settings)[0]["score"] == pytest.approx(max(scores(longer, size).values()), abs=1e-5)


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        (PAIRS[0], {"window_stride": 2}, "for single texts"),
        (TEXTS[0], {"window_stride": 30, "max_length": 32}, "window_stride must be from 0 to 29"),
        (TEXTS[0], {"window_stride": -1}, "window_stride must be a whole number of at least 0"),
        (TEXTS[0], {"window_stride": 2, "truncation": False}, "leave truncation=False out"),
        (TEXTS[0], {"window_stride": 2, "padding": True}, "leave padding=True out"),
    ],
)
def test_windows_that_can_not_be_are_refused(text, settings, message, student):
    with pytest.raises(ValueError, match=message):
        nlpkd.load(student)(text, **settings)


def test_settings_of_numpys_numbers_are_taken(student):
    classify = nlpkd.load(student, threads=np.int64(1), window_stride=np.int64(2))
    expected = nlpkd.load(student, threads=1, window_stride=2)(TEXTS, top_k=2, max_length=8)
    assert classify(TEXTS, top_k=np.int64(2), max_length=np.int64(8), batch_size=np.int64(2)) == expected


@pytest.fixture
def hasty_threads():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def test_threads_that_read_differently_have_their_own_answers(student, hasty_threads):
    ways = [{"max_length": 4}, {"max_length": 16}, {"truncation": True}, {"max_length": 16, "window_stride": 4}, {}]
    answered = [nlpkd.load(student)(LONG, **way)[0]["score"] for way in ways]
    classify = nlpkd.load(student)

    def answers(place):
        return [classify(LONG, **ways[place])[0]["score"] for _ in range(40)]

    with ThreadPoolExecutor(len(ways)) as pool:
        for expected, found in zip(answered, pool.map(answers, range(len(ways))), strict=True):
            assert found == pytest.approx([expected] * 40, abs=1e-5)
    assert len({round(each, 4) for each in answered}) == 4


def test_int8_is_served_first_then_float_then_pytorch(student, tmp_path):
    folder = tmp_path / "student"
    shutil.copytree(student, folder)
    assert nlpkd.load(folder).model.path == folder / "onnx/model_int8.onnx"
    assert nlpkd.load(folder / "onnx/model.onnx").model.path == folder / "onnx/model.onnx"
    (folder / "onnx/model_int8.onnx").unlink()
    assert nlpkd.load(str(folder)).model.path == folder / "onnx/model.onnx"
    assert type(nlpkd.load(folder, file="model.safetensors").model).__name__ == "BertForSequenceClassification"
    shutil.rmtree(folder / "onnx")
    assert type(nlpkd.load(folder).model).__name__ == "BertForSequenceClassification"
    with pytest.raises(ValueError, match="threads=2 is for ONNX Runtime"):
        nlpkd.load(folder, threads=2)
    with pytest.raises(ValueError, match="no ONNX file 'onnx/model.onnx'; found: none"):
        nlpkd.load(folder, file="onnx/model.onnx")
    with pytest.raises(ValueError, match="there is no folder"):
        nlpkd.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        ("onnx/model.onnx", {"file": "onnx/model_int8.onnx"}, "is an ONNX file itself: leave file and revision out"),
        ("onnx/model.onnx", {"revision": "v1"}, "is an ONNX file itself: leave file and revision out"),
        ("onnx/model.onnx", {"file": "model.safetensors"}, "is a file, and a model is a folder with its config"),
        ("model.safetensors", {}, "is a file, and a model is a folder with its config: give the folder"),
        ("", {"revision": "v1"}, "is a folder here, which has no revision 'v1': leave revision out"),
        ("", {"revision": "v1", "file": "model.safetensors"}, "is a folder here, which has no revision 'v1'"),
        ("", {"threads": -1}, "threads=-1 must be a number from 1 on"),
        ("", {"threads": 0}, "threads=0 must be a number from 1 on"),
        ("", {"threads": "2"}, "threads='2' must be a number from 1 on"),
    ],
)
def test_what_would_be_passed_over_is_refused(name, asked, message, student):
    with pytest.raises(ValueError, match=message):
        nlpkd.load(student / name, **asked)


def test_a_folder_of_onnx_files_may_be_a_link(student, tmp_path):
    folder = shutil.copytree(student, tmp_path / "student")
    shutil.move(folder / "onnx", tmp_path / "elsewhere")
    (folder / "onnx").symlink_to(tmp_path / "elsewhere")
    assert nlpkd.load(folder).model.path == folder / "onnx/model_int8.onnx"
    assert nlpkd.load(folder, file="onnx/model.onnx").model.path == folder / "onnx/model.onnx"


@pytest.mark.parametrize("file", ["model.safetensors", "onnx/model.onnx"])
@pytest.mark.parametrize(
    ("names", "message"),
    [({"0": "neg", "2": "pos"}, "must count from 0 without gaps"), ({"0": "pos", "1": "pos"}, "have the same name")],
)
def test_labels_with_gaps_and_equal_ones_are_refused(names, message, file, student, tmp_path):
    folder = shutil.copytree(student, tmp_path / "student")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"id2label": names}))
    with pytest.raises(ValueError, match=message):
        nlpkd.load(folder, file=file)


def test_onnx_files_are_refused_once_the_config_says_another_computation_and_kept_by_other_words(student, tmp_path):
    folder = shutil.copytree(student, tmp_path / "student")
    config = json.loads((folder / "config.json").read_text())
    words = {"id2label": {"0": "bad", "1": "good"}, "label2id": {"bad": 0, "good": 1}, "thresholds": {"bad": 0.4}}
    (folder / "config.json").write_text(json.dumps(config | words))
    assert nlpkd.load(folder)(TEXTS[0])[0]["label"] in ("bad", "good")
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    with pytest.raises(ValueError, match="made from other settings than .*config.json has: export again"):
        nlpkd.load(folder)
    nlpkd.export_student(folder)
    assert nlpkd.load(folder).model.path == folder / "onnx/model.onnx" and not [*folder.glob("onnx/*int8*")]


def test_onnx_files_of_a_version_that_noted_no_settings_are_served_and_kept(student, tmp_path):
    folder = shutil.copytree(student, tmp_path / "student")
    record = json.loads((folder / "onnx/export.json").read_text())
    del record["config_sha256"]
    (folder / "onnx/export.json").write_text(json.dumps(record))
    nlpkd.export_student(folder)
    assert nlpkd.load(folder).model.path == folder / "onnx/model_int8.onnx"


def test_threads_are_those_asked_for_or_torchs(student):
    assert nlpkd.load(student, threads=2).model.session.get_session_options().intra_op_num_threads == 2
    assert nlpkd.load(student).model.session.get_session_options().intra_op_num_threads == torch.get_num_threads()


def test_a_multi_label_model_decides_by_its_thresholds(several):
    classify = nlpkd.load(several)
    reference = pipeline("text-classification", model=str(several))
    same(classify(TEXTS, top_k=None), reference(TEXTS, top_k=None))
    needed = {"LABEL_0": 0.3, "LABEL_1": 0.5, "LABEL_2": 0.7}
    decided = classify(TEXTS, decide=True)
    for found, scores in zip(decided, reference(TEXTS, top_k=None), strict=True):
        same(found, [each for each in scores if each["score"] > needed[each["label"]]])
    assert classify(TEXTS[0], decide=True) == decided[0]
    assert len({len(found) for found in decided}) > 1
    same(classify(TEXTS), reference(TEXTS))


def test_of_the_labels_that_are_decided_on_top_k_are_the_most_probable(several):
    for file in ("model.safetensors", "onnx/model.onnx"):
        classify = nlpkd.load(several, file=file)
        decided = classify(TEXTS, decide=True)
        for top_k in (None, 1, 2, 3):
            assert classify(TEXTS, decide=True, top_k=top_k) == [found[:top_k] for found in decided]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"threads": 1}, "no setting threads: there are batch_size, decide, top_k"), ({"foo": 1}, "no setting foo"),
        ({"top_k": -1}, "top_k must be .*got -1"), ({"top_k": 0}, "got 0"), ({"top_k": 1.5}, "got 1.5"),
        ({"top_k": True}, "got True"), ({"function_to_apply": "foo"}, "one of sigmoid, softmax, none, or None"),
        ({"decide": True, "function_to_apply": "none"}, "decide=True goes by probabilities"),
    ],
)  # fmt: skip
def test_settings_that_there_are_not_are_refused(several, settings, said):
    for inputs in (TEXTS[0], TEXTS, iter(TEXTS)):
        with pytest.raises(ValueError, match=said):
            nlpkd.load(several)(inputs, **settings)


def test_a_regression_gives_the_score_of_a_pair(tmp_path, tokenizer):
    pairs = [tuple(pair.values()) for pair in PAIRS]
    folder = saved(tmp_path, tokenizer, pairs, num_labels=1, problem_type="regression")
    expected = pipeline("text-classification", model=str(folder))(PAIRS)
    same(nlpkd.load(folder)(PAIRS), expected)
    assert len({each["score"] for each in expected}) > 1


def test_one_output_of_a_silent_config_is_a_score_wherever_it_is_read(tmp_path, tokenizer):
    model = tiny_bert(layers=1, initializer_range=0.5, num_labels=1)
    model.save_pretrained(tmp_path / "silent")
    tokenizer.save_pretrained(tmp_path / "silent")
    export_onnx(model, tokenizer, tmp_path / "silent", texts=TEXTS)
    rows = Dataset.from_dict({"text": TEXTS, "label": [0.5 + number for number in range(len(TEXTS))]})
    data = load_text_classification(rows, tokenizer=tokenizer)
    expected = pytest.approx(predict_logits(model, data["train"], tokenizer)[:, 0], abs=1e-5)
    for file in ("onnx/model.onnx", "model.safetensors"):
        assert [each["score"] for each in nlpkd.load(tmp_path / "silent", file=file)(TEXTS)] == expected
    saved = save_student(model, tmp_path / "saved", tokenizer)
    assert [each["score"] for each in pipeline("text-classification", model=str(saved))(TEXTS)] == expected


LOAD = """
import json, logging, sys
from pathlib import Path
import nlpkd
from nlpkd import push_student
push_student(sys.argv[1], "alice/student")
first = json.loads(sys.argv[2])
classify = nlpkd.load("alice/student@main")
folder = classify.model.path.parents[1]
print("ANSWERS", json.dumps([classify(first), nlpkd.load("alice/student", file="onnx/model.onnx")(first)]))
print("FILES", json.dumps([str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]))
for arguments in ({"revision": "nothing"}, {"file": "onnx/other.onnx"}):
    try:
        nlpkd.load("alice/student", **arguments)
    except (OSError, ValueError) as error:
        print("ERROR", type(error).__name__, str(error).splitlines()[0])
"""


def test_a_pushed_student_is_served_from_the_hub_and_no_other_file_is_fetched(student, tmp_path):
    with HubServer() as hub:
        program = ["-c", LOAD, str(student), json.dumps(TEXTS)]
        done = run_program(program, tmp_path, hub_environment(hub, tmp_path, WRITE_TOKEN), timeout=240)
        assert done.returncode == 0, done.stderr
        assert "onnx/export.json" in hub.files("alice/student")
    printed = [line.split(" ", 1) for line in done.stdout.splitlines()]
    int8, whole = json.loads(dict(printed)["ANSWERS"])
    same(int8, nlpkd.load(student)(TEXTS))
    same(whole, nlpkd.load(student, file="onnx/model.onnx")(TEXTS))
    fetched = set(json.loads(dict(printed)["FILES"]))
    assert {"onnx/model_int8.onnx", "onnx/model.onnx", "config.json", "tokenizer.json"} <= fetched
    assert "model.safetensors" not in fetched
    wrong = [line for kind, line in printed if kind == "ERROR"]
    assert "'alice/student' at revision 'nothing' can't be had" in wrong[0]
    assert "no ONNX file 'onnx/other.onnx'; found: onnx/model.onnx, onnx/model_int8.onnx" in wrong[1]


def test_onnx_files_are_served_beside_the_same_weights_in_another_dtype(student, tmp_path):
    folder = shutil.copytree(student, tmp_path / "student")
    save_file({"x": torch.zeros(1)}, folder / "model_fp16.safetensors")
    same(nlpkd.load(folder)(TEXTS), nlpkd.load(student)(TEXTS))


STALE = """
import sys
import nlpkd
from huggingface_hub import snapshot_download
for fetch in (None, ["*.safetensors"], None):
    if fetch:
        snapshot_download("alice/student", allow_patterns=fetch)
    try:
        print("ANSWER", nlpkd.load("alice/student")("good film"))
    except ValueError as error:
        print("ERROR", error)
"""


def test_onnx_files_of_other_weights_than_those_of_their_commit_are_never_served_from_the_hub(
    student, tmp_path, tokenizer
):
    folder = shutil.copytree(student, tmp_path / "student")
    tiny_bert(layers=1, seed=1, initializer_range=0.5, id2label={0: "neg", 1: "pos"}).save_pretrained(folder)
    with HubServer() as hub:
        hub.add_repo("alice/student", folder)
        environment = hub_environment(hub, tmp_path / "home")
        done = run_program(["-c", STALE], tmp_path, environment, timeout=240)
        fetched = [path for method, path in hub.requests if path.endswith(".onnx")]
    lines = [line for line in done.stdout.splitlines() if line.startswith(("ANSWER", "ERROR"))]
    assert len(lines) == 3 and len(set(lines)) == 1, "the same with the weights in the cache and without them"
    assert "were made from other weights" in lines[0] and "load the weights themselves" in lines[0]
    assert "nlpkd export" not in lines[0] and "delete" not in lines[0], (
        "what is in the Hub's cache is nobody's to change"
    )
    assert not fetched, "nothing is left in the cache that is served without the Hub"


AGAIN = "import nlpkd; print('ANSWER', nlpkd.load('alice/student')('good film'))"


def test_a_file_whose_weights_have_another_name_is_served_from_the_hub_and_offline_after_that(student, tmp_path):
    onnx = pytest.importorskip("onnx")
    folder = shutil.copytree(student, tmp_path / "student")
    model = onnx.load(folder / "onnx/model.onnx")
    shutil.rmtree(folder / "onnx")
    (folder / "onnx").mkdir()
    how = {"save_as_external_data": True, "location": "shared.data", "size_threshold": 256}
    onnx.save(model, folder / "onnx/model.onnx", **how)
    with HubServer() as hub:
        hub.add_repo("alice/student", folder)
        environment = hub_environment(hub, tmp_path / "home")
        told = [
            run_program(["-c", AGAIN], tmp_path, environment | {"HF_HUB_OFFLINE": offline}, timeout=240)
            for offline in ("0", "1")
        ]
    answers = [[line for line in done.stdout.splitlines() if line.startswith("ANSWER")] for done in told]
    assert answers[0] and answers[0] == answers[1], [done.stderr[-2000:] for done in told]


def test_an_onnx_file_is_measured_like_any_model(student, make_rows, tokenizer):
    model = nlpkd.load(student, file="model.safetensors").model
    files = {
        each: OnnxClassifier.from_pretrained(student, file=f"onnx/{each}.onnx") for each in ("model", "model_int8")
    }
    report = nlpkd.evaluate_student(
        model, None, make_rows(60, names=("neg", "pos")), tokenizer, candidates=files, latency_runs=2,
        latency_batches=(1,), latency_tokens=8,
    )  # fmt: skip
    student_, whole, small = (report.candidates[name] for name in ("student", "model", "model_int8"))
    assert whole.quality["accuracy"] == student_.quality["accuracy"]
    assert small.size_mb == (student / "onnx/model_int8.onnx").stat().st_size / 1e6
    assert whole.parameters == files["model"].num_weights
    assert [(each.tokens, each.threads) for each in small.latency] == [(8, torch.get_num_threads())]
    assert all(each.p50_ms > 0 for each in (*small.latency, *whole.latency))
    assert "model, model_int8 by ONNX Runtime on cpu" in report.run.latency_protocol


# The gate, and its command


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    raw_rows(40, seed=9).to_pandas().replace({"label": {0: "neg", 1: "pos"}}).to_csv(path, index=False)
    return path


def listed(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_an_export_of_a_hub_model_needs_an_output_dir():
    with pytest.raises(ValueError, match="give output_dir"):
        export_student("alice/student")


def command(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    from nlpkd.cli import main

    monkeypatch.setattr(sys, "argv", ["nlpkd", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    return stop.value.code or 0, out, err


def test_the_command_exports_measures_and_says_by_its_status_what_happened(
    student, rows, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "student"
    shutil.copytree(student, folder, ignore=shutil.ignore_patterns("onnx"))
    arguments = ["export", str(folder), "--data", str(rows), "--max-length", "32"]
    code, out, err = command(monkeypatch, capsys, *arguments, "--int8", "--min-retention", "0.1")
    assert code == 0, err
    noted = json.loads((folder / "onnx/export.json").read_text())["files"]
    assert noted["onnx/model.onnx"]["retention"] == 1.0 and 0.1 <= noted["onnx/model_int8.onnx"]["retention"]
    assert "\nonnx/model_int8.onnx  " in out and "{" not in out
    for file, record in noted.items():
        if "reference" in record:
            (row,) = [
                line.split() for line in out.splitlines() if record["reference"] in line and line.startswith(file)
            ]
            assert row[:5] == [file, f"{record['size_mb']:.1f}", record["reference"], str(record["rows"]),
                               f"{record['largest_difference']:.2g}"]  # fmt: skip
            known = [record[key] for key in ("agreement", "portable_agreement")]
            assert row[5:] == ["n/a" if share is None else f"{share:.3f}" for share in known]
    assert "in PyTorch onnx/model.onnx keeps 100.0 %, onnx/model_int8.onnx keeps " in out
    assert noted["onnx/model_int8.onnx"]["portable_agreement"] is not None and " portable: " in out
    code, _, err = command(monkeypatch, capsys, "export", str(tmp_path / "nowhere"))
    assert code == 2 and "nowhere" in err
    code, out, err = command(monkeypatch, capsys, "evaluate", str(folder / "onnx/model_int8.onnx"),
                             "--baseline", str(folder), "--data", str(rows), "--max-length", "32")  # fmt: skip
    assert code == 0, err
    assert "\nstudent  " in out and "\nbaseline  " in out and "Nothing was saved: with --output-dir" in out


def test_the_command_keeps_no_file_where_one_keeps_less_and_says_so_by_its_status(
    tokenizer, tmp_path, monkeypatch, capsys
):
    folder, rows = tmp_path / "student", tmp_path / "rows.csv"
    model = tiny_bert(layers=1, initializer_range=0.5, id2label={0: "neg", 1: "pos"})
    with torch.no_grad():
        # Of activations beside one so large 8 bits leave nothing.
        model.bert.embeddings.LayerNorm.weight[0] = 1000.0
        logits = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in TEXTS])
        margins = logits[:, 1] - logits[:, 0]
        model.classifier.bias[1] -= margins.median()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    labels = ["pos" if above else "neg" for above in margins > margins.median()]
    rows.write_text("\n".join(["text,label", *(f"{text},{label}" for text, label in zip(TEXTS, labels, strict=True))]))
    before = listed(folder)
    arguments = ["export", str(folder), "--int8", "--data", str(rows), "--min-retention", "0.9"]
    code, _, err = command(monkeypatch, capsys, *arguments)
    assert code == 3 and listed(folder) == before | {".lock"}
    told = (
        r"model_int8.onnx has (\w+) 0\.\d+ and the student in PyTorch [01]\.\d+ on 12 rows: .*below min_retention=0.9"
    )
    assert re.search(told, err), err


@pytest.fixture
def side_by_side(student, tmp_path, monkeypatch) -> Path:
    """A folder with `teacher`, `student` and `student.int8.onnx`, as a command names them."""
    shutil.copytree(student, tmp_path / "student")
    shutil.copytree(student, tmp_path / "teacher", ignore=shutil.ignore_patterns("onnx"))
    shutil.copy(student / "onnx/model_int8.onnx", tmp_path / "student.int8.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_teacher_student_and_int8_file_are_compared_as_they_are_called(side_by_side, rows, monkeypatch, capsys):
    code, out, err = command(
        monkeypatch, capsys, "evaluate", "teacher", "student", "student.int8.onnx", "--data", str(rows),
        "--max-length", "32", "--latency-runs", "7", "--output-dir", "report",
    )  # fmt: skip
    assert code == 0, err
    report = json.loads((side_by_side / "report/report.json").read_text())
    assert list(report["candidates"]) == ["teacher", "student", "student.int8"]
    assert (report["run"]["teacher"]["name"], report["run"]["student"]["name"]) == ("./teacher", "./student")
    int8 = OnnxClassifier.from_pretrained(side_by_side / "student", file="onnx/model_int8.onnx")
    assert (
        report["candidates"]["student.int8"]["size_mb"] == int8.size_mb != report["candidates"]["student"]["size_mb"]
    )
    assert "7 timed passes" in report["run"]["latency_protocol"]
    arguments = ["evaluate", "--config", "report/evaluate.yaml", "--latency-runs", "0"]
    code, out, err = command(monkeypatch, capsys, *arguments, "--output-dir", "again")
    assert code == 0, err
    again = json.loads((side_by_side / "again/report.json").read_text())
    assert again["candidates"]["student.int8"]["quality"] == report["candidates"]["student.int8"]["quality"]
    assert again["run"]["latency_protocol"] == "latency was not measured"


def test_the_claims_of_an_onnx_file_are_measured_again(side_by_side, rows):
    folder, quick = side_by_side / "student", {"bootstrap_samples": 20, "latency_runs": 2}
    int8 = {"int8": folder / "onnx/model_int8.onnx"}
    evaluate(folder, str(rows), candidates=int8, teacher="teacher", max_length=32, output_dir=folder, **quick)
    held = {each.figure: each for each in verify(folder, str(rows), teacher="teacher", **quick).claims}
    for figure in ("accuracy", "agreement with the teacher", "parameters", "MB"):
        assert held[f"int8: {figure}"].holds, held[f"int8: {figure}"]
    assert held["int8: ms, batch 1, 32 tokens, p50"].measured != "n/a"
    report = EvaluationReport.load(folder)
    better = replace(report.candidates["int8"], parameters=7, quality={"accuracy": Interval(0.99, 0.98, 1.0)})
    replace(report, candidates=report.candidates | {"int8": better}).save(folder)
    found = verify(folder, str(rows), teacher="teacher", **quick)
    assert [each.figure for each in found.claims if each.holds is False] == ["int8: accuracy", "int8: parameters"]


def test_an_export_says_whether_its_gate_ran_and_keeps_its_options(side_by_side, monkeypatch, capsys):
    code, _, err = command(monkeypatch, capsys, "export", "student", "--min-retention", "0.9")
    assert code == 2 and "--min-retention 0.9 is measured on labelled rows: give --data" in err
    assert not (side_by_side / "student/export.yaml").exists()
    code, out, err = command(monkeypatch, capsys, "export", "student", "--max-length", "32")
    assert code == 0, err
    assert "No gate ran" in out
    kept = yaml.safe_load((side_by_side / "student/export.yaml").read_text())
    assert (kept["command"], kept["max_length"], kept["int8"]) == ("export", 32, False) and "min_retention" not in kept


def test_a_latency_grid_has_enough_passes_for_its_99th_percentile():
    assert LATENCY_GRID["latency_runs"] >= 100


def test_one_label_a_text_is_not_decided_by_thresholds(student):
    for file in ("model.safetensors", "onnx/model.onnx"):
        classify = nlpkd.load(student, file=file)
        with pytest.raises(ValueError, match="decide=True gives the labels above their thresholds"):
            classify(TEXTS[0], decide=True)
        assert classify(TEXTS[0], decide=False) == classify(TEXTS[0], top_k=1)


# Segments


NAMES = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}
SIZE = {"vocab_size": 24, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def with_segments(kind: str):
    """Make a model that reads segments, or one that can't, for the tokenizer of another family."""
    torch.manual_seed(0)
    if kind == "gpt2":
        shape = {"vocab_size": 24, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "pad_token_id": 0}
        return GPT2ForSequenceClassification(GPT2Config(**shape, initializer_range=0.5, **NAMES))
    if kind == "bert":
        return tiny_bert(layers=1, initializer_range=0.5, **NAMES)
    shape = SIZE | {"max_position_embeddings": 66, "type_vocab_size": 1, "pad_token_id": 0}
    return RobertaForSequenceClassification(RobertaConfig(**shape, initializer_range=0.5, **NAMES))


def without_segments(tokenizer):
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, model_input_names=["input_ids", "attention_mask"],
        pad_token="[PAD]", model_max_length=64,
    )  # fmt: skip


@pytest.mark.parametrize("pairs", [False, True], ids=["texts", "pairs"])
@pytest.mark.parametrize("kind", ["gpt2", "roberta", "bert"])
def test_what_is_measured_is_what_is_served_whatever_segments_the_tokenizer_gives(kind, pairs, tokenizer, tmp_path):
    model, tokenizer = with_segments(kind).eval(), without_segments(tokenizer) if kind == "bert" else tokenizer
    save_student(model, tmp_path, tokenizer)
    rows = Dataset.from_dict({"text": TEXTS, "label": [0, 1] * 6} | ({"other": TEXTS[::-1]} if pairs else {}))
    other = "other" if pairs else None
    data = load_text_classification(rows, tokenizer=tokenizer, text_column="text", text_pair_column=other)
    measured = predict_logits(model, data["train"], tokenizer)
    asked = PAIRS if pairs else TEXTS
    export_onnx(model, tokenizer, tmp_path, texts=[tuple(each.values()) for each in PAIRS] if pairs else TEXTS)
    on_torch, on_onnx = nlpkd.load(tmp_path, file="model.safetensors"), nlpkd.load(tmp_path)
    for classify in (on_torch, on_onnx, pipeline("text-classification", model=str(tmp_path))):
        answers = classify(asked, top_k=None, function_to_apply="none")
        found = [
            [{each["label"]: each["score"] for each in answer}[name] for name in ("neg", "pos")] for answer in answers
        ]
        assert torch.allclose(torch.tensor(found), torch.from_numpy(measured), atol=1e-4), type(classify)
    if not pairs:
        assert on_onnx(TEXTS[0])[0]["score"] == pytest.approx(on_torch(TEXTS[0])[0]["score"], abs=1e-5)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> tuple[Path, PreTrainedTokenizerFast]:
    """A decoder whose tokenizer adds no special tokens, so that an empty text has none at all."""
    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    core = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    core.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", model_max_length=64)
    model, folder = with_segments("gpt2").eval(), tmp_path_factory.mktemp("decoder")
    save_student(model, folder, tokenizer)
    export_onnx(model, tokenizer, folder, texts=TEXTS)
    return folder, tokenizer


@pytest.mark.parametrize("file", ["model.safetensors", "onnx/model.onnx"])
@pytest.mark.parametrize("given", ["", [""], [TEXTS[0], "", TEXTS[1]], {"text": "", "text_pair": ""}], ids=str)
@pytest.mark.parametrize("settings", [{}, {"batch_size": 3, "top_k": None}], ids=str)
def test_a_text_without_any_token_is_refused_alone_and_among_others(given, settings, file, decoder):
    with pytest.raises(ValueError, match="text .*'' ?.* is empty for this tokenizer, which makes no token of it"):
        nlpkd.load(decoder[0], file=file)(given, **settings)


def test_rows_without_any_token_are_neither_measured_nor_compared(decoder):
    folder, tokenizer = decoder
    rows = Dataset.from_dict({"input_ids": [[3], [], [4]], "attention_mask": [[1], [], [1]]})
    model = with_segments("gpt2").eval()
    with pytest.raises(ValueError, match="the measured rows: text 1 .the first one is 0. is empty for this tokenizer"):
        predict_logits(model, rows, tokenizer)
    with pytest.raises(ValueError, match="the texts to compare on: text 1 .* is empty for this tokenizer"):
        export_onnx(model, tokenizer, folder, texts=["good", ""])


def test_an_empty_text_with_special_tokens_has_an_answer(student):
    assert nlpkd.load(student)("") == nlpkd.load(student)([""])

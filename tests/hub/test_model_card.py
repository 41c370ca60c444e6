"""The model card: metadata parsed back by huggingface_hub, prose that says what was recorded and nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, metadata_load
from samples import tiny_bert

from nlpkd.compression import export_onnx
from nlpkd.evaluation.origin import RunRecord, TaskRecord
from nlpkd.evaluation.records import Candidate, Comparison, Interval, Latency, SeedSpread
from nlpkd.evaluation.report import EvaluationReport
from nlpkd.hub.model_card import WIDGET_TEXTS, build_model_card
from nlpkd.hub.public_report import public_report
from nlpkd.tasks import MULTI_LABEL


def candidate(accuracy: float) -> Candidate:
    quality = {"accuracy": accuracy, "f1_macro": accuracy - 0.01, "matthews_correlation": accuracy - 0.1}
    return Candidate(
        quality={name: Interval(value, value - 0.02, value + 0.02) for name, value in quality.items()},
        agreement=None,
        parameters=1_234_567,
        size_mb=4.9,
        latency=[Latency(batch=1, tokens=32, threads=1, p50_ms=2.0, p95_ms=3.0)],
    )


def report(**run: Any) -> EvaluationReport:
    made_by: dict[str, Any] = {
        "command": "recipes/sst2.py --seed 7",
        "seed": 7,
        "versions": {"torch": "2.13.0"},
        "machine": {"cpu": "some cpu"},
        "latency_protocol": "20 passes after 5 of warm-up",
        "teacher": {"name": "org/teacher", "revision": "abc123"},
        "student": {"name": "layers:3", "layers": 3},
        "data": {"name": "nyu-mll/glue", "config": "sst2", "split": "validation", "train_rows": 67_349},
        "objectives": [{"name": "forward_kl", "weight": 0.5, "temperature": 2.0, "citation": "Hinton et al., 2015"}],
        "settings": {"learning_rate": 8e-05},
    }
    return EvaluationReport(
        task=TaskRecord("single_label_classification", labels=["neg", "pos"], rows=872),
        run=RunRecord.from_dict(made_by | run),
        candidates={"teacher": candidate(0.9), "student": candidate(0.85)},
        comparisons={},
    )


@pytest.mark.parametrize(("layers", "with_layers"), [(3, " with 3 layers"), (None, "")])
def test_a_model_that_gives_scores_is_called_so(layers, with_layers):
    scores = TaskRecord("regression", headline="pearson", labels=["LABEL_0"], rows=60)
    told = replace(report(student={"name": "layers:3", "layers": layers}), task=scores)
    card = str(build_model_card(told, model_name="alice/student"))
    assert f"**alice/student** is a model{with_layers} that gives a text a score, distilled" in card
    assert "LABEL_0" not in card.split("## ")[0]


def metadata(report: EvaluationReport, path: Path) -> dict[str, Any]:
    build_model_card(report, model_name="alice/student").save(path)
    loaded = metadata_load(path)
    assert loaded is not None
    return loaded


def test_metadata_is_what_the_hub_expects_and_the_model_index_is_the_students(tmp_path: Path) -> None:
    found = metadata(report(license="apache-2.0", language="en"), tmp_path / "README.md")
    entry = found.pop("model-index")
    assert found == {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["text-classification", "knowledge-distillation", "nlpkd"],
        "base_model": "org/teacher",
        "base_model_relation": "finetune",
        "datasets": ["nyu-mll/glue"],
        "metrics": ["accuracy", "f1", "matthews_correlation"],
        "license": "apache-2.0",
        "language": "en",
        "widget": [{"text": text} for text in WIDGET_TEXTS],
    }
    assert len(WIDGET_TEXTS) > 1 and all(len(text.split()) > 4 for text in WIDGET_TEXTS)
    assert entry[0]["name"] == "alice/student"
    (result,) = entry[0]["results"]
    assert result["task"] == {"type": "text-classification", "name": "Text Classification"}
    dataset = {"type": "nyu-mll/glue", "name": "nyu-mll/glue", "config": "sst2", "split": "validation"}
    assert result["dataset"] == dataset
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert values == {"accuracy": 0.85, "f1": 0.84, "matthews_correlation": 0.75}


def test_what_is_unknown_or_local_is_left_out_of_the_metadata(tmp_path: Path) -> None:
    data = {"name": "/home/ann/secret/reviews.csv", "config": None, "split": None, "revision": None}
    local = report(teacher={"name": "/home/ann/my-teacher", "revision": None}, data=data)
    found = metadata(local, tmp_path / "README.md")
    assert not {"base_model", "base_model_relation", "datasets", "license", "language"} & set(found)
    dataset = found["model-index"][0]["results"][0]["dataset"]
    assert dataset == {"type": "reviews", "name": "reviews.csv"}
    text = (tmp_path / "README.md").read_text()
    assert "null" not in text and "None" not in text and "/home/ann" not in text
    assert "my-teacher" in text


def test_of_several_files_the_card_names_the_one_that_was_measured(tmp_path: Path) -> None:
    data = {"name": "train.tsv, dev set.tsv", "evaluated_source": "dev set.tsv", "split": "validation"}
    local = report(data=data | {"train_rows": 60})
    found = metadata(local, tmp_path / "README.md")
    dataset = found["model-index"][0]["results"][0]["dataset"]
    assert dataset == {"type": "dev-set", "name": "dev set.tsv", "split": "validation"}
    text = (tmp_path / "README.md").read_text()
    assert "872 rows of the split validation of dev set.tsv" in text and "60 rows of train.tsv, dev set.tsv" in text
    mixed = {"name": "org/texts, Übung.csv", "evaluated_source": "Übung.csv", "config": "de", "split": "test"}
    dataset = metadata(report(data=mixed), tmp_path / "README.md")["model-index"][0]["results"][0]["dataset"]
    assert dataset == {"type": "bung", "name": "Übung.csv", "split": "test"}
    only_names = metadata(report(data={"name": "日本.csv"}), tmp_path / "README.md")
    assert only_names["model-index"][0]["results"][0]["dataset"]["type"] == "local-data"


def test_a_model_of_pairs_is_asked_for_pairs_and_gets_no_widget_of_single_texts(tmp_path: Path) -> None:
    assert "widget" not in metadata(report(data={"name": "pairs.csv", "pairs": True}), tmp_path / "README.md")
    assert 'classifier({"text": "Write' in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(("thresholds", "pairs"), [(None, True), ({"a": 0.3, "b": 0.5, "c": 0.7}, False)])
def test_the_code_of_a_card_gives_the_labels_that_its_figures_are_of(tmp_path, tokenizer, thresholds, pairs):
    pytest.importorskip("onnxruntime")
    names = dict(enumerate("abc"))
    model = tiny_bert(1, num_labels=3, problem_type=MULTI_LABEL, id2label=names, initializer_range=0.9)
    if thresholds is not None:
        model.config.thresholds = thresholds
    export_onnx(model, tokenizer, tmp_path)
    model.save_pretrained(tmp_path)
    own = {} if thresholds is None else {"thresholds": {"student": thresholds}}
    several = replace(
        report(data={"name": "rows.csv", "pairs": pairs}, **own),
        task=TaskRecord(MULTI_LABEL, headline="f1_macro", labels=["a", "b", "c"], rows=8),
    )
    codes = re.findall(
        r"```python\n(.*?)```", build_model_card(several, model_name=str(tmp_path), onnx=True).content, re.S
    )
    assert len(codes) == 2
    for words in ("good film", "bad plot", "the film was very bad", "good"):
        given = tokenizer(words, *[words] * pairs, return_tensors="pt", return_token_type_ids=True)
        with torch.no_grad():
            scores = model.eval()(**given).logits[0].sigmoid()
        cuts = list((thresholds or dict.fromkeys("abc", 0.5)).values())
        expected = {names[place] for place in range(3) if scores[place] > cuts[place]}
        for code in codes:
            printed: list[Any] = []
            asked = re.sub(r'"Write the [^"]*"', repr(words), code)
            exec(asked, {"print": printed.append})
            assert {each["label"] for each in printed[0]} == expected


def test_the_base_model_is_the_teacher_or_else_what_the_student_or_its_teacher_began_as(tmp_path: Path) -> None:
    checkpoint = {"name": "org/small", "checkpoint": True}
    local = {"name": "./my-teacher"}
    cases: list[tuple[dict[str, Any], str | None]] = [
        ({"student": checkpoint}, "org/teacher"),
        ({"teacher": local, "student": checkpoint}, "org/small"),
        ({"teacher": local, "student": {"name": "bilstm", "checkpoint": False}}, None),
        ({"teacher": local, "student": {"name": "./small", "checkpoint": True}}, None),
        ({"teacher": local, "student": {"name": "layers:3", "checkpoint": False, "backbone": "org/base"}}, "org/base"),
        ({"student": {"name": "layers:3", "checkpoint": False, "backbone": "org/base"}}, "org/teacher"),
        ({"teacher": local, "student": {"name": "layers:3", "backbone": {"name": "org/base"}}}, None),
        ({"base_model": "org/said"}, "org/said"),
    ]
    for run, expected in cases:
        found = metadata(report(**run), tmp_path / "README.md")
        assert found.get("base_model") == expected and ("base_model_relation" in found) == (expected is not None)


def test_onnx_files_are_told_with_how_to_run_them_and_what_was_measured() -> None:
    assert "ONNX" not in build_model_card(report(), model_name="a/b").content
    exported = build_model_card(report(), model_name="a/b", onnx=True).content
    assert 'classify = nlpkd.load("a/b")' in exported and "- int8" not in exported
    measured = replace(
        report(),
        candidates=report().candidates | {"int8": replace(candidate(0.84), size_mb=1.25, runtime="onnxruntime")},
    )
    usage = build_model_card(measured, model_name="a/b").content.split("## How it was trained")[0]
    assert "- int8: accuracy 0.840 [0.820, 0.860], 1.2 MB, 2.00 ms at batch 1" in usage


@pytest.mark.parametrize(("stride", "call"), [(None, 'nlpkd.load("a/b")'), (0, 'nlpkd.load("a/b", window_stride=0)')])
def test_a_model_that_was_measured_on_windows_is_loaded_to_read_windows(stride, call) -> None:
    data = {"source": "x", "max_length": 64, "window_stride": stride}
    card = build_model_card(report(data=data), model_name="a/b", onnx=True).content
    assert f"classify = {call}" in card
    assert ("windows that share 0" in card) == (stride == 0)


def test_onnx_candidates_are_told_by_what_ran_them_and_not_by_their_names() -> None:
    candidates = report().candidates | {
        "int8": replace(candidate(0.84), runtime="torch"),
        "shipped": replace(candidate(0.83), runtime="onnxruntime"),
    }
    usage = build_model_card(replace(report(), candidates=candidates), model_name="a/b").content
    assert "- shipped: accuracy 0.830" in usage and "- int8: accuracy" not in usage


def test_card_is_the_same_when_written_again_from_the_published_report() -> None:
    local = report(
        teacher={"name": "/home/ann/my-teacher"}, command="sst2.py --teacher '/home/ann b/my-teacher' --seed 7"
    )
    again = EvaluationReport.from_dict(json.loads(json.dumps(public_report(local).to_dict())))
    first = build_model_card(local, model_name="a/b").content
    assert first == build_model_card(again, model_name="a/b").content
    assert "base_model" not in first and "ann" not in first


def test_published_report_has_no_absolute_path_and_no_token_but_keeps_the_rest() -> None:
    secret = "hf_" + "a" * 30
    command = (
        f"HF_X={secret} /opt/py/bin/python recipes/sst2.py --out=/home/ann/out/ --hub_token {secret} -d '/a b/c d'"
    )
    run = {
        "command": command,
        "latency_protocol": "p50 / p95, 3 rows/s, see https://x.org/a/b",
        "settings": {"d": "/x/y"},
    }
    dirty = replace(report(**run), candidates={"student": candidate(0.8), "/home/ann/model.onnx": candidate(0.7)})
    clean = public_report(dirty)
    assert clean.run.command == "HF_X=*** ./python recipes/sst2.py --out=./out --hub_token *** -d './c d'"
    assert clean.run.latency_protocol == run["latency_protocol"]
    assert clean.run.settings == {"d": "./y"}
    assert list(clean.candidates) == ["student", "./model.onnx"]
    assert clean.candidates["student"] == dirty.candidates["student"]


def test_a_path_is_taken_out_however_it_is_written_and_other_words_stay() -> None:
    paths = {
        "file:///home/me/x": "./x",
        "file://localhost/home/me/x": "./x",
        r"C:\Users\me\x.csv": "./x.csv",
        "D:/Users/me/x.csv": "./x.csv",
        r"\\server\me\x": "./x",
        "../../home/me/x": "./x",
        "runs/../../home/me/x": "./x",
        r"..\..\Users\me\x": "./x",
        "~me/x": "./x",
        "a:/home/me/x": "./x",
        "teacher:/home/me/x": "teacher:./x",
        r"--data 'C:\My Files\me\x y.csv' --n 3": "--data './x y.csv' --n 3",
    }
    clean = public_report(report(settings={"values": list(paths), "keys": {path: 1 for path in paths}}))
    assert clean.run.settings["values"] == list(paths.values())
    # None is lost where several are called alike.
    keys = clean.run.settings["keys"]
    assert len(keys) == len(paths) and {key.partition(" (")[0] for key in keys} == set(paths.values())
    plain = ["https://x.org/a/b", "s3://bucket/a", "p50 / p95, 3 rows/s", "layers:3", "12:30:05", "runs/out", "and/or"]
    assert public_report(report(settings=plain)).run.settings == plain


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)


def test_hostile_names_stay_text_in_front_matter_table_code_and_html(tmp_path: Path) -> None:
    labels = [
        "---",
        "<script>alert(1)</script>",
        "null",
        'quo"te',
        "pi|pe",
        "two\nlines",
        "`tick`",
        "[a](http://b)",
        "é",
    ]
    hostile = replace(
        report(teacher={"name": "<img src=x>\n---\n"}, settings={"a|b": "<b>\n---"}, command="a\n```\n<b>\n```\n"),
        task=TaskRecord(labels=labels, rows=10, majority_share=0.5),
        candidates={"student": candidate(0.8), "x|<i>\ny": candidate(0.7)},
    )
    name = 'a"\n---\nb: <u>'
    path = tmp_path / "README.md"
    build_model_card(hostile, model_name=name).save(path)
    content = path.read_text()
    _, front, body = content.split("---\n", 2)
    assert yaml.safe_load(front)["model-index"][0]["name"] == 'a" --- b: <u>'
    prose = "".join(part for number, part in enumerate(body.split("````")) if number % 2 == 0)
    prose = prose.replace('model="a\\" --- b: <u>"', "")
    parser = Tags()
    parser.feed(prose)
    assert parser.tags == []
    assert not re.search(r"(?<!\\)\]\(|^---", prose, re.M)
    rows = [line for line in prose.splitlines() if line.startswith("| ")]
    assert len(rows) == 4 and len({row.count("|") - row.count("\\|") for row in rows}) == 1
    assert "é" in prose and "two lines" in prose
    assert "a\n```\n<b>\n```\n" in body.split("````")[1]
    assert ModelCard.load(path).data.model_name == 'a" --- b: <u>'


@pytest.mark.parametrize("place", ["/home/ann/runs", "./runs", "."])
def test_each_of_several_teachers_is_named_and_a_file_by_its_folder(place, tmp_path: Path) -> None:
    files = {"name": f"{place}/big and bold/onnx/model_int8.onnx", "revision": None, "folder": "big and bold"}
    models = [{"name": f"{place}/t", "revision": None}, {"name": "org/tb", "revision": "v2"}, files]
    several = {"name": " and ".join(each["name"] or "" for each in models), "revision": None, "models": models}
    told = build_model_card(report(teacher=several), model_name="alice/student").content
    assert "from the teachers t and org/tb (revision v2) and big and bold (model_int8.onnx). The" in told
    assert metadata(report(teacher=several), tmp_path / "README.md")["base_model"] == "org/tb"
    alone = build_model_card(report(teacher=files), model_name="alice/student").content
    assert "from the teacher big and bold (model_int8.onnx). The" in alone
    several["models"] = [models[1], {"name": "org/other"}]
    assert metadata(report(teacher=several), tmp_path / "README.md")["base_model"] == ["org/tb", "org/other"]
    # As a report says it that was saved before.
    old = EvaluationReport.from_dict(report(teacher={"name": "./t and ./tb", "revision": None}).to_dict())
    assert old.run.teacher.models == [] and build_model_card(old, model_name="alice/student").content
    with pytest.raises(ValueError, match="damaged"):
        EvaluationReport.from_dict(report(teacher={"name": "t", "models": [{"name": 3}]}).to_dict())


def test_body_tells_objectives_settings_seeds_protocol_and_citations() -> None:
    spread = {"student": {"accuracy": SeedSpread([0.8, 0.9], 0.85, 0.0707)}}
    content = build_model_card(replace(report(), seeds=spread), model_name="alice/student").content
    for part in (
        'pipeline("text-classification", model="alice/student", truncation=True)',
        "- forward_kl: weight 0.5, temperature 2.0",
        "- learning_rate: 8e-05",
        "recipes/sst2.py --seed 7",
        "| candidate | accuracy | agreement |",
        "| student | 0.850 ± 0.071 (n = 2) | n/a |",
        "20 passes after 5 of warm-up",
        "- Hinton et al., 2015",
        "2 seeds were trained",
        "67,349 rows",
        "872 rows",
        "org/teacher (revision abc123)",
        "0.850 [0.830, 0.870]",
    ):
        assert part in content, part


def test_limits_name_a_missing_baseline_a_single_seed_and_a_split_that_is_no_test() -> None:
    limits = build_model_card(report(), model_name="a/b").content.split("## Limits")[1]
    assert "No undistilled baseline" in limits and "one seed" in limits and "validation" in limits
    full = report(data={"name": "nyu-mll/glue", "split": "test"})
    paired = Comparison({"accuracy": Interval(0.01, 0.0, 0.02)}, 0.04, 3, 2)
    candidates = full.candidates | {"baseline": candidate(0.8)}
    full = replace(full, candidates=candidates, comparisons={"student_vs_baseline": paired})
    limits = build_model_card(full, model_name="a/b").content.split("## Limits")[1]
    assert "No undistilled baseline" not in limits and "not from a test split" not in limits


def test_bare_report_makes_a_card_without_placeholders() -> None:
    bare = EvaluationReport(TaskRecord(), RunRecord(), candidates={"student": candidate(0.8)}, comparisons={})
    content = build_model_card(bare, model_name="student").content
    assert "None" not in content and "null" not in content and "More information needed" not in content
    assert "not recorded" in content


def test_data_from_memory_are_not_taken_for_a_data_set_on_the_hub(tmp_path: Path) -> None:
    assert "datasets" not in metadata(report(data={"name": "in-memory data", "split": "test"}), tmp_path / "README.md")

"""`report.html`: what it shows, that it shows nothing else, and that a real browser agrees."""

from __future__ import annotations

import html
import json
import logging
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from datasets import ClassLabel, Dataset
from hub_server import WRITE_TOKEN, HubServer, hub_environment
from processes import run as run_program
from samples import raw_rows, tiny_bert

from nlpkd import EvaluationReport, evaluate_student
from nlpkd.evaluation.html_report import make_page, render_page, training_curves
from nlpkd.evaluation.origin import RunRecord
from nlpkd.evaluation.records import Breakdown
from nlpkd.evaluation.scoring import task_scoring
from nlpkd.pipeline.evaluate import evaluate, name_models

pytest.importorskip("matplotlib", reason="needs the extra `report`")

NASTY = ("<script>document.title='owned'</script>", "---", '$x_1$ "quoted" & <b>')


# Texts that reach out of their charts.
CUT = """[...document.querySelectorAll('figure svg')].flatMap(svg => {
  const all = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter(text => {
    const own = text.getBoundingClientRect();
    return own.left < all.left || own.right > all.right || own.top < all.top || own.bottom > all.bottom;
  }).map(text => text.textContent);
})"""


class Reader(HTMLParser):
    """Collects tags and text, as a browser sees them."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def report(make_rows, tokenizer) -> EvaluationReport:
    """Three classes with hostile names, four candidates with hostile names too, two lengths timed."""
    rows, held_out = (
        make_rows(count, seed)
        .remove_columns("labels")
        .add_column("labels", [row % 3 for row in range(count)], feature=ClassLabel(names=list(NASTY)))
        for count, seed in ((90, 0), (40, 1))
    )
    names = {"id2label": dict(enumerate(NASTY)), "label2id": {name: at for at, name in enumerate(NASTY)}}
    models = [tiny_bert(layers=1, seed=seed, num_labels=3, initializer_range=0.5, **names) for seed in range(4)]
    return evaluate_student(
        models[0],
        models[1],
        rows,
        tokenizer,
        baseline=models[2],
        candidates={"<img src=http://example.com/x>": models[3]},
        run={"command": "nlpkd </dd><script>alert(1)</script>", "data": {"name": "<i>data</i>"}},
        threshold_dataset=held_out,
        bootstrap_samples=20,
        latency_tokens=(8, 16),
        latency_runs=2,
    )


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """Two stages as a run leaves them: the first one whole, the second with checkpoints alone."""
    folder = tmp_path_factory.mktemp("run")
    first = [{"step": 1, "loss/hidden_state_mse": 3.0}, {"step": 2, "loss/hidden_state_mse": 1.0}]
    last = [
        {"step": 10, "loss": 2.0, "loss/forward_kl": 1.5, "grad_norm": 4.0},
        {"step": 20, "loss": 1.0, "loss/forward_kl": float("inf")},
        {"step": 30, "loss": 0.5, "loss/forward_kl": 0.25, "eval_accuracy": 0.75},
    ]
    for name, history in (("stage-1", first), ("checkpoint-9", last[:1]), ("checkpoint-30", last)):
        (folder / name).mkdir()
        (folder / name / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    return folder


@pytest.fixture(scope="module")
def page(report, run_folder) -> str:
    rows = [entry.row for entry in report.candidates["student"].breakdown.disagreements[:2]]
    texts = {rows[0]: "a text with <b>markup</b>", rows[1]: "second"}
    return render_page(report, curves=training_curves(run_folder), texts=texts)


def test_the_page_says_what_the_report_says(report, page):
    text = " ".join(Reader(page).text.split())
    assert report.verdict() in text
    for name, candidate in report.candidates.items():
        assert name in text
        assert f"{candidate.quality['accuracy'].value:.3f}" in text
    for heading in ("Candidates", "Latency", "Quality against cost", "Training, stage 1", "Training, stage 2",
                    "Confusion", "Reliability", "By class and by length", "Temperature scaling"):  # fmt: skip
        assert heading in text, heading
    assert "a text with <b>markup</b>" in text and "second" in text


def test_markup_in_names_is_shown_as_text_and_not_run(page):
    reader = Reader(page)
    assert not {"script", "img", "i data", "b", "iframe", "link", "object"} & set(reader.tags)
    for name in NASTY:
        assert name in reader.text or name[:17] in reader.text
    assert re.findall(r"""(?:src|href)=["'](?!#)""", page) == []
    assert [url for url in re.findall(r"https?://[^\s\"'<>]+", page) if "w3.org" not in url and "example.com" not in url] == []  # fmt: skip  # noqa: E501


def test_curves_are_those_of_each_stage_and_its_last_checkpoint(run_folder, tmp_path):
    stages = training_curves(run_folder)
    assert [(each.title, each.values) for each in stages] == [
        ("stage 1", {"loss/hidden_state_mse": [(1, 3.0), (2, 1.0)]}),
        ("stage 2", {"loss": [(10, 2.0), (20, 1.0), (30, 0.5)], "loss/forward_kl": [(10, 1.5), (30, 0.25)]}),
    ]
    assert training_curves(tmp_path) == training_curves("user/model") == []


def test_without_texts_no_example_is_shown(alone):
    assert "disagree most" not in render_page(alone)


@pytest.fixture(scope="module")
def alone(report) -> EvaluationReport:
    """The student by itself: fewer charts to draw."""
    return replace(report, candidates={"student": report.candidates["student"]}, comparisons={})


@pytest.fixture(scope="module")
def of_many_classes(report) -> EvaluationReport:
    """A thousand classes, of which the student takes the seventh for the eighth, and its teacher none for another."""
    gold = np.arange(3000) % 1000
    candidates = {}
    for name, predicted in {"student": np.where(gold == 7, 8, gold), "teacher": gold}.items():
        breakdown = task_scoring(None, None).breakdown(10.0 * np.eye(1000)[predicted], gold)
        candidates[name] = replace(report.candidates[name], breakdown=breakdown)
    task = replace(report.task, labels=[f"class {number}" for number in range(1000)])
    return replace(report, task=task, candidates=candidates, comparisons={})


def test_a_page_of_many_classes_shows_the_confusions_that_matter(of_many_classes):
    page = render_page(of_many_classes)
    assert len(page) < 250_000
    assert "<td>class 7</td><td>class 8</td><td>3</td><td>100.0 %</td>" in page
    confused = page.partition("commonest confusions")[2]
    assert confused.count("<td>class ") == 2, "no other class is confused"
    assert "class 18, class 19 and 980 more" in page and "20 with the student&#39;s lowest F1" in page
    assert "and 980 more" in of_many_classes.to_markdown() and "class 20" not in of_many_classes.to_markdown()


def test_names_that_a_chart_cuts_are_in_full_in_a_table(report):
    names = [f"customer_service_{number}_of_all_our_parcels" for number in range(30)]
    student, entry = report.candidates["student"], report.candidates["student"].breakdown.per_class[0]
    candidate = replace(student, breakdown=Breakdown(per_class=[replace(entry, f1=n / 30) for n in range(30)]))
    page = render_page(
        replace(report, task=replace(report.task, labels=names), candidates={"student": candidate}, comparisons={})
    )
    rows = re.findall(r"<tr><td>(\d+)</td><td>([^<]*)</td><td>[^<]*</td><td>([^<]*)</td></tr>", page)
    assert rows == [(str(n + 1), name, f"{n / 30:.3f}") for n, name in enumerate(names)]


def test_a_page_is_replaced_as_a_whole_with_its_report(alone, tmp_path, monkeypatch):
    folder = tmp_path / "new"
    alone.save(folder, make_page(alone))
    before = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    assert before.keys() == {"report.html", "report.json", "report.md"}
    assert before["report.html"].startswith("<!doctype html>")
    monkeypatch.setattr(os, "replace", lambda *names: (_ for _ in ()).throw(OSError("no space left")))
    other = replace(alone, run=RunRecord())
    with pytest.raises(OSError, match="no space"):
        other.save(folder, make_page(other))
    assert {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()} == before


def test_without_the_extra_the_page_is_skipped_and_said_so(report, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("nlpkd.evaluation.html_report.find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING):
        assert make_page(report) is None
    assert "report.html is skipped" in caplog.text and "nlpkd[report]" in caplog.text


def test_a_backslash_in_a_candidate_s_name_is_drawn_as_it_is(alone):
    name = r"C:\gold\g<0>\1"
    page = render_page(replace(alone, candidates=alone.candidates | {name: alone.candidates["student"]}))
    assert f"of student, {html.escape(name)}" in page


def test_the_drawing_is_the_same_every_time(alone):
    assert render_page(alone) == render_page(alone)


def test_a_report_of_before_makes_a_page_too(report):
    data = report.to_dict()
    for candidate in data["candidates"].values():
        for key in ("flops", "temperature_scaling", "breakdown"):
            del candidate[key]
        for latency in candidate["latency"]:
            del latency["p99_ms"]
    old = EvaluationReport.from_dict(data)
    assert "Quality against cost" in render_page(old) and "Confusion" not in render_page(old)
    assert EvaluationReport.from_dict(old.to_dict()) == old


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_other_tasks_have_a_page(problem_type, make_rows, tokenizer):
    several = problem_type != "regression"
    rows = make_rows(40)
    labels = [[row % 2, 1 - row % 3 % 2] if several else row / 40 for row in range(40)]
    rows = Dataset.from_dict(rows.remove_columns("labels").to_dict() | {"labels": labels})
    models = [tiny_bert(layers=1, seed=seed, problem_type=problem_type, num_labels=2 if several else 1) for seed in (0, 1)]  # fmt: skip  # noqa: E501
    report = evaluate_student(*models, rows, tokenizer, bootstrap_samples=20, latency_runs=0)
    page = render_page(report)
    assert ("Reliability" in page) == several
    assert "By class and by length" in page and "Confusion" not in page


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install -y chromium")
def test_a_real_browser_shows_it_without_errors_or_network(page, of_many_classes, tmp_path):
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    with Browser(tmp_path / "profile") as browser:
        browser.open(f"file://{tmp_path / 'report.html'}")
        asked = [event["params"]["request"]["url"] for event in browser.events if event.get("method") == "Network.requestWillBeSent"]  # fmt: skip  # noqa: E501
        assert asked == [f"file://{tmp_path / 'report.html'}"]
        assert browser.evaluate("document.title") == "<i>data</i>: evaluation"
        for width in (390, 1200):
            browser.show(width)
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
            assert browser.evaluate(CUT) == []
            sizes = browser.evaluate("[...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect().width)")  # fmt: skip  # noqa: E501
            assert len(sizes) == 2 + 1 + 2 + 4 + 4 + 2 and min(sizes) > 150
        colours = []
        for scheme in ("light", "dark"):
            browser.show(390, scheme)
            colours.append(browser.evaluate("getComputedStyle(document.querySelector('svg text')).fill"))
        assert colours[0] != colours[1]
        of_many_classes.save(tmp_path / "many", make_page(of_many_classes))
        browser.open(f"file://{tmp_path / 'many' / 'report.html'}")
        assert browser.evaluate(CUT) == [] and browser.evaluate("document.querySelectorAll('svg').length") > 2
        problems = [event for event in browser.events if event.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")]  # fmt: skip  # noqa: E501
        assert problems == []


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer) -> Path:
    """A student, its teacher, two further models, one with a vocabulary of its own, and rows to measure on."""
    from transformers import BertTokenizer

    folder = tmp_path_factory.mktemp("models")
    names = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}
    for seed, name in enumerate(("student", "teacher", "pruned")):
        tiny_bert(layers=1, seed=seed, initializer_range=0.5, **names).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    other = BertTokenizer(vocab={word: at for at, word in enumerate([*words[:5], *reversed(words[5:])])})
    model = tiny_bert(layers=1, seed=2, initializer_range=0.5, **names)
    embeddings = model.bert.embeddings.word_embeddings.weight.data
    embeddings[5:] = embeddings[5:].flip(0)
    model.save_pretrained(folder / "turned")
    other.save_pretrained(folder / "turned")
    for name, seed in (("test", 3), ("held_out", 4)):
        rows = [{"text": row["text"], "label": ("neg", "pos")[row["label"]]} for row in raw_rows(40, seed)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_a_candidate_with_another_tokenizer_reads_its_own_tokens(folders):
    """`turned` is `pruned` with its vocabulary in another order: the same model, unless it is given other tokens."""
    paths = {name: folders / name for name in ("pruned", "turned")}
    report = evaluate(folders / "student", str(folders / "test.jsonl"), teacher=folders / "teacher", candidates=paths,
                      max_length=32, latency_runs=0, bootstrap_samples=20)  # fmt: skip
    assert list(report.candidates) == ["teacher", "student", "pruned", "turned"]
    pruned, turned = report.candidates["pruned"], report.candidates["turned"]
    assert pruned.quality == turned.quality and pruned.agreement == turned.agreement
    assert pruned.breakdown == turned.breakdown
    alone = evaluate(folders / "turned", str(folders / "test.jsonl"), latency_runs=0, bootstrap_samples=20)
    assert alone.candidates["student"].quality == turned.quality


def test_a_folder_that_can_not_be_written_to_is_refused_before_models_are_loaded(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file/reports can't be a folder, since a file is there: choose another one"):
        evaluate(tmp_path / "no model", tmp_path / "no data", output_dir=tmp_path / "file" / "reports")


def test_a_report_that_can_not_be_saved_is_shown(folders, tmp_path, caplog):
    (tmp_path / "report.json").mkdir()
    with pytest.raises(OSError), caplog.at_level(logging.ERROR):
        evaluate(folders / "student", str(folders / "test.jsonl"), latency_runs=0, bootstrap_samples=20,
                 output_dir=tmp_path)  # fmt: skip
    assert f"could not be saved in {tmp_path}" in caplog.text and "| student | 0." in caplog.text


def test_texts_are_on_the_local_page_alone_and_never_pushed(folders, tmp_path):
    held_out = str(folders / "held_out.jsonl")
    evaluate(folders / "student", str(folders / "test.jsonl"), teacher=folders / "teacher", held_out=held_out,
             latency_runs=0, bootstrap_samples=20, output_dir=tmp_path, examples=3)  # fmt: skip
    report = EvaluationReport.load(tmp_path)
    # One of the 40 is a measured one.
    assert report.candidates["student"].temperature_scaling.rows == 39
    rows = [json.loads(line)["text"] for line in (folders / "test.jsonl").read_text().splitlines()]
    shown = [rows[entry.row] for entry in report.candidates["student"].breakdown.disagreements[:3]]
    page = (tmp_path / "report.html").read_text()
    assert all(f"<td>{text}</td>" in page for text in shown)
    assert not any(text in (tmp_path / "report.json").read_text() for text in shown if len(text) > 8)
    for path in (folders / "student").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with HubServer() as hub:
        program = "import sys; from nlpkd import push_student; push_student(sys.argv[1], 'alice/tiny')"
        environment = hub_environment(hub, tmp_path / "home", WRITE_TOKEN)
        run_program(["-c", program, str(tmp_path)], tmp_path, environment, timeout=120).check_returncode()
        pushed = hub.files("alice/tiny")["report.html"].decode()
    assert "Confusion" in pushed and "disagree most" not in pushed
    assert str(folders) in page and str(folders) not in pushed
    assert not any(f"<td>{text}</td>" in pushed for text in shown)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"examples": 3}, "give a teacher and output_dir"),
        ({"examples": 3, "teacher": "teacher"}, "give a teacher and output_dir"),
        ({"examples": 21, "teacher": "teacher", "output_dir": "x"}, r"1\.\.20, found 21"),
        ({"split": "dev"}, "no split 'dev', found"),
    ],
)
def test_what_cannot_be_shown_is_refused(options, message, folders, tmp_path):
    given = {key: folders / value if key == "teacher" else value for key, value in options.items()}
    if "output_dir" in given:
        given["output_dir"] = tmp_path
    with pytest.raises(ValueError, match=message):
        evaluate(folders / "student", str(folders / "test.jsonl"), latency_runs=0, **given)
    assert list(tmp_path.iterdir()) == []


def test_models_of_a_command_line_are_named(tmp_path):
    (tmp_path / "a=b").mkdir()
    (tmp_path / "model.int8.onnx").touch()
    assert name_models(["runs/s", "other=runs/o", "user/tiny@v1"], teacher="t") == {
        "teacher": "t", "student": "runs/s", "other": "runs/o", "tiny": "user/tiny@v1"
    }  # fmt: skip
    assert name_models(["t", "student=s"], baseline="b") == {"baseline": "b", "t": "t", "student": "s"}
    assert name_models(["student=s", str(tmp_path / "a=b"), str(tmp_path / "model.int8.onnx")]) == {
        "student": "s", "a=b": str(tmp_path / "a=b"), "model.int8": str(tmp_path / "model.int8.onnx")
    }  # fmt: skip
    with pytest.raises(ValueError, match="two models are called 'x': a/x and b/x"):
        name_models(["student", "a/x", "b/x"])
    with pytest.raises(ValueError, match="two models are called 'teacher'"):
        name_models(["s", "teacher=t"], teacher="u")
    with pytest.raises(ValueError, match="student=PATH"):
        name_models(["a=b"])
    for wrong in ("=s", "s="):
        with pytest.raises(ValueError, match=f"'{wrong}' is no NAME=PATH"):
            name_models([wrong])


@pytest.mark.parametrize(
    ("entries", "roles", "named"),
    [
        (["teacher", "student", "student.int8.onnx"], {},
         {"teacher": "teacher", "student": "student", "student.int8.onnx": "student.int8.onnx"}),
        (["runs/teacher/", "pushed"], {}, {"teacher": "runs/teacher/", "student": "pushed"}),
        (["user/baseline@v1", "runs/s", "lab/teacher"], {},
         {"baseline": "user/baseline@v1", "student": "runs/s", "teacher": "lab/teacher"}),
        (["teacher=a", "b", "c"], {}, {"teacher": "a", "student": "b", "c": "c"}),
        (["pruned=p", "s"], {}, {"pruned": "p", "student": "s"}),
        (["runs/teacher"], {}, {"student": "runs/teacher"}),
        (["runs/baseline"], {"teacher": "t"}, {"teacher": "t", "student": "runs/baseline"}),
    ],
)  # fmt: skip
def test_models_without_names_have_the_roles_that_their_folders_say(entries, roles, named):
    assert name_models(entries, **roles) == named


@pytest.mark.parametrize("entries", [["runs/a", "runs/b"], ["runs/a", "runs/b", "b.int8.onnx", "pruned=runs/p"]])
def test_which_of_several_models_is_the_student_is_asked_and_not_guessed(entries):
    with pytest.raises(ValueError, match=r"which of \['runs/a', 'runs/b'.*student=PATH.*teacher=PATH"):
        name_models(entries)
    with pytest.raises(ValueError, match="none of .* is the student"):
        name_models(["teacher", "pruned=runs/p"])

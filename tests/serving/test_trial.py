"""The page to try a student on: what it shows in a real browser, and whom it asks."""

from __future__ import annotations

import json
import re
import socket
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser
from samples import raw_rows, tiny_bert, tried_models

from nlpkd import evaluate, load
from nlpkd.serving.trial import make_trial

pytestmark = pytest.mark.skipif(find_spec("gradio") is None, reason='needs Gradio: pip install "nlpkd[try]"')


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer) -> Path:
    return tried_models(tmp_path_factory.mktemp("try"), tokenizer)


def until(browser: Browser, expression: str, seconds: float = 30):
    """Wait until an expression has a value that is true, and return it."""
    end = time.monotonic() + seconds
    while not (found := browser.evaluate(expression)):
        assert time.monotonic() < end, (expression, browser.evaluate("document.body.innerText"))
        time.sleep(0.05)
    return found


TYPED, VALUE = "document.querySelector('#text textarea')", "document.querySelector('#{} textarea')?.value"


def text_of(name: str) -> str:
    return f"document.querySelector('#{name}')?.innerText"


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install -y chromium")
def test_a_browser_shows_both_answers_and_the_rows_where_they_differ_and_asks_nobody_else(folder, tmp_path):
    from nlpkd.serving.page import LOCAL

    page = make_trial(folder / "student", folder / "teacher", str(folder / "test.csv"))
    _, address, _ = page.launch(**LOCAL, prevent_thread_lock=True)
    try:
        with Browser(tmp_path / "profile") as browser:
            browser.open(address)
            # A text that is typed is asked by the button.
            until(browser, f"!!{TYPED} && !!document.querySelector('#rows tbody tr')")
            browser.evaluate(f"{TYPED}.value = 'good'; {TYPED}.dispatchEvent(new Event('input', {{bubbles: true}}))")
            browser.evaluate("document.querySelector('#compare').click()")
            until(browser, f"{VALUE.format('ms-1')} && {text_of('agree')}.trim()")
            browser.evaluate(f"{TYPED}.value = ''; {TYPED}.dispatchEvent(new Event('input', {{bubbles: true}}))")
            # A row of the report puts its text into the box, and is asked at once.
            report = json.loads((folder / "student/report.json").read_text())
            first = report["candidates"]["student"]["breakdown"]["disagreements"][0]
            text = raw_rows(30, seed=3)["text"][first["row"]]
            row = until(browser, "document.querySelector('#rows tbody tr')?.innerText.trim()").split("\t")
            assert [each.strip() for each in row[:2]] == [str(first["row"]), text]
            assert f"pos ({first['probability']:.2f})" in row[4] and "<b>neg</b> (" in row[3]
            until(browser, f"{TYPED}.value || document.querySelector('#rows tbody td').click()")
            assert browser.evaluate(f"{TYPED}.value") == text
            for number, name in enumerate(("student", "teacher")):
                answer, given = text_of(f"answer-{number}"), f"given-{number}"
                wanted = load(folder / name)(text, top_k=None)
                shares = [f"{100 * each['score']:.0f}%" for each in wanted]
                until(browser, " && ".join(f"{answer}?.includes('{share}')" for share in shares))
                shown = browser.evaluate(answer)
                assert all(each["label"] in shown for each in wanted)
                assert f"{name}: {folder / name}" in browser.evaluate(text_of(given))
                assert browser.evaluate(VALUE.format(given)) == wanted[0]["label"]
                assert 0 < float(browser.evaluate(VALUE.format(f"ms-{number}"))) < 1e4
            assert browser.evaluate(text_of("agree")).strip() == "They differ."
            browser.show(390)
            assert browser.evaluate("document.documentElement.scrollWidth") <= 390
            sent = [event["params"]["request"]["url"] for event in browser.events
                    if event.get("method") == "Network.requestWillBeSent"]  # fmt: skip
            assert sent and all(url.startswith((address, "data:", "blob:")) for url in sent), sent
    finally:
        page.close()


def saved(folder: Path, tokenizer, *configs: dict) -> list[Path]:
    """Models of the same weights with other configs."""
    folders = [folder / str(place) for place in range(len(configs))]
    for path, config in zip(folders, configs, strict=True):
        tiny_bert(layers=1, initializer_range=0.5, **config).save_pretrained(path)
        tokenizer.save_pretrained(path)
    return folders


def told_of(page, texts: list[str]) -> list[list]:
    """What a page shows of each text: whether its models agree, then answer and time of each."""
    compare = next(each.fn for each in page.fns.values() if getattr(each.fn, "__name__", "") == "compare")
    return [compare(text, "") for text in texts]


def classifiers(folder: Path, tokenizer, *configs: dict) -> list:
    return [load(path) for path in saved(folder, tokenizer, *configs)]


ONE_CLASS = {"num_labels": 2}
SEVERAL = {"num_labels": 2, "problem_type": "multi_label_classification"}
CUT = SEVERAL | {"thresholds": (0.6, 0.4)}


@pytest.mark.parametrize("others", [(" NEG", "Pos"), ("LABEL_0", "LABEL_1"), ("0", "1"), ("pos", "neg")])
@pytest.mark.parametrize("task", [ONE_CLASS, SEVERAL, CUT], ids=["one", "many", "cut"])
def test_a_page_says_of_labels_that_are_spelled_otherwise_what_it_says_of_the_same_names(
    tmp_path, tokenizer, task, others
):
    texts, names = raw_rows(8)["text"][:], ("neg", "pos")
    turned = others == ("pos", "neg")

    def config(called):
        cuts = {"thresholds": dict(zip(called, task["thresholds"], strict=True))} if "thresholds" in task else {}
        return task | cuts | {"id2label": dict(enumerate(called))}

    student, teacher = saved(tmp_path, tokenizer, config(names), config(others))
    shown = told_of(make_trial(student, teacher), texts)
    for agree, _, mine, _, _, theirs, _ in shown:
        assert set(theirs) == set(names)
        expected = dict(zip(names, [mine["pos"], mine["neg"]], strict=True)) if turned else mine
        assert theirs == pytest.approx(expected)
        assert turned or agree == "They agree."
    assert not turned or task != ONE_CLASS or {row[0] for row in shown} == {"They differ."}


def test_models_of_other_classes_are_not_compared(tmp_path, tokenizer):
    named = [{"id2label": dict(enumerate(names))} for names in (("neg", "pos"), ("sport", "news"))]
    student, teacher = saved(tmp_path, tokenizer, *named)
    with pytest.raises(ValueError, match="the same classes, and the teacher's are others: label names contradict"):
        make_trial(student, teacher)


def test_what_is_shown_as_given_is_what_the_model_decides_and_is_compared(tmp_path, tokenizer):
    from nlpkd.serving.page import make_page

    names = {"num_labels": 3, "id2label": dict(enumerate("abc")), "problem_type": "multi_label_classification"}
    named, unnamed = {"c": 0.0, "b": 0.5, "a": 1.0}, [1.0, 0.5, 0.0]
    cuts = [{}, {"thresholds": [0.5] * 3}, {"thresholds": named}, {"thresholds": unnamed}, {"thresholds": [1.0] * 3}]
    models = classifiers(tmp_path, tokenizer, *(names | each for each in cuts))
    texts, told = raw_rows(20)["text"][:], set()
    for other in models[1:]:
        rows = told_of(make_page({"one": models[0], "other": other}), texts)
        for text, (agree, *shown) in zip(texts, rows, strict=True):
            decided = [[each["label"] for each in model(text, decide=True)] for model in (models[0], other)]
            assert [shown[0], shown[3]] == ["\n".join(each) or "(no label)" for each in decided]
            assert agree == ("They agree." if set(decided[0]) == set(decided[1]) else "They differ.")
            told.add((agree, len(decided[1])))
    assert {agree for agree, _ in told} == {"They agree.", "They differ."}
    assert {count for _, count in told} >= {0, 1, 2}


def test_of_several_labels_the_page_shows_no_other_heading_and_by_which_thresholds_they_are_given(tmp_path, tokenizer):
    cut, uncut = saved(tmp_path, tokenizer, CUT, SEVERAL)
    parts = [each.get_config() | {"kind": type(each).__name__} for each in make_trial(cut, uncut).blocks.values()]
    assert [each["show_heading"] for each in parts if each["kind"] == "Label"] == [False, False]
    told = [each["value"] for each in parts if each.get("label") == "Labels are given above"]
    assert told == ["LABEL_0: 0.600\nLABEL_1: 0.400", "LABEL_0: 0.500\nLABEL_1: 0.500"]


def test_a_teacher_on_the_page_decides_by_the_thresholds_of_the_student_s_report(tmp_path, tokenizer):
    folders = saved(tmp_path, tokenizer, SEVERAL, SEVERAL, SEVERAL)
    student, teacher, other = folders
    rows, held_out = (raw_rows(20, seed).map(lambda row: {"label": [row["label"], 1]}) for seed in (1, 2))
    report = evaluate(
        student, rows, teacher=teacher, held_out=held_out, output_dir=student, latency_runs=0, bootstrap_samples=2
    )
    chosen = [list(cuts.values()) for cuts in map(report.run.thresholds.get, ("student", "teacher"))]
    for beside, expected in ((teacher, chosen), (other, [chosen[0], [0.5, 0.5]])):
        shown = [
            each.value for each in make_trial(student, beside).blocks.values()
            if getattr(each, "label", None) == "Labels are given above"
        ]  # fmt: skip
        assert shown == ["\n".join(f"LABEL_{at}: {cut:.3f}" for at, cut in enumerate(cuts)) for cuts in expected]


def test_the_page_says_of_scores_how_far_they_are_apart(tmp_path, tokenizer):
    from nlpkd.serving.page import answer, verdict

    first, second = classifiers(tmp_path, tokenizer, *[{"num_labels": 1, "problem_type": "regression"}] * 2)
    second.model.classifier.bias.data += 0.25
    answers = [answer(each, "a good film") for each in (first, second)]
    assert verdict(answers) == "Their scores are 0.250 apart."
    assert [each.shown for each in answers] == [f"{each('a good film')[0]['score']:.3f}" for each in (first, second)]


def test_a_single_label_is_given_or_not_and_is_no_score(tmp_path, tokenizer):
    from nlpkd.serving.page import answer, verdict

    one = {"num_labels": 1, "problem_type": "multi_label_classification"}
    first, second = classifiers(tmp_path, tokenizer, *[one] * 2)
    for bias, expected in ((0.0, "They agree."), (20.0, "They differ.")):
        first.model.classifier.bias.data.fill_(-10.0)
        second.model.classifier.bias.data.fill_(bias - 10.0)
        answers = [answer(each, "a good film") for each in (first, second)]
        assert all(len(each.probabilities) == 1 for each in answers)
        assert verdict(answers) == expected and answers[0].shown == "(no label)"


def test_a_page_listens_on_this_machine_alone_and_tells_nobody(folder, monkeypatch):
    from nlpkd.serving.page import LOCAL

    asked: list[object] = []
    connect = socket.socket.connect

    def watched(self, address):
        asked.append(address)
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", watched)
    page = make_trial(folder / "student")
    _, address, shared = page.launch(**LOCAL, prevent_thread_lock=True)
    page.close()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address) and not shared and not page.analytics_enabled
    assert {each[0] for each in asked if isinstance(each, tuple)} <= {"127.0.0.1"}, asked


def test_rows_that_the_report_was_not_measured_on_are_refused(folder, tmp_path):
    raw_rows(29, seed=3).to_csv(tmp_path / "fewer.csv")
    with pytest.raises(ValueError, match="the report was measured on 30 rows, and .* has 29 or other labels"):
        make_trial(folder / "student", data=str(tmp_path / "fewer.csv"))
    with pytest.raises(ValueError, match=r"teacher has no report.json, .*leave data out"):
        make_trial(folder / "teacher", data=str(folder / "test.csv"))

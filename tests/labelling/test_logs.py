"""Logs of decisions as training rows, in the formats of the pipeline and of the route."""

import json
import re

import numpy as np
import pytest
from chat_models import save_chat_model
from label_server import odd_versions
from transformers import pipeline

from nlpkd import read_decisions
from nlpkd.labelling.logs import is_decision_log

TOPIC = {"type": "choice", "instructions": "About what?", "criteria": {"sport": "Games", "art": None}}
SPAM, RUDE = ({"type": "noul", "instructions": f"Is it {word}?"} for word in ("spam", "rude"))
QUESTIONS = {"topic": TOPIC, "spam": SPAM, "rude": RUDE}


def answers(sport=0.75, spam=0.25):
    topic = {
        "type": "choice",
        "choice": "sport",
        "confidence": 0.5,
        "probabilities": {"art": 1 - sport, "sport": sport},
    }
    return {"topic": topic, "spam": {"type": "noul", "noul": spam}, "rude": {"type": "noul", "noul": 0.5}}


def line(state="a match", questions=QUESTIONS, given=None):
    return {"state": state, "questions": questions, "answers": answers() if given is None else given}


def save(folder, *lines):
    path = folder / "decisions.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return path


def test_the_pipelines_own_answers_are_read_as_they_are(tmp_path):
    decide = pipeline("decision", model=str(save_chat_model(tmp_path / "chat")))
    requests = [{"state": state, "questions": QUESTIONS} for state in ("a match", "a painting", {"subject": "Ünï"})]
    found = [decide(request) for request in requests]
    path = save(tmp_path, *({"request": r, "response": {"answers": a}} for r, a in zip(requests, found, strict=True)))
    rows, task = read_decisions(path, "topic")
    assert is_decision_log(path) and task == "single_label_classification"
    assert rows["text"][:] == ["a match", "a painting", '{"subject": "Ünï"}']
    expected = [each["topic"]["probabilities"] for each in found]
    for row, probabilities in zip(rows["probabilities"][:], expected, strict=True):
        assert list(row) == ["sport", "art"] and row == pytest.approx(probabilities, abs=1e-6)


@pytest.mark.parametrize(
    ("question", "task", "expected"),
    [
        ("topic", "single_label_classification", {"sport": 0.75, "art": 0.25}),
        ("spam", "single_label_classification", {"false": 0.75, "true": 0.25}),
        ("spam, rude", "multi_label_classification", {"spam": 0.25, "rude": 0.5}),
    ],
)
def test_each_kind_of_question_makes_its_classes(tmp_path, question, task, expected):
    rows, found = read_decisions(save(tmp_path, line()), question)
    assert found == task and rows["probabilities"][0] == expected


@pytest.mark.parametrize("name", ["rude, spam", "topic,", " topic", "spam,rude"])
def test_any_question_that_was_asked_is_found_by_its_name(tmp_path, name):
    questions = QUESTIONS | {name: {"type": "choice", "criteria": {"yes": None, "no": None}}}
    asked = line("b", questions, answers() | {name: {"probabilities": {"yes": 0.75, "no": 0.25}}})
    rows, task = read_decisions(save(tmp_path, line("a"), asked), name)
    assert rows["text"][:] == ["b"] and task == "single_label_classification"
    assert rows["probabilities"][0] == {"yes": 0.75, "no": 0.25}


def test_lines_that_ask_something_else_are_left_out_and_options_may_come_in_another_order(tmp_path, caplog):
    other = TOPIC | {"criteria": {"art": "Pictures", "sport": None}}
    path = save(tmp_path, line("a"), line("b", {"spam": SPAM}, {"spam": {"noul": 0.5}}), line("c", {"topic": other}))
    rows, _ = read_decisions(path, "topic")
    assert rows["text"][:] == ["a", "c"]
    np.testing.assert_allclose([list(each.values()) for each in rows["probabilities"][:]], [[0.75, 0.25]] * 2)
    assert "1 lines do not ask 'topic' and are left out; of the others 1 ask it in other words" in caplog.text


@pytest.mark.parametrize(
    ("lines", "question", "told"),
    [
        ([line(), {"text": "a"}], "topic", "line 2 .* is no decision"),
        ([line()], "mood", "no line of .* asks 'mood'"),
        ([line(), line(given=answers(float("nan")))], "topic", "line 2 .*sum to 1.*nan"),
        ([line(given=answers(spam=1.5))], "spam", "line 1 .*must be probabilities"),
        ([line(given={"spam": {"noul": 1}})], "topic", r"line 1 .*no answer to \['topic'\]"),
        ([line(), line(questions={"topic": TOPIC | {"criteria": {"a": None, "b": None}}})], "topic",
         "line 2 .*are not .*those of the lines before"),
        ([line()], "topic,spam", "line 1 .*several questions are several labels"),
    ],
)  # fmt: skip
def test_lines_that_are_no_such_decision_are_named(tmp_path, lines, question, told):
    with pytest.raises(ValueError, match=told):
        read_decisions(save(tmp_path, *lines), question)


def test_a_line_of_any_form_is_read_or_named(tmp_path):
    refused = 0
    for name in ("topic", "spam"):
        for odd in odd_versions(line("a", {name: QUESTIONS[name]}, {name: answers()[name]})):
            try:
                read_decisions(save(tmp_path, odd, line()), name)
            except ValueError as error:
                assert re.search("(?i:line [12] of)", str(error)), error
                refused += 1
    assert refused > 100


def test_other_files_are_no_logs(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": 1}\n')
    (tmp_path / "empty.jsonl").write_text("")
    for other in (tmp_path / "rows.jsonl", tmp_path / "empty.jsonl", tmp_path / "no.jsonl", "user/name", None):
        assert not is_decision_log(other)

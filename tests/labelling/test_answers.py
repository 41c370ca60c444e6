"""Answers are kept as they come, whatever ends a run."""

import json
import os
import resource
import signal
import threading
import time

import numpy as np
import pytest
from datasets import Dataset
from label_server import LabelServer, label_at, right_answer
from processes import server as process_server

from nlpkd.labelling.answers import AnswerFile
from nlpkd.teachers import DecisionTeacher, FunctionTeacher
from nlpkd.teachers.base import _SAID, Answers

QUESTION = {"type": "choice", "instructions": "About what?", "criteria": {"sport": None, "art": None}}


def lines_of(path):
    """The answers that a file holds, after the line that says whose they are."""
    return [json.loads(line) for line in path.read_text().splitlines()[1:]]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_answers_that_are_under_way_and_keeps_them(tmp_path, number):
    Dataset.from_dict({"text": [f"text {n}" for n in range(20)]}).to_parquet(tmp_path / "texts.parquet")
    processes = process_server("nlpkd.pipeline.label", "transformers.decision.template_utils", "label_server")
    with LabelServer() as server:
        server.open.clear()
        process = processes.start(label_at, server.url, QUESTION, str(tmp_path), 4)
        deadline = time.monotonic() + 60
        while server.busy < 4 and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, number)
        time.sleep(1)
        assert process.is_alive() and len(server.times) == 4, "it waits for what is under way"
        server.open.set()
        process.join(60)
        assert process.exitcode not in (0, -signal.SIGKILL, None)
        assert len(server.times) == 4, "nothing more is asked"
    assert len(lines_of(tmp_path / "labels.parquet.answers.jsonl")) == 4


@pytest.mark.parametrize("failure", [TypeError, KeyboardInterrupt])
def test_an_answer_that_fails_leaves_the_others_that_are_under_way(tmp_path, failure):
    started = threading.Barrier(3)

    def one_fails(texts):
        started.wait(10)
        if texts == ["1"]:
            raise failure("odd")
        time.sleep(0.1)
        return [[0.25, 0.75]]

    teacher = FunctionTeacher(one_fails, ["a", "b"], rows_per_call=1)
    teacher.concurrency = 3
    answers = AnswerFile(tmp_path / "answers.jsonl", teacher)
    with pytest.raises(failure, match="odd"):
        answers.ask(["0", "1", "2", "3", "4", "5"])
    assert [line[1] for line in lines_of(answers.path)] == [[0.25, 0.75]] * 2
    assert len(answers.read()) == 2 and answers.requests == 3


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        (12, 12), (12.0, 12), (np.int64(12), 12), (1.5, None), (True, None), (10**30, None), (-1, None),
        (float("nan"), None), ("3", None), (None, None), ([1], None), ({}, None),
    ],
    ids=repr,
)  # fmt: skip
def test_whatever_a_server_counts_its_answer_is_kept_and_taken_again(tmp_path, told, kept):
    class Counts(FunctionTeacher):
        def answer(self, texts):
            return Answers(self.probabilities(texts), [told] * len(texts), [1] * len(texts))

    answers = AnswerFile(tmp_path / "answers.jsonl", Counts(lambda texts: [[0.25, 0.75]] * len(texts), ["a", "b"]))
    first = answers.ask(["0", "1"])
    assert answers.ask(["0", "1"]) == first and answers.requests == 1
    assert {each.input_tokens for each in first} == {kept} and {each.output_tokens for each in first} == {1}


def status(number):
    return lambda server, handler: server.send(handler, number, b"no", Location="/else") or True


def said(body, kind="application/json"):
    return lambda server, handler: server.send(handler, 200, body, Content_Type=kind) or True


LIMIT_INSIDE = said(b'{"error": {"message": "limit", "code": 429}}')
OVERLOAD_INSIDE = said(b'{"error": {"message": "overloaded"}}')
PAGE = said(b"<html>Log in</html>", "text/html")


@pytest.mark.parametrize("first", [None, status(500), status(422)], ids=["", "after 500", "after 422"])
@pytest.mark.parametrize(
    ("fault", "runs"),
    [
        *((each, 5) for each in (status(429), status(401), status(403), status(404), status(408), status(307))),
        (LIMIT_INSIDE, 5), (PAGE, 5), (status(400), 2), (status(422), 2), (status(500), 2), (OVERLOAD_INSIDE, 2),
    ],
)  # fmt: skip
def test_what_is_no_matter_of_a_text_is_never_held_against_it_and_what_is_said_of_further_runs_holds(
    tmp_path, caplog, fault, runs, first
):
    texts, asked = ["busy"], []
    with LabelServer() as server:
        teacher = DecisionTeacher("m", QUESTION, base_url=server.url, concurrency=1, max_retries=0)
        for run in range(5):
            caplog.clear()
            texts.append(f"text {run}")
            answers, before = AnswerFile(tmp_path / "answers.jsonl", teacher), len(server.times)
            left = answers.unanswered(texts)
            server.faults = [first if first and run == 0 else fault] if "busy" in left else []
            answers.ask(texts)
            assert len(server.times) == before + len(left)
            asked.append("busy" in left)
            again = AnswerFile(answers.path, teacher).unanswered(texts)
            assert f"The next run asks again about {len(again)} of them" in caplog.text
            assert ("about 1 none does" in caplog.text) == (not again)
        assert sum(asked) == runs
        server.faults, texts = [], ["busy"]
        if runs == 5:
            answers = AnswerFile(answers.path, teacher)
            assert answers.ask(texts)[0].probabilities is not None and answers.unanswered(texts) == []


def test_a_text_that_is_never_served_ends_no_run_that_has_nothing_else_to_ask(tmp_path):
    with LabelServer() as server:
        teacher = DecisionTeacher("m", QUESTION, base_url=server.url, concurrency=1, max_retries=0)
        for _ in range(3):
            server.faults = [status(403)]
            found = AnswerFile(tmp_path / "answers.jsonl", teacher).ask(["blocked", "text"])
            assert [each.refusal is None for each in found] == [False, True]
    assert len(server.times) == 4


def test_odd_counts_of_a_server_are_said_once(tmp_path, caplog):
    _SAID.clear()
    texts = [f"text {n}" for n in range(32)]
    with LabelServer(lambda request: right_answer(request) | {"usage": {"input_tokens": -1}}) as server:
        AnswerFile(tmp_path / "answers", DecisionTeacher("m", QUESTION, base_url=server.url)).ask(texts)
    assert caplog.text.count("no number of tokens") == 1


def test_answers_that_do_not_fit_on_the_disk_are_told_and_those_before_are_kept(tmp_path):
    teacher = FunctionTeacher(lambda texts: [[0.25, 0.75]] * len(texts), ["a", "b"], rows_per_call=1)
    path = tmp_path / "answers.jsonl"
    AnswerFile(path, teacher).ask(["0"])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 8, before[1]))
    try:
        with pytest.raises(OSError, match="answers were not kept. Free some space, and run again.*answers.jsonl"):
            AnswerFile(path, teacher).ask(["0", "1"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(AnswerFile(path, teacher).ask(["0", "1"])) == 2 and len(lines_of(path)) == 2

"""Answers are kept as they come, whatever ends a run."""

import json
import os
import signal
import threading
import time

import pytest
from datasets import Dataset
from label_server import LabelServer, label_at
from processes import server as process_server

from nlpkd.labelling.answers import AnswerFile
from nlpkd.teachers import FunctionTeacher

QUESTION = {"type": "choice", "instructions": "About what?", "criteria": {"sport": None, "art": None}}


def lines_of(path):
    """The answers that a file holds, after the line that says whose they are."""
    return [json.loads(line) for line in path.read_text().splitlines()[1:]]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_answers_that_are_under_way_and_keeps_them(tmp_path, number):
    Dataset.from_dict({"text": [f"text {n}" for n in range(20)]}).to_parquet(tmp_path / "texts.parquet")
    processes = process_server("nlpkd.pipeline.label", "transformers.decision.template_utils", "label_server")
    with LabelServer() as server:
        server.delay_s = 0.5
        process = processes.start(label_at, server.url, QUESTION, str(tmp_path), 4)
        deadline = time.monotonic() + 60
        while server.busy < 4 and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, number)
        process.join(60)
        assert process.exitcode not in (0, -signal.SIGKILL, None)
        assert len(server.times) == 4, "nothing more is asked"
    assert len(lines_of(tmp_path / "labels.parquet.answers.jsonl")) == 4


@pytest.mark.parametrize("failure", [ValueError, TypeError, KeyboardInterrupt])
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

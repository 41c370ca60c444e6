"""Labelling: every text asked once, kills survived, errors with their rows."""

import collections
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from datasets import Dataset
from label_server import LabelServer, broken, right_answer, too_many
from paths import ROOT

from nlpkd import label, read_splits
from nlpkd.pipeline.label import LabelPlan
from nlpkd.teachers import DecisionTeacher

QUESTION = {"type": "choice", "instructions": "About what?", "criteria": {"sport": None, "art": None}}
TEXTS = [{"text": "x" * (number % 9 + 1) + str(number), "id": number} for number in range(40)]


def labelled(path):
    rows = read_splits(path)[0]["train"]
    return rows, np.array([list(each.values()) for each in rows["probabilities"]])


def long_or_short(texts):
    return [[min(len(text), 10) / 10, 1 - min(len(text), 10) / 10] for text in texts]


def test_a_function_labels_rows_that_have_no_label_column(tmp_path):
    rows = [{"text": "abc", "id": 1}, {"text": "abcdef", "id": 2}, {"text": "abc", "id": 3}]
    seen = []

    def teacher(texts):
        seen.extend(texts)
        return long_or_short(texts)

    output = label(teacher, rows, output=tmp_path / "labels.parquet", classes=["long", "short"])
    found, probabilities = labelled(output)
    assert seen == ["abc", "abcdef"], "equal texts are asked about once"
    assert found["id"][:] == [1, 2, 3] and found["teacher"][0].endswith("teacher")
    assert list(found[0]["probabilities"]) == ["long", "short"]
    np.testing.assert_allclose(probabilities[:, 0], [0.3, 0.6, 0.3], atol=1e-6)
    label(teacher, rows, output=output, classes=["long", "short"])
    assert len(seen) == 2, "a second run asks nothing"


def test_a_server_labels_all_rows_through_its_faults(tmp_path):
    with LabelServer(faults=(broken, too_many("1"), broken)) as server:
        teacher = DecisionTeacher("m", QUESTION, base_url=server.url, concurrency=4)
        output = label(teacher, TEXTS, output=tmp_path / "labels.parquet")
    found, probabilities = labelled(output)
    np.testing.assert_allclose(probabilities[:, 0], [len(text) % 10 / 10 for text in found["text"]], atol=1e-6)
    assert sorted(server.states) == sorted(row["text"] for row in TEXTS) and server.most_busy <= 4


def test_killed_again_and_again_every_row_is_labelled_and_no_answer_is_asked_for_twice(tmp_path):
    Dataset.from_list(TEXTS).to_parquet(tmp_path / "texts.parquet")
    concurrency, kills = 2, 0
    with LabelServer() as server:
        server.delay_s = 0.15
        program = (
            "from nlpkd import label; from nlpkd.teachers import DecisionTeacher\n"
            f"teacher = DecisionTeacher('m', {QUESTION!r}, base_url={server.url!r}, concurrency={concurrency})\n"
            "label(teacher, 'texts.parquet', output='labels.parquet')"
        )
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        for _ in range(10):
            asked = len(server.states)
            process = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, env=environment)
            while process.poll() is None and len(server.states) < asked + 12:
                time.sleep(0.01)
            if process.poll() is not None:
                assert process.returncode == 0
                break
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    found, probabilities = labelled(tmp_path / "labels.parquet")
    assert kills >= 2 and len(found) == len(TEXTS)
    np.testing.assert_allclose(probabilities[:, 0], [len(row["text"]) % 10 / 10 for row in TEXTS], atol=1e-6)
    # Only a request that was under way when the kill came may be sent again.
    again = sum(count - 1 for count in collections.Counter(server.states).values())
    assert again <= kills * concurrency


def test_a_line_cut_short_is_asked_for_again_and_no_other(tmp_path):
    output, seen = tmp_path / "labels.parquet", []

    def teacher(texts):
        seen.extend(texts)
        return long_or_short(texts)

    label(teacher, TEXTS, output=output, classes=["long", "short"])
    answers = tmp_path / "labels.parquet.answers.jsonl"
    answers.write_bytes(answers.read_bytes()[:-20])
    seen.clear()
    label(teacher, TEXTS, output=output, classes=["long", "short"])
    assert seen == [TEXTS[-1]["text"]] and len(labelled(output)[0]) == len(TEXTS)


def test_an_answer_that_is_no_distribution_names_its_row_and_the_others_are_kept(tmp_path):
    def one_wrong(request):
        reply = right_answer(request)
        if request["state"] == TEXTS[5]["text"]:
            reply["answers"]["label"]["probabilities"]["sport"] = float("nan")
        return reply

    with LabelServer(one_wrong) as server:
        teacher = DecisionTeacher("m", QUESTION, base_url=server.url, concurrency=1)
        with pytest.raises(ValueError, match=r"row 5 \('xxxxxx5'\).*nan"):
            label(teacher, TEXTS, output=tmp_path / "labels.parquet")
        assert not (tmp_path / "labels.parquet").exists()
        server.answer = right_answer
        label(teacher, TEXTS, output=tmp_path / "labels.parquet")
    assert len(server.states) == len(TEXTS) + 1


def test_a_budget_stops_and_a_dry_run_says_what_is_left(tmp_path):
    output = tmp_path / "labels.parquet"
    with LabelServer() as server:
        teacher = DecisionTeacher("m", QUESTION, base_url=server.url)
        letters = sum(len(row["text"]) for row in TEXTS)
        assert label(teacher, TEXTS, output=output, dry_run=True) == LabelPlan(40, 40, 0, 40, letters)
        assert not server.times and not list(tmp_path.iterdir())
        with pytest.raises(ValueError, match="max_requests=15 was reached: 25 calls are left of 40"):
            label(teacher, TEXTS, output=output, max_requests=15)
        assert len(server.times) == 15
        plan = label(teacher, TEXTS, output=output, dry_run=True)
        assert (plan.known, plan.calls) == (15, 25) and "calls: 25" in plan.to_text()


def test_answers_of_another_teacher_are_not_taken(tmp_path):
    output = tmp_path / "labels.parquet"
    label(long_or_short, TEXTS, output=output, classes=["long", "short"])
    with pytest.raises(ValueError, match="another teacher or question"):
        label(long_or_short, TEXTS, output=output, classes=["short", "long"])


@pytest.mark.parametrize(
    ("rows", "settings", "told"),
    [
        ([{"text": "a"}], {}, "with classes= beside it"),
        ([{"words": "a"}], {"classes": ["a", "b"]}, "No column is known to be the text"),
        ([{"text": "a"}], {"classes": ["a", "b"], "text_column": "x"}, "There is no column 'x'"),
        ([{"text": " "}], {"classes": ["a", "b"]}, "empty texts"),
        ([{"text": "a", "teacher": "b"}], {"classes": ["a", "b"]}, r"columns \['teacher'\] already"),
    ],
)
def test_what_cannot_be_labelled_is_refused(tmp_path, rows, settings, told):
    with pytest.raises(ValueError, match=told):
        label(long_or_short, rows, output=tmp_path / "labels.parquet", **settings)

"""Labelling from the command line, and a distillation in one command."""

import json
import math
import os
import re

import pytest
import typer
import yaml
from label_server import LabelServer
from samples import raw_rows, tiny_bert
from typer.testing import CliRunner

from nlpkd import read_splits
from nlpkd.cli import app

QUESTION = "type: choice\ninstructions: Is it good?\ncriteria:\n  pos: Praise\n  neg:\n"

CHAT = "teacher: chat\nmodel: m\nquestion: Is it good?\nclasses: [pos, neg]\norders: 1\n"


def judge(request):
    """Say what the text's only word of judgement says."""
    good = any(word in request["state"].split() for word in ("good", "great", "fine"))
    probabilities = {"neg": 0.05 if good else 0.95, "pos": 0.95 if good else 0.05}
    return {"answers": {"label": {"type": "choice", "probabilities": probabilities}}}


@pytest.fixture
def folder(tmp_path, tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "question.yaml").write_text(QUESTION)
    (tmp_path / "teacher.yaml").write_text(CHAT)
    raw_rows(120, seed=1).remove_columns("label").to_csv("texts.csv")
    validation = raw_rows(40, seed=2)
    names = [validation.features["label"].names[each] for each in validation["label"]]
    validation.remove_columns("label").add_column("label", names).to_csv("dev.csv")
    tiny_bert().save_pretrained("small")
    tokenizer.save_pretrained("small")
    return tmp_path


def run(*words):
    return CliRunner().invoke(app, list(words), catch_exceptions=True)


def test_texts_are_labelled_after_a_dry_run(folder, caplog):
    with LabelServer(judge) as server:
        words = ["label", "--data", "texts.csv", "--decision-model", "m", "--question", "question.yaml"]
        words += ["--decision-url", server.url, "--output", "labels.parquet"]
        planned = run(*words, "--dry-run")
        assert "rows: 120" in planned.output and not server.times
        done = run(*words)
        assert done.exit_code == 0, done.exception
        asked = len(server.times)
        fitted = run(*words, "--gold", "dev.csv")
        assert fitted.exit_code == 0 and "Fitted on 40 gold labels: temperature" in caplog.text
        assert asked <= len(server.times) <= asked + 40, "the answers that were kept are not asked for again"
    rows = read_splits("labels.parquet")[0]["train"]
    assert len(rows) == 120 and rows[0]["teacher"] == "m"
    assert json.loads(rows[0]["question"])["instructions"] == "Is it good?"


def test_columns_are_named_for_the_gold_rows_too(folder, caplog):
    rows = read_splits("dev.csv")[0]["train"]
    rows.rename_column("text", "remark").add_column("class", ["neg"] * len(rows)).to_csv("own.csv")
    read_splits("texts.csv")[0]["train"].rename_column("text", "remark").to_csv("remarks.csv")
    with LabelServer(judge) as server:
        words = ["label", "--decision-model", "m", "--question", "question.yaml", "--decision-url", server.url]
        words += ["--output", "labels.parquet", "--text-column", "remark", "--label-column", "label"]
        named = run(*words, "--data", "remarks.csv", "--gold", "own.csv")
        assert named.exit_code == 0, named.exception
        right = re.search(r"Fitted on 40 gold labels: (.*)", caplog.text)[0]
        caplog.clear()
        # These rows have other columns, which are recognised.
        run(*words, "--data", "remarks.csv", "--gold", "dev.csv")
        assert right in caplog.text
        without = run(*words[:-2], "--data", "remarks.csv", "--gold", "own.csv")
        assert isinstance(without.exception, ValueError) and "--label-column" in str(without.exception)


def chat(request):
    """Say the letter of what the text's only word of judgement says, and count tokens."""
    prompt = request["messages"][0]["content"]
    good = any(word in prompt.split("\n")[0].split() for word in ("good", "great", "fine"))
    letter = re.search(rf"^([AB])\. {'pos' if good else 'neg'}", prompt, re.MULTILINE)[1]
    token = {"token": letter, "logprob": math.log(0.9), "bytes": None}
    return {
        "id": "1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{
            "index": 0, "message": {"role": "assistant", "content": letter}, "finish_reason": "length",
            "logprobs": {"content": [token | {"top_logprobs": [token]}]},
        }],
        "usage": {"prompt_tokens": 50, "completion_tokens": 1, "total_tokens": 51},
    }  # fmt: skip


def test_a_file_names_another_kind_of_teacher_and_its_tokens_are_priced(folder):
    with LabelServer(chat) as server:
        (folder / "teacher.yaml").write_text(CHAT + f"base_url: {server.url}\napi_key: $CHAT_KEY\n")
        words = ["label", "--data", "texts.csv", "--question", "teacher.yaml", "--output", "labels.parquet"]
        words += ["--input-price", "2", "--output-price", "10"]
        done = run(*words)
        assert "CHAT_KEY is an environment variable that is not set" in str(done.exception)
        os.environ["CHAT_KEY"] = "k"
        try:
            planned = run(*words, "--dry-run")
            assert (
                re.search(
                    r"requests: \d+\ninput tokens: about [\d,]+\noutput tokens: about \d+\ncost: about 0\.0",
                    planned.output,
                )
                and not server.times
            )
            assert run(*words).exit_code == 0
            done = run(
                "distill", "--question", "teacher.yaml", "--train", "texts.csv", "--validation", "dev.csv",
                "--student", "small", "--output-dir", "student", "--objectives", "hinton", "--num-train-epochs", "1",
                "--max-length", "64", "--set", "bf16=False", "--set", "report_to=none",
            )  # fmt: skip
        finally:
            del os.environ["CHAT_KEY"]
    assert done.exit_code == 0, done.exception
    rows = read_splits("labels.parquet")[0]["train"]
    texts = len(set(rows["text"][:]))
    assert sum(rows["teacher_input_tokens"][:]) == 50 * texts
    assert sum(rows["teacher_cost"][:]) == pytest.approx(texts * (50 * 2 + 10) / 1e6)
    record = json.loads((folder / "student/report.json").read_text())
    assert record["run"]["teacher"]["name"] == "m" and "teacher" in record["candidates"]


@pytest.mark.parametrize(("words", "most"), [([], 3), (["--concurrency", "1"], 1), (["--concurrency", "2"], 2)])
def test_requests_run_side_by_side_as_the_option_says_and_else_as_the_file_says(folder, words, most):
    (folder / "few.csv").write_text("text\n" + "\n".join(f"good film {number}" for number in range(9)))
    with LabelServer(chat) as server:
        server.delay_s = 0.05
        (folder / "teacher.yaml").write_text(CHAT + f"base_url: {server.url}\nconcurrency: 3\n")
        done = run("label", "--data", "few.csv", "--question", "teacher.yaml", "--output", "labels.parquet", *words)
    assert done.exit_code == 0 and min(most, 2) <= server.most_busy <= most


def test_one_command_distils_texts_without_labels(folder):
    with LabelServer(judge) as server:
        done = run(
            "distill", "--decision-model", "m", "--question", "question.yaml", "--decision-url", server.url,
            "--train", "texts.csv", "--validation", "dev.csv", "--student", "small", "--output-dir", "student",
            "--objectives", "hinton", "--num-train-epochs", "1", "--max-length", "64",
            "--set", "bf16=False", "--set", "report_to=none",
        )  # fmt: skip
    assert done.exit_code == 0, done.exception
    assert json.loads((folder / "student/report.json").read_text())["run"]["teacher"]["name"] == "m"


def test_a_log_of_decisions_is_a_training_file(folder):
    question = yaml.safe_load(QUESTION)
    rows = [
        {"request": request, "response": {"model": "m", "answers": {"tone": judge(request)["answers"]["label"]}}}
        for text in read_splits("texts.csv")[0]["train"]["text"][:]
        for request in [{"model": "m", "state": text, "questions": {"tone": question}}]
    ]
    (folder / "decisions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["distill", "--train", "decisions.jsonl", "--validation", "dev.csv", "--student", "small"]
    words += ["--objectives", "hinton", "--num-train-epochs", "6", "--learning-rate", "5e-3", "--batch-size", "8"]
    words += ["--max-length", "64"]
    words += ["--output-dir", "student", "--set", "bf16=False", "--set", "report_to=none"]
    assert "is a log of decisions" in str(run(*words).exception)
    assert "is a log of decisions" in str(run(*words, "--question", "tone", "--teacher", "t").exception)
    held_out = ["--test" if word == "--validation" else word.replace("dev.csv", "decisions.jsonl") for word in words]
    done = run(*held_out, "--question", "tone", "--max-steps", "1")
    assert done.exit_code == 0, done.exception
    assert json.loads((folder / "student/report.json").read_text())["run"]["data"]["split"] == "test"
    done = run(*words, "--question", "tone")
    assert done.exit_code == 0, done.exception
    (folder / "decisions.jsonl").rename("decisions.json")
    renamed = [word.replace("decisions.jsonl", "decisions.json") for word in words]
    assert "unless --train is a log of decisions (.jsonl)" in str(run(*renamed, "--question", "tone").exception)
    report = json.loads((folder / "student/report.json").read_text())
    assert report["candidates"]["student"]["quality"]["accuracy"]["value"] > 0.8


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--decision-model", "m"], "belong together"),
        (["--gold", "dev.csv"], "corrects the teacher of --question, which is missing"),
        (["--question", "question.yaml"], "belong together"),
        (["--decision-url", "http://x"], "which is missing"),
        (["--decision-model", "m", "--question", "question.yaml", "--teacher", "t"], "is the teacher"),
        (["--decision-model", "m", "--question", "dev.csv"], "must be a mapping"),
        (["--decision-model", "m", "--question", "teacher.yaml"], "names the teacher itself"),
    ],
)
def test_options_that_do_not_fit_are_refused(folder, words, told):
    done = run("distill", *words, "--train", "texts.csv", "--output-dir", "student")
    assert told in str(done.exception)


def paid(folder, server, **settings):
    """The options of a teacher of a server, and of gold rows."""
    settings = {"base_url": f"{server.url}", "api_key": "k", "max_retries": 0} | settings
    (folder / "teacher.yaml").write_text(CHAT + yaml.safe_dump(settings))
    return ["--question", "teacher.yaml", "--gold", "gold.csv"]


@pytest.fixture
def gold(folder):
    rows = read_splits("dev.csv")[0]["train"]
    texts = [f"{text} gold {number}" for number, text in enumerate(rows["text"])]
    rows.remove_columns("text").add_column("text", texts).to_csv("gold.csv")


LIMITED = {
    "label": ["label", "--data", "texts.csv", "--output", "labels.parquet"],
    "distill": [
        "distill", "--train", "texts.csv", "--validation", "dev.csv", "--student", "small", "--output-dir", "student",
        "--objectives", "hinton", "--max-steps", "1", "--max-length", "64", "--set", "report_to=none",
    ],
    "check-labels": ["check-labels", "--data", "dev.csv", "--output", "wrong.csv"],
}  # fmt: skip


@pytest.mark.parametrize("command", LIMITED)
def test_all_that_asks_stops_at_the_limits_and_goes_on_behind_them(folder, gold, command):
    with LabelServer(chat) as server:
        words = [*LIMITED[command], *paid(folder, server)]
        words = words[:-2] if command == "check-labels" else words
        done = run(*words, "--max-requests", "4")
        assert "max_requests=4 was reached" in str(done.exception) and len(server.times) == 4
        done = run(*words, "--max-cost", "0.02", "--input-price", "100", "--output-price", "100")
        assert "max_cost=0.02" in str(done.exception) and len(server.times) == 4, "they have cost more by now"
        done = run(*words, "--max-requests", "7")
        assert "max_requests=7 was reached" in str(done.exception) and len(server.times) == 11
        assert run(*words, "--max-requests", "1000").exit_code == 0


def test_a_dry_run_with_gold_rows_counts_what_the_run_asks(folder, gold):
    with LabelServer(chat) as server:
        words = [*LIMITED["label"], *paid(folder, server)]
        planned = run(*words, "--dry-run")
        assert planned.exit_code == 0 and not server.times
        assert run(*words).exit_code == 0
        assert f"requests: {len(server.times)}\n" in planned.output


@pytest.mark.parametrize(
    ("command", "wrong", "told"),
    [
        ("label", ["--output", "labels.csv"], "must be a .parquet file"),
        ("label", ["--max-cost", "1"], "needs the prices"),
        ("label", ["--data", "nosuch.csv"], "nosuch.csv"),
        ("label", ["--select", "random"], "select came without one"),
        ("label", ["--rounds", "3"], "rounds came without one"),
        ("distill", ["--max-cost", "1"], "needs the prices"),
        ("distill", ["--student", "layers:3"], "there is none"),
        ("distill", ["--gold", "nosuch.csv"], "nosuch.csv"),
        ("distill", ["--label-names", "neg,pos"], "leave problem_type and label_names out"),
        ("check-labels", ["--max-cost", "1"], "needs the prices"),
    ],
)
def test_wrong_options_are_refused_before_a_gold_row_is_paid_for(folder, gold, command, wrong, told):
    with LabelServer(chat) as server:
        words = [*LIMITED[command], *paid(folder, server)]
        words = words[:-2] if command == "check-labels" else words
        if wrong[0] in words:
            place = words.index(wrong[0])
            del words[place : place + 2]
        done = run(*words, *wrong)
    assert told in str(done.exception) and not server.times


@pytest.mark.parametrize("command", ["distill", "check-labels"])
def test_limits_without_a_teacher_that_is_asked_are_refused(folder, command):
    done = run(*LIMITED[command], "--max-requests", "3")
    assert isinstance(done.exception, ValueError) and "max" in str(done.exception)


def test_gold_rows_are_not_overwritten(folder):
    raw_rows(40, seed=2).to_parquet("gold.parquet")
    before = (folder / "gold.parquet").read_bytes()
    words = ["--question", "teacher.yaml", "--gold", str(folder / "gold.parquet")]
    done = run("label", "--data", "texts.csv", *words, "--output", "gold.parquet")
    assert "gold=" in str(done.exception) and "would be overwritten" in str(done.exception)
    assert (folder / "gold.parquet").read_bytes() == before


@pytest.mark.parametrize("command", ["label", "check-labels", "distill"])
def test_a_limit_without_prices_is_refused_by_the_options_that_give_them(command, folder):
    rows = {"label": ["--data", "texts.csv", "--output", "l.parquet"]}
    rows["check-labels"] = ["--data", "dev.csv", "--output", "w.csv"]
    rows["distill"] = ["--train", "texts.csv", "--validation", "dev.csv", "--output-dir", "out"]
    refused = run(command, *rows[command], "--decision-model", "m", "--question", "question.yaml",
                  "--decision-url", "http://127.0.0.1:9", "--max-cost", "1")  # fmt: skip
    named = set(re.findall(r"--[a-z-]+", str(refused.exception)))
    taken = {flag for each in typer.main.get_command(app).commands[command].params for flag in each.opts}
    assert {"--input-price", "--output-price"} <= named <= taken, refused.exception

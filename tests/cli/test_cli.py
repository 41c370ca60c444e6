"""The command line through real processes: teacher, student, report, push; and one line for what goes wrong."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import inspect
import json
import os
import pkgutil
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
import yaml
from commands import Command, finish, start
from hub_server import WRITE_TOKEN, HubServer, hub_environment
from paths import ROOT
from safetensors import safe_open
from samples import QUIET, raw_rows, tiny_bert
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from nlpkd import DistillationConfig, make_student
from nlpkd.cli import app, options, parsing
from nlpkd.cli.parsing import HIDDEN, SETTINGS, TrainingCommand
from nlpkd.cli.settings import run_config, save_config
from nlpkd.comparison.points import Point
from nlpkd.comparison.table import FrontierReport
from nlpkd.data.arguments import DataArguments
from nlpkd.evaluation.records import Interval
from nlpkd.evaluation.report import EvaluationReport

# The command `evaluate`, with which reports are compared, has its own number of resamples.
SETTINGS_GIVEN = {**QUIET, "latency_runs": 2, "bootstrap_samples": 1000}
QUICK = ["--batch-size", "8", "--learning-rate", "2e-3", "--max-length", "32"]
QUICK += [word for name, value in SETTINGS_GIVEN.items() for word in ("--set", f"{name}={str(value).lower()}")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer) -> Path:
    """A backbone, and GLUE's kind of tsv with string labels."""
    folder = tmp_path_factory.mktemp("cli")
    tiny_bert(layers=4).base_model.save_pretrained(folder / "backbone")
    tokenizer.save_pretrained(folder / "backbone")
    for split, rows in (("train", raw_rows(160, seed=1)), ("dev", raw_rows(41, seed=7))):
        lines = [f"{row['text']}\t{'good' if row['label'] else 'bad'}" for row in rows]
        (folder / f"{split}.tsv").write_text("\n".join(["sentence\tverdict", *lines]) + "\n")
    return folder


@pytest.fixture(scope="module")
def missing_file(folder) -> Command:
    """A command that can't work, started early: it needs nothing but time."""
    arguments = ["distill", "--teacher", "backbone", "--train", "trian.tsv", "--output-dir", "x"]
    return Command(*arguments, cwd=folder)


@pytest.fixture(scope="module")
def teacher(folder, missing_file) -> tuple[Path, str]:
    """The teacher that `nlpkd train-teacher` leaves, and what it prints."""
    process = Command(
        "train-teacher", "--model", "backbone", "--train", "train.tsv", "--validation-split", "0.2",
        "--text-column", "sentence", "--label-column", "verdict", "--output-dir", "teacher",
        "--num-train-epochs", "10", "--window-stride", "4", "--class-weights", "balanced", "--seed", "7", *QUICK,
        cwd=folder,
    )  # fmt: skip
    code, out, err = finish(process)
    assert code == 0, err
    return folder / "teacher", out


@pytest.fixture(scope="module")
def student(folder, teacher) -> tuple[Path, str]:
    """The student that `nlpkd distill` leaves, and what it prints."""
    process = Command(
        "distill", "--teacher", "teacher", "--student", "layers:2", "--train", "train.tsv", "--validation", "dev.tsv",
        "--label-column", "verdict", "--output-dir", "student", "--baseline", "--num-train-epochs", "2", *QUICK,
        cwd=folder,
    )  # fmt: skip
    code, out, err = finish(process)
    assert code == 0, err
    return folder / "student", out


def test_train_teacher_saves_a_teacher_and_prints_its_metrics(teacher):
    path, printed = teacher
    metrics = json.loads((path / "eval_results.json").read_text())
    assert metrics["eval_accuracy"] > 0.9
    assert f"On the held-out rows the teacher's accuracy is {metrics['eval_accuracy']:.3f}." in printed
    lines = [line.split() for line in printed.splitlines()]
    (table,) = [number for number, words in enumerate(lines) if words[:3] == ["accuracy", "macro", "F1"]]
    assert lines[table + 1][0] == f"{metrics['eval_accuracy']:.3f}"
    assert "The teacher is in teacher, with eval_results.json (its metrics)." in printed and "{\n" not in printed
    model = AutoModelForSequenceClassification.from_pretrained(path)
    assert model.config.id2label == {0: "bad", 1: "good"}
    following = shlex.split(printed.partition("Next:\n")[2])
    assert following[following.index("distill") :] == [
        "distill", "--teacher", "teacher", "--train", "train.tsv", "--text-column", "sentence", "--label-column",
        "verdict", "--max-length", "32", "--window-stride", "4", "--validation-split", "0.2", "--class-weights",
        "balanced", "--seed", "7", "--baseline", "--output-dir", "student",
    ]  # fmt: skip


def test_distill_saves_a_student_and_prints_what_the_report_found_and_what_comes_next(student):
    path, printed = student
    _, info = AutoModelForSequenceClassification.from_pretrained(path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    report = EvaluationReport.load(path)
    check_shown(report, printed)
    assert (path / "report.md").read_text() == report.to_markdown() and "# Evaluation report" not in printed
    assert "The student is in student, with report.md (the whole report)" in printed
    following = [shlex.split(line) for line in printed.partition("Next:\n")[2].splitlines()]
    rows = ["--data", "dev.tsv", "--label-column", "verdict", "--max-length", "32"]
    assert [words[-len(rows) - 3 :] for words in following[:2]] == [
        ["student", "--teacher", "teacher", *rows],
        ["export", "student", "--int8", *rows],
    ]
    report = json.loads((path / "report.json").read_text())
    assert list(report["candidates"]) == ["teacher", "student", "no_teacher", "same_start"]
    assert report["run"]["command"].startswith("nlpkd distill --teacher teacher --student layers:2 --train train.tsv")
    assert report["run"]["settings"]["batch_size"] == 8 and report["run"]["settings"]["mixed_precision"] == "no"


def check_shown(report: EvaluationReport, printed: str) -> None:
    """Check that a table with each candidate's figures was printed, and its verdict in one sentence."""
    for name, candidate in report.candidates.items():
        (row,) = [line for line in printed.splitlines() if line.startswith(f"{name} ")]
        assert str(candidate.quality["accuracy"]) in row and f"{candidate.latency[0].p50_ms:.2f}" in row
    (told,) = [line for line in printed.splitlines() if line.startswith("The student keeps")]
    assert told.count(". ") == 0 and told.partition(",")[0] in report.verdict()


def test_a_student_is_measured_pushed_and_refused_each_in_one_command(folder, student, teacher):
    with HubServer() as hub:
        home = folder / "home"
        processes = {
            "evaluate": Command(
                "evaluate", "student", "student/baseline/no_teacher", "student/baseline/same_start",
                "--teacher", "teacher", "--data", "dev.tsv", "--label-column", "verdict", "--max-length", "32",
                "--output-dir", "measured", "--latency-runs", "2", cwd=folder,
            ),
            "push": Command("push", "student", "--repo-id", "alice/tiny", cwd=folder,
                           environment=hub_environment(hub, home, WRITE_TOKEN)),
            "push without token": Command("push", "student", "--repo-id", "alice/other", cwd=folder,
                                         environment=hub_environment(hub, home)),
        }  # fmt: skip
        done = {name: finish(process) for name, process in processes.items()}
        pushed = hub.files("alice/tiny") if ("model", "alice/tiny") in hub.repos else {}
        assert ("model", "alice/other") not in hub.repos
    code, out, err = done["evaluate"]
    assert code == 0, err
    measured, first = (json.loads((folder / name / "report.json").read_text()) for name in ("measured", "student"))
    check_shown(EvaluationReport.load(folder / "measured"), out)
    assert "McNemar" in (folder / "measured" / "report.md").read_text()
    assert "The report is in measured, with report.md" in out
    assert [line for line in err.splitlines() if re.fullmatch(r"Measuring student, .* on 41 rows: \d.* s", line)]
    for role in ("teacher", "student", "no_teacher", "same_start"):
        assert measured["candidates"][role]["quality"] == first["candidates"][role]["quality"]
    code, out, err = done["push"]
    assert code == 0, err
    assert "/alice/tiny/commit/" in out
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "report.json"} <= set(pushed)
    assert not [name for name in pushed if name.endswith(".bin") or "/" in name or name == ".lock"]
    assert WRITE_TOKEN not in out + err
    check_one_line(*done["push without token"], "was not pushed to alice/other")


def test_a_run_keeps_its_settings_and_is_run_again_from_them(folder, student):
    """The second run has its first one's options, but for the flag that goes over them."""
    kept = yaml.safe_load((folder / "student" / "run.yaml").read_text())
    assert kept["command"] == "distill" and kept["train"] == "train.tsv" and kept["label_column"] == ["verdict"]
    given = {"bf16": False, "report_to": "none", "disable_tqdm": True, "use_cpu": True}
    assert {name: kept[name] for name in given} == given
    assert kept["batch_size"] == 8 and kept["baseline"] is True
    code, _, err = finish(
        Command("distill", "--config", "student/run.yaml", "--output-dir", "again", "--seed", "42", cwd=folder)
    )
    assert code == 0, err
    first, again = (json.loads((folder / name / "report.json").read_text()) for name in ("student", "again"))
    for role in ("student", "no_teacher", "same_start"):
        assert again["candidates"][role]["quality"] == first["candidates"][role]["quality"]
    assert again["run"]["settings"] == first["run"]["settings"]
    changed = yaml.safe_load((folder / "again" / "run.yaml").read_text())
    assert changed == kept | {"output_dir": "again"}


def test_a_dry_run_tells_what_a_run_takes_and_leaves_nothing(folder, teacher):
    code, out, err = finish(
        Command(
            "distill",
            "--teacher",
            "teacher",
            "--student",
            "layers:2",
            "--train",
            "train.tsv",
            "--validation",
            "dev.tsv",
            "--label-column",
            "verdict",
            "--output-dir",
            "planned",
            "--baseline",
            "--num-train-epochs",
            "2",
            "--dry-run",
            *QUICK,
            cwd=folder,
        )  # fmt: skip
    )
    assert code == 0, err
    big = AutoModelForSequenceClassification.from_pretrained(folder / "teacher")
    for name, model in {"teacher": big, "student": make_student(big, "layers:2")}.items():
        assert f"{name}: {sum(each.numel() for each in model.parameters()):,} parameters" in out
    # 160 rows in batches of 8, twice.
    assert re.search(r"^40 steps of \d+ ms", out, re.MULTILINE) and "2 baselines, each: 40 steps" in out
    assert "training rows: 160; trainings: 1" in out and "train_runtime" not in out
    assert not (folder / "planned").exists()


def test_a_dry_run_of_a_teacher_and_of_a_search_trains_nothing_either(folder, teacher, monkeypatch):
    monkeypatch.chdir(folder)
    rest = [each for each in QUICK if each not in ("--learning-rate", "2e-3")]
    data = ["--train", "train.tsv", "--validation", "dev.tsv", "--label-column", "verdict", "--dry-run", *rest]
    epochs = ["--num-train-epochs", "2", "--output-dir", "planned"]
    tuned = CliRunner().invoke(
        app, ["tune", "--teacher", "teacher", "--layers", "1", "--layers", "2", "--n-trials", "5", *epochs, *data]
    )
    fine = CliRunner().invoke(app, ["train-teacher", "--model", "teacher", *epochs, *data])
    with safe_open(folder / "teacher" / "model.safetensors", framework="pt") as weights:
        size = sum(weights.get_tensor(key).numel() for key in weights.keys())  # noqa: SIM118
    for outcome, trainings, name in ((tuned, 5, "teacher"), (fine, 1, "model")):
        assert outcome.exit_code == 0, outcome.output
        assert f"{name}: {size:,} parameters" in outcome.output
        assert re.search(r"^40 steps of \d+ ms", outcome.output, re.MULTILINE)
        assert f"training rows: 160; trainings: {trainings}\n" in outcome.output
    for wrong, message in (
        (["--search", "learning_rat=1..2"], "'learning_rat' is neither a DistillationConfig field nor"),
        (["--objectives", "tinybert"], "has 2 stages"),
        (["--dataset-config", "sst2"], "dataset_config and dataset_revision belong to a Hub dataset"),
    ):
        refused = CliRunner().invoke(app, ["tune", "--teacher", "teacher", *epochs, *data, *wrong])
        assert refused.exit_code != 0 and message in str(refused.exception), wrong
    longest = CliRunner().invoke(
        app, ["tune", "--teacher", "teacher", *epochs, *data, "--search", "num_train_epochs=1,5"]
    )
    assert re.search(r"^100 steps of ", longest.output, re.MULTILINE)
    # Of a search the deepest student is planned.
    deepest = make_student(AutoModelForSequenceClassification.from_pretrained(folder / "teacher"), 2)
    assert f"student: {deepest.num_parameters():,} parameters" in tuned.output
    assert not (folder / "planned").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("teachr: x", "['teachr'], which distill does not take"),
        ("command: evaluate", "of the command evaluate, not of distill"),
        ("- a\n- b", "must hold options by name, found list"),
        ("a: [", "can't be read"),
        ("train: [a.csv, b.csv]", "train takes a single value, found ['a.csv', 'b.csv']"),
        ("train: {a: b.csv}", "train takes a single value"),
        ("train: a.csv\nseed: 1\ntrain: b.csv", "the key 'train' is there twice"),
        ("learning-rate: 1\nlearning_rate: 2", "has an option twice, as 'learning-rate' and 'learning_rate'"),
        ("batch_size: 1\nper-device-train-batch-size: 2", "as 'batch_size' and 'per-device-train-batch-size'"),
        ("weight-decay: 1\nweight_decay: 2", "has an option twice, as 'weight-decay' and 'weight_decay'"),
        ("set: {weight-decay: 1, weight_decay: 2}", "has an option twice, as 'weight-decay' and 'weight_decay'"),
        ("weight-decay: 1\nset: {weight_decay: 2}", "has an option twice, as 'weight_decay' and 'weight_decay'"),
        ("report_to: [none, null]", "report_to has null among its values"),
        ("label_names: [a, null]", "label_names has null among its values"),
        ("teachr: null", "['teachr'], which distill does not take"),
        (None, "can't be read"),
    ],
)
def test_a_wrong_config_is_refused(text, message, tmp_path, monkeypatch, capsys):
    from nlpkd.cli import main

    monkeypatch.setenv("COLUMNS", "400")
    if text is not None:
        (tmp_path / "run.yaml").write_text(text)
    monkeypatch.setattr(sys, "argv", ["nlpkd", "distill", "--config", str(tmp_path / "run.yaml")])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["teacher: x", "teacher: [x]"])
def test_a_config_may_name_one_of_what_can_be_several(text, tmp_path):
    script = typer.Typer()

    @options.command(script, cls=TrainingCommand)
    def show(context: typer.Context, teacher: Annotated[list[str], typer.Option()], **shared: Any) -> None:
        typer.echo(json.dumps(options.arguments(context)))

    (tmp_path / "run.yaml").write_text(text + "\nset: {seed: 3}")
    outcome = CliRunner().invoke(script, ["--config", str(tmp_path / "run.yaml")])
    assert outcome.exit_code == 0, outcome.output
    assert json.loads(outcome.output) == {"teacher": ["x"], "seed": 3}


def test_a_config_s_yes_and_no_switch_an_option_and_stay_words_where_it_takes_words(tmp_path):
    script = typer.Typer()

    @options.command(script, cls=TrainingCommand)
    def show(
        context: typer.Context, words: Annotated[list[str], typer.Option()], fast: bool = False, **_: Any
    ) -> None:
        typer.echo(json.dumps(options.arguments(context)))

    text = "words: [no, yes]\nfast: yes\ngradient_checkpointing: no\nlogging_first_step: yes"
    (tmp_path / "run.yaml").write_text(text)
    outcome = CliRunner().invoke(script, ["--config", str(tmp_path / "run.yaml")])
    assert outcome.exit_code == 0, outcome.output
    wanted = {"words": ["no", "yes"], "fast": True, "gradient_checkpointing": False, "logging_first_step": True}
    assert json.loads(outcome.output) == wanted


def test_a_token_is_not_kept_with_the_settings_and_asked_for_again(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    script = typer.Typer()

    @options.command(script, cls=TrainingCommand)
    def save(context: typer.Context, decision_url: str = "", **shared: Any) -> None:
        save_config(context, tmp_path / "run.yaml")

    for flags in (["--set", f"hub_token={WRITE_TOKEN}", "--set", "seed=1"], ["--hub-token", WRITE_TOKEN, "--seed=1"]):
        assert CliRunner().invoke(script, flags).exit_code == 0
        kept = (tmp_path / "run.yaml").read_text()
        told = {"command": "save", "decision_url": "", "hub_token": HIDDEN, "seed": 1}
        assert WRITE_TOKEN not in kept and yaml.safe_load(kept) == told
    again = ["--config", str(tmp_path / "run.yaml")]
    refused = CliRunner().invoke(script, again)
    assert refused.exit_code == 2 and "run.yaml does not hold the secret in hub_token: give it as" in refused.output
    url = "http://me:secretWord9@host/v1"
    assert CliRunner().invoke(script, [*again, "--hub-token", WRITE_TOKEN, "--decision-url", url]).exit_code == 0
    assert "secretWord9" not in (tmp_path / "run.yaml").read_text()
    refused = CliRunner().invoke(script, [*again, "--hub-token", WRITE_TOKEN])
    assert refused.exit_code == 2 and "the secret in decision_url: give it as --decision-url" in refused.output


def test_what_is_kept_of_a_run_is_what_it_was_given(tmp_path, monkeypatch):
    """A word that is a password somewhere, and a folder that begins like a key, are paths here."""
    script = typer.Typer()

    @options.command(script)
    def save(
        context: typer.Context,
        train: Annotated[str, typer.Argument()],
        output_dir: Annotated[Path, typer.Option()],
        names: Annotated[list[str], typer.Option()],
        **_: Any,
    ) -> None:
        save_config(context, tmp_path / "run.yaml")

    monkeypatch.setenv("POSTGRES_PASSWORD", "postgres")
    monkeypatch.setenv("APP_SECRET", "Xy12postgres-train.csv")
    given = {"train": "Xy12postgres-train.csv", "output_dir": "runs/sk-learn-comparison-run1"}
    given |= {"names": ["hf_" + "a" * 20]}
    words = ["--output-dir", given["output_dir"], "--names", given["names"][0], given["train"]]
    assert CliRunner().invoke(script, words).exit_code == 0
    assert yaml.safe_load((tmp_path / "run.yaml").read_text()) == {"command": "save"} | given


def parsed(command: str, *arguments: str) -> dict:
    """What a command is called with."""
    group = typer.main.get_command(app)
    own = group.commands[command]
    context = own.make_context(command, list(arguments))
    return context.params | context.meta.get(SETTINGS, {})


def test_flags_go_over_a_files_settings_one_by_one(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("set: {report_to: none, weight_decay: 0.1}\nsearch: {learning_rate: 1e-5..1e-4}\nteacher: t\n")
    given = ["--config", str(path), "--train", "x.csv", "--output-dir", "y"]
    kept = parsed("tune", *given)
    assert kept["report_to"] == "none" and kept["weight_decay"] == 0.1
    changed = parsed("tune", *given, "--weight-decay", "0.01", "--search", "cross_entropy.weight=0..1")
    assert changed["report_to"] == "none" and changed["weight_decay"] == 0.01
    assert parsed("tune", *given, "--set", "weight_decay=0.02")["weight_decay"] == 0.02
    assert changed["search"] == ["learning_rate=1e-5..1e-4", "cross_entropy.weight=0..1"]
    assert parsed("tune", *given, "--search", "learning_rate=1,2")["search"] == ["learning_rate=1,2"]
    path.write_text("set: 5")
    with pytest.raises(Exception, match="set of .* must hold options by name, found int"):
        parsed("tune", *given, "--teacher", "t", "--set", "weight_decay=0.01")
    path.write_text("search: 5")
    with pytest.raises(Exception, match="values by name here, found 5"):
        parsed("tune", *given, "--teacher", "t", "--search", "learning_rate=1,2")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["--batch-size", "4"], ["--per_device_train_batch_size=8"]),
        (["--config", "a.yaml"], ["--config=b.yaml"]),
        (["--test", "a.csv"], ["--test", "b.csv"]),
        (["--override", "static.seed=1"], ["--override", "static.seed=2"]),
        (["--override", "static.warmup-steps=1"], ["--override", "static.warmup_steps=2"]),
    ],
)
def test_two_values_of_one_option_are_refused_with_both(first, second, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        Path(f"{name}.yaml").write_text("seed: 3")
    given = ["--teacher", "t", "--train", "x.csv", "--output-dir", "y"]
    with pytest.raises(Exception, match="are two values of one") as refused:
        parsed("frontier", *given, *first, *second)
    assert first[-1] in str(refused.value) and second[-1] in str(refused.value)
    assert parsed("frontier", *given, *first, *first)
    assert parsed("frontier", *given, "--seed", "1", "--seed", "2")["seed"] == 2


@pytest.mark.parametrize(
    "again", [["--test=a.csv"], ["--test", "a.csv"], ["--batch-size=4"], ["--per_device_train_batch_size=4"]]
)
def test_one_value_that_is_written_twice_is_taken_however_it_is_written(again):
    given = ["--teacher", "t", "--train", "x.csv", "--output-dir", "y", "--test", "a.csv", "--batch-size", "4"]
    assert parsed("frontier", *given, *again) == parsed("frontier", *given)


def test_a_single_value_of_a_file_may_begin_like_a_flag(tmp_path):
    (tmp_path / "run.yaml").write_text("run_name: --x\nteacher: t\ntrain: x.csv\noutput_dir: y")
    assert parsed("distill", "--config", str(tmp_path / "run.yaml"))["run_name"] == "--x"


def test_a_path_from_the_home_folder_is_one_whatever_the_option(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.yaml").write_text("train: ~/x.csv\noutput_dir: ~/out\ntext_column: ~/a\nteacher: [~/t, user/t]")
    found = parsed("distill", "--config", "~/run.yaml", "--question=~/q.yaml", "--student", "layers:2")
    assert found["train"] == f"{tmp_path}/x.csv" and found["output_dir"] == tmp_path / "out"
    assert found["teacher"] == [f"{tmp_path}/t", "user/t"] and str(found["question"]) == f"{tmp_path}/q.yaml"
    assert (found["text_column"], found["student"]) == ("~/a", "layers:2")
    for name, command in typer.main.get_command(app).commands.items():
        assert name in ("doctor", "presets") or isinstance(command, parsing.Command), name


def test_what_a_file_switches_on_a_flag_switches_off(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("streaming: true\nbaseline: true\ntrain: x.csv\noutput_dir: y\n")
    assert parsed("distill", "--config", str(path))["baseline"] is True
    off = parsed("distill", "--config", str(path), "--no-streaming", "--no-baseline")
    assert off["streaming"] is False and off["baseline"] is False
    for name, command in typer.main.get_command(app).commands.items():
        flags = [each for each in command.params if getattr(each, "is_flag", False)]
        flags = [each for each in flags if each.name not in ("dry_run", "help_all")]
        assert all(each.secondary_opts == [f"--no-{each.opts[0][2:]}"] for each in flags), name


@pytest.mark.parametrize("form", ["yaml", "json"])
def test_null_in_a_file_is_not_given_whatever_the_option(form, tmp_path):
    path = tmp_path / f"run.{form}"
    own = ["seed", "label_column", "augment", "warmup_steps", "run_name", "teacher_cache_dir", "set", "command"]
    given = {"train": "x.csv", "output_dir": "y"} | dict.fromkeys([*own, "per_device_train_batch_size", "search"])
    path.write_text(json.dumps(given) if form == "json" else yaml.safe_dump(given))
    left_out = parsed("tune", "--teacher", "t", "--train", "x.csv", "--output-dir", "y")
    found = parsed("tune", "--config", str(path), "--teacher", "t")
    assert {**found, "config": None} == left_out
    path.write_text(json.dumps({"search": {"learning_rate": None, "seed": [1, 2]}}))
    asked = parsed("tune", "--config", str(path), "--teacher", "t", "--train", "x.csv", "--output-dir", "y")
    assert asked["search"] == ["seed=[1, 2]"]


PYTHON_ONLY = {"args", "tokenizer", "teacher_tokenizer"} | {
    "revision", "teacher_revision", "student_revision", "show"
}  # fmt: skip
"""Objects, functions, and revisions, which a command line takes as id@revision."""

OF_TRAINING_ROWS = {"soft_label_column", "streaming", "problem_type", "label_names"}
"""Of rows to measure on the model settles the task and the names of the labels."""

FUNCTIONS = {
    "train-teacher": ("nlpkd.pipeline.train_teacher:train_teacher", {"soft_label_column"}),
    "distill": ("nlpkd.pipeline.distill:distill", {"baseline_dir", "prices"}),
    # Its objectives are `hinton`, and neither labels nor weights are trained on.
    "cache": ("nlpkd.pipeline.jobs.distillation:prepare_job",
              {"objectives", "class_weights", "soft_label_column", "streaming", "test",
                                            "embedding_size", "max_latency_ms", "max_size_mb", "ship", "start",
                                            "backbone", "baseline"}),
    "frontier": ("nlpkd.comparison.frontier:frontier", {"soft_label_column", "window_stride"}),
    "tune": ("nlpkd.pipeline.tune:tune", {"soft_label_column", "streaming", "window_stride"}),
    # Named among the models.
    "evaluate": ("nlpkd.pipeline.evaluate:evaluate", {"student", "candidates"} | OF_TRAINING_ROWS),
    "verify": ("nlpkd.pipeline.verify:verify", OF_TRAINING_ROWS),
    "compress": ("nlpkd.compression:compress", OF_TRAINING_ROWS | {"validation_split"}),
    "export": ("nlpkd.pipeline.export:export_student", OF_TRAINING_ROWS),
    # A token in the list of processes would be everybody's.
    "push": ("nlpkd.hub.push:push_student", {"token"}),
}  # fmt: skip


@pytest.mark.parametrize("command", FUNCTIONS)
def test_a_command_has_an_option_for_each_argument_of_its_function(command):
    path, left_out = FUNCTIONS[command]
    function = pkgutil.resolve_name(path)
    named = [each for each in inspect.signature(function).parameters.values() if each.kind is not each.VAR_KEYWORD]
    arguments = {each.name for each in named} - PYTHON_ONLY
    if "data_args" in arguments or "DataArguments" in function.__doc__:
        arguments |= {each.name for each in dataclasses.fields(DataArguments)} - PYTHON_ONLY
    arguments.discard("data_args")
    assert left_out <= arguments, "an exception that is none any more"
    named = {each.name for each in typer.main.get_command(app).commands[command].params}
    assert arguments - left_out - named == set()


@pytest.mark.parametrize("command", FUNCTIONS)
def test_what_is_left_out_is_the_same_on_the_command_line_and_in_python(command, tmp_path):
    function = pkgutil.resolve_name(FUNCTIONS[command][0])
    known = {**vars(DataArguments()), **vars(DistillationConfig(str(tmp_path)))}
    known |= {name: each.default for name, each in inspect.signature(function).parameters.items()}
    named = typer.main.get_command(app).commands[command].params
    # Where a command gives nothing, the function's own default holds; what Python must be given may have one here.
    defaults = {each.name: each.default for each in named if each.default not in (None, [], ()) and not each.required}
    both = {name: (defaults[name], known[name]) for name in defaults.keys() & known.keys()}
    assert {name: pair for name, pair in both.items() if pair[1] not in (pair[0], inspect.Parameter.empty)} == {}
    assert both


def test_a_refused_run_leaves_the_options_of_the_run_before(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = CliRunner().invoke(app, ["train-teacher", "--model", "./m", "--train", "x.csv", "--output-dir", "new"])
    assert isinstance(outcome.exception, ValueError) and os.listdir() == []
    asked = {"compress": ["--data", "x.csv", "--method", "prune-heads"], "evaluate": ["--data", "x.csv"], "export": []}
    for command, words in asked.items():
        outcome = CliRunner().invoke(app, [command, "./m", *words, "--output-dir", "new"])
        assert isinstance(outcome.exception, ValueError) and os.listdir() == [], command
    Path("old").mkdir()
    Path("old/run.yaml").write_text("kept: as it was\n")
    asked = ["--train", "no.csv", "--output-dir", "old", "--set", "report_to=none"]
    for command in (["train-teacher", "--model", "m"], ["distill", "--teacher", "t"], ["cache", "--teacher", "t"]):
        assert CliRunner().invoke(app, [*command, *asked]).exit_code == 1
        assert Path("old/run.yaml").read_text() == "kept: as it was\n"


@pytest.mark.parametrize("command", [["evaluate", "./nope"], ["compress", "./nope", "--method", "half"]])
def test_what_is_refused_leaves_no_folder(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("x.csv").write_text("text,label\na,0\nb,1\n")
    outcome = CliRunner().invoke(app, [*command, "--data", "x.csv", "--output-dir", "new/deeper"])
    assert isinstance(outcome.exception, ValueError) and "no folder './nope'" in str(outcome.exception)
    assert os.listdir() == ["x.csv"]


def test_a_run_that_failed_after_it_wrote_keeps_its_options(tmp_path):
    script = typer.Typer()

    @script.command()
    def command(context: typer.Context) -> None:
        with run_config(context, {"output_dir": tmp_path}):
            (tmp_path / "checkpoint").touch()
            raise FloatingPointError("NaN in step 3")

    assert CliRunner().invoke(script, []).exit_code == 1
    assert "command: command" in (tmp_path / "run.yaml").read_text()


def test_a_push_lists_what_it_would_send_and_sends_nothing(folder, student):
    before = sorted(path.name for path in (folder / "student").iterdir())
    outcome = CliRunner().invoke(app, ["push", str(folder / "student"), "--repo-id", "alice/tiny", "--dry-run"])
    assert outcome.exit_code == 0, outcome.output
    lines = [line.split() for line in outcome.output.splitlines() if " bytes  " in line]
    listed = {words[-1]: int(words[0].replace(",", "")) for words in lines}
    assert listed["model.safetensors"] == (folder / "student/model.safetensors").stat().st_size
    assert {"README.md", "config.json", "report.json"} <= set(listed)
    assert not [name for name in listed if "/" in name or name in ("run.yaml", ".lock", "trainer_state.json")]
    assert sorted(path.name for path in (folder / "student").iterdir()) == before


@pytest.mark.parametrize(("where", "command", "quick"), [
    ([], "push", ["--dry-run"]), (["--output-dir", "elsewhere"], "evaluate", ["--latency-runs", "0"]),
])  # fmt: skip
def test_what_an_export_says_comes_next_works(where, command, quick, folder, student, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder / "student", "student")
    rows = ["--data", str(folder / "dev.tsv"), "--label-column", "verdict"]
    outcome = CliRunner().invoke(app, ["export", "student", *rows, "--min-retention", "0.1", *where])
    assert outcome.exit_code == 0, outcome.output
    words = shlex.split(outcome.output.partition("Next:\n")[2])
    outcome = CliRunner().invoke(app, [*words[words.index(command) :], *quick])
    assert outcome.exit_code == 0, outcome.output


def test_ctrl_c_is_told_from_a_check_that_failed(tmp_path):
    """The command waits for its config file, a pipe that nobody writes to."""
    os.mkfifo(tmp_path / "run.yaml")
    # A shell's background jobs, which this may be one of, ignore the signal, and so would the command.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = start("doctor", "--config", str(tmp_path / "run.yaml"))
    signal.signal(signal.SIGINT, before)
    with (tmp_path / "run.yaml").open("w"):
        process.send_signal(signal.SIGINT)
        code, _, err = finish(process)
    assert code == 130, err


def check_one_line(code: int, out: str, err: str, message: str) -> None:
    assert code == 2, err
    told = [line for line in err.splitlines() if line.startswith("nlpkd: ")]
    assert len(told) == 1 and message in told[0], err
    assert "Traceback" not in err


def test_what_is_wrong_is_told_in_one_line(missing_file):
    check_one_line(*finish(missing_file), "trian.tsv")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["distill", "--teacher", "x", "--output-dir", "y"], "--train"),
        (["push", "."], "--repo-id"),
        (["evaluate"], "models"),
        (["conquer"], "conquer"),
    ],
)
def test_a_wrong_command_is_told_without_loading_torch(arguments, message):
    code, _, err = finish(start(*arguments))
    assert code == 2
    assert message in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--set", "weight_decay"], "no FIELD=VALUE"),
        (["--set", "wieght_decay=1"], "no field of DistillationConfig; did you mean --weight-decay?"),
        (["--wieght_decay", "1"], "no field of DistillationConfig; did you mean --weight-decay?"),
        (["--max-steps", "ten"], "invalid int value: 'ten'"),
        (["--max_steps=ten"], "invalid int value: 'ten'"),
        (["--set", "max_steps=ten"], "invalid int value: 'ten'"),
        (["--gradient-checkpointing", "perhaps"], "Truthy value expected: got perhaps"),
        (["--lr-scheduler-type", "x"], "invalid choice: 'x'"),
        (["--learning_rate", "high"], "--learning-rate"),
        (["--num-seeds", "0", "--dry-run"], "--num-seeds"),
        (["--seed", "-5"], "seed must be from 0 to"),
        (["--lr-scheduler-kwargs", '{"a": 1}'], "lr_scheduler_kwargs={'a': 1} do not fit"),
        # The value belongs to the flag before it, which takes none.
        (["--bf16", "--baseline", "False"], "extra argument"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_starts(given, message, monkeypatch, capsys, tmp_path):
    from nlpkd.cli import main

    monkeypatch.setenv("COLUMNS", "400")
    arguments = ["nlpkd", "distill", "--teacher", "t", "--train", "x.csv", "--output-dir", str(tmp_path / "y"), *given]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "y").exists()


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        (["--gradient-checkpointing", "False"], "gradient_checkpointing", False),
        (["--gradient_checkpointing=False"], "gradient_checkpointing", False),
        (["--set", "gradient_checkpointing=False"], "gradient_checkpointing", False),
        (["--gradient_checkpointing"], "gradient_checkpointing", True),
        (["--no_compact_embeddings"], "compact_embeddings", False),
        (["--max_steps", "10"], "max_steps", 10),
        (["--set", "learning_rate=1e-3"], "learning_rate", 1e-3),
        (["--ensemble-weights", "1", "2.5"], "ensemble_weights", [1.0, 2.5]),
        (["--set", "ensemble_weights=[1, 2.5]"], "ensemble_weights", [1.0, 2.5]),
        (["--lr_scheduler_type", "cosine"], "lr_scheduler_type", "cosine"),
        (["--per_device_train_batch_size", "8"], "per_device_train_batch_size", 8),
        (["--batch_size", "8"], "per_device_train_batch_size", 8),
        (["--weight-decay", "-0.5"], "weight_decay", -0.5),
        (["--text_column", "review"], "text_column", "review"),
    ],
)
def test_settings_have_the_names_and_forms_that_the_recipes_have(given, name, value):
    found = parsed("distill", "--teacher", "t", "--train", "x.csv", "--output_dir", "y", *given)
    assert found[name] == value and type(found[name]) is type(value)


def test_all_settings_are_listed_on_request():
    out = CliRunner().invoke(app, ["distill", "--help-all"]).output
    fields = [each.name for each in dataclasses.fields(DistillationConfig) if each.init]
    assert len(fields) > 100 and [name for name in fields if f"--{name}" not in out] == []


UNFORESEEN = """
import sys
sys.argv = ["nlpkd", "presets"]
from nlpkd.cli import main
import nlpkd.objectives.presets
class Broken(dict):
    def items(self):
        raise KeyError("no such thing")
nlpkd.objectives.presets.PRESETS = Broken()
main()
"""


def test_an_unforeseen_error_is_one_line_and_its_traceback_is_in_the_file_that_it_names(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", UNFORESEEN], capture_output=True, text=True, env=environment)
    assert done.returncode == 4 and len(done.stderr.splitlines()) == 1, done.stderr
    found = re.fullmatch(r"nlpkd: unforeseen KeyError: 'no such thing'; the traceback is in (.*)\n", done.stderr)
    assert found and Path(found[1]).parent == tmp_path
    assert "Traceback" in Path(found[1]).read_text() and "in items" in Path(found[1]).read_text()


def test_the_module_is_the_command_and_tells_its_version():
    said = {}
    for word in ("--version", "presets"):
        done = subprocess.run([sys.executable, "-m", "nlpkd", word], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        said[word] = done.stdout
    assert "tinybert" in said["presets"] and "--augment constituents" in said["presets"]
    assert said["--version"] == f"nlpkd {importlib.metadata.version('nlpkd')}\n"


TELLING = """import sys
from nlpkd.cli import app, main
from nlpkd.cli.screen import show_item

@app.command()
def tell():
    show_item("name", " text")

sys.argv = ["nlpkd", "tell"]
main()
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_daemon_s_closed_streams_end_no_command(closed, tmp_path):
    (tmp_path / "tell.py").write_text(TELLING)
    command = f"exec {sys.executable} {tmp_path}/tell.py {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ROOT})
    assert done.returncode == 0, done.stderr
    assert done.stdout == ("" if ">&- " in f"{closed} " and closed != "2>&-" else "name text\n")


ENDING = """import json, os, sys
import typer
from rich.console import Console
from nlpkd.cli import app, main

@app.command()
def end(how: str, status: int):
    {"typer": typer.echo, "rich": Console().print, "nothing": id}[how]("text")
    if status in (2, 4):
        raise {2: ValueError, 4: KeyError}[status]("wrong")
    raise typer.Exit(status)

ended = []
for unread in (1, 2):
    for how in ("typer", "rich", "nothing"):
        for status in (0, 1, 2, 4):
            child = os.fork()
            if not child:
                reader, writer = os.pipe()
                os.close(reader)
                os.dup2(writer, unread)
                sys.argv = ["nlpkd", "end", how, str(status)]
                main()
            ended.append([unread, how, status, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])])
print(json.dumps(ended))
"""


def test_a_pipe_that_nobody_reads_has_no_status_that_says_something_else(tmp_path):
    """A check that failed has 1, which is what libraries end with there."""
    environment = os.environ | {"PYTHONPATH": ROOT, "TMPDIR": tmp_path}
    done = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, env=environment)
    ended = json.loads(done.stdout.splitlines()[-1])
    assert len(ended) == 24
    for unread, how, status, found in ended:
        assert found == (141 if unread == 1 and how != "nothing" else status), (unread, how, status)


def test_help_needs_neither_torch_nor_transformers():
    for words in (["--help"], ["distill", "--help"], ["evaluate", "--help"], ["--version"]):
        script = f"import sys; sys.argv = ['nlpkd', *{words}]\nfrom nlpkd.cli import main\ntry: main()\nfinally: "
        script += "print({'torch', 'transformers', 'datasets'} & sys.modules.keys())"
        out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT).stdout
        assert out.endswith("set()\n"), words


def test_presets_need_no_transformers():
    script = "import sys; sys.argv = ['nlpkd', 'presets']\nfrom nlpkd.cli import main\ntry: main()\nfinally: "
    script += "print({'transformers', 'accelerate', 'datasets'} & sys.modules.keys())"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT).stdout
    assert "tinybert" in out and out.endswith("set()\n")


def test_help_names_every_command_and_its_options(tmp_path):
    pages = {name: Command(*([name] if name else []), "--help", cwd=tmp_path) for name in ("", "train-teacher", "distill", "evaluate", "verify", "export", "push", "doctor")}  # fmt: skip  # noqa: E501
    wanted = {
        "": ["train-teacher", "distill", "evaluate", "verify", "export", "push", "doctor", "Exit status", "143"],
        "train-teacher": ["--model", "--train", "--validation", "--text-column", "--label-column", "--output-dir"],
        "distill": ["--teacher", "--student", "--train", "--validation", "--objectives", "--baseline", "--output-dir"],
        "evaluate": ["--teacher", "--baseline", "--data", "--output-dir"],
        "export": ["--int8", "--data", "--min-retention", "--output-dir", "Exit status", "3, a file keeps less"],
        "verify": ["--data", "--config", "status 1"],
        "push": ["--repo-id", "--private", "--revision", "--create-pr"],
        "doctor": ["status 1"],
    }
    for name, process in pages.items():
        code, out, err = finish(process)
        assert code == 0, err
        assert [option for option in wanted[name] if option not in out] == [], name


def test_the_saved_student_is_whole(student):
    path, _ = student
    with safe_open(path / "model.safetensors", framework="pt") as weights:
        assert not [name for name in weights.keys() if "projection" in name or "teacher" in name]
    assert AutoTokenizer.from_pretrained(path)("good film")["input_ids"]


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        (["--students", "teacher,layers:1,3,static"], {"students": ["teacher", "layers:1,3", "static"]}),
        (["--students", "width:0.67, bilstm", "--students", "static", "--only", "static"],
         {"students": ["width:0.67", "bilstm", "static"], "only": ["static"]}),
        (["--override", "width:0.67.learning-rate=1e-3", "--override", "static.num_train_epochs=9"],
         {"overrides": {"width:0.67": {"learning_rate": 1e-3}, "static": {"num_train_epochs": 9}}}),
    ],
)  # fmt: skip
def test_students_of_a_frontier_are_read_as_they_are_called(flags, found, monkeypatch, tmp_path):
    given = {}
    teacher = Point("teacher in PyTorch", Interval(0.9, 0.8, 1.0), 2.0, 1.0, 90.0, 1.0, [0.9], "t")
    report = FrontierReport("accuracy", 20, [teacher])
    monkeypatch.setattr("nlpkd.comparison.frontier.frontier", lambda **options: given.update(options) or report)
    words = ["frontier", "--teacher", "t", "--train", "x.csv", "--output-dir", str(tmp_path), *flags]
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    assert {name: given[name] for name in found} == found
    assert "learning_rate" not in given and given["num_train_epochs"] == 3

"""The check on a GPU runs here too, in small, so that it is right before it gets its card."""

import json
import subprocess
import sys

import pytest
import torch
from paths import ROOT
from processes import run as run_program
from samples import raw_rows

CHECK = str(ROOT / "tests" / "gpu" / "check.py")


def test_every_part_runs_in_small_on_the_cpu_and_its_checks_hold(tmp_path):
    raw_rows(100).to_csv(tmp_path / "train.csv")
    command = [CHECK, "--tiny", "--device", "cpu", "--train_file", str(tmp_path / "train.csv")]
    run = run_program([*command, "--output", str(tmp_path / "found")], tmp_path, timeout=500)
    assert run.returncode == 0, run.stderr[-3000:]
    records = [json.loads(path.read_text()) for path in (tmp_path / "found").glob("*.json")]
    assert {record["part"] for record in records} >= {"losses", "training", "caching", "resume", "speed", "epochs"}
    checks = [check for record in records for check in record["checks"]]
    assert sum(check["ok"] is True for check in checks) >= 15
    assert not [check for check in checks if check["ok"] is False]


def test_a_failed_part_is_recorded_the_others_run_and_what_is_done_is_not_run_again(tmp_path):
    (tmp_path / "losses.json").write_text(
        json.dumps({"part": "losses", "checks": [], "figures": {}, "device": "a card", "versions": {}})
    )  # noqa: E501
    command = [CHECK, "--tiny", "--device", "cpu", "--parts", "epochs", "losses", "memory"]
    command += ["--output", str(tmp_path), "--train_file", str(tmp_path / "missing.csv")]
    run = run_program(command, tmp_path)
    assert run.returncode == 1
    assert "missing.csv" in json.loads((tmp_path / "epochs.json").read_text())["checks"][-1]["found"]
    assert json.loads((tmp_path / "memory.json").read_text())["checks"][0]["found"] == "needs a GPU"
    assert "losses: done before" in run.stderr and "| losses |" not in run.stdout


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_results_on_the_card_are_those_of_the_cpu(tmp_path):
    parts = ["losses", "capture", "training", "lean", "caching", "resume", "evaluation", "synchronisation", "memory"]
    run = subprocess.run([sys.executable, CHECK, "--output", tmp_path, "--parts", *parts], timeout=500)
    assert run.returncode == 0

"""What must never get out: tokens anywhere, a user's texts and folders beyond this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import fine_tuned_teacher, raw_rows
from hub_server import READ_TOKEN, WRITE_TOKEN, HubServer, hub_environment

ROOT = Path(__file__).parents[1]
TEXT = "the film plot was very great and the actor at it was awful"
COMMAND = [sys.executable, "-c", "from nlpkd.cli import main; main()"]
LENGTH = ["--max-length", "32"]
DISTILL = ["distill", "--teacher", "teacher", "--student", "layers:1", "--train", "train.csv", "--validation",
           "validation.csv", *LENGTH, "--baseline", "--set", "max_steps=4", "--set", "save_steps=2", "--set",
           "logging_steps=2", "--set", "bf16=false", "--set", "report_to=tensorboard", "--set", "disable_tqdm=true",
           "--batch-size", "8"]  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory, tokenizer):
    """A job that pushes what it made with a token given as a flag, one that may not push, and what follows a job."""
    folder = tmp_path_factory.mktemp("canaryfolder")
    fine_tuned_teacher(folder / "teacher", tokenizer, layers=2)
    for name, rows in (("train", raw_rows(60, seed=2)), ("validation", raw_rows(30, seed=3))):
        frame = rows.to_pandas()
        frame.loc[0, "text"] = TEXT
        frame.to_csv(folder / f"{name}.csv", index=False)
    with HubServer() as hub:
        push = ["--push-to-hub", "--hub-model-id", "alice/student"]
        jobs = {
            "pushed": (WRITE_TOKEN, [*DISTILL, "--output-dir", "pushed", *push, "--set", f"hub_token={WRITE_TOKEN}"]),
            "refused": (READ_TOKEN, [*DISTILL, "--output-dir", "refused", *push, "--set", f"hub_token={READ_TOKEN}"]),
            "evaluate": (WRITE_TOKEN, ["evaluate", "teacher", "pushed", "--data", "validation.csv", *LENGTH,
                                       "--output-dir", "eval"]),
            "again": (WRITE_TOKEN, ["push", "pushed", "--repo-id", "alice/student"]),
            "wrong": ("hf_canaryWrongToken0123456789", ["push", "pushed", "--repo-id", "alice/other"]),
            "doctor": (WRITE_TOKEN, ["doctor"]),
        }  # fmt: skip
        said = {}
        for name, (token, words) in jobs.items():
            environment = hub_environment(hub, folder / "home", token)
            run = subprocess.run([*COMMAND, *words], cwd=folder, env=environment | {"PYTHONPATH": str(ROOT)},
                                 capture_output=True)  # fmt: skip
            said[name] = (run.returncode, run.stdout + run.stderr)
        assert said["pushed"][0] == 0, said["pushed"][1].decode()
        yield folder, hub.files("alice/student"), said


def test_the_jobs_did_what_they_were_started_for(done):
    _, published, said = done
    codes = {name: code for name, (code, _) in said.items()}
    assert [name for name, code in codes.items() if code] == ["refused", "wrong"], said
    assert {"README.md", "model.safetensors", "report.json"} <= published.keys()


def test_no_token_is_in_anything_that_is_said_or_written(done):
    folder, published, said = done
    texts = {f"said by {name}": text for name, (_, text) in said.items()}
    texts |= {f"published {name}": text for name, text in published.items()}
    texts |= {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).parts[0] != "home"
    }
    assert any("tfevents" in name for name in texts) and "pushed/run.yaml" in texts
    leaks = [name for name, text in texts.items() if b"hf_canary" in text]
    assert leaks == [], "\n".join(leaks)


def test_no_text_and_no_folder_of_the_user_is_published_or_said(done):
    _, published, said = done
    texts = {f"said by {name}": text for name, (_, text) in said.items()}
    texts |= {f"published {name}": text for name, text in published.items()}
    assert [name for name, text in texts.items() if TEXT.encode() in text] == []
    assert [name for name, text in texts.items() if b"canaryfolder" in text and name.startswith("published")] == []
    assert os.fsencode(str(ROOT)) not in b"".join(published.values())


def test_each_loss_is_logged_to_tensorboard_by_its_name(done):
    """As TensorBoard itself reads the file."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _, _ = done
    files = [path for path in (folder / "pushed").rglob("*tfevents*") if "baseline" not in path.parts]
    read = {}
    for path in files:
        events = EventAccumulator(str(path))
        events.Reload()
        read |= {tag: [each.step for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    for tag in ("train/loss", "train/loss/cross_entropy", "train/loss/forward_kl", "train/loss/hidden_state_mse"):
        assert read[tag] == [2, 4], sorted(read)

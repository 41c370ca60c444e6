"""What must never get out, or in: tokens, a user's texts and folders; others' code, and files out of their folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hub_server import READ_TOKEN, WRITE_TOKEN, Fault, HubServer, hub_environment
from paths import ROOT
from processes import run as run_program
from samples import fine_tuned_teacher, raw_rows, tiny_bert

import nlpkd
from nlpkd.compression.onnx import accept
from nlpkd.hub.push import files_to_push, push_student
from nlpkd.hub.saving import save_student
from nlpkd.models.loading import load_classifier, load_config, load_tokenizer
from nlpkd.utils.disk.files import CHECKSUMS, WEIGHTS, refuse_damaged

TEXT = "the film plot was very great and the actor at it was awful"
PLAIN_TOKEN, PASSWORD = "canaryTokenWithoutPrefix", "canaryPassword"
SECRETS = (b"hf_canary", PLAIN_TOKEN.encode(), PASSWORD.encode())
# What verify asks first.
ECHOING = ["info", "resolve"] * 8
LENGTH = ["--max-length", "32"]
# Ends the process at its first attempt to reach anything by a socket.
GUARD = """
import os, sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo") and arguments[-1]:
        os.write(2, f"NETWORK: {event} {arguments}".encode())
        os._exit(9)
sys.addaudithook(refuse)
"""
UNPLUGGED = ["-c", f"{GUARD}\nfrom nlpkd.cli import main; main()"]
DISTILL = ["distill", "--teacher", "teacher", "--student", "layers:1", "--train", "train.csv", "--validation",
           "validation.csv", *LENGTH, "--baseline", "--set", "max_steps=4", "--set", "save_steps=2", "--set",
           "logging_steps=2", "--set", "bf16=false", "--set", "report_to=tensorboard", "--set", "disable_tqdm=true",
           "--batch-size", "8", "--set", "bootstrap_samples=20", "--set", "latency_runs=2"]  # fmt: skip


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
                                       "--output-dir", "eval", "--latency-runs", "2"]),
            "again": (WRITE_TOKEN, ["push", "pushed", "--repo-id", "alice/student"]),
            "wrong": ("hf_canaryWrongToken0123456789", ["push", "pushed", "--repo-id", "alice/other"]),
            "doctor": (WRITE_TOKEN, ["doctor"]),
            "echo in verify": (PLAIN_TOKEN, ["verify", "alice/echo"]),
            "password in evaluate": (WRITE_TOKEN, ["evaluate", "alice/none", "--data", "validation.csv"]),
            "password in verify": (WRITE_TOKEN, ["verify", "alice/none"]),
            "password in doctor": (WRITE_TOKEN, ["doctor"]),
            "unplugged": (WRITE_TOKEN, [*DISTILL, "--output-dir", "unplugged"]),
        }  # fmt: skip
        said = {}
        for name, (token, words) in jobs.items():
            # The folder itself, whose name must not be published.
            environment = hub_environment(hub, folder / "home", token) | {"HF_HOME": str(folder / "home")}
            hub.faults = [Fault(action, "status", 400, f"what is {token}?") for action in ECHOING if "echo" in name]
            if "password" in name:
                environment["HF_ENDPOINT"] = hub.url.replace("://", f"://me:{PASSWORD}@")
            if name == "unplugged":
                run = run_program([*UNPLUGGED, *words], folder, environment, fresh=True)
            else:
                run = run_program(["nlpkd", *words], folder, environment)
            said[name] = (run.returncode, (run.stdout + run.stderr).encode())
        assert said["pushed"][0] == 0, said["pushed"][1].decode()
        yield folder, hub.files("alice/student"), said


def test_the_jobs_did_what_they_were_started_for(done):
    _, published, said = done
    codes = {name: code for name, (code, _) in said.items()}
    assert [name for name, code in codes.items() if code and " " not in name] == ["refused", "wrong"], said
    assert b"what is ***?" in said["echo in verify"][1]
    assert all(b"***@127.0.0.1" in said[f"password in {name}"][1] for name in ("doctor", "evaluate"))
    assert {"README.md", "model.safetensors", "report.json"} <= published.keys()
    assert b"name: validation.csv\n      type: validation\n" in published["README.md"]


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
    leaks = [name for name, text in texts.items() for secret in SECRETS if secret in text]
    assert leaks == [], "\n".join(leaks)


def test_no_text_and_no_folder_of_the_user_is_published_or_said(done):
    _, published, said = done
    texts = {f"said by {name}": text for name, (_, text) in said.items()}
    texts |= {f"published {name}": text for name, text in published.items()}
    assert [name for name, text in texts.items() if TEXT.encode() in text] == []
    assert [name for name, text in texts.items() if b"canaryfolder" in text and name.startswith("published")] == []
    assert os.fsencode(str(ROOT)) not in b"".join(published.values())


def test_a_job_on_local_files_opens_no_connection_with_the_hub_in_reach(done):
    folder, _, said = done
    code, text = said["unplugged"]
    assert code == 0 and b"NETWORK" not in text and (folder / "unplugged" / "model.safetensors").is_file(), text
    connecting = [sys.executable, "-c", f"{GUARD}\nimport socket; socket.create_connection(('127.0.0.1', 9))"]
    assert subprocess.run(connecting, capture_output=True).returncode == 9, "the guard sees a connection"


# Others' code


@pytest.fixture
def canary(tmp_path, monkeypatch, tokenizer):
    """A model's folder with code of its own for config, model and tokenizer, which leaves a file when it is run."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "modules")])
    folder, sung = save_student(tiny_bert(), tmp_path / "canary", tokenizer), tmp_path / "sung"
    (folder / "song.py").write_text(
        "from transformers import BertConfig, BertForSequenceClassification, BertTokenizer\n"
        "class Config(BertConfig): pass\n"
        "class Model(BertForSequenceClassification): pass\n"
        "class Tokenizer(BertTokenizer): pass\n"
        f"open({str(sung)!r}, 'w').close()\n"
    )
    classes = {"AutoConfig": "song.Config", "AutoModelForSequenceClassification": "song.Model"}
    for name, entries in (
        ("config.json", classes),
        ("tokenizer_config.json", {"AutoTokenizer": ["song.Tokenizer", None]}),
    ):
        known = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(known | {"auto_map": entries}))
    return folder, sung


def test_the_code_of_a_model_is_run_on_request_alone(canary):
    folder, sung = canary
    for load in (load_config, load_tokenizer, load_classifier, nlpkd.load, nlpkd.load_teacher):
        load(folder)
        assert not sung.exists(), load
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "song"}))
    for load in (load_config, load_classifier, nlpkd.load, nlpkd.load_teacher):
        with pytest.raises(ValueError, match="trust_remote_code"):
            load(folder)
        assert not sung.exists(), load
    load_config(folder, trust_remote_code=True)
    assert sung.exists(), "the canary sings when it is let"


# Files out of their folder


@pytest.mark.parametrize("name", ["../outside.safetensors", "a/../../outside.safetensors", "/etc/outside.safetensors",
                                  "..\\outside.safetensors", "C:\\outside.safetensors"])  # fmt: skip
def test_a_listed_file_outside_of_its_folder_is_neither_read_nor_pushed(name, tmp_path, tokenizer):
    folder = save_student(tiny_bert(), tmp_path / "student", tokenizer)
    sealed = json.loads((folder / CHECKSUMS).read_text())
    (folder / CHECKSUMS).write_text(json.dumps({"files": sealed["files"] | {name: {"bytes": 1, "sha256": "0"}}}))
    for use in (lambda: refuse_damaged(folder, WEIGHTS), lambda: load_classifier(folder)):
        with pytest.raises(ValueError, match="lies outside of it"):
            use()
    (folder / CHECKSUMS).unlink()
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError, match="lies outside of it"):
        push_student(folder, "alice/student")


@pytest.mark.parametrize("name", ["merges.txt", "README.md", "report.json", "model.safetensors", "onnx"])
def test_a_link_out_of_the_folder_is_not_pushed(name, tmp_path, tokenizer):
    """Neither are its bytes sent nor is anything asked of the Hub: the refusal comes before."""
    folder, outside = save_student(tiny_bert(), tmp_path / "student", tokenizer), tmp_path / "outside"
    if name == "onnx":
        outside.mkdir()
        (outside / "model.onnx").write_bytes(b"theirs")
    elif (folder / name).exists():
        (folder / name).rename(outside)
    else:
        outside.write_text("theirs")
    (folder / name).symlink_to(outside)
    for use in (push_student, files_to_push):
        with pytest.raises(ValueError, match=f"{name}.* (leads out of it by|is) a link"):
            use(folder, "alice/student")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"])
def test_a_link_out_of_a_model_s_folder_is_not_read_into_a_student(name, tmp_path, tokenizer):
    """What a foreign teacher's tokenizer or config say is written into the student, which may be pushed."""
    folder, outside = save_student(tiny_bert(), tmp_path / "teacher", tokenizer), tmp_path / "outside"
    (folder / CHECKSUMS).unlink()
    if (folder / name).exists():
        (folder / name).rename(outside)
    else:
        outside.write_text("[UNK]\ntheirs\n")
    (folder / name).symlink_to(outside)
    for load in (load_config, load_tokenizer, load_classifier):
        with pytest.raises(ValueError, match=f"{name} in .* leads out of it by a link"):
            load(folder)


def test_a_record_of_an_export_deletes_no_file_but_its_own(tmp_path, tokenizer):
    folder, outside = save_student(tiny_bert(), tmp_path / "student", tokenizer), tmp_path / "outside.onnx"
    outside.write_text("theirs")
    (folder / "onnx").mkdir()
    listed = ["../outside.onnx", str(outside), "model.safetensors", "onnx/../../outside.onnx", "onnx/model.onnx"]
    (folder / "onnx" / "model.onnx").write_text("ours")
    record = {"weights_sha256": {"model.safetensors": "0"}, "files": dict.fromkeys(listed, {})}
    (folder / "onnx" / "export.json").write_text(json.dumps(record))
    staged = folder / ".staged"
    (staged / "onnx").mkdir(parents=True)
    accept(staged, folder, [], None)
    assert outside.read_text() == "theirs" and (folder / "model.safetensors").exists()
    assert not (folder / "onnx" / "model.onnx").exists()


def test_a_student_in_the_hub_s_cache_is_pushed_though_its_files_are_links(tmp_path, tokenizer):
    snapshot, blobs = tmp_path / "models--alice--student/snapshots/0123", tmp_path / "models--alice--student/blobs"
    save_student(tiny_bert(), blobs, tokenizer)
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files_to_push(snapshot, "alice/student").keys()


@pytest.mark.parametrize("beside", [True, False])
def test_a_folder_with_an_adapter_names_the_base_and_asks_nobody_for_it(beside, tmp_path, tokenizer):
    """With weights beside it another model than those would be measured; alone its base would come from the Hub."""
    folder = save_student(tiny_bert(), tmp_path / "student", tokenizer)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "bob/evil"}))
    if not beside:
        (folder / "model.safetensors").unlink()
        (folder / CHECKSUMS).unlink()
    for load in (load_classifier, nlpkd.load_teacher):
        with pytest.raises(ValueError, match="an adapter.*of the base model 'bob/evil'.*merge the adapter"):
            load(folder)


ADAPTER = """
from nlpkd import load_teacher
from nlpkd.models.loading import load_classifier
for load in (load_classifier, load_teacher):
    try:
        load("bob/adapter")
    except ValueError as error:
        print("REFUSED", error)
"""


def test_an_adapter_on_the_hub_names_its_base_before_the_hub_is_asked_for_that(tmp_path):
    settings = json.dumps({"base_model_name_or_path": "bob/base", "peft_type": "LORA"}).encode()
    with HubServer() as hub:
        for name in ("adapter", "base"):
            hub.add_repo(f"bob/{name}", tmp_path / "nothing")
        hub.repos["model", "bob/adapter"].commit({"adapter_config.json": settings}, "adapter")
        run = run_program(["-c", ADAPTER], tmp_path, hub_environment(hub, tmp_path / "home", READ_TOKEN))
    assert run.stdout.count("REFUSED") == 2 and run.stdout.count("base model 'bob/base'") == 2, run
    asked = [path for _, path in hub.requests]
    assert any("bob/adapter" in path for path in asked) and not any("bob/base" in path for path in asked), asked


PULL = """
import sys
from nlpkd.models.loading import load_classifier
from nlpkd.models.onnx_classifier import OnnxClassifier
for number, load in enumerate((*[OnnxClassifier.from_pretrained] * 3, load_classifier)):
    try:
        load(f"bob/evil{number}")
    except (OSError, ValueError) as error:
        print(number, "REFUSED", *str(error).split())
"""


def test_files_of_a_repository_cannot_be_written_outside_of_the_cache(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    up = "../" * 6
    names = [f"{up}outside.json", f"onnx/{up}../outside.json", f"{tmp_path}/outside.json", f"{up}outside.safetensors"]
    index = json.dumps({"metadata": {}, "weight_map": {"classifier.bias": names[-1]}}).encode()
    config = tiny_bert().config.to_json_string().encode()
    with HubServer() as hub:
        for number, name in enumerate(names):
            hub.add_repo(f"bob/evil{number}", home)
            files = {name: b"{}", "onnx/model.onnx": b"", "config.json": config}
            files |= {"model.safetensors.index.json": index} if number == 3 else {}
            hub.repos["model", f"bob/evil{number}"].commit(files, "evil")
        run = run_program(["-c", PULL], home, hub_environment(hub, home))
    assert [line[:9] for line in run.stdout.splitlines()] == [f"{number} REFUSED" for number in range(4)], run
    assert list(tmp_path.rglob("outside*")) == [], run.stdout


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

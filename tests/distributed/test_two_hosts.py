"""Two machines: network namespaces of their own, joined by a cable, one folder that both share."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from paths import ROOT
from processes import run as run_program
from processes import warm_python
from safetensors.torch import load_file
from samples import QUIET_FLAGS, fine_tuned_teacher, raw_rows

from nlpkd.training.checkpoints import last_whole

CONFIG = ROOT / "recipes" / "accelerate_configs" / "multi_node.yaml"
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
NAMES = tuple(f"nlpkd{os.getpid()}{side}" for side in "ab")
LINKS = tuple(f"veth{os.getpid()}{side}"[:15] for side in "ab")
RECIPE = [str(ROOT / "recipes" / "sst2.py"), "--teacher", "teacher", "--student", "layers:2", "--train_file",
          "train.csv", "--validation_file", "validation.csv", *QUIET_FLAGS,
          "--max_length", "32", "--optim", "sgd", "--learning_rate", "0.05",
          "--save_strategy", "steps", "--save_steps", "40", "--save_total_limit", "2",
          "--max_steps", "200"]  # fmt: skip


def ip(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(["ip", *words], capture_output=True, text=True)


def why_not() -> str | None:
    """Say why there can be no network namespaces here."""
    try:
        tried = ip("netns", "add", NAMES[0])
    except FileNotFoundError:
        return "the command ip is not installed (Debian's iproute2)"
    ip("netns", "del", NAMES[0])
    return f"no network namespace can be made: {tried.stderr.strip()}" if tried.returncode else None


@dataclass
class Hosts:
    """The two machines."""

    folder: Path

    def launch(self, number: int, *arguments: str) -> subprocess.Popen:
        """Start the recipe on one of them, as a user does on each."""
        launcher = [
            warm_python(), "-m", "accelerate.commands.launch", "--config_file", str(CONFIG), "--num_processes", "2",
            "--machine_rank", str(number), "--main_process_ip", "10.77.0.1",
        ]  # fmt: skip
        environment = os.environ | {
            "PYTHON_EXEC": warm_python(), "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "",
            "GLOO_SOCKET_IFNAME": LINKS[number],
        }  # fmt: skip
        command = ["ip", "netns", "exec", NAMES[number], *launcher, *RECIPE, "--per_device_train_batch_size", "8"]
        with self.log(number).open("w") as stream:
            return subprocess.Popen(
                [*command, *arguments], cwd=self.folder, env=environment, stdout=stream, stderr=subprocess.STDOUT
            )

    def log(self, number: int) -> Path:
        return self.folder / f"log-{number}"

    def run(self, *arguments: str) -> None:
        """Start it on both, and wait."""
        for process in [self.launch(number, *arguments) for number in (0, 1)]:
            process.wait(300)

    def kill(self, number: int) -> None:
        for process in ip("netns", "pids", NAMES[number]).stdout.split():
            os.kill(int(process), signal.SIGKILL)

    def pull_the_cable(self, number: int) -> None:
        ip("-n", NAMES[number], "link", "set", LINKS[number], "down")


@pytest.fixture
def cable() -> Iterator[None]:
    """Two namespaces and a pair of virtual interfaces between them."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    for name in NAMES:
        ip("netns", "add", name)
    ip("link", "add", LINKS[0], "netns", NAMES[0], "type", "veth", "peer", "name", LINKS[1], "netns", NAMES[1])
    for number, (name, link) in enumerate(zip(NAMES, LINKS, strict=True), start=1):
        ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", link)
        for each in (link, "lo"):
            ip("-n", name, "link", "set", each, "up")
    yield
    for name in NAMES:
        for process in ip("netns", "pids", name).stdout.split():
            os.kill(int(process), signal.SIGKILL)
        ip("netns", "del", name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("hosts")
    fine_tuned_teacher(folder / "teacher", tokenizer)
    for name, rows in (("train", raw_rows(200, seed=2)), ("validation", raw_rows(40, seed=3))):
        rows.to_csv(folder / f"{name}.csv")
    return folder


@pytest.fixture(scope="module")
def alone(folder) -> dict[str, torch.Tensor]:
    """The student of one process with the same rows a step."""
    words = [*RECIPE, "--per_device_train_batch_size", "16", "--output_dir", "alone"]
    done = run_program(words, folder)
    assert done.returncode == 0, done.stderr
    return load_file(folder / "alone" / "model.safetensors")


def leave(hosts: Hosts, out: Path, fault: Callable[[], None], *arguments: str) -> float:
    """Train until there is a checkpoint, let a fault happen, and give the seconds until the first machine gives up."""
    first = hosts.launch(0, *arguments)
    second = hosts.launch(1, *arguments)
    deadline = time.monotonic() + 300
    while not list(out.glob("checkpoint-*/checksums.json")):
        assert first.poll() is None and time.monotonic() < deadline, hosts.log(0).read_text()
        time.sleep(0.05)
    fault()
    started = time.monotonic()
    assert first.wait(120) != 0
    seconds = time.monotonic() - started
    second.wait(120)
    return seconds


@pytest.mark.parametrize("fault", ["killed", "cable pulled"])
def test_a_lost_machine_is_noticed_and_both_resume_to_the_student_of_one_process(fault, folder, alone, cable):
    hosts, out = Hosts(folder), folder / fault.split()[0]
    arguments = ["--output_dir", out.name, "--ddp_timeout", "30"]
    lose = hosts.kill if fault == "killed" else hosts.pull_the_cable
    seconds = leave(hosts, out, lambda: lose(1), *arguments)
    said = hosts.log(0).read_text()
    assert "ConnectionError: process 0 of 2 can't reach another one any more" in said, said
    assert seconds < 90, "an end within ddp_timeout and what it takes to tear down"
    assert "Training with" in said and "Training with" not in hosts.log(1).read_text(), "only the main process speaks"
    whole = last_whole(out)
    assert whole is not None and not (out / "model.safetensors").exists()

    ip("-n", NAMES[1], "link", "set", LINKS[1], "up")
    hosts.run(*arguments, "--resume_from_checkpoint", "True")
    assert f"Resuming from {out.name}/{whole.name}" in hosts.log(0).read_text(), hosts.log(0).read_text()
    found = load_file(out / "model.safetensors")
    assert found.keys() == alone.keys()
    for name, expected in alone.items():
        torch.testing.assert_close(found[name], expected, **CLOSE, msg=lambda text, n=name: f"{n}: {text}")
    assert (out / "report.json").is_file() and (out / "README.md").is_file()


def test_a_checkpoint_that_only_the_first_machine_has_is_refused_on_both(folder, cable, tmp_path):
    short = ("--output_dir", "short", "--max_steps", "40")
    done = run_program([*RECIPE, *short, "--per_device_train_batch_size", "16"], folder)
    assert done.returncode == 0, done.stderr
    for name in ("teacher", "train.csv", "validation.csv"):
        (tmp_path / name).symlink_to(folder / name)
    first, second = Hosts(folder), Hosts(tmp_path)
    arguments = (*short, "--resume_from_checkpoint", "True")
    processes = [first.launch(0, *arguments), second.launch(1, *arguments)]
    assert [process.wait(120) for process in processes] == [1, 1]
    for hosts, number in ((first, 0), (second, 1)):
        assert "and not on that of processes [1]" in hosts.log(number).read_text()

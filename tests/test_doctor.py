"""`nlpkd doctor` against a Hub on loopback: what it says of the token, and that it never says the token."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import READ_TOKEN, HubServer, hub_environment

from nlpkd.doctor import examine

EXAMINE = """
import json, sys
from nlpkd.doctor import examine
for finding in examine(sys.argv[1]):
    print(json.dumps([finding.check, finding.found, finding.ok]))
"""


def test_it_says_what_the_hub_knows_of_the_token_and_never_the_token(tmp_path: Path):
    tokens = {"read": READ_TOKEN, "wrong": "hf_canaryWrongToken0123456789"}
    with HubServer() as hub:
        processes = {}
        for name, token in tokens.items():
            environment = hub_environment(hub, tmp_path / name, token) | {"PYTHONPATH": str(Path(__file__).parents[1])}
            command = [sys.executable, "-c", EXAMINE, str(tmp_path / "new" / "run")]
            processes[name] = subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True)
        printed = {name: process.communicate(timeout=200) for name, process in processes.items()}
        found = {name: {check: (what, ok) for check, what, ok in map(json.loads, out.splitlines())} for name, (out, _) in printed.items()}  # fmt: skip  # noqa: E501
        assert found["read"]["Hub"] == (f"{hub.url} answers; read token of alice, member of lab", True)
        assert found["wrong"]["Hub"] == (f"{hub.url} does not accept the token", False)
    assert "canary" not in str(printed)
    assert found["read"]["torch"] == (torch.__version__, True)
    assert found["read"]["free disk"][0].endswith(f"GB at {tmp_path}")
    assert not (tmp_path / "new").exists()


def test_more_threads_than_cores_are_told():
    before = torch.get_num_threads()
    torch.set_num_threads(10_000)
    try:
        finding = next(each for each in examine() if each.check == "cores, threads")
    finally:
        torch.set_num_threads(before)
    assert finding.ok is False and "OMP_NUM_THREADS" in finding.advice


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_folder_that_takes_no_files_is_told():
    finding = next(each for each in examine("/proc/1/nowhere") if each.check == "writing")
    assert "/proc/1" in finding.found

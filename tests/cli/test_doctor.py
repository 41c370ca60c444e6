"""`nlpkd doctor` against a Hub on loopback: what it says of the token, and that it never says the token."""

from __future__ import annotations

import json
import platform
import re
import sys
from pathlib import Path

import pytest
import torch
from hub_server import FINE_TOKEN, READ_TOKEN, WRITE_TOKEN, HubServer, hub_environment
from paths import ROOT
from processes import run as run_program

from nlpkd.cli.doctor import EXTRAS, _extras, _rights, examine

# One process: the Hub's address is read at import, the token at every call.
EXAMINE = """
import json, os, sys
from nlpkd.cli.doctor import examine
for name, token in json.loads(sys.argv[2]).items():
    os.environ.pop("HF_TOKEN", None)
    os.environ.update({"HF_TOKEN": token} if token else {})
    print(json.dumps([name, {each.check: [each.found, each.ok, each.advice] for each in examine(sys.argv[1])}]))
"""
TOKENS = {
    "read": READ_TOKEN, "write": WRITE_TOKEN, "fine": FINE_TOKEN, "none": None,
    "wrong": "hf_canaryWrongToken0123456789",
}  # fmt: skip


def test_it_says_what_the_hub_knows_of_the_token_and_never_the_token(tmp_path: Path):
    with HubServer() as hub:
        program = ["-c", EXAMINE, str(tmp_path / "new" / "run"), json.dumps(TOKENS)]
        done = run_program(program, tmp_path, hub_environment(hub, tmp_path / "home"), timeout=200)
    assert done.returncode == 0, done.stderr
    assert "canary" not in done.stdout + done.stderr
    found = dict(map(json.loads, done.stdout.splitlines()))
    for name in ("read", "write", "fine"):
        assert found[name]["Hub"][:2] == [f"{hub.url} answers", True]
    told, ok, advice = found["read"]["Hub token"]
    assert (told, ok) == ("read token of alice, member of lab", None) and "a token that may write" in advice
    assert found["write"]["Hub token"][:2] == ["write token of alice, member of lab", True]
    told = "fineGrained token of alice, member of lab; alice: repo.content.read, repo.write"
    assert found["fine"]["Hub token"][:2] == [told, True]
    assert found["none"]["Hub"][:2] == [f"{hub.url} answers (401)", True]
    assert found["none"]["Hub token"][:2] == ["none", None]
    assert found["wrong"]["Hub"][:2] == [f"{hub.url} does not accept the token", False]
    assert found["read"]["torch"][:2] == [torch.__version__, True]
    assert found["read"]["python"][:2] == [platform.python_version(), True]
    assert found["read"]["free disk"][0].endswith(f"GB at {tmp_path}")
    assert not (tmp_path / "new").exists()


def test_a_token_that_may_not_write_anywhere_is_told_with_advice():
    scope = {"entity": {"type": "user", "name": "alice"}, "permissions": ["repo.content.read"]}
    token = {"role": "fineGrained", "fineGrained": {"scoped": [scope]}}
    finding = _rights({"name": "alice", "auth": {"accessToken": token}})
    assert (finding.ok, finding.found) == (None, "fineGrained token of alice; alice: repo.content.read")
    assert "to push" in finding.advice


def test_every_extra_is_looked_at_with_all_its_packages():
    text = (ROOT / "pyproject.toml").read_text()
    lines = text.split("[project.optional-dependencies]\n")[1].split("\n\n")[0].splitlines()
    declared = {line.split(" = ")[0]: tuple(re.findall(r'"([\w-]+)', line)) for line in lines}
    assert declared.pop("dev") and declared == EXTRAS
    assert {f"extra {name}" for name in EXTRAS} <= {finding.check for finding in _extras()}


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

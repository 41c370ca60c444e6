"""A recorded command names no folder of this machine, and no token."""

import sys

from nlpkd.utils.provenance import command_line


def test_folders_and_tokens_are_left_out(monkeypatch):
    words = [
        "/usr/bin/nlpkd",
        "evaluate",
        "teacher=/home/me/t",
        "--data=/home/me/rows.csv",
        "/home/me/s",
        "runs/o",
    ]
    secrets = ["--token", "secret1", "--hub_token=secret2", "--set", "hub_token=secret3", "hf_" + "a" * 30]
    monkeypatch.setattr(sys, "argv", [*words, *secrets])
    assert command_line() == (
        "nlpkd evaluate teacher=t --data=rows.csv s runs/o --token *** --hub_token=*** --set hub_token=*** ***"
    )

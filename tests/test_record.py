"""A recorded command names no folder of this machine, and no token."""

import sys

from nlpkd.record import command_line


def test_folders_and_tokens_are_left_out(monkeypatch):
    words = [
        "/usr/bin/nlpkd",
        "evaluate",
        "teacher=/home/me/t",
        "--data=/home/me/rows.csv",
        "/home/me/s",
        "runs/o",
    ]
    monkeypatch.setattr(sys, "argv", [*words, "--token", "hf_secret"])
    assert command_line() == "nlpkd evaluate teacher=t --data=rows.csv s runs/o --token '***'"

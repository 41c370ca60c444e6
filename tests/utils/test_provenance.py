"""A recorded command names no folder of this machine, and no token."""

import sys

from nlpkd.utils.provenance import as_command, command_line


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
    secrets += ["--set", "hub_token=with blanks", "--hub-token", "it's mine", "--push-to-hub-token=a b"]
    monkeypatch.setattr(sys, "argv", [*words, *secrets])
    assert command_line() == (
        "nlpkd evaluate teacher=t --data=rows.csv s runs/o --token *** --hub_token=*** --set hub_token=*** *** "
        "--set hub_token=*** --hub-token *** --push-to-hub-token=***"
    )


def test_a_module_is_recorded_as_it_is_started(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/site-packages/nlpkd/__main__.py", "distill", "--train", "/home/me/rows.csv"])
    assert command_line() == "python -m nlpkd distill --train rows.csv"


def test_an_argument_that_begins_like_an_option_is_an_argument_in_a_command():
    assert as_command("export", "-x", "--data", "-d.csv", "--int8") == "export ./-x --data -d.csv --int8"
    assert as_command("export", "a b", "--data", "c") == "export 'a b' --data c"

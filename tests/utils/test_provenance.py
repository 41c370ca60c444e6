"""A recorded command names no folder of this machine, and no token."""

import sys

import pytest

from nlpkd.utils.provenance import command_line, without_tokens


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


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("HF_ENDPOINT is https://me:secret@hub.example/x?y=@z", "HF_ENDPOINT is https://***@hub.example/x?y=@z"),
        ("run --set 'hub_token=with blanks' --seed 1", "run --set 'hub_token=***' --seed 1"),
        ('hub_token="with blanks" --seed 1', "hub_token=*** --seed 1"),
        ("the token secretWithoutPrefix is wrong", "the token *** is wrong"),
        ("no secret: alice/model@v1, a@b.example", "no secret: alice/model@v1, a@b.example"),
    ],
)
def test_secrets_are_struck_out_of_a_text(text, told, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secretWithoutPrefix")
    assert without_tokens(text) == told

"""A recorded command names no folder of this machine, and no token."""

import sys

import pytest

from nlpkd.utils.provenance import as_command, command_line, without_tokens


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


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("HF_ENDPOINT is https://me:secret@hub.example/x?y=@z", "HF_ENDPOINT is https://***@hub.example/x?y=@z"),
        ("run --set 'hub_token=with blanks' --seed 1", "run --set 'hub_token=***' --seed 1"),
        ('hub_token="with blanks" --seed 1', "hub_token=*** --seed 1"),
        ("the token secretWithoutPrefix is wrong", "the token *** is wrong"),
        ("http://me:p@ss@host/x", "http://***@host/x"),
        ("by http://me:pa/ss@word1@proxy:3128/", "by http://***@proxy:3128/"),
        ("the key is plainKeyOfOpenAI", "the key is ***"),
        ("Incorrect API key provided: sk-abcdefghijklmnopqrst", "Incorrect API key provided: ***"),
        ('{"token": "a b c", "x": 1}', '{"token": ***, "x": 1}'),
        ("{'api_key': 'abc', 'y': 2}", "{'api_key': ***, 'y': 2}"),
        (
            "https://s3/x?X-Amz-Signature=a&X-Amz-Credential=b%2F&Expires=3",
            "https://s3/x?X-Amz-Signature=***&X-Amz-Credential=***&Expires=3",
        ),
        ("https://h/x?token=abc&b=1", "https://h/x?token=***&b=1"),
        ("Authorization: Bearer abc.def-ghi", "Authorization: Bearer ***"),
        ("headers={'authorization': 'Basic bWU6cA=='}", "headers={'authorization': 'Basic ***'}"),
        ("--latency-tokens 16, the token 'good' gets the id 5", "--latency-tokens 16, the token 'good' gets the id 5"),
        ("no secret: alice/model@v1, a@b.example", "no secret: alice/model@v1, a@b.example"),
        ("postgres-train.csv and Postgres", "postgres-train.csv and Postgres"),
        ("the password Xy12postgres is wrong", "the password *** is wrong"),
        ("runs/sk-learn-comparison-run1", "runs/sk-learn-comparison-run1"),
        ("by sk-proj-ab_12-abcdefghijklmnop1234-x_y", "by ***"),
    ],
)
def test_secrets_are_struck_out_of_a_text(text, told, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secretWithoutPrefix")
    monkeypatch.setenv("OPENAI_API_KEY", "plainKeyOfOpenAI")
    monkeypatch.setenv("POSTGRES_PASSWORD", "postgres")
    monkeypatch.setenv("MYSQL_PASSWORD", "Xy12postgres")
    monkeypatch.setenv("APP_SECRET", "Postgres")
    monkeypatch.setenv("https_proxy", "http://me:pa/ss@word1@proxy:3128")
    assert without_tokens(text) == told


@pytest.mark.parametrize(
    "secret",
    [
        "abcd efgh ijkl\n",
        "Bearer gsk_abcdefghijklmnop\n",
        "\tabcdefgh\r\n",
        "abcdefgh'ijkl",
        "token=abcdefgh ijklmnop",
        "geheim äöü wort",
    ],
)
@pytest.mark.parametrize("own", [True, False])
def test_a_secret_of_any_form_is_struck_out_as_a_whole(secret, own, monkeypatch):
    if not own:
        monkeypatch.setenv("GROQ_API_KEY", secret)
    for said in (
        secret,
        secret.strip(),
        repr(secret),
        f"Bearer {secret}",
        repr(f"Bearer {secret}"),
        f"api_key={secret}",
    ):
        told = without_tokens(f"Invalid header value {said} of the request", *[secret] * own)
        assert not any(secret[start : start + 8] in told for start in range(len(secret) - 7)), told
        assert told.endswith(" of the request"), told


def test_of_secrets_in_one_another_nothing_is_left():
    assert without_tokens("by abcdefgh:ijklmnop", "abcdefgh:ijklmnop", "abcdefgh") == "by ***"


def test_an_argument_that_begins_like_an_option_is_an_argument_in_a_command():
    assert as_command("export", "-x", "--data", "-d.csv", "--int8") == "export ./-x --data -d.csv --int8"
    assert as_command("export", "a b", "--data", "c") == "export 'a b' --data c"

"""Secrets are struck out of texts, whatever they look like and wherever they stand."""

import pytest

from nlpkd.utils.secrets import without_tokens


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

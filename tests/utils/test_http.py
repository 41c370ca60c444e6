"""A server that is busy, slow, broken or elsewhere; its errors name no key and no password, whatever it says."""

from __future__ import annotations

import json
import random
import string
import time
import traceback
from email.utils import formatdate

import pytest
from label_server import LabelServer, too_many

from nlpkd.labelling.kinds import make_teacher
from nlpkd.teachers import ChatTeacher, DecisionTeacher
from nlpkd.utils import http
from nlpkd.utils.http import JSONClient, NoReply, NotServing

KEY, PASSWORD = "plainKeyOfThisServer", "passOfThisUser"


def echo(server: LabelServer, handler) -> bool:
    """Answer with all that the request says of who asks."""
    said = json.dumps({"error": {"message": f"{handler.headers['Authorization']} may not, {KEY}"}}).encode()
    handler.send_response(401)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(said)))
    handler.end_headers()
    handler.wfile.write(said)
    return True


def with_password(url: str) -> str:
    return url.replace("://", f"://me:{PASSWORD}@")


def decide(url: str) -> None:
    DecisionTeacher("judge", {"type": "noul", "instructions": "Good?"}, base_url=url, api_key=KEY).probabilities(["a"])


def decide_once(url: str) -> None:
    DecisionTeacher("judge", {"type": "noul"}, base_url=url, max_retries=0).probabilities(["a"])


def chat(url: str) -> None:
    ChatTeacher("judge", "Good?", ["no", "yes"], base_url=url, api_key=KEY, max_retries=0).probabilities(["a"])


@pytest.mark.parametrize("ask", [lambda url: JSONClient(url, KEY, max_retries=0).post({}), decide, chat])
def test_no_key_and_no_password_is_in_an_error(ask):
    with LabelServer(faults=(echo, echo)) as server:
        with pytest.raises(ValueError, match="401") as caught:
            ask(with_password(server.url))
    told = "".join(traceback.format_exception(caught.value))
    # A traceback quotes the lines of the code, whose constants are called otherwise.
    assert KEY not in told and PASSWORD not in told and "***" in str(caught.value), told


def odd_keys(count: int) -> list[str]:
    """Keys with signs in them, before them and after them that no key has, and those without."""
    generator = random.Random(0)
    keys = []
    for _ in range(count):
        parts = ["".join(generator.choices(string.ascii_letters + string.digits, k=9)) for _ in range(3)]
        between = generator.choice(["", "-", "+/", " ", "\n", "'", '"', "\\", "ä", "\t", "€", "&", "$"])
        before, after = (
            generator.choice(["", "Bearer ", " ", "'", "$"]),
            generator.choice(["", "==", "\n", "\r\n", " "]),
        )
        keys.append(before + between.join(parts) + after)
    return keys


def written(url: str, key: str):
    return make_teacher({"teacher": "chat", "model": "m", "question": "?", "classes": ["a", "b"], "base_url": url,
                         "api_key": key, "max_retries": 0}).answer(["a"])  # fmt: skip


def named(url: str, key: str):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEY_OF_TEST", key)
        return written(url, "$KEY_OF_TEST")


@pytest.mark.parametrize(
    "ask",
    [
        lambda url, key: JSONClient(url, key, max_retries=0).post({}),
        lambda url, key: ChatTeacher("m", "?", ["a", "b"], base_url=url, api_key=key, max_retries=0).answer(["a"]),
        written,
        named,
        lambda url, key: written(url, [key]),
    ],
)
def test_of_a_key_of_any_form_nothing_is_said(ask):
    refused = 0
    with LabelServer(faults=[echo] * 1000) as server:
        for key in odd_keys(30):
            with pytest.raises(ValueError) as caught:
                ask(server.url, key)
            told = "".join(traceback.format_exception_only(caught.value))
            assert caught.value.__cause__ is None and not said_of(key, told), told
            refused += "401" not in told
        assert refused + len(server.times) == 30 and refused >= 15


def said_of(key: str, told: str) -> list[str]:
    return [key[start : start + 8] for start in range(len(key) - 7) if key[start : start + 8] in told]


@pytest.mark.parametrize(
    "key", ["abcdefgh\n", "Bearer abcdefgh", "abc def", "'abcdefgh'", "ünïcödé", 12345678, ["a"], 0, " "]
)
def test_what_is_no_key_alone_is_refused_before_anything_is_asked(key):
    for make in (
        lambda **given: JSONClient("http://localhost:1", **given),
        lambda **given: DecisionTeacher("m", {"type": "noul"}, base_url="http://localhost:1", **given),
        lambda **given: ChatTeacher("m", "?", ["a", "b"], **given),
    ):
        with pytest.raises(ValueError, match="api_key must be a text, the key alone"):
            make(api_key=key)


def test_a_key_that_an_answer_cuts_is_not_said():
    def long(server: LabelServer, handler) -> bool:
        server.send(handler, 400, b"." * 290 + KEY.encode())
        return True

    with LabelServer(faults=(long,)) as server, pytest.raises(ValueError, match="400") as caught:
        JSONClient(server.url, KEY).post({})
    assert not said_of(KEY, str(caught.value))


def test_what_is_kept_of_a_teacher_has_no_password_in_it():
    question = {"type": "noul", "instructions": "Good?"}
    url = with_password("http://localhost:1")
    for teacher in (
        DecisionTeacher("judge", question, base_url=url),
        ChatTeacher("m", "Good?", ["a", "b"], base_url=url),
    ):
        assert teacher.describe()["base_url"] == "http://***@localhost:1"


@pytest.mark.parametrize("asked", ["0", "0.05", "soon", "-1", "nan", "", formatdate(0), "now"])
def test_a_busy_server_is_asked_again_whatever_it_says_of_the_time(asked):
    asked = formatdate(usegmt=True) if asked == "now" else asked
    with LabelServer(lambda request: {"a": 1}, faults=(too_many(asked),)) as server:
        assert JSONClient(server.url, max_retries=1).post({}) == {"a": 1}
    assert len(server.times) == 2 and server.times[1] - server.times[0] < 1.5


def test_every_status_that_may_pass_is_asked_again_and_no_other():
    def answers(status: int):
        return lambda server, handler: server.send(handler, status, b"busy", Retry_After="0") or True

    with LabelServer(lambda request: {"a": 1}) as server:
        for status in [*range(400, 420), 429, 451, *range(500, 600)]:
            server.faults, asked = [answers(status)], len(server.times)
            client = JSONClient(server.url, max_retries=1)
            if status in (408, 429) or status >= 500:
                assert client.post({}) == {"a": 1} and len(server.times) == asked + 2
            else:
                with pytest.raises(ValueError, match=f"answers {status}: busy"):
                    client.post({})
                assert len(server.times) == asked + 1


@pytest.mark.parametrize("ask", [lambda url: JSONClient(url, KEY, max_retries=0).post({}), decide_once, chat])
def test_a_status_of_one_request_alone_is_told_from_a_server_that_does_not_reply(ask):
    with LabelServer(lambda request: {}) as server:
        for status in (400, 401, 403, 404, 413, 422, 429, 451, 500, 503):
            server.faults = [lambda server, handler, status=status: server.send(handler, status, b"no") or True]
            with pytest.raises(ValueError, match=str(status)) as caught:
                ask(server.url)
            assert isinstance(caught.value, NoReply) == (status not in (400, 413, 422, 451)), status
            assert isinstance(caught.value, NotServing) == (status in (401, 403, 404, 429)), status
    with pytest.raises(NoReply):
        ask(server.url)


def inside(error):
    """An error in an answer of status 200."""
    body = json.dumps({"error": error}).encode()
    return lambda server, handler: server.send(handler, 200, body, Content_Type="application/json") or True


def chat_again(url: str) -> None:
    ChatTeacher("judge", "Good?", ["no", "yes"], base_url=url, api_key=KEY, max_retries=1, orders=1).answer(["a"])


@pytest.mark.parametrize("ask", [lambda url: JSONClient(url, KEY, max_retries=1).post({}), chat_again])
@pytest.mark.parametrize(
    ("error", "kind", "tries"),
    [
        ({"message": f"overloaded {KEY}", "code": 502}, NoReply, 2),
        ({"message": "no credits", "code": 402}, NotServing, 1),
        ({"message": "slow down", "code": 429}, NotServing, 2),
        ({"message": "flagged", "code": 400}, ValueError, 1),
        ({"message": "no such route"}, NoReply, 2),
        ({"message": "odd", "code": "429"}, NoReply, 2),
        ({"message": "odd", "code": 7}, NoReply, 2),
        ("no such route", NoReply, 2),
        (["odd"], NoReply, 2),
    ],
)
def test_an_error_in_an_answer_of_status_200_is_that_error_and_is_shown(ask, error, kind, tries):
    with LabelServer(faults=[inside(error)] * 2) as server, pytest.raises(ValueError) as caught:
        ask(server.url)
    assert type(caught.value) is kind and len(server.times) == tries
    shown = error["message"] if isinstance(error, dict) else "".join(error)
    assert shown.replace(KEY, "***") in str(caught.value) and not said_of(KEY, str(caught.value))


@pytest.mark.parametrize("asked", ["100000", "inf", formatdate(4e9)])
def test_a_long_wait_is_told_and_limited(asked, monkeypatch, caplog):
    monkeypatch.setattr(http, "LONGEST_WAIT_S", 0.2)
    monkeypatch.setattr(http, "_LONG_WAIT_S", 0.1)
    with LabelServer(lambda request: {"a": 1}, faults=(too_many(asked),)) as server:
        JSONClient(server.url, KEY, max_retries=1).post({})
    assert 0.2 <= server.times[1] - server.times[0] < 1.5
    assert "Waiting 0 s, then trying again" in caplog.text and "429: busy" in caplog.text


def trickle(server: LabelServer, handler) -> bool:
    """A byte now and then, far longer than anybody waits."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(20):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.1)
    return True


def test_an_answer_that_trickles_ends_with_the_time_of_a_try():
    with LabelServer(faults=(trickle,)) as server:
        began = time.monotonic()
        with pytest.raises(ValueError, match=r"does not answer: no whole answer within 0.3 s \(tries: 1\)"):
            JSONClient(server.url, timeout_s=0.3, max_retries=0).post({})
        assert time.monotonic() - began < 1
        # The next try has a connection of its own.
        server.faults, client = [trickle], JSONClient(server.url, timeout_s=0.3, max_retries=1)
        server.answer = lambda request: {"a": 1}
        assert client.post({}) == {"a": 1}


def nested(server: LabelServer, handler) -> bool:
    server.send(
        handler, 200, b'{"answers": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", Content_Type="application/json"
    )
    return True


@pytest.mark.parametrize("ask", [lambda url: JSONClient(url).post({}), decide, chat])
def test_json_of_any_depth_is_an_error_that_names_the_server(ask):
    with LabelServer(faults=(nested,)) as server, pytest.raises(ValueError, match=server.url):
        ask(server.url)
    assert len(server.times) == 1


@pytest.mark.parametrize("ask", [lambda url: JSONClient(url, KEY).post({"text": "private"}), decide, chat])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_nothing_is_sent_where_a_server_sends_on_to(ask, status):
    with LabelServer(lambda request: {}) as other:

        def elsewhere(server: LabelServer, handler) -> bool:
            server.send(handler, status, b"", Location=other.url.replace("127.0.0.1", "localhost") + "/v1")
            return True

        with LabelServer(faults=(elsewhere,)) as server, pytest.raises(ValueError) as caught:
            ask(server.url)
    assert not other.times and len(server.times) == 1
    assert server.url in str(caught.value) and other.url.replace("127.0.0.1", "localhost") in str(caught.value)


@pytest.mark.parametrize("to", ["/else", "http://[bad", "file:///etc/passwd", ""])
def test_wherever_a_server_sends_on_to_it_is_the_one_that_is_named(to):
    def elsewhere(server: LabelServer, handler) -> bool:
        server.send(handler, 307, b"", Location=to)
        return True

    with LabelServer(faults=(elsewhere,)) as server, pytest.raises(ValueError) as caught:
        JSONClient(server.url).post({})
    assert f"{server.url} answers 307 and sends on to {to}," in str(caught.value) or (
        to == "http://[bad" and f"{server.url} can't be asked: Invalid IPv6 URL" in str(caught.value)
    )


def authorizations(server: LabelServer) -> list[str | None]:
    """Let a server keep who asks."""
    found: list[str | None] = []

    def keep(_: LabelServer, handler) -> bool:
        found.append(handler.headers["Authorization"])
        return False

    server.faults = [keep]
    return found


def test_the_key_goes_before_what_a_netrc_has(tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login joe password hunter2\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with LabelServer(lambda request: {}) as server:
        found = authorizations(server)
        JSONClient(server.url, KEY).post({})
    assert found == [f"Bearer {KEY}"]


def test_a_proxy_of_the_environment_is_used(monkeypatch):
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with LabelServer(lambda request: {"a": 1}) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        found = authorizations(proxy)
        assert JSONClient("http://teacher.example/v1", KEY).post({}) == {"a": 1}
    assert found == [f"Bearer {KEY}"]


@pytest.mark.parametrize(
    "settings",
    [{"url": "8000"}, {"url": "localhost:8000"}, {"timeout_s": 0}, {"timeout_s": float("nan")}, {"timeout_s": "5"},
     {"max_retries": -1}, {"max_retries": 1.5}],
)  # fmt: skip
def test_settings_that_can_not_be_are_refused(settings):
    given = {"url": "http://localhost:1"} | settings
    with pytest.raises(ValueError, match="must be|starts with http"):
        JSONClient(**given)
    address = {"base_url": given.pop("url")}
    with pytest.raises(ValueError, match="must be|starts with http"):
        ChatTeacher("m", "?", ["a", "b"], **address, **given)

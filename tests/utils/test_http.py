"""Errors of a server name no key and no password, whatever the server says."""

from __future__ import annotations

import json
import traceback

import pytest
from label_server import LabelServer

from nlpkd.teachers import ChatTeacher, DecisionTeacher
from nlpkd.utils.http import JSONClient

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


def test_what_is_kept_of_a_teacher_has_no_password_in_it():
    question = {"type": "noul", "instructions": "Good?"}
    url = with_password("http://localhost:1")
    for teacher in (
        DecisionTeacher("judge", question, base_url=url),
        ChatTeacher("m", "Good?", ["a", "b"], base_url=url),
    ):
        assert teacher.describe()["base_url"] == "http://***@localhost:1"

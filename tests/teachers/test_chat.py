"""A chat teacher and the real client, against a server whose answers follow from the prompt."""

import math
import re

import numpy as np
import pytest
from label_server import LabelServer, broken, odd_versions, too_many

from nlpkd.teachers import ChatTeacher

CLASSES = {"sport": "games", "business": "money", "art": "pictures"}


def reply(choices):
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": choices}


def choice(content, top=None):
    tokens = [{"token": t, "logprob": math.log(p), "bytes": None} for t, p in (top or {}).items()]
    logprobs = {"content": [tokens[0] | {"top_logprobs": tokens}]} if tokens else None
    message = {"role": "assistant", "content": content}
    return {"index": 0, "message": message, "finish_reason": "length", "logprobs": logprobs}


def counted(usage):
    return reply([choice("A", {"A": 0.75, "B": 0.25})]) | {"usage": usage}


def options_of(request):
    return dict(re.findall(r"^([A-Z])\. (\w+)", request["messages"][0]["content"], flags=re.MULTILINE))


def biased(request):
    """Sport is right, but whatever stands at A gets 0.3 more; a tenth goes to another word."""
    weights = {"sport": 0.4, "business": 0.1, "art": 0.1}
    letters = options_of(request)
    return reply([choice("A", {f" {k}": weights[v] + 0.3 * (k == "A") for k, v in letters.items()} | {"The": 0.1})])


def test_log_probabilities_are_read_by_letter_and_averaged_over_orders():
    with LabelServer(biased) as server:
        teacher = ChatTeacher("m", "About what?", CLASSES, base_url=server.url, api_key="k", orders=60)
        found = teacher.probabilities(["a text"])
    # On average each class stands at A a third of the time.
    np.testing.assert_allclose(found[0], [0.5 / 0.9, 0.2 / 0.9, 0.2 / 0.9], atol=0.06)
    assert len(server.times) == 60


def test_votes_are_shares_of_the_answers():
    def votes(request):
        letter = {name: letter for letter, name in options_of(request).items()}
        assert request["n"] == 4
        return reply([choice(letter[name]) for name in ("sport", "sport", "art", "business")])

    with LabelServer(votes) as server:
        teacher = ChatTeacher("m", "About what?", list(CLASSES), base_url=server.url, api_key="k", votes=4)
        np.testing.assert_allclose(teacher.probabilities(["a", "b"]), [[0.5, 0.25, 0.25]] * 2, atol=1e-6)


def test_a_busy_server_is_asked_again():
    with LabelServer(biased, faults=(too_many("1"), broken)) as server:
        ChatTeacher("m", "?", CLASSES, base_url=server.url, api_key="k", orders=1).probabilities(["a"])
    assert len(server.times) == 3 and server.times[1] - server.times[0] >= 1


@pytest.mark.parametrize(
    ("usage", "kept"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 1}, (6, 2)),
        ({"prompt_tokens": 3.0, "completion_tokens": None}, (6, None)),
        ({"prompt_tokens": "3", "completion_tokens": -1}, (None, None)),
        *((usage, (None, None)) for usage in ({}, None, "many", [3, 1])),
    ],
)
def test_tokens_are_those_that_the_server_counts_if_it_does(usage, kept):
    with LabelServer(lambda request: counted(usage)) as server:
        found = ChatTeacher("m", "?", CLASSES, base_url=server.url, api_key="k").answer(["a"])
    assert [each and each[0] for each in (found.input_tokens, found.output_tokens)] == list(kept)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (reply([choice("A")]), "no log-probabilities: ask for votes"),
        (reply([choice("?", {"Sorry": 0.9})]), "none of the letters ABC"),
        (reply([]), "gives no answer"),
    ],
)
def test_answers_that_name_no_class_are_refused(answer, told):
    with LabelServer(lambda request: answer) as server, pytest.raises(ValueError, match=told):
        ChatTeacher("m", "?", CLASSES, base_url=server.url, api_key="k", max_retries=0).probabilities(["a"])


@pytest.mark.parametrize("votes", [None, 2])
def test_a_reply_of_any_form_is_an_answer_or_an_error_that_names_the_server(votes):
    replies = list(odd_versions(counted({"prompt_tokens": 3, "completion_tokens": 1})))
    told = set()
    with LabelServer(lambda request: replies.pop()) as server:
        teacher = ChatTeacher(
            "m", "?", CLASSES, base_url=server.url, api_key="k", orders=1, votes=votes, max_retries=0
        )
        while replies:
            try:
                found = teacher.answer(["a"])
                told.add(found.input_tokens is None or found.input_tokens[0])
            except ValueError as error:
                assert str(error).startswith(f"m at {server.url} "), error
    assert {3, True} <= told


def test_more_classes_than_letters_are_refused():
    with pytest.raises(ValueError, match="2 to 26"):
        ChatTeacher("m", "?", [str(n) for n in range(27)])

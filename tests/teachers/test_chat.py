"""A chat teacher and the real client, against a server whose answers follow from the prompt."""

import json
import math
import random
import re
from collections import Counter

import numpy as np
import pytest
from label_server import LabelServer, broken, cut_short, dropped, less_than_promised, odd_versions, too_many

from nlpkd.labelling.answer import key_of
from nlpkd.labelling.answers import AnswerFile
from nlpkd.teachers import ChatTeacher, FunctionTeacher
from nlpkd.teachers.base import _SAID
from nlpkd.teachers.chat import orders_of
from nlpkd.utils.http import NoReply

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


@pytest.mark.parametrize("orders", [3, 6])
def test_log_probabilities_are_read_by_letter_and_averaged_over_orders_which_leaves_no_bias_of_place(orders):
    texts = [f"text {number}" for number in range(5)]
    with LabelServer(biased) as server:
        teacher = ChatTeacher("m", "About what?", CLASSES, base_url=server.url, api_key="k", orders=orders)
        found = teacher.probabilities(texts)
    # Each class stands at A a third of the time.
    np.testing.assert_allclose(found, [[0.5 / 0.9, 0.2 / 0.9, 0.2 / 0.9]] * len(texts), atol=1e-6)
    assert len(server.times) == orders * len(texts)


@pytest.mark.parametrize("options", [2, 3, 4, 5, 25])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 24, 50, 125])
def test_orders_differ_as_long_as_there_are_any_and_an_option_is_at_each_place_equally_often(options, count):
    for text in ("a", "b", "ü", "d", "e"):
        orders = orders_of(text, options, count)
        assert orders == orders_of(text, options, count)
        assert all(sorted(order) == list(range(options)) for order in orders) and len(orders) == count
        assert len(set(map(tuple, orders))) == min(count, math.factorial(options))
        for option in range(options):
            at = Counter(order.index(option) for order in orders)
            assert {at[place] for place in range(options)} <= {count // options, -(-count // options)}


@pytest.mark.parametrize("votes", [None, 1])
@pytest.mark.parametrize(("options", "orders"), [(2, 1), (2, 2), (2, 3), (3, 8), (8, 2)])
def test_no_request_is_sent_twice_but_for_votes_which_are_drawn_anew(options, orders, votes):
    bodies = []

    def answer(request):
        bodies.append(json.dumps(request, sort_keys=True))
        return reply([choice("A", {"A": 1.0})])

    texts = [f"text {number}" for number in range(8)]
    with LabelServer(answer) as server:
        names = [f"class {number}" for number in range(options)]
        teacher = ChatTeacher("m", "?", names, base_url=server.url, orders=orders, votes=votes)
        teacher.answer(texts)
    different = min(orders, math.factorial(options))
    asked = orders if votes else different
    assert len(bodies) == asked * len(texts) == teacher.requests_per_call * len(texts)
    assert len(set(bodies)) == different * len(texts)
    assert set(Counter(bodies).values()) <= {asked // different, -(-asked // different)}
    assert teacher.expected_tokens("a")[1] == asked


@pytest.mark.parametrize("orders", [1, 2, 4])
def test_answers_of_an_earlier_version_to_the_same_question_are_taken_and_it_is_said(tmp_path, caplog, orders):
    def teacher(question="?", orders=orders):
        return ChatTeacher("m", question, ["a", "b"], base_url="http://localhost:1", orders=orders)

    # As it told of itself before, in its own files and in the names and records of others.
    described = {"name": "m", "question": {"instructions": "?", "options": ["a", "b"]},
                 "base_url": "http://localhost:1", "orders": orders, "votes": None}  # fmt: skip
    owner = {"classes": ["a", "b"], "teacher": described}
    path = tmp_path / "answers.jsonl"
    _SAID.clear()
    path.write_text(f"{json.dumps(owner)}\n{json.dumps([key_of('text'), [0.25, 0.75], 9, 2])}\n")
    kept = AnswerFile(path, teacher())
    assert kept.owner == owner
    assert [kept.ask(["text"])[0].probabilities for _ in range(2)] == [[0.25, 0.75]] * 2 and kept.requests == 0
    assert caplog.text.count("asked about some texts in one order more than once") == (orders > 1)
    caplog.clear()
    for other in [teacher("another?"), teacher(orders=3), FunctionTeacher(len, ["a", "b"])]:
        with pytest.raises(ValueError, match="another teacher or question"):
            AnswerFile(path, other).read()
    assert not caplog.text


def test_of_answers_of_this_version_nothing_is_said(tmp_path, caplog):
    _SAID.clear()
    with LabelServer(biased) as server:
        for _ in range(2):
            teacher = ChatTeacher("m", "?", CLASSES, base_url=server.url, api_key="k")
            AnswerFile(tmp_path / "answers.jsonl", teacher).ask(["text"])
    assert not caplog.text and len(server.times) == 2


def test_answers_of_another_kind_of_teacher_are_told_from_those_of_an_earlier_version(tmp_path):
    AnswerFile(tmp_path / "a", FunctionTeacher(lambda texts: [[1, 0]] * len(texts), ["a", "b"])).ask(["text"])
    with pytest.raises(ValueError, match="another teacher or question"):
        AnswerFile(tmp_path / "a", ChatTeacher("m", "?", ["a", "b"])).read()


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


def page(kind, body):
    return lambda server, handler: server.send(handler, 200, body, Content_Type=kind) or True


@pytest.mark.parametrize(
    "fault",
    [
        broken, dropped, cut_short, less_than_promised, page("text/html", b"<html>"), page("application/json", b""),
        page("application/json", b'{"choices": ['), page("application/json", b'{"error": {"code": 502}}'),
        page("application/json", b'{"choices": [{"error": {"code": 502}, "finish_reason": "error"}]}'),
    ],
)  # fmt: skip
def test_a_servers_passing_fault_costs_a_second_try_alone(fault):
    with LabelServer(biased, faults=(fault,)) as server:
        teacher = ChatTeacher("m", "?", CLASSES, base_url=server.url, api_key="k", orders=1)
        assert teacher.probabilities(["a"]).shape == (1, 3)
        assert len(server.times) == 2
        server.faults = [fault]
        with pytest.raises(NoReply, match=r"m at http.* \(tries: 1\)"):
            ChatTeacher("m", "?", CLASSES, base_url=server.url, orders=1, max_retries=0).probabilities(["a"])


def test_orders_that_were_answered_are_not_asked_again_where_a_later_one_failed():
    def wait(server, handler):
        return False

    with LabelServer(biased, faults=(wait, wait, broken)) as server:
        teacher = ChatTeacher("m", "?", CLASSES, base_url=server.url, api_key="k", orders=3, max_retries=0)
        with pytest.raises(ValueError, match="gives no answer"):
            teacher.probabilities(["a"])
        mended = teacher.probabilities(["a"])
        assert len(server.times) == 4
        np.testing.assert_array_equal(teacher.probabilities(["a"]), mended)
        assert len(server.times) == 7, "who asks once more gets new answers"


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
        (reply([choice("?", {"Sorry": 0.9})]), "the letters ABC for 0 of its answers"),
        (reply([choice("A", {"A": 1.0, "B": 1.0})]), "no log-probabilities"),
        (reply([choice("") | {"logprobs": {"content": []}}]), "the letters ABC for 0 of its answers"),
        (reply([choice("A") | {"logprobs": {"content": None}}]), "no log-probabilities: ask for votes"),
    ],
)
def test_answers_that_name_no_class_are_refused(answer, told):
    with LabelServer(lambda request: answer) as server, pytest.raises(ValueError, match=told):
        ChatTeacher("m", "?", CLASSES, base_url=server.url, api_key="k", max_retries=0).probabilities(["a"])


def odd_answers(count):
    """Answers to two classes: which tokens came, each with its share, and the sum of those that name a class."""
    generator = random.Random(0)
    for _ in range(count):
        shares = generator.sample(range(1, 100), 7)
        share = generator.choice([1e-9, 0.3, 0.49, 0.51, 0.7, 1.0])
        letters, others = (["A", " a", "b", "B\n"], ["<think>", "I", "**"])
        named = {each: share * part / sum(shares[:4]) for each, part in zip(letters, shares[:4], strict=True)}
        rest = {each: (1 - share) * part / sum(shares[4:]) for each, part in zip(others, shares[4:], strict=True)}
        yield named | {each: part for each, part in rest.items() if part}, share


def test_an_answer_is_read_only_where_half_of_it_names_classes():
    asked = list(odd_answers(60))
    replies = [reply([choice("?", tokens)]) for tokens, _ in asked]
    with LabelServer(lambda request: replies.pop(0)) as server:
        teacher = ChatTeacher("m", "?", ["a", "b"], base_url=server.url, api_key="k", orders=1, max_retries=0)
        for tokens, share in asked:
            if share < 0.5:
                with pytest.raises(ValueError, match="the letters AB for .* of its answers, and at least 0.5"):
                    teacher.probabilities(["a"])
                continue
            by_letter = [(tokens["A"] + tokens[" a"]) / share, (tokens["b"] + tokens["B\n"]) / share]
            np.testing.assert_allclose(np.sort(teacher.probabilities(["a"])[0]), np.sort(by_letter), atol=1e-5)


def test_as_many_votes_as_were_asked_for_must_come_and_half_of_them_name_a_class():
    told = {
        "for 0.1 of its answers": ["I"] * 9 + ["A"],
        "for 0.4 of its answers": ["A"] * 4 + ["I"] * 6,
        "for 0 of its answers": [None] * 10,
        "gives 1 answers where votes=10 asks for 10": ["A"],
        "gives 11 answers": ["A"] * 11,
        "gives 0 answers": [],
    }
    enough = ["A", "a", " a\n", "A ", "A"] + ["I"] * 5
    replies = [reply([choice(each) for each in answers]) for answers in (*told.values(), enough)]
    with LabelServer(lambda request: replies.pop(0)) as server:
        teacher = ChatTeacher("m", "?", ["a", "b"], base_url=server.url, api_key="k", votes=10, orders=1)
        for message in told:
            with pytest.raises(ValueError, match=message):
                teacher.probabilities(["a"])
        assert sorted(teacher.probabilities(["a"])[0]) == [0, 1]


def test_what_is_no_chat_completion_is_shown_with_the_address():
    said = {
        "<html>Log in, ***</html>": page("text/html", b"<html>Log in, theKeyOfThis</html>"),
        "data: ": page("text/event-stream", b'data: {"choices": []}'),
        "choices=[]": page("application/json", b'{"choices": []}'),
        "choices=None": page("application/json", b'{"choices": null}'),
        "no such route": page("application/json", b'{"error": "no such route"}'),
        "[1]": page("application/json", b"[1]"),
        "None": page("application/json", b"null"),
        "......": page("text/html", b"." * 190 + b"theKeyOfThis"),
    }
    with LabelServer(faults=tuple(said.values())) as server:
        teacher = ChatTeacher("m", "?", CLASSES, base_url=server.url, api_key="theKeyOfThis", max_retries=0)
        for start in said:
            with pytest.raises(ValueError, match="no chat completion: is base_url right") as caught:
                teacher.answer(["a"])
            assert f"m at {server.url} " in str(caught.value) and start in str(caught.value)
            assert "theKey" not in str(caught.value)


def test_a_model_that_calls_the_limit_of_tokens_otherwise_is_asked_so_from_then_on():
    def newer(server, handler):
        told = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        body = json.dumps({"error": {"message": told}}).encode()
        server.send(handler, 400, body, Content_Type="application/json")
        return True

    limits = []

    def answer(request):
        limits.append([name for name in request if name.startswith("max_")])
        return biased(request)

    with LabelServer(answer, faults=(newer,)) as server:
        ChatTeacher("m", "?", CLASSES, base_url=server.url, api_key="k", orders=2).probabilities(["a"])
        assert limits == [["max_completion_tokens"]] * 2 and len(server.times) == 3
        server.faults = [newer] * 2
        with pytest.raises(ValueError, match="gives no answer: BadRequestError.*max_completion_tokens"):
            ChatTeacher("m", "?", CLASSES, base_url=server.url, api_key="k", orders=1).probabilities(["a"])


@pytest.mark.parametrize("votes", [None, 1])
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


@pytest.mark.parametrize("odd", [["a"], {"x": 1}, {}, "", " \n", True, b"a", object()])
def test_what_asks_nothing_and_describes_nothing_in_words_is_refused_before_anything_is_asked(odd):
    with pytest.raises(ValueError, match="the class 'a' is described by words"):
        ChatTeacher("m", "?", {"a": odd, "b": "words"})
    for question in (odd, None, 3):
        with pytest.raises(ValueError, match="question must be what is asked"):
            ChatTeacher("m", question, ["a", "b"])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\x0b", "\x85", "\u2028", "\n\nB. "])
def test_an_option_is_one_line_whatever_is_in_a_name_or_a_description(end):
    classes = {f"sport{end}games": f"of{end}teams{end}", f"art{end}": None, "3": 5}
    asked = []
    with LabelServer(lambda request: asked.append(request) or reply([choice("A", {"A": 0.9})])) as server:
        ChatTeacher("m", "?", classes, base_url=server.url, api_key="k", orders=1).answer(["text"])
    lines = asked[0]["messages"][0]["content"].splitlines()
    assert [re.match(r"[A-C]\. ", line) is not None for line in lines] == [False] * 3 + [True] * 3 + [False]


def test_more_classes_than_letters_are_refused():
    ChatTeacher("m", "?", [str(n) for n in range(25)])
    with pytest.raises(ValueError, match="2 to 25"):
        ChatTeacher("m", "?", [str(n) for n in range(26)])


@pytest.mark.parametrize("votes", [None, 3])
@pytest.mark.parametrize("count", [2, 8, 9, 25])
def test_a_refusal_in_the_first_person_names_no_class_however_many_there_are(count, votes):
    answer = reply([choice(" I", {" I": 0.98, "A": 0.01})] * (votes or 1))
    with LabelServer(lambda request: answer) as server:
        teacher = ChatTeacher("m", "?", [str(n) for n in range(count)], base_url=server.url, orders=1, votes=votes)
        with pytest.raises(ValueError, match="A model that thinks aloud first, or refuses, names no class"):
            teacher.probabilities(["a"])


def test_answers_to_the_alphabet_of_earlier_versions_are_taken_where_the_letters_are_the_same():
    of_count = {count: ChatTeacher("m", "?", [str(n) for n in range(count)]).describe() for count in (8, 9)}
    assert "letters" not in of_count[8] and of_count[9]["letters"] == "ABCDEFGHJ"


@pytest.fixture
def environment(monkeypatch):
    """An environment that has all that the client looks for."""
    for name, value in {"API_KEY": "keyForOpenAI", "ORG_ID": "org-mine", "PROJECT_ID": "proj-mine"}.items():
        monkeypatch.setenv(f"OPENAI_{name}", value)
    return monkeypatch


def asked_with(server, **given):
    """Ask, and return the headers that the server gets."""
    seen = []
    server.faults = [lambda _, handler: seen.append(dict(handler.headers.items()))]
    teacher = ChatTeacher("m", "?", CLASSES, orders=1, max_retries=0, **given)
    teacher.probabilities(["a"])
    return teacher, {name.lower(): value for name, value in seen[0].items()}


def test_what_the_environment_has_for_openai_goes_to_no_other_server(environment):
    with LabelServer(biased) as server:
        _, without = asked_with(server, base_url=server.url)
        _, keyed = asked_with(server, base_url=server.url, api_key="keyOfServer")
    assert without["authorization"] == "Bearer none" and keyed["authorization"] == "Bearer keyOfServer"
    for headers in (without, keyed):
        assert not {"openai-organization", "openai-project"} & set(headers)
        assert not {"keyForOpenAI", "org-mine", "proj-mine"} & set(" ".join(headers.values()).split())


@pytest.mark.parametrize("url", [None, "https://api.openai.com/v1", "https://eu.api.openai.com/v1/"])
def test_the_environments_key_is_for_openai(environment, url):
    client = ChatTeacher("m", "?", CLASSES, base_url=url)._client
    assert client.auth_headers == {"Authorization": "Bearer keyForOpenAI"} and client.organization == "org-mine"


@pytest.mark.parametrize(
    "url",
    ["http://api.openai.com/v1", "https://openai.com.example/v1", "https://notopenai.com", "https://api.openai.com@h"],
)
def test_what_only_looks_like_openai_gets_no_key(environment, url):
    assert ChatTeacher("m", "?", CLASSES, base_url=url)._client.api_key == "none"


def test_a_server_that_wants_a_key_is_told_how_to_get_one(environment):
    def refuse(server, handler):
        server.send(handler, 401, b"who is it?")
        return True

    with LabelServer(faults=(refuse,)) as server, pytest.raises(ValueError, match="No key was sent.*give api_key"):
        ChatTeacher("m", "?", CLASSES, base_url=server.url, orders=1).probabilities(["a"])


def test_the_environments_server_is_the_one_that_is_named(environment):
    with LabelServer(biased) as one, LabelServer(biased) as other:
        environment.setenv("OPENAI_BASE_URL", one.url)
        first, headers = asked_with(one)
        assert headers["authorization"] == "Bearer keyForOpenAI"
        environment.setenv("OPENAI_BASE_URL", other.url)
        second, _ = asked_with(other)
        # Who was made for one server goes on asking it.
        first.probabilities(["b"])
        assert (len(one.times), len(other.times)) == (2, 1)
        assert [each.describe()["base_url"] for each in (first, second)] == [one.url, other.url]
        other.answer = lambda request: None
        with pytest.raises(ValueError, match=f"m at {other.url} "):
            second.probabilities(["a"])
    environment.setenv("OPENAI_BASE_URL", "localhost:8000")
    with pytest.raises(ValueError, match="starts with http"):
        ChatTeacher("m", "?", CLASSES)

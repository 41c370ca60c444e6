"""A chat model behind an OpenAI-compatible endpoint as a teacher."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import random
import string
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from nlpkd.data.columns import texts_again
from nlpkd.teachers.base import (
    LETTERS_PER_TOKEN,
    Answers,
    LabelingTeacher,
    as_count,
    as_probabilities,
    read_words,
)
from nlpkd.utils.disk.files import ODD_CONTENT
from nlpkd.utils.field_types import check_counts, plain_arguments
from nlpkd.utils.http import MayPass, NoReply, NotServing, check_requests, failure_of, status_in, try_often
from nlpkd.utils.packages import require
from nlpkd.utils.secrets import without_tokens

_PROMPT = (
    "{text}\n\n{question}\n{options}\nAnswer with the letter of the option that fits best ({first} to {last}) only."
)

# Without I, with which a model that refuses begins.
_LETTERS = string.ascii_uppercase.replace("I", "")

# Of an answer that names no class the rest would be a label all the same.
_LEAST_SHARE = 0.5

# Rounded ones sum to a little more than 1.
_MOST_PROBABILITY = 1.1

_WAY = "in orders that differ, and asked about some texts in one order more than once: such answers lean to places"

_LIMIT, _OTHER_LIMIT = "max_tokens", "max_completion_tokens"


class ChatTeacher(LabelingTeacher):
    """Ask a chat model for the letter of the class that fits a text.

    Each letter's probability is read from the log-probabilities of the first token, and divided by their sum over the
    options. Where the server gives none, `votes` answers are drawn, and a class's probability is its share of them.
    Where less than half of an answer, or of the votes, names a class, that is an error.
    Models prefer some places of a list: the options are given in `orders` orders that differ, drawn from the text, and
    the probabilities averaged. How often an option is at a place differs by one at most, and with as many orders as
    classes not at all. Needs the `openai` client (the extra `teachers`). A request is tried again as
    `nlpkd.utils.http.JSONClient` does. A redirection is an error, since what is asked is for this server alone.

    Args:
        model: the name that the server has for it.
        question: what is asked about a text, such as "What is it about?".
        classes: names of the classes, 25 at most; or a mapping from them to descriptions, None where there is none.
        base_url: of the server, such as `http://localhost:8000/v1`; if None the environment's `OPENAI_BASE_URL`, or
            OpenAI's where there is none.
        api_key: of the server. If None, the environment's `OPENAI_API_KEY` where the server is OpenAI's or the
            environment's, and none for any other server.
        orders: in how many orders the options are given, each a request. No more than there are (2 of 2 classes, 6 of
            3), since the same request gets the same probabilities again; but with `votes`, which are drawn anew, they
            come again.
        votes: draw so many answers of each order in place of log-probabilities.
        concurrency: texts that are asked about at the same time.
        timeout_s: seconds to wait for an answer.
        max_retries: how often a request is tried again.

    Raises:
        ValueError: for fewer than 2 or more than 25 classes, a blank question, a class that is described by something
            else than words, or an argument that can't be.
    """

    @plain_arguments
    def __init__(
        self,
        model: str,
        question: str,
        classes: Sequence[str] | Mapping[str, str | None],
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        orders: int = 2,
        votes: int | None = None,
        concurrency: int = 8,
        timeout_s: float = 60.0,
        max_retries: int = 6,
    ):
        self.classes = classes
        if len(self.classes) > len(_LETTERS):
            raise ValueError(f"give 2 to {len(_LETTERS)} classes, a letter each, got {len(self.classes)}")
        # The environment's key, organization and project are for the environment's server, and for OpenAI's.
        self._is_own = base_url is None or _is_openai(base_url)
        self.base_url = base_url or os.environ.get("OPENAI_BASE_URL") or None
        if api_key in (None, "") and self._is_own:
            api_key = os.environ.get("OPENAI_API_KEY")
        check_requests(self.base_url, timeout_s, max_retries, api_key)
        self._api_key = api_key or None
        check_counts(orders=orders, votes=1 if votes is None else votes, concurrency=concurrency)
        if not (isinstance(question, str) and question.strip()):
            raise ValueError(f"question must be what is asked about a text, in words, got {question!r:.100}")
        self.model = model
        self.question = question
        described = classes.values() if isinstance(classes, Mapping) else [None] * len(self.classes)
        self.options = [_option(name, words) for name, words in zip(self.classes, described, strict=True)]
        self.votes = votes
        self.orders = orders
        # The same request gets the same probabilities again, and other votes.
        self._asked_orders = orders if votes is not None else min(orders, math.factorial(len(self.classes)))
        self.way = _WAY if orders > 1 else None
        self.concurrency = concurrency
        self.rows_per_call, self.requests_per_call = 1, self._asked_orders
        self._limit = _LIMIT
        # Answers that were paid for, by text and order, until the text has all of them.
        self._kept: dict[tuple[str, int], tuple[np.ndarray, list[int | None]]] = {}
        self._timeout_s, self._max_retries = timeout_s, max_retries

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Ask about each text; see `LabelingTeacher.probabilities`."""
        return self.answer(texts).probabilities

    def answer(self, texts: Sequence[str]) -> Answers:
        """Ask about each text; the tokens are those that the server counts. See `LabelingTeacher.answer`."""
        texts = texts_again(texts, "texts")
        if len(texts) == 1:
            answers = [self._ask(texts[0])]
        else:
            with ThreadPoolExecutor(self.concurrency) as pool:
                answers = list(pool.map(self._ask, texts))
        shares, *tokens = (list(each) for each in zip(*answers, strict=True))
        return Answers(as_probabilities(shares, len(texts), self.classes, self.problem_type), *tokens)

    def expected_tokens(self, text: str) -> tuple[int, int]:
        """Estimate the tokens of a text's prompts and answers; see `LabelingTeacher.expected_tokens`."""
        letters = len(_PROMPT) + len(text) + len(self.question) + sum(len(each) + 4 for each in self.options)
        return self._asked_orders * -(-letters // LETTERS_PER_TOKEN), self._asked_orders * (self.votes or 1)

    def describe(self) -> dict[str, Any]:
        """Return model, question and server, and how it is asked."""
        question = {"instructions": self.question, "options": self.options}
        told = {
            "name": self.model, "question": question, "base_url": without_tokens(self.base_url or "") or None,
            "orders": self.orders, "votes": self.votes,
        }  # fmt: skip
        # Earlier versions asked with the alphabet, which differs from I on.
        letters = _LETTERS[: len(self.classes)]
        return told if string.ascii_uppercase.startswith(letters) else told | {"letters": letters}

    @property
    def _named(self) -> str:
        return f"{self.model} at {without_tokens(self.base_url or 'OpenAI')}"

    @functools.cached_property
    def _client(self) -> Any:
        openai = require("openai", "teachers")
        # What is asked is for this server alone.
        http = openai.DefaultHttpxClient(follow_redirects=False)
        named = {} if self._is_own else dict.fromkeys(("OpenAI-Organization", "OpenAI-Project"), openai.Omit())
        # The client wants a key where a server wants none.
        key = self._api_key if self._is_own else self._api_key or "none"
        return openai.OpenAI(
            base_url=self.base_url,
            api_key=key,
            http_client=http,
            default_headers=named,
            timeout=self._timeout_s,
            max_retries=0,
        )

    def _ask(self, text: str) -> tuple[list[float], int | None, int | None]:
        """Return the mean over the orders of each class's probability, and the tokens, None where none are told."""
        total = np.zeros(len(self.classes))
        tokens: list[list[int | None]] = []
        for number, order in enumerate(orders_of(text, len(self.classes), self._asked_orders)):
            letters = _LETTERS[: len(order)]
            options = "\n".join(f"{letter}. {self.options[k]}" for letter, k in zip(letters, order, strict=True))
            prompt = _PROMPT.format(
                text=text, question=self.question, options=options, first=letters[0], last=letters[-1]
            )
            shares, count = self._kept.get((text, number)) or self._shares(prompt, letters)
            self._kept[text, number] = shares, count
            tokens.append(count)
            total[order] += shares
        for number in range(self._asked_orders):
            self._kept.pop((text, number), None)
        asked, answered = (None if None in each else sum(each) for each in zip(*tokens, strict=True))
        return (total / self._asked_orders).tolist(), asked, answered

    def _shares(self, prompt: str, letters: str) -> tuple[np.ndarray, list[int | None]]:
        """Return each letter's share of the answer to a prompt, and the tokens that the server counts."""
        reply = try_often(functools.partial(self._send, prompt), self._max_retries)
        try:
            found = _first_tokens(reply.choices[0]) if self.votes is None else _votes(reply.choices)
            told = [getattr(reply.usage, each, None) for each in ("prompt_tokens", "completion_tokens")]
        except ODD_CONTENT:
            raise ValueError(self._no_completion(reply)) from None
        whole = 0.0 if found is None else sum(found.values())
        if found is None or (self.votes is None and not whole <= _MOST_PROBABILITY):
            raise ValueError(
                f"{self._named} gives no log-probabilities: ask for votes, such as votes=10 (what it gives "
                f"sums to {whole:.3g})"
            )
        if self.votes is not None and whole != self.votes:
            raise ValueError(
                f"{self._named} gives {whole:.0f} answers where votes={self.votes} asks for {self.votes}: if it gives "
                f"one a request, ask with votes=1 and orders={self.votes}"
            )
        weights = np.array([found.get(letter, 0.0) for letter in letters])
        share = weights.sum() / (self.votes or 1)
        if not share >= _LEAST_SHARE:
            said = without_tokens(repr(found), self._api_key)
            raise ValueError(
                f"{self._named} answers with the letters {letters} for {share:.2g} of its answers, and at least "
                f"{_LEAST_SHARE} is needed: it says {said:.300}. A model that thinks aloud first, or refuses, names "
                "no class"
            )
        return weights / weights.sum(), [as_count(each) for each in told]

    def _no_completion(self, said: Any) -> str:
        """Say what stands in the place of an answer."""
        return (
            f"{self._named} gives no chat completion: is base_url right, such as http://localhost:8000/v1? It answers "
            f"{without_tokens(repr(said), self._api_key):.200}"
        )

    def _send(self, prompt: str) -> Any:
        """Send a prompt once, and return what the client reads in the answer."""
        openai = require("openai", "teachers")
        asked: dict[str, Any] = {"model": self.model, "messages": [{"role": "user", "content": prompt}]}
        if self.votes is None:
            asked |= {"logprobs": True, "top_logprobs": 20, "temperature": 0.0}
        else:
            asked |= {"n": self.votes, "temperature": 1.0}
        limit = self._limit
        try:
            create = functools.partial(self._client.chat.completions.create, **asked)
            try:
                reply = create(**{limit: 1})
            except openai.BadRequestError as error:
                # Models that think call the limit otherwise, and refuse the usual name.
                if limit == _OTHER_LIMIT or _OTHER_LIMIT not in str(error):
                    raise
                self._limit = _OTHER_LIMIT
                reply = create(**{_OTHER_LIMIT: 1})
        except (openai.OpenAIError, *ODD_CONTENT) as error:
            raise self._failure(error) from None
        if isinstance(reply, str):
            # What is no JSON.
            raise MayPass(self._no_completion(reply), NotServing)
        if told := _error_in(reply):
            raise failure_of(self._no_completion(told), status_in(told))
        return reply

    def _failure(self, error: Exception) -> Exception:
        """Return what an error of the client is: of this request, of the server, or one that may pass."""
        openai = require("openai", "teachers")
        reason, headers = f"{type(error).__name__}: {error}", getattr(getattr(error, "response", None), "headers", {})
        if "location" in headers:
            reason += f". It sends on to {headers['location']}, where nothing is sent"
        status = getattr(error, "status_code", None)
        if self._api_key is None and status in (401, 403):
            reason += ". No key was sent, since OPENAI_API_KEY is for OpenAI alone: give api_key"
        reason = f"{self._named} gives no answer: {without_tokens(reason, self._api_key)}"
        if isinstance(error, json.JSONDecodeError):
            return MayPass(reason, NotServing)
        if isinstance(error, (openai.APIConnectionError, openai.APIStatusError)):
            return failure_of(reason, status, headers.get("retry-after"))
        return NoReply(reason)


def orders_of(text: str, options: int, count: int) -> list[list[int]]:
    """Draw the orders in which options are given beside a text, the same ones each time.

    Args:
        text: the text.
        options: how many there are.
        count: of the orders.

    Returns:
        Orders that differ, as long as there are any; then they come again. How often an option is at a place differs
        by one at most.
    """
    generator = random.Random(hashlib.sha256(text.encode()).digest())
    found: list[list[int]] = []
    circles: set[tuple[int, ...]] = set()
    while len(found) < count:
        order = generator.sample(range(options), options)
        start = order.index(0)
        circle = tuple(order[start:] + order[:start])
        if circle in circles:
            continue
        circles.add(circle)
        if len(circles) == math.factorial(options - 1):
            circles.clear()
        # In all turns of a circle each option is at each place once.
        turns = [0, *generator.sample(range(1, options), options - 1)]
        found += [order[turn:] + order[:turn] for turn in turns]
    return found[:count]


def _option(name: str, words: Any) -> str:
    """Return a class as it stands in the list of options: a line, whatever is in it."""
    told = name if words is None else f"{name}: {read_words(words, name)}"
    return " ".join(told.split())


def _is_openai(url: Any) -> bool:
    """Check whether an address is one of OpenAI's own."""
    address = urlsplit(str(url))
    return address.scheme == "https" and f".{address.hostname}".endswith(".openai.com")


def _error_in(reply: Any) -> Any:
    """Return what a server says went wrong in an answer of status 200, or in its first choice; None if nothing did."""
    choices = getattr(reply, "choices", None)
    return getattr(choices[0] if choices and isinstance(choices, list) else reply, "error", None)


def _first_tokens(choice: Any) -> dict[str, float] | None:
    """Return the probability of each first token, spaces and case aside; None where a server tells none.

    An answer without any token, as a filter leaves it, has none.
    """
    content = choice.logprobs.content if choice.logprobs else None
    if content is None or (content and not content[0].top_logprobs):
        return None
    found: defaultdict[str, float] = defaultdict(float)
    for token in content[0].top_logprobs if content else ():
        found[token.token.strip().upper()] += math.exp(token.logprob)
    return dict(found)


def _votes(choices: Any) -> dict[str, float]:
    """Return how often each answer comes, spaces and case aside."""
    return dict(Counter((choice.message.content or "").strip().upper() for choice in choices))

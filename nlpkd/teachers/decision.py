"""A typed question, answered by any chat model or decision model in one forward pass."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from nlpkd.data.columns import texts_again
from nlpkd.models.loading import named_in_errors
from nlpkd.models.source import LocalModel
from nlpkd.tasks import MULTI_LABEL, SINGLE_LABEL
from nlpkd.teachers.base import LETTERS_PER_TOKEN, Answers, LabelingTeacher, as_probabilities
from nlpkd.utils.disk.files import ODD_CONTENT
from nlpkd.utils.field_types import check_counts, plain_arguments
from nlpkd.utils.http import JSONClient
from nlpkd.utils.secrets import without_tokens


class DecisionTeacher(LabelingTeacher):
    """Ask a question of transformers' decision pipeline about every text, here or at a server.

    The question says what the classes are:

    - `{"type": "choice", "instructions": "What is it about?", "criteria": {"sport": "Games and teams", "business":
      None}}`: one class a text, the keys of `criteria`.
    - `{"type": "noul", "instructions": "Is it spam?"}`: the two classes `false` and `true`.
    - `{"type": "score", "instructions": "How urgent?", "criteria": ["can wait", "today"]}`: one class a level.
    - `{"spam": {"type": "noul", ...}, "rude": {"type": "noul", ...}}`: several labels a text.

    Args:
        model: a path, a Hub id or a model, as `pipeline("decision")` takes it; of a server the name it knows.
        question: the question.
        base_url: of a server with the route `/v1/systemone`, such as `http://localhost:8000` of `transformers serve`;
            the model runs here if None.
        api_key: of the server.
        batch_size: prompts of a forward pass here.
        concurrency: requests at the same time to a server.
        timeout_s: seconds to wait for a server's answer.
        max_retries: how often a request is tried again; see `nlpkd.utils.http.JSONClient`.
        **pipeline_settings: further arguments of `transformers.pipeline`, such as `tokenizer`, `dtype` or `device`.

    Raises:
        ValueError: if the question is none of these kinds, or its instructions are blank.
    """

    @plain_arguments
    def __init__(
        self,
        model: Any,
        question: Mapping[str, Any],
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        batch_size: int = 32,
        concurrency: int = 8,
        timeout_s: float = 60.0,
        max_retries: int = 6,
        **pipeline_settings: Any,
    ):
        check_counts(batch_size=batch_size, concurrency=concurrency)
        self.model = model
        # As it is sent, and comes back: JSON's names are texts.
        self.question = json.loads(json.dumps(dict(question)))
        self.classes, self.problem_type, self._questions = read_question(self.question)
        for name, each in self._questions.items():
            asked = each.get("instructions")
            if isinstance(asked, str) and not asked.strip():
                raise ValueError(f"the instructions of {name!r} must say what is asked, or be left out, got {asked!r}")
        self.base_url = base_url
        self.batch_size = batch_size
        self._local = LocalModel(model, pipeline_settings)
        self._client: JSONClient | None = None
        if base_url is not None:
            url = base_url.rstrip("/").removesuffix("/v1") + "/v1/systemone"
            self._client = JSONClient(url, api_key, timeout_s, max_retries)
            self.rows_per_call, self.concurrency = 1, concurrency

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Ask about each text; see `LabelingTeacher.probabilities`."""
        return self.answer(texts).probabilities

    def answer(self, texts: Sequence[str]) -> Answers:
        """Ask about each text; a server's tokens are those that it counts. See `LabelingTeacher.answer`."""
        texts = texts_again(texts, "texts")
        if self._client is None:
            read = (self._questions, self.classes, self.problem_type)
            found = [(read_answers(each, *read), count) for each, count in self._batches.answer(texts)]
        elif len(texts) == 1:
            found = [self._ask_server(texts[0])]
        else:
            with ThreadPoolExecutor(self.concurrency) as pool:
                found = list(pool.map(self._ask_server, texts))
        rows = [row for row, _ in found]
        tokens = [[count[place] for _, count in found] for place in (0, 1)]
        return Answers(as_probabilities(rows, len(texts), self.classes, self.problem_type), *tokens)

    def expected_tokens(self, text: str) -> tuple[int, int]:
        """Estimate the tokens of a text's prompts; see `LabelingTeacher.expected_tokens`."""
        letters = sum(len(text) + len(json.dumps(each, ensure_ascii=False)) for each in self._questions.values())
        return -(-letters // LETTERS_PER_TOKEN), 0

    def describe(self) -> dict[str, Any]:
        """Return model, question and server; of a model that runs here what tells its weights."""
        name = self.model if isinstance(self.model, str) else getattr(self.model, "name_or_path", str(self.model))
        url = without_tokens(self.base_url or "") or None
        told = {"name": str(name), "question": self.question, "base_url": url}
        return told if self._client is not None else told | self._local.describe()

    def _ask_server(self, text: str) -> tuple[list[float], tuple[Any, Any]]:
        """Return the probabilities of the classes, and the tokens of prompts and answers as the server tells them."""
        assert self._client is not None
        reply = self._client.post({"model": str(self.model), "state": text, "questions": self._questions})
        try:
            answers, usage = dict(reply["answers"]), reply.get("usage")
            if answers.keys() != self._questions.keys():
                raise ValueError(f"it answers {list(answers)}")
            row = read_answers(answers, self._questions, self.classes, self.problem_type)
        except ODD_CONTENT as error:
            told = self._client.without_secrets(repr(reply))[:300]
            raise ValueError(
                self._client.without_secrets(
                    f"{self._client.url} must answer {list(self._questions)}, got {told}: {error}"
                )
            ) from None
        counts = usage if isinstance(usage, Mapping) else {}
        return row, (counts.get("input_tokens"), counts.get("output_tokens"))

    @functools.cached_property
    def _batches(self) -> Any:
        from transformers import pipeline

        from nlpkd.teachers.decision_batches import DecisionBatches

        with named_in_errors(self.model):
            pipe = pipeline("decision", model=self.model, **self._local.settings)
        return DecisionBatches(pipe, self._questions, self.batch_size)


def read_answers(
    answers: Mapping[str, Any], questions: Mapping[str, Any], classes: Sequence[str], problem_type: str
) -> list[float]:
    """Read the probabilities of one text in the order of the classes.

    Args:
        answers: by the questions' names, as the pipeline and the route `/v1/systemone` give them.
        questions: that were asked, likewise.
        classes: of `read_question`.
        problem_type: likewise.

    Returns:
        One probability a class.

    Raises:
        ValueError: if the answers do not have them.
    """
    try:
        if problem_type == MULTI_LABEL:
            return [float(answers[name]["noul"]) for name in classes]
        (answer,) = answers.values()
        if "noul" in answer:
            # One that is above 1 was rounded, or is refused with all others that are no probabilities.
            return [max(0.0, 1 - float(answer["noul"])), float(answer["noul"])]
        (question,) = questions.values()
        is_choice = question["type"] == "choice"
        keys = list(question["criteria"]) if is_choice else [str(level) for level in range(len(classes))]
        by_option = answer["probabilities"]
        if set(by_option) != set(keys):
            raise ValueError(f"probabilities of {sorted(by_option)} are not those of {keys}")
        return [float(by_option[key]) for key in keys]
    except ODD_CONTENT as error:
        raise ValueError(f"the answer {dict(answers)!r:.300} has no probability for each class: {error}") from None


def read_question(question: Mapping[str, Any]) -> tuple[tuple[str, ...], str, dict[str, Any]]:
    """Read what a question makes of a text.

    Args:
        question: as `DecisionTeacher` takes it.

    Returns:
        The classes, the task, and the questions by name.

    Raises:
        ValueError: if it is no question with two or more classes.
    """
    try:
        from transformers.decision import DecisionConfig, parse_questions
    except ImportError as error:
        raise ImportError("DecisionTeacher needs the decision pipeline of transformers 5.23: upgrade it") from error

    if not isinstance(question.get("type"), str):
        parse_questions(dict(question), DecisionConfig())
        others = [name for name, each in question.items() if each["type"] != "noul"]
        if others or len(question) < 2:
            raise ValueError(
                f"several questions are several labels a text, each of type 'noul'; got {others or list(question)}: "
                "give a single question without its name"
            )
        return tuple(question), MULTI_LABEL, dict(question)
    questions = {"label": dict(question)}
    parse_questions(questions, DecisionConfig(labels=_ENOUGH_LABELS))
    criteria = question.get("criteria")
    if question["type"] == "noul":
        return ("false", "true"), SINGLE_LABEL, questions
    assert criteria is not None
    levels = all(isinstance(level, str) for level in criteria) and len(set(criteria)) == len(criteria)
    classes = tuple(criteria) if levels else tuple(map(str, range(len(criteria))))
    if len(classes) < 2:
        raise ValueError(f"a question has at least two options, got {list(classes)}")
    return classes, SINGLE_LABEL, questions


# How many options a model reads is checked by the model's own config; here any number is a question.
_ENOUGH_LABELS = {kind: list(map(str, range(1000))) for kind in ("choice", "score")}

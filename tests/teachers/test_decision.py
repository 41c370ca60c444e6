"""Teachers of a typed question: the pipeline's own numbers, here and at a server, and a server's faults."""

import json

import numpy as np
import pytest
from chat_models import save_chat_model
from label_server import (
    LabelServer,
    broken,
    cut_short,
    dropped,
    less_than_promised,
    odd_versions,
    right_answer,
    too_many,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from nlpkd.teachers import DecisionTeacher

pytest.importorskip("transformers.decision", reason="transformers has decision models from 5.23 on")

CHOICE = {
    "type": "choice",
    "instructions": "About what?",
    "criteria": {"sport": "Games", "business": None, "art": "x"},
}
YES_NO = {"type": "noul", "instructions": "Is it spam?"}
SCORE = {"type": "score", "instructions": "How urgent?", "criteria": ["can wait", "today"]}
LABELS = {"spam": YES_NO, "rude": {"type": "noul", "instructions": "Is it rude?", "criteria": {"true": "insults"}}}
TEXTS = ["Free money!", "The match ended two to one.", "a", "Long " * 40, "Ünï 中文", "The match ended two to one."]


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    return str(save_chat_model(tmp_path_factory.mktemp("chat")))


@pytest.mark.parametrize(
    ("question", "classes", "read"),
    [
        (CHOICE, ("sport", "business", "art"), lambda a: list(a["label"]["probabilities"].values())),
        (SCORE, ("can wait", "today"), lambda a: list(a["label"]["probabilities"].values())),
        (YES_NO, ("false", "true"), lambda a: [1 - a["label"]["noul"], a["label"]["noul"]]),
        (LABELS, ("spam", "rude"), lambda a: [a["spam"]["noul"], a["rude"]["noul"]]),
    ],
    ids=["choice", "score", "noul", "several nouls"],
)
def test_batched_answers_are_those_of_the_pipeline(chat_model, question, classes, read):
    decide = pipeline("decision", model=chat_model)
    questions = question if question is LABELS else {"label": question}
    expected = [read(decide({"state": text, "questions": questions})) for text in TEXTS]
    teacher = DecisionTeacher(chat_model, question, batch_size=4)
    found = teacher.probabilities(TEXTS)
    assert teacher.classes == classes
    assert found.dtype == np.float32 and found.shape == (len(TEXTS), len(classes))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(found, axis=0).max() > 0.02, "the model must tell texts apart for this test to mean anything"


def test_what_the_pipeline_is_made_with_tells_answers_apart_and_a_server_is_asked_without(chat_model):
    settings = [{}, {"dtype": "bfloat16"}, {"tokenizer": AutoTokenizer.from_pretrained(chat_model)}]
    described = [json.dumps(DecisionTeacher(chat_model, YES_NO, **each).describe()) for each in settings]
    assert len(set(described)) == 3
    assert "weights" not in DecisionTeacher("m", YES_NO, base_url="http://localhost:1").describe()


def test_a_server_is_asked_with_a_limit_and_its_options_may_come_in_any_order():
    with LabelServer() as server:
        server.delay_s = 0.05
        teacher = DecisionTeacher("m", CHOICE, base_url=server.url, concurrency=3)
        found = teacher.probabilities(["x" * 7] * 8 + ["x" * 4])
    assert server.most_busy <= 3
    np.testing.assert_allclose(found[0], [0.7, 0.15, 0.15], atol=1e-6)
    np.testing.assert_allclose(found[-1], [0.4, 0.3, 0.3], atol=1e-6)


@pytest.mark.parametrize("fault", [broken, dropped, cut_short, less_than_promised])
def test_a_servers_passing_fault_costs_a_second_try_alone(fault):
    with LabelServer(faults=(fault,)) as server:
        found = DecisionTeacher("m", YES_NO, base_url=server.url).probabilities(["x" * 3])
    assert len(server.times) == 2
    np.testing.assert_allclose(found, [[0.7, 0.3]], atol=1e-6)
    # A server that cuts its answers short has too much to do already.
    assert fault in (broken, dropped) or server.times[1] - server.times[0] >= 0.4


def test_retry_after_is_waited_for():
    with LabelServer(faults=(too_many("2"),)) as server:
        DecisionTeacher("m", YES_NO, base_url=server.url).probabilities(["x"])
    assert server.times[1] - server.times[0] >= 2


def test_a_lasting_fault_is_an_error_with_its_status():
    with LabelServer(faults=(broken,) * 9) as server:
        teacher = DecisionTeacher("m", YES_NO, base_url=server.url, max_retries=1)
        with pytest.raises(ValueError, match="500: oops"):
            teacher.probabilities(["x"])
    assert len(server.times) == 2


def test_no_server_is_an_error():
    with pytest.raises(ValueError, match="does not answer"):
        DecisionTeacher("m", YES_NO, base_url="http://127.0.0.1:9", max_retries=0).probabilities(["x"])


@pytest.mark.parametrize(
    ("probabilities", "told"),
    [
        ({"sport": float("nan"), "business": 0.5, "art": 0.5}, "text 0 of 1 must be probabilities that sum to 1"),
        ({"sport": 0.1, "business": 0.1, "art": 0.1}, "sum to 1, got"),
        ({"sport": -0.5, "business": 1.0, "art": 0.5}, "must be probabilities"),
        ({"sport": 0.5, "business": 0.5}, "no probability for each class"),
        ({"sport": "much", "business": 0.5, "art": 0.5}, "no probability for each class"),
    ],
)
def test_an_answer_that_is_no_distribution_is_refused(probabilities, told):
    def wrong(request):
        return {"model": "m", "answers": {"label": {"type": "choice", "probabilities": probabilities}}}

    with LabelServer(wrong) as server, pytest.raises(ValueError, match=told):
        DecisionTeacher("m", CHOICE, base_url=server.url).probabilities(["x"])


@pytest.mark.parametrize(
    ("share", "taken"), [(1.0005, 1.0), (0.25, 0.25), (1.5, None), (-0.0005, None), (float("nan"), None)]
)
@pytest.mark.parametrize("question", [YES_NO, LABELS])
def test_a_share_that_was_rounded_is_taken_whether_one_question_is_asked_or_several(question, share, taken):
    def answer(request):
        return {"answers": {name: {"noul": share} for name in request["questions"]}}

    with LabelServer(answer) as server:
        teacher = DecisionTeacher("m", question, base_url=server.url)
        if taken is None:
            with pytest.raises(ValueError, match="must be probabilities"):
                teacher.probabilities(["x"])
            return
        found = teacher.probabilities(["x"])
    np.testing.assert_allclose(found, [[taken, taken] if question is LABELS else [1 - taken, taken]], atol=1e-6)


def test_a_reply_of_any_form_is_an_answer_or_an_error_that_names_the_server():
    replies, refused = [], 0
    with LabelServer(lambda request: replies.pop()) as server:
        for question in (CHOICE, YES_NO, LABELS):
            teacher = DecisionTeacher("m", question, base_url=server.url, max_retries=0)
            asked = {
                "model": "m",
                "state": "abc",
                "questions": question if question is LABELS else {"label": question},
            }
            replies += odd_versions(right_answer(asked) | {"usage": {"input_tokens": 3, "output_tokens": 1}})
            while replies:
                try:
                    teacher.answer(["abc"])
                except ValueError as error:
                    assert server.url in str(error) or "text 0 of 1" in str(error), error
                    refused += 1
    assert refused > 100


def test_an_answer_to_another_question_is_refused():
    def other(request):
        return {"answers": {"else": right_answer(request)["answers"]["label"]}}

    with LabelServer(other) as server, pytest.raises(ValueError, match=r"must answer \['label'\]"):
        DecisionTeacher("m", CHOICE, base_url=server.url).probabilities(["x"])


@pytest.mark.parametrize(
    ("question", "told"),
    [
        ({"type": "maybe"}, "`type` must be one of"),
        ({"type": "choice", "criteria": {}}, "needs `criteria`"),
        ({"a": YES_NO, "b": CHOICE}, "several questions are several labels"),
        ({"a": YES_NO}, "without its name"),
        ({"type": "choice", "criteria": {"only": None}}, "at least two options"),
    ],
)
def test_questions_that_make_no_classes_are_refused(question, told):
    with pytest.raises(ValueError, match=told):
        DecisionTeacher("m", question)


def test_a_token_that_the_model_has_no_embedding_for_is_refused(chat_model):
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    known = AutoModelForCausalLM.from_pretrained(chat_model).get_input_embeddings().num_embeddings
    tokenizer.add_tokens([f"@USER{number}" for number in range(known)])
    teacher = DecisionTeacher(chat_model, YES_NO, tokenizer=tokenizer)
    assert teacher.probabilities(TEXTS).shape == (len(TEXTS), 2)
    with pytest.raises(
        ValueError, match=f"of {known} tokens, and the prompts have token .*: load model and tokenizer"
    ):
        teacher.probabilities([*TEXTS, f"Hello @USER{known - 1}"])

"""Many texts at once get the pipeline's own answers, whatever the chat template does with a text."""

import numpy as np
import pytest
from chat_models import TEMPLATE, save_chat_model
from transformers import AutoTokenizer, pipeline

decision_batches = pytest.importorskip("nlpkd.teachers.decision_batches", reason="transformers has it from 5.23 on")

QUESTIONS = {"label": {"type": "choice", "instructions": "About what?", "criteria": {"sport": "Games", "art": None}}}
TEXTS = [
    "The match ended.", "a", "Long " * 30, " outer space\n", "It says Yes or No.", "An end </s> and a start <s>.",
    "A <|mark|> and a <|split|>", "\U000f0000</s>\U000f0001", "{{ state }} {% if %} \\n",
    "Ünï 中文 'q' \"d\"", "x\n\ny",
]  # fmt: skip
QUESTION_FIRST = (
    "<s>Question: {{ question.instructions }} {% for label in question.labels %}{{ label }}: "
    "{{ question.options[loop.index0] }}, {% endfor %}\n{{ state }}\nAnswer: <|mark|>"
)
# How a chat template may write a message that is not as it is.
TEMPLATES = {
    "as it is": TEMPLATE,
    "trimmed": TEMPLATE.replace("message.content", "message.content | trim"),
    "as JSON": TEMPLATE.replace("message.content", "message.content | tojson"),
    "twice": TEMPLATE.replace("{{ message.content }}", "{{ message.content }} {{ message.content }}"),
    "in a tag's place": TEMPLATE.replace(
        "{{ message.content }}", "{{ 'special' if '</s>' in message.content else message.content }}"
    ),
}


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    return save_chat_model(tmp_path_factory.mktemp("chat"))


def pipeline_with(chat_model, **changes):
    pipe = pipeline("decision", model=str(chat_model), tokenizer=AutoTokenizer.from_pretrained(chat_model))
    pipe.tokenizer.chat_template = changes.get("chat_template", pipe.tokenizer.chat_template)
    pipe.decision_config.chat_template = changes.get("decision_template")
    return pipe


def assert_same(batches, texts=TEXTS):
    found = batches.answer(texts)
    for text, (answers, (count, _)) in zip(texts, found, strict=True):
        request = {"state": text, "questions": QUESTIONS}
        expected = batches.pipe(request)["label"]["probabilities"]
        assert answers["label"]["probabilities"].keys() == expected.keys()
        np.testing.assert_allclose(
            list(answers["label"]["probabilities"].values()), list(expected.values()), atol=1e-5, err_msg=repr(text)
        )
        assert count == batches.pipe.preprocess(request)["prompts"][0][0]["input_ids"].shape[-1]


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_every_text_is_asked_about_in_the_pipelines_own_words(chat_model, template):
    assert_same(decision_batches.DecisionBatches(pipeline_with(chat_model, chat_template=template), QUESTIONS, 4))


def test_the_prompts_of_plain_texts_are_rendered_once(chat_model, monkeypatch):
    batches = decision_batches.DecisionBatches(pipeline_with(chat_model), QUESTIONS, 4)
    batches.answer(["a"])
    monkeypatch.setattr(batches.pipe, "preprocess", lambda request: pytest.fail(f"rendered anew: {request['state']}"))
    batches.answer(["The match ended.", "Ünï 中文 'q' \"d\"", "x\n\ny"])


def test_what_all_prompts_begin_with_goes_through_the_model_once(chat_model):
    pipe = pipeline_with(chat_model, decision_template=QUESTION_FIRST)
    batches, read = decision_batches.DecisionBatches(pipe, QUESTIONS, 4), []
    pipe.model.register_forward_pre_hook(
        lambda model, arguments, inputs: read.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    texts = [f"The match number {number} ended." for number in range(10)]
    batches.answer(texts)
    lengths = [pipe.preprocess({"state": text, "questions": QUESTIONS})["prompts"][0][0] for text in texts]
    shortest = min(each["input_ids"].shape[-1] for each in lengths)
    (rows, start), *others = read[-4:]
    assert rows == 1 and start > 40 and [rows for rows, _ in others] == [4, 4, 2]
    assert all(shortest - start <= tokens < 40 for _, tokens in others)
    assert_same(batches, TEXTS)


def test_a_model_that_sees_what_follows_gets_a_mask(chat_model):
    pipe = pipeline_with(chat_model)
    assert decision_batches.DecisionBatches(pipe, QUESTIONS, 4)._is_causal
    for layer in pipe.model.model.layers:
        layer.self_attn.is_causal = False
    pipe.model.config.is_causal = False
    batches = decision_batches.DecisionBatches(pipe, QUESTIONS, 4)
    assert not batches._is_causal
    assert_same(batches)

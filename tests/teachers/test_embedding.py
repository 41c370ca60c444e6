"""An embedding teacher of a real sentence encoder, against cosines by hand."""

import copy
import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from nlpkd.data.demo import demo_backbone
from nlpkd.teachers import EmbeddingTeacher, ZeroShotTeacher

CLASSES = {"sport": ["a football match", "athletes and games"], "business": "companies and money"}
TEXTS = ["The striker scored twice in the final.", "Shares fell after the bank's results.", "A bank robbery"]


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def mean_pooled(texts):
    """Mean of the last hidden states, one text at a time."""
    tokenizer, model = AutoTokenizer.from_pretrained(demo_backbone()), AutoModel.from_pretrained(demo_backbone())
    with torch.inference_mode():
        return unit(
            np.stack([model(**tokenizer(t, return_tensors="pt")).last_hidden_state[0].mean(0).numpy() for t in texts])
        )


def test_probabilities_are_a_softmax_of_cosines_with_the_mean_description():
    sport = unit(mean_pooled(CLASSES["sport"]).mean(axis=0))
    business = mean_pooled([CLASSES["business"]])[0]
    logits = mean_pooled(TEXTS) @ np.stack([sport, business]).T / 0.1
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = EmbeddingTeacher(demo_backbone(), CLASSES, temperature=0.1).probabilities(TEXTS)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert found[0, 0] > 0.5 > found[1, 0]


def test_a_fitted_temperature_gives_the_confidence_asked_for():
    teacher = EmbeddingTeacher(demo_backbone(), CLASSES).fit_temperature(TEXTS, confidence=0.7)
    assert teacher.probabilities(TEXTS).max(axis=1).mean() == pytest.approx(0.7, abs=1e-3)
    with pytest.raises(ValueError, match=r"between 0\.500 and 1"):
        teacher.fit_temperature(TEXTS, confidence=0.4)


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    SentenceTransformer(str(demo_backbone())).save(str(folder))
    return folder


def test_texts_that_the_encoder_cuts_are_counted_and_told(encoder_folder, caplog):
    encoder = SentenceTransformer(str(encoder_folder))
    encoder.max_seq_length = 16
    teacher = EmbeddingTeacher(encoder, CLASSES)
    # With the two special tokens the first one fills the limit, and is whole.
    texts = ["good " * 14, "good " * 15, "good " * 15 + "bad " * 50, "good"]
    found = teacher.answer(texts)
    assert (found.cut, found.most_tokens) == (2, 16) and caplog.messages == []
    np.testing.assert_array_equal(teacher.probabilities(texts), found.probabilities)
    assert len(caplog.messages) == 1 and "2 of 4 texts were cut to the 16 tokens that" in caplog.messages[0]
    caplog.clear()
    assert teacher.probabilities(texts[:1]).shape == (1, 2) and caplog.messages == []
    encoder.prompts, encoder.default_prompt_name = {"query": "about "}, "query"
    assert teacher.answer(texts).cut == 3


def test_a_class_of_ones_own_says_what_the_answers_are(encoder_folder):
    class Turned(EmbeddingTeacher):
        def probabilities(self, texts):
            return super().probabilities(texts)[:, ::-1].copy()

    own, plain = Turned(str(encoder_folder), CLASSES), EmbeddingTeacher(str(encoder_folder), CLASSES)
    turned = plain.answer(["good", "bad"]).probabilities[:, ::-1]
    np.testing.assert_array_equal(own.answer(["good", "bad"]).probabilities, turned)


SETTINGS = [
    {"truncate_dim": 4}, {"prompts": {"query": "about sport: "}}, {"prompts": {"query": "about money: "}},
    {"prompts": {"query": "about money: "}, "default_prompt_name": "query"},
]  # fmt: skip


def test_settings_of_an_encoder_tell_its_answers_apart(encoder_folder):
    described = [EmbeddingTeacher(str(encoder_folder), CLASSES, **each).describe() for each in [{}, *SETTINGS]]
    assert len({json.dumps(each) for each in described}) == 5
    described = [
        EmbeddingTeacher(SentenceTransformer(str(encoder_folder), **each), CLASSES).describe()["weights"]
        for each in [{}, *SETTINGS]
    ]
    assert len(set(described)) == 5


def change_length(encoder):
    encoder.max_seq_length = 4


def change_truncation(encoder):
    encoder.truncate_dim = 4


def change_prompt(encoder):
    encoder.prompts["document"], encoder.default_prompt_name = "a long story about companies: ", "document"


def change_pooling(encoder):
    encoder[1].pooling_mode = "cls"


@pytest.mark.parametrize("change", [change_length, change_truncation, change_prompt, change_pooling])
def test_an_encoder_that_is_changed_later_answers_and_is_described_as_it_is_now(encoder_folder, change, tmp_path):
    encoder = SentenceTransformer(str(encoder_folder))
    teacher = EmbeddingTeacher(encoder, CLASSES, temperature=0.1)
    answers = teacher.probabilities(TEXTS)
    before = teacher.describe()
    np.testing.assert_array_equal(teacher.probabilities(TEXTS), answers)
    encoder.save(str(tmp_path))
    again = EmbeddingTeacher(SentenceTransformer(str(tmp_path)), CLASSES, temperature=0.1)
    assert teacher.describe()["weights"] == before["weights"] == again.describe()["weights"]
    change(encoder)
    assert teacher.describe()["weights"] != before["weights"]
    expected = EmbeddingTeacher(copy.deepcopy(encoder), CLASSES, temperature=0.1).probabilities(TEXTS)
    np.testing.assert_allclose(teacher.probabilities(TEXTS), expected, atol=1e-5)


@pytest.mark.parametrize("given", [
    {"one": "x"}, {"one": "x", "two": []}, {"one": "x", "two": ""}, {"one": "x", "two": " "}, {"one": "x", "two": 5},
    {"one": "x", "two": None},
    {"one": "x", "two": ["y", ""]}, {"one": "x", "two": ["y", None]}, {"one": "x", "two": [1]},
])  # fmt: skip
def test_classes_without_descriptions_are_refused(given):
    with pytest.raises(ValueError, match="two or more different classes|give each class a description"):
        EmbeddingTeacher("m", given)


@pytest.mark.parametrize("make", [
    lambda: EmbeddingTeacher("nobody/nothing", {"a": "A.", "b": "B."}),
    lambda: ZeroShotTeacher("nobody/nothing", ["a", "b"]),
])  # fmt: skip
def test_a_model_that_can_not_be_had_is_named_with_the_offline_command(make):
    with pytest.raises(OSError, match="the model 'nobody/nothing' can't be had from (.|\n)*make demo"):
        make().probabilities(["a text"])


def test_a_token_that_the_encoder_has_no_embedding_for_is_refused(encoder_folder):
    encoder = SentenceTransformer(str(encoder_folder))
    known = encoder[0].auto_model.config.vocab_size
    expected = EmbeddingTeacher(encoder, CLASSES).probabilities(TEXTS)
    encoder.tokenizer.add_tokens(["@USER"])
    teacher = EmbeddingTeacher(encoder, CLASSES)
    np.testing.assert_array_equal(teacher.probabilities(TEXTS), expected)
    with pytest.raises(ValueError, match=f"of {known} tokens, and the texts have token {known}: load model and token"):
        teacher.probabilities([*TEXTS, "@USER scored"])

"""An embedding teacher of a real sentence encoder, against cosines by hand."""

import numpy as np
import pytest
import torch
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


@pytest.mark.parametrize("given", [{"one": "x"}, {"one": "x", "two": []}])
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

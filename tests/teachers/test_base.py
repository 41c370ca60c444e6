"""What every teacher of texts is held to: its classes, and what it answers."""

import numpy as np
import pandas as pd
import pytest
import torch
from chat_models import save_chat_model
from datasets import Dataset
from samples import tiny_bert
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer

from nlpkd.data.columns import TEACHER_LOGITS
from nlpkd.data.demo import demo_backbone
from nlpkd.data.soft_labels import add_soft_labels
from nlpkd.teachers import ChatTeacher, DecisionTeacher, EmbeddingTeacher, FunctionTeacher, ZeroShotTeacher
from nlpkd.teachers.base import as_probabilities

MAKE = {
    "function": lambda classes: FunctionTeacher(lambda texts: [[0.5, 0.5]] * len(texts), classes),
    "chat": lambda classes: ChatTeacher("m", "?", classes),
    "zero-shot": lambda classes: ZeroShotTeacher("m", classes),
    "embedding": lambda classes: EmbeddingTeacher("m", dict.fromkeys(classes, "words")),
}


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("classes", [[], ["a"], ["a", ""], ["a", " "], ["a", None], ["a", True], ["Good", "good "]])
def test_classes_are_two_or_more_names_that_differ(kind, classes):
    with pytest.raises(ValueError, match="two or more different classes"):
        MAKE[kind](classes)


@pytest.mark.parametrize("kind", ["function", "chat", "zero-shot"])
@pytest.mark.parametrize("classes", [["a", "a"], "ab", {"a", "b"}, 3, None, [["a"], ["b"]]])
def test_what_lists_no_names_is_refused(kind, classes):
    with pytest.raises(ValueError, match="two or more different classes"):
        MAKE[kind](classes)


@pytest.mark.parametrize("kind", MAKE)
def test_numbers_are_names_of_classes(kind):
    assert MAKE[kind]([1, 2]).classes == ("1", "2")


def test_options_of_a_question_that_are_numbers_are_names_as_they_come_back_in_json():
    pytest.importorskip("transformers.decision", reason="transformers has decision models from 5.23 on")
    teacher = DecisionTeacher("m", {"type": "choice", "instructions": "Stars?", "criteria": {1: "bad", 2: "good"}})
    assert teacher.classes == ("1", "2")


@pytest.mark.parametrize("count", [0, -1, 1.5, "lots", True, None])
def test_numbers_of_requests_and_rows_are_whole_and_at_least_one(count):
    question = {"type": "noul", "instructions": "Good?"}
    for make in (
        lambda: ChatTeacher("m", "?", ["a", "b"], orders=count),
        lambda: ChatTeacher("m", "?", ["a", "b"], concurrency=count),
        lambda: ZeroShotTeacher("m", ["a", "b"], batch_size=count),
        lambda: EmbeddingTeacher("m", {"a": "x", "b": "y"}, batch_size=count),
        lambda: FunctionTeacher(len, ["a", "b"], rows_per_call=count),
        lambda: DecisionTeacher("m", question, concurrency=count),
    ):
        with pytest.raises(ValueError, match="must be a whole number of at least 1, got"):
            make()


def nli_teacher(tokenizer, folder):
    labels = {0: "contradiction", 1: "neutral", 2: "entailment"}
    model = tiny_bert(num_labels=3, id2label=labels, label2id={}, hidden_dropout_prob=0.5, initializer_range=0.5)
    return model, ZeroShotTeacher(model, ["good", "bad"], tokenizer=tokenizer)


def chat_teacher(tokenizer, folder):
    pytest.importorskip("transformers.decision", reason="transformers has decision models from 5.23 on")
    model = AutoModelForCausalLM.from_pretrained(save_chat_model(folder), attention_dropout=0.5)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return model, DecisionTeacher(model, {"type": "noul", "instructions": "Good?"}, tokenizer=tokenizer)


def encoder_teacher(tokenizer, folder):
    model = SentenceTransformer(str(demo_backbone()))
    return model, EmbeddingTeacher(model, {"good": "praise for a film", "bad": "a complaint"})


@pytest.mark.parametrize("make", [nli_teacher, chat_teacher, encoder_teacher])
def test_a_model_that_is_being_trained_answers_as_in_evaluation_and_goes_on_being_trained(make, tokenizer, tmp_path):
    model, teacher = make(tokenizer, tmp_path)
    texts = ["a good film", "the plot is bad", "good"]
    model.eval()
    expected = teacher.probabilities(texts)
    assert np.ptp(expected, axis=0).max() > 1e-4
    model.train()
    list(model.children())[-1].eval()
    flags = [module.training for module in model.modules()]
    for _ in range(2):
        np.testing.assert_allclose(teacher.probabilities(texts), expected, atol=1e-6)
        assert [module.training for module in model.modules()] == flags


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("given", ["good", {"text": ["good"]}, pd.DataFrame({"text": ["good"]})], ids=type)
def test_a_table_and_one_text_are_no_texts_to_label(kind, given):
    with pytest.raises(ValueError, match="texts must be texts, in a list, a column or a generator; got"):
        MAKE[kind](["a", "b"]).probabilities(given)


HALVES = torch.full((2, 2), 0.5)


@pytest.mark.parametrize(
    "given",
    [
        HALVES.bfloat16(),
        HALVES.clone().requires_grad_(),
        HALVES.double(),
        [(0.5, 0.5)] * 2,
        list(HALVES),
        HALVES.numpy(),
    ],
    ids=repr,
)
def test_probabilities_are_read_from_whatever_holds_numbers(given):
    np.testing.assert_array_equal(as_probabilities(given, 2, ["a", "b"], "single_label_classification"), 0.5)


@pytest.mark.parametrize("task", ["single_label_classification", "multi_label_classification"])
@pytest.mark.parametrize("above", [0, 1e-7, 1e-4, 9e-4])
def test_what_is_taken_for_probabilities_is_taken_by_the_training_too(task, above):
    given = [[1 + above, 0.0], [0.0, 1 + above]]
    found = as_probabilities(given, 2, ["a", "b"], task)
    assert found.max() == 1
    # As it was answered, too: earlier versions kept it so.
    for values in (found.tolist(), given):
        rows = add_soft_labels(Dataset.from_dict({"p": values}), "p", {0: "a", 1: "b"}, problem_type=task)
        np.testing.assert_array_equal(np.argmax(rows[TEACHER_LOGITS], axis=1), [0, 1])


@pytest.mark.parametrize("task", ["single_label_classification", "multi_label_classification"])
def test_what_is_above_one_by_more_than_rounding_is_no_probability(task):
    for above in (2e-3, 1.0):
        with pytest.raises(ValueError, match="must be probabilities"):
            as_probabilities([[1 + above, 0.0]], 1, ["a", "b"], task)


@pytest.mark.parametrize(
    "given",
    [[{"a": 0.5, "b": 0.5}] * 2, ["a", "b"], [["a", "b"]] * 2, None, {"a": [0.5, 0.5]}, [[0.5, 0.5], [1]],
     [[0.5, None]] * 2, [[0.5j, 0.5]] * 2, [[{"label": "a", "score": 0.5}] * 2] * 2],
    ids=repr,
)  # fmt: skip
def test_what_holds_no_numbers_is_refused(given):
    with pytest.raises(ValueError, match="a teacher must|must be probabilities"):
        as_probabilities(given, 2, ["a", "b"], "single_label_classification")

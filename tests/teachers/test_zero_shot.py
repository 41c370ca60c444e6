"""Zero-shot teachers: the pipeline's own numbers, in batches."""

import copy
import itertools
import json
import threading

import numpy as np
import pytest
import torch
from samples import sentences, tiny_bert
from transformers import BertTokenizer, pipeline

from nlpkd.labelling.answers import AnswerFile
from nlpkd.teachers import FunctionTeacher, ZeroShotTeacher

NLI = {0: "contradiction", 1: "neutral", 2: "entailment"}


def nli_model(id2label):
    labels = {name: number for number, name in id2label.items()}
    return tiny_bert(num_labels=3, id2label=id2label, label2id=labels, initializer_range=0.5).eval()


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("id2label", [NLI, {0: "entailment", 1: "neutral", 2: "contradiction"}])
def test_answers_are_those_of_the_pipeline(tokenizer, multi_label, id2label):
    model, texts = nli_model(id2label), [*sentences(20)[0], "good film " * 60]
    classes = {"a": "good", "b": "bad film", "c": "great plot"}
    zero_shot = pipeline("zero-shot-classification", model=model, tokenizer=tokenizer)
    expected = []
    for answer in zero_shot(texts, list(classes.values()), multi_label=multi_label):
        by_label = dict(zip(answer["labels"], answer["scores"], strict=True))
        expected.append([by_label[word] for word in classes.values()])
    teacher = ZeroShotTeacher(model, classes, multi_label=multi_label, tokenizer=tokenizer, batch_size=8)
    found = teacher.probabilities(texts)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert teacher.classes == ("a", "b", "c") and np.ptp(found, axis=0).max() > 0.01


def test_a_class_of_ones_own_says_what_the_answers_are(tokenizer):
    class Turned(ZeroShotTeacher):
        def probabilities(self, texts):
            return super().probabilities(texts)[:, ::-1].copy()

    given = {"tokenizer": tokenizer, "batch_size": 8}
    own, plain = (kind(nli_model(NLI), {"a": "good", "b": "bad"}, **given) for kind in (Turned, ZeroShotTeacher))
    np.testing.assert_array_equal(own.answer(["good"]).probabilities, plain.answer(["good"]).probabilities[:, ::-1])


def test_texts_that_lose_tokens_beside_a_sentence_are_counted_and_told(tokenizer, tmp_path, caplog):
    model = nli_model(NLI)
    teacher = ZeroShotTeacher(model, {"a": "good", "b": "very very bad film"}, tokenizer=tokenizer, batch_size=8)
    room = model.config.max_position_embeddings - max(
        len(tokenizer("", each)["input_ids"]) for each in teacher.hypotheses
    )
    texts = [" ".join(["good"] * count) for count in (3, room, room + 1, room + 3, 80)]
    found = teacher.answer(texts)
    assert (found.cut, found.most_tokens) == (3, 64) and caplog.messages == []
    np.testing.assert_array_equal(teacher.probabilities(texts), found.probabilities)
    (told,) = caplog.messages
    assert "3 of 5 texts were cut to the 64 tokens that the teacher reads" in told
    # It is told once of all calls, and not again of answers that are kept.
    caplog.clear()
    teacher.rows_per_call = 2
    for answers in (AnswerFile(None, teacher), kept := AnswerFile(tmp_path / "kept.jsonl", teacher)):
        answers.ask(texts)
        assert caplog.messages == [told]
        caplog.clear()
    kept.ask(texts)
    assert caplog.messages == []


def test_a_model_that_names_no_entailment_is_refused(tokenizer):
    model = tiny_bert(num_labels=3)
    with pytest.raises(ValueError, match="name no entailment"):
        ZeroShotTeacher(model, ["good", "bad"], tokenizer=tokenizer).probabilities(["film"])


@pytest.mark.parametrize("names", list(itertools.permutations(NLI.values())))
def test_of_several_labels_entailment_is_compared_with_contradiction_wherever_it_stands(tokenizer, names):
    model, texts = nli_model(dict(enumerate(names))), sentences(6)[0]
    found = ZeroShotTeacher(model, ["good", "bad"], multi_label=True, tokenizer=tokenizer).probabilities(texts)
    for row, text in zip(found, texts, strict=True):
        pairs = tokenizer([text] * 2, ["This example is good.", "This example is bad."], return_tensors="pt")
        with torch.no_grad():
            logits = model(**pairs).logits[:, [names.index("contradiction"), names.index("entailment")]]
        np.testing.assert_allclose(row, logits.softmax(-1)[:, 1], atol=1e-5)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize(
    "label2id",
    [{"contradiction": 2, "entailment": 0}, {"contradiction": "0", "entailment": "2"}, {}],
)
def test_the_label_that_entails_goes_by_id2label_whatever_label2id_says(tokenizer, multi_label, label2id, tmp_path):
    model, settings = nli_model(NLI), {"multi_label": multi_label, "tokenizer": tokenizer}
    expected = ZeroShotTeacher(model, ["good", "bad"], **settings).probabilities(["good film", "bad plot"])
    model.config.label2id = label2id
    model.save_pretrained(tmp_path)
    for given in (model, str(tmp_path)):
        found = ZeroShotTeacher(given, ["good", "bad"], **settings).probabilities(["good film", "bad plot"])
        np.testing.assert_array_equal(found, expected)


def test_of_two_labels_the_one_beside_entailment_contradicts_and_of_more_it_must_be_named(tokenizer):
    two = {0: "entailment", 1: "not_entailment"}
    labels = {name: number for number, name in two.items()}
    model = tiny_bert(num_labels=2, id2label=two, label2id=labels).eval()
    found = ZeroShotTeacher(model, ["good", "bad"], multi_label=True, tokenizer=tokenizer).probabilities(["film"])
    with torch.no_grad():
        expected = model(**tokenizer("film", "This example is good.", return_tensors="pt")).logits.softmax(-1)[0, 0]
    assert found[0, 0] == pytest.approx(float(expected), abs=1e-5)
    unnamed = nli_model({0: "LABEL_0", 1: "neutral", 2: "entailment"})
    ZeroShotTeacher(unnamed, ["good", "bad"], tokenizer=tokenizer).probabilities(["film"])
    with pytest.raises(ValueError, match="name no contradiction"):
        ZeroShotTeacher(unnamed, ["good", "bad"], multi_label=True, tokenizer=tokenizer).probabilities(["film"])


@pytest.mark.parametrize("classes", [["one"], ["same", "same"], "words"])
def test_fewer_than_two_classes_are_refused(classes):
    with pytest.raises(ValueError, match="two or more different classes"):
        ZeroShotTeacher("m", classes)


def test_a_template_without_a_place_for_the_class_is_refused():
    with pytest.raises(ValueError, match="has no {}"):
        ZeroShotTeacher("m", ["a", "b"], hypothesis_template="This is it.")
    for template in ("It is {label}.", "{} is {}", "{", "{} {", "{.name}", "{:d}"):
        with pytest.raises(ValueError, match="hypothesis_template=.* must have one {}"):
            ZeroShotTeacher("m", ["a", "b"], hypothesis_template=template)


def test_a_class_without_words_is_called_by_its_name():
    teacher = ZeroShotTeacher("m", {"pos": None, "neg": "bad {}", 3: 5})
    assert teacher.hypotheses == ["This example is pos.", "This example is bad {}.", "This example is 5."]


@pytest.mark.parametrize("words", ["", " ", [], ["good"], {}])
def test_words_that_describe_nothing_are_refused(words):
    with pytest.raises(ValueError, match="the class 'pos' is described by words"):
        ZeroShotTeacher("m", {"pos": words, "neg": "bad"})


def test_classes_of_the_same_words_are_refused():
    with pytest.raises(ValueError, match="a sentence of its own"):
        ZeroShotTeacher("m", {"pos": "film", "neg": "film"})


@pytest.mark.parametrize("multiple", [1, 3, 100])
def test_a_text_of_any_length_is_read_up_to_the_models_limit(tokenizer, multiple):
    unlimited = copy.deepcopy(tokenizer)
    unlimited.model_max_length = int(1e30)
    text = "the plot good " * 20 * multiple
    answers = [
        ZeroShotTeacher(nli_model(NLI), ["good", "bad"], tokenizer=each).probabilities([text])
        for each in (tokenizer, unlimited)
    ]
    np.testing.assert_array_equal(*answers)
    with pytest.raises(ValueError, match="the sentence .* has .* tokens, and the model reads 64"):
        ZeroShotTeacher(nli_model(NLI), ["good", "bad " * 70], tokenizer=unlimited).probabilities([text])


def test_any_function_is_a_teacher():
    teacher = FunctionTeacher(
        lambda texts: [[len(text) / 10, 1 - len(text) / 10] for text in texts], ["long", "short"]
    )
    np.testing.assert_allclose(teacher.probabilities(["abc", "a"]), [[0.3, 0.7], [0.1, 0.9]], atol=1e-6)
    with pytest.raises(ValueError, match="text 1 of 2 must be probabilities"):
        teacher.probabilities(["abc", "a" * 30])


def other_tokenizer(tokenizer):
    vocabulary = tokenizer.get_vocab()
    return BertTokenizer(vocab=vocabulary | {"good": vocabulary["bad"], "bad": vocabulary["good"]})


def test_what_a_pipeline_is_made_with_tells_its_answers_apart(tokenizer, tmp_path):
    nli_model(NLI).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    other_tokenizer(tokenizer).save_pretrained(tmp_path / "other")
    shorter = copy.deepcopy(tokenizer)
    shorter.model_max_length = 8

    def described(**settings):
        described = ZeroShotTeacher(str(tmp_path / "model"), ["good", "bad"], **settings).describe()
        assert described == ZeroShotTeacher(str(tmp_path / "model"), ["good", "bad"], **settings).describe()
        return json.dumps(described)

    settings = [{}, {"tokenizer": tokenizer}, {"tokenizer": other_tokenizer(tokenizer)}, {"tokenizer": shorter}]
    settings += [{"tokenizer": str(tmp_path / "other")}, {"dtype": "bfloat16"}, {"model_kwargs": {"dtype": "float16"}}]
    assert len({described(**each) for each in settings}) == len(settings)
    assert described(dtype=torch.bfloat16) == described(dtype="bfloat16")
    assert described(device="cpu", token="hf_secret", tokenizer=None) == described()
    before = described(tokenizer=str(tmp_path / "other"))
    tokenizer.save_pretrained(tmp_path / "other")
    assert described(tokenizer=str(tmp_path / "other")) != before
    with pytest.raises(ValueError, match="nothing tells tokenizer=.* from another one .*lock"):
        described(tokenizer=threading.Lock())


def test_answers_of_another_tokenizer_are_not_taken_for_these(tokenizer, tmp_path):
    def labelled(**settings):
        teacher = ZeroShotTeacher(nli_model(NLI), ["good", "bad"], **settings)
        return AnswerFile(tmp_path / "answers.jsonl", teacher).ask(["the plot is good"])

    first = labelled(tokenizer=tokenizer)
    assert labelled(tokenizer=copy.deepcopy(tokenizer)) == first
    with pytest.raises(ValueError, match="another teacher or question.* settings"):
        labelled(tokenizer=other_tokenizer(tokenizer))


def test_a_model_that_is_changed_after_it_was_described_is_described_anew(tokenizer):
    model = nli_model(NLI)
    teacher = ZeroShotTeacher(model, ["good", "bad"], tokenizer=tokenizer)
    before = teacher.describe()
    teacher.probabilities(["the plot is good"])
    assert teacher.describe() == before
    with torch.no_grad():
        model.classifier.bias += 1
    assert teacher.describe() != before


def test_a_token_that_the_model_has_no_embedding_for_is_refused(tokenizer):
    more = copy.deepcopy(tokenizer)
    more.add_tokens(["@USER"])
    teacher = ZeroShotTeacher(nli_model(NLI), ["good", "bad"], tokenizer=more)
    assert teacher.probabilities(["a film"]).shape == (1, 2)
    with pytest.raises(
        ValueError, match=f"of {len(tokenizer)} tokens, and the texts have token {len(tokenizer)}: load"
    ):
        teacher.probabilities(["a film", "@USER film"])

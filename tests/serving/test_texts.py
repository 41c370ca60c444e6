"""What a classifier may be called with: every column of texts gives the answers of the list, and nothing else any."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from samples import tiny_bert
from transformers.pipelines.pt_utils import KeyDataset

import nlpkd
from nlpkd.serving.cascade import Cascade, CascadeRecord

TEXTS = ["a good film", "the plot is bad"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("student")
    tiny_bert(initializer_range=0.5).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(params=["alone", "before its teacher"])
def classify(request, folder):
    alone = nlpkd.load(folder)
    if request.param == "alone":
        return alone
    # A threshold between both texts' confidences, so that the one is answered and the other handed on.
    confidences = [each["score"] for each in alone(TEXTS)]
    record = dict.fromkeys((each.name for each in fields(CascadeRecord)), 0.0)
    record |= {"threshold": sum(confidences) / 2, "temperature": 1.0}
    return Cascade(
        alone, lambda texts: [(each["label"], each["score"]) for each in alone(texts)], CascadeRecord(**record)
    )


def same(found, expected):
    assert [each | {"score": pytest.approx(each["score"], abs=1e-6)} for each in found] == expected
    assert expected[0] != expected[1], "a mix-up would be seen"


FORMS = {
    "list": TEXTS,
    "tuple": tuple(TEXTS),
    "array": np.array(TEXTS),
    "series": pd.Series(TEXTS, index=[7, 3]),
    "column": Dataset.from_dict({"text": TEXTS})["text"],
    "set-like": dict.fromkeys(TEXTS).keys(),
    "map": map,
    "arrow": pa.chunked_array([TEXTS[:1], TEXTS[1:]]),
    "pairs": [{"text": text} for text in TEXTS],
    "pairs without a second text": [{"text": text, "text_pair": None} for text in TEXTS],
    "by numbers": KeyDataset(Dataset.from_dict({"text": TEXTS}), "text"),
}


@pytest.mark.parametrize("form", FORMS)
def test_texts_in_any_form_have_the_answers_of_each_text(form, classify):
    given = map(str, TEXTS) if form == "map" else FORMS[form]
    same(classify(given), [answer for text in TEXTS for answer in classify(text)])


def test_a_generator_has_the_answers_of_its_texts(classify):
    same(list(classify(text for text in TEXTS)), classify(TEXTS))


@pytest.mark.parametrize(
    "nothing", [[], (), np.array([]), pd.Series([], dtype=str)], ids=lambda each: type(each).__name__
)
def test_no_texts_have_no_answers(nothing, classify):
    assert classify(nothing) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (None, "a text is a string, .*; got NoneType"), (3, "got int"), (b"good", "got bytes"),
        (["good", None], "got NoneType at place 1 of 2"), ([float("nan")], "got float at place 0 of 1"),
        (np.array([1, 2]), "got int at place 0 of 2"), ([("good", "film")], "got tuple at place 0 of 1"),
        (np.array("good"), "got ndarray without dimensions"), (torch.tensor(5), "got Tensor without dimensions"),
        (pd.DataFrame({"text": TEXTS}), "got DataFrame"), (pa.table({"text": TEXTS}), "got Table"),
        (Dataset.from_dict({"text": TEXTS}), "got Dataset"),
        ({"text": TEXTS}, r"got {'text': \['a good film', "), ({"text": None}, "got {'text': None}"), ({}, "got {}"),
        ({"txt": "good"}, "got {'txt': 'good'}"), ({"text": "good", "text_pair": 3}, "'text_pair': 3"),
        ([TEXTS[0], {"text": TEXTS}], "at place 1 of 2"), ({"text": "good", "label": 1}, r"got \['label'\] beside"),
        ("cut \ud83d", "holds half of a character"), (["good", "cut \ud83d"], "half of .* at place 1 of 2"),
        ({"text": "good", "text_pair": "cut \ud83d"}, "holds half of a character"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_refused_with_its_place(wrong, message, classify):
    with pytest.raises(ValueError, match=message):
        classify(wrong)
    if isinstance(wrong, (list, dict)):
        with pytest.raises(ValueError, match=message.partition(" of ")[0] if isinstance(wrong, list) else message):
            list(classify(each for each in (wrong if isinstance(wrong, list) else [wrong])))


@pytest.mark.parametrize("setting", [{"top_k": None}, {"top_k": 1}, {"function_to_apply": "none"}])
def test_settings_that_a_cascade_fixes_are_refused_by_name(setting, folder):
    alone = nlpkd.load(folder)
    cascade = Cascade(alone, alone, CascadeRecord(**dict.fromkeys((each.name for each in fields(CascadeRecord)), 0.5)))
    with pytest.raises(ValueError, match=f"one answer a text, with its probability: leave {[*setting][0]} out"):
        cascade("a good film", **setting)

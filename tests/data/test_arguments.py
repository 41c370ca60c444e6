"""A keyword that a function does not have is refused by name, before anything is loaded."""

import inspect
from dataclasses import fields

import pytest

import nlpkd
from nlpkd.compression import compress
from nlpkd.data.arguments import DataArguments, training_settings
from nlpkd.pipeline.export import export_student
from nlpkd.pipeline.tune import tune
from nlpkd.pipeline.verify import verify
from nlpkd.serving.trial import make_trial

OUT = {"output_dir": "out"}
GIVEN = {
    nlpkd.load_text_classification: (["rows"], {"tokenizer": None}), nlpkd.train_teacher: (["model", "rows"], OUT),
    nlpkd.distill: (["teacher", "student", "rows"], OUT), nlpkd.frontier: (["teacher", "rows"], OUT),
    tune: (["teacher", "rows"], OUT), nlpkd.evaluate: (["student", "rows"], OUT), verify: (["student"], {}),
    nlpkd.cascade: ([".", "teacher", "rows"], {"target_agreement": 0.9}), export_student: (["student"], OUT),
    make_trial: (["student"], {}), compress: (["model", "half", "rows"], OUT),
}  # fmt: skip
"""Functions that take the fields of `DataArguments`, and arguments that name nothing that exists."""


def test_every_such_function_is_here():
    public = [getattr(nlpkd, name) for name in nlpkd.__all__]
    taking = {each for each in public if inspect.isfunction(each) and takes_fields(each)}
    # Those of a label are of its training, which tests of it hold.
    assert taking <= {*GIVEN, nlpkd.label}


def takes_fields(function) -> bool:
    kinds = {each.kind for each in inspect.signature(function).parameters.values()}
    return inspect.Parameter.VAR_KEYWORD in kinds and "DataArguments" in (function.__doc__ or "")


@pytest.mark.parametrize("function", GIVEN, ids=lambda each: each.__name__)
def test_an_unknown_keyword_is_refused_before_anything_is_looked_for(function, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if function is make_trial:
        pytest.importorskip("gradio", reason="needs the extra `try`")
    if function is tune:
        pytest.importorskip("optuna", reason="needs the extra `tune`")
    arguments, keywords = GIVEN[function]
    with pytest.raises(ValueError, match="label_colum") as refused:
        function(*arguments, **keywords, label_colum="verdict")
    assert function is compress or "did you mean label_column?" in str(refused.value)


@pytest.mark.parametrize("name", ["run", "baseline_tokenizer", "candidate_tokenizers", "threshold_dataset", "dataset"])
def test_an_evaluation_takes_none_of_what_it_makes_itself(name):
    with pytest.raises(ValueError, match=f"'{name}' is neither an argument of evaluate nor one of evaluate_student"):
        nlpkd.evaluate("student", "rows", **{name: {}})


@pytest.mark.parametrize("given", [{"reduce_range": True}, {"per_channel": False}, {"embeddings": False}])
def test_what_is_of_an_int8_file_is_refused_without_one(given, tmp_path):
    with pytest.raises(ValueError, match=f"{next(iter(given))} is of an int8 file"):
        export_student(tmp_path, **given)


def test_known_keywords_are_separated():
    given = {"label_column": "verdict", "seed": 3}
    assert DataArguments.split_of(nlpkd.evaluate, given, {"seed"}) == (
        DataArguments(label_column="verdict"),
        {"seed": 3},
    )
    assert DataArguments.split_of(nlpkd.cascade, {}) == (DataArguments(), {})


def test_no_name_is_both_a_setting_of_a_training_and_of_how_text_is_read():
    assert "learning_rate" in training_settings()
    assert not training_settings() & {field.name for field in fields(DataArguments)}

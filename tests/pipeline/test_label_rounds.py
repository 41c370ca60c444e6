"""A budget of labels spent in rounds on what a student is unsure of."""

import json

import pytest
from samples import QUIET, raw_rows, tiny_bert

from nlpkd import label, read_splits
from nlpkd.pipeline.label import _Learner
from nlpkd.teachers import FunctionTeacher

GOOD = ("good", "great", "fine")
QUICK = {
    **QUIET,
    "max_steps": 10,
    "learning_rate": 5e-3,
    "max_length": 64,
}


@pytest.fixture(scope="module")
def small(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("small")
    tiny_bert().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def texts():
    rows = raw_rows(400, seed=1)["text"][:]
    return [{"text": f"{text}"} for text in rows]


def asking():
    """A teacher, and the list of the texts that it was asked about."""
    seen = []

    def judge(given):
        seen.extend(given)
        return [[0.9, 0.1] if any(word in text.split() for word in GOOD) else [0.1, 0.9] for text in given]

    return FunctionTeacher(judge, ["pos", "neg"], name="judge", rows_per_call=10), seen


@pytest.mark.parametrize("select", ["uncertainty", "diversity"])
def test_rounds_buy_no_more_than_the_budget_and_say_what_it_was_worth(tmp_path, small, select):
    teacher, seen = asking()
    output = tmp_path / "labels.parquet"
    label(
        teacher, texts(), output=output, budget=60, select=select, rounds=3, student=small,
        test=raw_rows(40, seed=2), **QUICK,
    )  # fmt: skip
    rows = read_splits(output)[0]["train"]
    assert len(rows) == len(set(rows["text"][:])) == len(seen) == 60 and set(rows["text"][:]) == set(seen)
    curve = json.loads((tmp_path / "labels.parquet.curve.json").read_text())
    assert [labels for labels, _ in curve["curves"][select]] == [20, 40, 60] and curve["metric"] == "accuracy"
    assert "| 60 | 0." in (tmp_path / "labels.parquet.curve.md").read_text()


def test_beside_random_both_share_their_first_labels_and_a_stopped_run_goes_on_with_the_same_rows(tmp_path, small):
    teacher, seen = asking()
    output = tmp_path / "labels.parquet"
    options = {
        "output": output, "budget": 40, "rounds": 2, "student": small, "test": raw_rows(40, seed=2),
        "against_random": True, **QUICK,
    }  # fmt: skip
    with pytest.raises(ValueError, match="max_requests=3 was reached"):
        label(teacher, texts(), max_requests=3, **options)
    planned = json.loads((tmp_path / "labels.parquet.rounds.json").read_text())
    label(teacher, texts(), **options)
    rounds = json.loads((tmp_path / "labels.parquet.rounds.json").read_text())
    assert planned.items() <= rounds.items() and rounds["uncertainty 0"] == rounds["random 0"]
    assert len(seen) == len(set(seen)) <= 60
    assert len(read_splits(output)[0]["train"]) == 40
    told = (tmp_path / "labels.parquet.curve.md").read_text()
    assert "| labels | uncertainty | random |" in told and ("saves" in told)
    asked = len(seen)
    label(teacher, texts(), **options)
    assert len(seen) == asked
    with pytest.raises(ValueError, match="is of other rounds"):
        label(teacher, texts(), **options | {"budget": 30})


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"budget": 60, "rounds": 1}, "2 or more rounds"),
        ({"budget": 10**6}, "at most the"),
        ({"budget": 60, "select": "best"}, "one of uncertainty, diversity, random"),
        ({"budget": 60, "student": None}, "student a model"),
        ({"learning_rate": 1e-3}, "are of a budget"),
    ],
)
def test_budgets_that_do_not_fit_are_refused(tmp_path, options, told):
    teacher, _ = asking()
    with pytest.raises(ValueError, match=told):
        label(teacher, texts(), output=tmp_path / "l.parquet", **{"student": "small"} | options)


@pytest.mark.parametrize(("given", "rate"), [({}, 2e-4), ({"learning_rate": 0.01}, 0.01)])
def test_the_student_of_a_round_has_the_learning_rate_that_suits_it_or_that_is_given(tmp_path, small, given, rate):
    teacher, _ = asking()
    label(teacher, texts()[:60], output=tmp_path / "labels.parquet")
    rows = read_splits(tmp_path / "labels.parquet")[0]["train"]
    settings = {name: value for name, value in QUICK.items() if name != "learning_rate"} | given
    learner = _Learner.of(str(small), rows, None, tmp_path / "out", teacher, **settings)
    assert learner.trainer.args.learning_rate == rate


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": 3}, "'epochs' is neither an argument of label .*did you mean num_train_epochs"),
        ({"num_train_epochs": "x"}, "num_train_epochs"),
        ({"output_dir": "x"}, "output_dir: a student of a budget"),
        ({"objectives": "hintn"}, "there is no preset 'hintn'"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_wrong_setting_is_refused_before_a_label_is_bought(given, message, dry_run, tmp_path, small):
    teacher, seen = asking()
    with pytest.raises(ValueError, match=message):
        label(teacher, texts(), output=tmp_path / "labels.parquet", budget=60, student=small, dry_run=dry_run, **given)
    assert not seen

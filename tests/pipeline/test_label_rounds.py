"""A budget of labels spent in rounds on what a student is unsure of."""

import json
import shutil
from contextlib import nullcontext

import pytest
from samples import QUIET, raw_rows, tiny_bert

from nlpkd import label, read_splits
from nlpkd.data.arguments import DataArguments
from nlpkd.objectives import ForwardKLLoss
from nlpkd.pipeline.label_rounds import RoundLearner
from nlpkd.teachers import FunctionTeacher

GOOD = ("good", "great", "fine")
QUICK = {
    **QUIET,
    "max_steps": 10,
    "learning_rate": 5e-3,
    "max_length": 64,
}


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
    assert "| labels | uncertainty | random |" in told and ("that random needs" in told or "saves nothing" in told)
    asked = len(seen)
    label(teacher, texts(), **options)
    assert len(seen) == asked
    with pytest.raises(ValueError, match="is of other rounds"):
        label(teacher, texts(), **options | {"budget": 30})


def test_a_text_that_is_not_answered_is_called_by_its_row_of_the_source_and_is_no_label_that_was_bought(
    tmp_path, small, caplog
):  # fmt: skip
    def judge(given):
        return [[0.5, 0.5] if text.split()[-1] != "17" else [0.5, 0.7] for text in given]

    rows = [{"text": f"a film {number}"} for number in range(20)]
    teacher = FunctionTeacher(judge, ["pos", "neg"], rows_per_call=1)
    output = tmp_path / "labels.parquet"
    quick = QUICK | {"max_steps": 1, "test": raw_rows(10, seed=2)}
    label(teacher, rows, output=output, budget=20, rounds=2, student=small, **quick)
    assert "row 17 (the answer" in caplog.text
    assert len(read_splits(output)[0]["train"]) == 19
    curve = json.loads((tmp_path / "labels.parquet.curve.json").read_text())["curves"]["uncertainty"]
    assert curve[0][0] in (9, 10) and curve[1][0] == 19


def test_a_model_in_memory_with_its_tokenizer_is_a_student_of_rounds_as_its_folder_is(tmp_path, small, tokenizer):
    chosen = []
    for student, given in [(str(small), {}), *[(tiny_bert(), {"tokenizer": tokenizer})] * 2]:
        teacher, seen = asking()
        output = tmp_path / f"{len(given)}.parquet"
        label(teacher, texts()[:40], output=output, student=student, **given, **ROUNDS)
        chosen.append(read_splits(output)[0]["train"]["text"][:])
        asked = len(seen)
    assert chosen[0] == chosen[1] == chosen[2] and asked == 0
    cased = type(tokenizer)(vocab=tokenizer.get_vocab(), do_lower_case=False, model_max_length=64)
    with pytest.raises(ValueError, match="student's tokenizer"):
        label(asking()[0], texts()[:40], output=output, student=student, tokenizer=cased, **ROUNDS)
    with pytest.raises(ValueError, match="tokenizer came without"):
        label(asking()[0], texts()[:40], output=tmp_path / "a.parquet", tokenizer=tokenizer)


ROUNDS = {"budget": 8, "rounds": 2, **QUICK, "max_steps": 1}


@pytest.fixture(scope="module")
def in_rounds(small, tmp_path_factory):
    """Where a budget was spent, and the texts."""
    output = tmp_path_factory.mktemp("rounds") / "labels.parquet"
    label(asking()[0], texts()[:40], output=output, student=str(small), **ROUNDS)
    return output


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("texts", "the training rows' text"), ("order", "the training rows' text"), ("teacher", "teacher"),
        ("student", "the student's weights"), ("rate", "learning_rate"), ("steps", "max_steps"),
        ("length", r"max_length \(64 in the file, 32 here\)"), ("objectives", "forward_kl: temperature"),
        ("seed", "seed"), ("budget", r"budget \(8 in the file, 10 here\)"),
    ],
)  # fmt: skip
def test_rows_that_other_rounds_chose_are_not_taken(in_rounds, small, tokenizer, tmp_path, what, named):
    given, teacher, student = texts()[:40], asking()[0], small
    output = tmp_path / "labels.parquet"
    shutil.copy(f"{in_rounds}.rounds.json", f"{output}.rounds.json")
    if what == "student":
        student = tmp_path / "small"
        tiny_bert(seed=5).save_pretrained(student)
        tokenizer.save_pretrained(student)
    rows = {"texts": texts()[40:80], "order": given[::-1]}.get(what, given)
    if what == "teacher":
        teacher = FunctionTeacher(teacher.function, ["pos", "neg"], name="another judge")
    other = {
        "rate": {"learning_rate": 1e-3}, "steps": {"max_steps": 2}, "length": {"max_length": 32}, "seed": {"seed": 7},
        "objectives": {"objectives": [ForwardKLLoss(temperature=3.0)]}, "budget": {"budget": 10},
    }.get(what, {})  # fmt: skip
    with pytest.raises(ValueError, match=f"is of other rounds: .*{named}.*Delete it"):
        label(teacher, rows, output=output, student=str(student), **ROUNDS | other)


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: kept[:40], lambda kept: "", lambda kept: "[]", lambda kept: "{}", lambda kept: "\udcff",
        lambda kept: json.dumps(json.loads(kept) | {"uncertainty 1": [999] * 4}),
        lambda kept: json.dumps(json.loads(kept) | {"uncertainty 1": [-1, -2, -3, -4]}),
        lambda kept: json.dumps(json.loads(kept) | {"uncertainty 1": json.loads(kept)["uncertainty 0"]}),
        lambda kept: json.dumps(json.loads(kept) | {"uncertainty 1": json.loads(kept)["uncertainty 1"][:2]}),
        lambda kept: json.dumps(json.loads(kept) | {"uncertainty 1": None}),
        lambda kept: json.dumps(json.loads(kept) | {"uncertainty 1": [["1"], "2", "3", "4"]}),
        lambda kept: json.dumps(json.loads(kept) | {"uncertainty 1": [True, 2.5, 3, 4]}),
    ],
)  # fmt: skip
def test_damaged_rounds_end_in_a_line_that_says_what_to_do(in_rounds, small, tmp_path, damage):
    output = tmp_path / "labels.parquet"
    for suffix in (".rounds.json", ".answers.jsonl"):
        shutil.copy(f"{in_rounds}{suffix}", f"{output}{suffix}")
    kept = tmp_path / "labels.parquet.rounds.json"
    kept.write_text(damage(kept.read_text()), errors="surrogateescape")
    with pytest.raises(ValueError, match=r"labels.parquet.rounds.json is damaged .*delete it, and the rounds"):
        label(asking()[0], texts()[:40], output=output, student=str(small), **ROUNDS)
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"budget": 60, "rounds": 1}, "2 or more rounds"),
        ({"budget": 10**6}, "at most the"),
        ({"budget": 60, "select": "best"}, "one of uncertainty, diversity, random"),
        ({"budget": 60, "student": None}, "student a model"),
        ({"learning_rate": 1e-3}, "are of a budget"),
        ({"select": "random"}, "are of a budget"),
        ({"rounds": 2}, "are of a budget"),
    ],
)
def test_budgets_that_do_not_fit_are_refused(tmp_path, options, told):
    teacher, _ = asking()
    with pytest.raises(ValueError, match=told):
        label(teacher, texts(), output=tmp_path / "l.parquet", **{"student": "small"} | options)


UNFIT = {
    "a student": ({"student": "/no/such/student"}, "/no/such/student"),
    "layers of a teacher": ({"student": "layers:2"}, "there is none"),
    "no student": ({"student": None}, "student a model"),
    "a file of test rows": ({"test": "nosuch.csv"}, "nosuch.csv"),
    "other classes": ({"test": [{"text": "a", "label": "good"}, {"text": "b", "label": "bad"}]}, "of the test split"),
    "a selection": ({"select": "nonsense"}, "select must be one of"),
    "a budget": ({"budget": 10**6}, "at most the"),
    "a random choice that nothing measures": ({"test": None, "against_random": True}, "give test="),
    "random beside random": ({"select": "random", "against_random": True}, "give another select"),
    "a length": ({"max_length": 5000}, "5000"),
    "an objective": ({"objectives": "layerwise"}, "teacher"),
}


@pytest.mark.parametrize("dry_run", [False, True], ids=["", "a dry run"])
@pytest.mark.parametrize("unfit", UNFIT)
def test_what_does_not_fit_is_refused_before_the_first_round_is_bought(tmp_path, small, unfit, dry_run):
    teacher, seen = asking()
    given, told = UNFIT[unfit]
    given = {"budget": 60, "student": str(small), "test": raw_rows(20, seed=2), "dry_run": dry_run, **QUICK} | given
    with pytest.raises((ValueError, OSError), match=told):
        label(teacher, texts(), output=tmp_path / "labels.parquet", **given)
    assert not seen and not list(tmp_path.glob("*.json*"))


def test_a_dry_run_beside_random_plans_no_less_than_is_bought(tmp_path, small):
    teacher, seen = asking()
    teacher.rows_per_call = 1
    given = {
        "output": tmp_path / "labels.parquet",
        "budget": 10,
        "rounds": 2,
        "student": small,
        "against_random": True,
    }
    given |= {"test": raw_rows(20, seed=2), **QUICK, "max_steps": 1}
    plan = label(teacher, texts(), dry_run=True, **given)
    assert not seen and plan.requests == 15
    label(teacher, texts(), **given)
    assert 10 <= len(seen) <= plan.requests


@pytest.mark.parametrize(
    ("select", "against_random"), [("uncertainty", False), ("uncertainty", True), ("random", False)]
)
def test_a_dry_run_of_a_budget_counts_what_is_left_to_buy_wherever_the_run_was_stopped(
    tmp_path, small, select, against_random
):
    given = {
        "output": tmp_path / "labels.parquet", "budget": 12, "rounds": 3, "student": small, "select": select,
        "against_random": against_random, "test": raw_rows(20, seed=2), **QUICK, "max_steps": 1,
    }  # fmt: skip
    # A run is stopped after so many requests, and the next one goes on.
    for limit in (0, 4, 7, None):
        teacher, seen = asking()
        teacher.rows_per_call = 1
        plan = label(teacher, texts(), dry_run=True, **given)
        assert not seen
        stopped = limit is not None and plan.requests > limit
        with pytest.raises(ValueError, match="max_requests") if stopped else nullcontext():
            label(teacher, texts(), max_requests=limit, **given)
        assert stopped or len(seen) <= plan.requests
        assert stopped or select != "random" or len(seen) == plan.requests
    assert label(asking()[0], texts(), dry_run=True, **given).requests == 0


def test_gold_labels_that_the_teacher_gets_wrong_end_no_budget_between_two_rounds(tmp_path, small, caplog):
    """Who pays for a teacher has chosen it, and no option of the command would go on."""
    teacher, _ = asking()
    rows = raw_rows(120, seed=1)
    wrong = [
        {"text": text, "label": "neg" if label else "pos"}
        for text, label in zip(rows["text"], rows["label"], strict=True)
    ]
    wrong = [each | {"text": f"{each['text']} {at}"} for at, each in enumerate(wrong)]
    given = {"output": tmp_path / "labels.parquet", "budget": 80, "rounds": 2, "student": small, **QUICK}
    label(teacher, wrong, **given, select="random")
    assert "the teacher gets" in caplog.text
    with pytest.raises(ValueError, match="the teacher gets"):
        given["output"] = tmp_path / "checked.parquet"
        label(teacher, wrong, **given, select="random", teacher_check="error")


@pytest.mark.parametrize(("given", "rate"), [({}, 2e-4), ({"learning_rate": 0.01}, 0.01)])
def test_the_student_of_a_round_has_the_learning_rate_that_suits_it_or_that_is_given(tmp_path, small, given, rate):
    teacher, _ = asking()
    label(teacher, texts()[:60], output=tmp_path / "labels.parquet")
    rows = read_splits(tmp_path / "labels.parquet")[0]["train"]
    settings = {name: value for name, value in QUICK.items() if name != "learning_rate"} | given
    data_args, settings = DataArguments.split_of_training(label, settings)
    learner = RoundLearner.of(str(small), None, "hinton", None, tmp_path / "out.parquet", data_args, settings)
    assert learner.learn(rows, teacher).trainer.args.learning_rate == rate


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

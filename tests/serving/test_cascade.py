"""A student that hands on what it is unsure of: the threshold keeps its promise, answers are the models' own."""

import json
import math
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from samples import raw_rows, sentences, tiny_bert
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

import nlpkd
from nlpkd.cli import app
from nlpkd.serving.cascade import CASCADE_NAME
from nlpkd.teachers import FunctionTeacher
from nlpkd.teachers.base import LabelingTeacher
from nlpkd.utils.http import NoReply

NAMES = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}


@pytest.fixture(scope="module")
def models(tmp_path_factory, tokenizer):
    """A teacher, and a student that is nearly the same."""
    folder = tmp_path_factory.mktemp("cascade")
    for name, seed in (("teacher", 1), ("student", 1)):
        model = tiny_bert(layers=1, seed=seed, initializer_range=0.5, **NAMES)
        if name == "student":
            model.classifier.bias.data += 0.2
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def student(models):
    yield models / "student"
    (models / "student" / CASCADE_NAME).unlink(missing_ok=True)


def renamed(folder, names):
    """A copy of a model whose classes are called so in their order."""
    other = shutil.copytree(folder, folder.parent / "-".join(names), dirs_exist_ok=True)
    config = json.loads((other / "config.json").read_text())
    named = {"id2label": dict(enumerate(names)), "label2id": {name: k for k, name in enumerate(names)}}
    (other / "config.json").write_text(json.dumps(config | named))
    return other


def texts(rows: int = 400) -> list[dict]:
    return [{"text": text} for text in sentences(rows, seed=7)[0]]


def test_a_cascade_answers_with_the_student_where_it_is_sure_and_with_the_teacher_elsewhere(models, student):
    record = nlpkd.cascade(student, models / "teacher", texts(), target_agreement=0.9)
    assert json.loads((student / CASCADE_NAME).read_text())["threshold"] == record.threshold
    assert 0 < record.answered <= 1 and record.low >= 0.9 and record.rows == 400

    some = [row["text"] for row in texts(60)]
    both = nlpkd.load(student, fallback=models / "teacher")
    answers = both(some)
    own, large = nlpkd.load(student)(some, top_k=1), nlpkd.load(models / "teacher")(some, top_k=1)
    for answer, mine, theirs in zip(answers, own, large, strict=True):
        expected = mine[0] if mine[0]["score"] >= record.threshold else theirs[0]
        assert answer["by"] == ("student" if expected is mine[0] else "fallback")
        assert (answer["label"], answer["score"]) == (expected["label"], pytest.approx(expected["score"], abs=1e-5))
    assert both.answered == sum(answer["by"] == "student" for answer in answers)
    assert both.answered + both.passed_on == 60
    assert both(some[0]) == [answers[0]] or both(some[0])[0]["label"] == answers[0]["label"]


def test_a_text_that_is_handed_on_is_read_as_the_call_says(models, student):
    nlpkd.cascade(student, models / "teacher", texts(), target_agreement=0.9)
    both = nlpkd.load(student, fallback=models / "teacher")
    both.record = replace(both.record, threshold=1.0)
    some = [row["text"] for row in texts(20)]
    for settings in ({"max_length": 4}, {"max_length": 6, "truncation": True}, {"add_special_tokens": False}):
        answers, expected = both(some, batch_size=7, **settings), nlpkd.load(models / "teacher")(some, **settings)
        assert all(each.pop("by") == "fallback" for each in answers)
        assert [each["label"] for each in answers] == [each["label"] for each in expected]
        scores = [each["score"] for each in answers]
        assert scores == pytest.approx([each["score"] for each in expected], abs=1e-5)
    assert scores != pytest.approx([each["score"] for each in both(some)], abs=1e-3)


def test_a_largest_length_that_no_model_reads_is_refused_whoever_would_answer(models, student):
    nlpkd.cascade(student, models / "teacher", texts(), target_agreement=0.9)
    both = nlpkd.load(student, fallback=models / "teacher")
    for most, told in ((2, "leaves no room for text"), (65, "is more than the 64 tokens")):
        with pytest.raises(ValueError, match=f"max_length={most} {told}"):
            both("good film", max_length=most)


def test_accuracy_counts_whoever_answers(models, student, tmp_path):
    rows = nlpkd.load(models / "teacher")([row["text"] for row in texts()], top_k=1)
    labelled = [row | {"label": answer[0]["label"]} for row, answer in zip(texts(), rows, strict=True)]
    record = nlpkd.cascade(student, models / "teacher", labelled, target_accuracy=0.95)
    assert record.kind == "accuracy" and record.low >= 0.95
    wrong = [row | {"label": {"neg": "pos", "pos": "neg"}[row["label"]]} for row in labelled]
    with pytest.raises(ValueError, match=r"no threshold .* to have accuracy >= 95.00 %.*0.00 % of the teacher alone"):
        nlpkd.cascade(student, models / "teacher", wrong, target_accuracy=0.95)


def test_a_target_that_is_not_shown_is_told_with_what_the_strictest_threshold_gives(models, student):
    some = [row["text"] for row in texts()]
    mine = {text: answer["label"] for text, answer in zip(some, nlpkd.load(student)(some), strict=True)}

    def contrary(asked):
        return [[1.0, 0.0] if mine[text] == "pos" else [0.0, 1.0] for text in asked]

    contradicting = FunctionTeacher(contrary, ["neg", "pos"], name="contrary")
    with pytest.raises(ValueError, match=r"no threshold .* already the first, .* answer \d.* has agreement 0\.00 %"):
        nlpkd.cascade(student, contradicting, texts(), target_agreement=0.9)


def test_too_few_rows_are_refused_before_the_teacher_is_asked(student):
    asked = []

    def counted(some):
        asked.extend(some)
        return [[1.0, 0.0]] * len(some)

    teacher = FunctionTeacher(counted, ["neg", "pos"], name="counted")
    labelled = [row | {"label": "pos"} for row in texts(30)]
    for target in ("target_agreement", "target_accuracy"):
        with pytest.raises(ValueError, match="needs at least 236 rows, and there are 30"):
            nlpkd.cascade(student, teacher, labelled, **{target: 0.98})
    assert not asked


def test_a_labelling_teacher_answers_too_by_the_names_of_its_classes(student):
    def sure_of_pos(some):
        return [[1.0, 0.0]] * len(some)

    teacher = FunctionTeacher(sure_of_pos, ["pos", "neg"], name="rule")
    own = nlpkd.load(student)([row["text"] for row in texts()], top_k=1)
    agreeing = [row for row, answer in zip(texts(), own, strict=True) if answer[0]["label"] == "pos"]
    record = nlpkd.cascade(student, teacher, agreeing, target_agreement=0.9)
    assert record.answered == 1 and record.found == 1 and record.teacher == "rule" and record.teacher_ms is None
    with pytest.raises(ValueError, match="the teacher .* can't answer for the student: label names contradict"):
        nlpkd.cascade(student, FunctionTeacher(sure_of_pos, ["good", "neg"]), agreeing, target_agreement=0.9)


def test_bad_requests_are_refused_before_anything_runs(models, student, tmp_path):
    with pytest.raises(ValueError, match="either target_agreement or target_accuracy"):
        nlpkd.cascade(student, models / "teacher", texts())
    with pytest.raises(ValueError, match="above 0 and below 1"):
        nlpkd.cascade(student, models / "teacher", texts(), target_agreement=98)
    with pytest.raises(ValueError, match="is no folder"):
        nlpkd.cascade(tmp_path / "none", models / "teacher", texts(), target_agreement=0.9)
    with pytest.raises(ValueError, match="run nlpkd cascade"):
        nlpkd.load(student, fallback=models / "teacher")
    (student / CASCADE_NAME).write_text('{"threshold": 2}')
    with pytest.raises(ValueError, match=CASCADE_NAME):
        nlpkd.load(student, fallback=models / "teacher")


@pytest.mark.parametrize("target", ["0.9", True, [0.9], math.nan, 1.0])
@pytest.mark.parametrize("kind", ["target_agreement", "target_accuracy"])
def test_a_target_is_a_number_between_0_and_1(models, student, kind, target):
    with pytest.raises(ValueError, match=f"{kind} must be a share above 0 and below 1, such as"):
        nlpkd.cascade(student, models / "teacher", texts(), **{kind: target})


@pytest.mark.parametrize("kind", ["target_agreement", "target_accuracy"])
@pytest.mark.parametrize("task", ["multi_label_classification", "regression", None])
def test_a_student_of_another_task_is_refused_before_any_row_is_read(models, tokenizer, tmp_path, task, kind):
    labels = {} if task == "multi_label_classification" else {"num_labels": 1}
    tiny_bert(layers=1, problem_type=task, **labels).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a cascade needs a model with one class a text"):
        nlpkd.cascade(tmp_path, models / "teacher", "no such rows", **{kind: 0.9})


@pytest.mark.parametrize("is_a_model", [True, False])
def test_a_teacher_of_several_labels_is_refused_before_it_is_asked(student, tokenizer, tmp_path, is_a_model):
    def never(some):
        raise AssertionError("it was asked")

    task = "multi_label_classification"
    teacher = FunctionTeacher(never, ["neg", "pos"], name="several", problem_type=task)
    nlpkd.cascade(student, student.parent / "teacher", texts(), target_agreement=0.5)
    if is_a_model:
        teacher = tmp_path
        tiny_bert(layers=1, problem_type=task, **NAMES).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
    for use in (
        lambda: nlpkd.cascade(student, teacher, "no such rows", target_agreement=0.9),
        lambda: nlpkd.load(student, fallback=teacher),
    ):
        with pytest.raises(ValueError, match=f"a cascade needs .* one class a text, and .* 2 outputs, .*'{task}'"):
            use()


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (-100, "target_accuracy needs a gold label in each row, and 1 of 41 rows"),
        (0.5, "label"),
        ([0, 1], "label"),
    ],
)
def test_accuracy_is_of_rows_with_one_class_each(models, student, label, message):
    texts = enumerate(sentences(40)[0])
    rows = [{"text": text, "label": label if isinstance(label, list) else number % 2} for number, text in texts]
    with pytest.raises(ValueError, match=message):
        nlpkd.cascade(student, models / "teacher", [*rows, {"text": "good", "label": label}], target_accuracy=0.5)
    with pytest.raises(ValueError, match="a cascade is of rows with one class each"):
        nlpkd.cascade(student, models / "teacher", rows, target_accuracy=0.5, problem_type="regression")


def test_another_fallback_is_said_and_one_of_other_classes_refused(models, student, caplog):
    nlpkd.cascade(student, models / "teacher", texts(), target_agreement=0.9)
    nlpkd.load(student, fallback=models / "teacher")
    assert "was chosen beside" not in caplog.text
    nlpkd.load(student, fallback=FunctionTeacher(lambda some: [[1.0, 0.0]] * len(some), ["neg", "pos"], name="rule"))
    assert "was chosen beside" in caplog.text and "the fallback is rule" in caplog.text
    for classes in (["good", "bad"], ["neg", "pos", "good"]):
        with pytest.raises(ValueError, match="the teacher rule can't answer for the student"):
            nlpkd.load(student, fallback=FunctionTeacher(lambda some: [], classes, name="rule"))


@pytest.mark.parametrize("names", [("NEG", "POS"), ("LABEL_0", "LABEL_1"), ("0", "1"), (" neg", "pos ")])
def test_a_teacher_answers_in_the_student_s_words_whatever_it_calls_the_classes(models, student, names):
    other = renamed(models / "teacher", names)
    usual = nlpkd.cascade(student, models / "teacher", texts(), target_agreement=0.9)
    assert nlpkd.cascade(student, other, texts(), target_agreement=0.9).curve == usual.curve

    def handed_on(fallback):
        both = nlpkd.load(student, fallback=fallback)
        both.record = replace(both.record, threshold=1.0)
        return both([row["text"] for row in texts(30)])

    expected = handed_on(models / "teacher")
    assert handed_on(other) == expected
    assert {(each["label"], each["by"]) for each in expected} == {("neg", "fallback"), ("pos", "fallback")}


@pytest.mark.parametrize("names", [("neg", "pos"), ("LABEL_0", "LABEL_1")])
@pytest.mark.parametrize("teacher_names", [("neg", "pos"), ("pos", "neg")])
def test_what_is_served_is_as_often_right_as_was_found(models, student, names, teacher_names):
    own, teacher = renamed(student, names), renamed(models / "teacher", teacher_names)
    some = [row["text"] for row in texts()]
    found = [answer["label"] for answer in nlpkd.load(models / "teacher")(some)]
    # So that it is right in two thirds, and in one third by names that are the other way round.
    gold = [label if row % 3 else {"neg": "pos", "pos": "neg"}[label] for row, label in enumerate(found)]
    labelled = [{"text": text, "label": label} for text, label in zip(some, gold, strict=True)]
    record = nlpkd.cascade(own, teacher, labelled, target_accuracy=0.2)
    both = nlpkd.load(own, fallback=teacher)
    both.record = replace(both.record, threshold=record.curve[0]["threshold"])
    words = dict(zip(names, ("neg", "pos"), strict=True))
    right = [words[each["label"]] == label for each, label in zip(both(some), gold, strict=True)]
    # A text whose probability is the threshold itself may fall on either side, read in another batch.
    assert record.curve[0]["found"] == pytest.approx(np.mean(right), abs=0.01)
    assert 0 < both.passed_on


class Paid(LabelingTeacher):
    """A teacher that costs money, one text a call, and refuses some texts."""

    rows_per_call = 1

    def __init__(self, name="paid", refuses=()):
        self.classes, self.name, self.refuses, self.asked_about = ["pos", "neg"], name, set(refuses), []
        self.away = False

    def probabilities(self, texts):
        if self.away:
            raise NoReply("nobody is there")
        self.asked_about += texts
        if self.refuses & {*texts}:
            raise ValueError("content_filter")
        return np.array([[0.9, 0.1]] * len(texts), dtype=np.float32)

    def describe(self):
        return {"name": self.name, "question": "good?"}


@pytest.fixture
def sure_student(models, tokenizer, tmp_path):
    """A student that always answers what `Paid` does."""
    model = tiny_bert(layers=1, **NAMES)
    model.classifier.bias.data += torch.tensor([0.0, 5.0])
    model.save_pretrained(tmp_path / "sure")
    tokenizer.save_pretrained(tmp_path / "sure")
    return tmp_path / "sure"


@pytest.mark.parametrize("target", ["target_agreement", "target_accuracy"])
def test_a_teacher_is_paid_once_a_text_whatever_it_refuses_and_whatever_the_threshold(sure_student, caplog, target):
    some = [f"{text} {number}" for number, text in enumerate(sentences(60)[0])]
    rows = [{"text": text, "label": "pos"} for text in [*some, *some]]
    teacher = Paid(refuses=some[3:5])
    record = nlpkd.cascade(sure_student, teacher, rows, **{target: 0.9})
    rows_that_count = 116 if target == "target_agreement" else 120
    assert (record.rows, record.answered, record.found) == (rows_that_count, 1.0, 1.0)
    assert sorted(teacher.asked_about) == sorted(some) and "row 3 (content_filter)" in caplog.text
    # Another run asks about what was refused alone, another teacher about all.
    for other, asked in ((Paid(refuses=some[3:5]), some[3:5]), (Paid(), []), (Paid("new"), some)):
        nlpkd.cascade(sure_student, other, rows, **{target: 0.95})
        assert sorted(other.asked_about) == sorted(asked)


def asked_until_refused(share):
    """A teacher that answers by a word, and refuses as many texts as that; and rows with gold labels of the same."""
    some = [f"{text} {number}" for number, text in enumerate(sentences(400, seed=7)[0])]
    gold = ["pos" if " the " in f" {text} " else "neg" for text in some]
    right = dict(zip(some, gold, strict=True))

    def rule(asked):
        if any(int(text.split()[-1]) % 100 < share for text in asked):
            raise ValueError("content_filter")
        return [[0.9, 0.1] if right[text] == "neg" else [0.1, 0.9] for text in asked]

    rows = [{"text": text, "label": label} for text, label in right.items()]
    return FunctionTeacher(rule, ["neg", "pos"], name="filtered", rows_per_call=1), rows


@pytest.mark.parametrize("share", [0, 10, 70])
def test_what_is_served_is_as_often_right_as_was_found_whatever_the_teacher_refuses(student, share):
    teacher, rows = asked_until_refused(share)
    record = nlpkd.cascade(student, teacher, rows, target_accuracy=0.3)
    assert (record.rows, record.unanswered_rows) == (400, 4 * share)
    both = nlpkd.load(student, fallback=teacher)
    for each in record.curve[:: max(1, len(record.curve) - 1)]:
        both.record = replace(both.record, threshold=each["threshold"])
        served = both([row["text"] for row in rows])
        right = [answer["label"] == row["label"] for answer, row in zip(served, rows, strict=True)]
        # A text whose probability is the threshold itself may fall on either side, read in another batch.
        assert each["found"] == pytest.approx(np.mean(right), abs=0.01)
    assert both.refused or not share


def test_a_target_on_all_answers_is_not_reached_by_a_teacher_that_refuses_most(student):
    teacher, rows = asked_until_refused(70)
    with pytest.raises(ValueError, match=r"of the teacher, with the student's answers on the 280 rows that it does"):
        nlpkd.cascade(student, teacher, rows, target_accuracy=0.95)


def test_rows_that_the_teacher_does_not_answer_are_in_the_record_and_the_verdict(sure_student):
    some = [f"{text} {number}" for number, text in enumerate(sentences(60)[0])]
    rows = [{"text": text, "label": "pos"} for text in some]
    for target, left, told in (
        ("target_agreement", 57, "did not answer: 3; they are left out"),
        ("target_accuracy", 60, "did not answer: 3; the student's answers count"),
    ):
        record = nlpkd.cascade(sure_student, Paid(refuses=some[3:6]), rows, **{target: 0.9})
        written = json.loads((sure_student / CASCADE_NAME).read_text())
        assert (written["rows"], written["unanswered_rows"]) == (record.rows, record.unanswered_rows) == (left, 3)
        assert told in record.verdict()
    assert "did not answer" not in nlpkd.cascade(sure_student, Paid("new"), rows, target_accuracy=0.9).verdict()


def test_a_limit_ends_a_run_and_the_next_one_goes_on_with_what_was_paid(models, sure_student):
    some = [f"{text} {number}" for number, text in enumerate(sentences(60)[0])]
    rows, first, second = [{"text": text, "label": "pos"} for text in some], Paid(), Paid()
    with pytest.raises(ValueError, match="max_requests=20 was reached.* run again to go on"):
        nlpkd.cascade(sure_student, first, rows, target_agreement=0.9, max_requests=20)
    nlpkd.cascade(sure_student, second, rows, target_agreement=0.9, max_requests=40)
    assert (first.asked_about, second.asked_about) == (some[:20], some[20:])
    with pytest.raises(ValueError, match="those of a model or a function are not: leave them out"):
        nlpkd.cascade(sure_student, models / "teacher", rows, target_agreement=0.9, max_requests=40)


def test_what_a_function_answered_is_not_taken_for_the_answers_of_another_of_its_name(models, student):
    for share in (1.0, 0.0):
        found = [[share, 1 - share]] * 400
        rule = FunctionTeacher(lambda some, found=found: found[: len(some)], ["pos", "neg"], name="rule")
        labelled = [row | {"label": "pos" if share else "neg"} for row in texts()]
        record = nlpkd.cascade(student, rule, labelled, target_accuracy=0.4)
        assert record.curve[0]["found"] > 0.98


def test_a_text_that_the_fallback_refuses_costs_no_other_its_answer(models, student):
    nlpkd.cascade(student, models / "teacher", texts(), target_agreement=0.9)
    some = [f"{text} {number}" for number, text in enumerate(sentences(5)[0])]
    teacher = Paid(refuses=some[2:3])
    both = nlpkd.load(student, fallback=teacher)
    both.record = replace(both.record, threshold=1.0)
    answers = both([*some, some[0]])
    assert [each["by"] for each in answers] == ["fallback", "fallback", "refused", *["fallback"] * 3]
    assert answers[2]["label"] == nlpkd.load(student)(some[2])[0]["label"]
    assert sorted(teacher.asked_about) == sorted(some) and (both.passed_on, both.refused) == (6, 1)
    assert both(some[2]) == answers[2:3], "a text alone has the answer that it has among others"
    teacher.away = True
    with pytest.raises(ValueError, match="nobody is there"):
        both(some[0])


def test_however_many_texts_a_fallback_refuses_the_student_answers_them(models, student):
    nlpkd.cascade(student, models / "teacher", texts(), target_agreement=0.9)
    some = [f"{text} {number}" for number, text in enumerate(sentences(60)[0])]
    teacher = Paid(refuses=some[20:50])
    both = nlpkd.load(student, fallback=teacher)
    both.record = replace(both.record, threshold=1.0)
    assert [each["by"] for each in both(some)] == ["fallback"] * 20 + ["refused"] * 30 + ["fallback"] * 10
    assert sorted(teacher.asked_about) == sorted(some)


def test_a_function_answers_in_the_thread_that_asks(models, student):
    nlpkd.cascade(student, models / "teacher", texts(), target_agreement=0.9)
    threads = set()

    def rule(some):
        threads.add(threading.get_ident())
        return [[0.9, 0.1]] * len(some)

    both = nlpkd.load(student, fallback=FunctionTeacher(rule, ["pos", "neg"]))
    both.record = replace(both.record, threshold=1.0)
    both([row["text"] for row in texts(4)])
    assert threads == {threading.get_ident()}


def test_a_labelling_teacher_s_answers_are_in_the_student_s_words(models, student):
    nlpkd.cascade(student, models / "teacher", texts(), target_agreement=0.9)
    rule = FunctionTeacher(lambda some: [[0.9, 0.1]] * len(some), ["POS", "NEG"], name="rule")
    both = nlpkd.load(student, fallback=rule)
    both.record = replace(both.record, threshold=1.0)
    assert {each["label"] for each in both([row["text"] for row in texts(4)])} == {"pos"}


def test_a_fallback_whose_weights_are_not_those_that_the_threshold_was_chosen_beside_is_refused(
    models, own_student, tmp_path, caplog
):
    moved = shutil.copytree(models / "teacher", tmp_path / "moved")
    nlpkd.load(own_student, fallback=moved)
    assert "was chosen beside" not in caplog.text, "it is the same model in another folder"
    changed = AutoModelForSequenceClassification.from_pretrained(moved)
    changed.classifier.bias.data += 0.01
    changed.save_pretrained(moved)
    with pytest.raises(ValueError, match="has another model.safetensors than that had: the threshold"):
        nlpkd.load(own_student, fallback=moved)
    # An earlier version kept the name alone.
    kept = json.loads((own_student / CASCADE_NAME).read_text())
    del kept["teacher_files"]
    (own_student / CASCADE_NAME).write_text(json.dumps(kept))
    nlpkd.load(own_student, fallback=moved)
    assert "was chosen beside" in caplog.text


def test_the_command_prints_the_share_and_the_curve(models, student, tmp_path):
    raw_rows(400, seed=7).to_csv(tmp_path / "dev.csv")
    words = ["cascade", "--student", student, "--teacher", models / "teacher", "--data", tmp_path / "dev.csv"]
    result = CliRunner().invoke(app, [*map(str, words), "--target-agreement", "0.9"])
    assert result.exit_code == 0, result.output
    assert "of 400 texts itself" in result.output
    assert ["answered", "agreement", "at", "least", "threshold"] in [
        line.split() for line in result.output.splitlines()
    ]


@pytest.fixture
def own_student(student, tmp_path):
    """A copy, which a test may change, and its threshold."""
    own = shutil.copytree(student, tmp_path / "own")
    nlpkd.cascade(own, student.parent / "teacher", texts(), target_agreement=0.9)
    return own


def test_a_student_that_was_trained_again_is_refused_until_its_threshold_is_chosen_again(models, own_student):
    nlpkd.load(own_student, fallback=models / "teacher")
    changed = AutoModelForSequenceClassification.from_pretrained(own_student)
    changed.classifier.bias.data += 0.01
    changed.save_pretrained(own_student)
    with pytest.raises(ValueError, match="model.safetensors, has changed since: the threshold promises nothing of it"):
        nlpkd.load(own_student, fallback=models / "teacher")
    nlpkd.cascade(own_student, models / "teacher", texts(), target_agreement=0.9)
    nlpkd.load(own_student, fallback=models / "teacher")


@pytest.mark.parametrize("name", ["alice/student", "alice/student@v1", "{folder}/model.safetensors"])
def test_a_student_that_is_no_folder_is_refused_with_what_can_be_given_instead(models, name):
    name = name.format(folder=models / "student")
    for use in (
        lambda: nlpkd.load(name, fallback=models / "teacher"),
        lambda: nlpkd.cascade(name, models / "teacher", texts(), target_agreement=0.9),
    ):
        with pytest.raises(ValueError, match=f"{name} is no folder, .* give a copy .*, of an ONNX file the folder"):
            use()


def with_other_labels(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"id2label": {"0": "pos", "1": "neg"}}))


def with_another_tokenizer(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["good"], words["bad"] = words["bad"], words["good"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def with_tokenizer_settings(**settings):
    def change(folder):
        known = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(known | settings))

    return change


OTHER_READING = [{"truncation_side": "left"}, {"model_max_length": 8}, {"model_input_names": ["input_ids"]}]


def with_other_settings(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))


CHANGES = [
    (with_other_labels, "id2label"),
    (with_other_settings, "config.json"),
    (with_another_tokenizer, "tokenizer.json, tokenizer"),
    *((with_tokenizer_settings(**settings), "tokenizer") for settings in OTHER_READING),
]


@pytest.mark.parametrize(("change", "what"), CHANGES)
def test_the_same_weights_with_other_labels_or_tokens_are_another_student(models, own_student, change, what):
    nlpkd.load(own_student, fallback=models / "teacher")
    change(own_student)
    with pytest.raises(ValueError, match=f"chosen on {what}, .*, has changed since: the threshold promises"):
        nlpkd.load(own_student, fallback=models / "teacher")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (with_another_tokenizer, "tokenizer.json, tokenizer"),
        (with_tokenizer_settings(model_max_length=8), "tokenizer"),
    ],
)
def test_the_same_weights_with_other_tokens_are_another_teacher(models, own_student, tmp_path, change, what):
    teacher = shutil.copytree(models / "teacher", tmp_path / "teacher")
    nlpkd.load(own_student, fallback=teacher)
    change(teacher)
    with pytest.raises(ValueError, match=f"the fallback .* has another {what} than that had"):
        nlpkd.load(own_student, fallback=teacher)


def test_a_threshold_of_an_earlier_version_is_tied_to_the_weights_alone(models, own_student):
    path = own_student / CASCADE_NAME
    record = json.loads(path.read_text())
    for name in ("student_files", "teacher_files"):
        record[name] = {"model.safetensors": record[name]["model.safetensors"]}
    path.write_text(json.dumps(record))
    nlpkd.load(own_student, fallback=models / "teacher")


def test_the_temperature_is_that_of_a_report_of_the_student_s_own_weights(models, own_student, caplog):
    nlpkd.evaluate(
        own_student, raw_rows(30), held_out=raw_rows(30, seed=1), output_dir=own_student, latency_runs=0,
        bootstrap_samples=10,
    )  # fmt: skip
    fitted = nlpkd.EvaluationReport.load(own_student).candidates["student"].temperature_scaling.temperature
    target = {"target_agreement": 0.5}
    assert nlpkd.cascade(own_student, models / "teacher", texts(), **target).temperature == fitted != 1
    changed = AutoModelForSequenceClassification.from_pretrained(own_student)
    changed.classifier.bias.data += 0.01
    changed.save_pretrained(own_student)
    assert nlpkd.cascade(own_student, models / "teacher", texts(), **target).temperature == 1
    assert "it was measured of other weights" in caplog.text


def test_a_file_that_is_served_in_the_place_of_another_is_refused(models, own_student):
    pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    nlpkd.export_student(own_student)
    with pytest.raises(ValueError, match="was chosen on model.safetensors, and what is served now, model.onnx, is"):
        nlpkd.load(own_student, fallback=models / "teacher")
    nlpkd.load(own_student, fallback=models / "teacher", file="model.safetensors")


def test_of_pairs_both_texts_are_read_whatever_the_target_is_on(models, student):
    first, second = sentences(400, seed=7)[0], sentences(400, seed=8)[0]

    def found(second, target, names=("sentence1", "sentence2"), **asked):
        rows = [dict(zip((*names, "label"), (*each, "pos"), strict=True)) for each in zip(first, second, strict=True)]
        if target == "target_agreement":
            rows = [{name: each for name, each in row.items() if name != "label"} for row in rows]
        return nlpkd.cascade(student, models / "teacher", rows, **{target: 0.01}, **asked).curve

    for target in ("target_agreement", "target_accuracy"):
        own = found(second, target)
        named = found(second, target, ("a", "b"), text_column="a", text_pair_column="b")
        assert named == own != found(second[::-1], target)
    pairs = [{"sentence1": one, "sentence2": other} for one, other in zip(first, second, strict=True)]
    with pytest.raises(ValueError, match="rule labels single texts, and the rows are pairs"):
        rule = FunctionTeacher(lambda some: [[1.0, 0.0]] * len(some), ["pos", "neg"], name="rule")
        nlpkd.cascade(student, rule, pairs, target_agreement=0.9)
    with pytest.raises(ValueError, match="leave max_length out"):
        nlpkd.cascade(student, models / "teacher", pairs, target_agreement=0.9, max_length=8)


@pytest.mark.parametrize("split", ["test", "validation", "dev"])
def test_a_single_split_that_is_not_for_training_is_as_good_as_the_rows_alone(models, student, split):
    alone = nlpkd.cascade(student, models / "teacher", texts(), target_agreement=0.9)
    rows = DatasetDict({split: Dataset.from_list(texts())})
    assert nlpkd.cascade(student, models / "teacher", rows, target_agreement=0.9).curve == alone.curve

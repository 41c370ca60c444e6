"""Whoever asks a teacher asks once about each text, and loses no answer to one that it refuses."""

import numpy as np
import pytest

from nlpkd import calibrate_teacher, check_labels, label
from nlpkd.labelling.rows import answers_beside, asked_probabilities
from nlpkd.tasks import MULTI_LABEL, SINGLE_LABEL
from nlpkd.teachers import FunctionTeacher

CLASSES = ["pos", "neg"]
GOLD = [("good", "pos"), ("poor", "neg")]


class Picky:
    """A teacher that costs money, and refuses some texts."""

    def __init__(self, refuses=()):
        self.asked, self.refuses = [], set(refuses)

    def __call__(self, texts):
        self.asked += texts
        if self.refuses & {*texts}:
            raise ValueError("content_filter")
        return [[0.9, 0.1] if "good" in text else [0.1, 0.9] for text in texts]

    def teacher(self):
        return FunctionTeacher(self, CLASSES, name="picky", rows_per_call=1)


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "in memory"])
def test_each_text_is_asked_about_once_and_a_refused_one_costs_no_other(tmp_path, caplog, kept):
    picky = Picky(["bad"])
    answers = answers_beside(tmp_path / "rows.parquet", picky.teacher()) if kept else None
    found = asked_probabilities(picky.teacher(), ["good", "bad", "poor", "good", "bad"], answers)
    assert picky.asked == ["good", "bad", "poor"] and found.shape == (5, 2)
    assert np.isnan(found[[1, 4]]).all() and found[[0, 3]] == pytest.approx(np.array([[0.9, 0.1]] * 2))
    assert caplog.text.count("row 1 (content_filter)") == 1 and ("rows.parquet.answers" in caplog.text) == kept


@pytest.mark.parametrize("door", [check_labels, calibrate_teacher])
def test_a_door_without_a_file_of_answers_leaves_out_what_is_refused_and_pays_once_a_text(door):
    texts = [f"{word} {number}" for number in range(5) for word in ("good", "poor")]
    rows = [{"text": text, "label": "pos" if "good" in text else "neg"} for text in [*texts, *texts]]
    picky = Picky([texts[3]])
    given = {"data": rows} if door is check_labels else {"gold": rows}
    found = door(teacher=picky.teacher(), **given)
    assert sorted(picky.asked) == sorted(texts)
    assert (found.rows if door is check_labels else found.calibration.rows) == 18


def test_a_teacher_that_refuses_everything_is_an_error_that_names_a_row():
    with pytest.raises(ValueError, match=r"row 0 \('a'\): content_filter"):
        asked_probabilities(Picky("ab").teacher(), ["a", "b"], None)


def test_rows_of_which_none_is_answered_are_an_error_in_every_run_also_beside_gold_rows(tmp_path):
    gold = [{"text": f"{word} {number}", "label": name} for number in range(3) for word, name in GOLD]
    for _ in range(4):
        with pytest.raises(ValueError, match=r"row 0 \('a'\): content_filter. The teacher answers none of 2 texts"):
            label(Picky("ab").teacher(), [{"text": "a"}, {"text": "b"}], output=tmp_path / "a.parquet", gold=gold)
    assert not (tmp_path / "a.parquet").exists()


@pytest.mark.parametrize(
    ("answers", "classes", "task", "said"),
    [
        ([[0.9, 0.1]] * 3 + [[0.3, 0.7]], ["pos", "neg"], SINGLE_LABEL,
         "pos 75.0 %, neg 25.0 %; the mean top probability is 0.85."),
        ([[0.9, 0.6]] * 3 + [[0.3, 0.9]], ["a", "b"], MULTI_LABEL,
         "b 100.0 %, a 75.0 %; the mean probability of yes or no is 0.76."),
        ([[1.0, *[0.0] * 24]] * 4, [f"c{number}" for number in range(25)], SINGLE_LABEL,
         "c19 0.0 % and 5 more; the mean"),
    ],
    ids=["one class", "several labels", "many classes"],
)  # fmt: skip
def test_the_log_ends_with_the_shares_of_the_classes_and_how_sure_the_teacher_is(
    answers, classes, task, said, tmp_path, caplog
):
    texts = {f"text {number}": answer for number, answer in enumerate(answers)}
    teacher = FunctionTeacher(lambda asked: [texts[text] for text in asked], classes, name="judge", problem_type=task)
    label(teacher, [{"text": text} for text in texts], output=tmp_path / "a.parquet")
    assert said in caplog.messages[-1] and "4 rows labelled by judge" in caplog.messages[-1]


@pytest.mark.parametrize("rows", [9, 10])
def test_a_teacher_that_answers_all_alike_is_told(rows, tmp_path, caplog):
    texts = [{"text": f"good {number}"} for number in range(rows)]
    label(Picky().teacher(), texts, output=tmp_path / "a.parquet")
    assert ("All rows have the same answer" in caplog.text) is (rows == 10)

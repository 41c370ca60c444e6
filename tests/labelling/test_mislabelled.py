"""Planted wrong labels are found, by a teacher's probabilities and by out-of-fold ones."""

import csv
import json
import logging

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict
from paths import ways_to
from samples import raw_rows, tiny_bert
from typer.testing import CliRunner

from nlpkd import check_labels
from nlpkd.cli import app
from nlpkd.labelling.mislabelled import probably_wrong
from nlpkd.teachers import FunctionTeacher

NAMES = ["sport", "art", "work"]
WORDS = {"sport": ("match", "goal", "team"), "art": ("paint", "stage", "song"), "work": ("office", "salary", "boss")}


def planted(rows=300, wrong=20, seed=0):
    """Rows of which some have another label than their words say, and the numbers of these."""
    draw = np.random.default_rng(seed)
    labels = [NAMES[draw.integers(3)] for _ in range(rows)]
    texts = [" ".join([*draw.choice(WORDS[label], 3), *draw.choice(["the", "a", "of"], 3)]) for label in labels]
    chosen = draw.choice(rows, wrong, replace=False)
    for row in chosen:
        labels[row] = NAMES[(NAMES.index(labels[row]) + 1) % 3]
    return [{"text": t, "label": label} for t, label in zip(texts, labels, strict=True)], set(chosen.tolist())


def judge(texts):
    counts = np.array([[sum(word in text for word in WORDS[name]) for name in NAMES] for text in texts])
    return (counts + 0.1) / (counts + 0.1).sum(axis=1, keepdims=True)


def test_rows_are_counted_and_ranked_as_in_the_paper():
    draw = np.random.default_rng(0)
    probabilities = draw.dirichlet(np.ones(4), 500)
    labels = np.array([draw.choice(4, p=each) for each in probabilities])
    thresholds = [np.mean([p[c] for p, y in zip(probabilities, labels, strict=True) if y == c]) for c in range(4)]
    count = 0
    for p, y in zip(probabilities, labels, strict=True):
        above = [c for c in range(4) if p[c] >= thresholds[c]]
        count += bool(above) and max(above, key=lambda c: p[c]) != y
    found = probably_wrong(labels, probabilities)
    assert len(found) == count > 20
    own = probabilities[np.arange(500), labels]
    others = set(range(500)) - set(found) - set(np.flatnonzero(probabilities.argmax(axis=1) == labels))
    assert list(own[found]) == sorted(own[found]) and own[found].max() <= min(own[row] for row in others)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_teacher_of_few_values_tells_of_a_wrong_label_however_many_rows_there_are(dtype):
    # The mean of equal numbers is rounded, and may be above each of them.
    for share in (0.9, 0.97, 0.9731):
        for count in range(3, 60):
            labels = np.array([0] * count + [1] * count + [0])
            sure = np.array([[share, 1 - share], [1 - share, share]], dtype=dtype)
            assert probably_wrong(labels, sure[[0] * count + [1] * count + [1]]) == [2 * count]


@pytest.mark.parametrize("with_teacher", [True, False], ids=["a teacher", "out of fold"])
def test_planted_errors_are_found_with_reason_and_proposal(tmp_path, with_teacher):
    rows, wrong = planted()
    teacher = FunctionTeacher(judge, NAMES, name="judge") if with_teacher else None
    found = check_labels(rows, teacher, output=tmp_path / "wrong.csv")
    listed = {each.row for each in found.found}
    assert len(listed & wrong) >= (18 if with_teacher else 15) and len(listed - wrong) <= 4 and found.rows == 300
    first = found.found[0]
    assert first.label == rows[first.row]["label"] and first.text == rows[first.row]["text"]
    assert NAMES.index(first.label) == (NAMES.index(first.proposed_label) + 1) % 3
    assert f"gives {first.label!r} {first.label_probability:.3f} and {first.proposed_label!r}" in first.reason
    with open(tmp_path / "wrong.csv", newline="") as file:
        kept = list(csv.DictReader(file))
    assert [int(row["row"]) for row in kept] == [each.row for each in found.found]
    assert kept[0]["proposed_label"] == first.proposed_label and kept[0]["reason"] == first.reason
    assert f"{len(listed)} of 300 labels" in found.to_text()


def test_a_fine_tuned_classifier_tells_by_its_own_class_order(tmp_path, tokenizer):
    model = tiny_bert(id2label={0: "pos", 1: "neg"}, label2id={"pos": 0, "neg": 1})
    model.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    data = raw_rows(60, seed=1)
    names = data.features["label"].names
    rows = [{"text": row["text"], "label": names[row["label"]]} for row in data]
    found = check_labels(rows, tmp_path / "teacher")
    other = check_labels(
        [row | {"label": {"pos": "neg", "neg": "pos"}[row["label"]]} for row in rows], tmp_path / "teacher"
    )
    by_row = {each.row: each for each in found.found}
    both = [each for each in other.found if each.row in by_row]
    assert all(each.label == by_row[each.row].proposed_label for each in both)
    assert all(each.label_probability < each.proposed_probability for each in found.found + other.found)


@pytest.mark.parametrize("names", [("NEG", "POS"), ("LABEL_0", "LABEL_1"), ("0", "1"), (" neg", "pos ")])
@pytest.mark.parametrize("numbers", [False, True])
def test_a_classifier_is_matched_to_the_labels_whatever_it_calls_the_classes(tmp_path, tokenizer, names, numbers):
    def listed(names):
        given = {"id2label": dict(enumerate(names)), "label2id": {name: k for k, name in enumerate(names)}}
        folder = tmp_path / "-".join(names).replace(" ", "_")
        tiny_bert(initializer_range=0.5, **given).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        labels = (0, 1) if numbers else ("neg", "pos")
        rows = [{"text": row["text"], "label": labels[row["label"]]} for row in raw_rows(60, seed=1)]
        return [(each.row, each.label, each.label_probability) for each in check_labels(rows, folder).found]

    expected = listed(("neg", "pos"))
    assert expected and [each[:2] for each in listed(names)] == [each[:2] for each in expected]
    assert [each[2] for each in listed(names)] == pytest.approx([each[2] for each in expected])


def test_both_texts_of_a_pair_tell_whether_its_label_is_wrong(tmp_path, tokenizer):
    rows, wrong = planted()
    pairs = [{"premise": "the film", "hypothesis": row["text"], "label": row["label"]} for row in rows]
    swapped = [{"premise": row["hypothesis"], "hypothesis": row["premise"], "label": row["label"]} for row in pairs]
    alone = {each.row for each in check_labels(rows).found}
    for given in (pairs, swapped):
        found = check_labels(given).found
        assert len(alone & {each.row for each in found}) > 0.9 * len(alone) > 0.5 * len(wrong)
    assert found[0].text == f"{rows[found[0].row]['text']}\nthe film"
    with pytest.raises(ValueError, match=r"reads single texts, and these rows are pairs \(premise and hypothesis\)"):
        check_labels(pairs, FunctionTeacher(judge, NAMES))
    # A classifier reads what it was made for.
    names = {"id2label": dict(enumerate(NAMES)), "label2id": {name: place for place, name in enumerate(NAMES)}}
    tiny_bert(num_labels=3, **names).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    both, second = (check_labels(given, tmp_path).found for given in (pairs, rows))
    assert [each.label_probability for each in both] != [each.label_probability for each in second]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_a_labelling_teacher_is_matched_by_name_to_classes_in_any_order_and_spelling(order):
    rows, _ = planted()
    usual = check_labels(rows, FunctionTeacher(judge, NAMES)).found
    classes = [NAMES[place].upper() for place in order]
    found = check_labels(rows, FunctionTeacher(lambda texts: judge(texts)[:, order], classes)).found
    assert [(each.row, each.label_probability) for each in found] == [
        (each.row, pytest.approx(each.label_probability)) for each in usual
    ]
    named = Dataset.from_list([row | {"label": NAMES.index(row["label"])} for row in rows])
    named = named.cast_column("label", ClassLabel(names=NAMES))
    found = check_labels(named, FunctionTeacher(lambda texts: judge(texts)[:, order], classes)).found
    assert [each.row for each in found] == [each.row for each in usual]


@pytest.mark.parametrize("classes", [["LABEL_0", "LABEL_1", "LABEL_2"], ["2", "0", "1"]])
def test_a_labelling_teacher_is_matched_to_the_same_names_whatever_they_are(classes):
    rows, _ = planted()
    usual = check_labels(rows, FunctionTeacher(judge, NAMES)).found
    words = dict(zip(NAMES, classes, strict=True))
    for some in (rows, [row for row in rows if row["label"] != NAMES[1]]):
        named = [row | {"label": words[row["label"]]} for row in some]
        found = check_labels(named, FunctionTeacher(judge, classes)).found
        assert found and all(each.label in classes for each in found)
        if some is rows:
            assert [each.row for each in found] == [each.row for each in usual]


def test_the_command_writes_the_rows_and_says_how_many(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows, wrong = planted()
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = CliRunner().invoke(app, ["check-labels", "--data", "train.jsonl", "--output", "wrong.jsonl"])
    assert done.exit_code == 0, done.exception
    kept = [json.loads(line) for line in (tmp_path / "wrong.jsonl").read_text().splitlines()]
    assert f"{len(kept)} of 300 labels" in done.output and len({row["row"] for row in kept} & wrong) >= 15


@pytest.mark.parametrize(
    ("rows", "teacher", "told"),
    [
        ([{"text": "a", "label": "x"}] * 9 + [{"text": "b", "label": "y"}] * 4, None, "'y' has fewer than 5 rows"),
        ([{"text": "a", "label": 0.5}, {"text": "b", "label": 0.7}], None, "these are regression"),
        ([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}], FunctionTeacher(judge, NAMES),
         "the teacher's classes"),
        ([{"text": "a", "label": 0}, {"text": "b", "label": 1}], FunctionTeacher(judge, ["x", "y"]),
         "nothing says which number is which"),
        ([{"text": "a", "label": -100}] * 9, FunctionTeacher(judge, NAMES), "none of the 9 rows has a label"),
        ([{"text": "a", "label": -100}] * 9, None, "No row has a label"),
        ([{"text": "!!! ?", "label": "x"}, {"text": "...", "label": "y"}] * 9, None, "too few rows have words"),
        ([{"text": "!!! ?", "label": "x"}, {"text": "...", "label": "y"}] * 9 + [{"text": "good", "label": "x"}], None,
         "too few rows have words"),
    ],
)  # fmt: skip
def test_labels_that_cannot_be_checked_are_refused(rows, teacher, told):
    with pytest.raises(ValueError, match=told):
        check_labels(rows, teacher)


def test_other_files_are_refused_before_anything_is_asked(tmp_path):
    with pytest.raises(ValueError, match=r"must be one of .csv, .jsonl, .parquet"):
        check_labels([], output=tmp_path / "wrong.txt")


def test_the_rows_that_are_checked_are_not_overwritten(tmp_path):
    file = tmp_path / "train.csv"
    Dataset.from_list(planted(60)[0]).to_csv(file)
    before = file.read_bytes()
    for path in ways_to(file):
        with pytest.raises(ValueError, match="would be overwritten"):
            check_labels(file, output=path)
        with pytest.raises(ValueError, match="would be overwritten"):
            check_labels(path, FunctionTeacher(judge, NAMES), output=file)
    assert file.read_bytes() == before


def never(texts):
    raise AssertionError("it was asked")


@pytest.mark.parametrize("task", ["regression", "multi_label_classification"])
@pytest.mark.parametrize("is_a_model", [True, False])
def test_a_teacher_of_another_task_is_refused_before_it_is_asked(tmp_path, tokenizer, task, is_a_model):
    teacher = FunctionTeacher(never, ["neg", "pos"], name="several", problem_type=task)
    if is_a_model:
        tiny_bert(num_labels=1 if task == "regression" else 2, problem_type=task).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        teacher = tmp_path
    rows = [{"text": "good", "label": "neg"}, {"text": "bad", "label": "pos"}]
    with pytest.raises(ValueError, match=f"a check of labels needs .* one class a text, and .* problem_type '{task}'"):
        check_labels(rows, teacher)


def test_rows_that_the_teacher_does_not_answer_are_told_and_not_judged(tmp_path, caplog):
    rows, _ = planted()

    def sometimes(texts):
        return [[7.0, 0, 0] if text == rows[5]["text"] else judge([text])[0] for text in texts]

    check = check_labels(rows, FunctionTeacher(sometimes, NAMES), output=tmp_path / "wrong.csv")
    left = [row for row in rows if row["text"] != rows[5]["text"]]
    assert check.rows == len(left) and "row 5 (" in caplog.text
    found = check_labels(left, FunctionTeacher(judge, NAMES))
    assert [each.text for each in check.found] == [each.text for each in found.found]
    assert all(rows[each.row]["text"] == each.text for each in check.found)


def test_the_split_that_is_checked_is_told_and_may_be_chosen(caplog):
    rows, wrong = planted()
    right = [row for place, row in enumerate(rows) if place not in wrong]
    data = DatasetDict(train=Dataset.from_list(right), test=Dataset.from_list(rows))
    with caplog.at_level(logging.WARNING):
        train = check_labels(data)
    assert "the split 'train' alone is read, not 'test'. To choose another one, give its name as split=" in caplog.text
    assert (train.split, train.rows) == ("train", len(right)) and "labels of the split 'train' (" in train.to_text()
    test, alone = check_labels(data, split="test"), check_labels(DatasetDict(test=data["test"]))
    assert test.found == alone.found == check_labels(rows).found and test.split == alone.split == "test"
    assert "split" not in check_labels(rows).to_text()
    with pytest.raises(ValueError, match=r"there are \['dev', 'test'\]\. To choose one, give its name as split="):
        check_labels(DatasetDict(dev=data["test"], test=data["test"]))

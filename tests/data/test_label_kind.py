"""What a column of labels is, from its values: the same for every file, frame, stream and rows, and said aloud."""

from __future__ import annotations

import csv
import json

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, Value
from samples import sentences, tiny_bert

from nlpkd import DistillationTrainer, distill, load_text_classification
from nlpkd.data.collator import DistillationCollator
from nlpkd.data.columns import RESERVED
from nlpkd.data.labels import read_task
from nlpkd.data.labels.classes import NamesOfModel
from nlpkd.data.labels.kind import number_of, parse_list, whole_number
from nlpkd.objectives import CrossEntropyLoss
from nlpkd.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL

TWO = ["LABEL_0", "LABEL_1"]


def write(path, labels, texts=None):
    with path.open("w", newline="", encoding="utf-8") as file:
        texts = texts or [f"good film {number}" for number in range(len(labels))]
        csv.writer(file).writerows([("text", "label"), *zip(texts, labels, strict=True)])
    return path


def rows_of(labels):
    return [{"text": f"good film {number}", "label": label} for number, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("labels", "names", "ids"),
    [
        (["1.0", "0.0", "1.0"], TWO, [1, 0, 1]),
        (["01", "02", "01"], ["01", "02"], [0, 1, 0]),
        (["+1", "-1", "+1"], ["-1", "1"], [1, 0, 1]),
        ([" 1", " 0", "1"], TWO, [1, 0, 1]),
        (["0", "1", "1 "], TWO, [0, 1, 1]),
        (["3.", "4.00", "3"], ["3", "4"], [0, 1, 0]),
        (["1e1", "2e1", "10"], ["10", "20"], [0, 1, 0]),
        (["1_0", "2_0", "1_0"], ["1_0", "2_0"], [0, 1, 0]),
        (["1,000", "2,000", "1,000"], ["1,000", "2,000"], [0, 1, 0]),
        (["\u0661", "\u0662", "\u0661"], ["\u0661", "\u0662"], [0, 1, 0]),
        (["NA", "None", "null"], ["NA", "None", "null"], [0, 1, 2]),
        (["2020-01-02", "2020-01-01", "2020-01-02"], ["2020-01-01", "2020-01-02"], [1, 0, 1]),
        (["True", "False", "True"], ["False", "True"], [1, 0, 1]),
        (["12345678901234567890", "12345678901234567891"] * 2, ["12345678901234567890", "12345678901234567891"],
         [0, 1, 0, 1]),
        (["[spam]", "[ham]", "(other)"], ["(other)", "[ham]", "[spam]"], [2, 1, 0]),
    ],
)  # fmt: skip
def test_whole_numbers_and_names_are_classes_however_they_are_written(tmp_path, tokenizer, labels, names, ids):
    path = write(tmp_path / "rows.csv", labels)
    for source in (path, rows_of(labels), pd.DataFrame(rows_of(labels)), Dataset.from_list(rows_of(labels))):
        data = load_text_classification(source, tokenizer=tokenizer)
        assert (data.problem_type, list(data.id2label.values())) == (SINGLE_LABEL, names)
        assert data["train"]["labels"][:] == ids
    stream = load_text_classification(path, tokenizer=tokenizer, streaming=True)["train"]
    assert (stream.names, stream.head(9)["labels"][:]) == (names, ids)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["0", "1", "nan", "1"], "Row 2 of the train split has no label .*'nan'.* -100"),
        (["0.0", "1.0", "NA", "1.0"], "Row 2 of the train split has no label .*'NA'"),
        (["0", "1", " ", "1"], "Row 2 of the train split has no label .*' '"),
        (["0", "1", "", "1"], "Row 2 of the train split has no label .*''"),
        (["01", "02", "nan", "02"], "Row 2 of the train split has no label .*'nan'"),
        (["01", "02", "1", "02"], r"Labels \['01', '1'\] of column 'label' are the same number"),
        (
            ["['a']", "b", "b", "a"],
            r"mixes lists, such as \"\['a'\]\" \(row 0\), and other labels, such as 'b' \(row 1",
        ),
        (["[0 0 ... 0 1]", "[1 0 ... 0 1]"], r"Row 0 has '\[0 0 ... .*numpy left out a part of this list"),
        (["good", "good\u200b"], r"look alike: U\+0067 .*U\+0064 and U\+0067 .*U\+0064 U\+200B"),
        (["caf\u00e9", "cafe\u0301"], r"look alike: .*U\+0065 U\+0301 and .*U\+00E9"),
        (["good", "\uff47ood"], r"look alike"),
        (["good", "good\u00a0"], "differ only in case or blanks"),
        (["a b", "a  b"], "look alike"),
    ],
)
def test_labels_that_can_t_be_told_are_refused_by_file_and_stream(tmp_path, tokenizer, labels, message):
    path = write(tmp_path / "rows.csv", labels)
    for settings in ({}, {"streaming": True}):
        with pytest.raises(ValueError, match=message):
            load_text_classification(path, tokenizer=tokenizer, **settings)


@pytest.mark.parametrize(
    ("labels", "names", "first"),
    [
        (["['a', 'b']", "['b']", "[]"], ["a", "b"], [1, 1]),
        (["['a' 'b']", "['b']", "[]"], ["a", "b"], [1, 1]),
        (["('a', 'b')", "('b',)", "()"], ["a", "b"], [1, 1]),
        (["{'b', 'a'}", "{'b'}", "{'a'}"], ["a", "b"], [1, 1]),
        (["[0 2]", "[1]", "[]"], ["LABEL_0", "LABEL_1", "LABEL_2"], [1, 0, 1]),
        (["[1. 0.\n 1.]", "[0. 1. 0.]"], ["LABEL_0", "LABEL_1", "LABEL_2"], [1, 0, 1]),
        (["[ True False]", "[False  True]"], TWO, [1, 0]),
        (['["a", "b"]', '["b"]'], ["a", "b"], [1, 1]),
    ],
)
def test_texts_of_lists_are_lists(tmp_path, tokenizer, labels, names, first):
    path = write(tmp_path / "rows.csv", labels)
    for source in (path, rows_of(labels)):
        data = load_text_classification(source, tokenizer=tokenizer)
        assert (data.problem_type, list(data.id2label.values())) == (MULTI_LABEL, names)
        assert data["train"]["labels"][0] == first
    with pytest.raises(ValueError, match="is a list, and a stream has one class a row"):
        load_text_classification(path, tokenizer=tokenizer, streaming=True)
    asked = load_text_classification(path, tokenizer=tokenizer, problem_type=SINGLE_LABEL)
    assert sorted(asked.id2label.values()) == sorted(labels)


def test_a_spelling_that_train_does_not_have_is_told_from_its_look_alike(tokenizer):
    train = rows_of(["caf\u00e9", "bar"])
    with pytest.raises(
        ValueError, match=r"column 'label' \(row 1 of the validation split\) look alike: .*U\+00E9 and"
    ):
        load_text_classification(train, rows_of(["bar", "cafe\u0301"]), tokenizer=tokenizer)
    data = load_text_classification(train, rows_of(["bar"]), tokenizer=tokenizer, label_names=["cafe\u0301", "bar"])
    assert list(data.id2label.values()) == ["cafe\u0301", "bar"] and data["train"]["labels"][:] == [0, 1]


def test_a_test_split_of_minus_ones_is_hidden_whatever_its_type(tmp_path, tokenizer):
    for hidden in (-1, "-1", "-1.0", -1.0, "", None):
        data = load_text_classification(rows_of(["a", "b"]), None, rows_of([hidden] * 2), tokenizer=tokenizer)
        assert list(data) == ["train"]


def test_what_a_text_is_read_as():
    assert [whole_number(text) for text in ("-0", "007", "1.0", "1.", "1.5", "1e-1", "x", "", "1_0", "\uff11")] == [
        0, 7, 1, 1, None, None, None, None, None, None,
    ]  # fmt: skip
    assert [number_of(value) for value in (True, b"1", "0x1", ".5", "1e400", None)] == [
        None, None, None, 0.5, float("inf"), None,
    ]  # fmt: skip
    assert whole_number("9" * 60) == int("9" * 60) and number_of("9" * 200) is None
    assert [parse_list(text) for text in ("[a]", "(1)", "{}", '{"a": 1}', "[1,", "[" * 9000 + "]", "")] == [None] * 7


def test_scores_of_every_source_may_lack_some_and_say_so(tmp_path, tokenizer, caplog):
    scores = ["0.5", "1.0", "", "2.0"]
    frame = pd.DataFrame({"text": list("abcd"), "label": [0.5, 1.0, None, 2.0]})
    frame.to_parquet(tmp_path / "rows.parquet")
    for source in (write(tmp_path / "rows.csv", scores), frame, frame.to_dict("records"), tmp_path / "rows.parquet"):
        caplog.clear()
        data = load_text_classification(source, tokenizer=tokenizer)
        assert data.problem_type == REGRESSION and np.isnan(data["train"]["labels"][:]).tolist() == [0, 0, 1, 0]
        assert "1 of 4 train rows have no score" in caplog.text
    with pytest.raises(ValueError, match=r"Label '0.5' \(row 0 .* is not whole, and a stream has one class a row"):
        load_text_classification(write(tmp_path / "rows.csv", scores[:2]), tokenizer=tokenizer, streaming=True)


def test_what_was_decided_is_said_once_with_the_reason_and_can_be_overridden(tmp_path, tokenizer, caplog):
    path = write(tmp_path / "rows.csv", ["1.0", "2.0", "3.0"])

    def said(labels="1.0 2.0 3.0", **settings):
        caplog.clear()
        data = load_text_classification(write(path, labels.split()), tokenizer=tokenizer, **settings)
        messages = [record.getMessage() for record in caplog.records if "column 'label' holds" in record.getMessage()]
        return data.problem_type, [message.partition(" holds ")[2] for message in messages]

    end = " Where they mean something else, set problem_type."
    assert said() == (SINGLE_LABEL, ["one class a row: all labels are whole." + end])
    assert said(streaming=True) == said()
    assert said("01 2") == (
        SINGLE_LABEL,
        ["one class a row: all labels are whole, and zeros in front are kept ('01')." + end],
    )
    assert said("1 x") == (SINGLE_LABEL, ["one class a row: label 'x' (row 1 of the train split) is no number." + end])
    assert said("x y") == said("x y", streaming=True) == (SINGLE_LABEL, []), "it could mean nothing else"
    assert said("1 2.5") == (REGRESSION, ["scores: label '2.5' (row 1 of the train split) is not whole." + end])
    assert said("1 2.5", problem_type=SINGLE_LABEL) == (SINGLE_LABEL, [])
    assert said(problem_type=REGRESSION) == (REGRESSION, [])


@pytest.mark.parametrize(("classes", "rows"), [(1100, 1200), (77, 153)])
def test_any_number_of_classes_is_meant_where_the_column_is_named(tmp_path, tokenizer, classes, rows):
    path = write(tmp_path / "rows.csv", [f"c{number % classes:04d}" for number in range(rows)])
    for settings in ({}, {"streaming": True}):
        with pytest.raises(ValueError, match="Name the label's column with label_column|name the label's column"):
            load_text_classification(path, tokenizer=tokenizer, **settings)
        data = load_text_classification(path, tokenizer=tokenizer, label_column="label", **settings)
        assert data.num_labels == classes
        with pytest.raises(ValueError, match=f"{rows} different labels in {rows} rows.*Name another"):
            load_text_classification(
                write(tmp_path / "ids.csv", range(rows)), tokenizer=tokenizer, label_column="label", **settings
            )


def test_text_that_nobody_labelled_has_the_classes_of_a_named_teacher(tmp_path, tokenizer, caplog):
    validation = rows_of(["warm", "cold"])
    names = ["cold", "mild", "warm"]
    for train in (
        [{"text": "good"}, {"text": "bad"}],
        rows_of([-100, -100]),
        rows_of(["-100", "-100"]),
        rows_of([None, None]),
        rows_of(["", " "]),
        rows_of([float("nan"), float("nan")]),
    ):
        data = load_text_classification(train, validation, tokenizer=tokenizer, label_names=names)
        assert (data["train"]["labels"][:], data["validation"]["labels"][:]) == ([-100, -100], [2, 0])
        assert list(data.id2label.values()) == names
    stream = load_text_classification(
        write(tmp_path / "rows.csv", ["", " "]), validation, tokenizer=tokenizer, label_names=names, streaming=True
    )
    assert stream["train"].head(2)["labels"][:] == [-100, -100] and stream["validation"]["labels"][:] == [2, 0]
    (tmp_path / "texts.jsonl").write_text('{"text": "good"}\n{"text": "bad"}\n')
    stream = load_text_classification(
        tmp_path / "texts.jsonl", validation, tokenizer=tokenizer, label_names=names, streaming=True
    )
    assert stream["train"].head(2)["labels"][:] == [-100, -100] and stream["validation"]["labels"][:] == [2, 0]
    with pytest.raises(ValueError, match="No column is known to be the label"):
        load_text_classification(tmp_path / "texts.jsonl", validation, tokenizer=tokenizer, streaming=True)
    with pytest.raises(ValueError, match="name the classes of the teacher"):
        load_text_classification(rows_of([-100, -100]), validation, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="the teacher has the classes .*nothing says which number is which"):
        load_text_classification(
            [{"text": "good"}], rows_of(["1", "0"]), tokenizer=tokenizer, label_names=NamesOfModel(names)
        )
    for unlabelled in (-100, None, "-100", ""):
        several = load_text_classification(
            rows_of([unlabelled] * 2), rows_of([["warm"], []]), tokenizer=tokenizer, label_names=names,
            problem_type=MULTI_LABEL,
        )  # fmt: skip
        assert several["train"]["labels"][:] == [[-100] * 3] * 2
        assert several["validation"]["labels"][:] == [[0, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize("labels", [["warm", "cold"], ["warm", "-100"]])
def test_train_rows_may_lack_classes_of_a_named_teacher_and_it_is_said(tmp_path, tokenizer, labels, caplog):
    path = write(tmp_path / "rows.csv", labels)
    for settings in ({}, {"streaming": True}):
        caplog.clear()
        data = load_text_classification(
            path, rows_of(["mild"]), tokenizer=tokenizer, label_names=["cold", "mild", "warm"], **settings
        )
        assert data.num_labels == 3 and data["validation"]["labels"][:] == [1]
        lacking = ["'mild'"] if "cold" in labels else ["'cold'", "'mild'"]
        assert f"{len(lacking)} of the 3 classes have no train row: {', '.join(lacking)}" in caplog.text


def test_a_teacher_of_another_task_is_refused(tokenizer, tmp_path):
    scores = rows_of([0.5, 1.0, 1.5] * 3)
    with pytest.raises(ValueError, match="make the task regression, and the teacher has 2 outputs"):
        distill(tiny_bert(), "layers:1", scores, scores, teacher_tokenizer=tokenizer, output_dir=tmp_path)


def test_a_column_whose_name_is_kept_is_refused_and_one_of_the_user_s_is_not(tmp_path, tokenizer, settings):
    rows = rows_of(["a", "b"])
    taken = [row | {f"{RESERVED}document": 1} for row in rows]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, taken)))
    for source, more in ((taken, {}), (tmp_path / "rows.jsonl", {"streaming": True})):
        with pytest.raises(ValueError, match=f"begin with '{RESERVED}' are kept for nlpkd: rename"):
            load_text_classification(source, tokenizer=tokenizer, **more)
    # The user's own columns, whatever they are called, change nothing.
    texts, labels = sentences(40)
    plain = load_text_classification(
        Dataset.from_dict({"text": texts, "label": labels}), tokenizer=tokenizer, max_length=16
    )["train"].remove_columns(["text", "length"])
    own = plain
    for name in ("document", "length", "row", "__row__", "rows", "stars"):
        own = own.add_column(name, [number // 8 for number in range(40)])
    found = []
    for train in (plain, own):
        trainer = DistillationTrainer(
            tiny_bert(seed=1), None, settings(), [CrossEntropyLoss()], train, train, processing_class=tokenizer
        )
        batches = [batch["input_ids"].tolist() for batch in trainer.get_train_dataloader()]
        figures = {
            name: value for name, value in trainer.evaluate().items() if "time" not in name and "_per_" not in name
        }
        found.append((batches, figures))
    assert found[0] == found[1]


def test_a_second_column_of_labels_is_refused_and_names_beside_ids_are_not(tokenizer, settings):
    data = load_text_classification(rows_of(["a", "b"] * 4), tokenizer=tokenizer)["train"]
    for name in ("label", "label_ids"):
        both = data.add_column(name, [1] * 8)
        with pytest.raises(ValueError, match=f"several columns of labels.*labels.*{name}"):
            DistillationTrainer(tiny_bert(), None, settings(), [CrossEntropyLoss()], both, processing_class=tokenizer)
        with pytest.raises(ValueError, match=f"several columns of labels.*labels.*{name}"):
            DistillationCollator(tokenizer)(list(both))
    named = data.add_column("label", ["a", "b"] * 4)
    DistillationTrainer(tiny_bert(), None, settings(), [CrossEntropyLoss()], named, processing_class=tokenizer)
    assert DistillationCollator(tokenizer)(list(named))["labels"].tolist() == [0, 1] * 4


@pytest.mark.parametrize("labels", [[0.0, 1.0], [0.5, 1.0], [[0], [1]], [[0.5, 0.5], [1.0, 0.0]]])
def test_labels_of_own_rows_that_are_no_ids_are_refused(tokenizer, settings, labels):
    rows = Dataset.from_dict({**tokenizer(["good", "bad"]), "labels": labels})
    with pytest.raises(ValueError, match="row 0 of the training set has label .* no class id: cast ids to int64"):
        DistillationTrainer(tiny_bert(), None, settings(), [CrossEntropyLoss()], rows, processing_class=tokenizer)


@pytest.mark.parametrize("kind", ["float32", "int64"])
def test_zeros_and_ones_make_the_task_of_a_student_that_has_none(tokenizer, settings, kind, caplog):
    rows = Dataset.from_dict({**tokenizer(["good", "bad"]), "labels": [[0, 1, 1], [1, 0, 0]]})
    rows = rows.cast_column("labels", rows.features["labels"].__class__(Value(kind)))
    student = tiny_bert(num_labels=3)
    trainer = DistillationTrainer(student, None, settings(), None, rows, rows, processing_class=tokenizer)
    assert student.config.problem_type == MULTI_LABEL == trainer.objectives[0].task
    assert "zeros and ones" in caplog.text and "eval_f1_micro" in trainer.evaluate()
    told = tiny_bert(num_labels=3, problem_type=SINGLE_LABEL)
    with pytest.raises(ValueError, match="no class id"):
        DistillationTrainer(told, None, settings(), None, rows, processing_class=tokenizer)


def test_a_key_that_comes_twice_is_told_by_its_line(tmp_path, tokenizer):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "label": 0}\n{"text": "b", "label": 1, "label": 0}\n')
    for settings in ({}, {"streaming": True}):
        with pytest.raises(ValueError, match="Line 2 of .* the key 'label' comes twice"):
            load_text_classification(path, tokenizer=tokenizer, **settings)


def test_the_task_of_a_column_does_not_hang_on_its_type():
    for values in ([0, 1], [0.0, 1.0], ["0", "1"], ["0.0", "1.0"], [True, False], ["a", "b"]):
        assert read_task(Dataset.from_dict({"y": values}), "y") == SINGLE_LABEL
    for values in ([0, 0.5], ["0", "0.5"], ["0", ".5"], [None, 0.5], ["", "0.5"], ["nan", "5e-1"]):
        assert read_task(Dataset.from_dict({"y": values}), "y") == REGRESSION


def test_label_names_that_are_not_those_of_the_rows_are_said_by_file_frame_and_stream(tmp_path, tokenizer, caplog):
    path = write(tmp_path / "rows.csv", ["a", "b", "a"])
    named = Dataset.from_list(rows_of(["a", "b", "a"])).class_encode_column("label")
    for source, more in ((path, {}), (path, {"streaming": True}), (pd.read_csv(path), {}), (named, {})):
        for names, other in ((["x", "y"], True), (["a", "a"], True), (["a"], True), (["b", "a"], False)):
            caplog.clear()
            load_text_classification(source, tokenizer=tokenizer, label_names=names, **more)
            assert ("are not those of the rows, which keep their own" in caplog.text) is other


def test_what_no_column_can_hold_is_named(tokenizer):
    rows = rows_of(["a", "b"])
    with pytest.raises(ValueError, match="The train split has a transform .*rows.map"):
        load_text_classification(Dataset.from_list(rows).with_transform(lambda batch: batch), tokenizer=tokenizer)
    with pytest.raises(ValueError, match=r"holds \['a'\]: give names"):
        load_text_classification(rows_of([[["a"]], [["b"]]]), tokenizer=tokenizer)
    for labels in ([1j, 2j], pd.arrays.SparseArray([1, 0])):
        with pytest.raises(ValueError, match="label"):
            load_text_classification(pd.DataFrame({"text": ["x", "y"], "label": labels}), tokenizer=tokenizer)


@pytest.mark.parametrize("labels", [["3,5", "4,0", "2,5"], ["50%", "10%", "100 %"], ["\u20ac 3", "\u20ac 4", "high"]])
def test_classes_that_a_reader_takes_for_numbers_are_told(tmp_path, tokenizer, labels, caplog):
    path = write(tmp_path / "rows.csv", labels)
    for more in ({}, {"streaming": True}):
        caplog.clear()
        assert load_text_classification(path, tokenizer=tokenizer, **more).num_labels == 3
        assert f"holds one class a row: label {labels[0]!r} (row 0 of the train split) is no number" in caplog.text
    caplog.clear()
    load_text_classification(rows_of(["pos", "neg", "class 3"]), tokenizer=tokenizer)
    assert "is no number" not in caplog.text


@pytest.mark.parametrize("labels", [["1", "1.0", "other"], ["7", "007", "other"], ["01", "1", "2"]])
def test_one_number_in_two_spellings_is_never_two_classes(tmp_path, tokenizer, labels):
    path = write(tmp_path / "rows.csv", labels * 2)
    for more in ({}, {"streaming": True}):
        with pytest.raises(ValueError, match="are the same number: write it one way"):
            load_text_classification(path, tokenizer=tokenizer, **more)


@pytest.mark.parametrize(
    ("labels", "parts"),
    [
        (["delay", "bag", "delay, bag", "delay"], ["delay", "bag"]),
        (["a;b", "b;a", "a;b"], ["a", "b"]),
        (["a|b|c", "a|b", "c|d"], ["a", "b", "c"]),
        (["fruit, vegetables", "meat, fish", "meat"], None),
        (["1,000", "2,000", "1,000"], None),
        (["a,", "a", "b"], None),
    ],
)
def test_names_that_look_like_several_labels_are_told_with_how_to_write_them(labels, parts, tokenizer, caplog):
    data = load_text_classification(rows_of(labels), tokenizer=tokenizer)
    assert data.problem_type == SINGLE_LABEL and set(data.id2label.values()) == {*labels}
    said = [each for each in caplog.messages if "it would be several labels" in each]
    assert len(said) == (parts is not None)
    if parts:
        assert f'as a list, "{parts}", it' in said[0]
        lists = [str(label.replace(";", ",").replace("|", ",").replace(" ", "").split(",")) for label in labels]
        assert load_text_classification(rows_of(lists), tokenizer=tokenizer).problem_type == MULTI_LABEL
        caplog.clear()
        load_text_classification(rows_of(labels), tokenizer=tokenizer, problem_type=SINGLE_LABEL)
        assert not any("several labels" in each for each in caplog.messages)

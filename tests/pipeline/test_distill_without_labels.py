"""A student of a teacher that labels texts: no gold label in the training rows."""

import json

import pytest
from paths import ways_to
from samples import QUIET, raw_rows, tiny_bert

from nlpkd import distill, label, read_splits
from nlpkd.data.columns import TEACHER_LOGITS
from nlpkd.evaluation.report import EvaluationReport
from nlpkd.teachers import FunctionTeacher

QUICK = {
    **QUIET, "per_device_train_batch_size": 8,
    "learning_rate": 5e-3, "num_train_epochs": 4, "save_strategy": "no", "objectives": "hinton",
}  # fmt: skip
ONE_STEP = {**QUICK, "num_train_epochs": 1, "max_steps": 1}
GOOD = ("good", "great", "fine")


def judge(texts):
    likely = [0.95 if any(word in text.split() for word in GOOD) else 0.05 for text in texts]
    return [[each, 1 - each] for each in likely]


def texts_file(folder):
    path = folder / "texts.csv"
    raw_rows(160, seed=1).remove_columns("label").to_csv(path)
    return path


def test_a_labelling_teacher_stands_in_for_gold_labels(tmp_path, small):
    # The teacher's order of classes is not that of the validation rows' ids.
    teacher = FunctionTeacher(judge, ["pos", "neg"], name="judge v1")
    result = distill(
        teacher, small, texts_file(tmp_path), raw_rows(60, seed=2), output_dir=tmp_path / "student", **QUICK
    )
    quality = result.report.candidates["student"].quality["accuracy"]
    assert quality.value > 0.9, "the student learned what the teacher said, in the order of its own labels"
    assert result.student.config.id2label == {0: "pos", 1: "neg"}
    record = json.loads((tmp_path / "student/report.json").read_text())
    assert record["run"]["teacher"]["name"] == "judge v1"
    rows = read_splits(tmp_path / "student/teacher_labels.parquet")[0]["train"]
    assert len(rows) == 160 and TEACHER_LOGITS not in rows.column_names


def test_the_labelling_teacher_is_measured_on_gold_labels_beside_its_student(tmp_path, small):
    validation = raw_rows(60, seed=2)
    right = [
        (likely[0] > 0.5) == (label == 1)
        for likely, label in zip(judge(validation["text"][:]), validation["label"], strict=True)
    ]
    teacher = FunctionTeacher(judge, ["pos", "neg"])
    report = distill(teacher, small, texts_file(tmp_path), validation, output_dir=tmp_path / "student", **QUICK).report
    measured = report.candidates["teacher"]
    assert measured.quality["accuracy"].value == pytest.approx(sum(right) / 60)
    assert measured.parameters is measured.size_mb is None and not measured.latency
    assert report.comparisons["student_vs_teacher"].retention is not None
    assert report.candidates["student"].agreement.value > 0.9
    assert "fewer parameters" not in report.verdict() and "of the teacher's accuracy" in report.verdict()


@pytest.mark.parametrize("held_out", ["a file of texts", "a part of the training texts", "rows marked -100"])
def test_without_any_gold_label_the_report_says_that_agreement_is_all_it_knows(tmp_path, small, held_out):
    rows = raw_rows(40, seed=2).remove_columns("label")
    options = {
        "a file of texts": {"validation": rows},
        "a part of the training texts": {"validation_split": 0.25},
        "rows marked -100": {"validation": rows.add_column("label", [-100] * 40)},
    }[held_out]
    teacher = FunctionTeacher(judge, ["pos", "neg"])
    settings = QUICK | {"eval_strategy": "epoch", "num_train_epochs": 8}
    report = distill(
        teacher, small, texts_file(tmp_path), output_dir=tmp_path / "student", **options, **settings
    ).report
    assert report.task.headline == "agreement" and report.task.rows == 40
    assert not report.candidates["student"].quality and not report.candidates["teacher"].quality
    assert report.candidates["student"].agreement.value > 0.9 and not report.comparisons
    told = "agreement with the teacher is all that this report can know"
    for name in ("README.md", "report.md"):
        assert told in (tmp_path / "student" / name).read_text()
    assert EvaluationReport.load(tmp_path / "student").to_dict() == report.to_dict()


def test_gold_labels_that_are_no_class_of_the_teacher_are_refused_before_it_is_asked(tmp_path, small):
    asked = []
    teacher = FunctionTeacher(lambda texts: asked.extend(texts) or judge(texts), ["good", "bad"])
    with pytest.raises(ValueError, match="Label '(pos|neg)' .* of the validation split"):
        distill(teacher, small, texts_file(tmp_path), raw_rows(9), output_dir=tmp_path / "student", **QUICK)
    assert not asked


def test_several_labels_without_gold_ones_are_measured_by_agreement(tmp_path, tokenizer):
    tiny_bert(problem_type="multi_label_classification").save_pretrained(tmp_path / "small")
    tokenizer.save_pretrained(tmp_path / "small")
    teacher = FunctionTeacher(judge, ["pos", "neg"], problem_type="multi_label_classification")
    rows = raw_rows(40, seed=2).remove_columns("label")
    report = distill(
        teacher, tmp_path / "small", texts_file(tmp_path), rows, output_dir=tmp_path / "student", **QUICK
    ).report
    assert report.task.problem_type == "multi_label_classification" and report.task.headline == "agreement"
    assert report.candidates["student"].agreement.value > 0.8


def test_a_labelled_file_is_a_training_file(tmp_path, small):
    output = label(judge, texts_file(tmp_path), output=tmp_path / "labels.parquet", classes=["pos", "neg"])
    result = distill(
        None, small, output, raw_rows(60, seed=2), soft_label_column="probabilities",
        output_dir=tmp_path / "student", **QUICK,
    )  # fmt: skip
    assert result.report.candidates["student"].quality["accuracy"].value > 0.9


@pytest.mark.parametrize("name", ["validation", "test", "validation_split"])
def test_gold_rows_that_are_measured_are_told_once_before_the_teacher_is_asked_and_in_report_and_card(
    tmp_path, small, caplog, name
):
    held_out, told = raw_rows(20, seed=2), []
    gold = held_out.select(range(6)).map(lambda row: {"text": f" {row['text'].upper()}  "})
    measured = {"validation": {"validation": held_out}, "test": {"validation": raw_rows(9, seed=3), "test": held_out}}
    given = {"train": texts_file(tmp_path)} | measured.get(name, {"train": held_out, "validation_split": 10})
    teacher = FunctionTeacher(
        lambda texts: told.append("are rows of gold" in caplog.text) or judge(map(str.lower, texts)), ["pos", "neg"]
    )
    report = distill(teacher, small, **given, gold=gold, output_dir=tmp_path / "out", **ONE_STEP).report
    count = report.run.data.teacher_learned_rows
    whole = sum(text in set(held_out["text"][:6]) for text in held_out["text"])
    assert 0 < count < report.run.data.evaluated_rows and (name == "validation_split" or count == whole)
    assert all(told) and caplog.text.count("are rows of gold, which correct the teacher, too") == 1
    for page in ("report.md", "README.md"):
        assert f"{count} are training texts of the teacher too" in (tmp_path / "out" / page).read_text()


@pytest.mark.parametrize("differs", ["teacher", "calibration", ""])
def test_the_report_says_where_the_measured_answers_are_not_those_of_the_teacher_that_taught(
    tmp_path, small, caplog, differs
):
    def labelled(name, rows, **options):
        teacher = FunctionTeacher(judge, ["pos", "neg"], name="another" if options.pop("other", False) else "judge")
        return label(teacher, rows, output=tmp_path / f"{name}.parquet", **options)

    gold = raw_rows(20, seed=5)
    train = labelled("train", texts_file(tmp_path), gold=gold)
    given = {"teacher": {"gold": gold, "other": True}, "calibration": {}}.get(differs, {"gold": gold})
    validation = labelled("dev", raw_rows(20, seed=2), **given)
    report = distill(
        None, small, train, validation, soft_label_column="probabilities", output_dir=tmp_path / "out", **ONE_STEP
    ).report
    assert report.run.data.other_labeller == ([differs] if differs else [])
    told = f"are of another {differs}"
    assert (f"of the validation split {told} than" in caplog.text) is bool(differs)
    for page in ("report.md", "README.md"):
        assert (f"The measured soft labels {told} than" in (tmp_path / "out" / page).read_text()) is bool(differs)


def test_a_labelling_teacher_beside_other_soft_labels_is_refused(tmp_path, small):
    teacher = FunctionTeacher(judge, ["pos", "neg"])
    with pytest.raises(ValueError, match="leave soft_label_column"):
        distill(
            teacher,
            small,
            texts_file(tmp_path),
            raw_rows(9),
            soft_label_column="x",
            output_dir=tmp_path / "o",
            **QUICK,
        )


@pytest.mark.parametrize("role", ["train", "validation", "test"])
def test_rows_are_not_overwritten_by_those_that_the_teacher_labels(tmp_path, small, role):
    file = tmp_path / "student/teacher_labels.parquet"
    file.parent.mkdir()
    raw_rows(20, seed=1).remove_columns("label").to_parquet(file)
    before = file.read_bytes()
    for path in ways_to(file):
        rows = {"train": raw_rows(20, seed=2).remove_columns("label")} | {role: path}
        with pytest.raises(ValueError, match=f"{role}=.* would be overwritten"):
            distill(FunctionTeacher(judge, ["pos", "neg"]), small, **rows, output_dir=file.parent, **QUICK)
    assert file.read_bytes() == before

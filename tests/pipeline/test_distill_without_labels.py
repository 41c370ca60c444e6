"""A student of a teacher that labels texts: no gold label in the training rows."""

import json

import pytest
from samples import raw_rows, tiny_bert

from nlpkd import distill, label, read_splits
from nlpkd.data.columns import TEACHER_LOGITS
from nlpkd.teachers import FunctionTeacher

QUICK = {
    "bf16": False, "report_to": "none", "disable_tqdm": True, "per_device_train_batch_size": 8,
    "learning_rate": 5e-3, "num_train_epochs": 4, "save_strategy": "no", "use_cpu": True, "objectives": "hinton",
}  # fmt: skip
GOOD = ("good", "great", "fine")


def judge(texts):
    likely = [0.95 if any(word in text.split() for word in GOOD) else 0.05 for text in texts]
    return [[each, 1 - each] for each in likely]


@pytest.fixture(scope="module")
def small(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("small")
    tiny_bert().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


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


def test_a_labelled_file_is_a_training_file(tmp_path, small):
    output = label(judge, texts_file(tmp_path), output=tmp_path / "labels.parquet", classes=["pos", "neg"])
    result = distill(
        None, small, output, raw_rows(60, seed=2), soft_label_column="probabilities",
        output_dir=tmp_path / "student", **QUICK,
    )  # fmt: skip
    assert result.report.candidates["student"].quality["accuracy"].value > 0.9


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

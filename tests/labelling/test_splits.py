"""The rows of a distillation whose teacher labels texts, before anything is asked."""

import pytest

from nlpkd.data.arguments import DataArguments
from nlpkd.labelling.splits import RowsToLabel
from nlpkd.teachers import FunctionTeacher


@pytest.mark.parametrize(("gold", "told"), [(["A film ", "b"], 1), (["a", "b"], 0)])
def test_rows_that_correct_the_teacher_are_told_of_where_it_is_measured_on_them(tmp_path, caplog, gold, told):
    teacher = FunctionTeacher(lambda texts: [[0.5, 0.5]] * len(texts), ["bad", "good"])
    measured = [{"text": "a film", "label": "good"}, {"text": "c", "label": "bad"}]
    few = [{"text": text, "label": label} for text, label in zip(gold, teacher.classes, strict=True)]
    for name in ("validation", "test"):
        caplog.clear()
        splits = {"validation": None, "test": None} | {name: measured}
        RowsToLabel.of(
            teacher, [{"text": "d"}], splits["validation"], splits["test"], tmp_path / "labels.parquet",
            DataArguments(), gold=few,
        )  # fmt: skip
        assert caplog.text.count(f"1 of the 2 texts of the {name} split (50 %) are rows of gold, which") == told

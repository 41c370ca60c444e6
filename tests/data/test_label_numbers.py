"""Gold labels that are numbers, beside a teacher whose classes have names: at every door that labels texts."""

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from samples import QUIET, raw_rows

from nlpkd import calibrate_teacher, check_labels, distill, label
from nlpkd.tasks import MULTI_LABEL
from nlpkd.teachers import FunctionTeacher

GOOD = ("good", "great", "fine")
QUICK = {**QUIET, "max_steps": 1, "max_length": 64}


def right(texts, classes):
    """Answer rightly, by classes of which the second one or `pos` is the good one."""
    good = classes.index("pos") if "pos" in classes else 1
    places = [good if set(GOOD) & {*text.split()} else 1 - good for text in texts]
    return [[1 - place, place] for place in places]


def gold(kind):
    texts = raw_rows(24, seed=2)["text"][:]
    numbers = [int(bool(set(GOOD) & {*text.split()})) for text in texts]
    if kind == "a ClassLabel of numbers":
        features = Features(text=Value("string"), label=ClassLabel(names=["0", "1"]))
        return Dataset.from_dict({"text": texts, "label": numbers}, features=features)
    return Dataset.from_dict({"text": texts, "label": [str(each) if kind == "texts" else each for each in numbers]})


def through(door, teacher, rows, small, folder):
    """Give rows with gold labels to a teacher, and return how much of them it gets right there."""
    texts = raw_rows(12, seed=1).remove_columns("label")
    if door == "calibrate_teacher":
        return calibrate_teacher(teacher, rows).calibration.before.accuracy
    if door == "check_labels":
        return 1 - len(check_labels(rows, teacher).found) / len(rows)
    if door == "label":
        label(teacher, texts, output=folder / "a.parquet", budget=4, rounds=2, student=small, test=rows, **QUICK)
        return 1.0
    given = {"train": rows} if door == "distill on them" else {"train": texts}
    report = distill(teacher, small, **given, validation=rows, output_dir=folder / "out", **QUICK).report
    return report.candidates["teacher"].quality["accuracy"].value


@pytest.mark.parametrize("door", ["distill", "distill on them", "calibrate_teacher", "check_labels", "label"])
@pytest.mark.parametrize("kind", ["numbers", "texts", "a ClassLabel of numbers"])
def test_numbers_say_no_class_that_has_a_name(door, kind, small, tmp_path):
    asked = []
    classes = ["pos", "neg"]
    teacher = FunctionTeacher(lambda texts: asked.extend(texts) or right(texts, classes), classes, name="right")
    with pytest.raises(ValueError, match="(?i)label"):
        through(door, teacher, gold(kind), small, tmp_path)
    assert not asked


@pytest.mark.parametrize("door", ["distill", "calibrate_teacher", "check_labels"])
@pytest.mark.parametrize("classes", [["0", "1"], ["LABEL_0", "LABEL_1"], ["false", "true"]])
def test_numbers_say_classes_that_are_numbers_or_false_and_true(door, classes, small, tmp_path):
    teacher = FunctionTeacher(lambda texts: right(texts, classes), classes, name="right")
    assert through(door, teacher, gold("numbers"), small, tmp_path) == 1


SEVERAL = ["rain", "wind", "snow"]
SKIES = [[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 0, 1], [1, 1, 0], [0, 0, 1]]
LISTS = {
    "zeros and ones": SKIES,
    "zeros and ones as text": [str(each) for each in SKIES],
    "ids": [[place for place, on in enumerate(each) if on] for each in SKIES],
    "names": [[name for name, on in zip(SEVERAL, each, strict=True) if on] for each in SKIES],
}


@pytest.mark.parametrize("door", ["distill", "calibrate_teacher"])
@pytest.mark.parametrize("kind", LISTS)
def test_lists_mean_the_teachers_classes_in_their_order(door, kind, small, tmp_path):
    texts = [" ".join(name if on else "sky" for name, on in zip(SEVERAL, each, strict=True)) for each in SKIES]
    rows = Dataset.from_dict({"text": texts, "label": LISTS[kind]})

    def right(asked):
        return [[float(name in text.split()) for name in SEVERAL] for text in asked]

    teacher = FunctionTeacher(right, SEVERAL, name="right", problem_type=MULTI_LABEL)
    if door == "calibrate_teacher":
        assert calibrate_teacher(teacher, rows).calibration.before.accuracy == 1
        return
    report = distill(
        teacher, small, train=rows.remove_columns("label"), validation=rows, output_dir=tmp_path, **QUICK
    ).report
    assert report.candidates["teacher"].quality["f1_macro"].value == 1

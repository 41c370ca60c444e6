"""A few gold labels mend a teacher's temperature and its bias for some classes."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, log_softmax, logit, softmax

from nlpkd import label, read_splits
from nlpkd.data.labels.labellers import other_labellers
from nlpkd.labelling.calibration import Calibration, calibrate_teacher
from nlpkd.labelling.rows import answers_beside
from nlpkd.tasks import MULTI_LABEL, SINGLE_LABEL
from nlpkd.teachers import FunctionTeacher

CLASSES = ["sport", "art", "work"]
BIAS = np.array([2.0, 0.0, -2.0])


def world(rows, seed):
    """Texts that carry their logits, and labels drawn from them."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(0, 2, (rows, 3))
    labels = [int(draw.choice(3, p=softmax(each))) for each in logits]
    return [" ".join(f"{value:.6f}" for value in each) for each in logits], np.array(labels)


def logits_of(texts):
    return np.array([[float(word) for word in text.split()] for text in texts])


def biased(texts):
    """Three times too sure, and in love with sport."""
    return softmax(3 * logits_of(texts) + BIAS, axis=1)


def rows_of(texts, labels):
    return [{"text": text, "label": CLASSES[each].upper()} for text, each in zip(texts, labels, strict=True)]


def test_temperature_and_priors_are_those_that_the_teacher_has_wrong():
    texts, labels = world(300, 0)
    teacher = FunctionTeacher(biased, CLASSES)
    fitted = calibrate_teacher(teacher, rows_of(texts, labels))
    record = fitted.calibration
    assert record.rows == 300 and record.temperature == pytest.approx(3, rel=0.25)
    priors = np.array(list(record.priors.values()))
    np.testing.assert_allclose(priors - priors.mean(), -BIAS / 3, atol=0.35)
    # On rows that nothing was fitted on.
    others, gold = world(2000, 1)
    before, after = (each.probabilities(others) for each in (teacher, fitted))
    loss = [-np.log(np.clip(each[np.arange(2000), gold], 1e-6, 1)).mean() for each in (before, after)]
    right = [(each.argmax(axis=1) == gold).mean() for each in (before, after)]
    assert loss[1] < loss[0] - 0.2 and right[1] > right[0] + 0.01
    np.testing.assert_allclose(after.sum(axis=1), 1, atol=1e-5)
    # What is said of it beforehand comes close.
    assert record.after.log_loss == pytest.approx(loss[1], abs=0.1)
    assert record.before.accuracy == pytest.approx((biased(texts).argmax(axis=1) == labels).mean())
    assert "Before: accuracy 0." in record.to_text() and "After, cross-validated: accuracy 0." in record.to_text()


def test_what_is_fitted_is_the_greatest_posterior():
    texts, labels = world(12, 3)
    record = calibrate_teacher(FunctionTeacher(biased, CLASSES), rows_of(texts, labels)).calibration
    priors = np.array(list(record.priors.values()))

    def objective(temperature, priors):
        scores = np.log(np.clip(biased(texts), 1e-6, 1 - 1e-6)) / temperature + priors
        likelihood = log_softmax(scores, axis=1)[np.arange(12), labels].sum()
        return -likelihood + (np.log(temperature) ** 2 + (priors**2).sum()) / 2

    best = objective(record.temperature, priors)
    for step in (1e-2, -1e-2):
        assert objective(record.temperature * (1 + step), priors) > best
        for place in range(3):
            assert objective(record.temperature, priors + step * np.eye(3)[place]) > best


def test_several_labels_a_text_are_corrected_each_for_itself():
    draw = np.random.default_rng(0)
    logits = draw.normal(0, 2, (400, 2))
    gold = (draw.random((400, 2)) < expit(logits)).astype(int)
    texts = [" ".join(map(str, each)) for each in logits]
    teacher = FunctionTeacher(lambda given: expit(2 * logits_of(given) + [3, 0]), ["a", "b"], problem_type=MULTI_LABEL)
    rows = [{"text": text, "labels": [n for n, on in zip("ab", each, strict=True) if on]}
            for text, each in zip(texts, gold, strict=True)]  # fmt: skip
    fitted = calibrate_teacher(teacher, rows)
    assert fitted.calibration.temperature == pytest.approx(2, rel=0.3)
    assert fitted.calibration.priors["a"] == pytest.approx(-1.5, abs=0.4)
    np.testing.assert_allclose(logit(fitted.probabilities(texts[:50])), logits[:50], atol=1.5)


def test_kept_answers_are_asked_for_once_and_corrected_anew(tmp_path):
    seen = []

    def counted(texts):
        seen.extend(texts)
        return biased(texts)

    texts, labels = world(40, 0)
    gold, rows = rows_of(texts[:10], labels[:10]), [{"text": text} for text in texts]
    output = tmp_path / "labels.parquet"
    teacher = FunctionTeacher(counted, CLASSES, name="biased")
    fitted = calibrate_teacher(teacher, gold, answers=answers_beside(output, teacher))
    for fitted_on in (fitted, teacher):
        label(fitted_on, rows, output=output)
        found = read_splits(output)[0]["train"]["probabilities"][:]
        expected = fitted_on.adjusted(biased(texts).astype(np.float32))
        np.testing.assert_allclose([list(each.values()) for each in found], expected, atol=1e-5)
    assert sorted(seen) == sorted(texts)


def test_a_calibration_is_described_with_the_teacher():
    texts, labels = world(10, 0)
    fitted = calibrate_teacher(FunctionTeacher(biased, CLASSES, name="biased"), rows_of(texts, labels))
    told = fitted.describe()
    assert told["name"] == "biased" and told["calibration"]["temperature"] == fitted.calibration.temperature
    assert isinstance(fitted.calibration, Calibration)


@pytest.mark.parametrize("several", [False, True])
def test_files_corrected_by_the_same_gold_rows_are_alike_whatever_the_teacher_answers_them(several, tmp_path):
    texts, labels = world(12, 0)
    draw = np.random.default_rng(0)

    def labelled(gold, name, refused=()):
        def served(asked):
            found = biased(asked) + draw.normal(0, 1e-3, (len(asked), 3))
            found = np.clip(found, 1e-3, 1 - 1e-3)
            found = found if several else found / found.sum(axis=1, keepdims=True)
            return [[7.0, 0, 0] if text in refused else each for text, each in zip(asked, found, strict=True)]

        teacher = FunctionTeacher(
            served, CLASSES, name="served", problem_type=MULTI_LABEL if several else SINGLE_LABEL, rows_per_call=1
        )
        label(teacher, [{"text": text} for text in texts], output=tmp_path / name, gold=gold)
        return read_splits(tmp_path / name)[0]["train"]

    def rows(labels):
        found = rows_of(texts, labels)
        return [row | {"label": [row["label"].lower()]} for row in found] if several else found

    train = labelled(rows(labels), "train.parquet")
    splits = {
        "noisy": labelled(rows(labels), "noisy.parquet"),
        "in another order": labelled(rows(labels)[::-1], "order.parquet"),
        "one refused": labelled(rows(labels), "refused.parquet", refused=texts[:1]),
        "other labels": labelled(rows((labels + 1) % 3), "labels.parquet"),
        "fewer": labelled(rows(labels)[1:], "fewer.parquet"),
    }
    assert train["teacher_calibration"][0] != splits["noisy"]["teacher_calibration"][0]
    found = other_labellers({"train": train, **splits}, "probabilities")
    assert found == {"other labels": ["calibration"], "fewer": ["calibration"]}


@pytest.mark.parametrize("reverse", [False, True])
def test_the_label_column_is_the_one_that_is_named_wherever_it_stands(reverse):
    texts, labels = world(30, 0)
    rows = [row | {"category": "art"} for row in rows_of(texts, labels)]
    mixed = [dict(reversed(row.items())) if reverse else row for row in rows]
    teacher = FunctionTeacher(biased, CLASSES)
    found = calibrate_teacher(teacher, mixed, label_column="label").calibration
    assert found == calibrate_teacher(teacher, rows_of(texts, labels)).calibration


@pytest.mark.parametrize("blank", ["-100", -100])
def test_gold_rows_without_a_label_are_left_out_and_not_asked_about(blank):
    seen = []

    def counted(texts):
        seen.extend(texts)
        return biased(texts)

    texts, labels = world(30, 0)
    rows = rows_of(texts, labels)
    if blank == -100:
        rows = [row | {"label": CLASSES.index(row["label"].lower())} for row in rows]
    names = CLASSES if blank == "-100" else ["0", "1", "2"]
    found = calibrate_teacher(FunctionTeacher(counted, names), [*rows, {"text": "9 9 9", "label": blank}]).calibration
    assert found.rows == 30 and "9 9 9" not in seen
    assert found == calibrate_teacher(FunctionTeacher(biased, names), rows).calibration


def test_rows_of_several_labels_without_any_are_left_out():
    teacher = FunctionTeacher(lambda given: expit(logits_of(given)), ["a", "b"], problem_type=MULTI_LABEL)
    rows = [{"text": "1 0", "a": 1, "b": 0}, {"text": "0 2", "a": 0, "b": 1}, {"text": "9 9", "a": -100, "b": -100}]
    assert calibrate_teacher(teacher, rows, label_column=["a", "b"]).calibration.rows == 2


@pytest.mark.parametrize(
    ("gold", "told"),
    [
        ([{"text": "0 0 0", "label": "music"}, {"text": "1 0 0", "label": "art"}], "'music'.*none of the teacher's"),
        ([{"text": "0 0 0", "label": 1}, {"text": "1 0 0", "label": 0}], "nothing says which number is which"),
        ([{"text": "0 0 0"}], "No column is known to be the label"),
        (
            [{"text": text, "category": "art", "label": "sport"} for text in ("0 0 0", "1 0 0")],
            r"Several columns could be the label: \['category', 'label'\]",
        ),
        ([{"text": "0 0 0", "label": -100}, {"text": "1 0 0", "label": -100}], "two or more gold labels, got 0"),
        ([{"text": "0 0 0", "label": "art"}], "two or more gold labels"),
    ],
)
def test_gold_labels_of_other_classes_are_refused(gold, told):
    with pytest.raises(ValueError, match=told):
        calibrate_teacher(FunctionTeacher(biased, CLASSES), gold)


def test_gold_rows_that_the_teacher_does_not_answer_are_told_and_left_out(tmp_path, caplog):
    texts, labels = world(40, 0)

    def sometimes(given):
        return [[7.0, 0, 0] if text == texts[3] else biased([text])[0] for text in given]

    rows = [{"text": "1 1 1", "label": "-100"}, *rows_of(texts, labels)]
    answers = answers_beside(tmp_path / "labels.parquet", FunctionTeacher(sometimes, CLASSES))
    found = calibrate_teacher(FunctionTeacher(sometimes, CLASSES), rows, answers=answers).calibration
    assert "row 4 of the gold labels (" in caplog.text
    others = [row for number, row in enumerate(rows_of(texts, labels)) if number != 3]
    alike = calibrate_teacher(FunctionTeacher(biased, CLASSES), others).calibration
    assert replace(found, gold=alike.gold) == alike

import math
import warnings
from collections import Counter

import evaluate
import numpy as np
import pytest
from processes import run as run_program
from scipy.special import softmax
from sklearn.metrics import f1_score, matthews_corrcoef

from nlpkd.evaluation.metrics import (
    F1,
    Accuracy,
    MatthewsCorrelation,
    calibration_error,
    classification_metrics,
    common_confusions,
    resampled_metrics,
)

KEYS = {"accuracy", "f1_macro", "f1_weighted", "matthews_correlation", "expected_calibration_error"}


@pytest.fixture
def scored():
    generator = np.random.default_rng(0)
    labels = generator.integers(4, size=120)
    logits = generator.normal(size=(120, 4)) + 1.5 * np.eye(4)[labels]
    return logits, labels


def naive_calibration_error(probabilities, labels):
    total = 0.0
    for number in range(1, 16):
        inside = [
            (max(row), int(np.argmax(row)) == label)
            for row, label in zip(probabilities, labels, strict=True)
            if (number - 1) / 15 < max(row) <= number / 15
        ]
        if inside:
            confidence = sum(p for p, _ in inside) / len(inside)
            accuracy = sum(hit for _, hit in inside) / len(inside)
            total += len(inside) / len(labels) * abs(accuracy - confidence)
    return total


def test_accuracy_f1_and_matthews_follow_hand_arithmetic():
    # Two labels: 3 true positives, 1 false positive, 2 false negatives, 4 true negatives.
    references = [1, 1, 1, 1, 1, 0, 0, 0, 0, 0]
    predictions = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    assert Accuracy().compute(predictions=predictions, references=references)["accuracy"] == pytest.approx(0.7)
    f1 = F1().compute(predictions=predictions, references=references)
    assert f1["f1_macro"] == pytest.approx((6 / 9 + 8 / 11) / 2)
    assert f1["f1_weighted"] == pytest.approx(0.5 * 6 / 9 + 0.5 * 8 / 11)
    correlation = MatthewsCorrelation().compute(predictions=predictions, references=references)
    assert correlation["matthews_correlation"] == pytest.approx((3 * 4 - 1 * 2) / math.sqrt(4 * 5 * 5 * 6))


def test_weighted_f1_weighs_by_support():
    f1 = F1().compute(predictions=[0, 0, 0, 0], references=[0, 0, 0, 1])
    assert f1 == pytest.approx({"f1_macro": (6 / 7 + 0) / 2, "f1_weighted": 0.75 * 6 / 7})


def test_calibration_error_follows_hand_arithmetic():
    # Bin (9/15, 10/15]: confidences 0.62 (right), 0.66 (wrong); bin (13/15, 14/15]: 0.9 (right), 0.92 (right).
    error = calibration_error(np.array([0.62, 0.66, 0.9, 0.92]), np.array([True, False, True, True]))
    assert error == pytest.approx(0.5 * abs(0.5 - 0.64) + 0.5 * abs(1 - 0.91))


def test_calibration_error_is_zero_for_certain_and_right_predictions():
    assert calibration_error(np.array([1.0, 1.0]), np.array([True, True])) == 0


def test_metrics_combine_and_take_batches():
    combined = evaluate.combine([Accuracy(), F1(), MatthewsCorrelation()])
    combined.add_batch(predictions=np.array([0, 1]), references=np.array([0, 1]))
    combined.add_batch(predictions=[1, 1], references=[0, 1])
    result = combined.compute()
    assert result["accuracy"] == 0.75
    assert result["f1_macro"] == pytest.approx((2 / 3 + 4 / 5) / 2)


def test_rows_given_at_once_count_beside_those_of_batches():
    metric = Accuracy()
    metric.add_batch(predictions=[0], references=[0])
    assert metric.compute(predictions=[1], references=[0]) == {"accuracy": 0.5}
    assert metric.compute(predictions=[1], references=[1]) == {"accuracy": 1.0}


def test_common_confusions_are_those_of_a_counter():
    gold, predicted = np.random.default_rng(0).integers(12, size=(2, 500))
    counted = Counter((g, p) for g, p in zip(gold.tolist(), predicted.tolist(), strict=True) if g != p)
    found = common_confusions(gold, predicted, 12)
    assert [rows for *_, rows in found] == [rows for _, rows in counted.most_common(20)]
    assert all(counted[g, p] == rows for g, p, rows in found)
    assert common_confusions(gold, gold, 12) == []


def test_metrics_leave_no_file_behind(tmp_path):
    metric = Accuracy(cache_dir=str(tmp_path))
    metric.compute(predictions=[0], references=[0])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_two_instances_open_at_once_do_not_wait_for_each_other():
    first, second = Accuracy(), Accuracy()
    first.add_batch(predictions=[0, 0], references=[0, 1])
    second.add_batch(predictions=[1], references=[1])
    assert first.compute()["accuracy"] == 0.5
    assert second.compute()["accuracy"] == 1.0


def test_classification_metrics_agree_with_scikit_learn_and_a_naive_loop(scored):
    logits, labels = scored
    predictions = logits.argmax(axis=1)
    assert classification_metrics(logits, labels) == pytest.approx(
        {
            "accuracy": np.mean(predictions == labels),
            "f1_macro": f1_score(labels, predictions, average="macro"),
            "f1_weighted": f1_score(labels, predictions, average="weighted"),
            "matthews_correlation": matthews_corrcoef(labels, predictions),
            "expected_calibration_error": naive_calibration_error(softmax(logits, axis=1), labels),
        }
    )


def test_ignored_labels_do_not_count(scored):
    logits, labels = scored
    padded = np.concatenate([labels, [-100, -100]])
    assert classification_metrics(np.concatenate([logits, logits[:2]]), padded) == classification_metrics(
        logits, labels
    )


def test_one_class_neither_crashes_nor_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics = classification_metrics(np.array([[2.0, 0.0], [3.0, 0.0]]), np.array([0, 0]))
        resampled = resampled_metrics(np.array([[2.0, 0.0], [3.0, 0.0]]), np.array([0, 0]), samples=3)
    assert metrics["accuracy"] == metrics["f1_macro"] == 1.0
    assert metrics["matthews_correlation"] == 0.0
    assert set(metrics) == set(resampled) == KEYS


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ([[0.0, 1.0]], [-100], "no labelled row"),
        ([[0.0, 1.0]], [2], r"0\.\.1, found 2\.\.2"),
        ([[0.0, 1.0], [math.nan, 0.0]], [0, 1], "finite.*row 1"),
        ([0.0, 1.0], [0, 1], r"shapes \(2,\)"),
        ([[0.0, 1.0]], [0, 1], r"\(1, 2\) and \(2,\)"),
    ],
)
def test_unusable_logits_and_labels_are_refused(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(np.array(logits), np.array(labels))


def test_resamples_agree_with_scikit_learn_on_the_resampled_rows(scored):
    logits, labels = scored
    resampled = resampled_metrics(logits, labels, samples=8, seed=3)
    generator = np.random.default_rng(3)
    for sample in range(8):
        rows = generator.integers(len(labels), size=len(labels))
        predictions, references = logits[rows].argmax(axis=1), labels[rows]
        assert {metric: values[sample] for metric, values in resampled.items()} == pytest.approx(
            {
                "accuracy": np.mean(predictions == references),
                "f1_macro": f1_score(references, predictions, average="macro"),
                "f1_weighted": f1_score(references, predictions, average="weighted"),
                "matthews_correlation": matthews_corrcoef(references, predictions),
                "expected_calibration_error": naive_calibration_error(softmax(logits[rows], axis=1), references),
            }
        )


def test_resamples_average_f1_over_the_labels_that_occur():
    logits = np.eye(5)[[0, 1, 0, 1, 4, 1]]
    labels = np.array([0, 1, 0, 1, 1, 0])
    resampled = resampled_metrics(logits, labels, samples=20, seed=0)
    generator = np.random.default_rng(0)
    for sample in range(20):
        rows = generator.integers(6, size=6)
        expected = f1_score(labels[rows], logits[rows].argmax(axis=1), average="macro", zero_division=0)
        assert resampled["f1_macro"][sample] == pytest.approx(expected)


def test_resamples_are_paired_and_repeatable(scored):
    logits, labels = scored
    other = np.where((np.arange(len(labels)) == 0)[:, None], -logits, logits)
    first, again = (resampled_metrics(logits, labels, samples=50, seed=1)["accuracy"] for _ in range(2))
    difference = first - resampled_metrics(other, labels, samples=50, seed=1)["accuracy"]
    drawn = np.round(np.abs(difference) * len(labels), 6)
    assert (first == again).all()
    assert set(drawn) <= {0.0, 1.0, 2.0, 3.0, 4.0, 5.0}


def test_bootstrap_intervals_of_accuracy_cover_the_true_value_about_as_often_as_they_say():
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        hits = generator.random(200) < 0.8
        logits = np.where(hits[:, None], [1.0, 0.0], [0.0, 1.0])
        values = resampled_metrics(logits, np.zeros(200, dtype=int), samples=200, seed=trial)["accuracy"]
        low, high = np.percentile(values, [2.5, 97.5])
        covered += low <= 0.8 <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_a_bootstrap_without_resamples_is_refused(scored):
    with pytest.raises(ValueError, match="samples=0"):
        resampled_metrics(*scored, samples=0)


def test_metrics_work_with_no_network(tmp_path):
    code = (
        "import socket\n"
        "def refuse(*_): raise OSError('network')\n"
        "socket.socket.connect = refuse\n"
        "import numpy as np\n"
        "from nlpkd.evaluation.metrics import classification_metrics\n"
        "assert classification_metrics(np.eye(2), np.array([0, 1]))['accuracy'] == 1.0\n"
    )
    run_program(["-c", code], tmp_path, timeout=120, fresh=True).check_returncode()

"""What is measured of every task, against scikit-learn, scipy and naive loops."""

from __future__ import annotations

import tracemalloc
from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score

from nlpkd.evaluation.calibration import best_thresholds
from nlpkd.evaluation.scoring import MultiLabelScoring, task_scoring
from nlpkd.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(40, 3))
GOLD = (LOGITS + RANDOM.normal(size=(40, 3)) > 0.3).astype(float)
SCORES = RANDOM.normal(size=(40, 1))
TRUE = SCORES[:, 0] + RANDOM.normal(size=40)


def resamples(rows, samples, seed):
    generator = np.random.default_rng(seed)
    return [generator.integers(rows, size=rows) for _ in range(samples)]


def naive_decisions(logits, thresholds):
    p = 1 / (1 + np.exp(-logits))
    return np.array([[value > cut for value, cut in zip(row, thresholds, strict=True)] for row in p])


def naive_multi_label(logits, gold, thresholds=(0.5, 0.5, 0.5)):
    rows, labels = logits.shape
    p = 1 / (1 + np.exp(-logits))
    given = naive_decisions(logits, thresholds)
    exact = sum(all(given[i, j] == (gold[i, j] == 1) for j in range(labels)) for i in range(rows)) / rows
    bins = {}
    for i in range(rows):
        for j in range(labels):
            confidence = max(p[i, j], 1 - p[i, j])
            right = (p[i, j] > 0.5) == (gold[i, j] == 1)
            bins.setdefault(int(np.ceil(confidence * 15)), []).append(right - confidence)
    return {
        "accuracy": exact,
        "f1_macro": np.mean([f1_score(gold[:, j], given[:, j], zero_division=0) for j in range(labels)]),
        "f1_micro": f1_score(gold.ravel(), given.ravel(), zero_division=0),
        "expected_calibration_error": sum(abs(sum(gaps)) for gaps in bins.values()) / (rows * labels),
    }


@pytest.mark.parametrize("thresholds", [None, [0.3, 0.6, 0.9]])
def test_multi_label_metrics_and_their_resamples_are_the_naive_ones(thresholds):
    scoring = MultiLabelScoring(thresholds)
    asked = thresholds or (0.5, 0.5, 0.5)
    assert scoring.metrics(LOGITS, GOLD) == pytest.approx(naive_multi_label(LOGITS, GOLD, asked))
    resampled = scoring.resampled(LOGITS, GOLD, samples=7, seed=3)
    for number, rows in enumerate(resamples(40, 7, 3)):
        expected = naive_multi_label(LOGITS[rows], GOLD[rows], asked)
        assert {name: values[number] for name, values in resampled.items()} == pytest.approx(expected)


def test_f1_of_several_labels_leaves_out_what_occurs_nowhere_of_all_rows_as_of_each_resample():
    gold = np.zeros((30, 5))
    gold[np.arange(30), np.repeat([0, 1, 2, 3], [22, 6, 1, 1])] = 1
    logits = np.where(RANDOM.random(gold.shape) < 0.1, -1.0, 1.0) * np.where(gold == 1, 3.0, -3.0)
    logits[:, 4] = -3.0
    scoring = MultiLabelScoring()
    resampled = scoring.resampled(logits, gold, samples=60, seed=5)
    lacking = 0
    for number, rows in enumerate(resamples(30, 60, 5)):
        drawn, given = gold[rows], logits[rows] > 0
        expected = {each: f1_score(drawn, given, average=each, zero_division=np.nan) for each in ("macro", "micro")}
        measured = scoring.metrics(logits[rows], drawn)
        for each, value in expected.items():
            assert resampled[f"f1_{each}"][number] == pytest.approx(value)
            assert measured[f"f1_{each}"] == pytest.approx(value)
        lacking += not (drawn[:, 2:4] == 1).any(axis=0).all()
    assert lacking > 10, "many resamples lack a label"


def test_rows_without_any_label_have_an_f1_of_0_and_no_resample_has_one():
    logits, gold = np.full((4, 2), -1.0), np.zeros((4, 2))
    measured = MultiLabelScoring().metrics(logits, gold)
    resampled = MultiLabelScoring().resampled(logits, gold, samples=3, seed=0)
    for name in ("f1_macro", "f1_micro"):
        assert measured[name] == 0.0 and np.isnan(resampled[name]).all()


def test_regression_metrics_and_their_resamples_are_scipy_s():
    scoring = task_scoring(REGRESSION, None)
    measured = scoring.metrics(SCORES, TRUE)
    assert measured["pearson"] == pytest.approx(pearsonr(SCORES[:, 0], TRUE).statistic)
    assert measured["spearman"] == pytest.approx(spearmanr(SCORES[:, 0], TRUE).statistic)
    assert measured["mean_squared_error"] == pytest.approx(np.mean((SCORES[:, 0] - TRUE) ** 2))
    assert measured["mean_absolute_error"] == pytest.approx(np.mean(np.abs(SCORES[:, 0] - TRUE)))
    resampled = scoring.resampled(SCORES, TRUE, samples=5, seed=1)
    for number, rows in enumerate(resamples(40, 5, 1)):
        assert resampled["pearson"][number] == pytest.approx(pearsonr(SCORES[rows, 0], TRUE[rows]).statistic)
        assert {name: values[number] for name, values in resampled.items()} == pytest.approx(
            scoring.metrics(SCORES[rows], TRUE[rows])
        )


def test_resamples_of_tied_and_constant_scores_are_those_of_the_drawn_rows():
    scoring, scores, true = task_scoring(REGRESSION, None), np.round(SCORES[:6]), np.round(TRUE[:6] / 2)
    resampled = scoring.resampled(scores, true, samples=200, seed=2)
    for number, rows in enumerate(resamples(6, 200, 2)):
        measured = scoring.metrics(scores[rows], true[rows])
        assert {name: values[number] for name, values in resampled.items()} == pytest.approx(measured)
    assert 0.0 in resampled["pearson"], "some resample is constant"


@pytest.mark.parametrize("task", [SINGLE_LABEL, MULTI_LABEL])
def test_a_thousand_classes_take_some_kilobytes_a_row(task):
    rows, classes = 2000, 1000
    logits = RANDOM.normal(size=(rows, classes)).astype(np.float32)
    teacher = RANDOM.normal(size=(rows, classes)).astype(np.float32)
    chosen = RANDOM.integers(classes, size=rows)
    gold = chosen if task == SINGLE_LABEL else np.eye(classes, dtype=np.int8)[chosen]
    scoring = task_scoring(task, None if task == SINGLE_LABEL else [0.99] * classes)
    tracemalloc.start()
    try:
        scoring.metrics(logits, gold)
        scoring.resampled(logits, gold, samples=3, seed=0)
        scoring.breakdown(logits, gold)
        scoring.disagreements(logits, teacher, gold)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The float32 logits themselves are 4,000 bytes a row.
    assert peak / rows < 32_000


def test_a_constant_score_correlates_with_nothing_instead_of_nan():
    assert task_scoring(REGRESSION, None).metrics(np.ones((4, 1)), np.arange(4.0))["pearson"] == 0.0


@pytest.mark.parametrize("mark", [-100.0, np.nan])
def test_the_order_of_the_classes_changes_no_metric_of_rows_that_are_marked_in_any_place(mark):
    gold = GOLD.copy()
    gold[[0, 7], 1] = gold[[3, 7], 2] = gold[[5], 0] = mark
    known = ~np.isin(np.arange(40), [0, 3, 5, 7])
    for order in ([0, 1, 2], [2, 0, 1], [1, 0, 2]):
        found = MultiLabelScoring().metrics(LOGITS[:, order], gold[:, order])
        assert found == pytest.approx(MultiLabelScoring().metrics(LOGITS[known], GOLD[known]))
        drawn = MultiLabelScoring().resampled(LOGITS[:, order], gold[:, order], samples=3, seed=0)
        same = MultiLabelScoring().resampled(LOGITS[known], GOLD[known], samples=3, seed=0)
        assert all(drawn[name] == pytest.approx(same[name]) for name in same)


@pytest.mark.parametrize("mark", [-100.0, np.nan])
def test_scores_to_measure_on_are_all_there(mark):
    with pytest.raises(ValueError, match="one score a row .* 1 rows without a score"):
        task_scoring(REGRESSION, None).check(np.array([0.5, 1.0, mark]), 1)


def test_unlabelled_rows_are_left_out():
    gold = np.concatenate([GOLD, np.full((2, 3), -100.0)])
    logits = np.concatenate([LOGITS, np.full((2, 3), 9.0)])
    assert MultiLabelScoring().metrics(logits, gold) == pytest.approx(MultiLabelScoring().metrics(LOGITS, GOLD))
    true, scores = np.append(TRUE, [np.nan, -100.0]), np.append(SCORES, [[99.0], [50.0]], axis=0)
    regression = task_scoring(REGRESSION, None)
    assert regression.metrics(scores, true) == pytest.approx(regression.metrics(SCORES, TRUE))
    with pytest.raises(ValueError, match="no labelled row"):
        MultiLabelScoring().metrics(LOGITS[:2], np.full((2, 3), -100.0))


def test_agreement_is_equal_classes_equal_labels_or_correlation_by_task():
    student, teacher = torch.from_numpy(LOGITS), torch.from_numpy(np.roll(LOGITS, 1, axis=0))
    single = task_scoring(SINGLE_LABEL, None)
    rows = single.agreeing(student, teacher, single).numpy()
    expected = np.mean([a.argmax() == b.argmax() for a, b in zip(student, teacher, strict=True)])
    assert rows.shape == (40, 1) and single.agreement(rows) == pytest.approx(expected)
    several = task_scoring(MULTI_LABEL, None)
    decisions = several.agreeing(student, teacher, several).numpy()
    assert several.agreement(decisions) == pytest.approx(((student > 0) == (teacher > 0)).double().mean().item())
    regression = task_scoring(REGRESSION, None)
    pairs = regression.agreeing(student[:, :1], teacher[:, :1], regression).numpy()
    correlation = pearsonr(student[:, 0], teacher[:, 0]).statistic
    assert pairs.shape == (40, 2) and regression.agreement(pairs) == pytest.approx(correlation, abs=1e-6)
    for scoring, part in ((single, rows), (several, decisions), (regression, pairs)):
        drawn = [scoring.agreement(part[chosen]) for chosen in resamples(40, 4, 9)]
        assert scoring.resampled_agreement(part, samples=4, seed=9) == pytest.approx(drawn, abs=1e-6)


def test_each_of_two_models_agrees_by_its_own_thresholds():
    logits = torch.from_numpy(LOGITS)
    for own, others in product([None, [0.3, 0.6, 0.9]], [None, [0.7, 0.4, 0.5]]):
        ours, theirs = MultiLabelScoring(own), MultiLabelScoring(others)
        given = [naive_decisions(LOGITS, each or (0.5, 0.5, 0.5)) for each in (own, others)]
        assert (ours.agreeing(logits, logits, theirs).numpy() == (given[0] == given[1])).all()


def test_thresholds_give_the_highest_f1_that_any_cut_gives():
    p = 1 / (1 + np.exp(-LOGITS))
    for label, threshold in enumerate(best_thresholds(LOGITS, GOLD)):
        # Between two probabilities all cuts give the same.
        cuts = [0.0, *p[:, label]]
        scores = {cut: f1_score(GOLD[:, label], p[:, label] > cut, zero_division=0) for cut in cuts}
        assert f1_score(GOLD[:, label], p[:, label] > threshold) >= max(scores.values()) - 1e-9
    assert best_thresholds(LOGITS, np.zeros_like(GOLD)) == [0.5, 0.5, 0.5]


def test_the_headline_is_macro_f1_where_a_class_is_rare():
    single = task_scoring(SINGLE_LABEL, None)
    assert single.headline(np.array([0] * 49 + [1] * 10)) == "accuracy"
    assert single.headline(np.array([0] * 50 + [1] * 10)) == "f1_macro"
    assert task_scoring(MULTI_LABEL, None).headline(GOLD) == "f1_macro"
    assert task_scoring(REGRESSION, None).headline(TRUE) == "pearson"


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        (SINGLE_LABEL, GOLD), (SINGLE_LABEL, TRUE), (SINGLE_LABEL, np.array([0, 3])), (MULTI_LABEL, GOLD[:, :2]),
        (MULTI_LABEL, GOLD * 2), (REGRESSION, GOLD), (REGRESSION, np.array([0.5, np.nan])),
    ],
)  # fmt: skip
def test_labels_of_another_task_are_refused(task, labels):
    with pytest.raises(ValueError, match="labels must"):
        task_scoring(task, None).check(labels, 1 if task == REGRESSION else 3)


def test_a_single_label_has_its_own_f1_and_not_the_mean_of_yes_and_no():
    gold, logits = GOLD[:, :1], LOGITS[:, :1]
    own = f1_score(gold[:, 0], logits[:, 0] > 0)
    assert own != pytest.approx(f1_score(gold[:, 0], logits[:, 0] > 0, average="macro"))
    scoring = task_scoring(MULTI_LABEL, None)
    measured = scoring.metrics(logits, gold)
    assert measured["f1_macro"] == measured["f1_micro"] == pytest.approx(own)
    assert [entry.f1 for entry in scoring.breakdown(logits, gold).per_class] == [pytest.approx(own)]
    resampled = scoring.resampled(logits, gold, samples=100, seed=0)
    for name in ("f1_macro", "f1_micro"):
        assert resampled[name].mean() == pytest.approx(own, abs=0.05)

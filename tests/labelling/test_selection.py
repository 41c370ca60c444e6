"""Which texts are asked about next, and what that saves."""

import numpy as np
import pytest

from nlpkd.labelling.selection import labels_saved, margins, save_curves, select_texts
from nlpkd.tasks import MULTI_LABEL, SINGLE_LABEL


def test_the_margin_is_between_the_two_likeliest_classes_or_the_least_sure_label():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25], [0.1, 0.0, 0.9]])
    np.testing.assert_allclose(margins(probabilities, SINGLE_LABEL), [0.5, 0.05, 0.8])
    np.testing.assert_allclose(margins(probabilities, MULTI_LABEL), [0.4, 0.2, 0.8])


def test_uncertainty_takes_the_least_sure_texts():
    sureness = np.array([0.9, 0.1, 0.5, 0.0, 0.7])
    assert select_texts("uncertainty", 3, sureness, np.zeros((5, 2))) == [3, 1, 2]
    assert select_texts("uncertainty", 9, sureness, np.zeros((5, 2))) == [3, 1, 2, 4, 0]


def test_diversity_takes_unsure_texts_that_lie_apart():
    draw = np.random.default_rng(0)
    # Three tight groups of unsure texts, and sure ones anywhere.
    directions = np.eye(3)[np.repeat([0, 1, 2], 5)] + draw.normal(0, 0.01, (15, 3))
    embeddings = np.concatenate([directions, draw.normal(0, 9, (100, 3))])
    sureness = np.concatenate([np.linspace(0, 0.1, 15), np.full(100, 0.9)])
    chosen = select_texts("diversity", 3, sureness, embeddings)
    assert chosen[0] == 0 and sorted(each // 5 for each in chosen) == [0, 1, 2]
    assert {each // 5 for each in select_texts("uncertainty", 3, sureness, embeddings)} == {0}
    many = select_texts("diversity", 40, sureness, embeddings)
    assert len(set(many)) == 40, "no text twice"


@pytest.mark.parametrize(
    ("curve", "random", "saved"),
    [
        ([(10, 0.5), (20, 0.8), (40, 0.9)], [(10, 0.5), (20, 0.6), (40, 0.8)], 0.5),
        ([(10, 0.5), (20, 0.7), (40, 0.9)], [(10, 0.5), (20, 0.6), (40, 0.8)], 0.25),
        ([(10, 0.9), (40, 0.9)], [(10, 0.5), (40, 0.8)], 0.75),
        ([(10, 0.5), (40, 0.7)], [(10, 0.5), (40, 0.8)], None),
        # Random had its last value before its end.
        ([(10, 0.5), (20, 0.8), (40, 0.8)], [(10, 0.5), (20, 0.8), (40, 0.8)], 0.0),
        ([(10, 0.5), (20, 0.7), (40, 0.9)], [(10, 0.8), (20, 0.9), (40, 0.8)], -2.0),
    ],
)
def test_labels_saved_are_read_off_the_curves(curve, random, saved):
    assert labels_saved(curve, random) == pytest.approx(saved)


def test_a_curve_saves_nothing_against_itself_and_as_much_as_another_costs_it():
    draw = np.random.default_rng(0)
    for _ in range(100):
        labels = np.cumsum(draw.integers(1, 50, 6)).tolist()
        one, other = (list(zip(labels, draw.uniform(0.5, 1, 6).tolist(), strict=True)) for _ in range(2))
        assert labels_saved(one, one) == 0
        other[-1] = (other[-1][0], one[-1][1])
        saved, lost = labels_saved(one, other), labels_saved(other, one)
        assert saved is not None and lost is not None and (1 - saved) * (1 - lost) == pytest.approx(1)


@pytest.mark.parametrize(
    ("random", "told"),
    [
        ([(10, 0.5), (20, 0.6), (38, 0.8)], "saves 47 %"),
        ([(10, 0.8), (20, 0.9), (38, 0.8)], "needs 200 %"),
        ([(10, 0.5), (20, 0.6), (38, 0.9)], "does not reach"),
    ],
)
def test_the_page_says_what_each_curve_took_and_what_the_selection_saves(tmp_path, random, told):
    curves = {"uncertainty": [(10, 0.5), (20, 0.8), (40, 0.8)], "random": random}
    save_curves(tmp_path / "labels.parquet", curves, "uncertainty", "accuracy")
    page = (tmp_path / "labels.parquet.curve.md").read_text()
    assert told in page and "| 10 |" in page and "| 40 / 38 |" in page

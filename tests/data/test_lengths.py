"""How far the length of a text goes with its label."""

import numpy as np
import pytest

from nlpkd.data.labels.lengths import length_share
from nlpkd.data.streaming import _grouped


def naive(lengths, labels):
    mean = sum(lengths) / len(lengths)
    total, between = sum((each - mean) ** 2 for each in lengths), 0.0
    for label in set(labels):
        own = [each for each, known in zip(lengths, labels, strict=True) if known == label]
        between += len(own) * (sum(own) / len(own) - mean) ** 2
    rows, classes = len(lengths), len(set(labels))
    return 1 - (1 - between / total) * (rows - 1) / (rows - classes)


def test_the_share_of_classes_is_the_squared_correlation_ratio_without_what_chance_gives():
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 200).tolist()
    lengths = [int(each) for each in random.integers(3, 60, 200) + 7 * np.array(labels)]
    assert length_share(lengths, labels) == pytest.approx(naive(lengths, labels))
    assert length_share([1, 1, 3, 3], [0, 0, 1, 1]) == 1 and length_share([1, 3, 1, 3], [0, 0, 1, 1]) < 0
    assert length_share([2, 2, 2], [0, 1, 1]) == 0 == length_share([], []) == length_share([1, 2], [0, 1])


def test_rows_without_a_label_do_not_count():
    assert length_share([1, 1, 3, 3, 90, 70], [0, 0, 1, 1, -100, -100]) == 1
    assert length_share([1, 2], [-100, -100]) == 0
    several = [[0, 1], [0, 1], [1, 0], [1, 0], [1, -100], [-100, 0], [-100, -100]]
    assert length_share([1, 1, 3, 3, 90, 70, 5], several) == 1


def test_of_several_labels_the_largest_counts_and_of_scores_the_squared_correlation():
    assert length_share([1, 1, 3, 3], [[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]) == 1
    scores, lengths = [0.1, 0.5, 0.2, 0.9, float("nan")], [3, 9, 2, 8, 500]
    assert length_share(lengths, scores) == pytest.approx(np.corrcoef(lengths[:4], scores[:4])[0, 1] ** 2)


@pytest.mark.parametrize("tied", [True, False])
def test_a_stream_s_batches_are_of_all_lengths_where_the_length_goes_with_the_label(tied):
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 645)
    lengths = random.integers(3, 30, 645) + 40 * labels * tied
    batches, rest = _grouped(lengths.tolist(), labels.tolist(), 16, np.random.default_rng(1))
    assert sorted(sum(batches, []) + rest) == list(range(645)) and {len(batch) for batch in batches} == {16}
    spread = np.mean([np.ptp(lengths[batch]) for batch in batches])
    mixed = np.mean([0 < labels[batch].sum() < 16 for batch in batches])
    assert mixed > 0.9 and (spread > 30 if tied else spread < 2)

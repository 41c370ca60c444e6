"""Layer maps: integers only, resolved by one formula, or named pair by pair."""

from fractions import Fraction
from math import floor

import pytest

from nlpkd.models.layers import map_layers, uniform_layers


def test_three_of_six_layers_are_2_4_6():
    assert uniform_layers(3, 6) == [2, 4, 6]
    assert map_layers("uniform", 3, 6) == [(1, 2), (2, 4), (3, 6)]


def test_distilbert_learns_from_every_second_layer_of_bert():
    assert map_layers("uniform", 6, 12) == [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10), (6, 12)]


@pytest.mark.parametrize("depth", range(1, 25))
def test_uniform_is_the_rounded_fraction_and_ends_with_the_last_layer(depth):
    for count in range(1, depth + 1):
        expected = [floor(Fraction(k * depth, count) + Fraction(1, 2)) for k in range(1, count + 1)]
        chosen = uniform_layers(count, depth)
        assert chosen == expected
        assert chosen[-1] == depth and len(set(chosen)) == count
        assert map_layers("uniform", count, depth) == list(zip(range(1, count + 1), expected, strict=True))


@pytest.mark.parametrize(
    "spec, expected",
    [
        ("last", [(3, 6)]),
        ("first", [(1, 1), (2, 2), (3, 3)]),
        ("1:2,3:6", [(1, 2), (3, 6)]),
        (" 1 : 2 , 2:5", [(1, 2), (2, 5)]),
        ([(0, 0), (2, 3)], [(0, 0), (2, 3)]),
        (([3, 6],), [(3, 6)]),
    ],
)
def test_named_and_explicit_maps(spec, expected):
    assert map_layers(spec, 3, 6) == expected


def test_first_stops_at_the_shallower_model():
    assert map_layers("first", 6, 2) == [(1, 1), (2, 2)]


@pytest.mark.parametrize("count", [0, -1, 7])
def test_more_layers_than_there_are_is_refused(count):
    with pytest.raises(ValueError, match=f"can't choose {count} layers out of 6.*from 1 to 6"):
        uniform_layers(count, 6)


@pytest.mark.parametrize("spec", ["evenly", "1-2", "1:2:3", "1:", "", "1:2,"])
def test_an_unknown_map_is_refused_with_the_known_ones(spec):
    with pytest.raises(ValueError, match="is not a layer map: use 'uniform', 'last', 'first'"):
        map_layers(spec, 3, 6)


@pytest.mark.parametrize("pair", [(4, 6), (3, 7), (-1, 2), (1, -1)])
def test_a_layer_that_a_model_lacks_is_refused_with_both_depths(pair):
    with pytest.raises(ValueError, match=f"{pair[0]}:{pair[1]} is out of range.*1..3.*1..6"):
        map_layers([pair], 3, 6)


@pytest.mark.parametrize("pairs", [[(1.7, 2.9)], [(1.0, 2.0)], [("1", "2")], [(True, 2)], [(1,)], [(1, 2, 3)], [1], 3])
def test_a_map_of_anything_but_pairs_of_whole_numbers_is_refused(pairs):
    with pytest.raises(ValueError, match="is not a list of .* pairs of whole numbers"):
        map_layers(pairs, 3, 6)


def test_an_empty_map_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        map_layers([], 3, 6)


def test_a_student_deeper_than_its_teacher_must_name_the_pairs():
    with pytest.raises(ValueError, match="layers='1:1,6:3'"):
        map_layers("uniform", 6, 3)

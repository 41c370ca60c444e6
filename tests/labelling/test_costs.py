"""Limits that are no limits are refused."""

import pytest

from nlpkd.labelling.costs import Prices, SpendingLimits

NAN = float("nan")


@pytest.mark.parametrize(
    "make",
    [
        lambda: SpendingLimits(max_cost=NAN, prices=Prices(1, 1)),
        lambda: SpendingLimits(max_cost=-1, prices=Prices(1, 1)),
        lambda: SpendingLimits(max_cost="5", prices=Prices(1, 1)),
        lambda: SpendingLimits(max_requests=-1),
        lambda: SpendingLimits(max_requests=1.5),
        lambda: SpendingLimits(max_requests=True),
        lambda: Prices(NAN, 1),
        lambda: Prices(float("inf"), 0),
        lambda: Prices(1, -1),
        lambda: Prices("1", 1),
    ],
)
def test_limits_and_prices_are_numbers_that_are_not_negative(make):
    with pytest.raises(ValueError, match="must be"):
        make()


def test_no_limit_is_a_limit_of_nothing_and_infinite_cost_is_none():
    assert SpendingLimits(max_requests=0).max_requests == 0
    assert SpendingLimits(max_cost=float("inf"), prices=Prices(1, 0)).max_cost == float("inf")

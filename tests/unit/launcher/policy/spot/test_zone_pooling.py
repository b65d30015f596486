"""What a zone's own spells say of it, of its market, and of the market's other zones."""

from __future__ import annotations

import math
import random
from functools import reduce
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.policy.spot.market import PRIOR_EVENTS, SpellEnds
from launcher.policy.spot.zone_pooling import ZONE_EVENTS, MarketEnds, against_market, mean_churn

counts = st.builds(SpellEnds, st.integers(0, 200).map(float), st.floats(0.01, 200))
markets = st.builds(MarketEnds, counts | st.just(SpellEnds()), st.dictionaries(st.sampled_from("abcde"), counts))


def test_without_data_it_is_the_shipped_table() -> None:
    assert MarketEnds().churn == 1.0
    assert MarketEnds().churn_in("a") == 1.0
    assert MarketEnds(zones={"a": SpellEnds()}).churn_in("a") == 1.0


def test_much_of_one_zone_is_that_zones_own_rate_and_the_others_are_between() -> None:
    for own in (0.2, 3.0):
        met = MarketEnds(zones={"a": SpellEnds(own * 1e6, 1e6)})
        assert met.churn_in("a") == pytest.approx(own, rel=1e-3)
        assert min(1.0, own) < met.churn_in("b") < max(1.0, own), "one zone, however well known, is not its market"
        assert met.churn_in("b") == met.churn
        assert met.churn == pytest.approx((PRIOR_EVENTS + ZONE_EVENTS * own) / (PRIOR_EVENTS + ZONE_EVENTS), rel=1e-3)


def test_many_zones_that_are_alike_make_the_market_so() -> None:
    met = MarketEnds(zones={str(number): SpellEnds(60.0, 30.0) for number in range(50)})
    assert met.churn_in("unseen") == pytest.approx(2.0, rel=0.02)
    assert met.churn_in("7") == pytest.approx(2.0, rel=0.02)


def test_stock_outs_are_the_markets_and_count_in_full() -> None:
    met = MarketEnds(SpellEnds(20.0, 10.0))
    assert met.churn_in("a") == met.churn_in("b") == pytest.approx((PRIOR_EVENTS + 20) / (PRIOR_EVENTS + 10))


def test_a_posterior_is_the_mean_of_its_gamma() -> None:
    """By numbers: the density of a zone's churn, prior times likelihood, summed over a fine grid."""
    market = MarketEnds(SpellEnds(9.0, 5.0)).churn
    ends, expected = 4.0, 2.5
    grid = [0.0005 + number * 0.001 for number in range(20_000)]
    weights = [_gamma(churn, ZONE_EVENTS * market, ZONE_EVENTS) * _poisson(ends, churn * expected) for churn in grid]
    mean = sum(churn * weight for churn, weight in zip(grid, weights, strict=True)) / sum(weights)
    assert (ZONE_EVENTS * market + ends) / (ZONE_EVENTS + expected) == pytest.approx(mean, rel=1e-4)


def _gamma(value: float, shape: float, rate: float) -> float:
    return float(value ** (shape - 1) * 2.718281828459045 ** (-rate * value))


def _poisson(count: float, mean: float) -> float:
    return float(mean**count * 2.718281828459045**-mean)


@given(markets, st.sampled_from("abcdef"))
def test_a_churn_is_between_the_table_and_what_was_met(met: MarketEnds, zone: str) -> None:
    rates = [1.0, *(one.ends / one.expected for one in (met.whole, *met.zones.values()) if one.expected)]
    assert min(rates) - 1e-9 <= met.churn_in(zone) <= max(rates) + 1e-9
    own = met.zones.get(zone)
    if own is not None:
        between = sorted((met.churn, own.ends / own.expected))
        assert between[0] - 1e-9 <= met.churn_in(zone) <= between[1] + 1e-9


@given(markets, st.sampled_from("abcde"), st.floats(0.5, 20))
def test_more_preemptions_make_a_zone_rougher_and_the_others_not_calmer(
    met: MarketEnds, zone: str, more: float
) -> None:
    worse = met.plus(MarketEnds(zones={zone: SpellEnds(more, 0.0)}))
    assert worse.churn_in(zone) > met.churn_in(zone)
    assert all(worse.churn_in(other) >= met.churn_in(other) for other in "abcdef")


@given(markets, st.sampled_from("abcde"), st.floats(0.5, 20))
def test_more_hours_without_one_make_it_calmer(met: MarketEnds, zone: str, more: float) -> None:
    better = met.plus(MarketEnds(zones={zone: SpellEnds(0.0, more)}))
    assert better.churn_in(zone) < met.churn_in(zone)


@given(st.lists(markets, min_size=3, max_size=3))
def test_the_order_does_not_matter(parts: list[MarketEnds]) -> None:
    met = [reduce(MarketEnds.plus, order) for order in permutations(parts)]
    for zone in "abcdef":
        assert [one.churn_in(zone) for one in met] == pytest.approx([met[0].churn_in(zone)] * 6)


def test_the_share_between_zone_and_market_is_the_right_one_where_zones_differ_so_much() -> None:
    """Zones drawn from the model: the posterior comes nearer to their true churn than their own rate, or the market's."""
    dice = random.Random(3)
    errors = {"own": 0.0, "market": 0.0, "pooled": 0.0}
    for _ in range(400):
        true = [dice.gammavariate(ZONE_EVENTS * 1.2, 1 / ZONE_EVENTS) for _ in range(6)]
        expected = [dice.choice((2.0, 7.0, 20.0)) for _ in true]
        met = MarketEnds(
            zones={
                str(n): SpellEnds(_drawn(dice, c * e), e) for n, (c, e) in enumerate(zip(true, expected, strict=True))
            }
        )
        for number, churn in enumerate(true):
            own = met.zones[str(number)]
            errors["own"] += (own.ends / own.expected - churn) ** 2
            errors["market"] += (met.churn - churn) ** 2
            errors["pooled"] += (met.churn_in(str(number)) - churn) ** 2
    assert errors["pooled"] < 0.75 * min(errors["own"], errors["market"])


def _drawn(dice: random.Random, mean: float) -> float:
    """Poisson: events of rate 1 until the mean."""
    count, at = 0, dice.expovariate(1.0)
    while at < mean:
        count, at = count + 1, at + dice.expovariate(1.0)
    return float(count)


def test_zones_against_their_market() -> None:
    calm, rough = against_market([SpellEnds(2.0, 20.0), SpellEnds(40.0, 20.0)])
    assert calm < 1 < rough
    assert against_market([SpellEnds(), SpellEnds()]) == (1.0, 1.0)
    assert mean_churn([]) == 1.0
    assert mean_churn([1.0, 2.0]) == 1.5
    assert mean_churn([1.0, 1e9]) == pytest.approx((1 + math.e) / 2), "one odd zone isn't believed to be so odd"

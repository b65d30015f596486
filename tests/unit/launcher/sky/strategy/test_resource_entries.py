"""Ordered places as entries of a task: as few as possible, never another order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from launcher.policy.model import Place
from launcher.sky.strategy.resource_entries import MAX_ENTRIES, Entry, compress, requests


def place(zone: str, price: float, *, spot: bool = True) -> Place:
    return Place("gcp", zone.rsplit("-", 1)[0], zone, "A100:8", spot, price)


US_A, US_B, EU_A, EU_B = place("us-a", 10), place("us-b", 10), place("eu-a", 11), place("eu-b", 11)
LAMBDA = Place("lambda", "east", None, "A100:8", False, 16)
KNOWN = (US_A, US_B, EU_A, EU_B, LAMBDA)


def short(entries: list[Entry]) -> list[str]:
    return [entry.zone or entry.region or entry.example.cloud for entry in entries]


def test_a_market_in_order_of_price_is_one_entry() -> None:
    assert short(compress(KNOWN, KNOWN)) == ["gcp", "lambda"]


def test_a_zone_that_goes_last_splits_its_market_into_regions() -> None:
    order = (US_B, EU_A, EU_B, US_A, LAMBDA)
    assert short(compress(order, KNOWN)) == ["us-b", "eu", "us-a", "lambda"]


def test_of_equal_prices_the_order_is_kept_too() -> None:
    """Where all zones cost the same, the one that was just taken away would be asked first again."""
    assert short(compress((US_B, US_A, LAMBDA), (US_A, US_B, LAMBDA))) == ["us-b", "us-a", "lambda"]


def test_another_order_than_price_stays_as_it_is() -> None:
    assert short(compress((EU_A, EU_B, US_A, US_B), KNOWN)) == ["eu", "us"]
    assert short(compress((EU_B, US_A), KNOWN)) == ["eu-b", "us-a"]


@given(st.permutations(KNOWN), st.integers(0, len(KNOWN)))
def test_no_place_is_lost_added_or_moved(order: list[Place], size: int) -> None:
    wanted = order[:size]
    tried: list[Place] = []
    for request in requests(wanted, KNOWN):
        assert 0 < len(request) <= MAX_ENTRIES
        for entry in request:
            below = [
                one
                for one in KNOWN
                if (one.cloud, one.spot) == (entry.example.cloud, entry.example.spot)
                and entry.region in (None, one.region)
                and entry.zone in (None, one.zone)
            ]
            tried += sorted(below, key=lambda one: (one.price_usd_per_hour, one.where))
    assert tried == wanted

"""Which of SkyPilot's places the strategy asks, and at which price: by the planner's own function."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from checkpoints.errors import UserError
from checkpoints.util.clock import FakeClock
from launcher.catalog.offers import Catalog, Offer, by_kind, load_offers
from launcher.policy.limits import Limits, limits_of
from launcher.policy.model import Place
from launcher.sky.strategy.places import Dropped, Hourly, MachineOption, booked, judge, offers_for, report
from tests.support.plans import A100, A100_80, H100, HEADER, lists
from tests.unit.launcher.catalog.test_price_lists import aws, named


def candidate(offer: Offer, usd: float | None = None, *, zone: str | None = None) -> MachineOption:
    """What SkyPilot makes of the same list."""
    price = offer.price_usd_per_hour if usd is None else usd
    return MachineOption(
        Place(offer.cloud, offer.region, zone or offer.zone, offer.gpus, offer.spot, price), offer.instance_type
    )


def asked(offers: list[Offer], candidates: list[MachineOption], *, trust_prices: bool = False) -> dict[str, float]:
    found, dropped = judge({one: one for one in candidates}, offers, trust_prices=trust_prices)
    assert {one.place for one in candidates} == set(found) | {one.candidate.place for one in dropped}
    assert all(place == launchable.place for place, launchable in found.items())
    return {place.area: place.price_usd_per_hour for place in found}


def offer(zone: str, usd: float, *flags: str, kind: str = "i", cloud: str = "gcp") -> Offer:
    return Offer(
        cloud=cloud, region="us", zone=zone, instance_type=kind, gpus="A100:8", spot=True, price_usd_per_hour=usd,
        flags=flags,
    )  # fmt: skip


# --- the same answer as the planner's ---------------------------------------------------------------


@pytest.mark.parametrize("trust_prices", [False, True])
def test_the_strategy_asks_exactly_the_places_that_the_planner_plans_on(snapshot: Catalog, trust_prices: bool) -> None:
    for gpus in (A100, A100_80, H100):
        offers = load_offers(snapshot, [gpus])
        planned = {
            (one.cloud, one.area, one.spot): one.price_usd_per_hour
            for group in by_kind(offers, trusted_only=not trust_prices)
            for one in group
        }
        candidates = {candidate(one): None for one in offers}
        found, _ = judge(candidates, offers_for(snapshot, (one.place for one in candidates)), trust_prices=trust_prices)
        assert {(one.cloud, one.area, one.spot): one.price_usd_per_hour for one in found} == planned


def test_a_flagged_place_is_asked_only_if_the_user_trusts_it() -> None:
    offers = [offer("a", 2.0, "too cheap"), offer("b", 10.0)]
    candidates = [candidate(one) for one in offers]
    assert asked(offers, candidates) == {"b": 10.0}
    assert asked(offers, candidates, trust_prices=True) == {"a": 2.0, "b": 10.0}


@pytest.mark.parametrize("usd", [0.0, -1.0, math.nan, math.inf])
def test_a_place_without_a_price_is_never_asked(usd: float) -> None:
    offers = [offer("a", 10.0), offer("b", 10.0)]
    candidates = [candidate(offers[0], usd), candidate(offers[1])]
    assert asked(offers, candidates, trust_prices=True) == {"b": 10.0}
    if math.isfinite(usd):
        ours = [offer("a", usd, "zero price"), offers[1]]
        assert asked(ours, [candidate(ours[0], 10.0), candidates[1]], trust_prices=True) == {"b": 10.0}


def test_a_place_that_only_skypilot_knows_is_dropped_with_a_reason() -> None:
    unknown = candidate(offer("x", 1.0))
    found, dropped = judge({unknown: None, candidate(offer("a", 10.0)): None}, [offer("a", 10.0)])
    assert [place.area for place in found] == ["a"]
    assert dropped == [Dropped(unknown, "our price list has no price for it")]


def test_of_two_prices_the_higher_is_booked() -> None:
    offers = [offer("a", 10.0), offer("b", 10.0)]
    assert asked(offers, [candidate(offers[0], 12.0), candidate(offers[1], 8.0)]) == {"a": 12.0, "b": 10.0}


def test_each_place_has_its_cheapest_machine_type_that_may_be_rented() -> None:
    offers = [offer("a", 11.0, kind="i"), offer("a", 1.0, "wrong", kind="j"), offer("a", 12.0, kind="k")]
    found, _ = judge({candidate(one): one.instance_type for one in offers}, offers)
    assert {place.price_usd_per_hour: kind for place, kind in found.items()} == {11.0: "i"}
    bigger = candidate(offer("b", 9.0, kind="more memory"))
    assert asked([offer("b", 10.0)], [bigger]) == {"b": 10.0}, "another machine type of the zone"


def test_a_region_is_as_good_as_all_of_its_zones() -> None:
    offers = [offer("a", 10.0), offer("b", 12.0)]
    region = MachineOption(replace(candidate(offers[0]).place, zone=None), "i")
    assert asked(offers, [region]) == {"us": 12.0}
    assert asked([*offers, offer("c", 1.0, "wrong")], [region]) == {}


# --- AWS's zones ------------------------------------------------------------------------------------


def test_zones_of_aws_are_the_same_where_their_names_are_known(tmp_path: Path) -> None:
    cheap = [("us-east-1", f"use1-az{number}", 9.0 + number) for number in (1, 2, 3)]
    lists(tmp_path, aws(*cheap, ("us-east-1", "use1-az4", 1.0)), "aws")
    names = ("use1-az1", "us-east-1c"), ("use1-az2", "us-east-1a"), ("use1-az4", "us-east-1b")
    catalog = named(tmp_path, *names)
    skys = [
        Place("aws", "us-east-1", f"us-east-1{x}", "A100:8", True, usd)
        for x, usd in zip("abc", (11, 1, 10), strict=True)
    ]
    candidates = [MachineOption(place, "p4d") for place in skys]
    assert asked(offers_for(catalog, skys), candidates) == {"us-east-1a": 11.0, "us-east-1c": 10.0}


def test_else_they_are_told_by_region_and_price(tmp_path: Path) -> None:
    """SkyPilot has asked AWS for the names, and where we run nobody has."""
    zones = [("us-east-1", f"use1-az{number}", usd) for number, usd in ((1, 9.0), (2, 10.0), (3, 11.0), (4, 1.0))]
    catalog = lists(tmp_path, aws(*zones), "aws")
    skys = [
        Place("aws", "us-east-1", f"us-east-1{x}", "A100:8", True, usd)
        for x, usd in zip("abcd", (10, 1, 9, 11), strict=True)
    ]
    candidates = [MachineOption(place, "p4d") for place in skys]
    assert asked(offers_for(catalog, skys), candidates) == {"us-east-1a": 10.0, "us-east-1c": 9.0, "us-east-1d": 11.0}
    moved = [one._replace(place=replace(one.place, price_usd_per_hour=9.5)) for one in candidates]
    assert asked(offers_for(catalog, skys), moved) == {}, "which of them the flagged one is, nobody can tell"
    assert asked(offers_for(catalog, skys), moved, trust_prices=True)["us-east-1b"] == 11.0, "the dearest of the region"


# --- lists that can't be read, and what is said -----------------------------------------------------


def test_a_broken_list_costs_its_own_cloud_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    catalog = lists(tmp_path, "no list", "lambda")
    skys = [Place("lambda", "us-east-1", None, "A100:8", False, 16.0), Place("gcp", "x", "x-a", "A100:8", True, 11.0)]
    elsewhere = Place("azure", "x", None, "A100:8", False, 16.0)
    assert {one.cloud for one in offers_for(catalog, [*skys, elsewhere])} == {"gcp"}
    assert "no price in lambda" in caplog.text


def test_what_is_not_asked_is_said_once_for_each_reason(caplog: pytest.LogCaptureFixture) -> None:
    dropped = [Dropped(candidate(offer(name, 1.0)), "because") for name in "abcde"]
    with caplog.at_level(logging.WARNING):
        report(dropped, kept=1)
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.endswith("gcp/c and 2 more: because")


def test_a_task_without_any_price_to_rely_on_is_the_users_matter() -> None:
    with pytest.raises(UserError, match="no place of this task has a reliable price: because") as caught:
        report([Dropped(candidate(offer("a", 1.0)), "because")], kept=0)
    assert "--trust-prices" in caught.value.hint
    report([], kept=0)


# --- the price of a machine -------------------------------------------------------------------------


def test_a_machine_is_booked_at_no_lower_price_than_was_known() -> None:
    known = [candidate(one).place for one in (offer("a", 10.0), offer("b", 12.0))]
    assert booked(replace(known[0], price_usd_per_hour=0.1), known).price_usd_per_hour == 10.0
    assert booked(replace(known[0], price_usd_per_hour=11.0), known).price_usd_per_hour == 11.0
    assert booked(replace(known[0], zone="z", price_usd_per_hour=9.0), known).price_usd_per_hour == 9.0


@pytest.mark.parametrize("usd", [0.0, math.nan, -4.0])
def test_a_machine_without_a_price_costs_what_its_region_costs_at_most(usd: float) -> None:
    known = [candidate(one).place for one in (offer("a", 10.0), offer("b", 12.0))]
    far = replace(known[0], region="eu", zone="eu-a", price_usd_per_hour=30.0)
    assert booked(replace(known[0], zone="z", price_usd_per_hour=usd), [*known, far]).price_usd_per_hour == 12.0
    assert booked(replace(known[0], region="asia", price_usd_per_hour=usd), [*known, far]).price_usd_per_hour == 30.0


# --- read again -------------------------------------------------------------------------------------


def test_prices_are_read_again_after_an_hour() -> None:
    clock, prices = FakeClock(), iter((1, 2, 3))
    kept = Hourly(lambda: next(prices), clock)
    assert [kept.value(), kept.value()] == [1, 1]
    clock.sleep(3599)
    assert kept.value() == 1
    clock.sleep(1)
    assert [kept.value(), kept.value()] == [2, 2]
    clock._now -= timedelta(days=1)
    assert kept.value() == 3, "a clock that was set back must not keep them for a day"


def test_a_reading_that_fails_leaves_the_last_prices() -> None:
    clock = FakeClock()

    def readings() -> Iterator[int]:
        yield 1
        raise OSError("away")

    prices = readings()
    kept = Hourly(lambda: next(prices), clock)
    assert kept.value() == 1
    clock.sleep(3600)
    assert kept.value() == 1


def test_the_first_reading_may_fail_and_is_tried_again_at_once() -> None:
    prices = iter((OSError("away"), 5))

    def read() -> int:
        if isinstance(found := next(prices), OSError):
            raise found
        return int(found)

    kept = Hourly(read, FakeClock())
    with pytest.raises(OSError, match="away"):
        kept.value()
    assert kept.value() == 5


def test_nobody_waits_for_prices_that_another_thread_reads() -> None:
    """SkyPilot downloads its lists without a time limit."""
    clock, began, go_on = FakeClock(), threading.Event(), threading.Event()
    first = True

    def read() -> int:
        nonlocal first
        if first:
            first = False
            return 1
        began.set()
        assert go_on.wait(30)
        return 2

    kept = Hourly(read, clock)
    assert kept.value() == 1
    clock.sleep(3600)
    thread = threading.Thread(target=kept.value)
    thread.start()
    assert began.wait(30)
    assert kept.value() == 1
    go_on.set()
    thread.join(30)
    assert kept.value() == 2


# --- how the user's word travels --------------------------------------------------------------------


def test_trust_in_prices_travels_with_the_task() -> None:
    assert Limits(3.0, trust_prices=True).environment()["NOTUS_TRUST_PRICES"] == "1"
    assert "NOTUS_TRUST_PRICES" not in Limits(3.0).environment()
    assert limits_of({"NOTUS_HOURS": "3", "NOTUS_TRUST_PRICES": "1"}).trust_prices
    assert not limits_of({"NOTUS_HOURS": "3"}).trust_prices
    assert not limits_of({"NOTUS_HOURS": "3", "NOTUS_TRUST_PRICES": "0"}).trust_prices


def test_a_price_that_rises_on_the_disk_is_seen(tmp_path: Path) -> None:
    row = "gpu_8x_a100,A100,8.0,124.0,1800.0,{},us-east-1,,\n"
    catalog = lists(tmp_path, HEADER + row.format("16.00"))
    place = Place("lambda", "us-east-1", None, "A100:8", False, 16.0)
    clock = FakeClock()
    kept = Hourly(lambda: asked(offers_for(catalog, [place]), [MachineOption(place, "gpu_8x_a100")]), clock)
    assert kept.value() == {"us-east-1": 16.0}
    lists(tmp_path, HEADER + row.format("24.00"))
    clock.sleep(3600)
    assert kept.value() == {"us-east-1": 24.0}

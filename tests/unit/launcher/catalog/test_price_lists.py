"""Price lists: which one counts, how old it is, each zone once, AWS's zones by name."""

from __future__ import annotations

import hashlib
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from launcher.catalog.gpu_nodes import Gpus
from launcher.catalog.offers import Offer, by_kind, find_catalog, load_offers
from launcher.catalog.price_lists import SNAPSHOT_MOMENT, Catalog
from launcher.catalog.zone_names import region_of
from launcher.errors import NothingFits
from launcher.planning.planner import Planner
from launcher.request import LaunchRequest
from tests.support.plans import A100, H100, HEADER, RECIPE, lists

ZONED = (
    "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,Price,Region,GpuInfo,SpotPrice,AvailabilityZone\n"
)
NOW = datetime(2026, 12, 20, 12, tzinfo=UTC)
LAMBDA = HEADER + "gpu_8x_a100,A100,8.0,124.0,1800.0,12.00,us-east-1,,\n"


def stored(home: Path, text: str, at: datetime, *, cloud: str = "lambda", marked: bool = True) -> Catalog:
    """A list as SkyPilot leaves it: with its checksum beside it, both of one moment."""
    lists(home, text, cloud)
    folder = home / ".sky/catalogs/v8"
    written = [folder / cloud / "vms.csv"]
    if marked:
        mark = folder / ".meta" / cloud / "vms.csv.md5"
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest())
        written.append(mark)
    for path in written:
        os.utime(path, (at.timestamp(), at.timestamp()))
    return find_catalog({"HOME": str(home)})


def price(catalog: Catalog, cloud: str = "lambda") -> float:
    return load_offers(catalog, [A100], [cloud])[0].price_usd_per_hour


def aws(*rows: tuple[str, str, float]) -> str:
    """Spot prices of 8 A100 by region and zone."""
    return ZONED + "".join(f"p4d,A100,8,96,1152,22.0,{region},,{usd},{zone}\n" for region, zone, usd in rows)


# --- which list counts, and its age -----------------------------------------------------------------


def test_a_fetched_list_counts_while_it_is_newer_than_the_snapshot(tmp_path: Path) -> None:
    assert price(stored(tmp_path, LAMBDA, NOW - timedelta(hours=3))) == 12.0
    old = stored(tmp_path, LAMBDA, SNAPSHOT_MOMENT - timedelta(days=300))
    assert price(old) == 15.92, "SkyPilot would fetch it again before it used it; the snapshot is nearer to that"
    assert old.described(["lambda"], NOW) == "the shipped price snapshot of 2026-11 (50 days old)"


def test_an_edited_list_counts_however_old_it_is_and_says_so(tmp_path: Path) -> None:
    catalog = stored(tmp_path, LAMBDA, datetime(2024, 1, 1, tzinfo=UTC), marked=False)
    assert price(catalog) == 12.0
    assert catalog.described(["lambda"], NOW).endswith("for lambda (1,084 days old, edited by hand)")
    (warning,) = catalog.warnings(["lambda"], NOW)
    assert "is 1,084 days old, older than the shipped price snapshot of 2026-11" in warning
    assert warning.endswith("delete it, then run `notus-launch prices refresh`"), "a refresh alone would keep it"
    assert catalog.warnings(["nebius"], SNAPSHOT_MOMENT) == [], "of the clouds that are asked for"


def test_a_list_that_was_changed_after_its_fetch_is_edited(tmp_path: Path) -> None:
    stored(tmp_path, LAMBDA, SNAPSHOT_MOMENT - timedelta(days=300))
    catalog = lists(tmp_path, LAMBDA.replace("12.00", "13.00"))
    assert catalog.lists["lambda"][0].edited
    assert price(catalog) == 13.0


def test_a_failed_fetch_does_not_make_a_list_younger(tmp_path: Path) -> None:
    """SkyPilot touches the list then, so that it is not tried again at once."""
    stored(tmp_path, LAMBDA, NOW - timedelta(days=30))
    os.utime(tmp_path / ".sky/catalogs/v8/lambda/vms.csv", (NOW.timestamp(), NOW.timestamp()))
    assert find_catalog({"HOME": str(tmp_path)}).described(["lambda"], NOW).endswith("lambda (30 days old)")


def test_what_an_old_list_alone_has_is_still_sold(tmp_path: Path) -> None:
    """The snapshot has nodes of 8 GPUs only."""
    text = LAMBDA + "gpu_4x_a100,A100,4.0,62.0,900.0,6.00,us-east-1,,\n"
    catalog = stored(tmp_path, text, SNAPSHOT_MOMENT - timedelta(days=3))
    found = load_offers(catalog, [A100, Gpus("A100", 4)], ["lambda"])
    assert {offer.gpus: offer.price_usd_per_hour for offer in found} == {"A100:8": 15.92, "A100:4": 6.0}
    current = stored(tmp_path, LAMBDA, NOW)
    with pytest.raises(NothingFits):
        load_offers(current, [Gpus("H100", 8)], ["lambda"])


@pytest.mark.parametrize(
    ("age", "told", "warned"),
    [
        (timedelta(hours=5), "5 h old", False),
        (timedelta(days=6), "6 days old", False),
        (timedelta(days=8), "8 days old", True),
        (-timedelta(hours=3), "0 h old", False),
    ],
)
def test_a_list_of_more_than_a_week_is_worth_a_warning(tmp_path: Path, age: timedelta, told: str, warned: bool) -> None:
    catalog = stored(tmp_path, LAMBDA, NOW - age)
    assert told in catalog.described(["lambda"], NOW)
    expected = [f"prices of lambda are {told}: `notus-launch prices refresh` fetches newer ones"] if warned else []
    assert catalog.warnings(["lambda"], NOW) == expected


def test_a_list_that_changes_on_the_disk_is_read_again(tmp_path: Path) -> None:
    catalog = stored(tmp_path, LAMBDA, NOW)
    assert price(catalog) == 12.0
    lists(tmp_path, LAMBDA.replace("12.00", "19.00"))
    assert price(catalog) == 19.0


# --- zones are zones --------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [2, 5])
def test_a_line_that_is_there_several_times_is_one_zone(tmp_path: Path, times: int) -> None:
    once = lists(tmp_path / "once", aws(("us-east-1", "use1-az1", 9.0)), "aws")
    often = lists(tmp_path / "often", aws(*[("us-east-1", "use1-az1", 9.0)] * times), "aws")
    request = LaunchRequest(recipe="x", gpus=(A100,), clouds=("aws",))
    plans = [
        Planner(request, RECIPE, load_offers(catalog, [A100], ["aws"]), "test").compare().plans
        for catalog in (once, often)
    ]
    assert plans[0] == plans[1]
    assert load_offers(once, [A100], ["aws"]) == load_offers(often, [A100], ["aws"])


def test_of_two_prices_for_one_zone_the_dearer_is_taken_and_flagged(tmp_path: Path) -> None:
    text = aws(("us-east-1", "use1-az1", 9.0), ("us-east-1", "use1-az2", 10.0), ("us-east-1", "use1-az1", 11.0))
    found = {(offer.zone, offer.spot): offer for offer in load_offers(lists(tmp_path, text, "aws"), [A100], ["aws"])}
    assert len(found) == 4
    assert found["use1-az1", True].price_usd_per_hour == 11.0
    assert found["use1-az1", True].flags == ("listed twice, with different prices",)
    assert not found["use1-az1", False].flags, "its price on demand is the same in both"
    assert not found["use1-az2", True].flags


def test_gcps_parts_may_be_listed_twice_too(tmp_path: Path, snapshot: Catalog) -> None:
    text = snapshot.lists["gcp"][0].path.read_text()
    cards = next(line for line in text.splitlines() if ",A100,8" in line and "us-central1-a," in line)
    same, _ = (f"{cards}\n", None)
    dearer = ",".join([*cards.split(",")[:-2], "30.0", cards.split(",")[-1]]) + "\n"
    before = load_offers(snapshot, [A100], ["gcp"])
    assert load_offers(lists(tmp_path / "same", text + same, "gcp"), [A100], ["gcp"]) == before
    found = load_offers(lists(tmp_path / "other", text + dearer, "gcp"), [A100], ["gcp"])
    (central,) = (offer for offer in found if offer.zone == "us-central1-a" and not offer.spot)
    assert central.price_usd_per_hour == pytest.approx(30.0 + 5.91582)
    assert central.flags == ("listed twice, with different prices",)


def test_machine_types_of_one_zone_are_one_zone() -> None:
    def offer(zone: str, usd: float, kind: str, *flags: str) -> Offer:
        return Offer(
            cloud="aws", region="r", zone=zone, instance_type=kind, gpus="H100:8", spot=True, price_usd_per_hour=usd,
            flags=flags,
        )  # fmt: skip

    wrong = offer("a", 1.0, "p6", "wrong")
    (group,) = by_kind([offer("a", 21.0, "p5"), offer("a", 20.0, "p5en"), wrong, offer("b", 22.0, "p5")])
    assert [(one.zone, one.instance_type) for one in group] == [("a", "p5en"), ("b", "p5")]


# --- the names of AWS's zones -----------------------------------------------------------------------


def named(home: Path, *names: tuple[str, str], account: str = "1234") -> Catalog:
    folder = home / ".sky/catalogs/v8/aws"
    folder.mkdir(parents=True, exist_ok=True)
    rows = "".join(f"{zone_id},{name}\n" for zone_id, name in names)
    (folder / f"az_mappings-{account}.csv").write_text("AvailabilityZone,AvailabilityZoneName\n" + rows)
    return find_catalog({"HOME": str(home)})


def test_zones_of_aws_are_named_as_skypilot_names_its_machines(tmp_path: Path) -> None:
    lists(
        tmp_path, aws(("us-east-1", "use1-az1", 9.0), ("us-east-1", "use1-az2", 10.0), ("eu", "euw1-az1", 9.0)), "aws"
    )
    catalog = named(tmp_path, ("use1-az1", "us-east-1b"), ("use1-az2", "us-east-1a"))
    found = {offer.zone: offer.price_usd_per_hour for offer in load_offers(catalog, [A100], ["aws"]) if offer.spot}
    assert found == {"us-east-1b": 9.0, "us-east-1a": 10.0}, "without the zones that the account doesn't have"


def test_the_snapshots_zones_are_named_too(tmp_path: Path) -> None:
    catalog = named(tmp_path, ("use2-az1", "us-east-2c"))
    assert {offer.zone for offer in load_offers(catalog, [H100], ["aws"])} == {"us-east-2c"}


@pytest.mark.parametrize(
    "text", ["", "AvailabilityZone\nuse1-az1\n", "\x00", "AvailabilityZone,AvailabilityZoneName\n"]
)
def test_without_a_mapping_that_can_be_read_the_ids_stay(tmp_path: Path, text: str) -> None:
    lists(tmp_path, aws(("us-east-1", "use1-az1", 9.0)), "aws")
    (tmp_path / ".sky/catalogs/v8/aws/az_mappings-1234.csv").write_text(text)
    catalog = find_catalog({"HOME": str(tmp_path)})
    assert {offer.zone for offer in load_offers(catalog, [A100], ["aws"])} == {"use1-az1"}


@pytest.mark.parametrize(
    ("zone", "region"),
    [
        ("us-east-1a", "us-east-1"),
        ("us-gov-west-1b", "us-gov-west-1"),
        ("us-east-1-atl-2a", "us-east-1"),
        ("use1-az1", None),
        ("use1-atl2-az1", None),
        ("us-east-1", None),
    ],
)
def test_the_region_of_a_zone_is_in_its_name_not_in_its_id(zone: str, region: str | None) -> None:
    assert region_of(zone) == region


@pytest.mark.parametrize("again", ["", "US-EAST-1A", "us-east-1a\u200b", " us-east-1a "])
def test_a_zone_that_is_spelt_otherwise_is_no_second_one(tmp_path: Path, again: str) -> None:
    one = ("us-east-1", "us-east-1a", 5.0)
    other = ("US-EAST-1" if again.isupper() else "us-east-1", again, 5.0)
    before, after = (
        load_offers(lists(tmp_path / name, aws(*rows), "aws"), [A100], ["aws"])
        for name, rows in (("one", [one]), ("two", [one, other]))
    )
    assert [(offer.region, offer.zone, offer.spot) for offer in after] == [
        (offer.region, offer.zone, offer.spot) for offer in before
    ]

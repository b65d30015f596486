"""Which prices look wrong: against the same cloud, other clouds, the snapshot. And which do not."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.catalog.gpu_nodes import Gpus
from launcher.catalog.offers import Catalog, Offer, find_catalog, load_offers
from launcher.catalog.price_checks import BELOW_OTHERS, BELOW_SIZES, NEGATIVE, OFF_SNAPSHOT, ZERO
from launcher.errors import NothingFits
from launcher.planning.plan import require_plan
from launcher.planning.planner import Planner
from launcher.request import LaunchRequest
from tests.support.plans import A100, A100_80, H100, HEADER, RECIPE, lists
from trainer.config.clouds import CLOUDS

H200 = Gpus("H200", 8)
KINDS = (A100, A100_80, H100)


def rewritten(snapshot: Catalog, cloud: str, change: Callable[[float], float]) -> str:
    """A cloud's shipped list with every price changed."""
    rows = list(csv.DictReader(io.StringIO(snapshot.lists[cloud][0].path.read_text())))
    for row in rows:
        row |= {name: f"{change(float(row[name])):.6f}" for name in ("Price", "SpotPrice") if row[name]}
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def node(cloud_price: float, spot: float | str = "", *, gpu: str = "H100", count: int = 8) -> str:
    return HEADER + f"g,{gpu},{count},128,1600,{cloud_price},eu-north1,,{spot}\n"


def recommended(offers: list[Offer], *, trust: bool = False) -> str | None:
    request = LaunchRequest(recipe="notus-7b-dpo", hours=5, gpus=(H100,), trust_prices=trust)
    return Planner(request, RECIPE, offers, "test").compare().recommended


def test_exactly_these_rows_of_the_shipped_lists_are_flagged(snapshot: Catalog) -> None:
    flagged = {(o.cloud, o.area, o.gpus, o.spot) for o in load_offers(snapshot, KINDS) if o.flags}
    assert flagged == {
        ("aws", "use1-az1", "A100:8", True),  # 2.47 where its sisters ask about 8
        ("gcp", "us-central1-a", "A100-80GB:8", False),  # cards on demand below their own spot price
        ("gcp", "us-central1-c", "A100-80GB:8", False),
        ("gcp", "europe-west4-a", "A100-80GB:8", False),
        ("aws", "euc1-az2", "A100:8", False),  # on demand below spot
        ("aws", "euc1-az3", "A100:8", False),
        ("aws", "apse1-az3", "A100-80GB:8", False),
        ("aws", "apne1-az4", "A100-80GB:8", True),  # spot at more than three times what the others ask
        ("aws", "cac1-az4", "H100:8", True),
        ("aws", "apne1-az1", "H100:8", True),
        ("aws", "apse2-az1", "H100:8", True),
        ("aws", "apse2-az2", "H100:8", True),
        ("aws", "apse3-az1", "H100:8", True),
    }


@pytest.mark.parametrize("cloud", list(CLOUDS))
@pytest.mark.parametrize("times", [1 / 100, 1 / 10, 1 / 8, 8, 100])
def test_a_whole_list_that_is_off_is_flagged(tmp_path: Path, snapshot: Catalog, cloud: str, times: float) -> None:
    """Cents for dollars, a digit lost, the price of a GPU for that of its node: every row agrees with every other."""
    wrong = lists(tmp_path, rewritten(snapshot, cloud, lambda usd: usd * times), cloud)
    found = load_offers(wrong, KINDS)
    assert any(offer.cloud == cloud for offer in found)
    assert all(offer.flags for offer in found if offer.cloud == cloud)
    others = {(o.cloud, o.area, o.gpus, o.spot, o.flags) for o in found if o.cloud != cloud}
    before = {(o.cloud, o.area, o.gpus, o.spot, o.flags) for o in load_offers(snapshot, KINDS) if o.cloud != cloud}
    assert others == before, "the honest lists are not judged by the one that is wrong"


@pytest.mark.parametrize("cloud", list(CLOUDS))
@pytest.mark.parametrize("times", [0.5, 2.0])
def test_a_cloud_may_halve_or_double_its_prices(tmp_path: Path, snapshot: Catalog, cloud: str, times: float) -> None:
    moved = load_offers(lists(tmp_path, rewritten(snapshot, cloud, lambda usd: usd * times), cloud), KINDS, [cloud])
    before = load_offers(snapshot, KINDS, [cloud])
    news = {(o.area, o.gpus, o.spot) for o in moved if o.flags} - {(o.area, o.gpus, o.spot) for o in before if o.flags}
    assert news == set()


def test_a_wrong_list_is_never_recommended(tmp_path: Path) -> None:
    catalog = lists(tmp_path, node(0.236, 0.10), "nebius")
    offers = load_offers(catalog, [H100])
    assert {flag for offer in offers if offer.cloud == "nebius" for flag in offer.flags} >= {BELOW_OTHERS, OFF_SNAPSHOT}
    assert "Nebius" not in str(recommended(offers))
    assert "Nebius" in str(recommended(offers, trust=True)), "the user's word counts"


@pytest.mark.parametrize("usd", [6.0, 10.0, 23.6])
def test_a_cloud_that_is_really_cheap_is_believed(tmp_path: Path, usd: float) -> None:
    offers = load_offers(lists(tmp_path, node(usd), "nebius"), [H100])
    assert not any(offer.flags for offer in offers if offer.cloud == "nebius")
    assert recommended([offer for offer in offers if not offer.spot]) == "Nebius on demand H100:8"


def sizes(*prices: tuple[int, float, float | str], gpu: str = "A100") -> str:
    rows = (f"g{count},{gpu},{count},96,680,{usd},us-central1,,{spot}\n" for count, usd, spot in prices)
    return HEADER + "".join(rows)


@pytest.mark.parametrize(
    ("rows", "wrong"),
    [
        (((4, 2.94, 1.39), (8, 23.5, 11.15)), {4}),  # the price of one GPU for a node of four, 4 times below
        (((2, 2.94, 1.39), (8, 23.5, 11.15)), {2}),
        (((1, 2.94, 1.39), (2, 2.94, 1.39), (4, 2.94, 1.39), (8, 23.5, 11.15)), {2, 4}),
        (((1, 2.94, 1.39), (4, 2.94, 1.39)), {4}),
        (((4, 2.94, 1.39),), {4}),  # by the snapshot's node of eight alone
        (((1, 2.94, 1.39), (4, 11.8, 5.6), (8, 23.5, 11.15)), set()),
        (((4, 8.0, 4.0), (8, 23.5, 11.15)), set()),  # a third off is an offer
        (((4, 5.9, 2.8), (8, 11.8, 5.6)), set()),  # all halved
        (((1, 23.5, 11.15), (8, 23.5, 11.15)), set()),  # one that is too dear is no danger to the other
    ],
)
def test_a_price_per_gpu_is_found_by_the_clouds_other_sizes(
    tmp_path: Path, rows: tuple[tuple[int, float, float], ...], wrong: set[int]
) -> None:
    wanted = [Gpus("A100", count) for count, *_ in rows]
    catalog = lists(tmp_path, sizes(*rows), "aws")
    offers = load_offers(catalog, wanted, ["aws"])
    assert len(offers) == 2 * len(rows)
    flagged = {(int(o.gpus.split(":")[1]), o.spot) for o in offers if BELOW_SIZES in o.flags}
    assert flagged == {(count, spot) for count in wrong for spot in (True, False)}
    assert {o.gpus for o in offers if o.usable()} == {f"A100:{count}" for count, *_ in rows if count not in wrong}


def test_no_size_of_the_real_lists_is_flagged(snapshot: Catalog, shared: Path, tmp_path: Path) -> None:
    (tmp_path / ".sky").mkdir(exist_ok=True)
    (tmp_path / ".sky/catalogs").symlink_to(shared / "data/catalogs")
    stored = find_catalog({"HOME": str(tmp_path)})
    for catalog in (snapshot, stored):
        kinds = {row.gpu for cloud in catalog.lists for row in catalog.rows(cloud) if row.gpu}
        wanted = [Gpus(kind, count) for kind in kinds for count in (1, 2, 4, 8)]
        offers = load_offers(catalog, wanted)
        assert len({offer.gpus for offer in offers}) >= (3 if catalog is snapshot else 5)
        assert [offer for offer in offers if BELOW_SIZES in offer.flags] == []


def test_a_cloud_is_compared_with_others_also_where_the_user_wants_none_of_them(tmp_path: Path) -> None:
    (offer,) = load_offers(lists(tmp_path, node(0.5, gpu="A100"), "nebius"), [A100], ["nebius"])
    assert offer.flags == (BELOW_OTHERS,), "the snapshot has no such node of this cloud"


def test_a_kind_that_the_snapshot_lacks_is_compared_with_the_users_other_lists(tmp_path: Path) -> None:
    lists(tmp_path, node(2.0, gpu="L4", count=4), "lambda")
    catalog = lists(tmp_path, node(0.02, gpu="L4"), "nebius")
    (wrong,) = load_offers(catalog, [Gpus("L4", 8)], ["nebius"])
    assert wrong.flags == (BELOW_OTHERS,), "4.00 for 8 by the other list"
    (fine,) = load_offers(catalog, [Gpus("L4", 4)], ["lambda"])
    assert fine.flags == ()
    lists(tmp_path, "nonsense", "runpod")
    assert load_offers(catalog, [Gpus("L4", 8)], ["nebius"]) == [wrong], "a broken list that nobody asked for"


@pytest.mark.parametrize(("usd", "flags"), [(0.25, (BELOW_OTHERS,)), (16.0, ()), (25.0, ()), (80.0, ())])
def test_a_kind_that_nobody_else_sells_is_compared_by_its_speed(
    tmp_path: Path, usd: float, flags: tuple[str, ...]
) -> None:
    (offer,) = load_offers(lists(tmp_path, node(usd, gpu="H200"), "nebius"), [H200], ["nebius"])
    assert offer.flags == flags


@pytest.mark.parametrize(("usd", "flag"), [("0", ZERO), ("-3.5", NEGATIVE)])
def test_nothing_and_less_are_flagged_and_never_used(tmp_path: Path, usd: str, flag: str) -> None:
    offers = load_offers(lists(tmp_path, node(23.6).replace("23.6", usd), "nebius"), [H100], ["nebius"])
    assert [offer.flags for offer in offers] == [(flag,)]
    assert not offers[0].usable()
    assert not offers[0].usable(trust_prices=True)
    assert recommended(offers, trust=True) is None


@pytest.mark.parametrize(
    ("usd", "trust", "hint"),
    [("0", False, "never used"), ("-1", True, "never used"), ("0.2", False, "--trust-prices allows those above 0")],
)
def test_the_hint_names_only_what_helps(tmp_path: Path, usd: str, trust: bool, hint: str) -> None:
    catalog = lists(tmp_path, node(23.6).replace("23.6", usd), "nebius")
    request = LaunchRequest(recipe="notus-7b-dpo", gpus=(H100,), clouds=("nebius",), trust_prices=trust)
    result = Planner(request, RECIPE, load_offers(catalog, [H100], ["nebius"]), "test").compare()
    with pytest.raises(NothingFits, match="no trusted offer") as caught:
        require_plan(result, request)
    assert hint in caught.value.hint
    assert ("--trust-prices" in caught.value.hint) == (usd == "0.2")


@pytest.mark.parametrize("part", ["a3-highgpu-8g", ",,H100,8"])
def test_a_node_with_a_part_for_nothing_is_flagged(tmp_path: Path, snapshot: Catalog, part: str) -> None:
    """The sum of both looks like a price."""
    found = []
    for line in snapshot.lists["gcp"][0].path.read_text().splitlines():
        cells = line.split(",")
        own = line.startswith(part) or (part.strip(",") in line and not cells[0])
        found.append(",".join([*cells[:-2], "0", cells[-1]]) if own and "us-east4-a" in line else line)
    catalog = lists(tmp_path, "\n".join(found) + "\n", "gcp")
    (offer,) = (o for o in load_offers(catalog, [H100], ["gcp"]) if o.zone == "us-east4-a" and not o.spot)
    assert offer.price_usd_per_hour > 0
    assert ZERO in offer.flags

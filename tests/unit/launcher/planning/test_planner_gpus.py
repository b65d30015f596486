"""GPUs that are named, and price lists of the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoints.errors import UserError
from launcher.catalog.gpu_nodes import Gpus, parse_gpus
from launcher.catalog.gpu_speeds import relative_speed
from launcher.catalog.offers import Catalog, load_offers
from launcher.errors import NothingFits, RequestError
from launcher.planning.planner import Planner
from launcher.request import LaunchRequest
from tests.support.plans import A100, H100, HEADER, RECIPE, lists


def test_newer_cards_are_planned_with_sourced_speeds() -> None:
    assert relative_speed(Gpus("H200", 8), H100) == 1.0
    assert relative_speed(Gpus("B200", 8), H100) == pytest.approx(2.2)
    assert relative_speed(Gpus("L40S", 8), A100) == pytest.approx(0.7 * 362 / 312)
    assert relative_speed(Gpus("L4", 8), A100) is None


def test_any_gpu_of_the_users_catalog_can_be_named(tmp_path: Path) -> None:
    catalog = lists(tmp_path, HEADER + "gpu_8x_new,RTXPRO6000,8.0,124.0,1800.0,10.32,us-east-1,,\n")
    (offer,) = load_offers(catalog, [parse_gpus("rtxpro6000:8")], ["lambda"])
    assert (offer.gpus, offer.host_gib) == ("RTXPRO6000:8", 1800.0)


@pytest.mark.parametrize("others", [(), (A100,)])
def test_a_gpu_that_no_price_list_has(snapshot: Catalog, others: tuple[Gpus, ...]) -> None:
    with pytest.raises(RequestError, match=r"no price for a GPU 'A10O' .*did you mean 'A100'") as caught:
        load_offers(snapshot, [*others, parse_gpus("A10O:8")])
    assert "prices refresh" in caught.value.hint


def test_a_node_of_another_size_says_what_the_snapshot_has(snapshot: Catalog, tmp_path: Path) -> None:
    with pytest.raises(NothingFits, match="no offer for H100:4") as caught:
        load_offers(snapshot, [Gpus("H100", 4)])
    assert "available: H100:8; the shipped snapshot only has nodes of 8 GPUs" in caught.value.hint
    request = LaunchRequest(recipe="x", gpus=(Gpus("H100", 4), H100))
    result = Planner(request, RECIPE, load_offers(snapshot, request.gpus), "test").compare()
    assert "no cloud offers H100:4" in result.assumptions


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER.replace(",Price,", ","), "has no column Price"),
        (HEADER + "i,A100,8.0,1.0,1.0,n/a,r,,\n", "vms.csv, line 2: Price 'n/a' is not a number"),
        (HEADER + "i,A100,8.0,1.0,1.0,nan,r,,\n", "Price 'nan' is not a number"),
        (HEADER + "i,A100,8.0,1.0,1.0,1.0\n", "line 2 is incomplete"),
        (HEADER.encode() + b"\xff\xfe", "can't be read"),
        ("", "has no column"),
        (HEADER, "has no GPU node"),
    ],
)
def test_a_price_list_that_cannot_be_read_is_named(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_offers(lists(tmp_path, text), [A100], ["lambda", "gcp"])
    assert "vms.csv" in caught.value.message
    assert "prices refresh" in caught.value.hint

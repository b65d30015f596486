"""Offers: the price of a node with N GPUs in each place, and whether to trust it.

All prices come from `load_offers`: the planner calls it for the clouds of a request, the strategy on the controller for
the places of a task. price_lists.py reads the lists, price_checks.py flags prices that look wrong.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from launcher.catalog.gpu_nodes import Gpus, did_you_mean
from launcher.catalog.price_checks import Yardstick
from launcher.catalog.price_lists import REFRESH, NodePrice, Row
from launcher.catalog.price_lists import Catalog as Catalog
from launcher.catalog.price_lists import find_catalog as find_catalog
from launcher.catalog.price_lists import shipped_catalog as shipped_catalog
from launcher.errors import NothingFits, RequestError
from trainer.config.clouds import CLOUDS
from trainer.config.gpu_types import GPU_TYPES

_MORE = f"the shipped snapshot only has nodes of 8 GPUs; `{REFRESH}` fetches SkyPilot's full lists"


class Offer(BaseModel):
    """A node type in one place and market, with its price."""

    model_config = ConfigDict(frozen=True)

    cloud: str
    region: str
    zone: str | None
    instance_type: str
    gpus: str
    spot: bool
    price_usd_per_hour: float
    pcie: bool = False
    """The cards have no NVLink."""
    host_gib: float | None = None
    """Host memory; None if the catalog doesn't list it."""
    fits: bool = True
    misfit: str = ""
    """Why the recipe doesn't fit."""
    flags: tuple[str, ...] = ()

    @property
    def area(self) -> str:
        """The zone, or the region if there are no zones: the same key as a policy's `Place.area`."""
        return self.zone or self.region

    def usable(self, *, trust_prices: bool = False) -> bool:
        """May this offer be used? Flagged prices only if the user trusts them, prices of 0 or less never."""
        return self.price_usd_per_hour > 0 and (trust_prices or not self.flags)


def load_offers(catalog: Catalog, wanted: Sequence[Gpus], clouds: Iterable[str] = CLOUDS) -> list[Offer]:
    """All offers for the wanted nodes, cheapest first.

    Raises:
        UserError: a price list can't be read.
        RequestError: no price list has such a GPU; suggests the nearest name.
        NothingFits: no cloud offers such a node; lists what there is.
    """
    lists = {cloud: catalog.rows(cloud) for cloud in clouds if cloud in catalog.lists}
    shipped = any(catalog.lists[cloud][0].shipped for cloud in lists)
    where = f"{', '.join(lists) or 'no cloud'} ({catalog.source})"
    sold = _nodes_sold(lists.values())
    more = f"; {_MORE}" if shipped else ""
    wanted = [_spelled(gpus, sold, where, more) for gpus in wanted]
    offers = [offer for cloud in lists for gpus in wanted for offer in _of_node(catalog, cloud, gpus)]
    if not offers:
        kinds = [name for name in dict.fromkeys(gpus.name for gpus in wanted) if name in sold]
        nodes = [Gpus(name, int(count)) for name in kinds for count in sorted(sold[name]) if count >= 1]
        there = [str(gpus) for gpus in nodes if any(_of_node(catalog, cloud, gpus) for cloud in lists)]
        raise NothingFits(
            f"no offer for {' or '.join(map(str, wanted))} in {where}",
            f"available: {', '.join(there or sorted(sold)) or 'nothing'}{more}",
        )
    return sorted(offers, key=lambda offer: (offer.price_usd_per_hour, offer.cloud, offer.region, offer.zone or ""))


def _nodes_sold(lists: Iterable[Iterable[Row]]) -> defaultdict[str, set[float]]:
    """Numbers of GPUs per node that are sold, by kind."""
    sold: defaultdict[str, set[float]] = defaultdict(set)
    for row in (row for rows in lists for row in rows if row.gpu):
        sold[row.gpu].add(row.gpu_count or 0)
    return sold


def _spelled(gpus: Gpus, sold: Mapping[str, object], where: str, more: str) -> Gpus:
    """The price lists' spelling. Raises `RequestError` for a kind that is in no list and not built in."""
    names = {name.lower(): name for name in (*GPU_TYPES, *sold)}
    if gpus.name.lower() not in names:
        raise RequestError(
            f"no price for a GPU {gpus.name!r} in {where}{did_you_mean(gpus.name, sold)}",
            f"priced: {', '.join(sorted(sold))}{more}",
        )
    return Gpus(names[gpus.name.lower()], gpus.count)


def _of_node(catalog: Catalog, cloud: str, gpus: Gpus) -> list[Offer]:
    nodes = catalog.node_prices(cloud, gpus)
    return [offer for spot in (False, True) for offer in _in_market(catalog, cloud, gpus, nodes, spot=spot)]


def _in_market(catalog: Catalog, cloud: str, gpus: Gpus, nodes: Sequence[NodePrice], *, spot: bool) -> list[Offer]:
    if not nodes or (spot and not CLOUDS[cloud].has_spot):
        return []
    yardstick = Yardstick(catalog, cloud, gpus, nodes, spot=spot)
    return [
        Offer(
            cloud=cloud,
            region=node.region,
            zone=node.zone,
            instance_type=node.instance_type,
            gpus=str(gpus),
            spot=spot,
            price_usd_per_hour=round(price, 5),
            pcie=node.pcie,
            host_gib=node.host_gib,
            flags=yardstick.flags(node, spot=spot),
        )
        for node in nodes
        if (price := node.price(spot=spot)) is not None
    ]


def by_kind(offers: Iterable[Offer], *, trusted_only: bool = True) -> list[list[Offer]]:
    """Group offers by cloud, GPU kind and market, cheapest first within and between groups. Never a zero price.

    A zone counts once, with its cheapest machine type: the machines of one zone run out and are preempted together.
    """
    groups: dict[tuple[str, str, bool], dict[str, Offer]] = defaultdict(dict)
    for offer in offers:
        if not offer.usable(trust_prices=not trusted_only):
            continue
        group = groups[offer.cloud, offer.gpus, offer.spot]
        best = group.get(offer.area)
        if best is None or offer.price_usd_per_hour < best.price_usd_per_hour:
            group[offer.area] = offer
    sorted_groups = (sorted(group.values(), key=lambda offer: offer.price_usd_per_hour) for group in groups.values())
    return sorted(sorted_groups, key=lambda group: group[0].price_usd_per_hour)


def cheapest_by_kind(offers: Iterable[Offer], *, trusted_only: bool = True) -> list[Offer]:
    """The cheapest offer of each cloud, GPU kind and market, cheapest first."""
    return [group[0] for group in by_kind(offers, trusted_only=trusted_only)]

"""Reasons to distrust a price. A flagged offer is shown, but only used with `--trust-prices`.

A list is compared with itself (the same node in other zones of its cloud, and its other sizes), and with the lists of
other clouds and the shipped snapshot: a list that is wrong throughout would be consistent with itself.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from functools import lru_cache

from checkpoints.errors import UserError
from launcher.catalog.gpu_nodes import Gpus
from launcher.catalog.gpu_speeds import TIMED, relative_speed
from launcher.catalog.price_lists import Catalog, NodePrice, nodes_in, shipped_catalog
from trainer.config.clouds import CLOUDS

OFF_IN_CLOUD = 3.0
"""Factor above or below the median of the same node in the same cloud."""
FAR_OFF = 5.0
"""Factor between a cloud's median and the snapshot's of the same cloud; or, for a cloud that the snapshot doesn't
confirm, below the median of the others. In the real lists of 2026-11 the cheapest cloud is 2.8 times below the others
(Vast H100:8), and the dearest 3.2 times above (GCP H100:8 on demand; too high is harmless, and not flagged against
other clouds). Errors start at 8 (a price per GPU taken for the node's), then 100 (cents taken for dollars). A single
wrong row is found within its own cloud."""

OFF_SIZES = 1.9
"""Factor by which a node's price per GPU is below the cloud's other sizes of the kind. A price per GPU taken for that
of a node of two is 2 times below. In the real lists of 2026-11 all sizes cost the same per GPU, but AWS charges up to
1.75 times less for one small card than for each of eight, so `OFF_IN_CLOUD` applies to single GPUs. It also applies to
the snapshot's other sizes, because a cloud may halve all its prices."""

ZERO, NEGATIVE = "zero price", "negative price"
TWICE = "listed twice, with different prices"
BELOW_SPOT = "on-demand price below its own spot price"
OFF_ITS_CLOUD = f"more than {OFF_IN_CLOUD:g}x off the same node elsewhere"
BELOW_OTHERS = f"more than {FAR_OFF:g}x below such GPUs in other clouds"
BELOW_SIZES = "far below the cloud's other sizes, per GPU"
OFF_SNAPSHOT = f"the cloud's prices are more than {FAR_OFF:g}x off the shipped snapshot"


class Yardstick:
    """Reference prices for one node in one cloud and market, in dollars per hour of the whole node."""

    def __init__(self, catalog: Catalog, cloud: str, gpus: Gpus, nodes: Sequence[NodePrice], *, spot: bool) -> None:
        """`nodes`: the nodes in the cloud's list."""
        self._own = own = _median([price for node in nodes if (price := node.price(spot=spot))])
        before = _median(_prices_in(shipped_catalog(), cloud, gpus, spot=spot))
        others = _elsewhere(catalog, cloud, gpus, spot=spot)
        self._moved = own is not None and before is not None and _off(own, before, FAR_OFF)
        vouched = before is not None and not self._moved
        self._below_others = own is not None and others is not None and own * FAR_OFF < others and not vouched
        self._below_sizes = own is not None and _below_sizes(catalog, cloud, gpus, own, before, spot=spot)

    def flags(self, node: NodePrice, *, spot: bool) -> tuple[str, ...]:
        """Reasons to distrust the price of a node in this market."""
        price = node.price(spot=spot)
        assert price is not None, "a node without a price is not an offer"
        own = self._own
        return tuple(
            flag
            for flag, raised in (
                *_nothing(node, price, spot=spot),
                (TWICE, node.twice_spot if spot else node.twice_on_demand),
                (BELOW_SPOT, not spot and _below_spot(node, price)),
                (OFF_ITS_CLOUD, price > 0 and own is not None and _off(price, own, OFF_IN_CLOUD)),
                (BELOW_OTHERS, price > 0 and self._below_others),
                (BELOW_SIZES, price > 0 and self._below_sizes),
                (OFF_SNAPSHOT, price > 0 and self._moved),
            )
            if raised
        )


def _nothing(node: NodePrice, price: float, *, spot: bool) -> Iterator[tuple[str, bool]]:
    """Zero or negative prices, of a node or of a part that is sold separately."""
    parts = [part.spot if spot else part.on_demand for part in (node.host, node.gpus) if part is not None]
    least = min([price, *(part for part in parts if part is not None)])
    yield ZERO, least == 0
    yield NEGATIVE, least < 0


def _below_spot(node: NodePrice, price: float) -> bool:
    if node.spot is not None and 0 < price < node.spot:
        return True
    cards = node.gpus
    return cards is not None and cards.on_demand is not None and cards.spot is not None and cards.on_demand < cards.spot


def _off(price: float, usual: float, times: float) -> bool:
    return price * times < usual or price > times * usual


def _below_sizes(catalog: Catalog, cloud: str, gpus: Gpus, own: float, before: float | None, *, spot: bool) -> bool:
    """Is this size too cheap per GPU relative to its cloud's others? Not if the snapshot confirms it."""
    if before is not None and not _off(own, before, OFF_SIZES):
        return False
    bounds = ((catalog, OFF_SIZES if gpus.count > 1 else OFF_IN_CLOUD), (shipped_catalog(), OFF_IN_CLOUD))
    usual = [(_per_node(_other_sizes(lists, cloud, gpus, spot=spot), gpus), times) for lists, times in bounds]
    return any(price is not None and own * times < price for price, times in usual)


def _other_sizes(catalog: Catalog, cloud: str, gpus: Gpus, *, spot: bool) -> list[float]:
    """Median price per GPU of each other size of this kind that the cloud sells."""
    others = [Gpus(gpus.name, count) for count in _sizes(catalog, cloud, gpus.name) if count != gpus.count]
    medians = [(_median(_prices_in(catalog, cloud, other, spot=spot)), other.count) for other in others]
    return [price / count for price, count in medians if price is not None]


def _elsewhere(catalog: Catalog, cloud: str, gpus: Gpus, *, spot: bool) -> float | None:
    """Median price of such a node in other clouds.

    Taken from the snapshot if it has the kind, because a list must not be judged by another one that is wrong too; else
    from the lists of the other clouds, whether requested or not, so that trust doesn't depend on the request; else from
    the price of the snapshot's kinds for the same speed. None if nothing is known.
    """
    return (
        _per_node(_medians(shipped_catalog(), cloud, gpus.name, spot=spot), gpus)
        or _per_node(_medians(catalog, cloud, gpus.name, spot=spot), gpus)
        or _by_speed(gpus, spot=spot)
    )


def _per_node(per_gpu: Sequence[float], gpus: Gpus) -> float | None:
    median = _median(per_gpu)
    return None if median is None else median * gpus.count


def _medians(catalog: Catalog, but: str, kind: str, *, spot: bool) -> list[float]:
    """Median price per GPU in each other cloud that sells this kind, in nodes of any size."""
    medians = []
    for cloud in catalog.lists:
        if cloud == but or (spot and not CLOUDS[cloud].has_spot):
            continue
        sizes = [Gpus(kind, count) for count in _sizes(catalog, cloud, kind)]
        prices = [price / gpus.count for gpus in sizes for price in _prices_in(catalog, cloud, gpus, spot=spot)]
        medians += [] if not prices else [statistics.median(prices)]
    return medians


def _sizes(catalog: Catalog, cloud: str, kind: str) -> list[int]:
    """Numbers of GPUs per node that a cloud sells; empty if its list can't be read."""
    try:
        rows = catalog.rows(cloud)
    except UserError:
        return []
    return sorted({int(count) for row in rows if row.gpu == kind and (count := row.gpu_count or 0) >= 1})


def _prices_in(catalog: Catalog, cloud: str, gpus: Gpus, *, spot: bool) -> list[float]:
    """The prices above 0 of a node in a cloud."""
    nodes = nodes_in(cloud, catalog.rows(cloud), gpus)
    return [price for node in nodes if (price := node.price(spot=spot)) is not None and price > 0]


@lru_cache(maxsize=64)
def _by_speed(gpus: Gpus, *, spot: bool) -> float | None:
    """The snapshot's price for the speed of such a node; None if its speed is not known."""
    estimates = []
    for kind in TIMED:
        speed = relative_speed(gpus, Gpus(kind, 1))
        if speed is not None and gpus.name != kind:
            estimates += [price * speed for price in _medians(shipped_catalog(), "", kind, spot=spot)]
    return _median(estimates)


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None

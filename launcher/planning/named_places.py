"""Which places of a cloud a task names. Pure.

A task that names a cloud opens all of its zones to SkyPilot, also those whose price looks wrong: SkyPilot's own
strategies would ask them first, because a price that is wrong is mostly too low. So where some zones of a market are
flagged, the entries of the task name the others, a whole region where all of its zones are good. Where none is flagged
the cloud is named, as people would.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from launcher.catalog.offers import Offer
from launcher.catalog.zone_names import CLOUD as AWS
from launcher.catalog.zone_names import region_of
from launcher.planning.plan import Rung


class _Area(NamedTuple):
    """A zone, or a region where the cloud has no zones."""

    region: str
    zone: str | None
    price_usd_per_hour: float
    good: bool


def named_places(
    rungs: Sequence[Rung], offers: Sequence[Offer], *, trust_prices: bool = False, strategy_checks: bool = False
) -> tuple[Rung, ...]:
    """The rungs, with the places whose price is trusted where their cloud has others too, cheapest first.

    Args:
        rungs: markets.
        offers: all that is known of them, flagged or not.
        trust_prices: also those that look wrong; never those of 0 or less.
        strategy_checks: the strategy leaves flagged places out by itself (NOTUS). A region of which only some zones are
            good, and cannot be named, is then left to it; else it is left out.
    """
    return tuple(named for rung in rungs for named in _named(rung, offers, trust_prices, strategy_checks))


def _named(rung: Rung, offers: Sequence[Offer], trust_prices: bool, strategy_checks: bool) -> list[Rung]:
    areas = _areas(rung, offers, trust_prices)
    if not any(area.good for area in areas) or all(area.good for area in areas):
        return [rung]
    regions: dict[str, list[_Area]] = defaultdict(list)
    for area in areas:
        regions[area.region].append(area)
    whole = {name for name, own in regions.items() if all(area.good for area in own)}
    split = {name for name, own in regions.items() if name not in whole and any(area.good for area in own)}
    unnamed = {name for name in split if any(_is_id(rung, area) for area in regions[name])}
    if strategy_checks:
        whole |= unnamed
    elif whole or split - unnamed:
        split -= unnamed
    if whole == regions.keys():
        return [rung]
    entries = [(_cheapest(regions[name]), rung.model_copy(update={"region": name})) for name in whole]
    for name in split - whole:
        entries += [
            (area.price_usd_per_hour, rung.model_copy(update={"region": name, "zone": area.zone}))
            for area in regions[name]
            if area.good
        ]
    return [entry for _, entry in sorted(entries, key=lambda one: (one[0], one[1].region or "", one[1].zone or ""))]


def _areas(rung: Rung, offers: Sequence[Offer], trust_prices: bool) -> list[_Area]:
    """Each zone of a market once: good if each of its machine types is, because SkyPilot takes the cheapest."""
    found: dict[str, _Area] = {}
    for offer in offers:
        if (offer.cloud, offer.gpus, offer.spot) != (rung.cloud, rung.gpus, rung.spot) or not offer.fits:
            continue
        good, price = offer.usable(trust_prices=trust_prices), offer.price_usd_per_hour
        if (known := found.get(offer.area)) is not None:
            good, price = good and known.good, min(price, known.price_usd_per_hour)
        found[offer.area] = _Area(offer.region, offer.zone, price, good)
    return list(found.values())


def _is_id(rung: Rung, area: _Area) -> bool:
    """An id of AWS, which SkyPilot may not take: it goes by the account's names as soon as it knows them."""
    return rung.cloud == AWS and area.zone is not None and region_of(area.zone) is None


def _cheapest(areas: Sequence[_Area]) -> float:
    return min(area.price_usd_per_hour for area in areas if area.good)

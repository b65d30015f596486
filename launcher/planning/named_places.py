"""Which places of a cloud a task names. Pure.

A task that names a cloud opens all of its zones to SkyPilot, including those whose price looks wrong. SkyPilot's own
strategies would try those first, because a wrong price is usually too low. So if some zones of a market are flagged,
the task's entries name the others, as a whole region if all of its zones are good. If none is flagged, the entry names
just the cloud.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from launcher.catalog.offers import Offer
from launcher.catalog.zone_names import CLOUD as AWS
from launcher.catalog.zone_names import region_of
from launcher.planning.plan import Candidate


class _Area(NamedTuple):
    """A zone, or a region if the cloud has no zones."""

    region: str
    zone: str | None
    price_usd_per_hour: float
    good: bool


def named_places(
    candidates: Sequence[Candidate],
    offers: Sequence[Offer],
    *,
    trust_prices: bool = False,
    strategy_checks: bool = False,
) -> tuple[Candidate, ...]:
    """The candidates, narrowed to places with a trusted price if their cloud also has others, cheapest first.

    Args:
        candidates: markets.
        offers: all of their known offers, flagged or not.
        trust_prices: include prices that look wrong, but never those of 0 or less.
        strategy_checks: the strategy skips flagged places itself (NOTUS). A region with only some good zones, which
            cannot be named, is then included; else it is left out.
    """
    return tuple(
        named for candidate in candidates for named in _named(candidate, offers, trust_prices, strategy_checks)
    )


def _named(candidate: Candidate, offers: Sequence[Offer], trust_prices: bool, strategy_checks: bool) -> list[Candidate]:
    areas = _areas(candidate, offers, trust_prices)
    if not any(area.good for area in areas) or all(area.good for area in areas):
        return [candidate]
    regions: dict[str, list[_Area]] = defaultdict(list)
    for area in areas:
        regions[area.region].append(area)
    whole = {name for name, own in regions.items() if all(area.good for area in own)}
    split = {name for name, own in regions.items() if name not in whole and any(area.good for area in own)}
    unnamed = {name for name in split if any(_is_id(candidate, area) for area in regions[name])}
    if strategy_checks:
        whole |= unnamed
    elif whole or split - unnamed:
        split -= unnamed
    if whole == regions.keys():
        return [candidate]
    entries = [(_cheapest(regions[name]), candidate.model_copy(update={"region": name})) for name in whole]
    for name in split - whole:
        entries += [
            (area.price_usd_per_hour, candidate.model_copy(update={"region": name, "zone": area.zone}))
            for area in regions[name]
            if area.good
        ]
    return [entry for _, entry in sorted(entries, key=lambda one: (one[0], one[1].region or "", one[1].zone or ""))]


def _areas(candidate: Candidate, offers: Sequence[Offer], trust_prices: bool) -> list[_Area]:
    """Each zone of a market once. It is good if all its machine types are, because SkyPilot takes the cheapest."""
    areas: dict[str, _Area] = {}
    for offer in offers:
        if (offer.cloud, offer.gpus, offer.spot) != (candidate.cloud, candidate.gpus, candidate.spot) or not offer.fits:
            continue
        good, price = offer.usable(trust_prices=trust_prices), offer.price_usd_per_hour
        if (area := areas.get(offer.area)) is not None:
            good, price = good and area.good, min(price, area.price_usd_per_hour)
        areas[offer.area] = _Area(offer.region, offer.zone, price, good)
    return list(areas.values())


def _is_id(candidate: Candidate, area: _Area) -> bool:
    """Is it an AWS zone id? SkyPilot may not accept one: it uses the account's zone names once it has them."""
    return candidate.cloud == AWS and area.zone is not None and region_of(area.zone) is None


def _cheapest(areas: Sequence[_Area]) -> float:
    return min(area.price_usd_per_hour for area in areas if area.good)

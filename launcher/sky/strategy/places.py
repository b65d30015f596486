"""The places that a task may run in, each with a trusted price. Pure, except for the lists that it reads.

SkyPilot's catalog on the controller determines where a machine *can* be requested; `launcher.catalog.offers` determines
whether its price is credible, as for a plan. Both read the same kind of list, but not always the same one: the higher
price is booked, and a place that has a price in only one of them is not used.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Generic, NamedTuple, TypeVar

from checkpoints.errors import NotusError, UserError
from checkpoints.util.clock import Clock
from launcher.catalog.gpu_nodes import parse_gpus
from launcher.catalog.offers import Catalog, Offer, load_offers
from launcher.catalog.price_lists import REFRESH
from launcher.catalog.zone_names import CLOUD as AWS
from launcher.catalog.zone_names import region_of
from launcher.policy.model import Place
from trainer.config.clouds import CLOUDS

logger = logging.getLogger("sky.notus")

T = TypeVar("T")
READ_AGAIN = timedelta(hours=1)
SAME_USD = 0.01
"""Prices per hour that differ by less are equal: lists round."""
NAMED = 3
"""Places named in a log line; the others are only counted."""


class MachineOption(NamedTuple):
    """A machine type in one place, as SkyPilot would rent it."""

    place: Place
    """With SkyPilot's price; NaN if it has none."""
    instance_type: str


class Dropped(NamedTuple):
    """An option that is not used."""

    candidate: MachineOption
    why: str


def offers_for(catalog: Catalog, places: Iterable[Place]) -> list[Offer]:
    """Our own lists' offers for these places' clouds and nodes. An unreadable list only excludes its cloud."""
    wanted: dict[str, dict[str, None]] = defaultdict(dict)
    for place in places:
        wanted[place.cloud][place.gpus] = None
    offers: list[Offer] = []
    for cloud, nodes in wanted.items():
        if cloud not in CLOUDS:
            continue
        try:
            offers += load_offers(catalog, [parse_gpus(node) for node in nodes], [cloud])
        except NotusError as error:
            logger.warning("notus: no price in %s: %s", cloud, error.message)
    return offers


def judge(
    candidates: Mapping[MachineOption, T], offers: Sequence[Offer], *, trust_prices: bool = False
) -> tuple[dict[Place, T], list[Dropped]]:
    """Each place with its cheapest usable machine type at the price to book, and the options that are dropped.

    Args:
        candidates: options, with what SkyPilot launches there.
        offers: offers in our own lists, see `offers_for`.
        trust_prices: include places whose price looks wrong, but never those of 0 or less.
    """
    by_place: dict[tuple[str, str, str, bool], list[Offer]] = defaultdict(list)
    for offer in offers:
        by_place[offer.cloud, offer.region, offer.gpus, offer.spot].append(offer)
    best: dict[Place, tuple[Place, T]] = {}
    dropped = []
    for candidate, launchable in candidates.items():
        place = candidate.place
        same = _same(candidate, by_place[place.cloud, place.region, place.gpus, place.spot])
        if why := _why_not(place, same, trust_prices=trust_prices):
            dropped.append(Dropped(candidate, why))
            continue
        price = max(place.price_usd_per_hour, *(offer.price_usd_per_hour for offer in same))
        if place not in best or price < best[place][0].price_usd_per_hour:
            best[place] = replace(place, price_usd_per_hour=price), launchable
    return dict(best.values()), dropped


def _same(candidate: MachineOption, region: Sequence[Offer]) -> list[Offer]:
    """The offers that match an option, among those for its region, GPUs and market.

    These are its zone's, of its machine type if there is one, or the region's if SkyPilot names no zone. AWS zones may
    be ids in our list and names in SkyPilot's: then those of the region at SkyPilot's price, which comes from such a
    list, else all of the region.
    """
    place = candidate.place
    here = [offer for offer in region if place.zone in (None, offer.zone)]
    if not here and place.cloud == AWS:
        unnamed = [offer for offer in region if _is_id(offer.zone) != _is_id(place.zone)]
        here = [one for one in unnamed if abs(one.price_usd_per_hour - place.price_usd_per_hour) < SAME_USD] or unnamed
    return [offer for offer in here if offer.instance_type == candidate.instance_type] or here


def _is_id(zone: str | None) -> bool:
    return zone is not None and region_of(zone) is None


def _why_not(place: Place, same: Sequence[Offer], *, trust_prices: bool) -> str:
    """Why a place is not used; '' if it may be."""
    if not is_price(place.price_usd_per_hour):
        return "SkyPilot has no price above 0 for it"
    if not same:
        return "our price list has no price for it"
    if all(offer.usable(trust_prices=trust_prices) for offer in same):
        return ""
    flags = dict.fromkeys(flag for offer in same for flag in offer.flags)
    return f"its price looks wrong ({', '.join(flags)})"


def is_price(value: float) -> bool:
    """Is it a possible price of a machine?"""
    return math.isfinite(value) and value > 0


def report(dropped: Sequence[Dropped], kept: int) -> None:
    """Log which places are not used, and why. Raises `UserError` if no place is left."""
    by_reason: dict[str, list[Place]] = defaultdict(list)
    for candidate, why in dropped:
        by_reason[why].append(candidate.place)
    for why, places in by_reason.items():
        more = f" and {len(places) - NAMED} more" if len(places) > NAMED else ""
        logger.warning("notus: not used: %s%s: %s", ", ".join(map(str, places[:NAMED])), more, why)
    if dropped and not kept:
        raise UserError(
            f"no place of this task has a reliable price: {'; '.join(by_reason)}",
            f"get newer price lists (`{REFRESH}`), or launch with --trust-prices, which allows those above 0",
        )


def booked(place: Place, known: Iterable[Place]) -> Place:
    """A machine's place at no lower price than the known one, because SkyPilot's list may be wrong or stale.

    Without a price of its own, it gets the highest known price in its region, else in its market.
    """
    others = [
        other for other in known if (other.cloud, other.gpus, other.spot) == (place.cloud, place.gpus, place.spot)
    ]
    own = [other.price_usd_per_hour for other in others if other == place]
    if not own and not is_price(place.price_usd_per_hour):
        region = [other.price_usd_per_hour for other in others if other.region == place.region]
        own = region or [other.price_usd_per_hour for other in others]
    prices = [price for price in (place.price_usd_per_hour, *own) if is_price(price)]
    return replace(place, price_usd_per_hour=max(prices)) if prices else place


class Hourly(Generic[T]):
    """A value that is reread after an hour. If reading fails, the last value is kept and reading is retried later."""

    def __init__(self, read: Callable[[], T], clock: Clock, every: timedelta = READ_AGAIN) -> None:
        self._read = read
        self._clock = clock
        self._every = every
        self._reading = threading.Lock()
        self.last: T | None = None
        """Value of the last successful reading."""
        self._read_at = clock.now()

    def value(self) -> T:
        """The current value. Raises the first reading's error. Does not wait for another thread's rereading."""
        if self.last is not None and (self._is_fresh() or not self._reading.acquire(blocking=False)):
            return self.last
        if self.last is None:
            self._reading.acquire()
        try:
            return self._renewed()
        finally:
            self._reading.release()

    def _renewed(self) -> T:
        if self.last is not None and self._is_fresh():  # another thread was first
            return self.last
        try:
            if (value := self._read()) or not self.last:
                self.last = value
            else:
                logger.warning("notus: the new price list has nothing for this task; keeping the last one")
        except Exception as error:  # SkyPilot raises many kinds; a run of hours must not end because of a list
            if self.last is None:
                raise
            logger.warning("notus: prices could not be reread: %s", error)
        self._read_at = self._clock.now()
        return self.last

    def _is_fresh(self) -> bool:
        """Is the last reading recent? Also False if the clock was set back."""
        return timedelta(0) <= self._clock.now() - self._read_at < self._every

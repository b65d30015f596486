"""What the user's own runs have met, kept in a small file at home: the dry run reads it without asking a bucket.

One entry a run, replaced each time that the run is looked at, so nothing is counted twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import MappingProxyType

from pydantic import BaseModel, ConfigDict, ValidationError

from checkpoints.run_log.event_log import Event
from launcher.catalog.offers import Offer
from launcher.catalog.zone_names import CLOUD as AWS
from launcher.catalog.zone_names import by_name, region_of
from launcher.console import counted
from launcher.paths import experience_path
from launcher.policy.spot.market import MOST_ZONES, Rates, mean_spell_h
from launcher.policy.spot.preemption_rates import Hazard, ZoneLife, describe
from launcher.policy.spot.statistics import Counts, Kind, MarketCounts, counts_of, total, tuned_chain, world_of
from launcher.policy.spot.zone_pooling import MarketEnds
from trainer.runtime.attempt_dir import replace_file

MIN_MACHINE_HOURS = 1.0
"""On spot, before a table counts as measured."""


class _Met(BaseModel):
    model_config = ConfigDict(frozen=True)

    cloud: str
    gpus: str
    zone: str = ""
    """Empty: stock-outs, which are the whole market's; in older files all that was met."""
    counts: Counts


class _Book(BaseModel):
    model_config = ConfigDict(frozen=True)

    runs: dict[str, tuple[_Met, ...]] = {}


def remember(run_url: str, events: Sequence[Event], now: datetime) -> None:
    """Note what a run has met. A file that can't be written is no reason to fail: it only makes plans better."""
    spell_ends = tuple(line for kind, counts in counts_of(events, now).items() for line in _lines(kind, counts))
    if not spell_ends:
        return
    book = _read()
    with contextlib.suppress(OSError):
        _write(_Book(runs={**book.runs, run_url: spell_ends}))


@dataclass(frozen=True)
class Experience:
    """With one market."""

    kind: Kind
    counts: MarketCounts
    runs: int
    """That saw it."""
    regions: Mapping[str, str] = field(default_factory=dict)
    """Of zones that the price list names otherwise than machines do: what was met there is known by region only."""

    def hazard(self, zones: Sequence[str]) -> Hazard:
        """What it makes of the shipped table for these zones, in the order in which they are asked."""
        count, counts = len(zones), self._as_listed()
        spell_ends = counts.spell_ends(count)
        churns = [spell_ends.churn_in(self._recorded_as(zone)) for zone in zones]
        whole = world_of(churns, count)
        lives = {
            zone: ZoneLife(mean_spell_h(_machine_ends([spell_ends.churn_in(zone)])), "own spells", own.machines)
            for zone, own in counts.zones.items()
        }
        known_as = {zone: self._recorded_as(zone) for zone in dict.fromkeys(zones)}
        return Hazard(
            world=replace(whole, machine_ends=_machine_ends(churns[:1])),
            chain=tuned_chain((counts.spell_ends().churn_in(known_as[zone]) for zone in zones), count),
            source="; ".join([self._source(describe(whole, count)), *_in_words(lives, list(known_as.values()))]),
            basis="market",
            ends_elsewhere=_machine_ends(churns[1:MOST_ZONES]) if count > 1 else None,
            life_h=mean_spell_h(_machine_ends([spell_ends.churn])),
            zones=lives
            | {
                zone: lives[record]._replace(basis="region")
                for zone, record in known_as.items()
                if record != zone and record in lives
            },
        )

    def _as_listed(self) -> MarketCounts:
        """The counts, those of named zones by region where the price list has no names."""
        if not self.regions:
            return self.counts
        regions = set(self.regions.values())
        zones: dict[str, Counts] = {}
        for zone, own in self.counts.zones.items():
            region = region_of(zone)
            record = region if region in regions else zone
            zones[record] = zones.get(record, Counts()).plus(own)
        return MarketCounts(whole=self.counts.whole, zones=zones)

    def _recorded_as(self, zone: str) -> str:
        """Under which name the spells of a listed zone are found."""
        return zone if zone in self.counts.zones else self.regions.get(zone, zone)

    def _source(self, words: str) -> str:
        cloud, gpus = self.kind
        return (
            f"spot {gpus} in {cloud}: the shipped table updated by {self.runs} runs of yours, "
            f"{self.counts.preemptions} preemptions in {self.counts.machine_hours:.0f} machine hours: {words}"
        )

    @property
    def spell_ends(self) -> MarketEnds:
        """What the policy of the next run starts from."""
        return self.counts.spell_ends()


def learned(
    without: str = "", *, names: Mapping[str, str] = MappingProxyType({}), offers: Sequence[Offer] = ()
) -> dict[Kind, Experience]:
    """What the user's runs have met, by cloud and GPUs.

    Args:
        without: a run's URL: it has its own diary.
        names: of AWS's zones, by id.
        offers: what is planned on. Their zones of AWS may have ids, where diaries have names.
    """
    runs = [_by_market(run, names) for url, run in _read().runs.items() if url != without]
    return {
        kind: Experience(kind, counts, sum(kind in run for run in runs), _regions(kind, offers))
        for kind, counts in total(runs).items()
        if counts.machine_hours >= MIN_MACHINE_HOURS
    }


def _in_words(lives: Mapping[str, ZoneLife], zones: Sequence[str]) -> list[str]:
    """Zones that were tried, of those that are asked."""
    told = [
        f"{zone} {lives[zone].mean_h:.1f} h (from {counted(lives[zone].own_spells, 'own spell')})"
        for zone in dict.fromkeys(zones)
        if zone in lives
    ]
    return ["machines live on average in " + ", ".join(told)] if told else []


def _machine_ends(churns: Sequence[float]) -> Rates:
    """In zones of these churns."""
    return world_of(churns, 1).machine_ends


def _lines(kind: Kind, counts: MarketCounts) -> list[_Met]:
    """A market as the file has it."""
    cloud, gpus = kind
    told = {"": counts.whole, **counts.zones}
    return [_Met(cloud=cloud, gpus=gpus, zone=zone, counts=own) for zone, own in told.items() if own != Counts()]


def _regions(kind: Kind, offers: Sequence[Offer]) -> dict[str, str]:
    """Region by zone, for the zones of a market that are listed by id."""
    listed = (offer for offer in offers if offer.spot and (offer.cloud, offer.gpus) == kind and offer.cloud == AWS)
    return {offer.area: offer.region for offer in listed if offer.zone and region_of(offer.zone) is None}


def _by_market(lines: Sequence[_Met], names: Mapping[str, str]) -> dict[Kind, MarketCounts]:
    """Back from the file, AWS's zones by name where that is known."""
    return total(
        {(line.cloud, line.gpus): MarketCounts(zones={by_name(line.zone, names): line.counts})}
        if line.zone
        else {(line.cloud, line.gpus): MarketCounts(whole=line.counts)}
        for line in lines
    )


def _read() -> _Book:
    try:
        return _Book.model_validate_json(experience_path().read_bytes())
    except (OSError, ValidationError):
        return _Book()


def _write(book: _Book) -> None:
    path = experience_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, book.model_dump_json(indent=1).encode())

"""Spot market statistics of the user's own runs, in a small file at home that a dry run reads without any bucket.

It has one entry per run, which is replaced each time the run is read, so nothing is counted twice.
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
from launcher.policy.spot.statistics import Counts, MarketCounts, MarketKey, counts_of, total, tuned_chain, world_of
from launcher.policy.spot.zone_pooling import MarketEnds
from trainer.runtime.attempt_dir import replace_file

MIN_MACHINE_HOURS = 1.0
"""Hours on spot before a market's statistics are used."""


class _ZoneCounts(BaseModel):
    model_config = ConfigDict(frozen=True)

    cloud: str
    gpus: str
    zone: str = ""
    """Empty: stock-outs, which belong to the whole market; in older files, all counts."""
    counts: Counts


class _HistoryFile(BaseModel):
    model_config = ConfigDict(frozen=True)

    runs: dict[str, tuple[_ZoneCounts, ...]] = {}


def record_run(run_url: str, events: Sequence[Event], now: datetime) -> None:
    """Record a run's statistics. A file that can't be written is not an error: it only improves plans."""
    spell_ends = tuple(line for kind, counts in counts_of(events, now).items() for line in _lines(kind, counts))
    if not spell_ends:
        return
    book = _read()
    with contextlib.suppress(OSError):
        _write(_HistoryFile(runs={**book.runs, run_url: spell_ends}))


@dataclass(frozen=True)
class MarketHistory:
    """Statistics of the user's runs in one market."""

    kind: MarketKey
    counts: MarketCounts
    runs: int
    """Number of runs in this market."""
    regions: Mapping[str, str] = field(default_factory=dict)
    """Regions of zones that the price list and the machines name differently: their counts are known only by region."""

    def hazard(self, zones: Sequence[str]) -> Hazard:
        """The shipped table updated for these zones, in the order in which they are tried."""
        count, counts = len(zones), self._as_listed()
        spell_ends = counts.spell_ends(count)
        churns = [spell_ends.churn_in(self._recorded_as(zone)) for zone in zones]
        whole = world_of(churns, count)
        lives = {
            zone: ZoneLife(mean_spell_h(_machine_ends([spell_ends.churn_in(zone)])), "own spells", own.machines)
            for zone, own in counts.zones.items()
        }
        recorded_as = {zone: self._recorded_as(zone) for zone in dict.fromkeys(zones)}
        return Hazard(
            world=replace(whole, machine_ends=_machine_ends(churns[:1])),
            chain=tuned_chain((counts.spell_ends().churn_in(recorded_as[zone]) for zone in zones), count),
            source="; ".join(
                [self._source(describe(whole, count)), *_describe_lives(lives, list(recorded_as.values()))]
            ),
            basis="market",
            ends_elsewhere=_machine_ends(churns[1:MOST_ZONES]) if count > 1 else None,
            life_h=mean_spell_h(_machine_ends([spell_ends.churn])),
            zones=lives
            | {
                zone: lives[record]._replace(basis="region")
                for zone, record in recorded_as.items()
                if record != zone and record in lives
            },
        )

    def _as_listed(self) -> MarketCounts:
        """The counts by zone, or by region for zones that the price list has no names for."""
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
        """The name under which the spells of a listed zone are recorded."""
        return zone if zone in self.counts.zones else self.regions.get(zone, zone)

    def _source(self, words: str) -> str:
        cloud, gpus = self.kind
        return (
            f"spot {gpus} in {cloud}: the shipped table updated by {self.runs} of your runs, "
            f"{self.counts.preemptions} preemptions in {self.counts.machine_hours:.0f} machine hours: {words}"
        )

    @property
    def spell_ends(self) -> MarketEnds:
        """The starting point of the next run's policy."""
        return self.counts.spell_ends()


def learned(
    without: str = "", *, names: Mapping[str, str] = MappingProxyType({}), offers: Sequence[Offer] = ()
) -> dict[MarketKey, MarketHistory]:
    """Statistics of the user's runs, by cloud and GPUs.

    Args:
        without: URL of a run to leave out because it has its own diary.
        names: names of AWS zones, by id.
        offers: the offers to plan with. Their AWS zones may be ids, while diaries have names.
    """
    runs = [_by_market(run, names) for url, run in _read().runs.items() if url != without]
    return {
        kind: MarketHistory(kind, counts, sum(kind in run for run in runs), _regions(kind, offers))
        for kind, counts in total(runs).items()
        if counts.machine_hours >= MIN_MACHINE_HOURS
    }


def _describe_lives(lives: Mapping[str, ZoneLife], zones: Sequence[str]) -> list[str]:
    """Mean life in those zones that were tried before."""
    lives_by_zone = [
        f"{zone} {lives[zone].mean_h:.1f} h (from {counted(lives[zone].own_spells, 'own spell')})"
        for zone in dict.fromkeys(zones)
        if zone in lives
    ]
    return ["mean life of a machine: " + ", ".join(lives_by_zone)] if lives_by_zone else []


def _machine_ends(churns: Sequence[float]) -> Rates:
    """End rates of machines in zones of these churns."""
    return world_of(churns, 1).machine_ends


def _lines(kind: MarketKey, counts: MarketCounts) -> list[_ZoneCounts]:
    """A market as recorded in the file."""
    cloud, gpus = kind
    by_zone = {"": counts.whole, **counts.zones}
    return [
        _ZoneCounts(cloud=cloud, gpus=gpus, zone=zone, counts=own) for zone, own in by_zone.items() if own != Counts()
    ]


def _regions(kind: MarketKey, offers: Sequence[Offer]) -> dict[str, str]:
    """Region by zone, for the zones of a market that are listed by id."""
    listed = (offer for offer in offers if offer.spot and (offer.cloud, offer.gpus) == kind and offer.cloud == AWS)
    return {offer.area: offer.region for offer in listed if offer.zone and region_of(offer.zone) is None}


def _by_market(lines: Sequence[_ZoneCounts], names: Mapping[str, str]) -> dict[MarketKey, MarketCounts]:
    """Counts by market from the lines of the file, with AWS zones by name if it is known."""
    return total(
        {(line.cloud, line.gpus): MarketCounts(zones={by_name(line.zone, names): line.counts})}
        if line.zone
        else {(line.cloud, line.gpus): MarketCounts(whole=line.counts)}
        for line in lines
    )


def _read() -> _HistoryFile:
    try:
        return _HistoryFile.model_validate_json(experience_path().read_bytes())
    except (OSError, ValidationError):
        return _HistoryFile()


def _write(book: _HistoryFile) -> None:
    path = experience_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, book.model_dump_json(indent=1).encode())

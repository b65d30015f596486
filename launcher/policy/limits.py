"""The user's limits, passed in the task's environment: the launcher writes it, the strategy reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, unquote

from checkpoints.errors import UserError
from checkpoints.util.environment import Default, number_of
from launcher.bounds import (
    MAX_COUNT,
    MAX_HAZARD_H,
    MAX_HOURS,
    MAX_MINUTES,
    MAX_USD,
    MIN_CHECK_MINUTES,
    MIN_HAZARD_H,
    MIN_HOURS,
    MIN_USD,
)
from launcher.policy.model import Place
from launcher.policy.settings import Settings
from launcher.policy.spot.market import SpellEnds
from launcher.policy.spot.zone_pooling import MarketEnds
from trainer.config.recipe import load_recipe


@dataclass(frozen=True)
class Limits:
    """The limits of a run, and the estimates that the policy starts from."""

    hours: float
    """Work in the whole run, assumed until it is measured."""
    restart_h: float = 0.25
    deadline: datetime | None = None
    budget_usd: float | None = None
    hazard_h: float | None = None
    """Mean hours between preemptions of a spot machine, if given by the user; else the shipped table is used."""
    restore_usd: float = 0.0
    """Cost of moving a checkpoint to a machine outside of `bucket_cloud`."""
    bucket_cloud: str = ""
    store_usd_per_h: float = 0.0
    """Storage and request costs while the run has a machine."""
    keep_usd_per_h: float = 0.0
    """Storage costs while the run has no machine."""
    save_h: float | None = None
    """Planned upload time of a checkpoint, used until one is measured."""
    save_every_h: float = 0.0
    """Planned time between two saves; 0 = not known."""
    trust_prices: bool = False
    """The user accepts prices that look wrong (`--trust-prices`)."""
    settings: Settings = field(default_factory=Settings)
    spell_ends: Mapping[tuple[str, str], MarketEnds] = field(default_factory=dict)
    """Spell ends that earlier runs saw in spot markets, by cloud and GPUs: the policy's starting point."""

    def priced(self, place: Place) -> Place:
        """The place, with the cost of a restore there."""
        return replace(place, restore_usd=0.0 if place.cloud == self.bucket_cloud else self.restore_usd)

    def environment(self) -> dict[str, str]:
        """Environment variables for the task; '' = none. Settings keep their defaults unless added there by hand."""
        store = {
            "NOTUS_RESTORE_USD": f"{self.restore_usd:.2f}" if self.restore_usd else "",
            "NOTUS_BUCKET_CLOUD": self.bucket_cloud if self.restore_usd else "",
            "NOTUS_STORE_USD_H": f"{self.store_usd_per_h:.3g}" if self.store_usd_per_h else "",
            "NOTUS_KEEP_USD_H": f"{self.keep_usd_per_h:.3g}" if self.keep_usd_per_h else "",
            "NOTUS_SAVE_MIN": f"{self.save_h * 60:.3g}" if self.save_h else "",
            "NOTUS_SAVE_EVERY_MIN": f"{self.save_every_h * 60:.3g}" if self.save_every_h else "",
            "NOTUS_MET": _spell_ends_text(self.spell_ends),
            "NOTUS_TRUST_PRICES": "1" if self.trust_prices else "",
        }
        return {
            "NOTUS_HOURS": f"{self.hours:g}",
            "NOTUS_DEADLINE": self.deadline.astimezone(UTC).isoformat(timespec="seconds") if self.deadline else "",
            "NOTUS_BUDGET_USD": f"{self.budget_usd:g}" if self.budget_usd else "",
            "NOTUS_HAZARD_H": f"{self.hazard_h:g}" if self.hazard_h else "",
            **{name: value for name, value in store.items() if value},
        }


def limits_of(environment: Mapping[str, str], now: datetime | None = None) -> Limits:
    """Parse the deadline, budget and policy settings of a task's environment; '' = none. Raises `UserError`.

    With `now`, a deadline more than a year from it is also an error, because its year must be a typo.
    """
    defaults = Settings()

    def hours(name: str, default: float, at_least: float = 0.0) -> float:
        return number_of(environment, name, default * 60, at_least=at_least, at_most=MAX_MINUTES) / 60

    def usd(name: str, default: Default, at_least: float = 0.0) -> float | Default:
        return number_of(environment, name, default, at_least=at_least, at_most=MAX_USD)

    work_h = number_of(environment, "NOTUS_HOURS", None, at_least=MIN_HOURS, at_most=MAX_HOURS)
    return Limits(
        hours=load_recipe(environment["NOTUS_RECIPE"]).hardware.hours if work_h is None else work_h,
        restart_h=hours("NOTUS_RESTART_MIN", Limits.restart_h),
        deadline=_moment(environment.get("NOTUS_DEADLINE", ""), now),
        budget_usd=usd("NOTUS_BUDGET_USD", None, at_least=MIN_USD),
        hazard_h=number_of(environment, "NOTUS_HAZARD_H", None, at_least=MIN_HAZARD_H, at_most=MAX_HAZARD_H),
        restore_usd=usd("NOTUS_RESTORE_USD", 0.0),
        bucket_cloud=environment.get("NOTUS_BUCKET_CLOUD", ""),
        store_usd_per_h=usd("NOTUS_STORE_USD_H", 0.0),
        keep_usd_per_h=usd("NOTUS_KEEP_USD_H", 0.0),
        save_h=hours("NOTUS_SAVE_MIN", 0.0) or None,
        save_every_h=hours("NOTUS_SAVE_EVERY_MIN", 0.0),
        trust_prices=environment.get("NOTUS_TRUST_PRICES", "") == "1",
        spell_ends=_spell_ends_of(environment.get("NOTUS_MET", "")),
        settings=Settings(
            return_h=hours("NOTUS_RETURN_MIN", defaults.return_h),
            check_h=hours("NOTUS_CHECK_MIN", defaults.check_h, at_least=MIN_CHECK_MINUTES),
        ),
    )


def _spell_ends_text(spell_ends: Mapping[tuple[str, str], MarketEnds]) -> str:
    """Format the spells that ended and those that the tables expected.

    There is one entry for each market as a whole and one for each of its zones. Zone names are quoted because some
    have spaces: `gcp/A100:8=5/4.1 gcp/A100:8/us-central1-a=7/5.4 ...`
    """
    parts = []
    for (cloud, gpus), market in sorted(spell_ends.items()):
        entries = {f"{cloud}/{gpus}": market.whole}
        entries |= {f"{cloud}/{gpus}/{quote(zone, safe='')}": own for zone, own in sorted(market.zones.items())}
        parts += [f"{name}={own.ends:g}/{own.expected:.4g}" for name, own in entries.items() if any(own)]
    return " ".join(parts)


def _spell_ends_of(text: str) -> dict[tuple[str, str], MarketEnds]:
    """Parse what `_spell_ends_text` has written. Raises `UserError`."""
    markets: dict[tuple[str, str], MarketEnds] = {}
    try:
        for where, counts in (part.split("=") for part in text.split()):
            cloud, gpus, *zone = where.split("/")
            spell_ends = SpellEnds(*(_count(one) for one in counts.split("/")))
            one = MarketEnds(zones={unquote(zone[0]): spell_ends}) if zone else MarketEnds(spell_ends)
            markets[cloud, gpus] = markets.get((cloud, gpus), MarketEnds()).plus(one)
    except (ValueError, TypeError) as error:
        raise UserError(f"NOTUS_MET can't be read: {error}", "leave it empty: it only improves prices") from error
    return markets


def _count(text: str) -> float:
    value = float(text)
    if not 0 <= value <= MAX_COUNT:
        raise ValueError(f"{text[:40]!r} is not a count")
    return value


def _moment(text: str, now: datetime | None) -> datetime | None:
    """Parse an ISO time, in UTC if it has no zone; '' = None. Raises `UserError`."""
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
        moment = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise UserError(
            f"NOTUS_DEADLINE is {text[:40]!r}, which is not a time", "write an ISO time: 2026-11-25T08:00Z"
        ) from error
    if now is not None and abs(moment - now) > timedelta(hours=MAX_HOURS):
        where = "from now" if moment > now else "ago"
        raise UserError(
            f"NOTUS_DEADLINE is {text[:40]!r}, more than a year {where}",
            f"give one within {MAX_HOURS / 24:.0f} days, or leave it empty",
        )
    return moment

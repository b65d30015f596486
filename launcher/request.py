"""The user's request, typed and checked: one model for the command line and for other callers."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel, ConfigDict, Field

from checkpoints.errors import InvalidName
from checkpoints.storage.backend import BACKENDS, is_remote
from checkpoints.util.keys import check_run_name, is_run_name, suggest_run_name
from launcher.bounds import MAX_HAZARD_H, MAX_HOURS, MIN_HAZARD_H
from launcher.catalog.gpu_nodes import LOCAL, Gpus, Market, did_you_mean, parse_gpus
from launcher.errors import RequestError
from trainer.config.clouds import CLOUDS


class LaunchRequest(BaseModel):
    """The request for a launch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str
    clouds: tuple[str, ...] = Field(default=(), description="names of CLOUDS; empty = all of them")
    gpus: tuple[Gpus, ...] = Field(default=(), description="empty = all kinds that the recipe can run on")
    market: Market = "auto"
    deadline_h: float | None = Field(default=None, description="from the launch, which is when the user confirms")
    deadline: datetime | None = Field(default=None, description="set if it was given as a point in time")
    budget_usd: float | None = Field(default=None, description="for the whole run, including what it has already spent")
    hours: float | None = Field(default=None, description="hours of work, overriding the recipe's")
    hazard_h: float | None = Field(default=None, description="mean hours between preemptions of a spot machine")
    trust_prices: bool = Field(default=False, description="also recommend offers whose price looks wrong")
    bucket: str | None = None
    name: str | None = None

    @property
    def is_local(self) -> bool:
        """Does it run on this machine, not in a cloud?"""
        return self.clouds == (LOCAL,)

    def at(self, now: datetime) -> LaunchRequest:
        """The request as of `now`, with the hours left until its deadline. Raises `RequestError`."""
        if self.deadline is None:
            return self
        hours = (self.deadline - now) / timedelta(hours=1)
        if hours <= 0:
            raise RequestError(f"the deadline {self.deadline.isoformat()} has passed", "choose a later one")
        return self.model_copy(update={"deadline_h": hours})

    def deadline_from(self, launched: datetime) -> datetime | None:
        """The point in time of the deadline, for a launch at `launched`."""
        if self.deadline is not None or self.deadline_h is None:
            return self.deadline
        return launched + timedelta(hours=self.deadline_h)


def launch_request(
    *,
    recipe: str,
    clouds: Sequence[str],
    gpus: Sequence[str],
    market: Market,
    deadline: str | None,
    budget_usd: float | None,
    hours: float | None,
    hazard: str | None,
    trust_prices: bool,
    bucket: str | None,
    name: str | None,
) -> LaunchRequest:
    """Make a request from command-line options; raises `RequestError` and `InvalidName`."""
    parsed = parse_clouds(clouds)
    check_market(parsed, market)
    check_name = check_run_name if parsed == (LOCAL,) else check_cloud_run_name
    return LaunchRequest(
        recipe=recipe,
        clouds=parsed,
        gpus=tuple(parse_gpus(text) for text in gpus),
        market=market,
        deadline_h=parse_deadline(deadline, datetime.now(UTC)) if deadline is not None else None,
        deadline=parse_moment(deadline) if deadline is not None else None,
        budget_usd=budget_usd,
        hours=hours,
        hazard_h=parse_hazard(hazard) if hazard is not None else None,
        trust_prices=trust_prices,
        bucket=bucket,
        name=check_name(name) if name is not None else None,
    )


def parse_clouds(names: Sequence[str]) -> tuple[str, ...]:
    """Check cloud names; raises `RequestError` with the nearest valid one."""
    parsed = []
    for name in names:
        lowered = name.lower()
        if lowered not in CLOUDS and lowered != LOCAL:
            known = (*CLOUDS, LOCAL)
            raise RequestError(f"unknown cloud {name!r}{did_you_mean(lowered, known)}", f"known: {_join(known)}")
        parsed.append(lowered)
    if LOCAL in parsed and len(parsed) > 1:
        raise RequestError("--cloud local can't be combined with another cloud", "leave one of them out")
    return tuple(parsed)


def parse_hazard(text: str) -> float:
    """Mean time between preemptions, `6h` or `90m` -> hours; raises `RequestError`."""
    hours = _span(text)
    if not hours:
        raise RequestError(f"--hazard {text[:80]!r} is not a duration", "write 24h, 90m or 1d")
    if not MIN_HAZARD_H <= hours <= MAX_HAZARD_H:
        raise RequestError(f"--hazard {text[:80]!r} is out of range", "give a time from 1m to 3660d")
    return hours


def _span(text: str) -> float | None:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([mhd])", text.strip().lower())
    return float(match[1]) * {"m": 1 / 60, "h": 1.0, "d": 24.0}[match[2]] if match else None


def parse_deadline(text: str, now: datetime) -> float:
    """`24h`, `90m`, `1d` or an ISO time -> hours from now, above 0 and at most a year; raises `RequestError`."""
    hours = _span(text)
    if hours is None:
        hours = _until(text, now)
    if hours <= 0:
        raise RequestError(f"the deadline {text[:80]} has passed", "choose a later one")
    if hours > MAX_HOURS:
        raise RequestError(
            f"the deadline {text[:80]} is more than a year away", "give one within 366 days, or leave it out"
        )
    return hours


def _until(text: str, now: datetime) -> float:
    """Hours from now to an ISO time, negative for the past; raises `RequestError`."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise RequestError(
            f"{text[:80]!r} is not a deadline", "write a duration (24h, 90m, 1d) or a time (2026-11-25T08:00)"
        ) from None
    try:
        moment = moment.astimezone() if moment.tzinfo is None else moment
        return (moment.astimezone(UTC) - now) / timedelta(hours=1)
    except (ValueError, OverflowError, OSError):  # near the first and last year a time zone may overflow the calendar
        return math.inf if moment.year > now.year else -math.inf


def parse_moment(text: str) -> datetime | None:
    """An ISO time, in this machine's time zone if it has none; None for anything else."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


_CLOUD_RUN = re.compile(r"[a-zA-Z]([-_.a-zA-Z0-9]*[a-zA-Z0-9])?")
"""Cluster names that SkyPilot 0.14.1 accepts; they begin with the job's name (a test compares). A job with an invalid
name is submitted anyway, and ends FAILED_PRECHECKS."""


def check_cloud_run_name(name: str) -> str:
    """Check a run name for use in a cloud; raises `InvalidName` or `RequestError` with the nearest valid one.

    Local runs only need `check_run_name`.
    """
    if not is_run_name(name):
        raise InvalidName(
            f"{name!r} is not a run name",
            "use a lower-case letter, then lower-case letters, digits and dashes, at most 63 in all, for example "
            f"--name {cloud_run_name(suggest_run_name(name))}",
        )
    if cloud_run_name(name) != name:
        raise RequestError(
            f"--name {name!r} can't be used in a cloud: SkyPilot requires names to begin with a letter",
            f"use --name {cloud_run_name(name)}",
        )
    return name


def cloud_run_name(name: str) -> str:
    """The nearest name that SkyPilot accepts."""
    return name if _CLOUD_RUN.fullmatch(name) else f"run-{name}"[:63].rstrip("-")


def check_cloud_bucket(bucket: str | None) -> str:
    """Check that machines in a cloud can reach a bucket; raises `RequestError`."""
    if bucket is None or not is_remote(bucket):
        raise RequestError(
            "a cloud run needs a bucket that its machines can reach"
            + ("" if bucket is None else f", and {bucket!r} is not one"),
            f"give --bucket {' or '.join(row.example for row in BACKENDS)}, or set NOTUS_BUCKET",
        )
    return bucket


def check_market(clouds: Sequence[str], market: Market) -> None:
    """Refuse a market that a cloud doesn't have. Raises `RequestError`."""
    for name in clouds:
        if market == "spot" and name in CLOUDS and not CLOUDS[name].has_spot:
            spot = _join(traits.name for traits in CLOUDS.values() if traits.has_spot)
            raise RequestError(
                f"{CLOUDS[name].label} has no spot machines",
                f"use --on-demand, or a cloud that has spot: {spot}",
            )


def choose_market(*, spot: bool, on_demand: bool, auto: bool) -> Market:
    """The market from three flags; raises `RequestError` if more than one is set."""
    if spot + on_demand + auto > 1:
        raise RequestError("--spot, --on-demand and --auto are mutually exclusive", "give one; --auto is the default")
    return "spot" if spot else "on-demand" if on_demand else "auto"


def refuse_before_subcommand(given: Sequence[str], subcommand: str, known: Collection[str]) -> None:
    """Refuse launch options before a subcommand, which would ignore them. Raises `RequestError`.

    For example, `stop` would end a run in the default bucket although `--bucket` names another.
    """
    if not given:
        return
    usable = [name for name in given if name in known]
    useless = [name for name in given if name not in known]
    hints = [f"write {', '.join(usable)} after it: notus-launch {subcommand} ... {usable[0]} ..."] if usable else []
    hints += [f"remove {', '.join(useless)}: `notus-launch {subcommand}` has no such option"] if useless else []
    raise RequestError(
        f"{', '.join(given)} before {subcommand!r} would have no effect: launch options don't apply to subcommands",
        "; ".join(hints),
    )


def refuse_cloud_options(
    request: LaunchRequest, *, dry_run: bool, explain: bool = False, show_task: bool = False
) -> None:
    """Refuse options that have no meaning on this machine; raises `RequestError`."""
    given = {
        "--dry-run": dry_run,
        "--explain": explain,
        "--show-task": show_task,
        "--gpus": bool(request.gpus),
        "--spot/--on-demand": request.market != "auto",
        "--deadline": request.deadline_h is not None,
        "--budget": request.budget_usd is not None,
        "--hours": request.hours is not None,
        "--hazard": request.hazard_h is not None,
        "--trust-prices": request.trust_prices,
    }
    useless = [name for name, is_given in given.items() if is_given]
    if useless:
        raise RequestError(
            f"{', '.join(useless)} can't be used with --cloud local: there are no offers to choose from",
            "leave it out, or name a cloud",
        )


def refuse_local_options(preempt: int, compare: bool | None, seed: int | None, processes: int | None) -> None:
    """Refuse options that only apply to `--cloud local`; raises `RequestError`."""
    if preempt or not (compare is seed is processes is None):
        raise RequestError(
            "--preempt, --compare, --seed and --processes only work with --cloud local",
            "add --cloud local, or leave them out",
        )


def _join(names: object) -> str:
    return ", ".join(names)  # type: ignore[arg-type]

"""`notus-launch prices`: node prices, which of them look wrong, and what has changed."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict

from checkpoints.errors import UserError
from checkpoints.util.command_line import console
from launcher.catalog.gpu_nodes import Gpus
from launcher.catalog.offers import Catalog, Offer, by_kind, find_catalog, load_offers, shipped_catalog
from launcher.cli_options import PricesAction
from launcher.console import counted, echo
from launcher.errors import NothingFits
from launcher.report.plan_tables import offers_table
from launcher.report.tables import plain_table
from launcher.request import LaunchRequest
from launcher.sky import catalog as skys
from trainer.config.clouds import CLOUDS
from trainer.config.gpu_types import GPU_TYPES

SHOWN = 40
COUNT = 8


class Change(BaseModel):
    """The cheapest trusted price of a kind of node, before and now; None = not offered."""

    model_config = ConfigDict(frozen=True)

    cloud: str
    gpus: str
    spot: bool
    before: float | None
    now: float | None

    @property
    def share(self) -> float | None:
        """Relative change: 0.1 = 10 % more expensive."""
        return self.now / self.before - 1 if self.before and self.now else None


def prices(action: PricesAction, request: LaunchRequest, output: str) -> int:
    """Show, refresh or compare prices."""
    if action == "show":
        _show_offers(find_catalog(), request, output)
    elif action == "diff":
        changes = compare(_offers(shipped_catalog(), request), _offers(find_catalog(), request))
        _show_changes(changes, f"{shipped_catalog().source} -> {find_catalog().source}", output)
    else:
        old = _offers(find_catalog(), request)
        outcome = skys.refresh(request.clouds or tuple(CLOUDS), echo)
        fetched = any(state == skys.FETCHED for state in outcome.values())
        now = _offers(find_catalog(), request) if fetched else old
        _show_changes(compare(old, now), "before -> after the refresh" if fetched else None, output, outcome)
        return 0 if fetched else 1
    return 0


def compare(before: Sequence[Offer], now: Sequence[Offer]) -> list[Change]:
    """The changes by kind, without kinds whose price is unchanged."""

    def cheapest(offers: Sequence[Offer]) -> Mapping[tuple[str, str, bool], float]:
        firsts = (group[0] for group in by_kind(offers))
        return {(offer.cloud, offer.gpus, offer.spot): offer.price_usd_per_hour for offer in firsts}

    old, new = cheapest(before), cheapest(now)
    changes = [
        Change(cloud=cloud, gpus=gpus, spot=spot, before=old.get((cloud, gpus, spot)), now=new.get((cloud, gpus, spot)))
        for cloud, gpus, spot in sorted(old.keys() | new.keys())
    ]
    return [change for change in changes if change.before != change.now]


def _sold(catalog: Catalog, request: LaunchRequest) -> list[Offer]:
    """The offers to show; raises `NothingFits` or `UserError` if there are none."""
    wanted = request.gpus or tuple(Gpus(name, COUNT) for name in GPU_TYPES)
    offers = load_offers(catalog, wanted, request.clouds or tuple(CLOUDS))
    matching = [offer for offer in offers if request.market == "auto" or offer.spot == (request.market == "spot")]
    if not matching:
        other = "--on-demand" if request.market == "spot" else "--spot"
        raise NothingFits(f"no {request.market} offer among {len(offers)} ({catalog.source})", f"try {other}")
    return matching


def _offers(catalog: Catalog, request: LaunchRequest) -> list[Offer]:
    """One side of a comparison, which may be empty, or unreadable before it is fetched."""
    try:
        return _sold(catalog, request)
    except (NothingFits, UserError) as error:
        echo(error.message)
        return []


def _show_offers(catalog: Catalog, request: LaunchRequest, output: str) -> None:
    """Show offers, with the age of the lists."""
    offers = _sold(catalog, request)
    clouds, now = request.clouds or tuple(CLOUDS), datetime.now(UTC)
    _show(offers, catalog.described(clouds, now), catalog.warnings(clouds, now), output)


def _show(offers: Sequence[Offer], source: str, warnings: Sequence[str], output: str) -> None:
    if output == "json":
        data = {"source": source, "warnings": warnings, "offers": [offer.model_dump(mode="json") for offer in offers]}
        sys.stdout.write(json.dumps(data, indent=2) + "\n")
        return
    screen = console()
    screen.print(offers_table(offers, SHOWN))
    screen.print(f"\n{source}; {_doubts(offers)}", soft_wrap=True, highlight=False)
    for warning in warnings:
        screen.print(f"warning: {warning}", soft_wrap=True, highlight=False)


def _doubts(offers: Sequence[Offer]) -> str:
    flagged = [number for number, offer in enumerate(offers) if offer.flags]
    if not flagged:
        return "no price looks wrong"
    above = sum(number < SHOWN for number in flagged)
    where = "" if above == len(flagged) else f", {above} of them above (-o json has all)"
    return f"{counted(len(flagged), 'price')} look{'s' if len(flagged) == 1 else ''} wrong{where}: never recommended"


def _show_changes(
    changes: Sequence[Change], title: str | None, output: str, outcome: Mapping[str, str] | None = None
) -> None:
    """Show the table of changes; without a title nothing was compared."""
    if output == "json":
        data = {"changes": [change.model_dump() for change in changes], "refreshed": outcome}
        sys.stdout.write(json.dumps(data, indent=2) + "\n")
        return
    screen = console()
    for cloud, state in (outcome or {}).items():
        screen.print(f"{cloud}: {state}", highlight=False)
    if title is None:
        return
    if not changes:
        screen.print(f"no cheapest price has changed ({title})", soft_wrap=True, highlight=False)
        return
    screen.print(f"{title}\n", soft_wrap=True, highlight=False)
    table = plain_table()
    for name in ("cloud", "GPUs", "market", "before", "now", "change"):
        table.add_column(name, justify="right" if name in ("before", "now", "change") else "left")
    for change in changes:
        share = "new" if change.before is None else "gone" if change.now is None else f"{change.share or 0:+.0%}"
        market = "spot" if change.spot else "on demand"
        table.add_row(change.cloud, change.gpus, market, _usd(change.before), _usd(change.now), share)
    screen.print(table)


def _usd(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"

"""A run's report: its receipt and its results, read from the bucket, shown, and kept as a page."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from checkpoints.errors import NotusError, UserError
from checkpoints.run_log.event_log import Event, read_events
from checkpoints.run_log.metrics import read_metrics
from checkpoints.run_log.run_record import read_heartbeat
from checkpoints.storage.base import Store
from checkpoints.util.command_line import console
from launcher.catalog.gpu_nodes import parse_gpus
from launcher.catalog.offers import Offer, cheapest_by_kind, find_catalog, load_offers
from launcher.console import echo
from launcher.planning.user_history import record_run
from launcher.report.page.page_data import make_page
from launcher.report.page.render import render_page
from launcher.report.receipt import Receipt, make_receipt
from launcher.report.results import KeptRows, Results, kept_rows, make_results
from launcher.report.run_tables import receipt_panel
from launcher.report.status import ABANDONED, read_status
from trainer.config.recipe import Recipe
from trainer.runtime.attempt_dir import replace_file

PAGE = "report.html"
"""In the run's folder of the bucket, once it has ended."""


class Report(NamedTuple):
    """What is known of a run, in figures."""

    receipt: Receipt
    results: Results
    events: Sequence[Event]
    rows: KeptRows
    read_at: datetime

    def as_json(self) -> dict[str, Any]:
        """The receipt, with the results under a key of their own."""
        return {**self.receipt.model_dump(mode="json"), "results": self.results.model_dump(mode="json")}

    def as_html(self) -> bytes:
        """The page, with the prices of machines on demand as they are listed now."""
        price = _on_demand_usd_per_hour(self.receipt)
        page = make_page(self.receipt, self.results, self.events, self.rows, self.read_at, on_demand_usd_per_hour=price)
        return render_page(page).encode()


def read_report(store: Store, name: str, recipe: Recipe | None = None) -> Report:
    """Read a run's report from the bucket. Its spot market statistics are recorded for later plans."""
    events, metrics, now = read_events(store), read_metrics(store), datetime.now(UTC)
    record_run(store.url, events, now)
    abandoned = bool(events) and read_status(store, name, now).state == ABANDONED
    until = _last_sign(store, events) if abandoned else now
    receipt = make_receipt(name, events, metrics, priced_offers(recipe), until, abandoned=abandoned)
    rows = kept_rows(metrics)
    return Report(receipt, make_results(events, rows), events, rows, now)


def _on_demand_usd_per_hour(receipt: Receipt) -> float | None:
    """The lowest trusted price on demand of a node that the run used; None if it used none, or no list has it."""
    nodes = [parse_gpus(node) for node in {machine.gpus for machine in receipt.machines}]
    try:
        offers = load_offers(find_catalog(), nodes) if nodes else []
    except NotusError:
        return None
    return min((offer.price_usd_per_hour for offer in offers if not offer.spot and offer.usable()), default=None)


def _last_sign(store: Store, events: Sequence[Event]) -> datetime:
    beat = read_heartbeat(store)
    return max([event.time for event in events] + ([beat.time] if beat else []))


def priced_offers(recipe: Recipe | None) -> list[Offer]:
    """The cheapest trusted offers to price machine hours with: the recipe's node, or 8x A100."""
    node = recipe.hardware.gpus if recipe and recipe.hardware.gpus else None
    wanted = [parse_gpus(node)] if node else [parse_gpus("A100:8"), parse_gpus("A100-80GB:8")]
    try:
        return cheapest_by_kind(load_offers(find_catalog(), wanted))[:6]
    except NotusError:
        return []


def print_report(report: Report, output: str) -> None:
    """Print a report to stdout."""
    if output == "json":
        sys.stdout.write(json.dumps(report.as_json(), indent=2) + "\n")
    else:
        console().print(receipt_panel(report.receipt, report.results))


def check_page(path: Path) -> None:
    """Raises `UserError` if no page can be written there."""
    if path.is_dir():
        raise UserError(f"--html {path} is a folder", f"name a file: --html {path / 'report.html'}")
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--html {path} is not an HTML file", "name a file that ends in .html")
    if not path.parent.is_dir():
        raise UserError(f"--html {path}: there is no folder {path.parent}", "create it, or name another file")


def write_page(report: Report, path: Path) -> None:
    """Write the report as a page. Raises `UserError` if the file can't be written."""
    try:
        replace_file(path, report.as_html())
    except OSError as error:
        raise UserError(f"--html {path}: {error.strerror or error}", "name a file that can be written") from error


def keep_page(store: Store, report: Report) -> None:
    """Put the page into the run's folder of the bucket; a failure is only logged, because the run has ended."""
    try:
        store.put(PAGE, report.as_html())
    except NotusError as error:
        echo(f"the report is not in the bucket: {error.message}")
    else:
        echo(f"the report is in {store.url}/{PAGE}")

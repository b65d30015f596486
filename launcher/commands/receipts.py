"""Read and show a run's receipt."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from checkpoints.errors import NotusError
from checkpoints.run_log.event_log import Event, read_events
from checkpoints.run_log.metrics import read_metrics
from checkpoints.run_log.run_record import read_heartbeat
from checkpoints.storage.base import Store
from checkpoints.util.command_line import console
from launcher.catalog.gpu_nodes import parse_gpus
from launcher.catalog.offers import Offer, cheapest_by_kind, find_catalog, load_offers
from launcher.planning.user_history import record_run
from launcher.report.receipt import Receipt, make_receipt
from launcher.report.run_tables import receipt_panel
from launcher.report.status import ABANDONED, read_status
from trainer.config.recipe import Recipe


def read_receipt(store: Store, name: str, recipe: Recipe | None = None) -> Receipt:
    """The receipt of a run, from the bucket. Its spot market statistics are recorded for later plans."""
    events, now = read_events(store), datetime.now(UTC)
    record_run(store.url, events, now)
    abandoned = bool(events) and read_status(store, name, now).state == ABANDONED
    until = _last_sign(store, events) if abandoned else now
    return make_receipt(name, events, read_metrics(store), priced_offers(recipe), until, abandoned=abandoned)


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


def show_receipt(receipt: Receipt, output: str) -> None:
    """Print a receipt to stdout."""
    if output == "json":
        sys.stdout.write(receipt.model_dump_json(indent=2) + "\n")
    else:
        console().print(receipt_panel(receipt))

"""The figures of a scenario: measured, printed at the end of the session, never asserted on."""

from __future__ import annotations

import json
from typing import Any

from launcher.offers import find_catalog, load_offers
from launcher.request import parse_gpus
from tests.e2e.clouds import Clouds
from tests.e2e.runs import CloudRun

MEASURED: dict[str, dict[str, Any]] = {}


def measure(clouds: Clouds, run: CloudRun) -> None:
    """Note how a run that was preempted once came back, and what its machines cost at real prices."""
    world = clouds.state()
    mine = [machine for machine in world["machines"] if machine["name"].startswith(run.name)]
    mine.sort(key=lambda machine: machine["started_at"])
    killed_at = mine[0]["ended_at"]
    first_step = next(
        event.time.timestamp() for event in run.events() if event.kind == "training" and event.attempt == 2
    )
    asked = [e for e in world["events"] if e["kind"] in ("stock-out", "launch") and e["time"] > killed_at]
    MEASURED[run.name] = {
        "kill to first resumed step, s": round(first_step - killed_at, 1),
        "kill to next machine, s": round(mine[1]["started_at"] - killed_at, 1),
        "places asked until one had a machine": [e["kind"] for e in asked].index("launch") + 1,
        "machines": [f"{machine['kind']} in {machine['place']}" for machine in mine],
        "cost, $": round(sum(_cost(machine) for machine in mine), 3),
        "wall, s": round(mine[-1]["ended_at"] - mine[0]["started_at"], 1),
    }


def report() -> str:
    """All figures, as JSON."""
    return json.dumps(MEASURED, indent=2)


def _cost(machine: dict[str, Any]) -> float:
    offers = load_offers(find_catalog({}), [parse_gpus("A100:8")], (machine["cloud"],))
    spot = machine["kind"] == "SPOT"
    price = next(o.price_usd_per_hour for o in offers if machine["place"] in (o.zone, o.region) and o.spot == spot)
    return float((machine["ended_at"] - machine["started_at"]) / 3600 * price)

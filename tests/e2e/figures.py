"""The figures of recoveries: measured, printed at the end of the session side by side, never asserted on but for zones.

A recovery has four spans. Noticing the loss is SkyPilot's, whatever the strategy; from then on to a machine it is the
strategy's; then comes the set-up of the machine, and then the trainer's own start, the same for all.
"""

from __future__ import annotations

import json
from typing import Any

from launcher.catalog.gpu_nodes import parse_gpus
from launcher.catalog.offers import find_catalog, load_offers
from tests.e2e.clouds import Clouds
from tests.e2e.runs import CloudRun

MEASURED: dict[str, dict[str, Any]] = {}


def measure(clouds: Clouds, run: CloudRun) -> dict[str, Any]:
    """Note how a run that was preempted once came back, and what its machines cost at real prices."""
    world = clouds.state()
    first, second = sorted(
        (machine for machine in world["machines"] if machine["name"].startswith(run.name)),
        key=lambda machine: machine["started_at"],
    )
    killed_at, machine_at = first["ended_at"], second["started_at"]
    noticed_at = run.recovering_at()
    began_at, step_at = (
        next(event.time.timestamp() for event in run.events() if event.kind == kind and event.attempt == 2)
        for kind in ("attempt_started", "training")
    )
    MEASURED[run.name] = {
        "killed to noticed, s": round(noticed_at - killed_at, 1),
        "noticed to machine, s": round(machine_at - noticed_at, 1),
        "machine to attempt, s": round(began_at - machine_at, 1),
        "attempt to first resumed step, s": round(step_at - began_at, 1),
        "killed to first resumed step, s": round(step_at - killed_at, 1),
        "places asked until one had a machine": len(places_asked(clouds, run, since=killed_at)),
        "machines": [f"{machine['kind']} in {machine['place']}" for machine in (first, second)],
        "cost, $": round(_cost(first) + _cost(second), 3),
        "wall, s": round(second["ended_at"] - first["started_at"], 1),
    }
    return MEASURED[run.name]


def places_asked(clouds: Clouds, run: CloudRun, *, since: float) -> list[str]:
    """Where a machine was asked for from a moment on, up to the first that there was."""
    asked: list[str] = []
    for event in clouds.state()["events"]:
        mine = event["kind"] in ("stock-out", "quota", "launch") and event["name"].startswith(run.name)
        if mine and event["time"] > since:
            asked.append(f"{event['place']}/{event['machine_kind']}")
            if event["kind"] == "launch":
                break
    return asked


def report() -> str:
    """All figures, as JSON, and ours over SkyPilot's where both were measured."""
    ours, theirs = (MEASURED.get(f"killed-{name}") for name in ("notus", "eager-next-region"))
    ratios = {}
    if ours and theirs:
        names = ("noticed to machine, s", "killed to first resumed step, s", "places asked until one had a machine")
        ratios = {f"ours over SkyPilot's: {name}": round(ours[name] / max(theirs[name], 0.1), 3) for name in names}
    return json.dumps({**MEASURED, **ratios}, indent=2)


def _cost(machine: dict[str, Any]) -> float:
    offers = load_offers(find_catalog({}), [parse_gpus("A100:8")], (machine["cloud"],))
    spot = machine["kind"] == "SPOT"
    price = next(o.price_usd_per_hour for o in offers if machine["place"] in (o.zone, o.region) and o.spot == spot)
    return float((machine["ended_at"] - machine["started_at"]) / 3600 * price)

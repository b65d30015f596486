"""A run's diary as lines for people."""

from __future__ import annotations

from checkpoints.events import Event
from launcher.policy.history import place_of


def line_of(event: Event) -> str | None:
    """An event in one line; None for what isn't worth one."""
    data = event.data
    match event.kind:
        case "decided":
            return f"{data['action']}: {data['reason']}" + (f"; first {data['first']}" if "first" in data else "")
        case "machine_up":
            place = place_of(data["place"])
            return f"machine: {place}, ${place.price_usd_per_hour:.2f}/h"
        case "machine_gone":
            return f"machine gone ({data['why']}): {place_of(data['place'])}"
        case "no_capacity":
            reasons = "; ".join(data["reasons"][:3]) or "no reason given"
            return f"no machine in {len(data['places'])} places: {reasons}"
        case "false_recovery":
            return "SkyPilot took the machine for dead, but it trains: nothing is restarted"
        case "alarm":
            return f"no new step for {data['stuck_s'] / 60:.0f} min (step {data['step']}, {data['phase']})"
        case "resumed":
            return f"attempt {event.attempt} goes on from step {data['step']}"
        case "training":
            links = "".join(f"; {link}" for link in data.get("links", ()))
            return f"attempt {event.attempt}: first step done ({data['step']}/{data['total_steps']}){links}"
        case "notice":
            return f"attempt {event.attempt}: told to stop ({data['source']}); saving"
        case "attempt_ended":
            said = f": {data['message']}" if data.get("message") else ""
            return f"attempt {event.attempt} ended at step {data['step']}: {data['outcome']}{said}"
        case "stopped":
            return f"stopped: {data.get('reason') or 'on request'}; the state is saved"
    return None

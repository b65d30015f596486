"""The model card: the README of a finished run's model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from checkpoints.errors import CorruptCheckpoint
from checkpoints.events import Event, read_events
from checkpoints.machines import machines_of, told_by
from checkpoints.run import RunRecord, read_run
from checkpoints.store import Store


def card_at_the_end(store: Store, attempt: int) -> str:
    """The card of a run whose `attempt` has just trained its last step. Raises `NotusError`."""
    record = read_run(store)
    if record is None:
        raise CorruptCheckpoint(f"{store.url} has no run.json")
    return model_card(record, read_events(store), merged=False, running=attempt)


def model_card(record: RunRecord, events: Sequence[Event], *, merged: bool, running: int | None = None) -> str:
    """What a reader of the model has to know: data, settings, how often it was preempted.

    `running` is the attempt that writes this card at its end.
    """
    recipe = record.recipe
    what = "merged into one model" if merged else "adapters only" if recipe["method"] == "lora" else "all weights"
    settings = json.dumps({name: recipe[name] for name in ("dpo", "training", "zero", "lora")}, indent=2)
    base, data = recipe["model"]["name"], recipe["dataset"]["name"]
    if data.startswith("/"):  # where a file lay on some machine is nobody's business
        data = Path(data).name
    return f"""---
base_model: {base}
datasets:
- {data}
tags:
- dpo
- notus-launch
---

# {record.name}

DPO of `{base}` on `{data}` ({what}).

{history(events, running=running)} By notus-launch {record.versions.get("notus-launch", "")}:
a run that was preempted gives the same weights as one that never was.

```json
{settings}
```
"""


def history(events: Sequence[Event], *, running: int | None = None) -> str:
    """How often it was preempted, on what it ran, what that cost: two sentences."""
    started = sorted({event.attempt for event in events if event.kind == "attempt_started"})
    preempted = sum(_was_preempted(attempt, events) for attempt in started if attempt != running)
    trained = f"Trained in {len(started)} {'attempt' if len(started) == 1 else 'attempts'} ({preempted} preempted)"
    machines = machines_of(events)
    if not machines:
        return f"{trained}."
    kinds = sorted({_kind(machine.place) for machine in machines})
    cost_usd = sum(machine.cost_usd(now=events[-1].time) for machine in machines)
    return f"{trained} on {', '.join(kinds)}. The machines cost ${cost_usd:.2f} at list prices."


def _was_preempted(attempt: int, events: Sequence[Event]) -> bool:
    """As the receipt says it. A machine that is taken away without a word leaves an attempt without an end."""
    mine = [event for event in events if event.attempt == attempt]
    outcomes = [event.data.get("outcome") for event in mine if event.kind == "attempt_ended"]
    if not outcomes:
        return True
    return (
        outcomes[-1] == "preempted" and told_by([e.data["source"] for e in mine if e.kind == "notice"]) == "preempted"
    )


def _kind(place: Mapping[str, Any]) -> str:
    return f"{place['cloud']} {'spot' if place['spot'] else 'on demand'} {place['gpus']}"

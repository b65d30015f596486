"""The model card: the README of a finished run's model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from checkpoints.errors import CorruptCheckpoint
from checkpoints.run_log.event_kinds import AttemptEnded, AttemptStarted, DataPrepared, Notice, PlaceRecord
from checkpoints.run_log.event_log import Event, of_kind, read_events
from checkpoints.run_log.machine_history import machines_of, told_by
from checkpoints.run_log.run_record import RunRecord
from checkpoints.storage.base import Store
from trainer.config.fingerprint import Base, base_revision
from trainer.config.recipe import BUILTIN, Source
from trainer.config.run_pins import run_record
from trainer.data.preference_pairs import HUB_NAME
from trainer.data.raw_rows import first_places


def card_at_the_end(store: Store, attempt: int, base: Base) -> str:
    """The card of a run whose `attempt` has just trained its last step. Raises `NotusError`."""
    record = run_record(store)
    if record is None:
        raise CorruptCheckpoint(f"{store.url} has no run.json")
    return model_card(record, read_events(store), base, merged=False, running=attempt)


def model_card(
    record: RunRecord, events: Sequence[Event], base: Base | None, *, merged: bool, running: int | None = None
) -> str:
    """What users of the model should know: data, settings, how often it was preempted.

    Contains no local paths: they are private, and the Hub refuses metadata that names a model it doesn't have.

    Args:
        record: the run.
        events: its diary.
        base: the identity of its base model; None for an older run.
        merged: are the adapters merged into the model?
        running: the attempt that writes this card at its end.
    """
    recipe = record.recipe
    adapters = recipe["method"] == "lora" and not merged
    what = "merged into one model" if merged else "adapters only" if adapters else "all weights"
    settings = json.dumps({name: recipe[name] for name in ("dpo", "training", "zero", "lora")}, indent=2)
    sources = [recipe["dataset"], *recipe["dataset"].get("also", ())]
    return f"""{_metadata(recipe["model"]["name"], base, sources, adapters=adapters)}
# {record.name}

DPO of {_model(recipe["model"], base)} on {", ".join(map(_source, sources))} ({what}).{_left_out(events)}

{history(events, running=running)} By notus-launch {record.versions.get("notus-launch", "")}:
a run that was preempted gives the same weights as one that never was.

```json
{settings}
```
"""


def _left_out(events: Sequence[Event]) -> str:
    """Rows that were not trained on, by reason, with the first of their positions."""
    prepared = [data for _, data in of_kind(events, DataPrepared)]
    if not prepared or not prepared[-1].left_out:
        return ""
    reasons = "; ".join(
        f"{found.rows}: {found.reason}" + (f" ({first_places(found)})" if found.where else "")
        for found in prepared[-1].left_out
    )
    return f" Of its {prepared[-1].rows} rows these were left out: {reasons}."


def _metadata(name: str, base: Base | None, sources: Sequence[Mapping[str, Any]], *, adapters: bool) -> str:
    """The card's YAML."""
    lines = [f"base_model: {name}"] if _base_on_the_hub(name, base) else []
    lines.append(f"library_name: {'peft' if adapters else 'transformers'}")
    if known := list(dict.fromkeys(source["name"] for source in sources if _set_on_the_hub(source["name"]))):
        lines += ["datasets:", *(f"- {name}" for name in known)]
    return "\n".join(["---", *lines, "tags:", "- dpo", "- notus-launch", "---", ""])


def _model(model: Mapping[str, Any], base: Base | None) -> str:
    """The base model and its revision."""
    name, revision = public_base(model["name"], model.get("revision"), base)
    return f"`{name}`" + (f" (revision `{revision}`)" if revision else "")


def public_base(name: str, revision: str | None, base: Base | None) -> tuple[str, str | None]:
    """Public name and revision of the base model; for a local folder only its name, without a revision."""
    if _base_on_the_hub(name, base):
        return name, base_revision(base, revision)
    return _last_part(name), None


def _source(source: Mapping[str, Any]) -> str:
    """A data set with its share, split and revision."""
    on_the_hub = _set_on_the_hub(source["name"])
    details = [f"{source['fraction']:.4g} of its rows"] if source.get("fraction", 1) != 1 else []
    if on_the_hub and source.get("split", "train") != "train":
        details.append(f"split `{source['split']}`")
    if on_the_hub and source.get("revision"):
        details.append(f"revision `{source['revision']}`")
    name = source["name"] if on_the_hub else _last_part(source["name"])
    return f"`{name}`" + (f" ({', '.join(details)})" if details else "")


def _base_on_the_hub(name: str, base: Base | None) -> bool:
    """Is the base model on the Hub? A local folder may have such a name too, but then the run recorded no commit."""
    local = base is not None and base.get("weights") and not base.get("commit")
    return not local and HUB_NAME.fullmatch(name) is not None


def _set_on_the_hub(name: str) -> bool:
    return Source(name=name).file_name is None and HUB_NAME.fullmatch(name) is not None


def _last_part(name: str) -> str:
    """The last part of a path; a built-in name is unchanged."""
    return name if name.startswith(BUILTIN) else Path(name).name


def history(events: Sequence[Event], *, running: int | None = None) -> str:
    """How often the run was preempted, on which machines it ran and their cost, in one or two sentences."""
    started = sorted({event.attempt for event, _ in of_kind(events, AttemptStarted)})
    preempted = sum(_was_preempted(attempt, events) for attempt in started if attempt != running)
    trained = f"Trained in {len(started)} {'attempt' if len(started) == 1 else 'attempts'} ({preempted} preempted)"
    machines = machines_of(events)
    if not machines:
        return f"{trained}."
    kinds = sorted({_kind(machine.place) for machine in machines})
    cost_usd = sum(machine.cost_usd(now=events[-1].time) for machine in machines)
    return f"{trained} on {', '.join(kinds)}. The machines cost ${cost_usd:.2f} at list prices."


def _was_preempted(attempt: int, events: Sequence[Event]) -> bool:
    """Was the attempt preempted, as on the receipt? A machine taken away without notice leaves it without an end."""
    mine = [event for event in events if event.attempt == attempt]
    outcomes = [ended.outcome for _, ended in of_kind(mine, AttemptEnded)]
    if not outcomes:
        return True
    sources = [notice.source for _, notice in of_kind(mine, Notice)]
    return outcomes[-1] == "preempted" and told_by(sources) == "preempted"


def _kind(place: PlaceRecord) -> str:
    return f"{place.cloud} {'spot' if place.spot else 'on demand'} {place.gpus}"

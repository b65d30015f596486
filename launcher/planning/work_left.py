"""How far a run is, for a plan of the rest: the share of its work that is left, and the money that it has spent."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from checkpoints.run_log.event_log import Event
    from checkpoints.storage.base import Store

LEAST_SHARE = 0.001
"""A run whose steps are all done still needs a machine, for its export."""


class SoFar(NamedTuple):
    """Of a run; the default is one that hasn't begun."""

    share_left: float = 1.0
    """Of all its steps, those that no committed checkpoint has."""
    spent_usd: float = 0.0
    """On machines and restores."""
    machine_h: float = 0.0
    """That it had machines."""
    pause_h: float = 0.0
    """Since its first machine, without one: its checkpoints are kept meanwhile."""

    def paid_usd(self, *, store_usd_per_h: float, keep_usd_per_h: float) -> float:
        """What counts against the budget: the figure that the strategy will book (`launcher.policy.observe.paid_usd`).

        The diary knows no rates: those are the ones of the launch that is planned, for the time before it too.
        """
        return self.spent_usd + self.machine_h * store_usd_per_h + self.pause_h * keep_usd_per_h


NOT_BEGUN = SoFar()


def so_far(store: Store, now: datetime) -> SoFar:
    """From its diary."""
    from checkpoints.run_log.event_log import read_events  # the dry run of a new run reads no bucket, and has a second
    from launcher.policy.run_history import hours_of, machines, spent_usd

    events = read_events(store)
    spells = machines(events)
    if not spells:
        return SoFar(share_left(events))
    machine_h = sum(spell.hours(now) for spell in spells)
    pause_h = max(0.0, hours_of(now - spells[0].since) - machine_h)
    return SoFar(share_left(events), spent_usd(spells, now), machine_h, pause_h)


def share_left(events: Sequence[Event]) -> float:
    """1 for a run that has trained nothing yet."""
    from checkpoints.run_log.event_kinds import Training
    from checkpoints.run_log.event_log import of_kind
    from launcher.policy.run_history import committed_step

    total = max((training.total_steps for _, training in of_kind(events, Training)), default=0)
    done = committed_step(events)
    return max(LEAST_SHARE, 1 - done / total) if total else 1.0

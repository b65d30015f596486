"""Progress of a run, for planning the rest: the share of its work that is left, and the money spent."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from checkpoints.run_log.event_log import Event
    from checkpoints.storage.base import Store

LEAST_SHARE = 0.001
"""A run whose steps are all done still needs a machine, for its export."""


class RunProgress(NamedTuple):
    """Work and money of a run so far; the default is a run that hasn't begun."""

    share_left: float = 1.0
    """Share of its steps that are not in a committed checkpoint."""
    spent_usd: float = 0.0
    """Spent on machines and restores."""
    machine_h: float = 0.0
    """Hours with a machine."""
    pause_h: float = 0.0
    """Hours without a machine since the first one. Its checkpoints are kept meanwhile."""

    def paid_usd(self, *, store_usd_per_h: float, keep_usd_per_h: float) -> float:
        """What counts against the budget, as the strategy will book it (`launcher.policy.observe.paid_usd`).

        The diary has no rates, so those of the planned launch also apply to the time before it.
        """
        return self.spent_usd + self.machine_h * store_usd_per_h + self.pause_h * keep_usd_per_h


NOT_STARTED = RunProgress()


def run_progress(store: Store, now: datetime) -> RunProgress:
    """Read a run's progress from its diary."""
    from checkpoints.run_log.event_log import read_events  # slow import: the dry run of a new run doesn't need it
    from launcher.policy.run_history import hours_of, machines, spent_usd

    events = read_events(store)
    spells = machines(events)
    if not spells:
        return RunProgress(share_left(events))
    machine_h = sum(spell.hours(now) for spell in spells)
    pause_h = max(0.0, hours_of(now - spells[0].since) - machine_h)
    return RunProgress(share_left(events), spent_usd(spells, now), machine_h, pause_h)


def share_left(events: Sequence[Event]) -> float:
    """Share of the work that is left; 1 for a run that has not trained yet."""
    from checkpoints.run_log.event_kinds import Training
    from checkpoints.run_log.event_log import of_kind
    from launcher.policy.run_history import committed_step

    total = max((training.total_steps for _, training in of_kind(events, Training)), default=0)
    done = committed_step(events)
    return max(LEAST_SHARE, 1 - done / total) if total else 1.0

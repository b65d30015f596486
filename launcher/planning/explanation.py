"""Explain the policy: its decision table for a plan, and the plan's cost by deadline."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from launcher.console import counted
from launcher.planning.estimate import START_H
from launcher.planning.plan import Candidate, Plan, SlackCost, ZonePlan
from launcher.policy.safety import kept_h
from launcher.policy.settings import Settings
from launcher.policy.slack import slack_table_for
from launcher.policy.slack_value import Restores
from launcher.policy.spot.market import UNSEEN_AGE_H, Chain, SpotMarket

MARKETS = (
    ("not asked yet", True, UNSEEN_AGE_H),
    ("refused just now", False, 0.0),
    ("refused for 30 min", False, 0.5),
    ("refused for 2 h", False, 2.0),
    ("refused for 6 h", False, 6.0),
    ("refused for 12 h", False, 12.0),
)
SHOWN_ZONES = 4
"""Zones of a market that are shown in detail; the others are only counted."""


class Row(BaseModel):
    """The slack at or below which an on-demand machine is bought, for an amount of work left."""

    model_config = ConfigDict(frozen=True)

    work_left_h: float
    buy_at_slack_h: dict[str, float]
    """By state of the spot market."""


class Explanation(BaseModel):
    """The output of `--explain`."""

    model_config = ConfigDict(frozen=True)

    plan: str
    """The plan that is explained: the recommended one, or the nearest to the limits."""
    rules: tuple[str, ...]
    table: tuple[Row, ...]
    costs: tuple[SlackCost, ...]
    """Costs of the recommended market with other deadlines."""


def explain(plan: Plan, chain: Chain | None, deadline_h: float | None, costs: Sequence[SlackCost]) -> Explanation:
    """Explain a plan: the rules in words, the table if there is a deadline and a choice, and the costs."""
    rows: tuple[Row, ...] = ()
    if chain is not None and deadline_h is not None and len(plan.ladder) > 1:
        rows = _table(plan, chain, deadline_h)
    rules = (*_rules(plan, deadline_h), *_zones(plan), *_starts(plan))
    return Explanation(plan=plan.name, rules=rules, table=rows, costs=tuple(costs))


def _table(plan: Plan, chain: Chain, deadline_h: float) -> tuple[Row, ...]:
    settings = Settings()
    on_demand_usd = plan.on_demand_usd_per_hour or plan.price_usd_per_hour
    ratio = round(plan.price_usd_per_hour / on_demand_usd, 2)
    restores = Restores(*(_restore_usd(plan, candidate) / on_demand_usd for candidate in plan.ladder[:2]))
    table = slack_table_for(plan.work_h, deadline_h - plan.work_h, START_H, ratio, chain, settings, restores)
    safe_h = START_H + kept_h(START_H, settings)
    rows = []
    for share in (1.0, 0.75, 0.5, 0.25, 0.1):
        work_h = plan.work_h * share
        thresholds = {
            name: max(safe_h, table.at(table.buy, work_h, SpotMarket(chain, up, age_h))) for name, up, age_h in MARKETS
        }
        rows.append(Row(work_left_h=work_h, buy_at_slack_h=thresholds))
    return tuple(rows)


def _restore_usd(plan: Plan, candidate: Candidate) -> float:
    return 0.0 if candidate.cloud == plan.bucket_cloud else plan.restore_usd


def _zones(plan: Plan) -> list[str]:
    """The order in which zones are tried, and what is known about each."""
    if not plan.zones:
        return []
    shown = [
        f"{zone.zone} (${zone.price_usd_per_hour:.2f}/h, a machine lives {zone.mean_life_h:.1f} h, {_basis(zone)})"
        for zone in plan.zones[:SHOWN_ZONES]
    ]
    more = len(plan.zones) - len(shown)
    return ["an hour of work is cheapest in " + ", then ".join(shown) + (f", then {more} more" if more else "")]


def _basis(zone: ZonePlan) -> str:
    if zone.basis == "own spells":
        return f"from {counted(zone.own_spells, 'own spell')}"
    if zone.basis == "region":
        return f"from {counted(zone.own_spells, 'own spell')} in its region"
    return {"market": "from own spells in its market", "assumed": "assumed", "--hazard": "from --hazard"}[zone.basis]


def _starts(plan: Plan) -> list[str]:
    """How often a machine is started, and why. Each start but the first restores a checkpoint."""
    again = plan.expected_starts - 1
    if again < 0.05:
        return []
    moves = max(0.0, again - plan.expected_preemptions)
    starts = (
        f"expect {plan.expected_starts:.1f} machine starts on average: the first, "
        f"{plan.expected_preemptions:.1f} after a preemption, {moves:.1f} by moves between spot and on demand"
    )
    egress = f"; restores from another cloud cost ${plan.egress_usd:,.2f} of egress" if plan.egress_usd else ""
    return [starts + egress]


def _rules(plan: Plan, deadline_h: float | None) -> list[str]:
    settings = Settings()
    if not plan.ladder[0].spot:
        return ["on demand from beginning to end: nothing to decide"]
    if len(plan.ladder) < 2:
        return ["spot only: the cheapest zone that has a machine; if none has, wait and try again within 5 min"]
    rules = [
        f"the cheapest spot zone first; a zone that preempted a machine goes last for {settings.cool_h:g} h",
        "on demand: after "
        f"{settings.return_h * 60:.0f} min (doubled after each unsuccessful try) the run is saved and spot is "
        "tried again, as long as the possible saving exceeds the cost of the restarts",
    ]
    if deadline_h is None:
        return [*rules, "no deadline: if no zone has a spot machine, an on-demand machine is bought at once"]
    return [
        *rules,
        "the slack is the time to the deadline minus the work left; at or below the table's figure on demand is "
        "bought, above it the run waits for spot",
        "a spot machine is replaced by an on-demand one before a preemption could miss the deadline",
    ]

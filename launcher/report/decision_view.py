"""The answer of a dry run for a terminal: a label and a sentence each, which wrap and are never cut."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from launcher.planning.decision import Decision, WithoutSpot


def decision_table(decision: Decision) -> Table:
    """The answer in some lines."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, sentence in _lines(decision):
        table.add_row(label, Text(sentence))
    return table


def _lines(decision: Decision) -> list[tuple[str, str]]:
    behind = f", else {decision.fallback}" if decision.fallback else ""
    in_budget, in_time = _chance(decision.in_budget, "budget"), _chance(decision.in_time, "deadline")
    lines = [
        ("recommended", f"{decision.plan}{behind}"),
        ("cost", f"${decision.cost_usd:,.2f} expected, ${decision.cost_p95_usd:,.2f} at 95%{in_budget}"),
        ("done in", f"{decision.finish_h:.1f} h expected, {decision.finish_p95_h:.1f} h at 95%{in_time}"),
    ]
    if decision.saved_usd is not None and decision.on_demand != decision.plan:
        share = decision.saved_usd / decision.on_demand_usd if decision.on_demand_usd else 0.0
        rival = f"the cheapest plan on demand, {decision.on_demand} at ${decision.on_demand_usd:,.2f}"
        lines.append(("saves", f"${decision.saved_usd:,.2f} ({share:.0%}) against {rival}"))
    if decision.without_spot is not None:
        lines.append(("without spot", _without_spot(decision.without_spot, decision.fallback)))
    accounts = [f"{account.label} {'ready' if account.ready else 'MISSING'}" for account in decision.accounts]
    lines.append(("accounts", ", ".join(accounts)))
    return lines


def _chance(chance: float | None, limit: str) -> str:
    return "" if chance is None else f" ({chance:.0%} within the {limit})"


def _without_spot(without: WithoutSpot, fallback: str) -> str:
    if without.cost_usd is None:
        return "nothing is rented and nothing is paid: the run waits for spot"
    when = "" if without.waits_h is None else f" after waiting for up to {without.waits_h:.1f} h"
    budget = ", which is over the budget: it would stop instead" if without.over_budget else ""
    return f"{fallback}{when}: {without.work_h:.1f} h, ${without.cost_usd:,.2f}{budget}"

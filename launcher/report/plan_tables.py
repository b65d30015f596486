"""Dry run output for a terminal: the answer, the plans with their range, and on request what they rest on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from launcher.catalog.offers import Offer
from launcher.console import rounded
from launcher.planning.decision import Decision
from launcher.planning.explanation import Explanation
from launcher.planning.plan import DryRun, Plan
from launcher.report.decision_view import decision_table
from launcher.report.tables import plain_table

SHOWN = 6
"""Plans shown; the others are only counted."""
BAR = 26
NARROW = 80
"""Terminal width in which all figures of a plan fit into one line."""
WIDE = 112
"""Terminal width with room for the bars beside the figures."""


class Extras(NamedTuple):
    """What a dry run shows beside the plans."""

    decision: Decision | None = None
    explanation: Explanation | None = None
    explained: bool = False
    """Show the assumptions, the offers' summary and the policy's rules, too."""
    next_commands: Sequence[tuple[str, str]] = ()
    """What for, and the command."""


def show_dry_run(console: Console, result: DryRun, extras: Extras | None = None) -> None:
    """Show the answer, the plans, what to know about them, and the next command."""
    extras = extras or Extras()
    if extras.decision is not None:
        console.print(decision_table(extras.decision), highlight=False)
    else:
        console.print(Text.assemble("recommended: ", ("none", "bold"), f" ({result.reason})"), soft_wrap=True)
    console.print()
    console.print(_plans_table(result, console.width))
    left_out = len(result.plans) - len(_shown(result))
    if left_out > 0:
        console.print(f"and {left_out} more expensive plans (-o json shows all)", style="dim")
    if any(len(plan.ladder) > 1 for plan in _shown(result)):
        console.print("spot plans fall back on a machine on demand before the deadline is at risk", style="dim")
    if extras.decision is not None:
        console.print(f"why: {result.reason}", highlight=False, soft_wrap=True)
    for line in result.warnings:
        console.print(f"warning: {line}", highlight=False, soft_wrap=True)
    for line in result.advice:
        console.print(f"advice: {line}", highlight=False, soft_wrap=True)
    if extras.explained:
        _show_assumptions(console, result)
        if extras.explanation is not None:
            _show_explanation(console, extras.explanation)
    for what, command in extras.next_commands:
        console.print(f"{what}: {command}", highlight=False, soft_wrap=True)


def _show_assumptions(console: Console, result: DryRun) -> None:
    if result.best is not None:
        best = result.best
        store = f"storage ${best.storage_usd:,.2f} and egress ${best.egress_usd:,.2f}"
        console.print(f"\nof the recommended plan's cost: {store}", highlight=False)
    console.print("\nassumptions")
    for assumption in result.assumptions:
        console.print(f"  - {assumption}", highlight=False, soft_wrap=True)
    if console.width < WIDE:
        console.print(_chart(result))


def _plans_table(result: DryRun, width: int) -> Table:
    """A plan per line. In a narrow terminal fewer figures, and none of them cut."""
    table = plain_table(f"plans for {result.recipe}, {result.work_h:g} h of work")
    shown = _shown(result)
    dearest, chart = _dearest(shown), width >= WIDE
    table.add_column("", no_wrap=True)
    table.add_column("plan", min_width=12)
    table.pad_edge = False  # two more characters for figures
    figures = _figures(shown, width)
    for name in figures:
        table.add_column(name, justify="right")
    if chart:
        table.add_column("cost: p5 to p95", no_wrap=True)
    for plan in shown:
        chosen = plan.name == result.recommended
        cells = ["->" if chosen else "", plan.name, *(figure(plan) for figure in figures.values())]
        if chart:
            cells.append(_bar(plan, dearest))
        table.add_row(*cells, style="bold" if chosen else ("" if plan.within_limits else "dim"))
    table.keep_whole(figures)
    return table


def _figures(shown: Sequence[Plan], width: int) -> dict[str, Callable[[Plan], str]]:
    """The figures for which there is room, by header."""
    figures: dict[str, Callable[[Plan], str]] = {
        "$": lambda plan: rounded(plan.expected_cost_usd, 2),
        "95 % $": lambda plan: rounded(plan.cost_p95_usd, 2),
        "hours": lambda plan: rounded(plan.expected_finish_h, 1),
        "95 % h": lambda plan: rounded(plan.finish_p95_h, 1),
        "preempted": lambda plan: rounded(plan.expected_preemptions, 1),
    }
    if width < NARROW:
        del figures["95 % h"], figures["preempted"]
    if any(plan.deadline_probability is not None for plan in shown):
        figures["in time"] = lambda plan: f"{plan.deadline_probability or 0:.0%}"
    if any(plan.budget_probability is not None for plan in shown):
        figures["in budget"] = lambda plan: f"{plan.budget_probability or 0:.0%}"
    return figures


def _chart(result: DryRun) -> Table:
    """The bars alone, if the table has no room for them."""
    shown = _shown(result)
    table = plain_table(f"\ncost from p5 to p95, 0 to {_dearest(shown):,.0f} $", header=False)
    for plan in shown:
        table.add_row(plan.name, _bar(plan, _dearest(shown)), style="bold" if plan.name == result.recommended else "")
    return table


def _dearest(shown: Sequence[Plan]) -> float:
    return max((plan.cost_p95_usd for plan in shown), default=1.0)


def _shown(result: DryRun) -> list[Plan]:
    """The cheapest plans, and the recommended one."""
    return [plan for number, plan in enumerate(result.plans) if number < SHOWN or plan.name == result.recommended]


def _bar(plan: Plan, dearest: float) -> str:
    """A bar from p5 to p95 on a scale from 0, with the mean as a diamond."""

    def place(value: float) -> int:
        return min(BAR - 1, int(value / dearest * BAR))

    low, mean, high = (place(value) for value in (plan.cost_p5_usd, plan.expected_cost_usd, plan.cost_p95_usd))
    return "".join("◆" if at == mean else "━" if low <= at <= high else " " for at in range(BAR))


def _show_explanation(console: Console, explanation: Explanation) -> None:
    console.print(f"\nhow the policy decides: {explanation.plan}")
    for rule in explanation.rules:
        console.print(f"  - {rule}", highlight=False, soft_wrap=True)
    if explanation.table:
        table = plain_table("\nhours of slack at or below which on demand is bought")
        table.add_column("work left", justify="right")
        for name in explanation.table[0].buy_at_slack_h:
            table.add_column(f"spot {name}", justify="right")
        for row in explanation.table:
            table.add_row(f"{row.work_left_h:.1f} h", *(f"{value:.1f}" for value in row.buy_at_slack_h.values()))
        console.print(table)
    if explanation.costs:
        table = plain_table("\nwhat the same market costs with another deadline")
        for name in ("deadline", "expected $", "p95 $", "finish h", "on demand"):
            table.add_column(name, justify="right")
        table.add_column("", no_wrap=True)
        most = max(cost.expected_cost_usd for cost in explanation.costs)
        for cost in explanation.costs:
            table.add_row(
                f"{cost.deadline_h:.1f} h",
                f"{cost.expected_cost_usd:,.2f}",
                f"{cost.cost_p95_usd:,.2f}",
                f"{cost.expected_finish_h:.1f}",
                f"{cost.on_demand_share:.0%}",
                "█" * round(cost.expected_cost_usd / most * BAR),
            )
        console.print(table)


def offers_table(offers: Sequence[Offer], limit: int = 12) -> Table:
    """The cheapest offers, with flagged ones marked."""
    title = f"cheapest {limit} of {len(offers)} offers" if limit < len(offers) else f"{len(offers)} offers"
    table = plain_table(title)
    for name in ("cloud", "zone", "instance", "GPUs", "market", "$/h", "remarks"):
        table.add_column(name, justify="right" if name == "$/h" else "left")
    for offer in offers[:limit]:
        remarks = list(offer.flags) + ([] if offer.fits else [f"does not fit: {offer.misfit}"])
        table.add_row(
            offer.cloud,
            offer.zone or offer.region,
            offer.instance_type,
            offer.gpus,
            "spot" if offer.spot else "on demand",
            f"{offer.price_usd_per_hour:.2f}",
            "; ".join(remarks + (["PCIe"] if offer.pcie else [])),
            style="dim" if remarks else "",
        )
    return table

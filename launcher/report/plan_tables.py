"""Dry run output for a terminal: offers, plans with their range, the recommendation, its explanation, the task."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from launcher.catalog.offers import Offer
from launcher.console import rounded
from launcher.planning.explanation import Explanation
from launcher.planning.plan import DryRun, Plan
from launcher.report.tables import plain_table
from trainer.config.clouds import CLOUDS

SHOWN = 8
"""Plans shown; the others are only counted."""
BAR = 26
NARROW = 80
"""Terminal width in which all figures of a plan fit into one line."""
WIDE = 108
"""Terminal width with room for the bars beside the figures."""


def show_dry_run(console: Console, result: DryRun, task: str, explanation: Explanation | None = None) -> None:
    """Show the comparison of plans, the recommendation, the assumptions and the task."""
    console.print(offers_table(result.offers))
    console.print()
    wide = console.width >= WIDE
    console.print(_plans_table(result, console.width))
    if not wide:
        console.print(_chart(result))
    left_out = len(result.plans) - len(_shown(result))
    if left_out > 0:
        console.print(f"and {left_out} more expensive plans (-o json shows all)", style="dim")
    recommended = Text.assemble("\nrecommended: ", (result.recommended or "none", "bold"), f" ({result.reason})")
    console.print(recommended, soft_wrap=True)
    if result.best is not None:
        store = f"storage ${result.best.storage_usd:,.2f} and egress ${result.best.egress_usd:,.2f}"
        console.print(f"of its cost: {store}", highlight=False)
    for line in result.warnings:
        console.print(f"warning: {line}", highlight=False, soft_wrap=True)
    for line in result.advice:
        console.print(f"advice: {line}", highlight=False, soft_wrap=True)
    if explanation is not None:
        _show_explanation(console, explanation)
    console.print("\nassumptions")
    for assumption in result.assumptions:
        console.print(f"  - {assumption}", highlight=False, soft_wrap=True)
    console.print("\nSkyPilot task\n")
    console.print(Text(task), soft_wrap=True)


def _plans_table(result: DryRun, width: int) -> Table:
    table = plain_table(f"plans for {result.recipe}, {result.work_h:g} h of work: means, and 95 % upper bounds")
    shown = _shown(result)
    dearest, chart = _dearest(shown), width >= WIDE
    dated = any(plan.deadline_probability is not None for plan in shown)
    limited = any(plan.budget_probability is not None for plan in shown)
    table.add_column("", no_wrap=True)
    table.add_column("plan", min_width=12)
    table.pad_edge = False  # two more characters for figures
    chances = [name for name, given in (("in time", dated), ("in budget", limited)) if given]
    figures = ("$", "95 % $", "hours", "95 % h", "preempted", *chances)
    for name in figures:
        table.add_column(name, justify="right")
    if chart:
        table.add_column("cost: p5 to p95", no_wrap=True)
    for plan in shown:
        chosen = plan.name == result.recommended
        cells = [
            "->" if chosen else "",
            _name(plan),
            rounded(plan.expected_cost_usd, 2),
            rounded(plan.cost_p95_usd, 2),
            rounded(plan.expected_finish_h, 1),
            rounded(plan.finish_p95_h, 1),
            rounded(plan.expected_preemptions, 1),
        ]
        if dated:
            cells.append(f"{plan.deadline_probability or 0:.0%}")
        if limited:
            cells.append(f"{plan.budget_probability or 0:.0%}")
        if chart:
            cells.append(_bar(plan, dearest))
        style = "bold" if chosen else ("" if plan.within_limits else "dim")
        table.add_row(*cells, style=style)
    if width >= NARROW:
        table.keep_whole(figures)
    return table


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


def _name(plan: Plan) -> str:
    return f"{plan.name}, else {CLOUDS[plan.ladder[1].cloud].label} on demand" if len(plan.ladder) > 1 else plan.name


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

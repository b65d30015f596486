"""Receipts, plans and states for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from launcher.offers import Offer
from launcher.plan import DryRun
from launcher.report.receipt import Receipt
from launcher.report.status import RunStatus
from launcher.sky.doctor import Finding


def _table(title: str | None = None, *, header: bool = True) -> Table:
    """A table without lines, as all of ours are."""
    return Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), show_header=header)


def receipt_panel(receipt: Receipt) -> RenderableType:
    """The receipt as a panel."""
    figures = Table.grid(padding=(0, 2))
    figures.add_column(style="bold")
    figures.add_column()
    for label, value in _figures(receipt):
        figures.add_row(label, value)
    parts: list[RenderableType] = [figures, Text(), _attempt_table(receipt)]
    if receipt.machines:
        parts += [Text(), _machine_table(receipt)]
    if receipt.costs:
        parts += [Text(), _cost_table(receipt)]
    return Panel(Group(*parts), title=f"receipt of {receipt.run}", expand=False)


def _figures(receipt: Receipt) -> list[tuple[str, str]]:
    lines = [
        ("state", receipt.state),
        ("attempts", f"{len(receipt.attempts)} ({receipt.preemptions} preempted, {receipt.failures} failed)"),
        ("steps", f"{receipt.steps}, of which {receipt.steps_redone} had to be redone"),
        ("wall time", seconds(receipt.wall_s)),
        (
            "time lost",
            f"{seconds(receipt.lost_to_preemptions_s)} to preemptions "
            f"(redone steps {seconds(receipt.redone_s)}, start-ups and waiting the rest)",
        ),
        ("saves", f"{receipt.saves}, training stood still for {seconds(receipt.saving_s)}"),
        ("goodput", f"{receipt.goodput:.0%} of the wall time went into steps that were kept"),
    ]
    if receipt.damaged_checkpoints:
        lines.append(("damaged", f"{receipt.damaged_checkpoints} checkpoints were damaged and passed over"))
    for attempt in receipt.attempts:
        if attempt.not_exact:
            lines.append(("not exact", f"from attempt {attempt.number} on: {'; '.join(attempt.not_exact)}"))
    if receipt.bit_exact is not None:
        lines.append(("bit-exact with an uninterrupted run", _verdict(receipt)))
    return lines


def _verdict(receipt: Receipt) -> str:
    if receipt.bit_exact:
        return (
            f"yes ({receipt.compared['steps']} steps' losses, {receipt.compared['tensors']} tensors of the final state)"
        )
    return f"NO: first difference: {', '.join(receipt.compared.get('differences', []))}"


def _attempt_table(receipt: Receipt) -> Table:
    table = _table()
    for column, justify in (
        ("attempt", "right"),
        ("steps", "left"),
        ("lost", "right"),
        ("start-up", "right"),
        ("time", "right"),
        ("end", "left"),
    ):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for attempt in receipt.attempts:
        table.add_row(
            str(attempt.number),
            f"{attempt.from_step + 1}-{attempt.to_step}" if attempt.to_step > attempt.from_step else "-",
            str(attempt.redone_steps) if attempt.redone_steps else "",
            seconds(attempt.startup_s),
            seconds(attempt.seconds),
            attempt.ended,
        )
    return table


def _machine_table(receipt: Receipt) -> Table:
    table = _table(
        f"{receipt.machine_hours:.2f} machine hours cost ${receipt.cost_usd:,.2f} (without storage and egress)"
    )
    table.add_column("machine")
    for column in ("$/h", "hours", "cost"):
        table.add_column(column, justify="right")
    table.add_column("end")
    for line in receipt.machines:
        price, cost = f"{line.price_usd_per_hour:.2f}", f"${line.cost_usd:,.2f}"
        table.add_row(line.place, price, f"{line.hours:.2f}", cost, line.ended)
    return table


def _cost_table(receipt: Receipt) -> Table:
    table = _table(f"{receipt.machine_hours:.4f} machine hours on real offers would cost")
    table.add_column("offer")
    table.add_column("$/h", justify="right")
    table.add_column("this run", justify="right")
    for line in receipt.costs:
        table.add_row(line.offer, f"{line.price_usd_per_hour:.2f}", f"${line.cost_usd:.4f}")
    return table


def show_dry_run(console: Console, result: DryRun, task: str) -> None:
    """The comparison of plans, the recommendation, the assumptions and the task."""
    plans = _table(f"plans for {result.recipe}, {result.work_h:g} h of work")
    for name in ("", "plan", "expected $", "p95 $", "finish h", "p95 h", "preemptions", "in time"):
        plans.add_column(name, justify="left" if name in ("", "plan") else "right")
    for plan in result.plans:
        chosen = plan.name == result.recommended
        in_time = "" if plan.deadline_probability is None else f"{plan.deadline_probability:.0%}"
        plans.add_row(
            "->" if chosen else "",
            plan.name,
            f"{plan.expected_cost_usd:,.2f}",
            f"{plan.cost_p95_usd:,.2f}",
            f"{plan.expected_finish_h:.1f}",
            f"{plan.finish_p95_h:.1f}",
            f"{plan.expected_preemptions:.1f}",
            in_time,
            style="bold" if chosen else ("dim" if not plan.within_limits else ""),
        )
    console.print(offers_table(result.offers))
    console.print()
    console.print(plans)
    console.print(f"\nrecommended: [bold]{result.recommended or 'none'}[/] ({result.reason})")
    console.print("\nassumptions")
    for assumption in result.assumptions:
        console.print(f"  - {assumption}", highlight=False)
    console.print("\nSkyPilot task\n")
    console.print(Text(task))


def offers_table(offers: Sequence[Offer], limit: int = 12) -> Table:
    """The cheapest offers, and every flagged one among them marked."""
    table = _table(f"cheapest {min(limit, len(offers))} of {len(offers)} offers")
    for name in ("cloud", "zone", "instance", "GPUs", "market", "$/h", "remarks"):
        table.add_column(name, justify="right" if name == "$/h" else "left")
    for offer in offers[:limit]:
        remarks = list(offer.flags) + ([] if offer.fits else ["recipe does not fit"])
        table.add_row(
            offer.cloud,
            offer.zone or offer.region,
            offer.instance_type,
            offer.gpus,
            "spot" if offer.spot else "on demand",
            f"{offer.price_usd_per_hour:.2f}",
            "; ".join(remarks),
            style="dim" if remarks else "",
        )
    return table


def status_table(statuses: Sequence[RunStatus]) -> Table:
    """Runs, one a line."""
    table = _table()
    for name in ("run", "state", "attempt", "step", "saved at", "loss", "last sign of life", "where", "cost"):
        table.add_column(name)
    for status in statuses:
        table.add_row(
            status.run,
            status.state,
            str(status.attempt or ""),
            f"{status.step}/{status.total_steps}" if status.total_steps else str(status.step or ""),
            "" if status.saved_step is None else f"step {status.saved_step}",
            "" if status.loss is None else f"{status.loss:.4f}",
            "" if status.silent_s is None else f"{seconds(status.silent_s)} ago",
            status.where or "",
            f"${status.cost_usd:,.2f}" if status.cost_usd else "",
        )
        if status.job:
            table.add_row(
                "", Text(f"-> SkyPilot's job {status.job}" + (f": {status.job_says}" if status.job_says else ""))
            )
        if status.note:
            table.add_row("", Text(f"-> {status.note}", style="yellow"))
    return table


def doctor_table(findings: Sequence[Finding]) -> Table:
    """What a launch needs, one a line."""
    table = _table(header=False)
    for finding in findings:
        style = {"ok": "green", "missing": "bold red"}.get(finding.state, "dim")
        fix = f"{finding.detail}\n  fix: {finding.fix}" if finding.fix else finding.detail
        table.add_row(finding.what, Text(finding.state, style=style), fix)
    return table


def seconds(value: float) -> str:
    """A duration for people."""
    if value < 120:
        return f"{value:.1f} s"
    if value < 7200:
        return f"{value / 60:.1f} min"
    return f"{value / 3600:.1f} h"

"""Receipts and status tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from launcher.console import counted
from launcher.findings import Finding
from launcher.report.receipt import Receipt
from launcher.report.results import Results
from launcher.report.status import RunStatus
from launcher.report.tables import plain_table
from trainer.runtime.startup_phases import BEFORE, phase_in_words

EVALUATION_SHOWN = ("eval_loss", "eval_rewards/accuracies", "eval_rewards/margins")
"""Of an evaluation, in the terminal; the page and JSON have all of it."""
STATE_STYLES = {"ok": "green", "missing": "bold red", "wrong": "bold red", "warning": "yellow"}


def receipt_panel(receipt: Receipt, results: Results | None = None) -> RenderableType:
    """The receipt as a panel, with the training's results."""
    figures = Table.grid(padding=(0, 2))
    figures.add_column(style="bold")
    figures.add_column()
    for label, value in [*_figures(receipt), *result_figures(results or Results())]:
        figures.add_row(label, value)
    parts: list[RenderableType] = [figures, Text(), _attempt_table(receipt)]
    if receipt.machines:
        parts += [Text(), _machine_table(receipt)]
    if receipt.costs:
        parts += [Text(), _cost_table(receipt)]
    return Panel(Group(*parts), title=f"receipt of {receipt.run}", expand=False)


def _figures(receipt: Receipt) -> list[tuple[str, str]]:
    lines = [
        ("state", f"{receipt.state}: {receipt.failure}" if receipt.failure else receipt.state),
        ("attempts", f"{len(receipt.attempts)} ({receipt.preemptions} preempted, {receipt.failures} failed)"),
        ("steps", f"{receipt.steps}, of which {receipt.steps_redone} had to be redone"),
        ("wall time", seconds(receipt.wall_s)),
        (
            "time lost",
            f"{seconds(receipt.lost_to_preemptions_s)} to preemptions "
            f"(redone steps {seconds(receipt.redone_s)}, start-ups and waiting the rest)",
        ),
        ("saves", f"{receipt.saves}, training paused for {seconds(receipt.saving_s)}"),
        ("goodput", f"{receipt.goodput:.0%} of the wall time went into steps that were kept"),
    ]
    if receipt.damaged_checkpoints:
        lines.append(("damaged", f"{receipt.damaged_checkpoints} checkpoints were damaged and skipped"))
    if receipt.data:
        lines.append(("data", receipt.data))
    for attempt in receipt.attempts:
        if attempt.not_exact:
            lines.append(("not exact", f"from attempt {attempt.number} on: {'; '.join(attempt.not_exact)}"))
    if receipt.bit_exact is not None:
        lines.append(("bit-exact with an uninterrupted run", _verdict(receipt)))
    return lines


def result_figures(results: Results) -> list[tuple[str, str]]:
    """What the training came to, with a label each."""
    lines = []
    of_last = f"mean of the last {counted(results.last_steps, 'step')}"
    if results.loss is not None:
        lines.append(("loss", f"{results.loss:.4f} ({of_last})"))
    rewards = results.rewards
    if "rewards/accuracies" in rewards:
        margins = f", margin {rewards['rewards/margins']:.4g}" if "rewards/margins" in rewards else ""
        lines.append(("rewards", f"accuracy {rewards['rewards/accuracies']:.1%}{margins} ({of_last})"))
    if results.evaluation:
        chosen = {name: results.evaluation[name] for name in EVALUATION_SHOWN if name in results.evaluation}
        text = ", ".join(f"{name.removeprefix('eval_')} {value:.4g}" for name, value in chosen.items())
        lines.append(
            ("evaluation", f"{text or counted(len(results.evaluation), 'figure')} at step {results.evaluated_at_step}")
        )
    if results.tokens_per_second is not None:
        mfu = f", MFU {results.mfu:.1%}" if results.mfu is not None else ""
        lines.append(("speed", f"{results.tokens_per_second:,.0f} tokens per second{mfu} (median)"))
    return lines


def comparison_table(reports: Sequence[tuple[Receipt, Results]]) -> Table:
    """Runs side by side: a column each, a row per figure."""
    table = plain_table()
    table.add_column("")
    for receipt, _ in reports:
        table.add_column(receipt.run, overflow="fold")
    columns = [_compared(receipt, results) for receipt, results in reports]
    for label in dict.fromkeys(label for column in columns for label in column):
        table.add_row(label, *(column.get(label, "-") for column in columns))
    return table


def _compared(receipt: Receipt, results: Results) -> dict[str, str]:
    cost = {"cost": f"${receipt.cost_usd:,.2f}"} if receipt.machines else {}
    return {
        "state": receipt.state,
        **cost,
        "wall time": seconds(receipt.wall_s),
        "machine hours": f"{receipt.machine_hours:.2f}",
        "goodput": f"{receipt.goodput:.1%}",
        "attempts": f"{len(receipt.attempts)} ({receipt.preemptions} preempted, {receipt.failures} failed)",
        "steps": f"{receipt.steps} ({receipt.steps_redone} redone)",
        "lost to preemptions": seconds(receipt.lost_to_preemptions_s),
        **dict(result_figures(results)),
    }


def _verdict(receipt: Receipt) -> str:
    if receipt.bit_exact:
        return (
            f"yes ({receipt.compared['steps']} steps' losses, {receipt.compared['tensors']} tensors of the final state)"
        )
    return f"NO: first difference: {', '.join(receipt.compared.get('differences', []))}"


def _attempt_table(receipt: Receipt) -> Table:
    table = plain_table()
    for column, justify in (
        ("attempt", "right"),
        ("steps", "left"),
        ("lost", "right"),
        ("start-up", "right"),
        ("time", "right"),
        ("end", "left"),
    ):
        table.add_column(column, justify=justify)
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
    table = plain_table(
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
    table = plain_table(f"{receipt.machine_hours:.4f} machine hours on real offers would cost")
    table.add_column("offer")
    table.add_column("$/h", justify="right")
    table.add_column("this run", justify="right")
    for line in receipt.costs:
        table.add_row(line.offer, f"{line.price_usd_per_hour:.2f}", f"${line.cost_usd:.4f}")
    return table


def status_table(statuses: Sequence[RunStatus]) -> Table:
    """Runs, one per line."""
    table = plain_table()
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
        if status.phase in BEFORE:
            table.add_row("", Text(f"-> {phase_in_words(status.phase, status.done, status.of)}"))
        if status.data:
            table.add_row("", Text(f"-> {status.data}"))
        if status.note:
            table.add_row("", Text(f"-> {status.note}", style="yellow"))
    return table


def findings_table(findings: Sequence[Finding]) -> Table:
    """Findings, one per line, with fixes."""
    table = plain_table(header=False)
    for finding in findings:
        style = STATE_STYLES.get(finding.state, "dim")
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

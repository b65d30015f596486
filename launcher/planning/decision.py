"""The answer of a dry run: what it costs, when it is done, how sure that is, and what it takes. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pydantic import Field

from launcher.frozen import Frozen
from launcher.planning.estimate import START_H
from launcher.planning.plan import DryRun, Plan
from launcher.request import LaunchRequest
from trainer.config.clouds import CLOUDS


class WithoutSpot(Frozen):
    """What becomes of the plan if no zone has a spot machine, the whole time."""

    cost_usd: float | None = Field(description="on demand; None = nothing is rented, and the run waits")
    work_h: float = Field(description="from the request of the machine to the end")
    waits_h: float | None = Field(description="for spot, at most, before that; None = no deadline says so")
    over_budget: bool


class Account(Frozen):
    """A cloud that the plan uses."""

    cloud: str
    label: str
    ready: bool = Field(description="are its credentials on this machine?")


class Decision(Frozen):
    """The answer, for the recommended plan."""

    plan: str
    fallback: str = Field(description="the machine behind a spot market; '' = none")
    cost_usd: float
    cost_p95_usd: float
    finish_h: float
    finish_p95_h: float
    in_time: float | None = Field(description="chance, 0 to 1; None without a deadline")
    in_budget: float | None = Field(description="chance, 0 to 1; None without a budget")
    on_demand: str = Field(description="the cheapest plan on demand; '' = none")
    on_demand_usd: float | None
    saved_usd: float | None = Field(description="against it")
    without_spot: WithoutSpot | None = Field(description="None for a plan on demand")
    accounts: tuple[Account, ...]


def decide(result: DryRun, request: LaunchRequest, ready: Collection[str]) -> Decision | None:
    """Return the answer; None if no plan is within the limits. `ready`: clouds with credentials on this machine."""
    if (plan := result.best) is None:
        return None
    rivals = [other for other in result.plans if not other.ladder[0].spot]
    rival = min(rivals, key=lambda other: other.expected_cost_usd, default=None)
    clouds = dict.fromkeys(candidate.cloud for candidate in plan.ladder)
    behind = plan.ladder[-1]
    return Decision(
        plan=plan.name,
        fallback=f"{CLOUDS[behind.cloud].label} on demand" if plan.ladder[0].spot and not behind.spot else "",
        cost_usd=plan.expected_cost_usd,
        cost_p95_usd=plan.cost_p95_usd,
        finish_h=plan.expected_finish_h,
        finish_p95_h=plan.finish_p95_h,
        in_time=plan.deadline_probability,
        in_budget=plan.budget_probability,
        on_demand=rival.name if rival else "",
        on_demand_usd=rival.expected_cost_usd if rival else None,
        saved_usd=rival.expected_cost_usd - plan.expected_cost_usd if rival else None,
        without_spot=_without_spot(plan, request) if plan.ladder[0].spot else None,
        accounts=tuple(Account(cloud=one, label=CLOUDS[one].label, ready=one in ready) for one in clouds),
    )


def _without_spot(plan: Plan, request: LaunchRequest) -> WithoutSpot:
    """On demand from the last moment at which the deadline still allows it: the policy doesn't wait for longer."""
    work_h = plan.work_h + START_H
    waits_h = None if request.deadline_h is None else max(0.0, request.deadline_h - work_h)
    price = plan.on_demand_usd_per_hour
    if price is None or plan.ladder[-1].spot:
        return WithoutSpot(cost_usd=None, work_h=work_h, waits_h=waits_h, over_budget=False)
    cost_usd = price * work_h + plan.storage_usd
    over = request.budget_usd is not None and plan.spent_usd + cost_usd > request.budget_usd
    return WithoutSpot(cost_usd=cost_usd, work_h=work_h, waits_h=waits_h, over_budget=over)


def missing_accounts(accounts: Sequence[Account]) -> list[str]:
    """Return the labels of clouds without credentials here."""
    return [account.label for account in accounts if not account.ready]

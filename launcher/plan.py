"""Plans, the recommended one, and the ladder of places to try: what a dry run shows and a launch starts. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from launcher.errors import NothingFits
from launcher.estimate import Estimate
from launcher.offers import Offer
from launcher.request import LaunchRequest

MAX_ON_DEMAND_RUNGS = 2


class Rung(BaseModel):
    """A kind of place to try: SkyPilot goes through all its zones."""

    model_config = ConfigDict(frozen=True)

    cloud: str
    gpus: str
    spot: bool


class Plan(Estimate):
    """One way to run, and what it comes to."""

    name: str
    ladder: tuple[Rung, ...]
    work_h: float
    """On its first machine."""
    price_usd_per_hour: float
    on_demand_usd_per_hour: float | None
    """Of the machine behind a spot market; None where there is none."""
    restore_usd: float
    """For a checkpoint's way to a machine outside of the bucket's cloud."""
    bucket_cloud: str | None
    """Whose machines restore for nothing."""
    hazard: str | None
    """Where the rate of preemption comes from; None on demand."""
    memory: str
    """How the recipe fits into its GPUs."""
    within_limits: bool


class SlackCost(BaseModel):
    """What a deadline costs: the recommended spot market with on demand behind it."""

    model_config = ConfigDict(frozen=True)

    deadline_h: float
    expected_cost_usd: float
    cost_p95_usd: float
    expected_finish_h: float
    on_demand_share: float


class DryRun(BaseModel):
    """What `--dry-run` shows and prints as JSON."""

    model_config = ConfigDict(frozen=True)

    recipe: str
    work_h: float
    offers: tuple[Offer, ...]
    plans: tuple[Plan, ...]
    recommended: str | None
    reason: str
    advice: tuple[str, ...] = ()
    assumptions: tuple[str, ...]

    @property
    def best(self) -> Plan | None:
        """The recommended plan."""
        return next((plan for plan in self.plans if plan.name == self.recommended), None)


def ladder(plan: Plan, plans: Sequence[Plan], *, mixed: bool = False) -> tuple[Rung, ...]:
    """The places that a launch asks: the plan's own, which its estimate is about, and a last resort.

    No other spot market, cheap as it may be: nobody has estimated the two together. The last resort is another
    on-demand kind, no cheaper than the plan's own, so that it is asked only where that one is sold out, which no
    estimate knows.

    On one kind of GPU, because another one rounds otherwise and the run would not be bit-exact any more; `mixed` = the
    user named several. `plans` come cheapest first.
    """
    behind = plan.ladder[-1]
    if behind.spot:
        return plan.ladder
    price = plan.on_demand_usd_per_hour or plan.price_usd_per_hour
    others = [
        other.ladder[0]
        for other in plans
        if not other.ladder[0].spot
        and other.ladder[0] not in plan.ladder
        and other.price_usd_per_hour >= price
        and (mixed or other.ladder[0].gpus == behind.gpus)
    ]
    return (*plan.ladder, *others[: MAX_ON_DEMAND_RUNGS - 1])


def require_plan(result: DryRun, request: LaunchRequest) -> Plan:
    """The recommended plan; raises `NothingFits` where nothing keeps the limits."""
    if result.best is not None:
        return result.best
    if not result.plans:
        raise NothingFits(
            "no trusted offer fits the request",
            "widen --cloud or --gpus; `--dry-run` shows flagged prices too, and --trust-prices takes them",
        )
    limits = []
    if request.deadline_h is not None:
        limits.append(f"a deadline of {request.deadline_h:.1f} h")
    if request.budget_usd is not None:
        limits.append(f"a budget of ${request.budget_usd:,.2f}")
    fastest = min(result.plans, key=lambda plan: plan.finish_p95_h)
    raise NothingFits(
        f"no plan keeps {' and '.join(limits)}: the cheapest costs ${result.plans[0].expected_cost_usd:,.2f}, "
        f"the fastest is done in {fastest.finish_p95_h:.1f} h",
        "raise --budget or --deadline; `--dry-run` compares the plans",
    )

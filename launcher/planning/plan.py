"""Plans, the recommended one, and the ladder of places to try: what a dry run shows and a launch starts. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from launcher.catalog.offers import Offer
from launcher.catalog.price_lists import REFRESH
from launcher.errors import NothingFits
from launcher.planning.estimate import Estimate
from launcher.policy.spot.preemption_rates import Basis
from launcher.request import LaunchRequest

CONFIDENCE = 0.95
"""With which a plan has to keep the deadline and the budget."""
MAX_ON_DEMAND_RUNGS = 2


class Rung(BaseModel):
    """A kind of place to try: SkyPilot goes through all its zones."""

    model_config = ConfigDict(frozen=True)

    cloud: str
    gpus: str
    spot: bool
    host_gib: int | None = None
    """The least memory of the host, where the cloud also has nodes of this kind that are too small."""
    region: str | None = None
    """Where only some places of the cloud are meant, see named_places.py."""
    zone: str | None = None


class ZonePlan(BaseModel):
    """A zone of a spot market that a plan asks."""

    model_config = ConfigDict(frozen=True)

    zone: str
    """Or its region, where a cloud has no zones."""
    price_usd_per_hour: float
    mean_life_h: float
    """Of a machine there."""
    basis: Basis
    """Of that life."""
    own_spells: int
    """Machines that the user's runs had there."""


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
    keep_usd_per_h: float = 0.0
    """For keeping its checkpoints in a pause."""
    upload_h: float = 0.0
    """Of a checkpoint, as assumed."""
    save_every_h: float = 0.0
    """Between two saves, where the recipe says it in time."""
    bucket_cloud: str | None
    """Whose machines restore for nothing."""
    hazard: str | None
    """Where the rate of preemption comes from; None on demand."""
    zones: tuple[ZonePlan, ...] = ()
    """Of a spot market, in the order in which they are asked."""
    memory: str
    """How the recipe fits into its GPUs."""
    within_limits: bool
    share_left: float = 1.0
    """Of the run's work: what this plan is about. Less than 1 for a run that goes on."""
    spent_usd: float = 0.0
    """By the run before, its store and pauses included; in the budget, and not in this plan's cost."""

    @property
    def store_usd_per_h(self) -> float:
        """For keeping checkpoints, and requests, while the run has a machine."""
        return self.storage_usd / self.expected_finish_h

    @property
    def whole_work_h(self) -> float:
        """Of the run from its beginning, on this plan's first machine."""
        return self.work_h / self.share_left

    @property
    def total_p95_usd(self) -> float:
        """What the whole run stays below: this is what a budget is about."""
        return self.spent_usd + self.cost_p95_usd


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
    warnings: tuple[str, ...] = ()
    """About the prices that everything else rests on."""
    advice: tuple[str, ...] = ()
    assumptions: tuple[str, ...]
    share_left: float = 1.0
    """Of the run's work; `work_h` is what is left."""
    spent_usd: float = 0.0
    """By the run before."""

    @property
    def whole_work_h(self) -> float:
        """Of the run from its beginning."""
        return self.work_h / self.share_left

    @property
    def resumed(self) -> bool:
        """Has the run done or spent anything before?"""
        return self.share_left < 1 or self.spent_usd > 0

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
    if not result.plans and not any(offer.fits for offer in result.offers):
        why = dict.fromkeys(f"{offer.gpus}: {offer.misfit}" for offer in result.offers)
        raise NothingFits(f"the recipe fits no offer ({'; '.join(why)})", "name other --gpus, or another recipe")
    if not result.plans:
        raise NothingFits("no trusted offer fits the request", _to_trust(result.offers, request))
    raise NothingFits(*unkept(result.plans, request))


def _to_trust(offers: Sequence[Offer], request: LaunchRequest) -> str:
    """What to do where offers fit and none is used: --trust-prices, if it would take one of them."""
    asked = {"auto": (True, False), "spot": (True,), "on-demand": (False,)}[request.market]
    fitting = [offer for offer in offers if offer.fits and offer.spot in asked]
    if any(not offer.usable() and offer.usable(trust_prices=True) for offer in fitting) and not request.trust_prices:
        return "widen --cloud or --gpus; `--dry-run` shows flagged prices too, and --trust-prices takes those above 0"
    if fitting and not any(offer.usable(trust_prices=True) for offer in fitting):
        return f"a price of 0 or less is never taken: fix the price list (`{REFRESH}`), or widen --cloud or --gpus"
    return "widen --cloud or --gpus"


def limits_named(request: LaunchRequest) -> str:
    """`the deadline and the budget`, or the one that was given; '' without."""
    named = {"the deadline": request.deadline_h, "the budget": request.budget_usd}
    return " and ".join(name for name, value in named.items() if value is not None)


def nearest(plans: Sequence[Plan], request: LaunchRequest) -> Plan:
    """The plan that comes nearest to the limits: by the worse of its two chances, then by the smaller excess."""

    def excess(plan: Plan) -> float:
        dear = plan.total_p95_usd / request.budget_usd if request.budget_usd else 0.0
        late = plan.finish_p95_h / request.deadline_h if request.deadline_h else 0.0
        return max(dear, late)

    def chance(plan: Plan) -> float:
        return min(_chance(plan.deadline_probability), _chance(plan.budget_probability))

    return max(plans, key=lambda plan: (chance(plan), -excess(plan)))


def unkept(plans: Sequence[Plan], request: LaunchRequest) -> tuple[str, str]:
    """Why no plan is within the limits, by the nearest one; and the limits that would do."""
    limits, odds = [], []
    plan = nearest(plans, request)
    if request.deadline_h is not None:
        limits.append(f"a deadline of {request.deadline_h:.1f} h")
        odds.append(
            f"the deadline in {_chance(plan.deadline_probability):.0%} of runs (done in {plan.expected_finish_h:.1f} h "
            f"on average, 95 % within {plan.finish_p95_h:.1f} h)"
        )
    if request.budget_usd is not None:
        spent = f" (of which ${plan.spent_usd:,.2f} is spent)" if plan.spent_usd else ""
        limits.append(f"a budget of ${request.budget_usd:,.2f}{spent}")
        odds.append(
            f"the budget in {_chance(plan.budget_probability):.0%} of runs (${plan.expected_cost_usd:,.2f} on average, "
            f"95 % within ${plan.cost_p95_usd:,.2f})"
        )
    return (
        f"no plan keeps {' and '.join(limits)} in {CONFIDENCE:.0%} of runs; the nearest, {plan.name}, keeps "
        f"{' and '.join(odds)}",
        f"give {' or '.join(_enough(plans, plan, request))}; `--dry-run` compares the plans",
    )


def _enough(plans: Sequence[Plan], near: Plan, request: LaunchRequest) -> list[str]:
    """Options that some plan would keep. Not the least ones: another deadline changes the figures of all plans."""
    in_time = [plan for plan in plans if _chance(plan.deadline_probability) >= CONFIDENCE]
    affordable = [plan for plan in plans if _chance(plan.budget_probability) >= CONFIDENCE]
    found = []
    if request.budget_usd is not None and in_time:
        found.append(_budget(min(plan.total_p95_usd for plan in in_time)))
    if request.deadline_h is not None and affordable:
        found.append(_deadline(min(plan.finish_p95_h for plan in affordable)))
    # Both: of a plan whose cost doesn't change with the deadline, where there is one.
    on_demand = [plan for plan in plans if not plan.ladder[0].spot]
    sure = min(on_demand, key=lambda plan: plan.cost_p95_usd, default=near)
    return found or [f"{_deadline(sure.finish_p95_h)} and {_budget(sure.total_p95_usd)}"]


def _budget(usd: float) -> str:
    return f"--budget {math.ceil(usd)}"


def _deadline(hours: float) -> str:
    return f"--deadline {math.ceil(hours * 10) / 10:g}h"


def _chance(probability: float | None) -> float:
    """1 where there is no limit."""
    return 1.0 if probability is None else probability

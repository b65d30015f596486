"""Plans, the recommended one, and its ladder of candidates: what a dry run shows and a launch starts. Pure."""

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
"""Probability with which a plan must meet the deadline and the budget."""
MAX_ON_DEMAND_CANDIDATES = 2


class Candidate(BaseModel):
    """A kind of place to try: SkyPilot tries all its zones."""

    model_config = ConfigDict(frozen=True)

    cloud: str
    gpus: str
    spot: bool
    host_gib: int | None = None
    """Minimum host memory, if the cloud also has nodes of this kind that are too small."""
    region: str | None = None
    """Set if only some places of the cloud are meant, see named_places.py."""
    zone: str | None = None


class ZonePlan(BaseModel):
    """A zone of a spot market that a plan uses."""

    model_config = ConfigDict(frozen=True)

    zone: str
    """Or the region, if the cloud has no zones."""
    price_usd_per_hour: float
    mean_life_h: float
    """Mean life of a machine there."""
    basis: Basis
    """Basis of `mean_life_h`."""
    own_spells: int
    """Machines that the user's runs had there."""


class Plan(Estimate):
    """One way to run, and its estimated outcome."""

    name: str
    ladder: tuple[Candidate, ...]
    work_h: float
    """Hours of work on its first machine."""
    price_usd_per_hour: float
    on_demand_usd_per_hour: float | None
    """Price of the on-demand machine behind a spot market; None if there is none."""
    restore_usd: float
    """Cost of moving a checkpoint to a machine outside of the bucket's cloud."""
    keep_usd_per_h: float = 0.0
    """Storage costs while the run has no machine."""
    upload_h: float = 0.0
    """Upload time of a checkpoint, assumed."""
    save_every_h: float = 0.0
    """Time between two saves, if the recipe gives it as a time."""
    bucket_cloud: str | None
    """The cloud whose machines restore free of charge."""
    hazard: str | None
    """Source of the preemption rate; None on demand."""
    zones: tuple[ZonePlan, ...] = ()
    """Zones of a spot market, in the order in which they are tried."""
    memory: str
    """How the recipe fits into its GPUs."""
    within_limits: bool
    share_left: float = 1.0
    """Share of the run's work that this plan covers. Less than 1 for a resumed run."""
    spent_usd: float = 0.0
    """Spent by the run before, including storage and pauses. Counts against the budget, but not in this plan's cost."""

    @property
    def store_usd_per_h(self) -> float:
        """Storage and request costs while the run has a machine."""
        return self.storage_usd / self.expected_finish_h

    @property
    def whole_work_h(self) -> float:
        """Work of the whole run, on this plan's first machine."""
        return self.work_h / self.share_left

    @property
    def total_p95_usd(self) -> float:
        """95th percentile of the whole run's cost, which a budget is compared with."""
        return self.spent_usd + self.cost_p95_usd


class SlackCost(BaseModel):
    """The cost of a deadline, for the recommended spot market with on demand behind it."""

    model_config = ConfigDict(frozen=True)

    deadline_h: float
    expected_cost_usd: float
    cost_p95_usd: float
    expected_finish_h: float
    on_demand_share: float


class DryRun(BaseModel):
    """The output of `--dry-run`, also as JSON."""

    model_config = ConfigDict(frozen=True)

    recipe: str
    work_h: float
    offers: tuple[Offer, ...]
    plans: tuple[Plan, ...]
    recommended: str | None
    reason: str
    warnings: tuple[str, ...] = ()
    """Warnings about the prices that all plans are based on."""
    advice: tuple[str, ...] = ()
    assumptions: tuple[str, ...]
    share_left: float = 1.0
    """Share of the run's work that is left; `work_h` is what is left."""
    spent_usd: float = 0.0
    """Spent by the run before."""

    @property
    def whole_work_h(self) -> float:
        """Work of the whole run."""
        return self.work_h / self.share_left

    @property
    def resumed(self) -> bool:
        """Has the run done or spent anything before?"""
        return self.share_left < 1 or self.spent_usd > 0

    @property
    def best(self) -> Plan | None:
        """The recommended plan."""
        return next((plan for plan in self.plans if plan.name == self.recommended), None)


def ladder(plan: Plan, plans: Sequence[Plan], *, mixed: bool = False) -> tuple[Candidate, ...]:
    """The candidates that a launch tries: the plan's own, which its estimate covers, and a last resort.

    Other spot markets are not included, however cheap, because the combination was not estimated. The last resort is
    another on-demand kind, not cheaper than the plan's own, so that it is tried only if that one is sold out, which no
    estimate includes.

    All are on one kind of GPU, because another kind rounds differently and the run would no longer be bit-exact, unless
    `mixed`: the user named several. `plans` come cheapest first.
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
    return (*plan.ladder, *others[: MAX_ON_DEMAND_CANDIDATES - 1])


def require_plan(result: DryRun, request: LaunchRequest) -> Plan:
    """The recommended plan; raises `NothingFits` if no plan is within the limits."""
    if result.best is not None:
        return result.best
    if not result.plans and not any(offer.fits for offer in result.offers):
        why = dict.fromkeys(f"{offer.gpus}: {offer.misfit}" for offer in result.offers)
        raise NothingFits(f"the recipe fits no offer ({'; '.join(why)})", "name other --gpus, or another recipe")
    if not result.plans:
        raise NothingFits("no trusted offer fits the request", _to_trust(result.offers, request))
    raise NothingFits(*unkept(result.plans, request))


def _to_trust(offers: Sequence[Offer], request: LaunchRequest) -> str:
    """What to do if offers fit but none is used: --trust-prices, if it would allow one of them."""
    markets = {"auto": (True, False), "spot": (True,), "on-demand": (False,)}[request.market]
    fitting = [offer for offer in offers if offer.fits and offer.spot in markets]
    if any(not offer.usable() and offer.usable(trust_prices=True) for offer in fitting) and not request.trust_prices:
        return "widen --cloud or --gpus; `--dry-run` also shows flagged prices; --trust-prices allows those above 0"
    if fitting and not any(offer.usable(trust_prices=True) for offer in fitting):
        return f"a price of 0 or less is never used: fix the price list (`{REFRESH}`), or widen --cloud or --gpus"
    return "widen --cloud or --gpus"


def limits_named(request: LaunchRequest) -> str:
    """`the deadline and the budget`, or the one that was given; '' if neither was."""
    named = {"the deadline": request.deadline_h, "the budget": request.budget_usd}
    return " and ".join(name for name, value in named.items() if value is not None)


def nearest(plans: Sequence[Plan], request: LaunchRequest) -> Plan:
    """The plan nearest to the limits: by the worse of its two probabilities, then by the smaller excess."""

    def excess(plan: Plan) -> float:
        dear = plan.total_p95_usd / request.budget_usd if request.budget_usd else 0.0
        late = plan.finish_p95_h / request.deadline_h if request.deadline_h else 0.0
        return max(dear, late)

    def chance(plan: Plan) -> float:
        return min(_chance(plan.deadline_probability), _chance(plan.budget_probability))

    return max(plans, key=lambda plan: (chance(plan), -excess(plan)))


def unkept(plans: Sequence[Plan], request: LaunchRequest) -> tuple[str, str]:
    """Why no plan is within the limits, shown for the nearest one, and limits that would work."""
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
        f"no plan meets {' and '.join(limits)} in {CONFIDENCE:.0%} of runs; the nearest, {plan.name}, meets "
        f"{' and '.join(odds)}",
        f"give {' or '.join(_enough(plans, plan, request))}; `--dry-run` compares the plans",
    )


def _enough(plans: Sequence[Plan], near: Plan, request: LaunchRequest) -> list[str]:
    """Limits that some plan would meet. Not the tightest ones: another deadline changes the figures of all plans."""
    in_time = [plan for plan in plans if _chance(plan.deadline_probability) >= CONFIDENCE]
    affordable = [plan for plan in plans if _chance(plan.budget_probability) >= CONFIDENCE]
    options = []
    if request.budget_usd is not None and in_time:
        options.append(_budget(min(plan.total_p95_usd for plan in in_time)))
    if request.deadline_h is not None and affordable:
        options.append(_deadline(min(plan.finish_p95_h for plan in affordable)))
    # Both limits: those of a plan whose cost doesn't change with the deadline, if there is one.
    on_demand = [plan for plan in plans if not plan.ladder[0].spot]
    sure = min(on_demand, key=lambda plan: plan.cost_p95_usd, default=near)
    return options or [f"{_deadline(sure.finish_p95_h)} and {_budget(sure.total_p95_usd)}"]


def _budget(usd: float) -> str:
    return f"--budget {math.ceil(usd)}"


def _deadline(hours: float) -> str:
    return f"--deadline {math.ceil(hours * 10) / 10:g}h"


def _chance(probability: float | None) -> float:
    """The probability; 1 if there is no limit."""
    return 1.0 if probability is None else probability

"""From a request and offers to plans, the recommended one, and the ladder of places to try. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from launcher.errors import NothingFits
from launcher.estimate import Estimate, estimate
from launcher.hazard import ASSUMED_SPOT, ON_DEMAND, Hazard
from launcher.offers import Offer, cheapest_by_kind
from launcher.request import CLOUDS, Gpus, LaunchRequest, parse_gpus
from trainer.gpus import GPU_MEMORY_GIB
from trainer.recipe import Recipe

DEADLINE_CONFIDENCE = 0.95
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
    egress_usd: float | None = None
    storage_usd: float | None = None
    """Not estimated yet: None, not zero."""
    within_limits: bool


class DryRun(BaseModel):
    """What `--dry-run` shows and prints as JSON."""

    model_config = ConfigDict(frozen=True)

    recipe: str
    work_h: float
    offers: tuple[Offer, ...]
    plans: tuple[Plan, ...]
    recommended: str | None
    reason: str
    assumptions: tuple[str, ...]

    @property
    def best(self) -> Plan | None:
        """The recommended plan."""
        return next((plan for plan in self.plans if plan.name == self.recommended), None)


def wanted_gpus(request: LaunchRequest, recipe: Recipe) -> tuple[Gpus, ...]:
    """The nodes to look for: what was asked, else the recipe's and every known kind with at least its memory."""
    if request.gpus:
        return request.gpus
    base = parse_gpus(recipe.hardware.gpus or "A100:8")
    roomy = [name for name, memory in GPU_MEMORY_GIB.items() if memory >= GPU_MEMORY_GIB[base.name]]
    return tuple(Gpus(name, base.count) for name in roomy)


def dry_run(request: LaunchRequest, recipe: Recipe, offers: Sequence[Offer], source: str) -> DryRun:
    """Compare all plans and choose. Decides nothing that a machine could change: no clock, no network."""
    work_h = request.hours or recipe.hardware.hours
    fitting = [offer.model_copy(update={"fits": _fits(offer, recipe)}) for offer in offers]
    usable = [
        offer
        for offer in cheapest_by_kind(offer for offer in fitting if offer.fits)
        if request.market == "auto" or offer.spot == (request.market == "spot")
    ]
    plans = sorted((_single(offer, work_h, request) for offer in usable), key=lambda plan: plan.expected_cost_usd)
    best = next((plan for plan in plans if plan.within_limits), None)
    return DryRun(
        recipe=recipe.name,
        work_h=work_h,
        offers=tuple(fitting),
        plans=tuple(plans),
        recommended=best.name if best else None,
        reason=_reason(best, plans, request),
        assumptions=(
            f"prices: {source}",
            f"{work_h:g} h of work ({'--hours' if request.hours else f'recipe, on {recipe.hardware.gpus}'}), "
            "the same on every GPU kind: relative speeds are not modelled yet",
            ASSUMED_SPOT.source,
            ON_DEMAND.source,
            "15 min from the launch of a machine to its first step; a preempted machine is not paid while waiting",
            "storage and cross-cloud egress are not in the cost yet",
        ),
    )


def ladder(plan: Plan, plans: Sequence[Plan]) -> tuple[Rung, ...]:
    """The order in which SkyPilot tries places: the recommended kind first, then spot, then on demand.

    On demand only the cheapest few: an empty spot market must not end on the dearest machine there is. `plans` come
    cheapest first.
    """
    rungs = list(dict.fromkeys(rung for other in (plan, *plans) for rung in other.ladder))
    spot = [rung for rung in rungs[1:] if rung.spot]
    on_demand = [rung for rung in rungs[1:] if not rung.spot]
    room = MAX_ON_DEMAND_RUNGS - (not rungs[0].spot)
    return (rungs[0], *spot, *on_demand[:room])


def require_plan(result: DryRun, request: LaunchRequest) -> Plan:
    """The recommended plan; raises `NothingFits` where nothing keeps the limits."""
    if result.best is not None:
        return result.best
    if not result.plans:
        raise NothingFits(
            "no trusted offer fits the request",
            "widen --cloud or --gpus; `--dry-run` shows flagged prices too",
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


def _single(offer: Offer, work_h: float, request: LaunchRequest) -> Plan:
    hazard: Hazard = ASSUMED_SPOT if offer.spot else ON_DEMAND
    numbers = estimate(
        price_usd_per_hour=offer.price_usd_per_hour,
        work_h=work_h,
        hazard=hazard,
        deadline_h=request.deadline_h,
    )
    in_time = numbers.deadline_probability is None or numbers.deadline_probability >= DEADLINE_CONFIDENCE
    affordable = request.budget_usd is None or numbers.cost_p95_usd <= request.budget_usd
    market = "spot" if offer.spot else "on demand"
    return Plan(
        **numbers.model_dump(),
        name=f"{CLOUDS[offer.cloud].label} {market} {offer.gpus}",
        ladder=(Rung(cloud=offer.cloud, gpus=offer.gpus, spot=offer.spot),),
        within_limits=in_time and affordable,
    )


def _fits(offer: Offer, recipe: Recipe) -> bool:
    """At least the GPUs that the recipe was made for. The memory model of the planner will say this better."""
    if recipe.hardware.gpus is None:
        return True
    need, have = parse_gpus(recipe.hardware.gpus), parse_gpus(offer.gpus)
    return have.count >= need.count and GPU_MEMORY_GIB[have.name] >= GPU_MEMORY_GIB[need.name]


def _reason(best: Plan | None, plans: Sequence[Plan], request: LaunchRequest) -> str:
    if best is None:
        return "no plan keeps the deadline and the budget" if plans else "no trusted offer fits"
    limits = "the deadline and the budget" if request.deadline_h or request.budget_usd else "no limit given"
    others = [plan for plan in plans if plan is not best and plan.within_limits]
    if not others:
        return f"the only plan that keeps {limits}" if request.deadline_h or request.budget_usd else "the only plan"
    saved = others[0].expected_cost_usd - best.expected_cost_usd
    return f"cheapest in expectation ({limits}), ${saved:,.2f} below the next, {others[0].name}"

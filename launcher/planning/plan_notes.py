"""Notes on a comparison of plans: why one is recommended, what would be cheaper, what is assumed. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from checkpoints.storage.list_prices import StoragePrices
from launcher.catalog.gpu_nodes import Gpus, parse_gpus
from launcher.catalog.gpu_speeds import PCIE, SOURCE
from launcher.catalog.offers import Offer
from launcher.planning.estimate import DEFAULT_STATE_BYTES, START_H, UPLOAD_BYTES_PER_S
from launcher.planning.plan import Plan, limits_named, unkept
from launcher.planning.work_left import NOT_STARTED, RunProgress
from launcher.request import LaunchRequest
from trainer.config.clouds import CLOUDS
from trainer.config.gpu_types import GPU_TYPES
from trainer.config.memory_estimate import HOST_GIB_PER_RANK, state_bytes
from trainer.config.model_shapes import shape_of
from trainer.config.recipe import Recipe

WORTH_MENTIONING = 0.97
"""A longer deadline is mentioned if it saves 3 %."""
WORTH_MENTIONING_USD = 1.0
"""Least egress that is mentioned."""


class DeadlineTrial(NamedTuple):
    """A plan that was also estimated with a deadline, although the user gave none."""

    plan: Plan
    """The plan without a deadline."""
    deadline_h: float
    cost_usd: float
    """Expected cost with the deadline."""


@dataclass(frozen=True)
class PlanComparison:
    """A comparison of plans: the request, the facts it is based on, and the results."""

    request: LaunchRequest
    recipe: Recipe
    work_h: float
    work_gpus: Gpus
    """The GPUs that `work_h` refers to."""
    bucket: StoragePrices
    price_source: str
    hazard_sources: Sequence[str]
    """Sources of the spot markets' preemption rates."""
    offers: Sequence[Offer]
    """All offers, with whether the recipe fits."""
    unknown_speed: Sequence[str]
    """GPUs that could not be planned."""
    plans: Sequence[Plan]
    """Cheapest first."""
    best: Plan | None
    trials: Sequence[DeadlineTrial] = ()
    done: RunProgress = NOT_STARTED
    """What a resumed run has already done."""


def reason(compared: PlanComparison) -> str:
    """Why the best plan was chosen, or why there is none."""
    best, plans = compared.best, compared.plans
    if best is None:
        return unkept(plans, compared.request)[0] if plans else "no trusted offer fits"
    limited = limits_named(compared.request)
    limits = limited or "no limit given"
    others = [plan for plan in plans if plan is not best and plan.within_limits]
    if not others:
        return f"the only plan that meets {limits}" if limited else "the only plan"
    saved = others[0].expected_cost_usd - best.expected_cost_usd
    return f"cheapest in expectation ({limits}), ${saved:,.2f} below the next, {others[0].name}"


def advice(compared: PlanComparison) -> list[str]:
    """Changes to the request that would cost less than the best plan."""
    if compared.best is None:
        return []
    lines = (
        _with_deadline(compared.best, compared.trials),
        _free_egress(compared.best, compared.plans, compared.bucket),
    )
    return [line for line in lines if line]


def assumptions(compared: PlanComparison) -> list[str]:
    """The prices, hours and sizes that the estimate is based on, and what could not be estimated."""
    always = "on-demand machines are available at once and are never preempted"
    start = f"{START_H * 60:.0f} min from the launch of a machine to its first step"
    lines = [f"prices: {compared.price_source}", _hours(compared), *compared.hazard_sources, always, start]
    return [*lines, _checkpoints(compared), *_memory(compared.recipe, compared.best), *_left_out(compared)]


# --- advice -----------------------------------------------------------------------------------------


def _with_deadline(best: Plan, trials: Sequence[DeadlineTrial]) -> str:
    """What a deadline would save."""
    trial = min(trials, key=lambda one: one.cost_usd, default=None)
    if trial is None or trial.cost_usd > WORTH_MENTIONING * best.expected_cost_usd:
        return ""
    return (
        f"with --deadline {trial.deadline_h:.0f}h {trial.plan.name} would wait for spot and cost about "
        f"${trial.cost_usd:,.2f}; without a deadline a run never waits while on demand has machines"
    )


def _free_egress(best: Plan, plans: Sequence[Plan], bucket: StoragePrices) -> str:
    """The plan that would be cheapest without egress fees, if it would beat the best one."""

    def without_usd(plan: Plan) -> float:
        return plan.expected_cost_usd - plan.egress_usd

    plan = min((plan for plan in plans if plan.egress_usd >= WORTH_MENTIONING_USD), key=without_usd, default=None)
    if plan is None or without_usd(plan) >= best.expected_cost_usd:
        return ""
    clouds = list(dict.fromkeys(candidate.cloud for candidate in plan.ladder))
    abroad = " and ".join(CLOUDS[cloud].label for cloud in clouds if cloud != bucket.cloud)
    near = f", or one in {CLOUDS[clouds[0]].label}," if len(clouds) == 1 else ""
    return (
        f"restores from {bucket.label} in {abroad} are ${plan.egress_usd:,.2f} of the cost of {plan.name}; "
        f"a bucket without egress fees (Cloudflare R2){near} saves that"
    )


# --- assumptions ------------------------------------------------------------------------------------


def _hours(compared: PlanComparison) -> str:
    kinds = {parse_gpus(gpus).name for gpus in {offer.gpus for offer in compared.offers}}
    derived = [gpu.derived for gpu in GPU_TYPES.values() if gpu.derived and gpu.name in kinds]
    return (
        f"{_work(compared)} ({_whose_hours(compared)}); {'; '.join([SOURCE, *derived])}; "
        f"cards on PCIe at {PCIE:g} of that (assumed)"
    )


def _work(compared: PlanComparison) -> str:
    if compared.done == NOT_STARTED:
        return f"{compared.work_h:g} h of work"
    whole_h = compared.work_h / compared.done.share_left
    return (
        f"the run resumes: {compared.work_h:.3g} h of {whole_h:g} h of work are left, and "
        f"${compared.done.spent_usd:,.2f} is spent"
    )


def _whose_hours(compared: PlanComparison) -> str:
    if compared.request.hours:
        return f"--hours, on {compared.work_gpus}"
    on = "on" if compared.recipe.hardware.gpus else "made for a CPU, treated as if on"
    return f"the recipe, {on} {compared.work_gpus}"


def _checkpoints(compared: PlanComparison) -> str:
    size = state_bytes(compared.recipe)
    unknown = "" if size else "model of unknown size: "
    where = compared.bucket.label + ("" if compared.request.bucket else "; assumed, as no --bucket is given")
    return (
        f"{unknown}checkpoints of {(size or DEFAULT_STATE_BYTES) / 1e9:.2g} GB, "
        f"at {UPLOAD_BYTES_PER_S / 1e9:g} GB/s, in {where}"
    )


def _memory(recipe: Recipe, best: Plan | None) -> list[str]:
    """Assumptions on the memory of the GPUs and of the host."""
    lines = []
    if shape_of(recipe.model.name) is None:
        lines.append(f"the shape of {recipe.model.name} is not known, so its memory is not checked")
    elif best is not None:
        measured = "a sum (23 to 27 % above what one H100 took) that keeps a third in reserve"
        lines.append(f"memory, by {measured}: {best.memory}")
    if recipe.hardware.gpus is not None:
        lines.append(
            "the host's memory must hold what is offloaded, a copy of the state, and "
            f"{HOST_GIB_PER_RANK} GiB per rank (assumed)"
        )
    return lines


def _left_out(compared: PlanComparison) -> list[str]:
    """What could not be planned: it does not fit, is not offered, or its hours are not known."""
    there = {offer.gpus for offer in compared.offers}
    unsold = [f"no cloud offers {gpus}" for gpus in map(str, compared.request.gpus) if gpus not in there]
    unknown = [f"the hours on {name} are not known: give --gpus {name} --hours H" for name in compared.unknown_speed]
    return [*_misfits(compared.offers), *unsold, *unknown]


def _misfits(offers: Sequence[Offer]) -> list[str]:
    """Nodes that do not fit, and why. Listed by GPU if no node with those GPUs fits."""
    some = {offer.gpus for offer in offers if offer.fits}
    misfits = (
        (f"{offer.cloud} {offer.instance_type}" if offer.gpus in some else offer.gpus, offer.misfit)
        for offer in offers
        if not offer.fits
    )
    return [f"{name} does not fit: {reason}" for name, reason in dict.fromkeys(misfits)]

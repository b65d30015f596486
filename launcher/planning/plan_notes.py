"""What is said of a comparison of plans: why one is recommended, what would be cheaper, what is assumed. Pure."""

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
from launcher.planning.work_left import NOT_BEGUN, SoFar
from launcher.request import LaunchRequest
from trainer.config.clouds import CLOUDS
from trainer.config.gpu_types import GPU_TYPES
from trainer.config.memory_estimate import HOST_GIB_PER_RANK, state_bytes
from trainer.config.model_shapes import shape_of
from trainer.config.recipe import Recipe

WORTH_A_WORD = 0.97
"""A longer deadline is named where it saves 3 %."""
WORTH_A_WORD_USD = 1.0
"""Of egress."""


class Patient(NamedTuple):
    """A plan that was tried with a deadline that nobody asked for."""

    plan: Plan
    """Without a deadline."""
    deadline_h: float
    cost_usd: float
    """Expected, with it."""


@dataclass(frozen=True)
class Compared:
    """A comparison: what was asked, by which facts, and what came of it."""

    request: LaunchRequest
    recipe: Recipe
    work_h: float
    work_gpus: Gpus
    """Whose hours they are."""
    bucket: StoragePrices
    price_source: str
    hazard_sources: Sequence[str]
    """Of the spot markets that were looked at."""
    offers: Sequence[Offer]
    """All, with whether the recipe fits."""
    unknown_speed: Sequence[str]
    """GPUs that could not be planned."""
    plans: Sequence[Plan]
    """The cheapest first."""
    best: Plan | None
    patient: Sequence[Patient] = ()
    done: SoFar = NOT_BEGUN
    """By the run before, where it goes on."""


def reason(compared: Compared) -> str:
    """Why the best plan is, or why there is none."""
    best, plans = compared.best, compared.plans
    if best is None:
        return unkept(plans, compared.request)[0] if plans else "no trusted offer fits"
    limited = limits_named(compared.request)
    limits = limited or "no limit given"
    others = [plan for plan in plans if plan is not best and plan.within_limits]
    if not others:
        return f"the only plan that keeps {limits}" if limited else "the only plan"
    saved = others[0].expected_cost_usd - best.expected_cost_usd
    return f"cheapest in expectation ({limits}), ${saved:,.2f} below the next, {others[0].name}"


def advice(compared: Compared) -> list[str]:
    """What would cost less than the best plan, if the user changed the request."""
    if compared.best is None:
        return []
    found = (_patience(compared.best, compared.patient), _free_egress(compared.best, compared.plans, compared.bucket))
    return [line for line in found if line]


def assumptions(compared: Compared) -> list[str]:
    """By which prices, hours and sizes it was estimated; and what could not be."""
    always = "on-demand machines can be had at once and are never taken away"
    start = f"{START_H * 60:.0f} min from the launch of a machine to its first step"
    told = [f"prices: {compared.price_source}", _hours(compared), *compared.hazard_sources, always, start]
    return [*told, _checkpoints(compared), *_memory(compared.recipe, compared.best), *_left_out(compared)]


# --- advice -----------------------------------------------------------------------------------------


def _patience(best: Plan, patient: Sequence[Patient]) -> str:
    """What a deadline would save."""
    found = min(patient, key=lambda one: one.cost_usd, default=None)
    if found is None or found.cost_usd > WORTH_A_WORD * best.expected_cost_usd:
        return ""
    return (
        f"with --deadline {found.deadline_h:.0f}h {found.plan.name} would wait for spot and cost about "
        f"${found.cost_usd:,.2f}; without a deadline nobody waits while on demand has machines"
    )


def _free_egress(best: Plan, plans: Sequence[Plan], bucket: StoragePrices) -> str:
    """Which plan would be the cheapest if restores left the bucket's cloud for nothing."""

    def without_usd(plan: Plan) -> float:
        return plan.expected_cost_usd - plan.egress_usd

    plan = min((plan for plan in plans if plan.egress_usd >= WORTH_A_WORD_USD), key=without_usd, default=None)
    if plan is None or without_usd(plan) >= best.expected_cost_usd:
        return ""
    clouds = list(dict.fromkeys(rung.cloud for rung in plan.ladder))
    abroad = " and ".join(CLOUDS[cloud].label for cloud in clouds if cloud != bucket.cloud)
    near = f", or one in {CLOUDS[clouds[0]].label}," if len(clouds) == 1 else ""
    return (
        f"restores from {bucket.label} in {abroad} are ${plan.egress_usd:,.2f} of what {plan.name} "
        f"costs: a bucket without egress fees (Cloudflare R2){near} saves that"
    )


# --- assumptions ------------------------------------------------------------------------------------


def _hours(compared: Compared) -> str:
    kinds = {parse_gpus(gpus).name for gpus in {offer.gpus for offer in compared.offers}}
    derived = [gpu.derived for gpu in GPU_TYPES.values() if gpu.derived and gpu.name in kinds]
    return (
        f"{_work(compared)} ({_whose_hours(compared)}); {'; '.join([SOURCE, *derived])}; "
        f"cards on PCIe at {PCIE:g} of that (assumed)"
    )


def _work(compared: Compared) -> str:
    if compared.done == NOT_BEGUN:
        return f"{compared.work_h:g} h of work"
    whole_h = compared.work_h / compared.done.share_left
    return (
        f"the run goes on: {compared.work_h:.3g} h of {whole_h:g} h of work are left, and "
        f"${compared.done.spent_usd:,.2f} is spent"
    )


def _whose_hours(compared: Compared) -> str:
    if compared.request.hours:
        return f"--hours, on {compared.work_gpus}"
    on = "on" if compared.recipe.hardware.gpus else "made for a CPU and taken as if on"
    return f"the recipe, {on} {compared.work_gpus}"


def _checkpoints(compared: Compared) -> str:
    size = state_bytes(compared.recipe)
    unknown = "" if size else "model of unknown size: "
    where = compared.bucket.label + ("" if compared.request.bucket else "; assumed, as no --bucket is given")
    return (
        f"{unknown}checkpoints of {(size or DEFAULT_STATE_BYTES) / 1e9:.2g} GB, "
        f"at {UPLOAD_BYTES_PER_S / 1e9:g} GB/s, in {where}"
    )


def _memory(recipe: Recipe, best: Plan | None) -> list[str]:
    """Of the GPUs and of the host."""
    found = []
    if shape_of(recipe.model.name) is None:
        found.append(f"the shape of {recipe.model.name} is not known, so its memory is not checked")
    elif best is not None:
        measured = "a sum (23 to 27 % above what one H100 took) that keeps a third in reserve"
        found.append(f"memory, by {measured}: {best.memory}")
    if recipe.hardware.gpus is not None:
        found.append(
            "the host's memory has to hold what is offloaded, a copy of the state, and "
            f"{HOST_GIB_PER_RANK} GiB for each rank (assumed)"
        )
    return found


def _left_out(compared: Compared) -> list[str]:
    """What is no plan: it does not fit, nobody sells it, or its hours are not known."""
    there = {offer.gpus for offer in compared.offers}
    unsold = [f"nobody sells {gpus}" for gpus in map(str, compared.request.gpus) if gpus not in there]
    unknown = [f"no hours on {name} are known: give --gpus {name} --hours H" for name in compared.unknown_speed]
    return [*_misfits(compared.offers), *unsold, *unknown]


def _misfits(offers: Sequence[Offer]) -> list[str]:
    """Which nodes do not fit, and why. Named by their GPUs where all with those are out."""
    some = {offer.gpus for offer in offers if offer.fits}
    found = (
        (f"{offer.cloud} {offer.instance_type}" if offer.gpus in some else offer.gpus, offer.misfit)
        for offer in offers
        if not offer.fits
    )
    return [f"{name} does not fit: {reason}" for name, reason in dict.fromkeys(found)]

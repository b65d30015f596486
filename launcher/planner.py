"""From a request and offers to plans: what fits, what each way to run comes to, and why one is recommended. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from launcher.errors import RequestError
from launcher.estimate import (
    DEFAULT_STATE_BYTES,
    START_H,
    UPLOAD_BYTES_PER_S,
    Estimate,
    SavePlan,
    Surroundings,
    estimate,
    save_plan,
)
from launcher.fees import Bucket, bucket_for, restore_usd
from launcher.hazard import ON_DEMAND_H, Hazard, Learned, assumed
from launcher.offers import Offer, by_kind
from launcher.plan import CONFIDENCE, DryRun, Plan, Rung, SlackCost, ZonePlan, limits_named, unkept
from launcher.policy.decide import work_hour_usd
from launcher.policy.market import MOST_ZONES, mean_spell_h
from launcher.policy.outlook import Problem, Restores, solve
from launcher.request import CLOUDS, Gpus, LaunchRequest, parse_gpus
from launcher.scenario import OnDemand, Scenario, Spot
from launcher.speeds import DERIVED, PCIE, SOURCE, TOKENS_PER_SECOND, WITHOUT_NVLINK, relative_speed
from trainer.gpus import GPU_MEMORY_GIB, VISIBLE, unusable
from trainer.memory import HOST_GIB_PER_RANK, Fit, fit, state_bytes
from trainer.recipe import Recipe
from trainer.shapes import shape_of

OTHER_ZONES = MOST_ZONES - 1
"""Of a spot market: their mean price is what the next machine costs while the cheapest zone has none."""
TABLE_STEPS = 120
"""To the deadline: the estimate's own tables of the policy are coarser than those of a run."""
PATIENCE, PATIENT_PLANS, WORTH_A_WORD = 2.0, 2, 0.97
"""A deadline of so many times the work is tried for so many plans, and named where it saves 3 %."""


@dataclass(frozen=True)
class _Kind:
    """All trusted offers of a cloud, GPU kind and market, and what the recipe is like on them."""

    offers: Sequence[Offer]
    speed: float
    """Against the recipe's own GPUs."""
    memory: str
    host_gib: int | None = None
    """To ask for: its cloud has smaller nodes of this kind, too."""

    @property
    def first(self) -> Offer:
        return self.offers[0]

    @property
    def name(self) -> str:
        market = "spot" if self.first.spot else "on demand"
        return f"{CLOUDS[self.first.cloud].label} {market} {self.first.gpus}"

    @property
    def rung(self) -> Rung:
        return Rung(cloud=self.first.cloud, gpus=self.first.gpus, spot=self.first.spot, host_gib=self.host_gib)


def wanted_gpus(request: LaunchRequest, recipe: Recipe) -> tuple[Gpus, ...]:
    """The nodes to look for: what was asked, else each kind with NVLink and a known speed, as many as the recipe was
    made for."""
    if request.gpus:
        return tuple(dict.fromkeys(request.gpus))
    count = parse_gpus(recipe.hardware.gpus or "A100:8").count
    return tuple(Gpus(name, count) for name in TOKENS_PER_SECOND if name not in WITHOUT_NVLINK)


class Planner:
    """All plans of a request, and questions about them."""

    def __init__(
        self,
        request: LaunchRequest,
        recipe: Recipe,
        offers: Sequence[Offer],
        source: str,
        learned: Mapping[tuple[str, str], Learned] | None = None,
    ) -> None:
        """`learned` is what the user's own runs have met, by cloud and GPUs; the others are assumed.

        Raises `RequestError` where all GPUs that were asked for are of unknown speed, and no --hours says it.
        """
        self.request, self.recipe, self.source, self.learned = request, recipe, source, learned or {}
        self.work_h = request.hours or recipe.hardware.hours
        self.made_for = parse_gpus(recipe.hardware.gpus or "A100:8")
        self.base = self._base(offers)
        self.base_pcie = self._hours_are_of_one_node and all(offer.pcie for offer in offers)
        self.bucket: Bucket = bucket_for(request.bucket)
        nodes = {name: parse_gpus(name) for name in dict.fromkeys(offer.gpus for offer in offers)}
        cards = {name: self._fit(gpus) for name, gpus in nodes.items()}
        fitting = {name: gpus for name, gpus in nodes.items() if cards[name].fits}
        self.unknown_speed = [name for name, gpus in fitting.items() if relative_speed(gpus, self.base) is None]
        self._refuse_unknown_speed(fitting)
        fits = {key: cards[key[0]].on_host(key[1]) for key in dict.fromkeys(map(_node_of, offers))}
        self.offers = [_judged(offer, fits[_node_of(offer)]) for offer in offers]
        possible = (offer for offer in self.offers if offer.fits and offer.gpus not in self.unknown_speed)
        kinds = by_kind(possible, trusted_only=not request.trust_prices)
        self.kinds = [self._kind(group, fits[_node_of(group[0])]) for group in kinds]
        self.misfits = _misfits(self.offers)
        self._asked: dict[Rung, Sequence[Offer]] = {}

    def compare(self) -> DryRun:
        """All plans and the choice. Decides nothing that a machine could change: no clock, no network."""
        plans = [plan for kind in self.kinds if self._wanted(kind) and (plan := self._plan(kind))]
        plans.sort(key=lambda plan: plan.expected_cost_usd)
        best = next((plan for plan in plans if plan.within_limits), None)
        return DryRun(
            recipe=self.recipe.name,
            work_h=self.work_h,
            offers=tuple(self.offers),
            plans=tuple(plans),
            recommended=best.name if best else None,
            reason=_reason(best, plans, self.request),
            advice=tuple(self._advice(best, plans)),
            assumptions=tuple(self._assumptions(best)),
        )

    def hazard_of(self, plan: Plan) -> Hazard | None:
        """Of its spot market."""
        return self._hazard(self._kind_of(plan)) if plan.ladder[0].spot else None

    def slack_costs(self, plan: Plan) -> list[SlackCost]:
        """What the plan's market costs by deadline, from 1.1 to 4 times the work; nothing without a choice."""
        if not plan.ladder[0].spot or len(plan.ladder) < 2:
            return []
        found = []
        for share in (1.1, 1.25, 1.5, 2, 3, 4):
            deadline_h = round(plan.work_h * share + START_H, 1)
            told = self._with_deadline(plan, deadline_h)
            if told is not None:
                found.append(
                    SlackCost(
                        deadline_h=deadline_h,
                        expected_cost_usd=told.expected_cost_usd,
                        cost_p95_usd=told.cost_p95_usd,
                        expected_finish_h=told.expected_finish_h,
                        on_demand_share=told.on_demand_h / (told.spot_h + told.on_demand_h),
                    )
                )
        return found

    def _kind_of(self, plan: Plan) -> _Kind:
        return next(kind for kind in self.kinds if kind.rung == plan.ladder[0])

    def _with_deadline(self, plan: Plan, deadline_h: float) -> Estimate | None:
        return self._estimate(self._kind_of(plan), self.request.model_copy(update={"deadline_h": deadline_h}))

    # --- one plan -----------------------------------------------------------------------------------

    def _wanted(self, kind: _Kind) -> bool:
        return self.request.market == "auto" or kind.first.spot == (self.request.market == "spot")

    def _plan(self, kind: _Kind) -> Plan | None:
        """None where a machine is taken away faster than it gets on, or spot is no cheaper than on demand."""
        if not self._zones(kind):
            return None
        told = self._estimate(kind, self.request)
        if told is None:
            return None
        in_time = told.deadline_probability is None or told.deadline_probability >= CONFIDENCE
        affordable = told.budget_probability is None or told.budget_probability >= CONFIDENCE
        behind = self._behind(kind) if kind.first.spot else None
        return Plan(
            **told.model_dump(),
            name=kind.name,
            ladder=(kind.rung, behind.rung) if behind else (kind.rung,),
            work_h=self.work_h / kind.speed,
            price_usd_per_hour=kind.first.price_usd_per_hour,
            on_demand_usd_per_hour=behind.first.price_usd_per_hour if behind else None,
            restore_usd=restore_usd(self.bucket, "", self._saving(kind).state_bytes),
            bucket_cloud=self.bucket.cloud,
            hazard=self._hazard(kind).source if kind.first.spot else None,
            zones=self._zone_plans(kind) if kind.first.spot else (),
            memory=kind.memory,
            within_limits=in_time and affordable,
        )

    def _estimate(self, kind: _Kind, request: LaunchRequest) -> Estimate | None:
        """An on-demand kind stands behind itself."""
        behind = self._behind(kind) if kind.first.spot else kind
        around = Surroundings(self.bucket, kind.first.cloud, behind.first.cloud if behind else "")
        saving = self._saving(kind)
        return estimate(self._scenario(kind, behind, saving, request), saving, around, budget_usd=request.budget_usd)

    def _scenario(self, kind: _Kind, behind: _Kind | None, saving: SavePlan, request: LaunchRequest) -> Scenario:
        work_h = self.work_h / kind.speed
        scenario = Scenario(
            work_h, START_H, deadline_h=request.deadline_h,
            slowdown=saving.slowdown, interval_h=saving.interval_h, upload_h=saving.upload_h,
        )  # fmt: skip
        if behind is not None:
            price = behind.first.price_usd_per_hour
            restore = self._restore_usd(behind)
            scenario = replace(scenario, on_demand=OnDemand(price, behind.speed / kind.speed, restore))
        if not kind.first.spot:
            return scenario
        hazard = self._hazard(kind)
        first_usd, *others = (zone.price_usd_per_hour for zone in self._zones(kind)[: 1 + OTHER_ZONES])
        elsewhere_usd = sum(others) / len(others) if others else first_usd
        restore = self._restore_usd(kind)
        scenario = replace(scenario, spot=Spot(first_usd, elsewhere_usd, hazard.world, restore, hazard.ends_elsewhere))
        if behind is None or request.deadline_h is None:
            return scenario
        ratio = round(kind.first.price_usd_per_hour / behind.first.price_usd_per_hour, 2)
        slack_h = max(0.0, request.deadline_h - work_h)
        problem = Problem(
            work_h, work_h + slack_h, START_H, ratio, (work_h + slack_h) / TABLE_STEPS, hazard.chain,
            restores=Restores(*(self._restore_usd(one) / behind.first.price_usd_per_hour for one in (kind, behind))),
        )  # fmt: skip
        return replace(scenario, outlook=solve(problem))

    def _behind(self, kind: _Kind) -> _Kind | None:
        """The on-demand kind that stands behind a spot market: the cheapest of the same GPUs, else of faster ones.

        Of the same, because another kind of GPU rounds otherwise: the run would go on, but not bit for bit.
        """
        if self.request.market == "spot":
            return None
        usable = [other for other in self.kinds if not other.first.spot and other.speed >= kind.speed * 0.999]
        same = [other for other in usable if other.first.gpus == kind.first.gpus]
        return min(same or usable, key=lambda other: other.first.price_usd_per_hour / other.speed, default=None)

    def _saving(self, kind: _Kind) -> SavePlan:
        mean_h = mean_spell_h(self._hazard(kind).world.machine_ends) if kind.first.spot else ON_DEMAND_H
        return save_plan(self.recipe.saves, state_bytes(self.recipe), mean_h)

    def _zones(self, kind: _Kind) -> Sequence[Offer]:
        """Those that the policy asks, in its order: spot by the price of an hour of work, where that is cheaper than on
        the machine behind."""
        if kind.rung not in self._asked:
            self._asked[kind.rung] = self._worth_asking(kind) if kind.first.spot else kind.offers
        return self._asked[kind.rung]

    def _worth_asking(self, kind: _Kind) -> Sequence[Offer]:
        behind, hazard, restore = self._behind(kind), self._hazard_in(kind, kind.offers), self._restore_usd(kind)
        limit_usd = behind.first.price_usd_per_hour if behind else math.inf

        def work_usd(offer: Offer) -> float:
            life_h = hazard.life_in(offer.area).mean_h
            return work_hour_usd(offer.price_usd_per_hour, 1 / life_h, START_H, restore)

        return sorted((offer for offer in kind.offers if work_usd(offer) < limit_usd), key=work_usd)

    def _zone_plans(self, kind: _Kind) -> tuple[ZonePlan, ...]:
        hazard = self._hazard(kind)

        def told(offer: Offer) -> ZonePlan:
            mean_h, basis, spells = hazard.life_in(offer.area)
            price = offer.price_usd_per_hour
            return ZonePlan(
                zone=offer.area, price_usd_per_hour=price, mean_life_h=mean_h, basis=basis, own_spells=spells
            )

        return tuple(map(told, self._zones(kind)))

    def _restore_usd(self, kind: _Kind) -> float:
        return restore_usd(self.bucket, kind.first.cloud, state_bytes(self.recipe) or DEFAULT_STATE_BYTES)

    def _hazard(self, kind: _Kind) -> Hazard:
        return self._hazard_in(kind, self._zones(kind))

    def _hazard_in(self, kind: _Kind, zones: Sequence[Offer]) -> Hazard:
        learned = self.learned.get((kind.first.cloud, kind.first.gpus))
        if learned is not None and self.request.hazard_h is None:
            return learned.hazard([offer.area for offer in zones])
        return assumed(len(zones), self.request.hazard_h)

    def _fit(self, gpus: Gpus) -> Fit:
        """By its cards; the host's memory differs from offer to offer (`Fit.on_host`)."""
        if self.recipe.hardware.gpus and gpus.count < self.made_for.count:
            return Fit(False, None, f"the recipe's batch is made for {self.made_for.count} GPUs")
        if self.recipe.hardware.gpus and (why := unusable(gpus.name)):
            return Fit(False, None, why)
        memory_gib = GPU_MEMORY_GIB.get(gpus.name)
        return fit(self.recipe, memory_gib * VISIBLE if memory_gib else None, gpus.count)

    def _kind(self, group: Sequence[Offer], found: Fit) -> _Kind:
        first = group[0]
        market = (first.cloud, first.gpus, first.spot)
        small = any(not offer.fits for offer in self.offers if (offer.cloud, offer.gpus, offer.spot) == market)
        if not small or found.host_gib is None or first.host_gib is None:
            # Nor where the catalog doesn't say: SkyPilot would not find that node any more if the task asked for some.
            return _Kind(group, self._speed(first), found.reason)
        return _Kind(group, self._speed(first), found.reason, math.ceil(found.host_gib))

    def _base(self, offers: Sequence[Offer]) -> Gpus:
        """Whose hours they are: with --hours those of the one node that was asked for, else of the recipe's."""
        return parse_gpus(offers[0].gpus) if self._hours_are_of_one_node and offers else self.made_for

    @property
    def _hours_are_of_one_node(self) -> bool:
        return self.request.hours is not None and len(set(self.request.gpus)) == 1

    def _refuse_unknown_speed(self, nodes: Mapping[str, Gpus]) -> None:
        if nodes and len(self.unknown_speed) == len(nodes):
            first = self.unknown_speed[0]
            raise RequestError(
                f"how fast {' or '.join(self.unknown_speed)} trains is not known here (known: "
                f"{', '.join(TOKENS_PER_SECOND)}), so neither are the hours of work",
                f"give them for one kind of node: --gpus {first} --hours H",
            )

    def _speed(self, offer: Offer) -> float:
        speed = relative_speed(parse_gpus(offer.gpus), self.base, pcie=offer.pcie)
        assert speed is not None, "those of unknown speed are no kind"
        return speed / PCIE if self.base_pcie else speed

    # --- words --------------------------------------------------------------------------------------

    def _advice(self, best: Plan | None, plans: Sequence[Plan]) -> list[str]:
        if best is None:
            return []
        found = [self._patience(best, plans)] if self.request.deadline_h is None else []
        found.append(self._free_egress(best, plans))
        return [line for line in found if line]

    def _free_egress(self, best: Plan, plans: Sequence[Plan]) -> str:
        """Which plan would be the cheapest if restores left the bucket's cloud for nothing."""

        def without_usd(plan: Plan) -> float:
            return plan.expected_cost_usd - plan.egress_usd

        plan = min((plan for plan in plans if plan.egress_usd >= 1), key=without_usd, default=None)
        if plan is None or without_usd(plan) >= best.expected_cost_usd:
            return ""
        clouds = list(dict.fromkeys(rung.cloud for rung in plan.ladder))
        abroad = " and ".join(CLOUDS[cloud].label for cloud in clouds if cloud != self.bucket.cloud)
        near = f", or one in {CLOUDS[clouds[0]].label}," if len(clouds) == 1 else ""
        return (
            f"restores from {self.bucket.label} in {abroad} are ${plan.egress_usd:,.2f} of what {plan.name} "
            f"costs: a bucket without egress fees (Cloudflare R2){near} saves that"
        )

    def _patience(self, best: Plan, plans: Sequence[Plan]) -> str:
        """What a deadline of twice the work would save, by the spot markets that are cheapest without one."""
        spot = [plan for plan in plans if plan.ladder[0].spot and len(plan.ladder) > 1][:PATIENT_PLANS]
        told = [(plan, self._with_deadline(plan, PATIENCE * plan.work_h)) for plan in spot]
        patient = [(plan, estimate.expected_cost_usd) for plan, estimate in told if estimate is not None]
        plan, cost_usd = min(patient, key=lambda item: item[1], default=(best, best.expected_cost_usd))
        if cost_usd > WORTH_A_WORD * best.expected_cost_usd:
            return ""
        return (
            f"with --deadline {PATIENCE * plan.work_h:.0f}h {plan.name} would wait for spot and cost about "
            f"${cost_usd:,.2f}; without a deadline nobody waits while on demand has machines"
        )

    def _assumptions(self, best: Plan | None) -> list[str]:
        hours = self._whose_hours()
        derived = [text for kind, text in DERIVED.items() if any(kind == parse_gpus(o.gpus).name for o in self.offers)]
        where = self.bucket.label + ("" if self.request.bucket else "; assumed, as no --bucket is given")
        size = state_bytes(self.recipe)
        spot = [kind for kind in self.kinds if kind.first.spot and self._wanted(kind)]
        unknown = "" if size else "model of unknown size: "
        found = [
            f"prices: {self.source}",
            f"{self.work_h:g} h of work ({hours}); {'; '.join([SOURCE, *derived])}; "
            f"cards on PCIe at {PCIE:g} of that (assumed)",
            *dict.fromkeys(self._hazard(kind).source for kind in spot),
            "on-demand machines can be had at once and are never taken away",
            f"{START_H * 60:.0f} min from the launch of a machine to its first step",
            f"{unknown}checkpoints of {(size or DEFAULT_STATE_BYTES) / 1e9:.2g} GB, "
            f"at {UPLOAD_BYTES_PER_S / 1e9:g} GB/s, in {where}",
        ]
        if shape_of(self.recipe.model.name) is None:
            found.append(f"the shape of {self.recipe.model.name} is not known, so its memory is not checked")
        elif best is not None:
            measured = "a sum (26 % above what one H100 took) that keeps a third in reserve"
            found.append(f"memory, by {measured}: {best.memory}")
        if self.recipe.hardware.gpus is not None:
            found.append(
                "the host's memory has to hold what is offloaded, a copy of the state, and "
                f"{HOST_GIB_PER_RANK} GiB for each rank (assumed)"
            )
        found += self.misfits
        there = {offer.gpus for offer in self.offers}
        found += [f"nobody sells {gpus}" for gpus in map(str, self.request.gpus) if gpus not in there]
        found += [f"no hours on {name} are known: give --gpus {name} --hours H" for name in self.unknown_speed]
        return found

    def _whose_hours(self) -> str:
        if self.request.hours:
            return f"--hours, on {self.base}"
        return f"the recipe, {'on' if self.recipe.hardware.gpus else 'made for a CPU and taken as if on'} {self.base}"


def _node_of(offer: Offer) -> tuple[str, float | None]:
    """What decides whether a recipe fits: the GPUs, and the host's memory."""
    return offer.gpus, offer.host_gib


def _judged(offer: Offer, found: Fit) -> Offer:
    return offer.model_copy(update={"fits": found.fits, "misfit": "" if found.fits else found.reason})


def _misfits(offers: Sequence[Offer]) -> list[str]:
    """Which nodes do not fit, and why. Named by their GPUs where all with those are out."""
    some = {offer.gpus for offer in offers if offer.fits}
    found = (
        (f"{offer.cloud} {offer.instance_type}" if offer.gpus in some else offer.gpus, offer.misfit)
        for offer in offers
        if not offer.fits
    )
    return [f"{name} does not fit: {reason}" for name, reason in dict.fromkeys(found)]


def _reason(best: Plan | None, plans: Sequence[Plan], request: LaunchRequest) -> str:
    if best is None:
        return unkept(plans, request)[0] if plans else "no trusted offer fits"
    limited = limits_named(request)
    limits = limited or "no limit given"
    others = [plan for plan in plans if plan is not best and plan.within_limits]
    if not others:
        return f"the only plan that keeps {limits}" if limited else "the only plan"
    saved = others[0].expected_cost_usd - best.expected_cost_usd
    return f"cheapest in expectation ({limits}), ${saved:,.2f} below the next, {others[0].name}"

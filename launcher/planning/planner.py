"""Turn a request and offers into plans: the estimate of each way to run, and the recommended one. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from checkpoints.storage.list_prices import StoragePrices
from launcher.catalog.offers import Offer
from launcher.planning.estimate import (
    DEFAULT_STATE_BYTES,
    START_H,
    Estimate,
    Locations,
    SavePlan,
    estimate,
    save_plan,
)
from launcher.planning.node_types import NodeKind, supply_for
from launcher.planning.plan import CONFIDENCE, Candidate, DryRun, Plan, SlackCost, ZonePlan
from launcher.planning.plan_notes import DeadlineTrial, PlanComparison, advice, assumptions, reason
from launcher.planning.scenario import OnDemand, Scenario, Spot
from launcher.planning.storage_costs import bucket_for, keep_usd_per_h, restore_usd
from launcher.planning.work_left import NOT_STARTED, RunProgress
from launcher.policy.slack_value import Problem, Restores, solve
from launcher.policy.spot.market import MOST_ZONES, mean_spell_h
from launcher.policy.spot.preemption_rates import ON_DEMAND_H, Hazard, Learned, assumed
from launcher.policy.work_price import work_hour_usd
from launcher.request import LaunchRequest
from trainer.config.memory_estimate import state_bytes
from trainer.config.recipe import Recipe

OTHER_ZONES = MOST_ZONES - 1
"""Zones of a spot market whose mean price is that of the next machine while the cheapest zone has none."""
TABLE_STEPS = 120
"""Steps to the deadline: the policy tables of an estimate are coarser than those of a run."""
MOST_START_STEPS = 200
"""Most table steps per start: for the last second of a run, a table as fine as its work would have a million."""
TRIAL_DEADLINE, TRIAL_PLANS = 2.0, 2
"""Without a deadline, one of `TRIAL_DEADLINE` times the work is also tried, for the `TRIAL_PLANS` cheapest plans."""


class Planner:
    """All plans of a request, and questions about them."""

    def __init__(
        self,
        request: LaunchRequest,
        recipe: Recipe,
        offers: Sequence[Offer],
        source: str,
        learned: Mapping[tuple[str, str], Learned] | None = None,
        done: RunProgress = NOT_STARTED,
    ) -> None:
        """Prepare the plans of a request.

        `learned`: statistics of the user's own runs, by cloud and GPUs; the other markets are assumed. `done`: what a
        resumed run has done already; the plans cover the rest.

        Raises `RequestError` if the speed of all requested GPUs is unknown and --hours doesn't give their time.
        """
        self.request, self.recipe, self.source, self.learned = request, recipe, source, learned or {}
        self.done = done
        self.work_h = (request.hours or recipe.hardware.hours) * done.share_left
        self.bucket: StoragePrices = bucket_for(request.bucket)
        self.supply = supply_for(request, recipe, offers)
        self._zones_by_kind: dict[Candidate, Sequence[Offer]] = {}

    def compare(self) -> DryRun:
        """All plans and the recommendation. Uses neither clock nor network."""
        plans = [plan for kind in self.supply.kinds if self._wanted(kind) and (plan := self._plan(kind))]
        plans.sort(key=lambda plan: plan.expected_cost_usd)
        best = next((plan for plan in plans if plan.within_limits), None)
        compared = self._compared(plans, best)
        return DryRun(
            recipe=self.recipe.name,
            work_h=self.work_h,
            offers=tuple(self.supply.offers),
            plans=tuple(plans),
            recommended=best.name if best else None,
            reason=reason(compared),
            advice=tuple(advice(compared)),
            assumptions=tuple(assumptions(compared)),
            share_left=self.done.share_left,
            spent_usd=compared.done.spent_usd,
        )

    def hazard_of(self, plan: Plan) -> Hazard | None:
        """The hazard of a plan's spot market."""
        return self._hazard(self._kind_of(plan)) if plan.ladder[0].spot else None

    def slack_costs(self, plan: Plan) -> list[SlackCost]:
        """Costs of the plan's market by deadline, from 1.1 to 4 times the work; empty without a choice."""
        if not plan.ladder[0].spot or len(plan.ladder) < 2:
            return []
        costs = []
        for share in (1.1, 1.25, 1.5, 2, 3, 4):
            deadline_h = round(plan.work_h * share + START_H, 1)
            estimate = self._with_deadline(plan, deadline_h)
            if estimate is not None:
                costs.append(
                    SlackCost(
                        deadline_h=deadline_h,
                        expected_cost_usd=estimate.expected_cost_usd,
                        cost_p95_usd=estimate.cost_p95_usd,
                        expected_finish_h=estimate.expected_finish_h,
                        on_demand_share=estimate.on_demand_h / (estimate.spot_h + estimate.on_demand_h),
                    )
                )
        return costs

    def _kind_of(self, plan: Plan) -> NodeKind:
        return next(kind for kind in self.supply.kinds if kind.candidate == plan.ladder[0])

    def _with_deadline(self, plan: Plan, deadline_h: float) -> Estimate | None:
        return self._estimate(self._kind_of(plan), self.request.model_copy(update={"deadline_h": deadline_h}))

    # --- the comparison -----------------------------------------------------------------------------

    def _compared(self, plans: Sequence[Plan], best: Plan | None) -> PlanComparison:
        spot = [kind for kind in self.supply.kinds if kind.first.spot and self._wanted(kind)]
        return PlanComparison(
            request=self.request,
            recipe=self.recipe,
            work_h=self.work_h,
            done=self._with_booked_cost(plans, best),
            work_gpus=self.supply.base.gpus,
            bucket=self.bucket,
            price_source=self.source,
            hazard_sources=tuple(dict.fromkeys(self._hazard(kind).source for kind in spot)),
            offers=self.supply.offers,
            unknown_speed=self.supply.unknown_speed,
            plans=plans,
            best=best,
            trials=self._deadline_trials(plans) if best is not None and self.request.deadline_h is None else (),
        )

    def _deadline_trials(self, plans: Sequence[Plan]) -> list[DeadlineTrial]:
        """The spot markets that are cheapest without a deadline, with a deadline of twice the work."""
        spot = [plan for plan in plans if plan.ladder[0].spot and len(plan.ladder) > 1][:TRIAL_PLANS]
        tried = [(plan, hours := TRIAL_DEADLINE * plan.work_h, self._with_deadline(plan, hours)) for plan in spot]
        return [DeadlineTrial(plan, hours, one.expected_cost_usd) for plan, hours, one in tried if one is not None]

    def _with_booked_cost(self, plans: Sequence[Plan], best: Plan | None) -> RunProgress:
        """Past work with what the strategy will book for it, from the recommended plan or else the first one."""
        shown = best or next(iter(plans), None)
        return self.done if shown is None else self.done._replace(spent_usd=shown.spent_usd)

    # --- one plan -----------------------------------------------------------------------------------

    def _wanted(self, kind: NodeKind) -> bool:
        return self.request.market == "auto" or kind.first.spot == (self.request.market == "spot")

    def _plan(self, kind: NodeKind) -> Plan | None:
        """The plan; None if machines are preempted before they make progress, or spot isn't cheaper than on demand."""
        if not self._zones(kind):
            return None
        estimate = self._estimate(kind, self.request)
        if estimate is None:
            return None
        saving = self._saving(kind)
        keeping = self._keeping(saving)
        storing = estimate.storage_usd / estimate.expected_finish_h
        in_time = estimate.deadline_probability is None or estimate.deadline_probability >= CONFIDENCE
        affordable = estimate.budget_probability is None or estimate.budget_probability >= CONFIDENCE
        behind = self._behind(kind) if kind.first.spot else None
        return Plan(
            **estimate.model_dump(),
            name=kind.name,
            ladder=(kind.candidate, behind.candidate) if behind else (kind.candidate,),
            work_h=self.work_h / kind.speed,
            price_usd_per_hour=kind.first.price_usd_per_hour,
            on_demand_usd_per_hour=behind.first.price_usd_per_hour if behind else None,
            restore_usd=restore_usd(self.bucket, "", saving.state_bytes),
            keep_usd_per_h=keeping,
            upload_h=saving.upload_h,
            save_every_h=(self.recipe.saves.every_minutes or 0.0) / 60,
            bucket_cloud=self.bucket.cloud,
            hazard=self._hazard(kind).source if kind.first.spot else None,
            zones=self._zone_plans(kind) if kind.first.spot else (),
            memory=kind.memory,
            within_limits=in_time and affordable,
            share_left=self.done.share_left,
            spent_usd=self.done.paid_usd(store_usd_per_h=storing, keep_usd_per_h=keeping),
        )

    def _keeping(self, saving: SavePlan) -> float:
        return keep_usd_per_h(self.bucket, saving.state_bytes, saving.kept)

    def _estimate(self, kind: NodeKind, request: LaunchRequest) -> Estimate | None:
        """Estimate a kind. An on-demand kind is its own fallback."""
        behind = self._behind(kind) if kind.first.spot else kind
        locations = Locations(self.bucket, kind.first.cloud, behind.first.cloud if behind else "")
        saving = self._saving(kind)
        left_usd = None
        if request.budget_usd is not None:
            keeping = self._keeping(saving)
            left_usd = request.budget_usd - self.done.paid_usd(store_usd_per_h=0.0, keep_usd_per_h=keeping)
        return estimate(
            self._scenario(kind, behind, saving, request),
            saving,
            locations,
            budget_usd=left_usd,
            machine_h_before=self.done.machine_h,
        )

    def _scenario(self, kind: NodeKind, behind: NodeKind | None, saving: SavePlan, request: LaunchRequest) -> Scenario:
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
        step_h = max((work_h + slack_h) / TABLE_STEPS, START_H / MOST_START_STEPS)
        problem = Problem(
            work_h, work_h + slack_h, START_H, ratio, step_h, hazard.chain,
            restores=Restores(*(self._restore_usd(one) / behind.first.price_usd_per_hour for one in (kind, behind))),
        )  # fmt: skip
        return replace(scenario, table=solve(problem))

    def _behind(self, kind: NodeKind) -> NodeKind | None:
        """The on-demand fallback of a spot market: the cheapest kind with the same GPUs, else with faster ones.

        The same GPUs are preferred because another kind rounds differently: the run would resume, but not bit for bit.
        """
        if self.request.market == "spot":
            return None
        usable = [other for other in self.supply.kinds if not other.first.spot and other.speed >= kind.speed * 0.999]
        same = [other for other in usable if other.first.gpus == kind.first.gpus]
        return min(same or usable, key=lambda other: other.first.price_usd_per_hour / other.speed, default=None)

    def _saving(self, kind: NodeKind) -> SavePlan:
        mean_h = mean_spell_h(self._hazard(kind).world.machine_ends) if kind.first.spot else ON_DEMAND_H
        return save_plan(self.recipe.saves, state_bytes(self.recipe), mean_h)

    def _zones(self, kind: NodeKind) -> Sequence[Offer]:
        """The zones in which the policy requests machines, in its order.

        Spot zones are ordered by the price of an hour of work, and only those are kept that are cheaper than the
        on-demand machine behind them.
        """
        if kind.candidate not in self._zones_by_kind:
            self._zones_by_kind[kind.candidate] = self._worth_trying(kind) if kind.first.spot else kind.offers
        return self._zones_by_kind[kind.candidate]

    def _worth_trying(self, kind: NodeKind) -> Sequence[Offer]:
        behind, hazard, restore = self._behind(kind), self._hazard_in(kind, kind.offers), self._restore_usd(kind)
        limit_usd = behind.first.price_usd_per_hour if behind else math.inf

        def work_usd(offer: Offer) -> float:
            life_h = hazard.life_in(offer.area).mean_h
            return work_hour_usd(offer.price_usd_per_hour, 1 / life_h, START_H, restore)

        return sorted((offer for offer in kind.offers if work_usd(offer) < limit_usd), key=work_usd)

    def _zone_plans(self, kind: NodeKind) -> tuple[ZonePlan, ...]:
        hazard = self._hazard(kind)

        def zone_plan(offer: Offer) -> ZonePlan:
            mean_h, basis, spells = hazard.life_in(offer.area)
            price = offer.price_usd_per_hour
            return ZonePlan(
                zone=offer.area, price_usd_per_hour=price, mean_life_h=mean_h, basis=basis, own_spells=spells
            )

        return tuple(map(zone_plan, self._zones(kind)))

    def _restore_usd(self, kind: NodeKind) -> float:
        return restore_usd(self.bucket, kind.first.cloud, state_bytes(self.recipe) or DEFAULT_STATE_BYTES)

    def _hazard(self, kind: NodeKind) -> Hazard:
        return self._hazard_in(kind, self._zones(kind))

    def _hazard_in(self, kind: NodeKind, zones: Sequence[Offer]) -> Hazard:
        learned = self.learned.get((kind.first.cloud, kind.first.gpus))
        if learned is not None and self.request.hazard_h is None:
            return learned.hazard([offer.area for offer in zones])
        return assumed(len(zones), self.request.hazard_h)

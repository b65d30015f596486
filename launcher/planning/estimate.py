"""Cost and finishing time of a plan, as distributions over simulated runs of the policy. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict

from checkpoints.storage.list_prices import StoragePrices
from launcher.planning.monte_carlo import Runs, simulate
from launcher.planning.scenario import Scenario
from launcher.planning.storage_costs import Fees, fees
from trainer.checkpointing.save_interval import auto_interval_minutes
from trainer.config.recipe import Saves

START_H = 0.25
"""From the launch to the first step on a fresh VM: boot, set-up with flash-attn's wheel, model download. Assumed."""
UPLOAD_BYTES_PER_S = 2e9
"""Upload rate of a node to a bucket. Assumed: NICs of such nodes do 12 GB/s, and clouds cap traffic to their APIs."""
STALL_S = 0.7
"""How long training pauses to save a 56 GB state on 8 GPUs, without overlap. From the storage facts."""
DEFAULT_STATE_BYTES = 60e9
"""Used if the model isn't known."""
RUNS = 1200


class Estimate(BaseModel):
    """The estimated outcome of a plan."""

    model_config = ConfigDict(frozen=True)

    expected_cost_usd: float
    """Machines, storage and egress."""
    cost_p5_usd: float
    cost_p95_usd: float
    expected_finish_h: float
    finish_p5_h: float
    finish_p95_h: float
    expected_preemptions: float
    expected_starts: float
    """Machine starts, including those after preemptions and moves. All but the first restore a checkpoint."""
    deadline_probability: float | None
    """None without a deadline."""
    budget_probability: float | None
    """None without a budget."""
    egress_usd: float
    storage_usd: float
    spot_h: float
    on_demand_h: float
    waiting_h: float
    lost_work_h: float


@dataclass(frozen=True)
class SavePlan:
    """What saving costs, from a recipe's save interval and the size of its state."""

    interval_h: float
    slowdown: float
    """Share of the training time that saves take."""
    upload_h: float
    state_bytes: float
    kept: int


@dataclass(frozen=True)
class Locations:
    """Locations of the machines and the bucket."""

    bucket: StoragePrices
    spot_cloud: str = ""
    on_demand_cloud: str = ""


def save_plan(saves: Saves, state_bytes: float | None, mean_to_preemption_h: float) -> SavePlan:
    """Plan the saves: at the recipe's interval in minutes, else at the interval that `auto` would choose.

    An interval in steps can't be converted to minutes before the run has a speed, so it counts as `auto` too.
    """
    size = DEFAULT_STATE_BYTES if state_bytes is None else state_bytes
    upload_s = size / UPLOAD_BYTES_PER_S
    stall_s = STALL_S * min(1.0, size / 56e9)
    minutes = saves.every_minutes or auto_interval_minutes(
        stall_s=stall_s, upload_s=upload_s, mean_time_to_preemption_s=mean_to_preemption_h * 3600
    )
    return SavePlan(minutes / 60, stall_s / (minutes * 60), upload_s / 3600, size, saves.keep + 1)


def estimate(
    scenario: Scenario,
    saving: SavePlan,
    locations: Locations,
    *,
    budget_usd: float | None = None,
    machine_h_before: float = 0.0,
    runs: int = RUNS,
) -> Estimate | None:
    """Estimate a plan from simulated runs; None if more than one run in twenty would never end.

    `budget_usd` must also pay for storage during the `machine_h_before` of earlier launches, at this plan's rate.
    """
    done = simulate(scenario, runs)
    if np.mean(np.isfinite(done.finish_h)) < 0.95:
        return None
    return summarize(done, saving, locations, scenario.deadline_h, budget_usd, machine_h_before)


def summarize(
    done: Runs,
    saving: SavePlan,
    locations: Locations,
    deadline_h: float | None,
    budget_usd: float | None,
    machine_h_before: float = 0.0,
) -> Estimate:
    """Summarize simulated runs."""
    finite = np.isfinite(done.finish_h)
    storage, egress = _fees(done, saving, locations)
    total = done.cost + storage + egress
    cost = np.where(finite, total, np.max(total[finite]))
    finish = np.where(finite, done.finish_h, np.max(done.finish_h[finite]))
    if budget_usd is not None:
        budget_usd -= machine_h_before * _mean(storage) / _mean(finish)
    return Estimate(
        expected_cost_usd=_mean(cost),
        cost_p5_usd=_level(cost, 5),
        cost_p95_usd=_level(cost, 95),
        expected_finish_h=_mean(finish),
        finish_p5_h=_level(finish, 5),
        finish_p95_h=_level(finish, 95),
        expected_preemptions=_mean(done.preemptions),
        expected_starts=_mean(done.starts),
        deadline_probability=None if deadline_h is None else _mean(done.finish_h <= deadline_h + 1e-9),
        budget_probability=None if budget_usd is None else _mean(finite & (cost <= budget_usd)),
        egress_usd=_mean(egress),
        storage_usd=_mean(storage),
        spot_h=_mean(done.spot_h),
        on_demand_h=_mean(done.on_demand_h),
        waiting_h=_mean(done.waited_h),
        lost_work_h=_mean(done.lost_h),
    )


def _fees(done: Runs, saving: SavePlan, locations: Locations) -> Fees:
    """Storage and egress of each run. Every start but the first restores a checkpoint."""
    on_demand = done.on_demand_starts - done.first_on_demand
    restores = {locations.spot_cloud: done.starts - 1 - on_demand}
    restores[locations.on_demand_cloud] = restores.get(locations.on_demand_cloud, np.zeros_like(on_demand)) + on_demand
    paid_h = done.spot_h + done.on_demand_h
    return fees(
        locations.bucket,
        hours=paid_h + done.waited_h,
        restores=restores,
        state_bytes=saving.state_bytes,
        kept=saving.kept,
        saves=paid_h / saving.interval_h,
    )


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values))


def _level(values: np.ndarray, percent: float) -> float:
    return float(np.percentile(values, percent))

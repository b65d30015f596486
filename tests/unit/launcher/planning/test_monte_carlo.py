"""Simulated runs: against the policy itself in the same world, and against what is known exactly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints.save.shard_upload import CHUNK_BYTES as UPLOADED_CHUNK_BYTES
from checkpoints.storage.list_prices import AMAZON_S3 as S3
from checkpoints.storage.list_prices import CLOUDFLARE_R2 as R2
from checkpoints.storage.list_prices import GOOGLE_CLOUD_STORAGE as GCS
from launcher.planning.estimate import Locations, estimate, save_plan
from launcher.planning.monte_carlo import Runs, simulate
from launcher.planning.scenario import OnDemand, Scenario, SpellLengths, Spot
from launcher.planning.storage_costs import CHUNK_BYTES, bucket_for, fees
from launcher.policy.settings import Settings
from launcher.policy.slack import slack_table_for
from launcher.policy.slack_value import Restores
from launcher.policy.spot.market import BINS, PRIOR_DOWN, PRIOR_UP, Chain, Rates, churned, mean_spell_h
from launcher.policy.spot.preemption_rates import assumed, median_spell_h
from tests.support.world import ON_DEMAND, SPOT, Told, World
from trainer.config.recipe import Saves

CHAIN = Chain(elsewhere=0.2)
LOOKS = Settings(check_h=1 / 30)
STEADY = Chain((0.25,) * BINS, (0.25,) * BINS, (2.0,) * BINS)


def scenario(
    deadline_h: float | None, chain: Chain = CHAIN, *, spot_only: bool = False, work_h: float = 6.0
) -> Scenario:
    price = SPOT.price_usd_per_hour
    table = None
    if deadline_h is not None and not spot_only:
        ratio = price / ON_DEMAND.price_usd_per_hour
        table = slack_table_for(work_h, deadline_h - work_h, 0.25, ratio, chain, Settings(check_h=0.1))
    return Scenario(
        work_h, 0.25, Spot(price, price, chain), None if spot_only else OnDemand(ON_DEMAND.price_usd_per_hour),
        interval_h=1 / 6, deadline_h=deadline_h, table=table, settings=LOOKS,
    )  # fmt: skip


def worlds(
    deadline_h: float | None,
    count: int,
    chain: Chain = CHAIN,
    *,
    spot_only: bool = False,
    restore_usd: float = 0.0,
    ends_elsewhere: Rates | None = None,
) -> list[Told]:
    return [
        World(
            work_h=6.0, start_h=0.25, chain=chain, deadline_h=deadline_h, interval_h=1 / 6,
            settings=LOOKS, seed=seed, spot_only=spot_only, restore_usd=restore_usd, ends_elsewhere=ends_elsewhere,
        ).run()
        for seed in range(count)
    ]  # fmt: skip


def agree(one_by_one: list[Told], at_once: Runs) -> None:
    """The means, within three standard errors (10,000 of them: docs)."""
    for name, found in (
        ("cost", at_once.cost),
        ("finish_h", at_once.finish_h),
        ("preemptions", at_once.preemptions),
        ("starts", at_once.starts),
    ):
        seen = np.array([getattr(told, name) for told in one_by_one])
        error = np.std(seen) / np.sqrt(len(seen))
        assert np.mean(found) == pytest.approx(np.mean(seen), abs=3 * error + 0.01 * np.mean(seen)), name


@pytest.mark.parametrize(("deadline_h", "spot_only"), [(None, False), (12.0, False), (7.5, False), (None, True)])
def test_the_simulation_does_what_the_policy_does(deadline_h: float | None, spot_only: bool) -> None:
    """300 runs decided one by one."""
    agree(worlds(deadline_h, 300, spot_only=spot_only), simulate(scenario(deadline_h, spot_only=spot_only), 10_000))


def test_the_simulation_counts_restores_and_zones_as_the_policy_does() -> None:
    """Egress of $7 into the on-demand machine's cloud, and the world of five zones."""
    told = scenario(None, assumed(5).world)
    assert told.on_demand is not None
    dear = replace(told, on_demand=told.on_demand._replace(restore_usd=7.0))
    at_once = simulate(dear, 10_000)
    agree(worlds(None, 300, assumed(5).world, restore_usd=7.0), at_once)
    assert np.mean(at_once.starts) < np.mean(simulate(told, 10_000).starts), "fewer moves"


@pytest.mark.parametrize("deadline_h", [13.5, 18.0])
def test_a_table_that_knows_what_restores_cost_saves_money_and_is_never_late(deadline_h: float) -> None:
    """A bucket in a third cloud: $5 for each start but the first."""
    chain = assumed(1).world
    told = scenario(deadline_h, chain, work_h=12.0)
    ratio, restore = SPOT.price_usd_per_hour / ON_DEMAND.price_usd_per_hour, 5 / ON_DEMAND.price_usd_per_hour
    table = slack_table_for(
        12.0, deadline_h - 12.0, 0.25, ratio, chain, Settings(check_h=0.1), Restores(restore, restore)
    )  # fmt: skip
    unaware, aware = (simulate(one, 5000) for one in (told, replace(told, table=table)))
    costs = [float(np.mean(runs.cost + 5 * (runs.starts - 1))) for runs in (unaware, aware)]
    assert costs[1] < 0.985 * costs[0]
    assert np.mean(aware.starts) < np.mean(unaware.starts)
    assert aware.finish_h.max() <= deadline_h + 1e-6


def test_machines_of_the_next_zones_may_live_otherwise() -> None:
    """A calm first zone, five of them in all, and rough others: as the world of one run has it."""
    chain = replace(assumed(5).world, machine_ends=tuple(rate / 2 for rate in PRIOR_UP))
    told = scenario(None, chain)
    assert told.spot is not None
    rough = tuple(rate * 2.5 for rate in PRIOR_UP)
    at_once = simulate(replace(told, spot=told.spot._replace(ends_elsewhere=rough)), 10_000)
    agree(worlds(None, 300, chain, ends_elsewhere=rough), at_once)
    alike = simulate(replace(told, spot=told.spot._replace(ends_elsewhere=chain.machine_ends)), 500)
    assert (alike.cost == simulate(told, 500).cost).all()
    assert np.mean(at_once.preemptions) > np.mean(alike.preemptions)


def test_spell_lengths_follow_their_hazard() -> None:
    spells = SpellLengths(PRIOR_UP)
    chance = 1 - np.random.default_rng(1).random(100_000)
    lengths = spells.rest(np.zeros_like(chance), chance)
    assert np.mean(lengths) == pytest.approx(mean_spell_h(PRIOR_UP), rel=0.02)
    assert np.median(lengths) == pytest.approx(median_spell_h(PRIOR_UP), rel=0.02)
    old = spells.rest(np.full_like(chance, 4.0), chance)
    assert np.mean(old) > 2 * np.mean(lengths), "a spell that has held for hours holds for longer"


def test_a_market_met_at_random_is_in_its_equilibrium() -> None:
    """Its age has the density of the survival: for a constant hazard that is the exponential itself."""
    age = SpellLengths((0.25,) * BINS).age_at_random_time(np.random.default_rng(1).random(100_000))
    assert np.mean(age) == pytest.approx(4.0, rel=0.02)


def test_spot_alone_with_a_constant_hazard_is_what_renewal_theory_says() -> None:
    """Preemptions come at a constant rate, so the expected machine hours have a closed form."""
    rate, work_h, start_h = 0.25, 6.0, 0.25
    runs = simulate(Scenario(work_h, start_h, Spot(1.0, 1.0, STEADY), interval_h=1e-9), 40_000)
    # Nothing is lost but starts. A start succeeds with exp(-rate x start); the tries before it cost their time.
    starts = 1 + np.mean(runs.preemptions)
    assert np.mean(runs.starts) == pytest.approx(starts)
    assert np.mean(runs.preemptions) == pytest.approx(rate * np.mean(runs.spot_h), rel=0.02), "Poisson in machine hours"
    # Between two good starts the work is exponential: 1 + rate x work of them, each after exp(rate x start) tries.
    assert starts == pytest.approx((1 + rate * work_h) * np.exp(rate * start_h), rel=0.03)


def test_on_demand_alone_is_certain() -> None:
    runs = simulate(Scenario(12.0, 0.25, on_demand=OnDemand(10.0, 2.0), slowdown=0.01), 10)
    assert runs.finish_h == pytest.approx(np.full(10, 0.25 + 6.06))
    assert runs.cost == pytest.approx(10 * runs.finish_h)


@settings(max_examples=40)
@given(
    work_h=st.floats(0.5, 20),
    slack_h=st.floats(0.0, 20),
    scale=st.floats(0.2, 5),
    start_h=st.sampled_from([0.05, 0.25, 0.5]),
)
def test_no_simulated_run_misses_a_deadline_that_on_demand_can_meet(
    work_h: float, slack_h: float, scale: float, start_h: float
) -> None:
    def scaled(rates: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(rate * scale for rate in rates)

    chain = Chain(scaled(PRIOR_UP), scaled(PRIOR_UP), scaled(PRIOR_DOWN), 0.2)
    deadline_h = work_h + start_h + slack_h
    table = slack_table_for(work_h, deadline_h - work_h, start_h, 0.5, chain, Settings(check_h=deadline_h / 100))
    told = Scenario(
        work_h, start_h, Spot(1.0, 1.2, chain), OnDemand(2.0), interval_h=0.0, deadline_h=deadline_h, table=table
    )
    runs = simulate(told, 200)
    assert np.all(runs.finish_h <= deadline_h + 1e-3)
    assert np.all(runs.cost > 0)


def test_the_same_seed_gives_the_same_runs() -> None:
    first, second = simulate(scenario(12.0), 100), simulate(scenario(12.0), 100)
    assert np.array_equal(first.cost, second.cost)


def test_a_market_that_never_lets_a_run_through_has_no_estimate() -> None:
    hopeless = Chain((60.0,) * BINS, (60.0,) * BINS, PRIOR_DOWN)
    plan = save_plan(Saves(), 1e9, 1 / 60)
    assert estimate(Scenario(6.0, 0.25, Spot(1.0, 1.0, hopeless)), plan, Locations(R2), runs=20) is None


# --- saves and fees ---------------------------------------------------------------------------------


def test_the_rhythm_of_saves_follows_the_recipe_and_the_hazard() -> None:
    fixed = save_plan(Saves(every_minutes=30), 56e9, 3.0)
    assert fixed.interval_h == 0.5
    assert fixed.upload_h == pytest.approx(28 / 3600)
    assert fixed.slowdown == pytest.approx(0.7 / 1800)
    often, seldom = save_plan(Saves(auto=True), 56e9, 1.0), save_plan(Saves(auto=True), 56e9, 30.0)
    assert often.interval_h < seldom.interval_h
    assert save_plan(Saves(auto=True), None, 3.0).state_bytes == 60e9


def test_the_first_start_restores_nothing_whatever_machine_it_is() -> None:
    """With a bucket in the spot machines' cloud: only on-demand starts after the first one pay for the way out."""
    told = Scenario(6.0, 0.25, Spot(8.0, 8.0, CHAIN), OnDemand(16.0))
    runs, saving = simulate(told, 1200), save_plan(Saves(), 50e9, 3.0)
    found = estimate(told, saving, Locations(S3, "aws", "lambda"))
    assert found is not None
    assert 0 < np.mean(runs.first_on_demand) < 1
    restores = np.mean(runs.on_demand_starts - runs.first_on_demand)
    assert found.egress_usd == pytest.approx(50 * 0.09 * restores)
    spot_abroad = estimate(told, saving, Locations(S3, "gcp", "aws"))
    assert spot_abroad is not None
    assert spot_abroad.egress_usd + found.egress_usd == pytest.approx(50 * 0.09 * np.mean(runs.starts - 1))


def test_fees_of_a_run() -> None:
    one = np.ones(1)
    found = fees(GCS, hours=24 * one, restores={"gcp": 2 * one, "lambda": 3 * one}, state_bytes=56e9, kept=2, saves=one)
    assert found.egress_usd == pytest.approx(3 * 56 * 0.12)
    keeping = 2 * 56 * 0.020 * 24 / 730
    assert found.storage_usd == pytest.approx(keeping + 0.19, abs=0.02)  # heartbeats are most of the requests
    assert fees(R2, hours=one, restores={"lambda": one}, state_bytes=56e9, kept=2, saves=one).egress_usd == 0


def test_the_bucket_of_a_url() -> None:
    assert bucket_for("gs://b/x") is GCS
    assert bucket_for("s3://b", {}) is S3
    assert bucket_for("s3://b", {"AWS_ENDPOINT_URL": "https://x.r2.cloudflarestorage.com"}) is R2
    assert bucket_for("s3://b", {"AWS_ENDPOINT_URL_S3": "https://x.r2.cloudflarestorage.com"}) is R2
    assert bucket_for(None) is R2
    assert CHUNK_BYTES == UPLOADED_CHUNK_BYTES


def test_more_zones_make_a_market_no_worse() -> None:
    """With 33 zones a machine lived 1.7 h, and with one 2.7 h: a constant that was tuned for the policy's own table."""
    worlds = [assumed(zones).world for zones in (1, 2, 3, 5)]
    assert {told.machine_ends for told in worlds} == {PRIOR_UP}
    assert [round(told.elsewhere, 2) for told in worlds] == [0, 0.23, 0.41, 0.65]
    assert [round(mean_spell_h(told.down_ends), 1) for told in worlds] == [1.9, 1.2, 0.9, 0.7]
    assert assumed(33).world == assumed(5).world, "more were never recorded together"
    by_hand = [assumed(zones, 4.0).world for zones in (1, 5)]
    assert by_hand[0].elsewhere < by_hand[1].elsewhere
    assert assumed(33).chain == churned(0.0, 2), "the policy keeps what replays have tuned"


def test_a_market_of_several_zones_is_met_as_often_as_it_is_up() -> None:
    """An up spell is that of the first zone, and of those that follow it: each begins at the age of an unseen one."""
    chain = Chain((0.25,) * BINS, (0.25,) * BINS, (0.5,) * BINS, elsewhere=0.5)
    runs = simulate(Scenario(0.001, 0.001, Spot(1.0, 1.0, chain), OnDemand(2.0)), 20_000)
    assert 1 - np.mean(runs.on_demand_starts) == pytest.approx(8 / (8 + 2), abs=0.01)


def test_a_hazard_by_hand_is_the_same_at_every_age() -> None:
    hazard = assumed(3, 4.0)
    assert hazard.chain.machine_ends == (0.25,) * BINS
    assert hazard.world.machine_ends == hazard.chain.machine_ends
    assert "assumed" in assumed(1).source


@pytest.mark.parametrize("state_bytes", [0.4e9, 58e9])
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_the_interval_that_auto_takes_is_within_two_percent_of_the_best_in_hindsight(
    state_bytes: float, scale: float
) -> None:
    """Spot alone, a machine hour costs 1: the cost of fixed intervals from 1 min to 1 h against the chosen one."""
    rates = tuple(rate * scale for rate in PRIOR_UP)
    chain = Chain(rates, rates, PRIOR_DOWN)
    chosen = save_plan(Saves(auto=True), state_bytes, mean_spell_h(rates))
    stall_h = chosen.slowdown * chosen.interval_h

    def cost(interval_h: float) -> float:
        told = Scenario(
            12.0, 0.25, Spot(1.0, 1.0, chain),
            slowdown=stall_h / interval_h, interval_h=interval_h, upload_h=chosen.upload_h,
        )  # fmt: skip
        return float(np.mean(simulate(told, 2000).cost))

    best = min(cost(minutes / 60) for minutes in (1, 2, 4, 8, 15, 30, 60))
    assert cost(chosen.interval_h) <= 1.02 * best

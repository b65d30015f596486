"""The dynamic program against a recursion written the slow way, and the promises of the policy that it serves."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.policy.model import Observation, Place, PlaceState
from launcher.policy.moves import chance_up
from launcher.policy.slack_value import (
    AFTER_A_LOSS,
    NO_END_H,
    NO_RESTORES,
    Array,
    Problem,
    Restores,
    _Solver,
    solve,
    step_of,
)
from launcher.policy.spot.market import (
    AGE_EDGES_H,
    BINS,
    PRIOR_DOWN,
    PRIOR_UP,
    USUAL_UP,
    Chain,
    Prober,
    SpotMarket,
    age_bin,
    churned,
    log_churn,
    survival,
)
from launcher.replay.referee_adapter import IDLE, ON_DEMAND, RefereePolicy

STEP_H = 0.25
CHAIN = Chain(PRIOR_UP, PRIOR_UP, PRIOR_DOWN, elsewhere=0.3)
PROBLEM = Problem(work_h=2.0, deadline_h=3.5, restart_h=0.25, spot_price=0.35, step_h=STEP_H, chain=CHAIN)
AGES_H = (0.1, 0.3, 1.0, 2.0, 5.0, 20.0)


class Slow:
    """The same model as a recursion over (mode, work left, time left, up, age bin), in steps of `STEP_H`."""

    def __init__(self, problem: Problem) -> None:
        self.p = problem
        self.restart = round(problem.restart_h / STEP_H)

    def market(self, up: bool, age: int) -> list[tuple[float, bool, int]]:
        rates = self.p.chain.up_ends if up else self.p.chain.down_ends
        return [*self.spell(rates, up, age), (self.ends(rates, age), not up, 0)]

    def spell(self, rates: tuple[float, ...], up: bool, age: int) -> list[tuple[float, bool, int]]:
        width = (*AGE_EDGES_H, 1e9)[age] - (0.0, *AGE_EDGES_H)[age]
        older, on = min(1.0, STEP_H / width), 1 - self.ends(rates, age)
        return [(on * (1 - older), up, age), (on * older, up, min(age + 1, BINS - 1))]

    def ends(self, rates: tuple[float, ...], age: int) -> float:
        return 1 - math.exp(-rates[age] * STEP_H)

    @cache  # noqa: B019
    def run(self, mode: str, work: int, left: int, up: bool, age: int) -> float:
        """Cost of being on a machine for this step, and of the best that follows."""
        if work <= 0:
            return 0.0
        if left <= 0:
            return 1e3
        if mode == "od":
            return STEP_H + sum(p * self.best("od", work - 1, left - 1, *s) for p, *s in self.market(up, age))
        rates, elsewhere = self.p.chain.machine_ends, self.p.chain.elsewhere
        kept = sum(p * self.run("spot", work - 1, left - 1, *s) for p, *s in self.spell(rates, True, age))
        lost = elsewhere * self.best("idle", work - 1, left - 1, True, AFTER_A_LOSS)
        lost += (1 - elsewhere) * self.best("idle", work - 1, left - 1, False, 0)
        return self.p.spot_price * STEP_H + kept + self.ends(rates, age) * lost

    def options(self, mode: str, work: int, left: int, up: bool, age: int) -> dict[str, float]:
        new = work + self.restart
        found = {"od": self.run("od", work if mode == "od" else new, left, up, age)}
        found["od"] += 0.0 if mode == "od" else self.p.restores.on_demand
        if left - 1 >= work + self.restart:
            found["idle"] = sum(p * self.best("idle", work, left - 1, *s) for p, *s in self.market(up, age))
        if up and left >= work + 2 * self.restart:
            found["spot"] = self.run("spot", new, left, up, age) + self.p.restores.spot
        return found

    @cache  # noqa: B019
    def best(self, mode: str, work: int, left: int, up: bool, age: int) -> float:
        return 0.0 if work <= 0 else 1e3 if left <= 0 else min(self.options(mode, work, left, up, age).values())


@pytest.mark.parametrize("restores", [NO_RESTORES, Restores(0.3, 0.3), Restores(spot=0.2), Restores(on_demand=0.4)])
@pytest.mark.parametrize("restart_h", [0.25, 0.5])
@pytest.mark.parametrize("up", [True, False])
def test_the_thresholds_are_those_of_the_recursion(up: bool, restart_h: float, restores: Restores) -> None:
    problem = Problem(2.0, 3.5, restart_h, 0.35, STEP_H, CHAIN, restores=restores)
    slow, fast = Slow(problem), solve(problem)
    compared = 0
    for work in range(1, 9):
        for slack in range(7):
            for age_h in AGES_H:
                market = SpotMarket(CHAIN, up, age_h)
                state = work, work + slack, up, age_bin(age_h)
                for mode, threshold in (("idle", fast.buy), ("od", fast.keep)):
                    options = slow.options(mode, *state)
                    others = [value for name, value in options.items() if name != "od"]
                    if not others or abs(options["od"] - min(others)) < 1e-9:
                        continue
                    expected = min(options, key=options.__getitem__) == "od"
                    assert (slack * STEP_H <= fast.at(threshold, work * STEP_H, market)) == expected, (mode, state)
                    compared += 1
    assert compared > 100


class WithoutRestores(_Solver):
    """As it was before a restore had a price."""

    def _started(self, running: Array, restore: float) -> Array:
        return self._restarted(running)


@settings(max_examples=30, deadline=None)
@given(
    work=st.floats(0.5, 6),
    spare=st.floats(0.0, 6),
    restart=st.sampled_from([0.0, 0.05, 0.25, 0.4]),
    price=st.floats(0.1, 1.0),
    churn=st.floats(-1, 1),
    places=st.integers(1, 2),
    finer=st.sampled_from([1, 3]),
)
def test_without_dollars_the_table_is_the_same_byte_for_byte(
    work: float, spare: float, restart: float, price: float, churn: float, places: int, finer: int
) -> None:
    problem = Problem(work, work + spare, restart, price, 0.1, churned(churn, places), finer, Restores(0.0, 0.0))
    now, before = solve(problem), WithoutRestores(problem).run()
    for name in ("buy", "wait", "keep"):
        assert getattr(now, name).tobytes() == getattr(before, name).tobytes()
    assert problem == replace(problem, restores=NO_RESTORES), "and it is looked up as before"


def test_what_a_restore_costs_keeps_a_run_on_demand() -> None:
    free, dear = (solve(Problem(6.0, 14.0, 0.25, 0.6, 0.1, CHAIN, 3, Restores(usd, usd))) for usd in (0.0, 0.3))
    assert (dear.keep >= free.keep).all()
    assert (dear.keep > free.keep).any()
    spot_abroad = solve(Problem(2.0, 3.5, 0.25, 0.6, STEP_H, CHAIN, restores=Restores(spot=0.3)))
    free = solve(Problem(2.0, 3.5, 0.25, 0.6, STEP_H, CHAIN))
    assert (spot_abroad.buy >= free.buy).all(), (
        "with little time on demand is bought sooner, where it restores for nothing"
    )
    assert (spot_abroad.buy > free.buy).any()


def test_the_cheaper_spot_is_the_later_on_demand_is_bought() -> None:
    cheap, dear = (solve(Problem(2.0, 3.5, 0.25, price, STEP_H, CHAIN)) for price in (0.2, 0.9))
    assert (cheap.buy <= dear.buy).all()
    assert (cheap.buy < dear.buy).any()
    assert NO_END_H in cheap.wait, "an old spell is taken however much time there is"


@settings(max_examples=200)
@given(
    seed=st.integers(0, 10_000),
    zones=st.integers(1, 3),
    tick=st.sampled_from([0.05, 1 / 6, 0.25]),
    restart=st.sampled_from([0.0, 0.05, 0.2, 0.6]),
    work=st.floats(0.3, 6) | st.integers(6, 120).map(lambda count: count * 0.05),
    spare=st.floats(0.0, 4) | st.integers(0, 80).map(lambda count: count * 0.05),
    flips=st.floats(0.01, 0.9),
)
def test_a_deadline_that_on_demand_can_meet_is_met(
    seed: int, zones: int, tick: float, restart: float, work: float, spare: float, flips: float
) -> None:
    dice = random.Random(seed)
    up = [dice.random() < 0.5 for _ in range(zones)]
    deadline = work + restart + spare
    policy = RefereePolicy()
    policy.reset(
        {"tick": tick, "price": [0.35] * zones, "work": work, "deadline": deadline, "d": restart, "history": []}
    )
    mode, overhead, done, now = IDLE, 0.0, 0.0, 0
    while now * tick < deadline:
        up = [state != (dice.random() < flips) for state in up]
        if mode >= 0 and not up[mode]:
            mode, overhead = IDLE, 0.0
        said = policy.decide(
            {
                "t": now * tick,
                "done": done,
                "need": work,
                "deadline": deadline,
                "d": restart,
                "tick": tick,
                "mode": mode,
            }
            | {"overhead_left": overhead, "avail": up, "price": [0.35] * zones}
        )
        assert said < 0 or up[said], "it asks for what is there"
        if said != mode:
            overhead = 0.0 if said == IDLE else restart
        mode = said
        if mode != IDLE:
            if overhead + work - done <= tick + 1e-9:
                assert now * tick + overhead + work - done <= deadline + 1e-6
                return
            done += max(0.0, tick - overhead)
            overhead = max(0.0, overhead - tick)
        now += 1
    pytest.fail(f"late: {work - done:.2f} h of work are left, mode {mode}")


def test_at_the_last_moment_it_is_on_demand() -> None:
    policy = RefereePolicy()
    policy.reset({"tick": 0.1, "price": [0.35], "work": 2.0, "deadline": 2.2, "d": 0.2, "history": []})
    seen = {"t": 0.0, "done": 0.0, "need": 2.0, "deadline": 2.2, "d": 0.2, "tick": 0.1, "mode": IDLE}
    assert policy.decide(seen | {"overhead_left": 0.0, "avail": [1], "price": [0.35]}) == ON_DEMAND


def test_a_rounding_error_is_no_reason_to_stay_on_spot() -> None:
    """Slack of exactly one restart, but for the last bit: the sum is a hair above the time that is left."""
    policy = RefereePolicy()
    policy.reset({"tick": 0.1, "price": [0.35], "work": 3.0, "deadline": 9.0, "d": 0.2, "history": []})
    work_left = 0.7000000000000002
    assert work_left + 0.2 > 0.9
    seen = {"t": 8.1, "done": 3.0 - work_left, "need": 3.0, "deadline": 9.0, "d": 0.2, "tick": 0.1, "mode": 0}
    seen |= {"overhead_left": 0.2, "avail": [1], "price": [0.35]}
    assert policy.decide(seen) == ON_DEMAND


def watched(pattern: list[tuple[int, ...]], hours: float, times: int) -> Prober:
    prober = Prober.of(len(pattern[0]))
    for _ in range(times):
        for row in pattern:
            prober.look([bool(up) for up in row], hours)
    return prober


def test_a_place_that_flaps_is_learned_and_a_calm_one_too() -> None:
    usual = churned(0.0, 1).machine_ends
    wild = watched([(1,), (1,), (0,), (0,)], 0.1, 150).market().chain
    calm = watched([(1,)] * 280 + [(0,)] * 20, 0.1, 2).market().chain
    assert wild.machine_ends[0] > 2 * usual[0]
    assert calm.machine_ends[0] < usual[0] / 2
    for learned in (wild, calm):
        factor = learned.machine_ends[0] / usual[0]
        assert learned.down_ends == pytest.approx([rate * factor for rate in PRIOR_DOWN]), "one number for all"


def test_a_market_that_is_seldom_up_is_taken_for_a_rougher_one() -> None:
    """The same events for each expected one; only the share of the time differs."""
    scarce, plenty = Prober.of(1), Prober.of(1)
    scarce.share_up, plenty.share_up = 0.1, 0.9
    for prober in (scarce, plenty):
        prober.look([True], 0.1)
    assert scarce.market().chain.machine_ends[0] > plenty.market().chain.machine_ends[0]


def test_what_was_learned_is_forgotten_in_days() -> None:
    prober = watched([(1,), (0,)], 0.1, 300)
    rough = prober.market().chain.machine_ends[0]
    for _ in range(8000):
        prober.look([True], 0.1)
    assert prober.market().chain.machine_ends[0] < rough / 2


def test_churn_has_few_levels_and_limits() -> None:
    chains = {churned(log / 50, 1) for log in range(-300, 301)}
    assert len(chains) == 11, "tables are shared"
    assert churned(9.0, 1) == churned(1.0, 1)
    assert churned(0.0, 2).elsewhere == 0.2
    assert churned(0.0, 2).machine_ends[0] == pytest.approx(1.2 * churned(0.0, 1).machine_ends[0])
    assert log_churn(0, 0) == pytest.approx(math.log(1.05))
    assert log_churn(30, 10) > log_churn(3, 1) > log_churn(1, 1), "more events, more trust"


def test_a_pool_is_up_while_one_of_its_places_is() -> None:
    prober = Prober.of(2)
    for first, second in ((1, 0), (1, 1), (0, 1), (0, 1), (0, 0)):
        prober.look([bool(first), bool(second)], 0.5)
    assert (prober.market().up, prober.market().age_h) == (False, 0.5)
    assert prober.seen == pytest.approx(1, abs=0.01), "one spell of the pool has ended"
    prober.look([False, True], 0.5)
    prober.look([False, True], 0.5)
    assert (prober.market().up, prober.market().age_h) == (True, 1.0)


def test_of_two_zones_of_one_age_the_calmer_one_is_taken() -> None:
    """The first comes and goes every half hour, the second held for hours; both are up again since 0.2 h."""
    history = [(tick // 5 % 2, tick % 90 != 0) for tick in range(720)]
    history += [(0, 0), (1, 1)]
    policy = RefereePolicy()
    policy.reset({"tick": 0.1, "price": [0.35, 0.35], "work": 4.0, "deadline": 8.0, "d": 0.1, "history": history})
    seen = {"t": 0.0, "done": 0.0, "need": 4.0, "deadline": 8.0, "d": 0.1, "tick": 0.1, "mode": IDLE}
    assert policy.decide(seen | {"overhead_left": 0.0, "avail": [1, 1], "price": [0.35, 0.35]}) == 1
    assert len(set(policy.prober.ages_h)) == 1
    rough, calm = policy.prober.spell_ends
    assert rough.ends > 5 * calm.ends


@pytest.mark.parametrize("restart_h", [0.05, 0.25, 0.4])
def test_a_finer_grid_finds_about_the_same_thresholds(restart_h: float) -> None:
    coarse, fine = (solve(Problem(6.0, 14.0, restart_h, 0.35, 0.1, CHAIN, finer)) for finer in (3, 6))
    assert fine.grid_h == pytest.approx(coarse.grid_h / 2)
    for work_h in (1.0, 3.0, 5.5):
        for age_h in AGES_H:
            market = SpotMarket(CHAIN, False, age_h)
            values = [one.at(one.buy, work_h, market) for one in (coarse, fine)]
            assert values[1] == pytest.approx(values[0], abs=0.2)


def test_a_step_is_short_where_the_time_is_and_never_shorter_than_a_look() -> None:
    assert step_of(24, 1 / 60) == pytest.approx(0.1)
    assert step_of(96, 1 / 12) == pytest.approx(1 / 6)
    assert step_of(1.5, 1 / 600) == pytest.approx(1.5 / 240, rel=0.3)
    assert step_of(0.1, 0.25) == 0.25


def test_slack_costs_more_the_less_of_it_there_is() -> None:
    """An hour less of it is, at the worst, an hour on demand instead of on spot, and the restarts of the change."""
    table = solve(Problem(12.0, 24.0, 0.25, 0.35, 0.1, Chain(), 3))
    costs = [table.slack_cost(10.0, slack_h, 0.5) for slack_h in (1.0, 2.0, 4.0, 8.0)]
    assert costs == sorted(costs, reverse=True)
    assert 0.0 <= costs[-1] < costs[0] < 1.0
    assert table.slack_cost(10.0, 4.0, 0.0) == 0.0
    assert table.slack_cost(10.0, 0.1, 0.5) > 5.0, "the deadline is lost"
    assert table.slack_cost(10.0, 1e3, 0.5) == 0.0, "beyond the table it is plenty"


def test_a_place_that_refused_long_ago_may_have_a_machine_again() -> None:
    place = Place("gcp", "us", "us-a", "A100:8", True, 10.0)
    seen = Observation((), 8.0, 0.25)
    chances = [chance_up(seen, PlaceState(place, refused_h_ago=hours)) for hours in (0.0, 0.5, 3.0, 1e3)]
    assert chances == sorted(chances)
    assert chances[0] == 0.0
    assert chances[-1] == pytest.approx(USUAL_UP)
    assert chance_up(seen, PlaceState(place)) == USUAL_UP, "never asked"
    assert survival(PRIOR_DOWN, 0.2) == pytest.approx(math.exp(-0.2 * PRIOR_DOWN[0]))

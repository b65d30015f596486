"""The dynamic program against a recursion written the slow way, and the promises of the policy that it serves."""

from __future__ import annotations

import math
import random
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.policy.market import AGE_EDGES_H, BINS, PRIOR_DOWN, PRIOR_UP, Chain, Prober, Spells, SpotMarket, age_bin
from launcher.policy.outlook import AFTER_A_LOSS, NO_END_H, Problem, solve
from launcher.policy.referee import IDLE, ON_DEMAND, RefereePolicy

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
        if left - 1 >= work + self.restart:
            found["idle"] = sum(p * self.best("idle", work, left - 1, *s) for p, *s in self.market(up, age))
        if up and left >= work + 2 * self.restart:
            found["spot"] = self.run("spot", new, left, up, age)
        return found

    @cache  # noqa: B019
    def best(self, mode: str, work: int, left: int, up: bool, age: int) -> float:
        return 0.0 if work <= 0 else 1e3 if left <= 0 else min(self.options(mode, work, left, up, age).values())


@pytest.mark.parametrize("restart_h", [0.25, 0.5])
@pytest.mark.parametrize("up", [True, False])
def test_the_thresholds_are_those_of_the_recursion(up: bool, restart_h: float) -> None:
    problem = Problem(2.0, 3.5, restart_h, 0.35, STEP_H, CHAIN)
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


def test_the_cheaper_spot_is_the_later_on_demand_is_bought() -> None:
    cheap, dear = (solve(Problem(2.0, 3.5, 0.25, price, STEP_H, CHAIN)) for price in (0.2, 0.9))
    assert (cheap.buy <= dear.buy).all()
    assert (cheap.buy < dear.buy).any()
    assert NO_END_H in cheap.wait, "an old spell is taken however much time there is"


@settings(max_examples=200, deadline=None)
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


def test_a_place_that_flaps_is_learned() -> None:
    calm, wild = Spells(), Spells()
    for look in range(600):
        calm.look(look % 300 < 280, 0.1)
        wild.look(look % 4 < 2, 0.1)
    assert wild.rates(True, PRIOR_UP)[1] > 2 * PRIOR_UP[1] > calm.rates(True, PRIOR_UP)[1] * 2
    assert calm.rates(True, PRIOR_UP)[5] < PRIOR_UP[5] * 1.5


def test_a_pool_is_up_while_one_of_its_places_is() -> None:
    prober = Prober.of(2)
    for first, second in ((1, 0), (1, 1), (0, 1), (0, 1), (0, 0)):
        prober.look([bool(first), bool(second)], 0.5)
    market = prober.market(prober.chain())
    assert (market.up, market.age_h) == (False, 0.5)
    assert prober.lost == 2
    assert prober.lost_but_up == 1
    assert 0.2 < prober.chain().elsewhere < 0.5

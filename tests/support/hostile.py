"""Random hostile worlds, and what has to hold in each: money, time, and an end.

A seed makes a world; the test prints the seeds of those that failed, and `python -m tests.support.hostile SEED` tells one's story.
"""

from __future__ import annotations

import asyncio
import random
import sys
from dataclasses import dataclass

from checkpoints.run_log.event_log import read_events
from launcher.policy.model import Place
from tests.support.live_world import (
    ASK_S,
    BOOT_S,
    Always,
    Faults,
    Flapping,
    Ledger,
    LiveWorld,
    Market,
    Never,
    Spells,
    Trainer,
    alone,
)

SPOT = tuple(
    Place("gcp", f"r{zone}", f"r{zone}-a", "A100:8", True, price) for zone, price in enumerate((5.6, 6.4, 12.0))
)
ON_DEMAND = Place("lambda", "us-east-1", None, "A100:8", False, 16.0)
DEARER = Place("gcp", "r0", "r0-a", "A100:8", False, 20.0)
LOOK_H = 0.1
RICH = 2.0
"""Times the way on demand: a budget that asks for no other places than the deadline does."""


@dataclass(frozen=True)
class Hostile:
    """A world, and what may be asked of it."""

    world: LiveWorld
    keepable: bool
    """Training and on demand are what they seem, whatever else fails: then a deadline that on demand could keep is kept.
    Not asked where nothing can be given back, or where a controller that forgot everything finds the bucket away."""
    budget_usd: float | None
    deadline_h: float | None


def hostile(seed: int) -> Hostile:
    """One of infinitely many."""
    chance = random.Random(seed)
    planned_h = chance.choice([0.5, 1.0, 2.0, 4.0])
    honest = chance.random() < 0.5
    trainer = _trainer(chance, planned_h, honest=honest or chance.random() < 0.3)
    markets: dict[Place, Market] = {place: _market(chance) for place in SPOT[: chance.choice([1, 1, 2, 3])]}
    faults = None if honest else _faults(chance, planned_h, tuple(markets))
    markets[ON_DEMAND] = Always() if honest or chance.random() < 0.7 else Spells(chance, 5.0, 1.0)
    if chance.random() < 0.3:
        markets[DEARER] = Always()
    least_h = trainer.hours + trainer.restart_h + trainer.save_h + learning_h(trainer)
    deadline_h = least_h + chance.choice([0.0, 0.1, 0.5, 1.0, 3.0, 12.0]) if chance.random() < 0.6 else None
    whole_usd = (trainer.hours + trainer.restart_h + trainer.save_h) * ON_DEMAND.price_usd_per_hour
    budget_usd = chance.choice([0.3, 0.7, 1.0, 1.1, 1.5, 2.0]) * whole_usd if chance.random() < 0.6 else None
    world = LiveWorld(
        markets,
        trainer,
        faults,
        planned_hours=planned_h,
        deadline_h=deadline_h,
        budget_usd=budget_usd,
        look_h=LOOK_H,
        planned_save_h=chance.choice([None, trainer.save_h / 2, trainer.save_h]),
        seed=seed,
    )
    return Hostile(world, _keepable(world, budget_usd, whole_usd), budget_usd, deadline_h)


def _keepable(world: LiveWorld, budget_usd: float | None, whole_usd: float) -> bool:
    trainer, faults = world.trainer, world.faults
    as_it_seems = not (trainer.deaf or trainer.hangs or trainer.crashes or trainer.never_runs)
    forgets = bool(faults.controller_restarts_h) and bool(faults.bucket_away or faults.prices_away)
    certain = isinstance(world.markets[ON_DEMAND], Always) and not faults.release_fails and not forgets
    return as_it_seems and certain and (budget_usd is None or budget_usd >= RICH * whole_usd)


def _trainer(chance: random.Random, planned_h: float, *, honest: bool) -> Trainer:
    speed = chance.choice([0.8, 0.9, 1.0, 1.0, 1.2])
    trainer = Trainer(
        hours=planned_h / speed,
        restart_h=chance.choice([0.1, 0.25, 0.25, 0.4, 0.7, 1.0]),
        save_every_h=chance.choice([0.05, 1 / 6, 0.5]),
        save_h=chance.choice([1 / 60, 1 / 60, 0.1, 0.3]),
        clock_off_s=chance.choice([0.0, 0.0, -600.0, 600.0]),
    )
    if honest:
        return trainer
    trainer.deaf = chance.choice([0.0, 0.5, 1.0])
    trainer.hangs = chance.choice([0.0, 0.2, 1.0])
    trainer.crashes = chance.choice([0.0, 0.3, 1.0])
    trainer.never_runs = chance.choice([0.0, 0.2, 1.0])
    return trainer


def _market(chance: random.Random) -> Market:
    kind = chance.choice(["spells", "spells", "flapping", "soon", "always", "never"])
    if kind == "spells":
        return Spells(chance, chance.choice([0.3, 1.0, 4.0]), chance.choice([0.1, 1.0, 4.0]))
    if kind == "flapping":
        return Flapping(chance, 0.05, 0.3)
    if kind == "soon":
        return Flapping(chance, 0.2, 1.5)
    return Always() if kind == "always" else Never()


def _faults(chance: random.Random, planned_h: float, spot: tuple[Place, ...]) -> Faults:
    away = sorted(chance.uniform(0, 3 * planned_h) for _ in range(chance.choice([0, 0, 2])))
    restarts = tuple(chance.uniform(0, 2 * planned_h) for _ in range(chance.choice([0, 0, 1, 3])))
    return Faults(
        release_fails=chance.choice([0.0, 0.0, 0.3, 0.8]),
        bucket_away=((away[0], away[1]),) if away else (),
        controller_restarts_h=restarts,
        launcher_clock_off_s=chance.choice([0.0, 600.0, -600.0]),
        surge=(chance.uniform(0, planned_h), spot[0], chance.choice([2.0, 3.5])) if chance.random() < 0.2 else None,
        prices_away=((begins := chance.uniform(0.1, 2 * planned_h), begins + 2.0),) if chance.random() < 0.2 else (),
        price_changes=((chance.uniform(0, planned_h), chance.choice([0.8, 1.5])),) if chance.random() < 0.2 else (),
        never_ready=chance.choice([0.0, 0.0, 0.0, 0.3, 1.0]),
    )


def learning_h(trainer: Trainer) -> float:
    """What a deadline has to leave beyond the true way on demand: one machine that is lost just before its first step
    or save, which tells how long starts take, and the looks and questions around it."""
    return trainer.restart_h + trainer.save_every_h + trainer.save_h + 3 * LOOK_H + (4 * ASK_S + BOOT_S) / 3600


def faults_of(case: Hostile, told: Ledger) -> list[str]:
    """What does not hold; empty = all is well."""
    found = []
    if told.leaked:
        found.append("a machine is up at the end")
    if case.budget_usd is not None:
        dearest = max(place.price_usd_per_hour for place in case.world.markets) * 1.5
        closing_usd = dearest * (told.closing_h + LOOK_H + 3 / 60)
        if case.world.faults.surge is not None:  # unknown for up to a look, and for as long as no list can be read
            closing_usd += (LOOK_H + (2.0 if case.world.faults.prices_away else 0.0)) * 3.5 * SPOT[0].price_usd_per_hour
        if told.spent_usd > case.budget_usd + closing_usd:
            found.append(f"spent ${told.spent_usd:.2f} of ${case.budget_usd:.2f}, and closing takes ${closing_usd:.2f}")
    if case.keepable and case.deadline_h is not None:
        if told.finished_h is None:
            found.append(f"never finished: {told.why}")
        elif told.finished_h > case.deadline_h + 1e-6:
            found.append(f"late by {(told.finished_h - case.deadline_h) * 60:.1f} min")
    return found


def play(seed: int) -> tuple[Hostile, Ledger, list[str]]:
    """The world of a seed, and what does not hold in it."""
    case = hostile(seed)
    with alone():
        told = asyncio.run(case.world.run())
    return case, told, faults_of(case, told)


def faults_in(seed: int) -> list[str]:
    """What does not hold in the world of a seed; an error of any kind is a fault."""
    try:
        return play(seed)[2]
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]


def main(seeds: list[int]) -> None:
    """The stories of these worlds."""
    for seed in seeds:
        case, told, found = play(seed)
        world = case.world
        lines = [f"seed {seed}: {found or 'all is well'}; {told.why}"]
        lines += [str(world.trainer), str(world.faults), f"markets {world.markets}"]
        lines.append(f"planned {world.limits.hours} h, deadline {case.deadline_h}, budget {case.budget_usd}")
        lines.append(f"finished {told.finished_h}, spent {told.spent_usd:.2f}, closing {told.closing_h:.2f} h")
        for event in read_events(world.store):
            hour = (event.time - world.start).total_seconds() / 3600
            lines.append(f"{hour:7.3f} a{event.attempt} {event.kind} {str(event.payload.wire())[:170]}")
        sys.stdout.write("\n  ".join(lines) + "\n")


if __name__ == "__main__":
    main([int(text) for text in sys.argv[1:]])

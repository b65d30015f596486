"""A night in a cloud as its diary and metrics have it: spot, a preemption, another zone, on demand, done."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

from checkpoints.run_log.event_log import Event
from checkpoints.run_log.metrics import StepMetrics

START = datetime(2026, 11, 24, 20, tzinfo=UTC)
END = START + timedelta(hours=4)
STEPS = 60
PACE_S = 180.0


def place(zone: str, usd: float, *, spot: bool = True) -> dict[str, Any]:
    return {
        "cloud": "gcp", "region": zone[:-2], "zone": zone, "gpus": "A100:8", "spot": spot, "price_usd_per_hour": usd,
    }  # fmt: skip


def event(at_h: float, kind: Any, attempt: int = 0, **data: Any) -> Event:
    return Event(
        time=START + timedelta(hours=at_h), id=f"{round(at_h * 1e4):012x}", kind=kind, attempt=attempt, data=data
    )


def events() -> list[Event]:
    first, second = place("us-central1-a", 9.0), place("europe-west4-b", 30.0, spot=False)
    return [
        event(0.0, "planned", strategy="NOTUS"),
        event(0.1, "machine_up", place=first, since=START.isoformat(), after_attempt=0),
        event(0.2, "attempt_started", 1),
        event(0.4, "training", 1, step=1, total_steps=STEPS),
        event(1.15, "saved", 1, step=15),
        event(1.4, "preempted", 1, step=20),
        event(1.41, "machine_gone", why="preempted", place=first),
        event(1.5, "machine_up", place=second, since=(START + timedelta(hours=1.45)).isoformat(), after_attempt=1),
        event(1.6, "attempt_started", 2),
        event(1.65, "resumed", 2, step=15),
        event(1.7, "training", 2, step=16, total_steps=STEPS),
        event(2.6, "evaluated", 2, step=30, metrics={"eval_loss": 0.61, "eval_rewards/accuracies": 0.7, "epoch": 1.0}),
        event(3.9, "attempt_ended", 2, outcome="finished", step=STEPS),
        event(3.91, "finished", 2, step=STEPS),
        event(4.0, "machine_gone", why="finished", place=second),
    ]


def metrics() -> list[StepMetrics]:
    rows = []
    for attempt, steps in ((1, range(1, 21)), (2, range(16, STEPS + 1))):
        for step in steps:
            for rank in (0, 1):
                values = {
                    "step": step, "seconds": PACE_S, "stalled_s": 0.5 if step % 15 == 0 else 0.0,
                    "loss": math.log(2) * math.exp(-step / STEPS) + 0.1 * rank, "grad_norm": 1.0 + 1 / step,
                    "learning_rate": 1e-6 * (1 - step / STEPS), "tokens_per_second": 40_000.0 + step,
                }  # fmt: skip
                if rank == 0:
                    values |= {"rewards/accuracies": min(1.0, 0.5 + step / 100), "rewards/margins": step / 50}
                rows.append(StepMetrics(attempt, rank, step, values))
    return rows

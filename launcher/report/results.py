"""The results of a run's training: loss, evaluation, rewards, speed. A pure function of the diary and the metrics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median

from pydantic import Field

from checkpoints.run_log.event_kinds import Evaluated
from checkpoints.run_log.event_log import Event, of_kind
from checkpoints.run_log.metrics import StepMetrics
from launcher.frozen import Frozen

LAST_SHARE = 0.05
"""Share of the steps that is averaged at the end, because the loss of one step is mostly noise."""
REWARDS = "rewards/"


class Results(Frozen):
    """The figures of a training."""

    last_steps: int = Field(default=0, description="the training figures are means over this many last steps")
    loss: float | None = Field(default=None, description="of the training, over all ranks")
    rewards: dict[str, float] = Field(default_factory=dict, description="of the training, by TRL's names")
    tokens_per_second: float | None = Field(default=None, description="median over all steps, of all ranks together")
    mfu: float | None = Field(default=None, description="median over all steps")
    evaluated_at_step: int | None = None
    evaluation: dict[str, float] = Field(default_factory=dict, description="the newest evaluation, by TRL's names")


KeptRows = Mapping[int, Mapping[str, float]]
"""The figures of each step, by step and name; steps ascend."""


def kept_rows(metrics: Iterable[StepMetrics]) -> KeptRows:
    """The figures of each step from the last attempt that did it: means over the ranks that recorded them."""
    newest: dict[int, int] = {}
    for item in metrics:
        newest[item.step] = max(newest.get(item.step, 0), item.attempt)
    values: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for item in metrics:
        if item.attempt == newest[item.step]:
            for name, value in item.values.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    values[item.step][name].append(float(value))
    return {step: {name: fmean(one) for name, one in values[step].items()} for step in sorted(values)}


def make_results(events: Sequence[Event], by_step: KeptRows) -> Results:
    """Compute the results from `kept_rows`; empty for a run that has not trained."""
    rows = list(by_step.values())
    evaluations = [payload for _, payload in of_kind(events, Evaluated)]
    newest = max(evaluations, key=lambda evaluation: evaluation.step, default=None)
    last = rows[-max(1, round(LAST_SHARE * len(rows))) :]
    names = sorted({name for row in last for name in row if name.startswith(REWARDS)})
    return Results(
        last_steps=len(last),
        loss=_mean(last, "loss"),
        rewards={name: mean for name in names if (mean := _mean(last, name)) is not None},
        tokens_per_second=_median(rows, "tokens_per_second"),
        mfu=_median(rows, "mfu"),
        evaluated_at_step=newest.step if newest else None,
        evaluation={name: float(value) for name, value in newest.metrics.items() if _is_figure(name, value)}
        if newest
        else {},
    )


def _is_figure(name: str, value: object) -> bool:
    """Is it about the model, rather than about the machine that evaluated it?"""
    timings = ("runtime", "per_second", "epoch")
    return isinstance(value, int | float) and not isinstance(value, bool) and not name.endswith(timings)


def _mean(rows: Sequence[Mapping[str, float]], name: str) -> float | None:
    values = [row[name] for row in rows if name in row]
    return fmean(values) if values else None


def _median(rows: Sequence[Mapping[str, float]], name: str) -> float | None:
    values = [row[name] for row in rows if name in row]
    return median(values) if values else None

"""How often a spot node is taken away, and what each time costs. Assumed until the planner fits it to traces.

A constant rate is the simplest model that has a preemption count and a tail; docs/concepts/estimate.md says what it
leaves out.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Hazard(BaseModel):
    """Preemption of one kind of machine."""

    model_config = ConfigDict(frozen=True)

    preemptions_per_hour: float = Field(ge=0)
    waiting_h: float = Field(ge=0, description="from a preemption to the start of the next machine; not paid")
    lost_work_h: float = Field(ge=0, description="redone after a preemption: half a save interval on average")
    source: str


ASSUMED_SPOT = Hazard(
    preemptions_per_hour=1 / 6,
    waiting_h=0.1,
    lost_work_h=5 / 60,
    source="assumed: one preemption in 6 h of a spot node, 6 min until there is another, saves every 10 min",
)
ON_DEMAND = Hazard(
    preemptions_per_hour=0.0,
    waiting_h=0.0,
    lost_work_h=0.0,
    source="on-demand nodes are taken as never preempted",
)

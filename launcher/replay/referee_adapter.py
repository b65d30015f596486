"""Adapter from our policy to the interface of the spot referee, which passes a trace tick by tick and expects a mode.

The referee's prober observes every zone at every tick; a real run observes only the zones that it tries. Both use the
same decision function, `launcher.policy.decide.decide`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from launcher.policy.decide import decide
from launcher.policy.model import Launch, Move, Observation, Place, PlaceState, Running, Stay
from launcher.policy.settings import Settings
from launcher.policy.spot.market import Prober
from launcher.policy.spot.zone_pooling import against_market

IDLE, ON_DEMAND = -1, -2
NEVER_H = 1e6


class RefereePolicy:
    """`reset(info)` and `decide(obs)` as called by the referee. Prices are ratios to the on-demand price."""

    def reset(self, info: dict[str, Any]) -> None:
        """Start a new job: its tick and restart time (hours), its prices, and the availability in the last 72 h."""
        self.tick_h: float = info["tick"]
        self.places = tuple(_place(str(zone), float(price)) for zone, price in enumerate(info["price"]))
        self.on_demand = Place("referee", "on-demand", None, "", spot=False, price_usd_per_hour=1.0)
        self.settings = Settings(check_h=self.tick_h, margin=0.0)
        self.prober = Prober.of(len(self.places))
        for row in info["history"]:
            self.prober.look([bool(up) for up in row], self.tick_h)

    def decide(self, obs: dict[str, Any]) -> int:
        """-1 for idle, -2 for on demand, or the zone to use."""
        self.prober.look([bool(up) for up in obs["avail"]], self.tick_h)
        seen = self._seen(obs)
        action = decide(seen, self.settings)
        if isinstance(action, Move):  # as on a real machine: it is released, and then we decide again
            action = decide(replace(seen, running=None), self.settings)
        if isinstance(action, Launch):
            return self._mode(action.places[0])
        return int(obs["mode"]) if isinstance(action, Stay) else IDLE

    def _mode(self, place: Place) -> int:
        return self.places.index(place) if place.spot else ON_DEMAND

    def _seen(self, obs: dict[str, Any]) -> Observation:
        mode = int(obs["mode"])
        zones = zip(self.places, obs["avail"], self.prober.ages_h, self._churns(), strict=True)
        states = [
            PlaceState(place, refused_h_ago=None if up else 0.0, up_h=age_h if up else None, churn=churn)
            for place, up, age_h, churn in zones
        ]
        running = None
        if mode != IDLE:
            place = self.on_demand if mode == ON_DEMAND else self.places[mode]
            running = Running(place, NEVER_H, float(obs["overhead_left"]))
        return Observation(
            places=(*states, PlaceState(self.on_demand)),
            work_left_h=float(obs["need"] - obs["done"]),
            restart_h=float(obs["d"]),
            running=running,
            deadline_h=float(obs["deadline"] - obs["t"]),
            market=self.prober.market(),
        )

    def _churns(self) -> tuple[float, ...]:
        """Churns relative to the market; a single place is its market."""
        return against_market(self.prober.spell_ends) if len(self.prober.spell_ends) > 1 else (1.0,) * len(self.places)


def _place(zone: str, price: float) -> Place:
    return Place("referee", zone, zone, "", spot=True, price_usd_per_hour=price)

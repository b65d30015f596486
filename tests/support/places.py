"""Places that the policy's tests choose from."""

from __future__ import annotations

from launcher.policy.model import Place


def place(zone: str, price: float, *, spot: bool = True, cloud: str = "gcp") -> Place:
    return Place(cloud, zone.rsplit("-", 1)[0], zone, "A100:8", spot, price)


A, B, C = place("us-a", 10.0), place("us-b", 11.0), place("eu-c", 12.0)
ON_DEMAND = place("us-a", 30.0, spot=False)
LAMBDA = Place("lambda", "us-east-1", None, "A100:8", False, 16.0)
ALL = (A, B, C, ON_DEMAND, LAMBDA)

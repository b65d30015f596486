"""The policy as it lives, on recorded H100 zones with prices: never late, and near what a schedule pays that knows all.

One start, because a whole run of the conductor takes half a minute. More: `python -m tests.support.priced FOLDER`.
"""

from __future__ import annotations

from pathlib import Path

from tests.support.priced import optimum_usd, played, read_zones

WORK_H, DEADLINE_H = 38.0, 57.0
AT_MOST = 1.2
"""Times the optimum. It paid two to three times as much while a zone at $69.91, once entered, was never left."""


def test_a_dear_zone_is_left_and_the_deadline_kept(shared: Path) -> None:
    zones = read_zones(shared / "data/spot-traces-h100/gcp-h100")
    told = played(zones, 0, WORK_H, DEADLINE_H)
    assert told.finished_h is not None
    assert told.finished_h <= DEADLINE_H
    assert told.spent_usd <= AT_MOST * optimum_usd(zones, 0, WORK_H, DEADLINE_H)

"""AWS zone names. Price lists have ids (`use1-az1`); machines and diaries have an account's names (`us-east-1a`).

The mapping from ids to names differs between accounts. SkyPilot queries AWS once and stores the result next to its
price lists (`aws/az_mappings-<account>.csv`). From then on it reads every list by name, without the zones that the
account does not have. We do the same: plans, tasks, places and diaries all use the names. Until SkyPilot has queried
AWS the ids stay, and past runs are then known only by region (`region_of`).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path

CLOUD = "aws"
"""The only cloud whose lists and machines name zones differently."""
_NAME = re.compile(r"([a-z]{2,}(?:-[a-z]+)+-\d+)(?:-[a-z]+-\d+)?[a-z]")
"""`us-east-1a`, or a local zone, `us-east-1-atl-2a`. An id has digits after its `az`."""


def zone_names(users: Path) -> dict[str, str]:
    """Id -> name, from SkyPilot's catalog folder; empty if SkyPilot has not queried AWS yet.

    With several accounts the newest file is used, as SkyPilot does if no account is set.
    """
    written = sorted((users / CLOUD).glob("az_mappings-*.csv"), key=lambda path: path.stat().st_mtime)
    if not written:
        return {}
    try:
        with written[-1].open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error):
        return {}
    named = {row.get("AvailabilityZone") or "": row.get("AvailabilityZoneName") or "" for row in rows}
    return {zone_id: name for zone_id, name in named.items() if zone_id and name}


def region_of(zone: str) -> str | None:
    """The region of an AWS zone that is given by name; None for an id."""
    match = _NAME.fullmatch(zone)
    return match[1] if match else None


def by_name(zone: str, names: Mapping[str, str]) -> str:
    """An id's name if it is known; any other zone unchanged."""
    return names.get(zone, zone)

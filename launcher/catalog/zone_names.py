"""The names of AWS's zones. Price lists have ids (`use1-az1`), machines and diaries an account's names (`us-east-1a`).

Which name stands for which id differs from account to account. SkyPilot asks AWS once and keeps the answer beside its
price lists (`aws/az_mappings-<account>.csv`); from then on it reads every list by name, without the zones that the
account does not have. So do we: the name is the one form that plans, tasks, places and diaries share. Where SkyPilot
has not asked yet the ids stay, and what runs have met is then known by region only (`region_of`).
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
    """Id -> name, from SkyPilot's catalog folder; empty where SkyPilot has not asked AWS yet.

    With several accounts the file that was written last, as SkyPilot takes it where it knows no account.
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
    """The region of a zone of AWS that is given by name; None for an id."""
    found = _NAME.fullmatch(zone)
    return found[1] if found else None


def by_name(zone: str, names: Mapping[str, str]) -> str:
    """An id as its name where that is known; any other zone as it is."""
    return names.get(zone, zone)

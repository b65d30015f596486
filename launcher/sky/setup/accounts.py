"""Which clouds have credentials on this machine, as SkyPilot looks for them. `sky check` tests whether they work."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from trainer.config.clouds import CLOUDS


def credentials_here(home: Path, environment: Mapping[str, str]) -> dict[str, Path | None]:
    """Return each cloud's credentials file by the cloud's name; None = neither a file nor environment variables."""
    google = environment.get("GOOGLE_APPLICATION_CREDENTIALS")
    found: dict[str, Path | None] = {}
    for name, cloud in CLOUDS.items():
        path = Path(google) if google and name == "gcp" else home / cloud.credentials
        there = _exists(path) or (name == "aws" and bool(environment.get("AWS_ACCESS_KEY_ID")))
        found[name] = path if there else None
    return found


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a folder without read permission has no usable credentials
        return False

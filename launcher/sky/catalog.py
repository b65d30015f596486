"""Refresh SkyPilot's price lists through SkyPilot, which has their sources and detects edited ones."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

logger = logging.getLogger(__name__)

FETCHED, KEPT, FAILED = "fetched", "kept: it was edited by hand", "could not be fetched; the old one is kept"


def refresh(clouds: Iterable[str], echo: Callable[[str], None]) -> dict[str, str]:
    """Fetch the price list of each cloud; returns the outcome: fetched, kept (edited by hand), or failed."""
    with contextlib.redirect_stdout(io.StringIO()):
        return _refresh(clouds, echo)


def _refresh(clouds: Iterable[str], echo: Callable[[str], None]) -> dict[str, str]:
    """Do the work of `refresh`, which redirects stdout because ours may be JSON.

    SkyPilot's log handler writes to the stdout of the time of its import, with progress marks for its own client.
    """
    from sky.catalog import common

    outcome = {}
    for cloud in clouds:
        echo(f"prices of {cloud}")
        name = f"{cloud}/vms.csv"
        path = Path(common.get_catalog_path(name))
        if path.exists() and common.is_catalog_modified(name):
            outcome[cloud] = KEPT
            continue
        mark = path.parent.parent / ".meta" / f"{name}.md5"
        before = mark.stat().st_mtime_ns if mark.exists() else 0
        try:
            common.read_catalog(name, pull_frequency_hours=0).columns  # noqa: B018  # reading it triggers the fetch
        except Exception as error:
            # requests and pandas raise many kinds here, and none of them must end the command.
            logger.debug("prices of %s", cloud, exc_info=True)
            outcome[cloud] = f"{FAILED} ({type(error).__name__})"
            continue
        fetched = mark.exists() and mark.stat().st_mtime_ns > before
        outcome[cloud] = FETCHED if fetched else FAILED
    return outcome


def invalidate_cache() -> None:
    """Have SkyPilot reread its lists when it next needs one, and fetch those that are outdated.

    It caches lists in memory until a request ends, and a jobs controller's request never does.
    """
    from sky.catalog import common

    common.LazyDataFrame._load_df.cache_clear()

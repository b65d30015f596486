"""Is there anything to look at? For the commands that look at runs and end them."""

from __future__ import annotations

import contextlib

from checkpoints.util.keys import check_run_name
from launcher.errors import UnknownRun
from launcher.paths import default_bucket, default_folder


def check_default_bucket(bucket: str | None, name: str | None) -> None:
    """Raises `UnknownRun` if a run is looked for in the default bucket and that isn't there yet.

    Looking never makes it: a home folder that can't be written is no reason not to look.
    """
    if bucket is None and name is not None and not _is_folder():
        check_run_name(name)
        raise UnknownRun(f"there is no run {name!r} in {default_bucket()}", "list them: notus-launch runs")


def _is_folder() -> bool:
    with contextlib.suppress(OSError):
        return default_folder().is_dir()
    return True  # nobody may look: opening it says why

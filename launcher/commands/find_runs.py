"""Check that the default bucket exists, for the commands that inspect or end runs."""

from __future__ import annotations

import contextlib

from checkpoints.util.keys import check_run_name
from launcher.errors import UnknownRun
from launcher.paths import default_bucket, default_folder


def check_default_bucket(bucket: str | None, name: str | None) -> None:
    """Raise `UnknownRun` if a run is to be found in the default bucket and that doesn't exist yet.

    Inspecting never creates it, so it also works with a read-only home folder.
    """
    if bucket is None and name is not None and not _is_folder():
        check_run_name(name)
        raise UnknownRun(f"there is no run {name!r} in {default_bucket()}", "list them: notus-launch runs")


def _is_folder() -> bool:
    with contextlib.suppress(OSError):
        return default_folder().is_dir()
    return True  # not readable: opening it will report why

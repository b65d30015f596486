"""The user's credential files that SkyPilot copies to every machine that it rents, and how to prevent it.

SkyPilot 0.14.1 mounts the files of *all* clouds on each machine of *any* cloud, including third-party hosts at Vast. A
cloud's `remote_identity: NO_UPLOAD` in the API server's configuration keeps that cloud's files off all machines
(`backend_utils.write_cluster_config`). It can't be set in a task, except for Azure and Kubernetes.

A machine needs them to terminate itself: SkyPilot's daemon terminates a machine that is idle for 10 min, in case the
controller is gone. GCP, AWS and Azure machines have their own identity for that, whatever `remote_identity` is. In
other clouds a machine without the file stays up until the controller, or a person, terminates it.

`python -m launcher.sky.setup.credentials` prints the existing files as JSON. Importing sky takes seconds, and a cloud's
command line tool may hang, so the doctor runs this in a process with a timeout.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from checkpoints.util.interpreter import environment, module
from launcher.findings import Finding
from launcher.sky.setup.controller import FIX, has_remote_server, mode_of
from launcher.sky.setup.settings import config_file, read, section
from trainer.config.clouds import CLOUDS

logger = logging.getLogger(__name__)

NO_UPLOAD = "NO_UPLOAD"
KEY = "remote_identity"
OWN_IDENTITY = frozenset(cloud.name for cloud in CLOUDS.values() if cloud.own_identity) | {"azure"}
"""Clouds whose machines can terminate themselves without the user's files."""
SETTABLE = frozenset(cloud.name for cloud in CLOUDS.values() if cloud.keeps_files) | {"azure"}
"""Clouds with this setting. For others (such as Lambda and RunPod) SkyPilot's configuration rejects the key."""
STORAGE = "storage"
"""Used in place of a cloud for the files of R2, Hugging Face and so on. They have no such setting either."""
ASK_S = 60.0
"""Timeout: importing sky takes 3 s, on a cold disk 20 s."""
WHAT = "credential files"
MORE = "docs/how-to/real-cloud.md"


class Mounted(NamedTuple):
    """Existing files that would be copied."""

    cloud: str
    """Name in SkyPilot's registry, or `STORAGE`."""
    paths: tuple[str, ...]


def mounted_credentials(config: Mapping[str, Any]) -> list[Mounted]:
    """The existing credential files that would be copied with this SkyPilot configuration.

    It calls SkyPilot's own functions, so it imports sky and may run a cloud's command line tool; no server is
    contacted.
    """
    from sky import check
    from sky.utils import registry

    mounted = []
    for name, cloud in registry.CLOUD_REGISTRY.items():
        if name in ("kubernetes", "ssh", "slurm"):
            continue  # a kubeconfig stays here by SkyPilot's default
        paths = tuple(sorted(path for path in cloud.get_credential_file_mounts().values() if _is_there(path)))
        if paths:
            mounted.append(Mounted(name, paths))
    storage = check.get_cloud_credential_file_mounts(list(registry.CLOUD_REGISTRY.values()))
    return copied_files(config, [*mounted, *([Mounted(STORAGE, tuple(sorted(storage)))] if storage else [])])


def copied_files(config: Mapping[str, Any], here: Sequence[Mounted]) -> list[Mounted]:
    """The existing files that this configuration doesn't keep here."""
    return [one for one in here if not is_kept(config, one.cloud)]


def ask_skypilot() -> list[Mounted] | None:
    """The existing credential files, regardless of configuration; None if SkyPilot could not be queried."""
    try:
        words = module("launcher.sky.setup.credentials")
        done = subprocess.run(words, capture_output=True, text=True, timeout=ASK_S, check=True, env=environment())
        return [Mounted(cloud, tuple(paths)) for cloud, paths in json.loads(done.stdout.splitlines()[-1])]
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        logger.info("SkyPilot does not report which credential files it would copy: %s", error)
        return None


def safe_remote_identity(path: Path, config: Mapping[str, Any], here: Sequence[Mounted]) -> dict[str, str]:
    """Values for `CLOUD: {remote_identity: ...}`, by cloud, that keep files here without breaking anything.

    Only for clouds whose files exist here and whose machines don't need them. The user's own settings are kept, except
    for a lower-case NO_UPLOAD. Empty if the jobs controller has its own VM, which rents machines with these files.
    Raises `RequestError` for settings in `path` that can't be read.
    """
    if not mode_of(path, config):
        return {}
    clouds = sorted({one.cloud for one in copied_files(config, here)} & OWN_IDENTITY)
    chosen = {cloud: section(path, config, cloud).get(KEY) for cloud in clouds}
    return {cloud: NO_UPLOAD for cloud, word in chosen.items() if word is None or str(word).upper() == NO_UPLOAD}


def examine_credentials(home: Path, environment: Mapping[str, str], here: Sequence[Mounted] | None) -> list[Finding]:
    """Report which credentials are copied: one finding for those that can be kept here, and one for the rest.

    There are no findings for a remote API server, which has its own files. Raises `RequestError`.
    """
    path = config_file(home, environment)
    config = read(path)
    if has_remote_server(path, config, environment):
        return []
    if here is None:
        return [Finding(WHAT, "note", "SkyPilot could not report which of them it copies to rented machines")]
    copied = copied_files(config, here)
    kept = [one.cloud for one in here if is_kept(config, one.cloud)]
    if kept and mode_of(path, config) is False:
        lacking = f"the controller's VM gets none of {', '.join(kept)}, so it can't rent machines there"
        return [Finding(WHAT, "note", lacking, f"delete {KEY} there in {path}")]
    if not copied:
        return [Finding(WHAT, "ok", "SkyPilot copies none of them to rented machines")]
    safe = safe_remote_identity(path, config, copied)
    return [
        Finding(
            WHAT, "note", f"SkyPilot copies {describe_files(files)} to every machine that it rents, in any cloud", fix
        )
        for files, fix in (
            ([one for one in copied if one.cloud in safe], FIX),
            ([one for one in copied if one.cloud not in safe], f"{why_copied(path, config, copied)}: {MORE}"),
        )
        if files
    ]


def why_copied(path: Path, config: Mapping[str, Any], copied: Sequence[Mounted]) -> str:
    """Why `doctor --fix` leaves them alone."""
    safe = safe_remote_identity(path, config, copied)
    theirs = f"set in {path}" if mode_of(path, config) else "the controller's VM rents machines with them"

    def reason(cloud: str) -> str:
        if cloud in OWN_IDENTITY:
            return theirs
        if cloud in SETTABLE:
            return "a machine there needs them to terminate itself if the controller is gone"
        return "SkyPilot has no setting for that"

    left: dict[str, list[str]] = {}
    for one in copied:
        if one.cloud not in safe:
            left.setdefault(reason(one.cloud), []).append(one.cloud)
    return "; ".join(f"{', '.join(clouds)}: {why}" for why, clouds in left.items())


def copied_files_note(home: Path, environment: Mapping[str, str]) -> str:
    """One line for a launch: which files would be copied, and how to keep them here; '' if none.

    It is optional, so it never fails, and it doesn't import SkyPilot (3 s): a launch has done so before.
    """
    if "sky" not in sys.modules:
        return ""
    try:
        path = config_file(home, environment)
        config = read(path)
        if has_remote_server(path, config, environment):
            return ""
        copied = mounted_credentials(config)
        safe = safe_remote_identity(path, config, copied)
    except Exception as error:  # any error of SkyPilot or of a cloud's tools
        logger.info("it is not known which credential files are copied: %s", error)
        return ""
    if not copied:
        return ""
    fix = f"{FIX} keeps those of {', '.join(safe)} here" if safe else f"see {MORE}"
    return f"SkyPilot copies {describe_files(copied)} to every machine that it rents; {fix}"


def is_kept(config: Mapping[str, Any], cloud: str) -> bool:
    """Do this cloud's files stay here?

    SkyPilot's schema also accepts `no_upload`, but its code compares case-sensitively, so they would be copied.
    """
    settings = config.get(cloud)
    return isinstance(settings, Mapping) and settings.get(KEY) == NO_UPLOAD


def describe_files(mounted: Sequence[Mounted]) -> str:
    """`~/.aws/credentials and 2 more files (aws, lambda)`; '' for none."""
    paths = [path for one in mounted for path in one.paths]
    if not paths:
        return ""
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{paths[0]}{more} ({', '.join(one.cloud for one in mounted)})"


def _is_there(path: str) -> bool:
    return Path(path).expanduser().exists()


if __name__ == "__main__":
    sys.stdout.write(json.dumps(mounted_credentials({})) + "\n")

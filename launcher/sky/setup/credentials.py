"""Which of the user's credential files SkyPilot copies to every machine that it rents, and how to keep them here.

SkyPilot 0.14.1 mounts the files of *all* clouds on each machine of *any* cloud, a stranger's host at Vast included. A
cloud's `remote_identity: NO_UPLOAD` in the API server's configuration keeps that cloud's files off all machines
(`backend_utils.write_cluster_config`). It can't be set in a task, but for Azure and Kubernetes.

What a machine needs them for is to end itself: SkyPilot's daemon there terminates a machine that is idle for 10 min,
should the controller be gone. GCP, AWS and Azure give their machines an identity of their own for that, whatever
`remote_identity` says. Elsewhere a machine without the file stays up until the controller, or a person, ends it.

`python -m launcher.sky.setup.credentials` prints the files that are here, as JSON: importing sky takes seconds, and a
cloud's command line tool may hang, so the doctor asks a process with a time limit.
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
"""Whose machines can end themselves without the user's files."""
SETTABLE = frozenset(cloud.name for cloud in CLOUDS.values() if cloud.keeps_files) | {"azure"}
"""For the others (Lambda and RunPod are among them) SkyPilot's configuration has no such key, and refuses it."""
STORAGE = "storage"
"""In a cloud's place, for the files of R2, Hugging Face and the like. They have no such setting either."""
ASK_S = 60.0
"""Importing sky takes 3 s, on a cold disk 20."""
WHAT = "credential files"
MORE = "docs/how-to/real-cloud.md"


class Mounted(NamedTuple):
    """Files that are here and travel."""

    cloud: str
    """As SkyPilot's registry has it, or `STORAGE`."""
    paths: tuple[str, ...]


def mounted_credentials(config: Mapping[str, Any]) -> list[Mounted]:
    """The credential files that are here and would travel with this configuration of SkyPilot's (a mapping).

    Asks SkyPilot's own functions, so it imports sky, and may call a cloud's command line tool; nothing is contacted.
    """
    from sky import check
    from sky.utils import registry

    found = []
    for name, cloud in registry.CLOUD_REGISTRY.items():
        if name in ("kubernetes", "ssh", "slurm"):
            continue  # a kubeconfig stays here by SkyPilot's default
        paths = tuple(sorted(path for path in cloud.get_credential_file_mounts().values() if _is_there(path)))
        if paths:
            found.append(Mounted(name, paths))
    storage = check.get_cloud_credential_file_mounts(list(registry.CLOUD_REGISTRY.values()))
    return travelling(config, [*found, *([Mounted(STORAGE, tuple(sorted(storage)))] if storage else [])])


def travelling(config: Mapping[str, Any], here: Sequence[Mounted]) -> list[Mounted]:
    """What of the files that are here is not kept here by this configuration."""
    return [one for one in here if not is_kept(config, one.cloud)]


def ask_skypilot() -> list[Mounted] | None:
    """The credential files that are here, whatever is configured; None if SkyPilot could not be asked."""
    try:
        words = module("launcher.sky.setup.credentials")
        done = subprocess.run(words, capture_output=True, text=True, timeout=ASK_S, check=True, env=environment())
        return [Mounted(cloud, tuple(paths)) for cloud, paths in json.loads(done.stdout.splitlines()[-1])]
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        logger.info("SkyPilot does not report which credential files it would copy: %s", error)
        return None


def safe_remote_identity(path: Path, config: Mapping[str, Any], here: Sequence[Mounted]) -> dict[str, str]:
    """What to set as `CLOUD: {remote_identity: ...}`, by cloud, so that files stay here and nothing stops working.

    Only for clouds whose files are here and whose machines don't need them. What the user has chosen stays, but for
    NO_UPLOAD in small letters. Empty if the jobs controller has a VM of its own: that one rents machines with the very
    files. Raises `RequestError` for settings in `path` that can't be read.
    """
    if not mode_of(path, config):
        return {}
    clouds = sorted({one.cloud for one in travelling(config, here)} & OWN_IDENTITY)
    chosen = {cloud: section(path, config, cloud).get(KEY) for cloud in clouds}
    return {cloud: NO_UPLOAD for cloud, word in chosen.items() if word is None or str(word).upper() == NO_UPLOAD}


def examine_credentials(home: Path, environment: Mapping[str, str], here: Sequence[Mounted] | None) -> list[Finding]:
    """Report which credentials travel: one finding for what can be kept here, and one for the rest.

    There are no findings for a remote API server, whose files are another machine's. Raises `RequestError`.
    """
    path = config_file(home, environment)
    config = read(path)
    if has_remote_server(path, config, environment):
        return []
    if here is None:
        return [Finding(WHAT, "note", "SkyPilot could not be asked which of them it copies to rented machines")]
    found = travelling(config, here)
    kept = [one.cloud for one in here if is_kept(config, one.cloud)]
    if kept and mode_of(path, config) is False:
        lacking = f"the controller's VM gets none of {', '.join(kept)}, and may rent nothing there"
        return [Finding(WHAT, "note", lacking, f"delete {KEY} there in {path}")]
    if not found:
        return [Finding(WHAT, "ok", "SkyPilot copies none of them to rented machines")]
    safe = safe_remote_identity(path, config, found)
    return [
        Finding(WHAT, "note", f"SkyPilot copies {in_words(files)} to every machine that it rents, of any cloud", fix)
        for files, fix in (
            ([one for one in found if one.cloud in safe], FIX),
            ([one for one in found if one.cloud not in safe], f"{why_they_travel(path, config, found)}: {MORE}"),
        )
        if files
    ]


def why_they_travel(path: Path, config: Mapping[str, Any], found: Sequence[Mounted]) -> str:
    """Why `doctor --fix` leaves them alone."""
    safe = safe_remote_identity(path, config, found)
    theirs = f"{path} says so" if mode_of(path, config) else "the controller's VM rents machines with them"

    def reason(cloud: str) -> str:
        if cloud in OWN_IDENTITY:
            return theirs
        if cloud in SETTABLE:
            return "a machine there needs them to end itself if the controller is gone"
        return "SkyPilot has no setting for that"

    left: dict[str, list[str]] = {}
    for one in found:
        if one.cloud not in safe:
            left.setdefault(reason(one.cloud), []).append(one.cloud)
    return "; ".join(f"{', '.join(clouds)}: {why}" for why, clouds in left.items())


def remark(home: Path, environment: Mapping[str, str]) -> str:
    """One line for a launch: which files would travel, and what would keep them here; '' if there is nothing to say.

    A courtesy, so it never fails, and it doesn't load SkyPilot for itself (3 s): a launch has asked it for jobs before.
    """
    if "sky" not in sys.modules:
        return ""
    try:
        path = config_file(home, environment)
        config = read(path)
        if has_remote_server(path, config, environment):
            return ""
        found = mounted_credentials(config)
        safe = safe_remote_identity(path, config, found)
    except Exception as error:  # of SkyPilot's or of a cloud's tools, of any kind
        logger.info("which credential files travel is not known: %s", error)
        return ""
    if not found:
        return ""
    fix = f"{FIX} keeps those of {', '.join(safe)} here" if safe else f"see {MORE}"
    return f"SkyPilot copies {in_words(found)} to every machine that it rents; {fix}"


def is_kept(config: Mapping[str, Any], cloud: str) -> bool:
    """Do this cloud's files stay here?

    SkyPilot's schema takes `no_upload` too, but its code compares the word as it is written: then they travel.
    """
    settings = config.get(cloud)
    return isinstance(settings, Mapping) and settings.get(KEY) == NO_UPLOAD


def in_words(mounted: Sequence[Mounted]) -> str:
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

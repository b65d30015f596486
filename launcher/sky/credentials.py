"""Which of the user's credential files SkyPilot copies to every machine that it rents, and how to keep them here.

SkyPilot 0.14.1 mounts the files of *all* clouds on each machine of *any* cloud, a stranger's host at Vast included. A
cloud's `remote_identity: NO_UPLOAD` in the API server's configuration keeps that cloud's files off all machines
(`backend_utils.write_cluster_config`). It can't be set in a task, but for Azure and Kubernetes.

What a machine needs them for is to end itself: SkyPilot's daemon there terminates a machine that is idle for 10 min,
should the controller be gone. GCP, AWS and Azure give their machines an identity of their own for that, whatever
`remote_identity` says. Elsewhere a machine without the file stays up until the controller, or a person, ends it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML

from launcher.sky.settings import config_file

logger = logging.getLogger(__name__)

NO_UPLOAD = "NO_UPLOAD"
KEY = "remote_identity"
OWN_IDENTITY = frozenset({"gcp", "aws", "azure"})
"""Whose machines can end themselves without the user's files."""
SETTABLE = OWN_IDENTITY | {"nebius", "vast", "oci"}
"""For the others (Lambda and RunPod are among them) SkyPilot's configuration has no such key, and refuses it."""


class Mounted(NamedTuple):
    """Files that travel."""

    cloud: str
    """As SkyPilot's registry has it; "storage" for those of R2, Hugging Face and the like."""
    paths: tuple[str, ...]


def mounted_credentials(config: Mapping[str, Any]) -> list[Mounted]:
    """The credential files that are here and would travel with this configuration of SkyPilot's (a mapping).

    Asks SkyPilot's own functions, so it imports sky, and may call a cloud's command line tool; nothing is contacted.
    """
    from sky import check
    from sky.utils import registry

    found = []
    for name, cloud in registry.CLOUD_REGISTRY.items():
        if name in ("kubernetes", "ssh", "slurm") or is_kept(config, name):
            continue  # a kubeconfig stays here by SkyPilot's default
        paths = tuple(sorted(path for path in cloud.get_credential_file_mounts().values() if _is_there(path)))
        if paths:
            found.append(Mounted(name, paths))
    storage = check.get_cloud_credential_file_mounts(list(registry.CLOUD_REGISTRY.values()))
    return [*found, *([Mounted("storage", tuple(sorted(storage)))] if storage else [])]


def safe_remote_identity(config: Mapping[str, Any], used: Collection[str] = ()) -> dict[str, str]:
    """What to set as `CLOUD: {remote_identity: ...}`, by cloud, so that files stay here and nothing stops working.

    `used`: the clouds that runs are launched in. One of those keeps its files where its machines need them to end
    themselves. What the user has set stays. Empty where the jobs controller has a VM of its own: that one rents
    machines with the very files.
    """
    controller = (config.get("jobs") or {}).get("controller") or {}
    if not controller.get("consolidation_mode"):
        return {}
    return {cloud: NO_UPLOAD for cloud in sorted(SETTABLE) if _is_safe(cloud, used) and not _chosen(config, cloud)}


def remark(home: Path, environment: Mapping[str, str]) -> str:
    """One line for a launch: which files would travel, and what would keep them here; '' where nothing is to say.

    A courtesy, so it never fails, and it doesn't load SkyPilot for itself (3 s): a launch has asked it for jobs before.
    """
    if "sky" not in sys.modules or environment.get("SKYPILOT_API_SERVER_ENDPOINT"):
        return ""
    try:
        config = YAML(typ="safe").load(config_file(home, environment).read_text()) or {}
        words = in_words(mounted_credentials(config))
        settable = safe_remote_identity(config)
    except Exception as error:  # of SkyPilot's or of a cloud's tools, of any kind
        logger.info("which credential files travel is not known: %s", error)
        return ""
    if not words:
        return ""
    fix = "notus-launch doctor shows what keeps them here" if settable else "see docs/how-to/real-cloud.md"
    return f"SkyPilot copies {words} to every machine that it rents; {fix}"


def is_kept(config: Mapping[str, Any], cloud: str) -> bool:
    """Do this cloud's files stay here?"""
    return str(_chosen(config, cloud)).upper() == NO_UPLOAD


def in_words(mounted: Collection[Mounted]) -> str:
    """`~/.aws/credentials and 2 more files of aws, lambda`; '' for none."""
    paths = [path for one in mounted for path in one.paths]
    if not paths:
        return ""
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{paths[0]}{more} ({', '.join(one.cloud for one in mounted)})"


def _is_safe(cloud: str, used: Collection[str]) -> bool:
    return cloud in OWN_IDENTITY or cloud not in used


def _chosen(config: Mapping[str, Any], cloud: str) -> Any:
    settings = config.get(cloud)
    return settings.get(KEY) if isinstance(settings, Mapping) else None


def _is_there(path: str) -> bool:
    return Path(path).expanduser().exists()

"""The clouds where runs can train: one row each, read by the trainer on a VM and by the launcher on a laptop.

To add one: a row here, its price list in `launcher/data/catalogs/`, and, if it announces preemptions, a source in
`trainer/runtime/preemption_notice.py`. docs/how-to/add-a-cloud.md has the steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Cloud(NamedTuple):
    """What a run needs to know about a cloud. Matches SkyPilot 0.14.1 (checked by a test), except for spot."""

    name: str
    """Its name in a task's `infra`, in price lists and in SkyPilot's registry."""
    label: str
    credentials: str
    """The file that SkyPilot looks for, relative to the home folder."""
    has_spot: bool = False
    notice: str = ""
    """Which source of `preemption_notice.SOURCES` announces preemptions; '' = none."""
    hosts_controller: bool = True
    """Can SkyPilot's jobs controller run on a VM there?"""
    own_identity: bool = False
    """Can its machines terminate themselves without the user's credential files?"""
    keeps_files: bool = False
    """Does SkyPilot's configuration have `remote_identity` for it, which keeps those files off rented machines?"""


CLOUDS: Mapping[str, Cloud] = {
    cloud.name: cloud
    for cloud in (
        Cloud(
            "gcp",
            "GCP",
            ".config/gcloud/application_default_credentials.json",
            has_spot=True,
            notice="gcp",
            own_identity=True,
            keeps_files=True,
        ),
        Cloud("lambda", "Lambda", ".lambda_cloud/lambda_keys", hosts_controller=False),
        Cloud(
            "aws",
            "AWS",
            ".aws/credentials",
            has_spot=True,
            notice="aws",
            own_identity=True,
            keeps_files=True,
        ),
        Cloud("runpod", "RunPod", ".runpod/config.toml"),
        Cloud("nebius", "Nebius", ".nebius/credentials.json", has_spot=True, keeps_files=True),
        Cloud("vast", "Vast", ".config/vastai/vast_api_key", keeps_files=True),
        Cloud("oci", "OCI", ".oci/config", keeps_files=True),
    )
}
"""RunPod's and Vast's spot prices in the price lists equal the on-demand price or zero, so they don't count as spot
here. OCI has no spot price for a node with 8 GPUs, which is bare metal there."""

"""The clouds and GPU types that a request can name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from launcher.errors import RequestError
from trainer.config.gpu_types import GPU_MEMORY_GIB

Market = Literal["auto", "spot", "on-demand"]


class CloudTraits(NamedTuple):
    """What a cloud can do, as far as a run cares."""

    name: str
    label: str
    has_spot: bool
    notice_s: float | None
    """Between a spot machine's notice and its end, where the trainer knows how to hear it."""
    can_stop: bool
    hosts_controller: bool
    """May SkyPilot's jobs controller live on a VM there?"""


CLOUDS = {
    traits.name: traits
    for traits in (
        CloudTraits("gcp", "GCP", has_spot=True, notice_s=30.0, can_stop=True, hosts_controller=True),
        CloudTraits("lambda", "Lambda", has_spot=False, notice_s=None, can_stop=False, hosts_controller=False),
        CloudTraits("aws", "AWS", has_spot=True, notice_s=120.0, can_stop=True, hosts_controller=True),
        CloudTraits("runpod", "RunPod", has_spot=False, notice_s=None, can_stop=False, hosts_controller=True),
        CloudTraits("nebius", "Nebius", has_spot=True, notice_s=None, can_stop=True, hosts_controller=True),
        CloudTraits("vast", "Vast", has_spot=False, notice_s=None, can_stop=True, hosts_controller=True),
    )
}
"""As SkyPilot 0.14.1 says (a test compares), but for spot: RunPod's and Vast's spot columns of the catalog equal the
on-demand price or zero, so they aren't read as spot here."""
LOCAL = "local"


@dataclass(frozen=True)
class Gpus:
    """So many GPUs of one kind, all in one node."""

    name: str
    count: int

    def __str__(self) -> str:
        return f"{self.name}:{self.count}"


def parse_gpus(text: str) -> Gpus:
    """`A100:8` -> Gpus; raises `RequestError`. Whether somebody sells such a GPU is for the price lists to say."""
    match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?::([1-9][0-9]{0,2}))?", text)
    if not match:
        raise RequestError(f"{text[:80]!r} is not a GPU request", "write KIND:COUNT, for example A100:8")
    names = {name.lower(): name for name in GPU_MEMORY_GIB}
    return Gpus(names.get(match[1].lower(), match[1]), int(match[2] or 8))


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`; did you mean 'A100'?`, or nothing where no known name is near."""
    lowered = {name.lower(): name for name in known}
    close = difflib.get_close_matches(given.lower(), list(lowered), n=1, cutoff=0.4)
    return f"; did you mean {lowered[close[0]]!r}?" if close else ""

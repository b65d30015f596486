"""Is this machine what the recipe needs? Asked in the set-up of a VM, so that a wrong one fails before it trains.

`python -m trainer.preflight RECIPE`. Exit code 2 with a clear line, also in the run's diary; SkyPilot then ends the job
and tries no other one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from checkpoints.errors import NotusError
from checkpoints.event_kinds import Failed
from checkpoints.events import Diary
from checkpoints.run import open_run
from checkpoints.terminal import show_error
from trainer.errors import HardwareError
from trainer.gpus import GPU_MEMORY_GIB
from trainer.recipe import Hardware, load_recipe

MEMORY_TOLERANCE = 0.9
"""A card sold with 40 GB has 39.4 to 40 GiB, one with 80 GB has 79 to 80 GiB."""
DISK_GIB = 50
"""For the base weights and their cache; the export of a 7B model needs 15 more."""


class Card(NamedTuple):
    """One line of nvidia-smi."""

    name: str
    memory_gib: float
    driver: str


def read_cards() -> list[Card]:
    """The GPUs as the driver sees them; raises `HardwareError` where there is no driver that works."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True)
    except FileNotFoundError:
        raise HardwareError("nvidia-smi is not there: no NVIDIA driver", "use an image with the driver") from None
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = str(getattr(error, "stdout", "") or error).strip()
        raise HardwareError(
            f"nvidia-smi fails: {said[:300]}", "the driver doesn't match the kernel or the card"
        ) from error
    return parse_cards(done.stdout)


def parse_cards(text: str) -> list[Card]:
    """The CSV lines of nvidia-smi; a line that isn't one of a card (`[N/A]` memory) is left out."""
    cards = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 3 and parts[1].isdigit():
            cards.append(Card(parts[0], int(parts[1]) / 1024, parts[2]))
    return cards


def check(hardware: Hardware, cards: Sequence[Card], free_gib: float) -> None:
    """Raises `HardwareError` for too few cards, too small ones, or a full disk. A recipe without GPUs needs none."""
    if hardware.gpus is None:
        return
    kind, _, count = hardware.gpus.partition(":")
    if len(cards) < int(count or 1):
        raise HardwareError(
            f"the recipe needs {hardware.gpus}, and the driver shows {len(cards)} GPUs",
            "a card may have fallen off the bus: give the machine back, and launch again",
        )
    smallest = min(cards, key=lambda card: card.memory_gib)
    needed_gib = GPU_MEMORY_GIB.get(kind, 0)
    if smallest.memory_gib < MEMORY_TOLERANCE * needed_gib:
        raise HardwareError(
            f"{smallest.name} has {smallest.memory_gib:.0f} GiB, and the recipe needs {needed_gib}",
            "launch with --gpus of the kind that the recipe names, or a larger one",
        )
    if free_gib < DISK_GIB:
        raise HardwareError(f"only {free_gib:.0f} GiB of disk are free; {DISK_GIB} are needed", "raise disk_size")


def check_torch() -> None:
    """Can this torch use the driver? Raises `HardwareError` with torch's own words."""
    code = "import torch; torch.zeros(1, device='cuda'); print(torch.version.cuda)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise HardwareError(f"torch can't use the GPUs: {last[:300]}", "the driver is older than this torch needs")


def main() -> int:
    """Check this machine for the recipe named."""
    try:
        hardware = load_recipe(sys.argv[1]).hardware
        if hardware.gpus is not None:
            cards = read_cards()
            check(hardware, cards, shutil.disk_usage(Path.home()).free / 2**30)
            check_torch()
            sys.stdout.write(f"notus: {len(cards)} x {cards[0].name}, driver {cards[0].driver}\n")
    except NotusError as error:
        show_error(error, "notus-train")
        note_failure(error, os.environ)
        return error.exit_code
    return 0


def note_failure(error: NotusError, environment: Mapping[str, str]) -> None:
    """Into the run's diary, where who follows the run can read it: SkyPilot keeps a set-up's output for its own logs.

    As well as it goes: without it the job fails all the same.
    """
    bucket, run = environment.get("NOTUS_BUCKET"), environment.get("NOTUS_RUN")
    if not bucket or not run:
        return
    try:
        diary = Diary(open_run(bucket, run, environment), 0)
        diary.write(Failed(message=error.message, hint=error.hint, exit_code=error.exit_code))
    except Exception as trouble:  # a bucket's client raises what it likes, and the first error is the one to show
        sys.stderr.write(f"notus-train: could not note that in {bucket}: {trouble}\n")


if __name__ == "__main__":
    sys.exit(main())

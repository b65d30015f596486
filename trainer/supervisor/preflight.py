"""Checks in the set-up of a VM whether it is what the recipe needs, so that a wrong one fails before it trains.

`python -m trainer.preflight RECIPE`. Exit code 2 for an error on every machine, also recorded in the run's diary:
SkyPilot then ends the job and tries no other machine. 75 for a fault of this machine: the set-up reports it and
requests another one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from checkpoints.errors import NotusError
from checkpoints.run_log.event_kinds import Failed
from checkpoints.run_log.event_log import Diary, read_events
from checkpoints.run_log.run_record import open_run
from checkpoints.util.command_line import show_error
from checkpoints.util.environment import user_home
from checkpoints.util.interpreter import SAFE, environment
from trainer.config.gpu_types import GPU_TYPES
from trainer.config.recipe import Hardware, Recipe, load_recipe
from trainer.data.input_hash import inputs_digest
from trainer.errors import EXIT_PREEMPTED, HardwareError, MachineFault
from trainer.supervisor.restart_policy import of_this_machine
from trainer.supervisor.single_node import check_nodes_here

MEMORY_TOLERANCE = 0.9
"""A card sold as 40 GB has 39.4 to 40 GiB, one sold as 80 GB has 79 to 80 GiB."""
DISK_GIB = 50
"""For the base weights and their cache; exporting a 7B model needs 15 more."""


TORCH_S = 200.0
"""The first import of torch on a cold disk takes a minute."""


class Card(NamedTuple):
    """One line of nvidia-smi."""

    name: str
    memory_gib: float
    driver: str


def read_cards() -> list[Card]:
    """The GPUs that the driver reports; raises `MachineFault` if there is no working driver."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True)
    except FileNotFoundError:
        raise MachineFault("nvidia-smi is missing: no NVIDIA driver", "use an image with the driver") from None
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        output = str(getattr(error, "stdout", "") or error).strip()
        raise MachineFault(
            f"nvidia-smi fails: {output[:300]}", "the driver doesn't match the kernel or the card"
        ) from error
    return parse_cards(done.stdout)


def parse_cards(text: str) -> list[Card]:
    """Parse the CSV lines of nvidia-smi; lines that aren't a card's (`[N/A]` memory) are skipped."""
    cards = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 3 and parts[1].isdigit():
            cards.append(Card(parts[0], int(parts[1]) / 1024, parts[2]))
    return cards


def check(hardware: Hardware, cards: Sequence[Card], free_gib: float) -> None:
    """Check this machine's GPUs and disk. A recipe without GPUs needs no check.

    Raises `HardwareError` if all cards are too small, and `MachineFault` if only some are, for too few cards, or for a
    full disk.
    """
    if hardware.gpus is None:
        return
    kind, _, count = hardware.gpus.partition(":")
    if len(cards) < int(count or 1):
        raise MachineFault(
            f"the recipe needs {hardware.gpus}, but the driver shows {len(cards)} GPUs",
            "a card may have fallen off the bus: release the machine, and launch again",
        )
    smallest = min(cards, key=lambda card: card.memory_gib)
    needed_gib = GPU_TYPES[kind].memory_gib if kind in GPU_TYPES else 0
    too_small = [card for card in cards if card.memory_gib < MEMORY_TOLERANCE * needed_gib]
    if too_small:
        kind_of_error = HardwareError if len(too_small) == len(cards) else MachineFault
        raise kind_of_error(
            f"{smallest.name} has {smallest.memory_gib:.0f} GiB, but the recipe needs {needed_gib}",
            "launch with the kind of --gpus that the recipe names, or a larger one",
        )
    if free_gib < DISK_GIB:
        raise MachineFault(f"only {free_gib:.0f} GiB of disk are free; {DISK_GIB} are needed", "raise disk_size")


def check_torch() -> None:
    """Check that this torch can use every GPU. Raises `MachineFault` with torch's error."""
    code = "import torch; [torch.zeros(1, device=i).add(1).item() for i in range(torch.cuda.device_count())]"
    code += "; torch.zeros(1, device='cuda')"  # which raises the reason if there was no device to loop over
    try:
        done = subprocess.run(
            [*SAFE, "-c", code], capture_output=True, text=True, check=False, timeout=TORCH_S, env=environment()
        )
    except subprocess.TimeoutExpired as error:
        raise MachineFault(f"torch has not reached the GPUs in {TORCH_S:.0f} s", "a GPU or its driver hangs") from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise MachineFault(f"torch can't use the GPUs: {last[:300]}", "the driver is older than this torch needs")


def main() -> int:
    """Check this machine for the given recipe."""
    recipe = None
    try:
        check_nodes_here(os.environ)
        recipe = load_recipe(sys.argv[1])
        hardware = recipe.hardware
        if hardware.gpus is not None:
            cards = read_cards()
            check(hardware, cards, shutil.disk_usage(user_home()).free / 2**30)
            check_torch()
            sys.stdout.write(f"notus: {len(cards)} x {cards[0].name}, driver {cards[0].driver}\n")
    except NotusError as error:
        show_error(error, "notus-train")
        return judge(error, recipe, os.environ)
    return 0


def judge(error: NotusError, recipe: Recipe | None, environment: Mapping[str, str]) -> int:
    """Return the exit code for `error`, and record in the run's diary what ends the run.

    Users who follow the run can read it there: SkyPilot keeps a set-up's output in its own logs. The record is best
    effort: without the diary the job ends with the same code.
    """
    bucket, run = environment.get("NOTUS_BUCKET"), environment.get("NOTUS_RUN")
    if isinstance(error, MachineFault) or not bucket or not run:
        return EXIT_PREEMPTED if isinstance(error, MachineFault) else error.exit_code
    try:
        store = open_run(bucket, run, environment)
        if of_this_machine(error, read_events(store), inputs_digest(recipe) if recipe else ""):
            return EXIT_PREEMPTED
        Diary(store, 0).write(Failed(message=error.message, hint=error.hint, exit_code=error.exit_code))
    except Exception as trouble:  # a bucket's client may raise anything, and the first error is the one to show
        sys.stderr.write(f"notus-train: could not record that in {bucket}: {trouble}\n")
    return error.exit_code

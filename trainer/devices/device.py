"""What an attempt computes on, and with which kernels: GPU or CPU, attention, determinism."""

from __future__ import annotations

import logging
import os
from typing import NamedTuple

import torch
from torch.backends.cpu import get_cpu_capability
from transformers.utils import is_flash_attn_2_available

from trainer.config.fingerprint import cpu_device
from trainer.config.recipe import Recipe
from trainer.config.trl_config import Attention, Device, choose_attention
from trainer.devices.determinism import make_deterministic
from trainer.errors import HardwareError

logger = logging.getLogger(__name__)


class DeviceSetup(NamedTuple):
    """The device and kernels of a rank; the same on all ranks."""

    device: Device
    name: str
    """The kind of GPU or CPU, as in the fingerprint."""
    attention: Attention
    determinism: dict[str, str]
    """The settings, see `trainer.devices.determinism`."""

    @property
    def gpu(self) -> str | None:
        """The kind of GPU; None on a CPU."""
        return self.name if self.device == "cuda" else None


def compiles_operators(recipe: Recipe) -> bool:
    """Will DeepSpeed need a compiler, for its collectives on a CPU or its optimizer for offloaded state?"""
    on_cpu = not torch.cuda.is_available()
    return recipe.zero is not None and (on_cpu or recipe.zero.offload_optimizer == "cpu")


def set_up_device(recipe: Recipe) -> DeviceSetup:
    """Set up torch and accelerate for this machine, before anything is computed.

    Raises `HardwareError` if there are more ranks than GPUs.
    """
    device: Device = "cuda" if torch.cuda.is_available() else "cpu"
    determinism = make_deterministic() if device == "cuda" and recipe.training.deterministic else {}
    if device == "cpu":
        torch.set_num_threads(1)
        _configure_accelerate_on_cpu(recipe)
    else:
        ranks = int(os.environ["LOCAL_WORLD_SIZE"])
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks))
        if ranks > torch.cuda.device_count():
            raise HardwareError(
                f"{ranks} ranks, but torch sees {torch.cuda.device_count()} GPUs",
                "set --processes, or check CUDA_VISIBLE_DEVICES",
            )
    flash = device == "cuda" and is_flash_attn_2_available()
    attention, why = choose_attention(recipe.model.attention, device=device, flash_installed=flash)
    logger.info("attention: %s (%s)", attention, why)
    return DeviceSetup(
        device,
        torch.cuda.get_device_name() if device == "cuda" else cpu_device(get_cpu_capability()),
        attention,
        determinism,
    )


def smallest_gpu_gib() -> float | None:
    """Memory of this node's smallest GPU, the same on all its ranks. None on a CPU."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    sizes = [torch.cuda.get_device_properties(index).total_memory for index in range(count)]
    return min(sizes) / 2**30 if sizes else None


def _configure_accelerate_on_cpu(recipe: Recipe) -> None:
    """Set accelerate up first: it picks plain multi-CPU for use_cpu=True and refuses bf16 for use_cpu=False."""
    if recipe.zero is not None:
        from accelerate import PartialState

        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        PartialState(cpu=False, backend="gloo")
        del os.environ["ACCELERATE_USE_DEEPSPEED"]

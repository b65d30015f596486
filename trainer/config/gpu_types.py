"""Known kinds of GPU, one record each: memory, peak performance, training speed.

Other kinds can be named too: their memory is then not checked, their MFU not shown, and the hours on them have to be
given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class GpuType(NamedTuple):
    """One kind of GPU, by SkyPilot's name for it."""

    name: str
    memory_gib: int
    """Nominal memory (NVIDIA's data sheets; for a B200, what clouds provide of its 192)."""
    tflops: Mapping[str, float] = {}
    """bf16, dense, per GPU, by a part of the device's name (NVIDIA's data sheets). The longest match counts."""
    tokens_per_second: float | None = None
    """Per GPU in a node of 8 that trains a 7B model: see `launcher.catalog.gpu_speeds`."""
    derived: str = ""
    """How the speed was derived for a kind that the table lacks, in words."""
    nvlink: bool = True
    """Are the GPUs of a node connected by NVLink?"""


_H100_SPEED, _A100_SPEED = 10203.0, 3854.0
GPU_TYPES: Mapping[str, GpuType] = {
    gpu.name: gpu
    for gpu in (
        GpuType("A100", 40, {"A100": 312.0}, _A100_SPEED),
        GpuType("A100-80GB", 80, {"A100": 312.0}, 4357.0),
        GpuType("H100", 80, {"H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.0}, _H100_SPEED),
        GpuType(
            "H200", 141, {"H200 NVL": 835.0, "H200": 989.0}, _H100_SPEED, "H200 as H100, whose tensor cores it has"
        ),
        GpuType("B200", 180, {"B200": 2250.0}, 2.2 * _H100_SPEED, "B200 2.2 times an H100, by MLPerf Training in fp8"),
        GpuType(
            "L40S",
            48,
            {"L40S": 362.0},
            _A100_SPEED * 362 / 312,
            "L40S by its peak TFLOPS and without NVLink",
            nvlink=False,
        ),
        GpuType("L40", 48, {"L40": 181.0}),
        GpuType("A6000", 48),
        GpuType("A10G", 24),
        GpuType("A10", 24, {"A10": 125.0}),
        GpuType("L4", 24, {"L4": 121.0}),
    )
}
NO_BF16 = frozenset({"V100", "V100-32GB", "P100", "P4", "K80", "M4000", "M60", "T4", "T4g", "RTX6000"})
"""Older than Ampere: they don't support bfloat16, which every recipe for GPUs uses."""
NOT_CUDA = ("tpu-", "MI2", "MI3", "Gaudi", "Trainium", "Inferentia", "Radeon")
"""Name prefixes of accelerators that are not NVIDIA's: the trainer supports only CUDA."""
VISIBLE = 0.985
"""Share of the nominal memory that the driver shows: 39.4 GiB of an A100 with 40."""


def unusable(kind: str) -> str:
    """Why no recipe for GPUs can train on this kind; '' if there is no reason."""
    if kind in NO_BF16:
        return f"a {kind} doesn't compute in bfloat16"
    if kind.lower().startswith(tuple(name.lower() for name in NOT_CUDA)):
        return f"a {kind} is not an NVIDIA GPU"
    return ""

"""The kinds of GPU that we know, by SkyPilot's names: memory, and which can't train a recipe at all.

Memory in GiB, as sold (NVIDIA's data sheets; a B200 by what clouds give of its 192). A kind that is not here can be
named too: its memory is then not checked.
"""

from collections.abc import Mapping

GPU_MEMORY_GIB: Mapping[str, int] = {
    "A100": 40,
    "A100-80GB": 80,
    "H100": 80,
    "H200": 141,
    "B200": 180,
    "L40S": 48,
    "L40": 48,
    "A6000": 48,
    "A10G": 24,
    "A10": 24,
    "L4": 24,
}
NO_BF16 = frozenset({"V100", "V100-32GB", "P100", "P4", "K80", "M4000", "M60", "T4", "T4g", "RTX6000"})
"""Made before Ampere: they don't compute in bfloat16, in which every recipe for GPUs trains."""
NOT_CUDA = ("tpu-", "MI2", "MI3", "Gaudi", "Trainium", "Inferentia", "Radeon")
"""How the names of accelerators begin that are not NVIDIA's: the trainer knows CUDA only."""
VISIBLE = 0.985
"""Of that memory the driver shows so much: 39.4 GiB of an A100 with 40."""


def unusable(kind: str) -> str:
    """Why no recipe for GPUs trains on this kind; '' where nothing speaks against it."""
    if kind in NO_BF16:
        return f"a {kind} doesn't compute in bfloat16"
    if kind.lower().startswith(tuple(name.lower() for name in NOT_CUDA)):
        return f"a {kind} is not an NVIDIA GPU"
    return ""

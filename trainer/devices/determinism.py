"""The same bits each time from the same GPUs: settings that must be made before the first kernel runs.

- cuBLAS: with a fixed workspace, matrix products don't depend on other streams (NVIDIA's cuBLAS guide, "Results
  reproducibility").
- flash-attention: by default the backward pass adds up in the order in which blocks finish; transformers passes on
  FLASH_ATTENTION_DETERMINISTIC, which makes it deterministic, slower, and takes some more memory.
- torch: deterministic versions of its own kernels, if they exist; an operation without one warns, and runs.
- NCCL: a fixed algorithm and protocol, instead of whatever its tuning finds on this node.

On GPUs the backward pass of torch's own attention (sdpa) stays nondeterministic: `not_reproducible` reports it. A CPU
needs no settings: with one thread per rank, sums have one order.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from trainer.config.fingerprint import is_cpu

CUDA_ENVIRONMENT = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "FLASH_ATTENTION_DETERMINISTIC": "1",
    "NCCL_ALGO": "Ring",
    "NCCL_PROTO": "Simple",
}


def not_reproducible(fingerprint: Mapping[str, Any]) -> list[str]:
    """Why a resume can't be exact on this device, whatever the previous attempt ran on; empty if it can."""
    if is_cpu(fingerprint["device"]):
        return []
    if not fingerprint["determinism"]:
        return ["training.deterministic is off: kernels add up in whatever order their blocks finish"]
    # torch 2.13 uses the deterministic kernel only if an operation without one is an error, not a warning.
    sdpa = "sdpa's backward pass adds up in whatever order its blocks finish; flash-attn or eager don't"
    return [sdpa] if fingerprint["attention"] == "sdpa" else []


def make_deterministic() -> dict[str, str]:
    """Make the settings for this process, and return them, for the fingerprint. The user's own values are kept."""
    import torch

    for name, value in CUDA_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that fills each new tensor
    torch.backends.cudnn.benchmark = False
    return {"torch": "deterministic", **{name: os.environ[name] for name in CUDA_ENVIRONMENT}}

"""The same bits each time from the same GPUs: what has to be set before the first kernel runs.

- cuBLAS: with a fixed workspace, products of matrices don't depend on what other streams do (NVIDIA's cuBLAS guide,
  "Results reproducibility").
- flash-attention: the backward pass adds up in the order in which blocks finish, unless told otherwise; transformers
  hands FLASH_ATTENTION_DETERMINISTIC on. It then takes some more memory and is slower.
- torch: deterministic versions of its own kernels, where there are; an operation that has none warns, and runs.
- NCCL: one algorithm and protocol, and not whatever a tuning finds on this node.

torch's own attention (sdpa) keeps a backward pass on GPUs that is not: `not_reproducible` says so. The CPU needs
nothing: one thread a rank adds up in one order.
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
    """Why a resume can't be exact on this device, whatever the attempt before was; none = it can."""
    if is_cpu(fingerprint["device"]):
        return []
    if not fingerprint["determinism"]:
        return ["training.deterministic is off: kernels add up in whatever order their blocks finish"]
    # torch 2.13 takes the deterministic kernel only where an operation without one is an error, not a warning.
    sdpa = "sdpa's backward pass adds up in whatever order its blocks finish; flash-attn or eager don't"
    return [sdpa] if fingerprint["attention"] == "sdpa" else []


def make_deterministic() -> dict[str, str]:
    """Set it for this process, and return what is set now, for the fingerprint. A value of the user's own is kept."""
    import torch

    for name, value in CUDA_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # it finds bugs, and costs a pass over each new tensor
    torch.backends.cudnn.benchmark = False
    return {"torch": "deterministic", **{name: os.environ[name] for name in CUDA_ENVIRONMENT}}

"""The same bits each time from the same GPUs: what has to be set before the first kernel runs.

- cuBLAS: with a fixed workspace, products of matrices don't depend on what other streams do (NVIDIA's cuBLAS guide,
  "Results reproducibility").
- flash-attention: the backward pass adds up in the order in which blocks finish, unless told otherwise; transformers
  hands FLASH_ATTENTION_DETERMINISTIC on. It then takes some more memory and is slower.
- torch: deterministic versions of its own kernels, where there are; an operation that has none warns, and runs.
- NCCL: one algorithm and protocol, and not whatever a tuning finds on this node.

The CPU needs nothing: one thread a rank adds up in one order.
"""

from __future__ import annotations

import os

CUDA_ENVIRONMENT = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "FLASH_ATTENTION_DETERMINISTIC": "1",
    "NCCL_ALGO": "Ring",
    "NCCL_PROTO": "Simple",
}


def make_deterministic(device: str) -> dict[str, str]:
    """Set it for this process, and return what is set now, for the fingerprint. A value of the user's own is kept."""
    import torch

    if device != "cuda":
        return {"threads": str(torch.get_num_threads())}
    for name, value in CUDA_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # it finds bugs, and costs a pass over each new tensor
    torch.backends.cudnn.benchmark = False
    return {"torch": "deterministic", **{name: os.environ[name] for name in CUDA_ENVIRONMENT}}

"""Relative training speeds of GPUs, to convert a recipe's hours on one kind into hours on another.

From MosaicML's llm-foundry table (scripts/train/benchmarking/README.md, commit 061f2c7): tokens per second and GPU for
its 7B model, bf16, fully sharded over 8 GPUs, sequences of 1024, activation checkpointing: H100 10203, A100 80GB 4357,
A100 40GB 3854. All are SXM cards with NVLink. There are no figures of our own yet; a training run measures its own.

Kinds that are not in the table:
H200: like an H100, which has the same tensor cores (989 TFLOPS of dense bf16 in both data sheets). Its faster memory is
not counted: in MLPerf Training (below) a node of 8 takes about 24 min, 1.2 times as fast, in fp8.
B200: 2.2 times an H100, as in MLPerf Training, Llama 2 70B LoRA on one node of 8: 12.96 min (v4.1, NVIDIA) against
29.10 on H100 (v4.0, Supermicro). In fp8; the ratio of the bf16 peaks, 2250 and 989 TFLOPS, is about the same.
L40S: by its peak relative to an A100's (362 and 312 TFLOPS, data sheets), with the PCIe share: it has no NVLink.
"""

from __future__ import annotations

from collections.abc import Mapping

from launcher.catalog.gpu_nodes import Gpus
from trainer.config.gpu_types import GPU_TYPES

TIMED: Mapping[str, float] = {
    gpu.name: gpu.tokens_per_second for gpu in GPU_TYPES.values() if gpu.tokens_per_second is not None
}
"""Tokens per second and GPU, for the kinds whose speed is known."""
PCIE = 0.7
"""Share of the SXM card's speed without NVLink. Assumed: ZeRO-3 gathers every layer over PCIe."""
SOURCE = "relative speeds of 7B training by MosaicML's llm-foundry table: A100 1, A100-80GB 1.13, H100 2.65"


def is_known(kind: str) -> bool:
    """Can hours on this kind be converted from hours on another one?"""
    return kind in TIMED


def relative_speed(gpus: Gpus, base: Gpus, *, pcie: bool = False) -> float | None:
    """Speed of node `gpus` relative to node `base`; None if a kind's speed is not known.

    Speed is assumed to scale with the number of GPUs.
    """
    if gpus.name == base.name:
        one = 1.0
    elif is_known(gpus.name) and is_known(base.name):
        one = _speed(gpus.name) / _speed(base.name)
    else:
        return None
    return one * gpus.count / base.count * (PCIE if pcie else 1.0)


def _speed(kind: str) -> float:
    return TIMED[kind] * (1.0 if GPU_TYPES[kind].nvlink else PCIE)

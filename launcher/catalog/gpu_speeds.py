"""How fast GPUs train, as ratios: hours of a recipe on one kind become hours on another.

From MosaicML's table of llm-foundry (scripts/train/benchmarking/README.md, commit 061f2c7): tokens a second and GPU of
its 7B model, bf16, fully sharded over 8 GPUs, sequences of 1024, activation checkpointing: H100 10203, A100
80GB 4357, A100 40GB 3854. All are SXM cards with NVLink. No figure of our own yet; a run that trains measures its own.

Kinds that the table lacks:
H200: as an H100, whose tensor cores it has (989 TFLOPS of dense bf16 in both data sheets). Its faster memory is not
counted: in MLPerf Training (below) a node of 8 takes about 24 min, 1.2 times as fast, in fp8.
B200: 2.2 times an H100, as in MLPerf Training, Llama 2 70B LoRA on one node of 8: 12.96 min (v4.1, NVIDIA), 29.10 on
H100 (v4.0, Supermicro). In fp8; the peaks in bf16, 2250 and 989 TFLOPS, are as far apart.
L40S: by its peak against an A100's (362 and 312 TFLOPS, data sheets), with the PCIe share: it has no NVLink.
"""

from __future__ import annotations

from launcher.catalog.clouds import Gpus

TOKENS_PER_SECOND = {
    "A100": 3854.0,
    "A100-80GB": 4357.0,
    "H100": 10203.0,
    "H200": 10203.0,
    "B200": 2.2 * 10203.0,
    "L40S": 3854.0 * 362 / 312,
}
WITHOUT_NVLINK = frozenset({"L40S"})
PCIE = 0.7
"""Of the SXM card's speed, without NVLink between the cards. Assumed: ZeRO-3 gathers every layer over PCIe."""
SOURCE = "relative speeds of 7B training by MosaicML's llm-foundry table: A100 1, A100-80GB 1.13, H100 2.65"
DERIVED = {
    "H200": "H200 as H100, whose tensor cores it has",
    "B200": "B200 2.2 times an H100, by MLPerf Training in fp8",
    "L40S": "L40S by its peak TFLOPS and without NVLink",
}
"""What to say of the kinds that the table lacks."""


def is_known(kind: str) -> bool:
    """Can hours on this kind be had from hours on another one?"""
    return kind in TOKENS_PER_SECOND


def relative_speed(gpus: Gpus, base: Gpus, *, pcie: bool = False) -> float | None:
    """How much faster `gpus` are than `base`, as whole nodes; None where a kind's speed is not known.

    More GPUs are taken to help in proportion.
    """
    if gpus.name == base.name:
        one = 1.0
    elif is_known(gpus.name) and is_known(base.name):
        one = _speed(gpus.name) / _speed(base.name)
    else:
        return None
    return one * gpus.count / base.count * (PCIE if pcie else 1.0)


def _speed(kind: str) -> float:
    return TOKENS_PER_SECOND[kind] * (PCIE if kind in WITHOUT_NVLINK else 1.0)

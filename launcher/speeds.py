"""How fast GPUs train, as ratios: hours of a recipe on one kind become hours on another.

From MosaicML's table of llm-foundry (scripts/train/benchmarking/README.md, commit 061f2c7): tokens a second and GPU of
its 7B model, bf16, fully sharded over 8 GPUs, sequences of 1024, activation checkpointing: H100 10203, A100
80GB 4357, A100 40GB 3854. All are SXM cards with NVLink. No figure of our own yet; a run that trains measures its own.
"""

from __future__ import annotations

from launcher.request import Gpus

TOKENS_PER_SECOND = {"A100": 3854.0, "A100-80GB": 4357.0, "H100": 10203.0}
PCIE = 0.7
"""Of the SXM card's speed, without NVLink between the cards. Assumed: ZeRO-3 gathers every layer over PCIe."""
SOURCE = "relative speeds of 7B training by MosaicML's llm-foundry table: A100 1, A100-80GB 1.13, H100 2.65"


def relative_speed(gpus: Gpus, base: Gpus, *, pcie: bool = False) -> float:
    """How much faster `gpus` are than `base`, as whole nodes. More GPUs are taken to help in proportion."""
    one = TOKENS_PER_SECOND[gpus.name] / TOKENS_PER_SECOND[base.name]
    return one * gpus.count / base.count * (PCIE if pcie else 1.0)

"""Memory that DPO needs on a GPU: weights, gradients, optimizer, reference model, activations. Pure, no torch.

Bytes per parameter under ZeRO-3 in mixed precision: 2 for the bf16 weight, 2 for its gradient, 4 for the fp32 master, 4
for the fp32 gradient of the step, and 4 (RMSprop) or 8 (AdamW) for the optimizer's moments, all divided by the number
of GPUs (Rajbhandari et al. 2020, "ZeRO", section 3, with DeepSpeed's fp32 gradients of the step). The live reference
model adds 2. With offload the weights, or the rest, are in host memory. A test compares the sum with DeepSpeed's own
estimator. Activations are those of Korthikanti et al. 2022, "Reducing activation recomputation", section 4, with flash
attention (no score matrix) and, with gradient checkpointing, one checkpoint per layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from trainer.config.model_shapes import Shape, shape_of
from trainer.config.recipe import Recipe

GIB = 2**30
USABLE = 2 / 3
"""Usable share of GPU memory. CUDA's context and NCCL take about 2 GiB, memory gets fragmented, and this estimate was
compared on one GPU only (there it is 23 to 26 % above the peak, which has no fp32 gradients of all weights). So a third
stays in reserve: a run that dies out of memory costs more than an offload."""
NF4_BYTES = 4.127 / 8
"""Per weight: 4 bits and 0.127 for its doubly quantized scale (Dettmers et al. 2023, "QLoRA", section 3)."""
HOST_GIB_PER_RANK = 4
"""Host memory for each rank's Python, torch, CUDA, NCCL and data, and its share of the system's. Assumed."""
LIVE_PARAMETERS = 1_000_000_000
"""ZeRO-3 gathers weights up to this count, per model (stage3_max_live_parameters, DeepSpeed's default)."""


class Offload(NamedTuple):
    """What is kept in host memory."""

    optimizer: bool
    parameters: bool

    def __str__(self) -> str:
        if self.parameters:
            return "optimizer and weights offloaded"
        return "optimizer offloaded" if self.optimizer else "no offload"


IN_ORDER = (Offload(False, False), Offload(True, False), Offload(True, True))
"""The fastest first."""


@dataclass(frozen=True)
class Need:
    """Bytes on each GPU, and on the host for all GPUs together."""

    states: int
    """Weights, gradients, masters, moments, reference model."""
    gathered: int
    """The layers that ZeRO-3 has gathered at a time."""
    activations: int
    host: int
    """What is offloaded."""

    @property
    def gpu(self) -> int:
        """Bytes per GPU."""
        return self.states + self.gathered + self.activations

    @property
    def gib(self) -> float:
        """GiB of nominal memory per GPU."""
        return self.gpu / USABLE / GIB


@dataclass(frozen=True)
class Fit:
    """Does a recipe run on these GPUs, and how?"""

    fits: bool
    offload: Offload | None
    """The least that is needed; None if nothing fits or nothing is known."""
    reason: str
    """For people, with the figures."""
    host_gib: float | None = None
    """GiB of host memory, including the copy for a save; None if nothing is known."""

    def on_host(self, host_gib: float | None) -> Fit:
        """The fit on a node with `host_gib` GiB of memory, which may be too small.

        None = the catalog doesn't list the memory, so nothing is refused for it. A checkpoint, an offload and the ranks
        have to fit at the same time.
        """
        if not self.fits or self.host_gib is None:
            return self
        if host_gib is None:
            unknown = f"{self.reason}; {self.host_gib:.0f} GiB of the host's memory, and what it has is not known"
            return replace(self, reason=unknown)
        if self.host_gib > host_gib:
            with_what = f" with {self.offload}" if self.offload else ""
            return Fit(
                False, None, f"{self.host_gib:.0f} GiB of the host's memory{with_what}, and it has {host_gib:.0f}"
            )
        return replace(self, reason=f"{self.reason}; {self.host_gib:.0f} of {host_gib:.0f} GiB of the host")


def fit(recipe: Recipe, gpu_gib: float | None, count: int) -> Fit:
    """The fastest way to run a recipe on `count` GPUs with that much memory, or why it can't run.

    An offload that the recipe sets is kept: it affects the numbers. `gpu_gib` None = the memory is not known.
    """
    shape = shape_of(recipe.model.name)
    if recipe.hardware.gpus is None:
        return Fit(True, None, "made for a CPU")
    if shape is None:
        return Fit(True, None, f"the shape of {recipe.model.name} is not known: its memory is not checked")
    needs = [(offload, need_of(recipe, shape, count, offload)) for offload in _ways(recipe)]
    most = needs[0][1].gib
    if gpu_gib is None:
        return Fit(True, None, f"{most:.0f} GiB of each GPU with {needs[0][0]}, and what it has is not known")
    for offload, need in needs:
        if need.gib <= gpu_gib:
            more = f" ({most:.0f} with {needs[0][0]})" if need.gib < most else ""
            reason = f"{need.gib:.0f} of {gpu_gib:.0f} GiB of each GPU with {offload}{more}"
            return Fit(True, offload, reason, host_gib(recipe, need, count))
    least, need = needs[-1]
    return Fit(False, None, f"{need.gib:.0f} GiB of each GPU with {least}, and it has {gpu_gib:.0f}")


def host_gib(recipe: Recipe, need: Need, count: int) -> float:
    """GiB of host memory: what is offloaded, the copy of the state that a save uploads from, and the ranks."""
    return (need.host + (state_bytes(recipe) or 0)) / GIB + count * HOST_GIB_PER_RANK


def runs_with(recipe: Recipe, gpu_gib: float, count: int, offload: Offload) -> bool:
    """Does it run with that offload? True for an unknown model."""
    shape = shape_of(recipe.model.name)
    return shape is None or need_of(recipe, shape, count, offload).gib <= gpu_gib


def need_of(recipe: Recipe, shape: Shape, count: int, offload: Offload) -> Need:
    """Bytes needed with that offload, on that many GPUs."""
    lora = recipe.method == "lora"
    parts = count if recipe.zero is not None else 1
    trained = shape.lora_parameters(recipe.lora.rank, recipe.lora.target_modules) if recipe.lora else shape.parameters
    moments = 4 if recipe.training.optimizer == "rmsprop" else 8
    optimizer = math.ceil(trained / parts) * (2 + 4 + 4 + moments)
    weights = math.ceil(_weight_bytes(recipe, shape) / parts)
    # A LoRA model without its adapters is its own reference; a precomputed one is gone before training starts.
    alone = lora or recipe.dpo.reference == "precomputed"
    reference = 0 if alone else weights
    states = (0 if offload.optimizer else optimizer) + (0 if offload.parameters else weights + reference)
    host = count * ((optimizer if offload.optimizer else 0) + (weights + reference if offload.parameters else 0))
    live = min(LIVE_PARAMETERS, shape.parameters) * 2 * (1 if alone else 2) if recipe.zero is not None else 0
    return Need(states, max(live, 2 * shape.largest_layer_parameters), _activations(recipe, shape), host)


def _weight_bytes(recipe: Recipe, shape: Shape) -> int:
    """Bytes of all weights that forward and backward compute with."""
    if not recipe.needs_bitsandbytes:
        return 2 * shape.parameters
    layers = shape.layers * shape.layer_parameters  # embeddings and head are not quantized
    return math.ceil(layers * NF4_BYTES) + 2 * (shape.parameters - layers)


def state_bytes(recipe: Recipe) -> int | None:
    """Bytes of a checkpoint: fp32 masters and moments of the trained weights. None for an unknown model."""
    shape = shape_of(recipe.model.name)
    if shape is None:
        return None
    trained = shape.lora_parameters(recipe.lora.rank, recipe.lora.target_modules) if recipe.lora else shape.parameters
    return trained * (4 + (4 if recipe.training.optimizer == "rmsprop" else 8))


def _ways(recipe: Recipe) -> tuple[Offload, ...]:
    if recipe.zero is None:
        return (Offload(False, False),)
    fixed = {"cpu": True, "none": False}
    wanted = (fixed.get(recipe.zero.offload_optimizer), fixed.get(recipe.zero.offload_parameters))
    return tuple(way for way in IN_ORDER if all(w in (None, g) for w, g in zip(wanted, way, strict=True)))


def _activations(recipe: Recipe, shape: Shape) -> int:
    """Bytes of activations in one micro-step: chosen and rejected go through the model together."""
    training = recipe.training
    tokens = training.per_device_batch * 2 * recipe.dpo.max_length
    head = shape.head_size or shape.hidden // shape.heads
    query, key = shape.heads * head, shape.kv_heads * head
    norms = shape.norms * shape.hidden * (4 + 2)  # transformers computes them in fp32
    attention = 2 * (2 * query + 2 * key + key + query)  # query and key before and after the rotation, value, output
    mlp = 2 * 4 * shape.intermediate  # gate, its activation, up, their product
    backward = 2 * 3 * shape.intermediate  # the gradients of three of them at once
    layer = tokens * (norms + attention + mlp)
    checkpoints = shape.layers * tokens * shape.hidden * 2
    # TRL 1.16 projects through the head in tiles: the logits of all tokens never exist at once.
    kept = checkpoints + layer if training.gradient_checkpointing else shape.layers * layer
    return kept + tokens * backward

"""Metrics of each step: tokens, rewards, speed, memory. For the run's record in the bucket and for the trackers.

FLOPs per token: 2 per weight in a forward pass, and twice that in the backward pass, once for the inputs and once for
the weights (Kaplan et al. 2020, "Scaling laws", section 2.1). A frozen weight saves the last part; a live reference
model adds one forward pass. MFU (Chowdhery et al. 2022, "PaLM", appendix B) excludes recomputation; the quadratic part
of attention is left out (4 % of a 7B model at 1,024 tokens), and so is padding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainer.config.gpu_types import GPU_TYPES
from trainer.config.model_shapes import Shape

REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins")
"""TRL's names. Means over the pairs of all ranks; accuracy is the share of pairs whose chosen reward is higher."""


@dataclass(frozen=True)
class Speedometer:
    """Turns tokens and seconds into tokens per second and MFU."""

    flops_per_token: float | None
    """None for a model whose shape isn't known."""
    peak_flops: float | None
    """Per second, of all GPUs together. None on a CPU or a GPU that isn't in the table."""

    def read(self, tokens: float, seconds: float) -> dict[str, float]:
        """`tokens_per_second` of all ranks, and `mfu` (0 to 1) if it is known."""
        speed = tokens / max(seconds, 1e-9)
        found = {"tokens_per_second": round(speed, 1)}
        if self.flops_per_token and self.peak_flops:
            found["mfu"] = round(speed * self.flops_per_token / self.peak_flops, 4)
        return found


class Meter:
    """Measures each step, and keeps the readings until their means are read for the trackers."""

    def __init__(self, speedometer: Speedometer, attempt: int) -> None:
        self._speedometer = speedometer
        self._attempt = attempt
        self._readings: list[dict[str, float]] = []

    def read(self, *, tokens: float, seconds: float, stalled_s: float, memory_gib: float) -> dict[str, float]:
        """Measure one step. `tokens`: on all ranks; `memory_gib`: this rank's peak so far."""
        reading = {"memory_gib": round(memory_gib, 3), "stalled_s": round(stalled_s, 4)}
        reading |= self._speedometer.read(tokens, seconds)
        self._readings.append(reading)
        return reading

    def means(self) -> dict[str, float]:
        """Means over the steps since the last call, with the attempt's number, which marks where an attempt ends."""
        readings, self._readings = self._readings, []
        if not readings:
            return {}
        means = {name: sum(reading[name] for reading in readings) / len(readings) for name in readings[0]}
        return {**means, "attempt": float(self._attempt)}


def speedometer(
    shape: Shape | None, *, gpu: str | None, world_size: int, lora: bool, live_reference: bool
) -> Speedometer:
    """The speedometer for a model of that shape on `world_size` GPUs; `gpu`: the device's name, None on a CPU."""
    peak = peak_tflops(gpu) if gpu else None
    passes = (4 if lora else 6) + (2 if live_reference else 0)
    return Speedometer(
        flops_per_token=passes * matrix_weights(shape) if shape else None,
        peak_flops=peak * 1e12 * world_size if peak else None,
    )


def peak_tflops(device: str) -> float | None:
    """Peak of the GPU with this device name, bf16, dense; None if it isn't known."""
    named = {words: tflops for kind in GPU_TYPES.values() for words, tflops in kind.tflops.items()}
    found = [words for words in named if re.search(rf"\b{words}\b", device)]
    return named[max(found, key=len)] if found else None


def matrix_weights(shape: Shape) -> int:
    """Weights that a token is multiplied with: all except the input embeddings, which are only looked up."""
    return shape.parameters - (0 if shape.tied else shape.embedding_parameters)


def rewards_of(metrics: Mapping[str, Sequence[float]], micro_steps: int) -> dict[str, float]:
    """The rewards of the newest optimizer step, from TRL's list of one value per micro-step since the last log."""
    newest = {name: list(metrics.get(name, ()))[-micro_steps:] for name in REWARDS}
    return {name: sum(values) / len(values) for name, values in newest.items() if values}

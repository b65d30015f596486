"""What a step is measured by."""

from __future__ import annotations

import pytest

from trainer.config.model_shapes import MISTRAL_7B, shape_of
from trainer.metrics.throughput import Meter, matrix_weights, peak_tflops, rewards_of, speedometer


def test_flops_and_peak_give_the_mfu() -> None:
    full = speedometer(MISTRAL_7B, gpu="NVIDIA A100-SXM4-40GB", world_size=8, lora=False, live_reference=True)
    weights = MISTRAL_7B.parameters - 32000 * 4096
    assert full.flops_per_token == 8 * weights
    assert full.peak_flops == 8 * 312e12
    reading = full.read(tokens=100_000, seconds=10)
    assert reading["tokens_per_second"] == 10_000
    assert reading["mfu"] == pytest.approx(10_000 * 8 * weights / (8 * 312e12), abs=1e-4)


@pytest.mark.parametrize(
    ("lora", "live", "passes"), [(False, False, 6), (False, True, 8), (True, False, 4), (True, True, 6)]
)
def test_passes_over_the_weights(lora: bool, live: bool, passes: int) -> None:
    found = speedometer(MISTRAL_7B, gpu=None, world_size=2, lora=lora, live_reference=live)
    assert found.flops_per_token == passes * matrix_weights(MISTRAL_7B)


@pytest.mark.parametrize(
    ("gpu", "tflops"),
    [
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H200", 989),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", 181),
        ("NVIDIA H200 NVL", 835),
    ],
)
def test_the_device_s_name_tells_the_peak(gpu: str, tflops: float) -> None:
    found = speedometer(MISTRAL_7B, gpu=gpu, world_size=1, lora=False, live_reference=False)
    assert found.peak_flops == tflops * 1e12


@pytest.mark.parametrize("gpu", [None, "NVIDIA GeForce RTX 9090"])
def test_without_a_known_peak_or_shape_there_is_no_mfu(gpu: str | None) -> None:
    assert speedometer(MISTRAL_7B, gpu=gpu, world_size=1, lora=False, live_reference=False).read(10, 2) == {
        "tokens_per_second": 5.0
    }
    unknown = speedometer(None, gpu="NVIDIA A100", world_size=1, lora=False, live_reference=False)
    assert unknown.read(10, 2) == {"tokens_per_second": 5.0}


def test_tied_embeddings_are_also_the_head() -> None:
    tied = shape_of("builtin:smollm2-135m")
    assert tied is not None
    assert matrix_weights(tied) == tied.parameters


def test_the_meter_hands_means_over_once_and_says_which_attempt() -> None:
    meter = Meter(speedometer(None, gpu=None, world_size=1, lora=False, live_reference=False), attempt=3)
    first = meter.read(tokens=100, seconds=1, stalled_s=0.5, memory_gib=2.0)
    assert first == {"memory_gib": 2.0, "stalled_s": 0.5, "tokens_per_second": 100.0}
    meter.read(tokens=300, seconds=1, stalled_s=0.0, memory_gib=4.0)
    assert meter.means() == {"memory_gib": 3.0, "stalled_s": 0.25, "tokens_per_second": 200.0, "attempt": 3.0}
    assert meter.means() == {}, "an evaluation's log line comes without new steps"


def test_rewards_are_those_of_the_newest_step_only() -> None:
    told = {"rewards/margins": [9.0, 1.0, 3.0], "rewards/accuracies": [0.0, 0.5, 1.0], "entropy": [1.0]}
    assert rewards_of(told, 2) == {"rewards/margins": 2.0, "rewards/accuracies": 0.75}


@pytest.mark.parametrize(
    ("device", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA B200", 2250.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_every_kind_with_a_data_sheet_has_a_peak(device: str, tflops: float | None) -> None:
    assert peak_tflops(device) == tflops

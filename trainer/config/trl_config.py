"""Translates a recipe to settings of TRL and DeepSpeed. Pure: values in, dictionaries out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from trainer.config.global_batch import Batch
from trainer.config.recipe import Recipe, Zero

Device = Literal["cuda", "cpu"]
COLLECTIVE_TIMEOUT_S = 4 * 3600
"""Rank 0 alone may tokenize a large data set for hours; torchrun notices a rank that dies."""
Attention = Literal["flash_attention_2", "sdpa", "eager"]


def choose_attention(wanted: str, *, device: Device, flash_installed: bool) -> tuple[Attention, str]:
    """The attention implementation and the reason, for the log. Falls back to sdpa instead of raising."""
    if wanted in ("sdpa", "eager"):
        return wanted, "as the recipe says"  # type: ignore[return-value]
    if device == "cuda" and flash_installed:
        return "flash_attention_2", "flash-attn is installed"
    reason = "no GPU here" if device == "cpu" else "flash-attn is not installed"
    return "sdpa", f"{reason}, so not flash_attention_2"


def deepspeed_config(zero: Zero, *, device: Device) -> dict[str, Any]:
    """The ZeRO-3 configuration. The Trainer fills in `auto` values; the offload is already settled."""
    assert "auto" not in (zero.offload_optimizer, zero.offload_parameters), "settle_offload comes first"
    stage: dict[str, Any] = {
        "stage": 3,
        # Overlap needs a second stream; on a CPU it is only a thread that competes for the core.
        "overlap_comm": device == "cuda",
        "contiguous_gradients": True,
        "sub_group_size": 1_000_000_000,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_max_live_parameters": 1_000_000_000,
        "stage3_max_reuse_distance": 1_000_000_000,
        "stage3_gather_16bit_weights_on_model_save": True,
    }
    if zero.offload_optimizer == "cpu":
        # pin_memory has no effect on the fp32 masters in 0.19.8 (they stay pageable), so it isn't set.
        stage["offload_optimizer"] = {"device": "cpu"}
    if zero.offload_parameters == "cpu":
        stage["offload_param"] = {"device": "cpu", "pin_memory": zero.pin_memory}
    return {
        "bf16": {"enabled": "auto"},
        "zero_optimization": stage,
        # Otherwise accelerate silently replaces RMSprop with DeepSpeedCPUAdam if the optimizer is offloaded.
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "wall_clock_breakdown": False,
    }


def dpo_arguments(
    recipe: Recipe,
    batch: Batch,
    *,
    device: Device,
    attention: Attention,
    output: Path,
    run: str,
    revision: str | None = None,
) -> dict[str, Any]:
    """Keyword arguments for `trl.DPOConfig`. `revision`: the base model's.

    The Trainer's own saving is off: `trainer.checkpointing.distributed_saver` saves, at the steps given by `Saves`. So
    is its reporting, which would show repeated steps twice and fail the run if W&B is unavailable:
    `trainer.metrics.trackers` reports.
    """
    training = recipe.training
    return {
        "output_dir": str(output),
        "run_name": run,
        "model_init_kwargs": {
            "dtype": recipe.model.dtype,
            "attn_implementation": attention,
            "device_map": None,
            **({"revision": revision} if revision else {}),
            **_quantization(recipe),
        },
        "beta": recipe.dpo.beta,
        "loss_type": [recipe.dpo.loss],
        "label_smoothing": recipe.dpo.label_smoothing,
        "precompute_ref_log_probs": recipe.dpo.reference == "precomputed",
        "max_length": recipe.dpo.max_length,
        "num_train_epochs": training.epochs,
        "max_steps": training.max_steps or -1,
        "optim": {"rmsprop": "rmsprop", "adamw": "adamw_torch"}[training.optimizer],
        "learning_rate": training.learning_rate,
        "weight_decay": training.weight_decay,
        "lr_scheduler_type": training.schedule,
        "warmup_steps": training.warmup_ratio,  # below 1 it is a ratio
        "max_grad_norm": training.max_grad_norm or 0.0,  # 0 = no clipping, for the Trainer and for DeepSpeed
        "per_device_train_batch_size": batch.per_device,
        "per_device_eval_batch_size": training.per_device_eval_batch,
        "gradient_accumulation_steps": batch.accumulation,
        "dataloader_num_workers": training.dataloader_workers,
        "gradient_checkpointing": training.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": training.reentrant_checkpointing},
        "disable_dropout": True,  # also LoRA's: `trainer.model.dropout` enables that again
        "bf16": training.bf16,
        "seed": training.seed,
        "logging_steps": training.log_every_steps,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # a NaN must be visible
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": device == "cpu",
        "ddp_timeout": COLLECTIVE_TIMEOUT_S,
        "push_to_hub": False,
        **_evaluation(recipe),
        **_parallel(recipe, device),
    }


def _quantization(recipe: Recipe) -> dict[str, Any]:
    """QLoRA (Dettmers et al. 2023): the base in 4-bit NormalFloat, with quantized scales, computing in 16 bits."""
    if recipe.lora is None or not recipe.needs_bitsandbytes:
        return {}
    settings = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": recipe.lora.quantize,
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "bfloat16" if recipe.training.bf16 else "float32",
    }
    return {"quantization_config": settings}


def _evaluation(recipe: Recipe) -> dict[str, Any]:
    training = recipe.training
    if not recipe.dataset.eval_rows:
        return {"eval_strategy": "no"}
    if training.eval_every_steps:
        return {"eval_strategy": "steps", "eval_steps": training.eval_every_steps}
    return {"eval_strategy": "epoch" if training.eval_every_epoch else "no"}


def _parallel(recipe: Recipe, device: Device) -> dict[str, Any]:
    """ZeRO-3 under DeepSpeed, or DDP."""
    if recipe.zero is not None:
        # On a CPU the process group exists already (`device._configure_accelerate_on_cpu`).
        accelerator = {"accelerator_config": {"use_configured_state": True}} if device == "cpu" else {}
        return {"deepspeed": deepspeed_config(recipe.zero, device=device), **accelerator}
    backend = {"ddp_backend": "gloo"} if device == "cpu" else {}
    return {"ddp_find_unused_parameters": False, **backend}

"""One rank of stock TRL, for `compare.py`: the same recipe by hand, and nothing of notus-launch.

    torchrun --nproc-per-node=2 stock.py RECIPE.yaml OUT

Into OUT, by rank: the hash of every batch and the bits of every micro-step's loss; the evaluations; the final weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import load_dataset
from peft import LoraConfig
from ruamel.yaml import YAML
from transformers import AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer

DEEPSPEED = {
    "bf16": {"enabled": "auto"},
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": False,
        "contiguous_gradients": True,
        "sub_group_size": 1_000_000_000,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "zero_force_ds_cpu_optimizer": False,  # else accelerate replaces the optimizer that was asked for
    "zero_allow_untested_optimizer": True,
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
}


def main(path: Path, out: Path) -> None:
    recipe = YAML(typ="safe").load(path)
    torch.set_num_threads(1)
    if "zero" in recipe:  # accelerate takes DeepSpeed on a CPU only if it is told before
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        PartialState(cpu=False, backend="gloo")
        del os.environ["ACCELERATE_USE_DEEPSPEED"]
    rows = load_dataset("json", data_files=recipe["dataset"]["name"], split="train")
    split = rows.train_test_split(test_size=recipe["dataset"]["eval_rows"], seed=42)
    base = recipe["model"]["name"]
    trainer = DPOTrainer(
        model=base,
        args=settings(recipe, out),
        train_dataset=split["train"],
        eval_dataset=split["test"],
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=adapters(recipe),
    )
    if recipe["dpo"].get("reference") == "precomputed":
        keep_precision(trainer)
    record = watch(trainer)
    trainer.train()
    rank = int(os.environ["RANK"])
    (out / f"rank-{rank}.json").write_text(json.dumps(record))
    if rank == 0:
        evaluations = [line for line in trainer.state.log_history if "eval_loss" in line]
        (out / "evaluations.json").write_text(json.dumps(evaluations))
    trainer.save_model(str(out / "final"))


def settings(recipe: dict[str, Any], out: Path) -> DPOConfig:
    """As the recipe says."""
    training, dpo = recipe["training"], recipe["dpo"]
    parallel = (
        {"deepspeed": DEEPSPEED, "accelerator_config": {"use_configured_state": True}}
        if "zero" in recipe
        else {"ddp_backend": "gloo", "ddp_find_unused_parameters": False}
    )
    return DPOConfig(
        output_dir=str(out / "trainer"),
        model_init_kwargs={"dtype": "auto", "attn_implementation": "sdpa", "device_map": None},
        beta=dpo["beta"],
        precompute_ref_log_probs=dpo.get("reference") == "precomputed",
        max_length=dpo["max_length"],
        num_train_epochs=training["epochs"],
        optim=training["optimizer"],
        learning_rate=training["learning_rate"],
        lr_scheduler_type=training["schedule"],
        warmup_steps=training["warmup_ratio"],
        per_device_train_batch_size=training["per_device_batch"],
        per_device_eval_batch_size=training["per_device_eval_batch"],
        gradient_accumulation_steps=training["accumulation"],
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": training["reentrant_checkpointing"]},
        bf16=True,
        seed=42,
        eval_strategy="steps",
        eval_steps=training["eval_every_steps"],
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        disable_tqdm=True,
        use_cpu=True,
        **parallel,
    )


def adapters(recipe: dict[str, Any]) -> LoraConfig | None:
    """Under LoRA."""
    if "lora" not in recipe:
        return None
    lora = recipe["lora"]
    return LoraConfig(
        r=lora["rank"],
        lora_alpha=lora["alpha"],
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        task_type="CAUSAL_LM",
    )


def keep_precision(trainer: DPOTrainer) -> None:
    """The one fix to stock TRL: under DeepSpeed the Trainer casts all floating-point inputs to bf16.

    So the precomputed log-probabilities too: -407.1 becomes -408, and the first step's loss 0.74 instead of ln 2.
    """
    columns = ("ref_chosen_logps", "ref_rejected_logps")
    prepare_inputs = trainer._prepare_inputs

    def keeping(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        rest = {name: value for name, value in inputs.items() if name not in columns}
        return {**prepare_inputs(rest), **{name: inputs[name] for name in columns if name in inputs}}

    trainer._prepare_inputs = keeping


def watch(trainer: DPOTrainer) -> list[dict[str, list[str]]]:
    """A record of each step, which fills itself."""
    steps: list[dict[str, list[str]]] = [{"batches": [], "losses": []}]
    compute_loss = trainer.compute_loss

    def watched(model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        result = compute_loss(model, inputs, *args, **kwargs)
        if trainer.model.training:
            loss = result[0] if isinstance(result, tuple) else result
            steps[-1]["losses"].append(loss.detach().item().hex())
            steps[-1]["batches"].append(hash_of(inputs["input_ids"]))
        return result

    class NextStep(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            steps.append({"batches": [], "losses": []})

    trainer.compute_loss = watched
    trainer.add_callback(NextStep())
    return steps


def hash_of(tokens: torch.Tensor) -> str:
    return hashlib.sha256(f"{tuple(tokens.shape)}".encode() + tokens.numpy().tobytes()).hexdigest()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

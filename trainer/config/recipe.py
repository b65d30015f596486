"""Recipes: everything that determines what a training run computes, as typed YAML.

Importing this module doesn't import torch: an invalid recipe is rejected in a tenth of a second.
"""

from __future__ import annotations

import difflib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from checkpoints.util.environment import user_path
from trainer.config.bounds import MAX_HOURS, MAX_PROCESSES, MAX_SEED
from trainer.config.losses import SMOOTHED, Loss
from trainer.config.yaml_model import Settings, load_settings
from trainer.errors import RecipeError

BUILTIN = "builtin:"
PositiveInt = Annotated[int, Field(ge=1, le=10**9)]
Processes = Annotated[int, Field(ge=1, le=MAX_PROCESSES)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


class Model(Settings):
    """The base model. It is always DPO's reference model too, also after a resume."""

    name: str = Field(description="hub name, local folder, `builtin:tiny-llama` (for tests) or `builtin:smollm2-135m`")
    revision: str | None = Field(default=None, description="hub revision; pin it for an exact resume months later")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        default="auto", description="dtype of the loaded weights; `auto` = as stored"
    )
    attention: Literal["auto", "flash_attention_2", "sdpa", "eager"] = Field(
        default="auto",
        description="`auto` = flash_attention_2 on a GPU if flash-attn is installed, else sdpa",
    )


class Columns(Settings):
    """The data set's column names. Columns that aren't named here are looked up by their usual names."""

    prompt: str | None = Field(default=None, description="text or turns; without one, what both answers start with")
    chosen: str | None = Field(default=None, description="the better answer")
    rejected: str | None = Field(default=None, description="the worse answer")
    tools: str | None = Field(default=None, description="function schemas for the chat template")


class Source(Settings):
    """Where preference pairs come from."""

    name: str = Field(
        description="hub name, a .jsonl or .parquet file (relative to the recipe), or `builtin:tiny-preferences`"
    )
    config: str | None = Field(default=None, description="configuration (subset) of a hub data set that has several")
    columns: Columns = Field(default=Columns(), description="the data set's own column names")
    split: str = Field(default="train", description="split of a hub data set")
    revision: str | None = Field(default=None, description="hub revision")
    fraction: float = Field(default=1.0, gt=0, le=1, description="share of its rows to use, from the first on")

    def share_of(self, rows: int) -> int:
        """How many of its rows are used; at least one."""
        return rows if self.fraction == 1 else max(1, round(self.fraction * rows))

    @property
    def file_name(self) -> str | None:
        """The local data file, or None for a hub name or a built-in set."""
        local = not self.name.startswith(BUILTIN) and self.name.endswith((".jsonl", ".json", ".parquet"))
        return self.name if local else None


class Dataset(Source):
    """Preference pairs: columns `prompt, chosen, rejected` or `instruction, chosen_response, rejected_response`."""

    also: tuple[Source, ...] = Field(default=(), description="more data sets to add: a list of `name, fraction, ...`")
    system: str | None = Field(
        default=None,
        description='system turn before a prompt that has none; `""` = an empty one, as Zephyr and Notus were trained; '
        "null = the chat template's default",
    )
    rows: PositiveInt | None = Field(default=None, description="use only the first N rows, for a quick try")
    eval_rows: Annotated[int, Field(ge=0, le=10**9)] = Field(default=0, description="rows held out for evaluation")
    shuffle: Seed | None = Field(
        default=None, description="seed of a shuffle before `rows` and the split; null = in the set's own order"
    )
    seed: Seed = Field(default=42, description="seed of the split into training and evaluation rows")
    end_tokens: Literal["required", "optional"] = Field(
        default="required", description="`required` = refuse answers without an end token"
    )
    workers: Processes = Field(default=1, description="processes that tokenize")

    @property
    def sources(self) -> tuple[Source, ...]:
        """All sources, this one first."""
        return (self, *self.also)


class Dpo(Settings):
    """The DPO loss."""

    beta: float = Field(default=0.1, gt=0, description="strength of the pull towards the reference model")
    loss: Loss = Field(default="sigmoid", description="TRL's loss_type; `aot...` compare the pairs of a micro-step")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="share of pairs whose labels may be swapped; for losses that use it"
    )
    reference: Literal["live", "precomputed"] = Field(
        default="live",
        description="`precomputed` = compute the reference model's log-probabilities once, before training, and keep "
        "them in the bucket; it then needs no memory and no time in a step",
    )
    max_length: PositiveInt = Field(default=1024, description="tokens of prompt and response together")
    max_prompt_length: PositiveInt = Field(default=512, description="tokens to keep of a prompt that is too long")

    @model_validator(mode="after")
    def _smoothing_means_something(self) -> Dpo:
        if self.label_smoothing and self.loss not in SMOOTHED:
            raise ValueError(f"loss {self.loss} has no use for label_smoothing; {', '.join(SMOOTHED)} have")
        if self.loss == "exo_pair" and not self.label_smoothing:
            raise ValueError("loss exo_pair needs a label_smoothing above 0, for example 0.001")
        return self

    @model_validator(mode="after")
    def _room_for_a_response(self) -> Dpo:
        if self.max_prompt_length >= self.max_length:
            raise ValueError(
                f"max_prompt_length {self.max_prompt_length} leaves no room in max_length {self.max_length}"
            )
        return self


class Training(Settings):
    """The optimizer and its schedule."""

    epochs: PositiveInt = Field(default=1)
    max_steps: PositiveInt | None = Field(default=None, description="stop after this many optimizer steps")
    optimizer: Literal["rmsprop", "adamw"] = Field(default="rmsprop", description="torch.optim.RMSprop or AdamW")
    learning_rate: float = Field(gt=0, le=1)
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    schedule: Literal["linear", "cosine", "constant"] = Field(default="linear")
    warmup_ratio: float = Field(default=0.1, ge=0, lt=1, description="share of the steps with a rising rate")
    max_grad_norm: float | None = Field(default=1.0, gt=0, description="null = gradients are not clipped")
    per_device_batch: PositiveInt = Field(default=8, description="pairs per process and micro-step")
    per_device_eval_batch: PositiveInt = Field(default=4)
    accumulation: PositiveInt = Field(default=1, description="micro-steps per optimizer step")
    dataloader_workers: Annotated[int, Field(ge=0, le=MAX_PROCESSES)] = Field(
        default=0, description="processes per rank that collate batches; the rows are already tokenized"
    )
    gradient_checkpointing: bool = Field(default=True)
    reentrant_checkpointing: bool = Field(default=True)
    bf16: bool = Field(default=True)
    deterministic: bool = Field(
        default=True,
        description="on GPUs: use only kernels that give the same bits each time; otherwise a resume is not exact",
    )
    seed: Seed = Field(default=42)
    eval_every_steps: PositiveInt | None = Field(default=None)
    eval_every_epoch: bool = Field(default=False)
    log_every_steps: PositiveInt = Field(default=10)

    @model_validator(mode="after")
    def _one_eval_rhythm(self) -> Training:
        if self.eval_every_steps and self.eval_every_epoch:
            raise ValueError("choose eval_every_steps or eval_every_epoch, not both")
        return self


class Zero(Settings):
    """DeepSpeed ZeRO stage 3. Offload affects the numbers: a run that changes it resumes, but not bit-exact.

    `auto` takes the least offload that fits the GPUs' memory, and keeps what the run began with while that fits.
    """

    offload_optimizer: Literal["none", "cpu", "auto"] = Field(default="none")
    offload_parameters: Literal["none", "cpu", "auto"] = Field(default="none")
    pin_memory: bool = Field(default=True, description="pin the offloaded parameters")


class Lora(Settings):
    """Low-rank adapters (peft), under DDP or ZeRO-3."""

    rank: PositiveInt = Field(default=64)
    alpha: PositiveInt = Field(default=16)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] = Field(default=("q_proj", "k_proj", "v_proj", "o_proj"), min_length=1)
    quantize: Literal["none", "nf4"] = Field(
        default="none",
        description="`nf4` = QLoRA: the frozen base weights in 4 bits (bitsandbytes); under DDP only",
    )


class Saves(Settings):
    """When the full state is saved to the bucket. A stop and the end of training always save."""

    every_steps: PositiveInt | None = Field(default=None)
    every_minutes: float | None = Field(
        default=None, gt=0, le=7 * 24 * 60, description="minutes of wall time, agreed between the ranks"
    )
    auto: bool = Field(
        default=False,
        description="choose the minutes from the cost of a save here and the preemption rate",
    )
    every_epoch: bool = Field(default=True)
    keep: PositiveInt = Field(default=1, description="newest checkpoints to keep; one more stays as the fallback")
    keep_every_steps: PositiveInt | None = Field(
        default=None, description="also keep the checkpoints at multiples of this many steps, permanently"
    )

    keep_best: Literal["eval_loss", "eval_rewards/accuracies", "eval_rewards/margins"] | None = Field(
        default=None, description="also keep the checkpoint with the best evaluation by this metric"
    )

    @model_validator(mode="after")
    def _one_clock(self) -> Saves:
        if self.auto and self.every_minutes:
            raise ValueError("choose every_minutes or auto, not both")
        return self


class Hardware(Settings):
    """What the recipe was made for."""

    gpus: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9-]+:[1-9][0-9]{0,2}$",
        description="for example A100:8; null = runs on a CPU",
    )
    cpu_processes: Processes = Field(default=2, description="ranks if there is no GPU")
    hours: float = Field(gt=0, le=MAX_HOURS, description="hours of work on `gpus` without any preemption")


class Hub(Settings):
    """Where the finished model is pushed."""

    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    private: bool = Field(default=True)


class Recipe(Settings):
    """A training recipe."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    description: str = Field(default="")
    method: Literal["full", "lora"] = Field(description="all weights under ZeRO-3, or LoRA under DDP or ZeRO-3")
    model: Model
    dataset: Dataset
    dpo: Dpo = Dpo()
    training: Training
    zero: Zero | None = Field(default=None, description="required for `full`; with `lora` instead of DDP")
    lora: Lora | None = Field(default=None, description="required for `lora`")
    saves: Saves = Saves()
    tracking: tuple[Literal["wandb", "tensorboard"], ...] = Field(default=())
    hub: Hub | None = Field(default=None)
    hardware: Hardware

    @model_validator(mode="after")
    def _sections_fit(self) -> Recipe:
        wanted = "zero" if self.method == "full" else "lora"
        if getattr(self, wanted) is None:
            raise ValueError(f"method {self.method} needs a section `{wanted}:`")
        training = self.training
        evaluates = self.dataset.eval_rows and (training.eval_every_steps or training.eval_every_epoch)
        if self.saves.keep_best and not evaluates:
            raise ValueError("saves.keep_best needs evaluations: dataset.eval_rows and a training.eval_every_...")
        if self.method == "full" and self.lora is not None:
            raise ValueError("method full has no use for the section `lora:`")
        if self.zero is not None and self.needs_bitsandbytes:
            raise ValueError("lora.quantize works under DDP only: leave out the section `zero:`")
        return self

    @property
    def needs_bitsandbytes(self) -> bool:
        """Is the base model in 4 bits?"""
        return self.lora is not None and self.lora.quantize != "none"

    @property
    def identity(self) -> dict[str, Any]:
        """What determines the numbers: equal identities on equal hardware give equal losses, bit for bit.

        Not part of it: the path of a local data file (it differs between machines; a checkpoint's fingerprint has the
        hash of its rows), the number of processes that tokenize or load, which kernels compute, and where ZeRO-3 keeps
        its state.
        """
        identity = self.model_dump(
            mode="json", include={"method", "model", "dataset", "dpo", "training", "zero", "lora"}
        )
        # A run that began before a key existed can resume if the key's default changes nothing.
        if not self.dpo.label_smoothing:
            del identity["dpo"]["label_smoothing"]
        if self.lora is not None and not self.needs_bitsandbytes:
            del identity["lora"]["quantize"]
        if self.dataset.shuffle is None:
            del identity["dataset"]["shuffle"]
        del identity["dataset"]["end_tokens"]
        del identity["dataset"]["workers"]
        del identity["training"]["dataloader_workers"]
        del identity["training"]["deterministic"]  # a run that changes it resumes, but not exactly
        if self.zero is not None:
            identity["zero"] = {}  # changing the offload isn't another run, only inexact: see the fingerprint
        for source in (identity["dataset"], *identity["dataset"]["also"]):
            source["columns"] = {ours: theirs for ours, theirs in source["columns"].items() if theirs}
            for key in ("config", "columns"):
                if not source[key]:
                    del source[key]
            if Path(source["name"]).is_absolute():
                source["name"] = Path(source["name"]).name
        return identity


def builtin_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in files("trainer").joinpath("recipes").iterdir()
        if entry.name.endswith(".yaml")
    )


def find_recipe(name_or_path: str) -> Path:
    """The file of a recipe given by name or path; raises `RecipeError` with the nearest name."""
    names = builtin_names()
    if name_or_path in names:
        return Path(str(files("trainer").joinpath("recipes", f"{name_or_path}.yaml")))
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or "/" in name_or_path:
        if path.is_file():
            return path
        raise RecipeError(f"there is no recipe file {name_or_path}", f"recipes by name: {', '.join(names)}")
    close = difflib.get_close_matches(name_or_path, names, n=1, cutoff=0.4)
    suggestion = f"did you mean {close[0]!r}? " if close else ""
    raise RecipeError(
        f"there is no recipe {name_or_path!r}; {suggestion}recipes: {', '.join(names)}",
        "give one of these names, or the path of a .yaml file",
    )


def load_recipe(name_or_path: str) -> Recipe:
    """Load and validate a recipe; its local data file is resolved to an absolute path. Raises `RecipeError`."""
    path = find_recipe(name_or_path)
    recipe = load_settings(Recipe, path)
    first, *also = (_located(source, path) for source in recipe.dataset.sources)
    return recipe.model_copy(update={"dataset": first.model_copy(update={"also": tuple(also)})})


def _located(source: Source, recipe: Path) -> Source:
    """The source, with an absolute path if it is a local file. Raises `RecipeError` if that is missing."""
    if source.file_name is None:
        return source
    data = data_path(source.file_name, recipe.parent)
    if not data.is_file():
        raise RecipeError(
            f"{recipe}: dataset.name: there is no file {data}", "paths are relative to the recipe's folder"
        )
    return source.model_copy(update={"name": str(data)})


def data_path(name: str, folder: Path) -> Path:
    """The path of the data file of a recipe in `folder`."""
    return (folder / user_path(name)).absolute()

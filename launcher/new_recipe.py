"""The text of a new recipe, with a comment on each choice, and a guess at a data file's columns. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from trainer.data.preference_pairs import COLUMN_SETS

Method = Literal["full", "lora"]
GUESSES: Mapping[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "instruction", "input", "query", "context", "messages"),
    "chosen": ("chosen", "chosen_response", "better", "good", "preferred", "accepted", "winner", "response_chosen"),
    "rejected": ("rejected", "rejected_response", "worse", "bad", "dispreferred", "declined", "loser",
                 "response_rejected"),
}  # fmt: skip
"""Column names in public preference data sets, by our names."""
UNKNOWN_HOURS = 12.0
LEAST_HOURS = 0.01
WORDS = frozenset({"yes", "no", "on", "off", "true", "false", "null", "y", "n"})
"""Words that YAML 1.1 or 1.2 doesn't read as strings."""


class Choices(NamedTuple):
    """The choices for a new recipe."""

    name: str
    data: str
    """A file relative to the recipe, or a name on the Hub."""
    model: str
    method: Method
    gpus: str
    columns: Mapping[str, str]
    """The data set's column names by ours, for those that differ; empty if the names are known."""
    eval_rows: int


class Hours(NamedTuple):
    """Estimated training hours as a plausible range; None = not known."""

    range: tuple[float, float] | None

    @property
    def likely(self) -> float:
        """The geometric mean of the range, because run times vary by a factor."""
        if self.range is None:
            return UNKNOWN_HOURS
        return max(LEAST_HOURS, float(f"{(self.range[0] * self.range[1]) ** 0.5:.2g}"))


def guess_columns(names: Sequence[str]) -> dict[str, str] | None:
    """Guess which columns are prompt, chosen and rejected; {} if they already have our names.

    None if it can't be guessed.
    """
    if any(set(known) <= set(names) for known in COLUMN_SETS) or {"chosen", "rejected"} <= set(names):
        return {}
    lowered = {name.lower(): name for name in names}
    found = {
        ours: lowered[guess]
        for ours, guesses in GUESSES.items()
        if (guess := next((guess for guess in guesses if guess in lowered), None)) is not None
    }
    return found if {"chosen", "rejected"} <= found.keys() else None


def recipe_text(choices: Choices, hours: Hours) -> str:
    """Return the recipe as YAML with comments."""
    full = choices.method == "full"
    columns = "".join(f"    {ours}: {_quoted(theirs)}\n" for ours, theirs in choices.columns.items())
    named = f"  columns:\n{columns}" if columns else ""
    if hours.range is None:
        about_hours = "# a placeholder: the size of the model or the data is not known here. Replace it"
    else:
        about_hours = f"# an estimate: {hours.range[0]:.3g} to {hours.range[1]:.3g} h by tokens, model and GPUs"
    parallel = (
        "zero:\n  offload_optimizer: auto # to host memory, if it doesn't fit on the GPUs\n  offload_parameters: auto\n"
        if full
        else "lora:\n  rank: 64\n  alpha: 16\n  target_modules: [q_proj, k_proj, v_proj, o_proj]\n"
    )
    return f"""\
# Written by `notus-launch init`. All keys: docs/reference/recipe.md. Check it: notus-launch check THIS-FILE
name: {choices.name}
method: {choices.method} # {"all weights, under DeepSpeed ZeRO-3" if full else "LoRA adapters"}
model:
  name: {_quoted(choices.model)}
  # revision: pin the commit of the Hub here, if you may resume months later
dataset:
  name: {_quoted(choices.data)}
{named}\
  eval_rows: {choices.eval_rows} # held out for evaluation
dpo:
  beta: 0.1 # strength of the pull towards the reference model
  max_length: 1024 # tokens of prompt and answer together
  max_prompt_length: 512
training:
  epochs: {1 if full else 2}
  learning_rate: {"5.0e-7" if full else "5.0e-6"}
  schedule: cosine
  optimizer: adamw
  per_device_batch: {4 if full else 8} # pairs per GPU and micro-step
  accumulation: 2
  bf16: true
  eval_every_steps: 100
{parallel}\
saves:
  auto: true # as often as the cost of a save and the risk of a preemption suggest
# tracking: [wandb, tensorboard]
# hub:
#   repo: you/{choices.name} # where the finished model is pushed
hardware:
  gpus: {choices.gpus}
  hours: {hours.likely:g} {about_hours}
"""


def _quoted(text: str) -> str:
    """A YAML scalar, quoted unless YAML reads it unchanged."""
    if re.fullmatch(r"[A-Za-z][\w./-]*", text, re.ASCII) and text.lower() not in WORDS:
        return text
    return json.dumps(text, ensure_ascii=False)  # JSON's strings are YAML's

"""A model of the same architecture, small enough for any machine: for `notus-launch drill`.

Its configuration and tokenizer are the model's own, its weights are random. `python -m trainer.model.miniature NAME
REVISION FOLDER` writes it and prints one line of JSON: what was made, or an error with its hint (exit code 2, or 1 for
one that may go away).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoints.errors import NotusError, UserError

SEED = 20231120
LAYERS = 2
SIZES: Mapping[str, int] = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "max_window_layers"), LAYERS),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner"), 128),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_local_experts", "num_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 64),
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "head_dim": 16,
}
"""The most that each size of a configuration may be. Names as in transformers; GPT-2 and OPT have their own."""
PER_LAYER = ("layer_types", "attention_layers")
PER_HEAD = ("rope_scaling", "rope_parameters")
"""Settings that may hold a list with an entry for each pair of a head's dimensions."""


def shrunk(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration with its sizes made small; everything else, the vocabulary too, stays."""
    small = dict(config)
    for name, most in SIZES.items():
        if isinstance(small.get(name), int):
            small[name] = min(small[name], most)
    if "num_key_value_heads" in config and config["num_key_value_heads"] == config.get("num_attention_heads"):
        small["num_key_value_heads"] = small["num_attention_heads"]  # no groups before, none after
    for name in PER_LAYER:
        if isinstance(small.get(name), list) and small[name]:
            small[name] = [small[name][0], small[name][-1]][:LAYERS]
    for name in PER_HEAD:
        if isinstance(small.get(name), dict) and any(isinstance(value, list) for value in small[name].values()):
            small[name] = None
    return {name: value for name, value in small.items() if value is not None or config.get(name) is None}


def make_miniature(name: str, revision: str | None, folder: Path) -> dict[str, Any]:
    """Write the small model and the tokenizer to `folder`; return its type and number of parameters.

    Raises `UserError` for a model that can't be found or made small.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from trainer.hub.load_errors import translated_errors
    from trainer.model.builtin_models import make_base_model

    folder.mkdir(parents=True, exist_ok=True)
    source = make_base_model(name, folder / "source")
    with translated_errors("the tokenizer of", name, "model.name"):
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    with translated_errors("the model", name, "model.name"):
        config = AutoConfig.from_pretrained(source, revision=revision)
    try:
        small = type(config)(**shrunk(config.to_dict()))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            model = AutoModelForCausalLM.from_config(small, dtype=torch.bfloat16)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{name}: {config.model_type} can't be made small: {reason}",
            "a drill needs a model whose sizes have the usual names; try the whole recipe with --preempt instead",
        ) from error
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return {"type": config.model_type, "parameters": sum(weight.numel() for weight in model.parameters())}


def main() -> None:
    """Make a miniature for the launcher, which imports no torch."""
    name, revision, folder = sys.argv[1:]
    try:
        made = make_miniature(name, revision or None, Path(folder))
    except NotusError as error:
        sys.stdout.write(json.dumps({"error": error.message, "hint": error.hint}) + "\n")
        raise SystemExit(error.exit_code) from error
    sys.stdout.write(json.dumps(made) + "\n")


if __name__ == "__main__":
    main()

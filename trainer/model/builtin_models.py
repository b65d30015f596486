"""Creates a tiny Llama and a byte-level tokenizer: the same weights on every machine, without a download."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from checkpoints.errors import UserError
from trainer.config.recipe import BUILTIN
from trainer.model.smollm2 import cached_folder, smollm2_folder

SEED = 20231120
TINY, SMOLLM2 = "tiny-llama", "smollm2-135m"
_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def make_base_model(name: str, work: Path) -> str:
    """Create a recipe's base model if it is a built-in one; returns the argument for `from_pretrained`."""
    folder = base_model(name, work)
    if name == f"{BUILTIN}{SMOLLM2}":
        smollm2_folder()
    elif name.startswith(BUILTIN):
        make_tiny_llama(Path(folder))
    return folder


def base_model(name: str, work: Path) -> str:
    """A hub name or folder unchanged; for a built-in model, where `make_base_model` puts it on this machine.

    Raises `UserError` for an unknown built-in model.
    """
    if not name.startswith(BUILTIN):
        return name
    folders = {TINY: work / TINY, SMOLLM2: cached_folder()}
    folder = folders.get(name.removeprefix(BUILTIN))
    if folder is None:
        known = ", ".join(BUILTIN + it for it in folders)
        raise UserError(f"there is no built-in model {name!r}", f"built in: {known}")
    return str(folder)


def make_tiny_llama(folder: Path) -> None:
    """Write a model of 150,000 parameters and its tokenizer to `folder` (Hugging Face format).

    One token per byte: nothing is learned from data, so the tokenizer can't differ between machines.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<pad>", "<s>", "</s>"]
    vocabulary = {token: index for index, token in enumerate(specials + alphabet)}
    bytes_only = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    special_tokens = dict(zip(("pad_token", "bos_token", "eos_token"), specials, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_only, chat_template=_TEMPLATE, **special_tokens)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)

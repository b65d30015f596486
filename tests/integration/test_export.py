"""The end of a run: what it leaves in `final/`, and what becomes of it. One process, a model that wasn't trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints.errors import UserError
from checkpoints.run_log.event_log import Diary, read_events
from checkpoints.run_log.run_record import open_run, register_run
from checkpoints.storage.base import Store
from tests.support.hub_fake import HubFake
from trainer.config.global_batch import Batch
from trainer.config.recipe import load_recipe
from trainer.config.trl_config import dpo_arguments
from trainer.errors import TrainingFailed
from trainer.main import new_record
from trainer.model.base_identity import identify_base

Finish = Callable[[str], tuple[Store, Any]]


@pytest.fixture
def finish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Finish:
    """Ends a run `r` of a recipe; returns its store and the trainer."""
    from transformers import AutoTokenizer
    from trl import DPOConfig

    from trainer.data.dataset import prepare
    from trainer.export.final_model import export_model
    from trainer.model.builtin_models import make_tiny_llama
    from trainer.model.lora import peft_settings
    from trainer.training.dpo_trainer import NotusDPOTrainer

    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    monkeypatch.setattr("trainer.export.final_model.from_rank_0", lambda value: value)

    def finish(name: str) -> tuple[Store, Any]:
        recipe = load_recipe(name)
        recipe = recipe.model_copy(
            update={"zero": None, "dataset": recipe.dataset.model_copy(update={"rows": 8, "eval_rows": 0})}
        )
        base = tmp_path / "base"
        make_tiny_llama(base)
        tokenizer = AutoTokenizer.from_pretrained(base)
        arguments = dpo_arguments(
            recipe, Batch(4, 4, 1), device="cpu", attention="sdpa", output=tmp_path / "t", run="r"
        )
        arguments.pop("ddp_backend", None)
        trainer = NotusDPOTrainer(
            model=str(base),
            args=DPOConfig(**arguments),
            train_dataset=prepare(recipe, tokenizer).train,
            processing_class=tokenizer,
            peft_config=peft_settings(recipe.lora) if recipe.lora else None,
        )
        with torch.no_grad():  # as after a training
            for parameter in trainer.model.parameters():
                if parameter.requires_grad:
                    parameter += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        (tmp_path / "bucket").mkdir()
        store = open_run(str(tmp_path / "bucket"), "r")
        register_run(store, new_record("r", recipe))
        diary = Diary(store, 1)
        diary.write("attempt_started")
        base_of_run = identify_base(str(base), None)
        export_model(trainer, tokenizer, store, tmp_path / "final", diary, base=base_of_run, attempt=1)
        return store, trainer

    return finish


@pytest.mark.parametrize("recipe", ["tiny-dpo", "tiny-dpo-lora"])
def test_the_model_has_its_card_when_the_training_ends(finish: Finish, recipe: str) -> None:
    store, _ = finish(recipe)
    card = bytes(store.get("final/README.md").data).decode()
    assert "# r\n\nDPO of `builtin:tiny-llama` on `builtin:tiny-preferences`" in card
    assert "Trained in 1 attempt (0 preempted). By notus-launch" in card
    assert "More Information Needed" not in card, "peft's empty form"
    exported = read_events(store)[-1]
    assert exported.data["files"].keys() == {entry.key.removeprefix("final/") for entry in store.list("final")}


@pytest.mark.parametrize("merge", [False, True])
def test_a_push_that_failed_is_repeated_by_the_same_command(
    finish: Finish, merge: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.export.export_command import app

    finish("tiny-dpo-lora")
    hub, out = HubFake().install(monkeypatch), tmp_path / "out"
    hub.files["me/model"] = dict.fromkeys(("adapter_config.json", "model.safetensors"), b"of an earlier push")
    hub.refusals = 1
    words = ["r", "--bucket", str(tmp_path / "bucket"), "--out", str(out), "--push", "me/model"]
    words += ["--merge"] if merge else []
    with pytest.raises(TrainingFailed, match="the connection was reset") as caught:
        app(words, standalone_mode=False)
    assert "the same command tries to push it again" in caught.value.hint
    monkeypatch.setattr("trainer.export.export_command.release", None)  # what is there isn't made again
    (out / "README.md").write_text("---\n---\nin my own words")
    for _ in range(2):
        app(words, standalone_mode=False)
        assert hub.files["me/model"] == {
            path.name: path.read_bytes() for path in out.iterdir() if path.name != ".notus.json"
        }
    assert hub.names("me/model") & {"adapter_config.json", "model.safetensors"} == {
        "model.safetensors" if merge else "adapter_config.json"
    }

    with pytest.raises(UserError, match="is not empty"):
        app(words[:-1] if merge else [*words, "--merge"], standalone_mode=False)
    (out / "tokenizer.json").unlink()
    (out / "more.txt").touch()
    with pytest.raises(UserError, match=r"has changed since it was made: more\.txt, tokenizer\.json"):
        app(words, standalone_mode=False)


def shards(folder: Path) -> set[str]:
    """The files that the index of a model names; they are all that there is of weights."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = {path.name for path in folder.glob("*.safetensors")}
    assert set(index["weight_map"].values()) == files
    return files


def logits(model: Any) -> torch.Tensor:
    ids = torch.randint(0, model.config.vocab_size, (1, 32), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def test_a_large_model_ends_in_shards_that_are_the_trained_model(
    finish: Finish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    from trainer.export.export_command import read_finished, release

    monkeypatch.setattr("trainer.training.dpo_trainer.SHARD", "100KB")
    store, trainer = finish("tiny-dpo")
    out = tmp_path / "out"
    out.mkdir()
    release(store, read_finished(store, "r", merge=False), out, merge=False)
    assert len(shards(out)) > 2
    assert not list(out.glob("*.bin")), "no pickles"
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert torch.equal(logits(loaded), logits(trainer.model))


def test_merged_shards_read_back_are_what_was_compared(
    finish: Finish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    from trainer.export import export_command as released

    monkeypatch.setattr("trainer.export.export_command.SHARD", "100KB")
    store, _ = finish("tiny-dpo-lora")
    checked: list[torch.Tensor] = []
    check = released.check_logits
    monkeypatch.setattr(
        "trainer.export.export_command.check_logits",
        lambda expected, found: checked.append(found) or check(expected, found),
    )
    out = tmp_path / "out"
    out.mkdir()
    released.release(store, released.read_finished(store, "r", merge=True), out, merge=True)
    assert len(shards(out)) > 2
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    ids = torch.randint(
        0, loaded.config.vocab_size, (1, released.PROBE_TOKENS), generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        again = loaded(input_ids=ids).logits
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    with torch.no_grad():
        untrained = base(input_ids=ids).logits
    (found,) = checked
    spread = found.std()
    assert (again - found).abs().max() < 0.02 * spread, "stored in bf16"
    assert (untrained - found).abs().max() > 0.1 * spread, "the adapters say something"

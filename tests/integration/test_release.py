"""`notus-train export`: what comes out of the bucket is what the run made, merged on request, and checked."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints.errors import CorruptCheckpoint, NotusError, UserError
from checkpoints.run_log.event_log import Diary, read_events
from checkpoints.run_log.run_record import open_run
from checkpoints.storage.base import Store
from checkpoints.storage.filesystem import FolderStore
from checkpoints.storage.object_store import ObjectStore
from checkpoints.util.clock import FakeClock
from tests.integration.conftest import Launcher
from trainer.errors import TrainingFailed
from trainer.export.export_command import check_logits, kept_share, noise_share, read_finished, release
from trainer.export.model_card import history
from trainer.hub.push import check_push


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Store:
    launcher = Launcher(tmp_path_factory.mktemp("lora"))
    launcher.run(*launcher.local("tiny-dpo-lora", "--name", "lora"))
    return open_run(launcher.bucket, "lora")


def command(store: Store, run: str, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    bucket = str(Path(store.url.removeprefix("file://")).parent)
    words = [sys.executable, "-m", "trainer.main", "export", run, "--bucket", bucket, "--out", str(out), *more]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_adapters_are_merged_into_a_model_that_says_the_same(lora: Store, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trainer.model.builtin_models import make_tiny_llama

    done = command(lora, "lora", tmp_path / "merged", "--merge")
    assert done.returncode == 0, done.stderr
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not [path for path in (tmp_path / "merged").iterdir() if path.suffix in (".bin", ".pt")]
    make_tiny_llama(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype="auto")
    final = Path(lora.url.removeprefix("file://")) / "final"
    both = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype="auto"), final)
    told = json.loads((final / "adapter_config.json").read_text())
    assert (told["base_model_name_or_path"], told["revision"]) == ("builtin:tiny-llama", None), "no scratch folder"
    ids = AutoTokenizer.from_pretrained(tmp_path / "merged")("hello there", return_tensors="pt").input_ids
    with torch.no_grad():
        ours, theirs, untrained = (model(ids).logits.float() for model in (merged.to(torch.bfloat16), both, base))
    assert (ours - theirs).abs().max() < 0.05 * theirs.std()
    assert (ours - untrained).abs().max() > (ours - theirs).abs().max(), "training changed something"
    card = (tmp_path / "merged/README.md").read_text()
    assert "base_model" not in card, "the Hub's check of the metadata refuses a built-in one"
    assert "DPO of `builtin:tiny-llama` on `builtin:tiny-preferences` (merged into one model)" in card
    assert "Trained in 1 attempt (0 preempted). By notus-launch" in card


def adapters_of(folder: Path, strength: float, **settings: Any) -> dict[str, Any]:
    """A base model with these `settings` in its generation_config.json, adapters for it, and a recipe."""
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trainer.config.recipe import Lora
    from trainer.model.builtin_models import make_tiny_llama
    from trainer.model.lora import peft_settings

    make_tiny_llama(folder / "base")
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    torch.manual_seed(0)
    adapted = get_peft_model(base, peft_settings(Lora(rank=4)))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=strength)
    adapted.save_pretrained(folder / "adapter")
    AutoTokenizer.from_pretrained(folder / "base").save_pretrained(folder / "adapter")
    path = folder / "base/generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return {"model": {"name": str(folder / "base"), "revision": None, "dtype": "auto"}}


@pytest.mark.parametrize(("strength", "dtype"), [(1.0, "bfloat16"), (1e-4, "float32")])
def test_what_rounding_would_take_away_is_stored_in_float32(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, strength: float, dtype: str
) -> None:
    """Adapters as DPO leaves them at small learning rates change a weight by less than its last bit in bf16."""
    from transformers import AutoModelForCausalLM

    from trainer.export.export_command import _merge

    caplog.set_level("INFO")
    recipe = adapters_of(tmp_path, strength)
    _merge(recipe, None, tmp_path / "adapter", tmp_path / "out", tmp_path)
    assert str(AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype) == f"torch.{dtype}"
    assert ("stored in float32" in caplog.text) == (dtype == "float32")


@pytest.mark.parametrize(
    "settings", [{"do_sample": False, "temperature": 0.9}, {"num_return_sequences": 4}, {"eos_token_id": [2, None]}]
)
def test_a_base_model_whose_generation_settings_were_repaired_can_be_merged(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    """It was trained and paid for, and then the merge ended in a traceback."""
    from transformers import GenerationConfig

    from trainer.export.export_command import _merge

    recipe = adapters_of(tmp_path, 1.0, **settings)
    _merge(recipe, None, tmp_path / "adapter", tmp_path / "out", tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == 2


def test_a_base_model_of_few_positions_can_be_merged(tmp_path: Path) -> None:
    from trainer.export.export_command import _merge

    recipe = adapters_of(tmp_path, 1.0)
    path = tmp_path / "base/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_position_embeddings": 32}))
    _merge(recipe, None, tmp_path / "adapter", tmp_path / "out", tmp_path)
    assert (tmp_path / "out/model.safetensors").is_file()


def test_the_share_that_is_kept() -> None:
    untrained, trained = torch.zeros(4), torch.tensor([1.0, -2.0, 0.5, 0.0])
    assert kept_share(untrained, trained, trained) == pytest.approx(1.0)
    assert kept_share(untrained, trained, untrained) == 0.0
    assert kept_share(untrained, trained, 0.5 * trained) == pytest.approx(0.5)
    assert kept_share(untrained, untrained, untrained) == 1.0
    noisy = (
        trained
        + torch.tensor([1.0, -1.0] * (trained.numel() // 2)).reshape(trained.shape) * (trained - untrained).abs().mean()
    )
    assert noise_share(untrained, trained, noisy) > 0.5, "and its projection is more than was trained"
    assert noise_share(untrained, trained, trained) == 0.0
    assert noise_share(untrained, untrained, untrained) == 0.0


def test_adapters_are_not_merged_into_another_base_model(
    lora: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.model.builtin_models.SEED", 7)
    with pytest.raises(UserError, match=r"trained on another base model: base\.content was '\w+', is '\w+'"):
        release(lora, read_finished(lora, "lora", merge=True), tmp_path, merge=True)


def test_the_base_model_of_the_hub_is_the_commit_that_the_run_noted(
    lora: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.export.export_command import _merge

    asked: list[str | None] = []

    def identify(name: str, revision: str | None) -> dict[str, str | None]:
        asked.append(revision)
        return {"commit": revision, "weights": "w2"}

    monkeypatch.setattr("trainer.export.export_command.identify_base", identify)
    recipe = {"model": {"name": "me/model", "revision": "main", "dtype": "auto"}}
    for noted in ({"commit": "c1", "weights": "w1"}, {"commit": "c1", "weights": "w2"}):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(NotusError) as caught:
            _merge(recipe, noted, tmp_path, tmp_path, tmp_path)
        assert isinstance(caught.value, UserError) == (noted["weights"] == "w1")
    assert asked == ["c1", "c1"]


def test_the_card_tells_attempts_machines_and_cost() -> None:
    clock = FakeClock(datetime(2026, 11, 25, tzinfo=UTC))
    store = ObjectStore.memory()
    launcher, *attempts = (Diary(store, number, clock) for number in range(3))
    spot = {"cloud": "gcp", "region": "r", "zone": "z", "gpus": "A100:8", "spot": True, "price_usd_per_hour": 10.0}
    lambda_ = {**spot, "cloud": "lambda", "spot": False, "price_usd_per_hour": 16.0}
    for place, diary, hours in ((spot, attempts[0], 3.0), (lambda_, attempts[1], 0.5)):
        launcher.write("machine_up", place=place, since=clock.now().isoformat())
        diary.write("attempt_started")
        clock.sleep(hours * 3600)
        if place is spot:
            launcher.write("machine_gone", why="preempted")
            clock.sleep(0.001)  # events of one moment have no order
        else:
            diary.write("attempt_ended", outcome="finished")
            launcher.write("finished")
    assert history(read_events(store)) == (
        "Trained in 2 attempts (1 preempted) on gcp spot A100:8, lambda on demand A100:8. "
        "The machines cost $38.00 at list prices."
    )
    before = [event for event in read_events(store) if event.kind != "attempt_ended"]
    assert history(before, running=2).startswith("Trained in 2 attempts (1 preempted) on"), "it writes its own card"


def test_without_merge_the_files_are_the_runs(reference: Store, lora: Store, tmp_path: Path) -> None:
    for store, name in ((reference, "model.safetensors"), (lora, "adapter_model.safetensors")):
        out = tmp_path / name
        out.mkdir()
        release(store, read_finished(store, "r", merge=False), out, merge=False)
        assert (out / name).read_bytes() == store.get(f"final/{name}").data
        assert json.loads((out / "tokenizer_config.json").read_text())


def test_what_cannot_be_exported_is_the_users_error(reference: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are no adapters to merge"):
        read_finished(reference, "reference", merge=True)
    with pytest.raises(UserError, match="has no finished model"):
        read_finished(FolderStore(tmp_path), "nothing", merge=False)
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("x")
    done = command(reference, "reference", full)
    assert done.returncode == 2
    assert "is not empty" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_a_damaged_file_is_named(reference: Store, tmp_path: Path) -> None:
    class Damaged:
        url = reference.url

        def __getattr__(self, name: str) -> Any:
            return getattr(reference, name)

        def get_range(self, key: str, start: int, length: int) -> memoryview:
            data = reference.get_range(key, start, length)
            return memoryview(b"x" + bytes(data[1:])) if key.endswith("config.json") and len(data) else data

    with pytest.raises(CorruptCheckpoint, match=r"final/\w*config.json differs from its hash"):
        release(Damaged(), read_finished(reference, "reference", merge=False), tmp_path, merge=False)  # type: ignore[arg-type]


def test_another_base_model_is_noticed() -> None:
    logits = torch.randn(1, 8, 100)
    check_logits(logits, logits + 1e-4)
    for other in (torch.randn(1, 8, 100), logits + 0.01):
        with pytest.raises(TrainingFailed, match="differs from base and adapters"):
            check_logits(logits, other)
    with pytest.raises(TrainingFailed):
        check_logits(logits, logits * float("nan"))


def test_a_push_needs_a_name_and_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(UserError, match="is not a model on the Hub"):
        check_push("mine")
    with pytest.raises(UserError, match="needs a token"):
        check_push("me/mine")

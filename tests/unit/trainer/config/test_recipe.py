"""Recipes: what is right is read, what is wrong is said with file, line, key and the nearest valid key."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from trainer.config.global_batch import Batch
from trainer.config.recipe import builtin_names, load_recipe
from trainer.config.trl_config import dpo_arguments
from trainer.errors import RecipeError

TINY = (ROOT / "trainer/recipes/tiny-dpo.yaml").read_text()


def write(folder: Path, *changes: tuple[str, str]) -> str:
    text = TINY
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


def error_of(path: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert caught.value.exit_code == 2
    return caught.value


def line_of(path: str, text: str) -> int:
    return next(i for i, line in enumerate(Path(path).read_text().splitlines(), 1) if text in line)


def test_all_recipes_of_the_package_are_valid() -> None:
    assert builtin_names() == [
        "notus-7b-dpo",
        "notus-7b-dpo-2023",
        "notus-7b-dpo-lora",
        "smollm2-135m-dpo",
        "tiny-dpo",
        "tiny-dpo-lora",
    ]
    for name in builtin_names():
        assert load_recipe(name).name == name


def test_what_ran_in_2023_is_a_recipe_of_its_own() -> None:
    """accelerate of then made DeepSpeedCPUAdam of every optimizer under offload; the handbook's ZeRO-3 did not clip."""
    asked, ran = load_recipe("notus-7b-dpo"), load_recipe("notus-7b-dpo-2023")
    assert (asked.training.optimizer, asked.training.max_grad_norm) == ("rmsprop", 1.0)
    assert (ran.training.optimizer, ran.training.max_grad_norm, ran.training.weight_decay) == ("adamw", None, 0.0)
    assert ran.zero is not None
    assert (ran.zero.offload_optimizer, ran.zero.offload_parameters) == ("cpu", "cpu")
    same = ran.training.model_copy(update={"optimizer": "rmsprop", "max_grad_norm": 1.0})
    assert (ran.model, ran.dataset, ran.dpo, same) == (asked.model, asked.dataset, asked.dpo, asked.training)
    arguments = dpo_arguments(ran, Batch(64, 8, 1), device="cuda", attention="sdpa", output=Path("/x"), run="r")
    assert arguments["max_grad_norm"] == 0.0


def test_the_seed_values_of_notus_7b() -> None:
    recipe = load_recipe("notus-7b-dpo")
    training = recipe.training
    assert recipe.model.name == "alignment-handbook/zephyr-7b-sft-full"
    assert recipe.model.dtype == "auto"
    assert recipe.dataset.model_dump(include={"split", "eval_rows", "seed", "workers"}) == {
        "split": "train",
        "eval_rows": 2000,
        "seed": 42,
        "workers": 12,
    }
    assert (recipe.dpo.beta, recipe.dpo.max_length, recipe.dpo.max_prompt_length) == (0.1, 1024, 512)
    assert (training.learning_rate, training.schedule, training.warmup_ratio) == (5e-7, "linear", 0.1)
    assert (training.epochs, training.optimizer, training.accumulation, training.seed) == (3, "rmsprop", 1, 42)
    assert (training.per_device_batch, training.per_device_eval_batch) == (8, 4)
    assert (training.eval_every_steps, training.log_every_steps, training.bf16) == (100, 10, True)
    assert recipe.zero is not None
    assert (recipe.zero.offload_optimizer, recipe.zero.offload_parameters, recipe.zero.pin_memory) == (
        "auto",
        "auto",
        True,
    )
    assert recipe.hub is not None
    assert (recipe.hub.repo, recipe.hub.private, recipe.saves.keep) == ("argilla/notus-7b-dpo", True, 1)
    assert (recipe.hardware.gpus, recipe.hardware.hours) == ("A100:8", 12)
    lora = load_recipe("notus-7b-dpo-lora")
    assert lora.lora is not None
    assert (lora.lora.rank, lora.lora.alpha, lora.lora.dropout) == (64, 16, 0.0)
    assert lora.lora.target_modules == ("q_proj", "k_proj", "v_proj", "o_proj")
    assert (lora.training.per_device_batch, lora.training.accumulation) == (2, 32)
    assert lora.training.eval_every_epoch
    assert not lora.training.reentrant_checkpointing
    assert lora.hub is not None
    assert lora.hub.repo == "argilla/notus-7b-dpo-lora-adapter", "the merged model has a repository of its own"


def test_a_wrong_key_names_the_line_and_the_nearest_one(tmp_path: Path) -> None:
    path = write(tmp_path, ("  learning_rate: 5.0e-4", "  learning_rte: 5.0e-4"))
    message = error_of(path).message
    line = line_of(path, "learning_rte")
    assert f"{path}:{line}: unknown key 'training.learning_rte'; did you mean 'learning_rate'?" in message
    assert "the key 'training.learning_rate' is missing" in message


def test_a_key_that_resembles_nothing_lists_the_valid_ones(tmp_path: Path) -> None:
    path = write(tmp_path, ("method: full", "method: full\nzzz: 1"))
    assert "valid keys: name, description, method, model" in error_of(path).message


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("epochs: 2", "epochs: two", "training.epochs: Input should be a valid integer"),
        ("epochs: 2", "epochs: 0", "training.epochs: Input should be greater than or equal to 1 (got 0)"),
        (
            "optimizer: rmsprop",
            "optimizer: sgd",
            "training.optimizer: Input should be 'rmsprop' or 'adamw' (got 'sgd')",
        ),
        ("beta: 0.1", "beta: -1", "dpo.beta: Input should be greater than 0"),
        ("beta: 0.1", "loss: exo_pair", "loss exo_pair needs a label_smoothing above 0"),
        ("beta: 0.1", "label_smoothing: 0.1", "loss sigmoid has no use for label_smoothing; robust, exo_pair, aot"),
        ("max_prompt_length: 128", "max_prompt_length: 256", "max_prompt_length 256 leaves no room in max_length 256"),
        ("method: full", "method: lora", "method lora needs a section `lora:`"),
        ("method: full", "method: lora\nlora:\n  quantize: nf4", "lora.quantize works under DDP only"),
        ("eval_every_epoch: true", "eval_every_epoch: true\n  eval_every_steps: 5", "not both"),
        ("model:\n  name: builtin:tiny-llama", "model: llama", "model: Input should be a valid dictionary"),
    ],
)
def test_wrong_values_are_explained(tmp_path: Path, old: str, new: str, expected: str) -> None:
    path = write(tmp_path, (old, new))
    message = error_of(path).message
    assert expected in message
    assert message.startswith(f"{path}:")


def test_numbers_may_be_written_as_people_do(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, ("5.0e-4", "5e-4"))).training.learning_rate == 5e-4


def test_broken_yaml_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("name: x\nmodel: [1,\n")
    assert f"{path}:3: not valid YAML" in error_of(str(path)).message
    path.write_text("- 1\n")
    assert "expected `key: value` lines" in error_of(str(path)).message
    path.write_bytes(b"name: \xff\n")
    assert "not UTF-8" in error_of(str(path)).message
    assert "there is no recipe file" in error_of(str(tmp_path / "no.yaml")).message


def test_an_unknown_name_suggests_the_nearest() -> None:
    assert "did you mean 'tiny-dpo'?" in error_of("tiny-dop").message


def test_a_data_file_is_relative_to_the_recipe(tmp_path: Path) -> None:
    path = write(tmp_path, ("name: builtin:tiny-preferences", "name: pairs.jsonl"))
    assert "there is no file" in error_of(path).message
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    assert load_recipe(path).dataset.name == str(tmp_path / "pairs.jsonl")


def test_a_wrong_recipe_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    path = write(tmp_path, ("epochs: 2", "epoch: 2"))
    code = (
        "import sys\nfrom trainer.main import main\n"
        f"sys.argv = ['notus-train', {path!r}, '--run', 'r', '--bucket', {str(tmp_path)!r}]\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout.strip() == "False"
    assert "did you mean 'epochs'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_identity_holds_what_decides_the_numbers() -> None:
    recipe = load_recipe("tiny-dpo")
    other = recipe.model_copy(update={"description": "x", "tracking": ("wandb",)})
    assert other.identity == recipe.identity
    assert "saves" not in recipe.identity
    assert recipe.zero is not None
    elsewhere = recipe.zero.model_copy(update={"offload_optimizer": "none"})
    assert recipe.model_copy(update={"zero": elsewhere}).identity == recipe.identity
    assert recipe.model_copy(update={"zero": None}).identity != recipe.identity


def test_a_run_from_before_a_key_was_there_is_the_same_run() -> None:
    for name in ("tiny-dpo", "tiny-dpo-lora"):
        identity = load_recipe(name).identity
        assert "label_smoothing" not in identity["dpo"]
        assert "quantize" not in (identity["lora"] or {})
    lora = load_recipe("tiny-dpo-lora")
    assert lora.lora is not None
    quantized = lora.model_copy(update={"lora": lora.lora.model_copy(update={"quantize": "nf4"})})
    assert quantized.identity["lora"]["quantize"] == "nf4"


def test_where_a_data_file_lies_is_not_part_of_the_identity(tmp_path: Path) -> None:
    identities = []
    for home in ("gcpuser", "ubuntu"):
        folder = tmp_path / home
        folder.mkdir()
        (folder / "pairs.jsonl").write_text("{}\n")
        path = write(folder, ("name: builtin:tiny-preferences", "name: pairs.jsonl\n  workers: 3"))
        identities.append(load_recipe(path).identity)
    assert identities[0] == identities[1]
    assert identities[0]["dataset"]["name"] == "pairs.jsonl"
    assert "workers" not in identities[0]["dataset"]


def test_every_set_of_a_mix_is_found_beside_the_recipe_and_its_folder_is_not_identity(tmp_path: Path) -> None:
    identities = []
    for home in ("gcpuser", "ubuntu"):
        folder = tmp_path / home
        folder.mkdir()
        (folder / "pairs.jsonl").write_text("{}\n")
        more = "builtin:tiny-preferences\n  also:\n    - name: pairs.jsonl\n      fraction: 0.5"
        recipe = load_recipe(write(folder, ("builtin:tiny-preferences", more)))
        assert [source.name for source in recipe.dataset.sources] == [
            "builtin:tiny-preferences",
            str(folder / "pairs.jsonl"),
        ]
        identities.append(recipe.identity)
    assert identities[0] == identities[1]
    assert identities[0]["dataset"]["also"][0]["fraction"] == 0.5
    (tmp_path / "ubuntu/pairs.jsonl").unlink()
    with pytest.raises(RecipeError, match="there is no file"):
        load_recipe(write(tmp_path / "ubuntu", ("builtin:tiny-preferences", more)))

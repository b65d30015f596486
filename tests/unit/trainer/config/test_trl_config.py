"""Pure decisions of the trainer: settings, when to save, what an exact resume needs."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from checkpoints.commit.head import Head, Writer
from checkpoints.errors import NotExact, StoreError, UserError
from trainer import main
from trainer.checkpointing.save_policy import Moment, save_reason, what_is_left
from trainer.config.fingerprint import check_fingerprint, cpu_device
from trainer.config.global_batch import Batch, fit_batch
from trainer.config.offload import settle_offload
from trainer.config.recipe import Saves, load_recipe
from trainer.config.trl_config import choose_attention, deepspeed_config, dpo_arguments
from trainer.devices.determinism import not_reproducible
from trainer.errors import HardwareError, TrainingFailed
from trainer.hub.load_errors import translate_error
from trainer.main import default_processes, exit_code
from trainer.metrics.tracker_setup import tracker_links, usable_trackers
from trainer.runtime.attempt_dir import Outcome, Progress, Scratch
from trainer.runtime.stop_flag import StopRequest, request_stop
from trainer.supervisor.supervisor import combine_outcomes, gpus_here, rank_environment


def moment(**changes: Any) -> Moment:
    return Moment(step=7, epoch_ended=False, finished=False, stopping=False, interval_over=False)._replace(**changes)


@pytest.mark.parametrize(
    ("changes", "saves", "reason"),
    [
        ({}, Saves(), ""),
        ({"finished": True, "stopping": True}, Saves(), "final"),
        ({"stopping": True}, Saves(), "stop"),
        ({"epoch_ended": True}, Saves(), "epoch"),
        ({"epoch_ended": True}, Saves(every_epoch=False), ""),
        ({"step": 10}, Saves(every_steps=5), "interval"),
        ({"step": 11}, Saves(every_steps=5), ""),
        ({"evaluation_due": True}, Saves(), "evaluation"),
        ({"step": 10, "busy": True}, Saves(every_steps=5), ""),
        ({"evaluation_due": True, "busy": True}, Saves(), ""),
        ({"evaluation_due": True, "busy": True}, Saves(keep_best="eval_loss"), "evaluation"),
        ({"epoch_ended": True, "busy": True}, Saves(), "epoch"),
        ({"stopping": True, "busy": True}, Saves(), "stop"),
        ({"interval_over": True}, Saves(), "interval"),
        ({"interval_over": True, "busy": True}, Saves(), ""),
        ({"step": 10, "epoch_ended": True}, Saves(every_steps=5, every_epoch=False), "interval"),
    ],
)
def test_when_to_save(changes: dict[str, Any], saves: Saves, reason: str) -> None:
    assert save_reason(saves, moment(**changes)) == reason


@pytest.mark.parametrize(
    ("committed", "told"),
    [
        ([], "there is no good checkpoint"),
        ([9], "there is no good checkpoint; don't use that of step 9, whose weights gave this"),
        ([9, 8, 5], "the last good checkpoint is that of step 8; don't use that of step 9, whose weights gave this"),
        ([8, 5], "the last good checkpoint is that of step 8"),
        ([5], "the last good checkpoint is that of step 5"),
    ],
)
def test_the_weights_that_gave_nonsense_are_not_called_good(committed: list[int], told: str) -> None:
    assert what_is_left(committed, 10) == told


@pytest.mark.parametrize(
    ("wanted", "device", "installed", "chosen", "why"),
    [
        ("auto", "cuda", True, "flash_attention_2", "flash-attn is installed"),
        ("auto", "cuda", False, "sdpa", "flash-attn is not installed"),
        ("flash_attention_2", "cuda", False, "sdpa", "not installed"),
        ("auto", "cpu", True, "sdpa", "no GPU here"),
        ("eager", "cuda", True, "eager", "as the recipe says"),
    ],
)
def test_attention(wanted: str, device: Any, installed: bool, chosen: str, why: str) -> None:
    attention, reason = choose_attention(wanted, device=device, flash_installed=installed)
    assert attention == chosen
    assert why in reason


def test_deepspeed_offloads_as_the_recipe_says_and_keeps_rmsprop() -> None:
    recipe = load_recipe("notus-7b-dpo")
    assert recipe.zero is not None
    config = deepspeed_config(
        recipe.zero.model_copy(update={"offload_optimizer": "cpu", "offload_parameters": "cpu"}), device="cuda"
    )
    stage = config["zero_optimization"]
    assert stage["stage"] == 3
    assert stage["offload_optimizer"]["device"] == "cpu"
    assert stage["offload_param"] == {"device": "cpu", "pin_memory": True}
    assert config["zero_force_ds_cpu_optimizer"] is False
    assert config["bf16"] == {"enabled": "auto"}
    without = deepspeed_config(
        recipe.zero.model_copy(update={"offload_optimizer": "none", "offload_parameters": "none"}), device="cuda"
    )
    assert not {"offload_optimizer", "offload_param"} & without["zero_optimization"].keys()
    json.dumps(config)


def test_trl_arguments_follow_the_recipe() -> None:
    recipe, _ = settle_offload(load_recipe("notus-7b-dpo"), gpu_gib=80, count=8, saved=None)
    arguments = dpo_arguments(
        recipe,
        Batch(512, 4, 16),
        device="cuda",
        attention="flash_attention_2",
        output=Path("/x"),
        run="r",
        revision="c0ffee",
    )
    assert arguments["model_init_kwargs"]["revision"] == "c0ffee"
    assert arguments["model_init_kwargs"]["attn_implementation"] == "flash_attention_2"
    assert (arguments["eval_strategy"], arguments["eval_steps"]) == ("steps", 100)
    assert (arguments["per_device_train_batch_size"], arguments["gradient_accumulation_steps"]) == (4, 16)
    assert arguments["optim"] == "rmsprop"
    assert arguments["max_grad_norm"] == 1.0
    assert arguments["save_strategy"] == "no"
    assert arguments["warmup_steps"] == 0.1
    assert arguments["disable_dropout"] is True
    lora = load_recipe("notus-7b-dpo-lora")
    arguments = dpo_arguments(lora, Batch(64, 8, 1), device="cuda", attention="sdpa", output=Path("/x"), run="r")
    assert "deepspeed" not in arguments
    assert arguments["disable_dropout"] is True, "the adapters' own is switched on afterwards"
    assert arguments["gradient_checkpointing_kwargs"] == {"use_reentrant": False}
    assert arguments["report_to"] == "none"
    assert "quantization_config" not in arguments["model_init_kwargs"]
    assert lora.lora is not None
    quantized = lora.model_copy(update={"lora": lora.lora.model_copy(update={"quantize": "nf4"})})
    arguments = dpo_arguments(quantized, Batch(64, 8, 1), device="cuda", attention="sdpa", output=Path("/x"), run="r")
    quantization = arguments["model_init_kwargs"]["quantization_config"]
    assert (quantization["bnb_4bit_quant_type"], quantization["bnb_4bit_compute_dtype"]) == ("nf4", "bfloat16")


FINGERPRINT = {
    "recipe": {"dpo": {"beta": 0.1}},
    "global_batch": 8,
    "world_size": 2,
    "offload": None,
    "device": "cpu",
    "attention": "sdpa",
    "determinism": {"threads": "1"},
    "dataset": "abc",
    "base": {"commit": "c1", "weights": "w1"},
    "versions": {"torch": "2.13.0"},
}


def test_equal_fingerprints_are_exact() -> None:
    assert check_fingerprint(FINGERPRINT, dict(FINGERPRINT)) == []


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("recipe", {"dpo": {"beta": 0.2}}, r"recipe\.dpo\.beta was 0\.1, is 0\.2 \(it decides what is computed\)"),
        ("recipe", {}, r"recipe\.dpo was \{'beta': 0\.1\}, is None"),
        ("global_batch", 4, r"global_batch was 8, is 4 \(pairs in an optimizer step\)"),
        ("dataset", "other", r"dataset was 'abc', is 'other' \(a hash of its rows"),
        ("base", {"commit": "c1", "weights": "w2"}, r"base\.weights was 'w1', is 'w2' \(the reference model"),
        ("base", {"commit": "c2", "weights": None}, r"base\.commit was 'c1', is 'c2'"),
    ],
)
def test_what_changes_the_numbers_is_refused_by_name(field: str, value: Any, said: str) -> None:
    with pytest.raises(NotExact, match=said) as caught:
        check_fingerprint(FINGERPRINT, {**FINGERPRINT, field: value})
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("base", [{"commit": "c2", "weights": "w1"}, {"commit": None, "weights": None}])
def test_a_base_model_that_is_the_same_or_unknown_is_no_other_run(base: Any) -> None:
    mine = {**FINGERPRINT, "base": base}
    assert check_fingerprint(FINGERPRINT, mine) == check_fingerprint(mine, FINGERPRINT) == []
    older = {field: value for field, value in FINGERPRINT.items() if field != "base"}
    assert check_fingerprint(older, mine) == [], "a run that was begun before bases were noted goes on"


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("world_size", 4, "world_size was 2, is 4 (sums over processes are added up in another order)"),
        ("offload", {"optimizer": "cpu"}, "offload was None, is {'optimizer': 'cpu'} (CPU and GPU round differently)"),
        ("device", "H100", "device was 'cpu', is 'H100' (another kind of device rounds differently)"),
        ("attention", "eager", "attention was 'sdpa', is 'eager' (another attention kernel rounds differently)"),
        ("determinism", {}, "determinism.threads was '1', is None (kernels may add up in another order)"),
        (
            "versions",
            {"torch": "2.14.1"},
            "versions.torch was '2.13.0', is '2.14.1' (another version may compute in another order)",
        ),
    ],
)
def test_what_may_change_a_bit_is_said(field: str, value: Any, said: str) -> None:
    assert check_fingerprint(FINGERPRINT, {**FINGERPRINT, field: value}) == [said]


def test_another_cpu_rounds_differently_and_an_older_run_that_cannot_tell_goes_on(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: AMD EPYC 7B13\nflags\t: avx2\n")
    amd = {**FINGERPRINT, "device": cpu_device("AVX2", cpuinfo)}
    assert amd["device"] == "cpu AMD EPYC 7B13 (AVX2)"
    cpuinfo.write_text("model name\t: Intel(R) Xeon(R)\n")
    intel = {**FINGERPRINT, "device": cpu_device("AVX512", cpuinfo)}
    assert check_fingerprint(amd, intel) == [
        "device was 'cpu AMD EPYC 7B13 (AVX2)', is 'cpu Intel(R) Xeon(R) (AVX512)' "
        "(another kind of device rounds differently)"
    ]
    assert check_fingerprint(amd, amd) == not_reproducible(amd) == []
    assert check_fingerprint(FINGERPRINT, amd) == []
    assert check_fingerprint(FINGERPRINT, {**FINGERPRINT, "device": "H100"}) != []
    assert cpu_device("AVX2", tmp_path / "none").startswith("cpu ")


def test_what_no_attempt_can_repeat_is_said_on_gpus_only() -> None:
    gpu = {**FINGERPRINT, "device": "NVIDIA A100", "attention": "flash_attention_2", "determinism": {"torch": "x"}}
    assert not_reproducible(gpu) == []
    assert not_reproducible({**gpu, "attention": "eager"}) == []
    assert "sdpa's backward" in not_reproducible({**gpu, "attention": "sdpa"})[0]
    assert "training.deterministic is off" in not_reproducible({**gpu, "determinism": {}})[0]
    assert not_reproducible({**FINGERPRINT, "determinism": {}}) == []


def test_every_changed_version_is_said() -> None:
    saved = {**FINGERPRINT, "versions": {"torch": "2.13.0", "trl": "1.16.0", "peft": "0.20"}}
    mine = {**FINGERPRINT, "versions": {"torch": "2.14.1", "trl": "1.17.0", "peft": "0.20"}}
    assert [reason.split(" ")[0] for reason in check_fingerprint(saved, mine)] == ["versions.torch", "versions.trl"]


@pytest.mark.parametrize(
    ("total", "world_size", "largest", "per_device", "accumulation"),
    [(8, 2, 4, 4, 1), (8, 1, 4, 4, 2), (8, 4, 4, 2, 1), (8, 8, 4, 1, 1), (12, 2, 4, 3, 2), (64, 6, 8, None, None)],
)
def test_the_global_batch_stays(
    total: int, world_size: int, largest: int, per_device: int | None, accumulation: int | None
) -> None:
    if per_device is None:
        with pytest.raises(NotExact, match="64 pairs in each step, and 6 processes") as caught:
            fit_batch(total, world_size=world_size, largest=largest)
        assert "use 1, 2, 4, 8 processes" in caught.value.hint
    else:
        assert fit_batch(total, world_size=world_size, largest=largest) == (total, per_device, accumulation)


def test_a_recipe_for_gpus_is_refused_without_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.main.gpus_here", lambda: 0)
    with pytest.raises(HardwareError, match="needs A100:8, and this machine has no GPU"):
        default_processes(load_recipe("notus-7b-dpo"))
    assert default_processes(load_recipe("tiny-dpo")) == 2
    monkeypatch.setattr("trainer.main.gpus_here", lambda: 8)
    assert default_processes(load_recipe("notus-7b-dpo")) == 8


def test_ranks_inherit_the_environment_and_know_their_run(tmp_path: Path) -> None:
    base = {"PATH": "/usr/bin", "AWS_SECRET_ACCESS_KEY": "s"}
    environment = rank_environment(base, recipe="tiny-dpo", run="r", bucket="b", scratch=tmp_path, cpu=True)
    assert environment["PATH"].endswith(":/usr/bin")
    assert environment["DS_ACCELERATOR"] == "cpu"
    assert environment["WANDB_RUN_ID"] == "r"
    assert environment["AWS_SECRET_ACCESS_KEY"] == "s"
    on_gpu = rank_environment(base, recipe="tiny-dpo", run="r", bucket="b", scratch=tmp_path, cpu=False)
    assert "DS_ACCELERATOR" not in on_gpu


def test_scratch_tells_what_was_told(tmp_path: Path) -> None:
    from checkpoints.util.clock import FakeClock

    scratch = Scratch(tmp_path)
    assert scratch.read_head() is None
    assert scratch.read_result() is None
    assert scratch.read_progress() == Progress(phase="starting")
    head = Head(epoch=3, writer=Writer(id="w", host="h", pid=1), nonce="n", lease_until=FakeClock().now())
    scratch.write_head(head)
    scratch.write_progress(Progress(phase="training", step=4, total_steps=9, loss=0.5))
    for rank in (10, 2):
        scratch.write_outcome(rank, Outcome(kind="finished", step=rank))
    scratch.write_result(Outcome(kind="preempted", step=4))
    assert scratch.read_head() == head
    assert scratch.read_progress().step == 4
    assert [(rank, outcome.step) for rank, outcome in scratch.read_outcomes().items()] == [(2, 2), (10, 10)]
    assert scratch.read_result() == Outcome(kind="preempted", step=4)


def test_a_stop_is_seen_by_all_who_look(tmp_path: Path) -> None:
    request = StopRequest(tmp_path / "stop")
    assert not request.pending()
    assert request.seconds_left() is None
    request_stop(tmp_path / "stop", "SIGTERM")
    assert request.pending()
    assert request.seconds_left() is None
    request_stop(tmp_path / "stop", "gcp", datetime.now(UTC) + timedelta(seconds=30))  # knows more: an end
    request_stop(tmp_path / "stop", "user")  # neither this one nor a later end may hide it
    request_stop(tmp_path / "stop", "aws", datetime.now(UTC) + timedelta(seconds=90))
    assert 25 < (request.seconds_left() or 0) <= 30
    (tmp_path / "by-hand").touch()
    assert StopRequest(tmp_path / "by-hand").seconds_left() is None


DONE = Outcome(kind="finished", step=24)
CRASH = Outcome(kind="failed", message="RuntimeError: connection closed by peer")
BAD_DATA = Outcome(kind="user_error", message="no rows", hint="add some")


@pytest.mark.parametrize(
    ("outcomes", "kind", "message"),
    [
        ({0: DONE, 1: DONE}, "finished", ""),
        ({0: CRASH, 1: BAD_DATA}, "user_error", "no rows"),
        ({0: DONE, 1: CRASH}, "failed", "rank 1: RuntimeError: connection closed by peer"),
        ({0: CRASH}, "failed", "rank 1 died without reporting an error (torchrun exited with 1); rank 0: RuntimeError"),
        ({}, "failed", "rank 0, 1 died without reporting an error"),
        ({1: Outcome(kind="fenced", message="taken over")}, "fenced", "taken over"),
    ],
)
def test_the_worst_rank_speaks_for_the_attempt(outcomes: dict[int, Outcome], kind: str, message: str) -> None:
    got = combine_outcomes(outcomes, processes=2, step=7, returncode=1)
    assert got.kind == kind
    assert got.message.startswith(message)


def test_trackers_that_would_hang_are_left_out() -> None:
    recipe = load_recipe("notus-7b-dpo")
    assert usable_trackers(recipe, {}) == ["tensorboard"]
    assert usable_trackers(recipe, {"WANDB_API_KEY": "k"}) == ["wandb", "tensorboard"]
    assert usable_trackers(recipe, {"WANDB_MODE": "offline"}) == ["wandb", "tensorboard"]


def test_gpus_are_counted_as_cuda_would(tmp_path: Path) -> None:
    assert gpus_here({"CUDA_VISIBLE_DEVICES": "0,1"}, tmp_path) == 0, "as SkyPilot sets it where the driver is missing"
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert gpus_here({}, tmp_path) == 2
    assert gpus_here({"CUDA_VISIBLE_DEVICES": "1"}, tmp_path) == 1
    assert gpus_here({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == 0
    assert gpus_here({"CUDA_VISIBLE_DEVICES": "-1"}, tmp_path) == 0


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (Outcome(kind="finished"), 0),
        (Outcome(kind="preempted"), 75),
        (Outcome(kind="failed", step=9000), 75),  # one bad start of one machine doesn't end a run of hours
        (Outcome(kind="failed", step=9000, gave_up=True), 1),
        (Outcome(kind="stopped", limit="budget"), 76),
        (Outcome(kind="failed", progressed=True), 75),
        (Outcome(kind="fenced", progressed=True), 1),
        (Outcome(kind="user_error", progressed=True), 2),
    ],
)
def test_exit_codes(outcome: Outcome, code: int) -> None:
    assert exit_code(outcome) == code


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileNotFoundError("Dataset 'x' doesn't exist on the Hub or cannot be accessed."), UserError),
        (OSError("x is not a local folder and is not a valid model identifier"), UserError),
        (ValueError("Unknown split 'trian'. Should be one of ['train']."), UserError),
        (ConnectionError("Couldn't reach 'x' on the Hub"), TrainingFailed),
        (OSError("We couldn't connect to the Hub to load the files"), TrainingFailed),
        (OSError("503 Server Error: Service Temporarily Unavailable"), TrainingFailed),
        (OSError(28, "No space left on device"), TrainingFailed),
    ],
)
def test_whose_fault_a_failed_load_is(error: Exception, kind: type[Exception]) -> None:
    assert type(translate_error(error, "the model", "x", "model.name")) is kind


def test_the_trackers_page_is_known_without_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    assert tracker_links() == []
    assert "wandb" not in sys.modules
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=None))  # type: ignore[misc]
    assert tracker_links() == []
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=SimpleNamespace(url="https://wandb/r")))  # type: ignore[misc]
    assert tracker_links() == ["https://wandb/r"]


@pytest.mark.parametrize(("wait_s", "succeeds"), [(0.0, False), (240.0, True)])
def test_a_machine_waits_for_a_bucket_that_is_away_and_a_laptop_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wait_s: float, succeeds: bool
) -> None:
    """Exit code 1 would end a job of hours that has just got its next machine."""
    asked: list[str] = []

    def prepare(store: object, run: str, recipe: object, processes: int) -> None:
        asked.append(run)
        raise StoreError("away") if len(asked) < 3 else UserError("here again")

    monkeypatch.setattr(main, "_prepare", prepare)
    monkeypatch.setattr(main, "open_run", lambda bucket, run: None)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(UserError if succeeds else StoreError):
        main._attempt("tiny-dpo", "r", "s3://b", 2, Scratch(tmp_path), "", wait_s=wait_s)
    assert len(asked) == (3 if succeeds else 1)

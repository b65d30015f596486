"""A run that is killed ends bit for bit as one that isn't."""

from __future__ import annotations

import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoints.commit.head import read_head
from checkpoints.commit.load import load_index, load_manifest
from checkpoints.run_log.event_log import read_events
from checkpoints.run_log.metrics import read_metrics
from checkpoints.run_log.run_record import open_run
from checkpoints.storage.base import Store
from tests.integration.conftest import Launcher, assert_bit_exact, recipe
from tests.support.faulty_proxy import FAULTS, Deed, FaultyProxy
from tests.support.loopback import serving
from tests.support.seaweed import S3Server

STEPS_PER_EPOCH = 12
FIRST_STEPS, FIRST_TOLERANCE, MEAN_TOLERANCE = 4, 0.001, 0.01
"""Of a loss before the runs drift apart, and of all: the reference model's log-probs come from other batches, padded
otherwise. docs/concepts/exact-resume.md promises the same."""


@pytest.mark.parametrize("name", ["tiny-dpo", pytest.param("tiny-dpo-lora", marks=pytest.mark.slow)])
def test_killed_in_the_first_and_in_the_second_epoch(launcher: Launcher, name: str, seed: int) -> None:
    done = launcher.run(*launcher.local(name, "--name", "killed", "--preempt", "2", "--seed", str(seed)))
    receipt = done.receipt()
    first, second, third = receipt["attempts"]
    assert [line["ended"] for line in receipt["attempts"]] == ["preempted", "preempted", "finished"]
    assert first["to_step"] <= STEPS_PER_EPOCH < second["to_step"] <= 2 * STEPS_PER_EPOCH == third["to_step"]
    assert receipt["steps"] == 24
    assert receipt["bit_exact"] is True
    assert 0 < receipt["goodput"] < 1
    assert receipt["costs"]
    twin = open_run(launcher.bucket, "killed-uninterrupted")
    assert_bit_exact(open_run(launcher.bucket, "killed"), twin)
    final = {entry.key for entry in twin.list("final")}
    assert ("final/model.safetensors" if name == "tiny-dpo" else "final/adapter_model.safetensors") in final
    assert not [key for key in final if key.endswith((".bin", ".pt", ".pth", ".pkl"))]


UNEVEN = ("  per_device_eval_batch: 4\n", "  per_device_eval_batch: 4\n  accumulation: 5\n  dataloader_workers: 2\n")
"""An epoch of 12 micro-batches ends with an optimizer step of 2 of them."""


@pytest.mark.slow
def test_uneven_accumulation_loader_processes_adamw_and_evaluations_in_mid_epoch(
    launcher: Launcher, tmp_path: Path, seed: int
) -> None:
    path = recipe(
        tmp_path,
        "tiny-dpo",
        UNEVEN,
        ("eval_every_epoch: true", "eval_every_steps: 2"),
        ("optimizer: rmsprop", "optimizer: adamw"),
        ("schedule: linear", "schedule: cosine"),
        ("  every_steps: 5\n", "  every_steps: 1\n"),
    )
    receipt = launcher.run(*launcher.local(path, "--name", "matrix", "--preempt", "1", "--seed", str(seed))).receipt()
    assert receipt["steps"] == 6
    assert receipt["preemptions"] == 1
    assert receipt["bit_exact"] is True
    for name in ("matrix", "matrix-uninterrupted"):
        events = read_events(open_run(launcher.bucket, name))
        assert {event.data["step"] for event in events if event.kind == "evaluated"} == {2, 4, 6}
    micro_steps = {m.step: len(m.values["losses_hex"]) for m in read_metrics(open_run(launcher.bucket, "matrix"))}
    assert [micro_steps[step] for step in range(1, 7)] == [5, 5, 2] * 2


@pytest.mark.slow
def test_wandb_offline_has_no_step_that_the_bucket_lacks(launcher: Launcher, tmp_path: Path) -> None:
    """Each log line of W&B comes after its steps' record; with no key and no network, W&B writes to the disk."""
    path = recipe(
        tmp_path,
        "tiny-dpo",
        ("tracking: [tensorboard]", "tracking: [wandb]"),
        ("every_steps: 5", "every_steps: 1000"),
        ("every_epoch: true\n  keep", "every_epoch: false\n  keep"),
        ("  epochs: 2", "  epochs: 1"),
    )
    launcher.environment |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    receipt = launcher.run(*launcher.local(path, "--name", "tracked")).receipt()
    assert receipt["steps"] == 12
    keys = [entry.key for entry in open_run(launcher.bucket, "tracked").list("metrics")]
    rank_0 = [key.rsplit("-", 2)[1:] for key in keys if "-r00000-" in key]
    assert rank_0 == [
        ["s00000001", "00000001.jsonl"],
        ["s00000002", "00000004.jsonl"],
        ["s00000005", "00000008.jsonl"],
        ["s00000009", "00000012.jsonl"],
    ], "logged at steps 1, 4, 8 and 12"
    kept = {m.step: m.values for m in read_metrics(open_run(launcher.bucket, "tracked")) if m.rank == 0}
    assert sorted(kept) == list(range(1, 13))
    assert {"rewards/margins", "grad_norm", "tokens_per_second", "memory_gib", "stalled_s"} <= kept[7].keys()


@pytest.fixture
def bitsandbytes(tmp_path: Path) -> str:
    """In a folder of its own: where it is installed, every start of a trainer imports it, a second each."""
    folder = str(tmp_path / "bitsandbytes")
    root = Path(__file__).parents[2]
    pinned = next(line for line in (root / "constraints.txt").read_text().split() if line.startswith("bitsandbytes=="))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, pinned]
    subprocess.run(command, check=True)
    return folder


@pytest.mark.slow
def test_qlora(launcher: Launcher, tmp_path: Path, seed: int, bitsandbytes: str) -> None:
    """The base is quantized anew by each attempt, to the same bits; only the adapters are saved."""
    four_bits = ("  dropout: 0.1\n", "  dropout: 0.1\n  quantize: nf4\n")
    path = recipe(tmp_path, "tiny-dpo-lora", four_bits, ("epochs: 2", "epochs: 1"))
    refused = launcher.run(*launcher.local(path, "--name", "refused"))
    assert refused.code == 2
    assert "lora.quantize: nf4 needs bitsandbytes" in refused.err

    launcher.environment["PYTHONPATH"] = bitsandbytes
    arguments = ("--name", "qlora", "--preempt", "1", "--seed", str(seed))
    receipt = launcher.run(*launcher.local(path, *arguments)).receipt()
    assert receipt["bit_exact"] is True
    head = read_head(open_run(launcher.bucket, "qlora"))
    assert head is not None
    (shard,) = load_manifest(open_run(launcher.bucket, "qlora"), head.commits[0]).shards[:1]
    adapters = [
        t for t in load_index(open_run(launcher.bucket, "qlora"), shard).tensors if t.name.startswith("adapter")
    ]
    assert {tensor.dtype for tensor in adapters} == {"float32"}, "bf16 would round small updates away"
    assert "base weights in 4 bits: 14 of" in launcher.run("logs", "qlora", "--attempt", "2").out


def test_the_exported_model_loads(reference: Store) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = reference.url.removeprefix("file://") + "/final"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("hello", return_tensors="pt")
    assert model(**ids).logits.shape[-1] == len(tokenizer)


def test_a_checkpoint_exports_to_the_very_model_that_deepspeed_gathers(
    reference: Store, launcher: Launcher, tmp_path: Path
) -> None:
    """The bf16 weights are not stored: this shows that they are the rounded masters, against DeepSpeed's own gather."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    run = reference.url.removeprefix("file://")
    command = [sys.executable, "-m", "checkpoints.cli", "export", run, str(tmp_path / "model")]
    subprocess.run(command, check=True, capture_output=True)
    ours, theirs = load_file(tmp_path / "model/model.safetensors"), load_file(f"{run}/final/model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert ours[name].equal(tensor), name
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.config.num_hidden_layers == 2

    pulled = subprocess.run(
        [sys.executable, "-m", "checkpoints.cli", "pull", run, str(tmp_path / "pulled")],
        check=True,
        capture_output=True,
    )
    assert b"step 24 is in" in pulled.stdout
    again = [sys.executable, "-m", "checkpoints.cli", "export", str(tmp_path / "pulled"), str(tmp_path / "again")]
    subprocess.run(again, check=True, capture_output=True)
    exported = (tmp_path / "again/model.safetensors").read_bytes()
    assert exported == (tmp_path / "model/model.safetensors").read_bytes()


def test_on_s3(
    launcher: Launcher, s3_server: S3Server, seed: int, reference: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher.environment |= s3_server.environment()
    bucket = ("--bucket", "s3://notus-test/runs")
    arguments = launcher.local(
        "tiny-dpo", "--name", "on-s3", *bucket, "--preempt", "1", "--no-compare", "--seed", str(seed)
    )
    receipt = launcher.run(*arguments).receipt()
    assert receipt["preemptions"] == 1
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    assert_bit_exact(open_run("s3://notus-test/runs", "on-s3"), reference)
    status = launcher.run("status", "on-s3", *bucket)
    assert "finished" in status.out
    logs = launcher.run("logs", "on-s3", *bucket)
    assert "=== attempt 2" in logs.out
    assert logs.out.count("the tokenized pairs come from the bucket") == 1, "the second attempt tokenises nothing"
    resumed_from = receipt["attempts"][1]["from_step"]
    assert (f"resuming from step {resumed_from}" if resumed_from else "no checkpoint yet") in logs.out.split("=== ")[2]


@pytest.mark.slow
def test_on_an_s3_that_misbehaves(
    launcher: Launcher, s3_server: S3Server, seed: int, reference: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of ten requests fail: 500, SlowDown, 429, resets before and after the deed, stalls, cut and wrong bytes."""
    with serving(FaultyProxy(s3_server.endpoint, share=0.3, seed=seed)) as proxy:
        launcher.environment |= s3_server.environment() | {"AWS_ENDPOINT_URL": proxy.url}
        arguments = ("--bucket", "s3://notus-test/faulty", "--preempt", "1", "--no-compare", "--seed", str(seed))
        done = launcher.run(*launcher.local("tiny-dpo", "--name", "faulty", *arguments))
        assert done.code == 0, done.err
        for request in ("PUT", "GET"):
            assert min(proxy.done[Deed(request, fault)] for fault in FAULTS[request]) > 1, proxy.done
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    assert_bit_exact(open_run("s3://notus-test/faulty", "faulty"), reference)


@pytest.fixture
def own_memory() -> Iterator[Path]:
    """A folder in memory of its own: a run that starts beside this test gives back what dead runs have left there."""
    folder = Path(tempfile.mkdtemp(prefix="test-of-notus-", dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


def test_one_rank_dies(launcher: Launcher, reference: Store, own_memory: Path) -> None:
    """An out-of-memory kill takes one rank; the attempt fails as a whole and the next one goes on."""
    # Saved at the end of each epoch only: the snapshot in memory is the committed one for eleven steps.
    sparing = recipe(launcher.home, "tiny-dpo", ("every_steps: 5", "every_steps: 100"))
    launcher.environment["NOTUS_SHM"] = str(own_memory)
    process = launcher.start(*launcher.local(sparing, "--name", "crash"))
    with launcher.frozen("crash", step=13):
        (rank,) = (p for p in launcher.processes("trainer.training.worker") if p.environ().get("RANK") == "1")
        rank.send_signal(signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "rank 1 died without reporting an error" in err
    log = launcher.run("logs", "crash", "--attempt", "2").out
    assert "restored from this machine's memory" in log
    assert_bit_exact(open_run(launcher.bucket, "crash"), reference)


@pytest.mark.slow
def test_real_pairs(launcher: Launcher, shared: Path, seed: int) -> None:
    """The 700 pairs of the shared folder, preempted once."""
    data = shared / "data/preferences/alpaca_eval_gpt4_700.jsonl"
    real = recipe(
        launcher.home,
        "tiny-dpo",
        ("builtin:tiny-preferences", str(data)),
        ("eval_rows: 16", "eval_rows: 50"),
        ("  epochs: 2", "  epochs: 1\n  max_steps: 20"),
    )
    receipt = launcher.run(*launcher.local(real, "--name", "real", "--preempt", "1", "--seed", str(seed))).receipt()
    assert receipt["bit_exact"] is True
    assert receipt["steps"] == 20
    assert_bit_exact(open_run(launcher.bucket, "real"), open_run(launcher.bucket, "real-uninterrupted"))


def test_the_docs_promise_what_is_tested_of_precomputed_log_probs() -> None:
    page = Path(__file__).parents[2] / "docs/concepts/exact-resume.md"
    promise = (
        f"less than {FIRST_TOLERANCE} in each of the first {FIRST_STEPS} steps, before the runs drift apart, "
        f"and less than {MEAN_TOLERANCE} on average over all {2 * STEPS_PER_EPOCH}"
    )
    assert promise in " ".join(page.read_text().split())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-dpo", "tiny-dpo-lora"])
def test_with_precomputed_log_probs_of_the_reference_model(
    launcher: Launcher, reference: Store, name: str, tmp_path: Path
) -> None:
    """Computed once, exact under kills, and the same losses as with a live reference model within bf16's rounding."""
    path = recipe(tmp_path, name, ("  beta: 0.1\n", "  beta: 0.1\n  reference: precomputed\n"))
    done = launcher.run(*launcher.local(path, "--name", "pre", "--preempt", "2", "--seed", "5"))
    assert done.receipt()["bit_exact"] is True
    store = open_run(launcher.bucket, "pre")
    cached = [entry.key for entry in store.list("cache/reference")]
    assert len(cached) == 2, "one chunk of the training rows, one of the evaluation rows"
    if name == "tiny-dpo":
        ours, live = ({(m.rank, m.step): m.values["loss"] for m in read_metrics(one)} for one in (store, reference))
        assert ours.keys() == live.keys()
        assert all(abs(ours[key] - live[key]) < FIRST_TOLERANCE for key in live if key[1] <= FIRST_STEPS)
        assert statistics.mean(abs(ours[key] - live[key]) for key in live) < MEAN_TOLERANCE

"""A plain DeepSpeed program on a few ranks, for test_deepspeed.py: no Trainer, no recipe. Run by torchrun.

save BUCKET    train, save under two tags; beside it as DeepSpeed's own engine does, into BUCKET/stock
load BUCKET    load in every way, by our engine and by the stock one, and compare
move BUCKET    load what another number of ranks has saved, and save it again as step 6
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

import deepspeed
import deepspeed.runtime.engine as runtime
import torch
import torch.distributed as dist

from checkpoints.commit.head import Lease, Writer, read_head
from checkpoints.commit.load import load_manifest
from checkpoints.commit.retention import Commit, Retention
from checkpoints.restore.consolidate import Zero3State
from checkpoints.restore.reshard import restore_for
from checkpoints.restore.shard_restore import restore_shard
from checkpoints.run_log.run_record import open_run
from checkpoints.save.saver import Saver
from checkpoints.save.uploader_messages import Setup
from checkpoints.snapshot.shared_memory import SharedBuffer
from trainer.checkpointing.deepspeed_engine import BucketEngine, install
from trainer.devices.collectives import from_rank_0

STOCK = (runtime.create_checkpoint_engine, runtime.get_fp32_state_dict_from_zero_checkpoint)
BUCKET = sys.argv[2]
OPTIMIZER = sys.argv[3]
CLIENT_STATE = {"note": ["two", 2.5], "nested": {"at": 3}}


def build(seed: int) -> Any:
    """An engine with two param groups, several sub-groups in each, and a schedule."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(14, 38), torch.nn.GELU(), torch.nn.Linear(38, 14), torch.nn.LayerNorm(14)
    )
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim == 1], "lr": 3e-3, "weight_decay": 0.0},
    ]
    kind = {"adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop}[OPTIMIZER]
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 3, "sub_group_size": 300, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 10}},
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=kind(groups, lr=1e-2), config=config)
    return engine


def train(engine: Any, steps: int) -> None:
    for _ in range(steps):
        loss = engine(torch.randn(4, 14, dtype=torch.bfloat16)).square().mean()
        engine.backward(loss)
        engine.step()


def commits() -> list[Commit]:
    head = read_head(open_run(BUCKET, "run"))
    assert head is not None
    return list(head.commits)


@contextlib.contextmanager
def saving() -> Any:
    """A Saver on every rank, with rank 0's claim."""
    store = open_run(BUCKET, "run")
    writer = Writer(id=uuid.uuid4().hex, host="h", pid=os.getpid())
    head = from_rank_0(Lease.claim(store, writer, gone=_holder()).head if dist.get_rank() == 0 else None)
    setup = Setup(
        bucket=BUCKET, run="run", rank=dist.get_rank(), world_size=dist.get_world_size(),
        writer_id=head.writer.id, epoch=head.epoch, retention=Retention(newest=9), chunk_bytes=1000,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        saver = Saver(setup, SharedBuffer(Path(folder) / "buffer"))
        yield saver
        saver.close()
    dist.barrier()


def _holder() -> str:
    head = read_head(open_run(BUCKET, "run"))
    return head.writer.id if head else ""


def keep(saver: Saver, step: int, trees: dict[str, Any]) -> None:
    saver.save(step, trees)
    saver.wait()
    assert saver.failure is None, saver.failure
    dist.barrier()


def whole(commit: Commit) -> dict[str, torch.Tensor]:
    store = open_run(BUCKET, "run")
    ranks = range(load_manifest(store, commit).world_size)
    state = Zero3State([restore_shard(store, commit, rank) for rank in ranks])
    return {name: torch.from_numpy(tensor.copy()) for name, tensor in state.tensors()}


def stage(bucket_engine: BucketEngine, chosen: list[Commit]) -> str:
    """The tags of some commits, oldest first, for this rank."""
    store = open_run(BUCKET, "run")
    files: dict[str, Any] = {}
    for commit in reversed(chosen):
        files |= restore_for(store, commit, dist.get_rank(), dist.get_world_size()).trees()
    folder = Path(tempfile.mkdtemp())
    return str(bucket_engine.stage(files, folder, lambda: whole(chosen[0])))


def state_of(engine: Any) -> dict[str, Any]:
    """Everything that a load may change, copied."""
    optimizer = engine.optimizer
    optimizer._set_fp32_optimizer_param_groups()
    inner = optimizer.optimizer.state_dict()
    optimizer._clear_fp32_optimizer_param_groups()
    copied = torch.utils._pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, inner)
    return {
        "masters": [flat.clone() for flat in optimizer.fp32_partitioned_groups_flat],
        "weights": [flat.clone() for flat in optimizer.fp16_partitioned_groups_flat],
        "optimizer": copied,
        "scheduler": engine.lr_scheduler.state_dict(),
        "counters": (engine.global_steps, engine.global_samples, engine.skipped_steps),
    }


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def save() -> None:
    bucket_engine, engine = install(), build(seed=1)
    stock = STOCK[0](engine._config, None, 3, False, None)
    with saving() as saver:
        for step, tag in ((3, "first"), (5, "second")):
            train(engine, step - engine.global_steps)
            engine.checkpoint_engine = bucket_engine
            engine.save_checkpoint(tempfile.mkdtemp(), tag=tag, client_state={**CLIENT_STATE, "tag": tag})
            keep(saver, step, bucket_engine.saved)
            engine.checkpoint_engine = stock
            engine.save_checkpoint(f"{BUCKET}/stock", tag=tag, client_state={**CLIENT_STATE, "tag": tag})


WAYS: dict[str, dict[str, Any]] = {
    "latest": {},
    "first": {"tag": "first"},
    "second": {"tag": "second"},
    "module only": {"load_module_only": True},
    "no optimizer": {"load_optimizer_states": False},
    "module only, no optimizer": {"load_module_only": True, "load_optimizer_states": False},
    "no schedule": {"load_lr_scheduler_states": False},
    "no such tag": {"tag": "third"},
}


def load() -> None:
    for name, arguments in WAYS.items():
        results = []
        for ours in (True, False):
            if ours:
                bucket_engine = install()
                folder = stage(bucket_engine, commits())
            else:
                runtime.create_checkpoint_engine, runtime.get_fp32_state_dict_from_zero_checkpoint = STOCK
                folder = f"{BUCKET}/stock"
            engine = build(seed=2)
            before = state_of(engine)
            path, client_state = _try(engine, folder, arguments)
            after = state_of(engine)
            changed = not equal(before["masters"], after["masters"])
            results.append((path is not None, changed, _own(client_state), after))
            train(engine, 1)  # it must be fit to go on
        (found, changed, client, mine), (their_found, their_changed, their_client, theirs) = results
        assert (found, changed) == (their_found, their_changed), name
        assert client == their_client, (name, client, their_client)
        assert equal(mine, theirs), name
        if dist.get_rank() == 0:
            weights, tag = "loaded" if changed else "as before", (client or {}).get("tag")
            sys.stdout.write(f"{name}: found {found}, weights {weights}, tag {tag}, steps {mine['counters'][0]}\n")
            sys.stdout.flush()


def _try(engine: Any, folder: str, arguments: dict[str, Any]) -> tuple[Any, Any]:
    try:
        return engine.load_checkpoint(folder, **arguments)
    except (FileNotFoundError, AssertionError):  # a tag that isn't there
        return None, None


def _own(client_state: dict[str, Any] | None) -> dict[str, Any] | None:
    return {key: client_state[key] for key in (*CLIENT_STATE, "tag")} if client_state else None


def move() -> None:
    bucket_engine = install()
    folder = stage(bucket_engine, commits()[:1])
    engine = build(seed=2)
    path, client_state = engine.load_checkpoint(folder)
    assert path is not None
    assert client_state["tag"] == "second"
    assert engine.global_steps == 5
    with saving() as saver:
        engine.save_checkpoint(tempfile.mkdtemp(), tag="moved")
        keep(saver, 6, bucket_engine.saved)
    train(engine, 1)


if __name__ == "__main__":
    deepspeed.init_distributed("gloo")
    {"save": save, "load": load, "move": move}[sys.argv[1]]()
    dist.barrier()
    os._exit(0)

"""Is a run of notus-launch what stock TRL computes, bit for bit?

    python docs/examples/stock_trl/compare.py FOLDER [full] [precomputed] [lora] [--kill]

Trains a tiny Llama on the pairs that the package ships, once by `stock.py` (TRL's own DPOTrainer, its own tokenisation,
no line of ours) and once by `notus-launch --cloud local` (with --kill: killed twice meanwhile), on two ranks of this
machine's CPU, and compares the losses of every micro-step on every rank, the evaluations, and every final weight.
About a minute each. Exit code 1 where anything differs.

It is the computation that is compared, so the data is such that both read it alike; what differs on purpose is in
docs/concepts/exact-resume.md.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from checkpoints.run_log.event_kinds import Evaluated
from checkpoints.run_log.event_log import of_kind, read_events
from checkpoints.run_log.metrics import read_metrics
from checkpoints.run_log.run_record import open_run
from checkpoints.storage.base import Store
from trainer.model.builtin_models import make_tiny_llama

HERE = Path(__file__).parent
RANKS = 2
KILLS = ("--preempt", "2", "--no-compare")
CLOCKS = ("runtime", "per_second")
"""What an evaluation says of the time that it took."""


class Differences(NamedTuple):
    """What was compared, and what of it differs."""

    micro_steps: int
    evaluations: int
    tensors: int
    found: tuple[str, ...]


def main(folder: Path, methods: list[str], *, kill: bool) -> int:
    results = {method: compare(method, folder, kill=kill) for method in methods}
    print(json.dumps({method: result._asdict() for method, result in results.items()}, indent=2))
    return int(any(result.found for result in results.values()))


def compare(method: str, folder: Path, *, kill: bool = False) -> Differences:
    """Train both ways in `folder`, and compare."""
    prepare(folder)
    recipe = Path(shutil.copy(HERE / f"{method}.yaml", folder))
    stock = folder / f"stock-{method}"
    stock.mkdir()
    run(
        ["torchrun", f"--nproc-per-node={RANKS}", "--standalone", str(HERE / "stock.py"), recipe.name, stock.name],
        folder,
    )
    bucket = folder / "bucket"
    bucket.mkdir(exist_ok=True)
    launch = ["notus-launch", "--cloud", "local", "--recipe", str(recipe), "--bucket", str(bucket), "--name", method]
    run([*launch, "--processes", str(RANKS), *(KILLS if kill else ())], folder)
    return differences(stock, open_run(str(bucket), method))


def prepare(folder: Path) -> None:
    """A model, and pairs in TRL's conversational format."""
    if (folder / "pairs.jsonl").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    make_tiny_llama(folder / "model")
    lines = (files("trainer") / "builtin/tiny-preferences.jsonl").read_text().splitlines()
    with (folder / "pairs.jsonl").open("w") as file:
        for row in map(json.loads, lines):
            turns = {"prompt": [{"role": "user", "content": row["instruction"]}]}
            turns |= {
                name: [{"role": "assistant", "content": row[f"{name}_response"]}] for name in ("chosen", "rejected")
            }
            file.write(json.dumps(turns) + "\n")


def run(command: list[str], folder: Path) -> None:
    """Both on the CPU, with one thread a rank: a sum over several threads has another order."""
    on_cpu = {
        "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
        "HF_DATASETS_CACHE": str(folder / "datasets"), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    subprocess.run(command, cwd=folder, env={**os.environ, **on_cpu}, stdout=sys.stderr, check=True)


def differences(stock: Path, ours: Store) -> Differences:
    """Of what `stock.py` left in a folder and of a finished run."""
    found: list[str] = []
    losses = {(line.rank, line.step): line.values["losses_hex"] for line in read_metrics(ours)}
    compared = 0
    for rank in range(RANKS):
        theirs = [step["losses"] for step in json.loads((stock / f"rank-{rank}.json").read_text()) if step["losses"]]
        mine = [losses[key] for key in sorted(losses) if key[0] == rank]
        found += [] if len(theirs) == len(mine) else [f"rank {rank}: {len(theirs)} and {len(mine)} steps"]
        for step, (one, other) in enumerate(zip(theirs, mine, strict=False), 1):
            compared += len(one)
            found += [] if one == other else [f"step {step} on rank {rank}: losses {one} and {other}"]
    evaluations = [metrics_of(line) for line in json.loads((stock / "evaluations.json").read_text())]
    by_step: dict[int, dict[str, float]] = {}
    for _, event in of_kind(read_events(ours), Evaluated):  # one after a kill is made again, and has to be the same
        metrics = metrics_of(event.metrics)
        found += [] if by_step.setdefault(event.step, metrics) == metrics else [f"two evaluations of step {event.step}"]
    noted = list(by_step.values())
    found += [] if len(evaluations) == len(noted) else [f"{len(evaluations)} and {len(noted)} evaluations"]
    for one, other in zip(evaluations, noted, strict=False):
        found += [f"{name}: {one.get(name)} and {other.get(name)}" for name in one if one[name] != other.get(name)]
    weights = weights_of(stock / "final"), fetched(ours, stock.parent / f"{stock.name}-ours")
    found += [f"weights {name} in one only" for name in weights[0].keys() ^ weights[1].keys()]
    shared = sorted(weights[0].keys() & weights[1].keys())
    found += [f"weights {name} differ" for name in shared if not same(weights[0][name], weights[1][name])]
    return Differences(compared, len(noted), len(shared), tuple(found))


def metrics_of(logged: dict[str, Any]) -> dict[str, float]:
    """Of an evaluation, without its clock, its epoch and its step."""
    return {
        name: value
        for name, value in logged.items()
        if name.startswith("eval_") and not any(clock in name for clock in CLOCKS)
    }


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def fetched(ours: Store, folder: Path) -> dict[str, torch.Tensor]:
    """The finished model's weights."""
    folder.mkdir(exist_ok=True)
    for entry in ours.list("final"):
        if entry.key.endswith(".safetensors"):
            (folder / Path(entry.key).name).write_bytes(ours.get(entry.key).data)
    return weights_of(folder)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--kill"]
    if not words:
        sys.exit(__doc__)
    sys.exit(main(Path(words[0]).resolve(), words[1:] or ["full", "precomputed", "lora"], kill="--kill" in sys.argv))

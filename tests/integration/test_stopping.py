"""The ends of an attempt, a piece at a time: what whole runs hit only by chance."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from checkpoints.errors import Fenced, NotExact
from checkpoints.snapshot.state_tree import digest
from checkpoints.storage.object_store import ObjectStore
from trainer.config.recipe import load_recipe
from trainer.runtime.attempt_dir import Scratch
from trainer.supervisor.supervisor import Supervisor


def test_a_stop_in_an_evaluation_makes_up_for_the_save_that_was_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The save before the evaluation was skipped, because an upload was on its way: the stop saves that very state."""
    from trl import DPOTrainer

    from trainer.checkpointing.save_callback import EvaluationStopped
    from trainer.training.dpo_trainer import NotusDPOTrainer

    def stopped(self: DPOTrainer) -> None:
        torch.rand(3)  # an evaluation draws
        raise EvaluationStopped

    monkeypatch.setattr(DPOTrainer, "_evaluate", stopped)
    trainer: Any = object.__new__(NotusDPOTrainer)
    trainer.control, trainer.model = SimpleNamespace(should_save=False), None
    trainer._metrics = {"eval": {"loss": [1.0]}}
    phases: list[str] = []
    saved: list[torch.Tensor] = []
    trainer.hooks = SimpleNamespace(announce=phases.append, save=lambda: saved.append(torch.random.get_rng_state()))
    before = torch.random.get_rng_state()
    assert trainer._evaluate() == {}
    assert len(saved) == 1
    assert saved[0].equal(before)
    assert torch.random.get_rng_state().equal(before)
    assert trainer._metrics["eval"] == {}
    assert phases == ["evaluating", "training"]


def test_a_drain_ends_with_the_uploads_or_when_a_successor_took_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor: Any = Supervisor(
        load_recipe("tiny-dpo"), "tiny-dpo", run="r", bucket=str(tmp_path), store=ObjectStore.memory(),
        scratch=Scratch(tmp_path), processes=2,
    )  # fmt: skip
    looks = iter([True] * 3)
    monkeypatch.setattr("trainer.supervisor.supervisor.any_descendant", lambda word: next(looks, False))
    supervisor._upkeep = SimpleNamespace(fenced=None)
    assert supervisor._drain_uploaders() is None
    assert next(looks, None) is None, "as long as there are uploads"
    monkeypatch.setattr("trainer.supervisor.supervisor.any_descendant", lambda word: True)
    supervisor._upkeep = SimpleNamespace(fenced=Fenced("attempt 2 has taken over"))
    outcome = supervisor._drain_uploaders()
    assert (outcome.kind, outcome.message) == ("fenced", "attempt 2 has taken over")


def test_other_weights_than_those_that_were_trained_with_are_refused() -> None:
    from trainer.checkpointing.training_state import check_recomputed

    weights = [torch.arange(6, dtype=torch.bfloat16), torch.ones(3)]
    saved = [np.frombuffer(digest(tensor), dtype=np.uint8) for tensor in weights]
    check_recomputed(weights, saved)
    weights[0][5] += 1
    with pytest.raises(NotExact, match="differ from those used in training"):
        check_recomputed(weights, saved)


def test_ranks_that_nobody_saved_draw_numbers_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.checkpointing import training_state

    def trees(rank: int) -> dict[str, Any]:
        monkeypatch.setattr("torch.distributed.get_rank", lambda: rank)
        made = {"rng": "as saved", "recomputed": [], "cursor": {"seed": 42, "step": 7}}
        training_state.adapt_to_world_size(made, saved_by=2)
        assert "recomputed" not in made
        return made

    before = torch.random.get_rng_state()
    assert trees(1)["rng"] == "as saved"
    first, again, other = trees(2)["rng"], trees(2)["rng"], trees(3)["rng"]
    assert first["torch"].equal(again["torch"])
    assert not first["torch"].equal(other["torch"])
    assert first["python"] != other["python"]
    assert torch.random.get_rng_state().equal(before)


def test_loader_processes_live_through_a_sigterm() -> None:
    """A machine that shuts down sends it to everybody, and a rank needs its batches until the step at which it saves."""
    from trainer.training.dpo_trainer import SigtermSafeCollator

    loader: Any = torch.utils.data.DataLoader(
        range(200), batch_size=1, num_workers=2, collate_fn=SigtermSafeCollator(list)
    )
    batches = iter(loader)
    for _ in batches._workers:  # one batch of each: a process that has made none may not have heard of it yet
        next(batches)
    for process in batches._workers:
        os.kill(process.pid, signal.SIGTERM)
    assert len(list(batches)) == 198

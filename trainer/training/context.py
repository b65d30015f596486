"""What an attempt on one rank starts from. Collected by `trainer.training.worker` during the imports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trainer.build_cache.deepspeed_ops import OpsCache
from trainer.checkpointing.rank_checkpointer import Claim
from trainer.config.global_batch import Batch
from trainer.config.recipe import Recipe
from trainer.data.token_cache import TokenCache
from trainer.metrics.past_rows import History
from trainer.runtime.attempt_dir import Phase, Progress
from trainer.runtime.startup_phases import Count, PhaseReport
from trainer.training.reference_log_probs import ChunkPrefetch


@dataclass(frozen=True, kw_only=True)
class AttemptContext:
    """Everything that is settled before torch is imported."""

    recipe: Recipe
    batch: Batch
    revision: str | None
    """The base model's, on the Hub."""
    claim: Claim
    tokens: TokenCache
    ops: OpsCache
    report: PhaseReport | None
    """Only on rank 0; the other ranks report nothing."""
    trackers: list[str]
    """The trackers that this rank reports to."""
    history: History | None
    """The earlier attempts' rows, if there are trackers to show them."""
    log_probs: ChunkPrefetch | None
    """Only if the reference's log-probabilities are precomputed."""

    def announce(self, phase: Phase, count: Callable[[], Count] = Count) -> None:
        """Report a phase before training; `count` returns its progress."""
        if self.report is not None:
            self.report.begin(Progress(phase=phase), count)

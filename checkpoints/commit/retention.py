"""Committed checkpoints, and which of them are kept."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import AwareDatetime, Field

from checkpoints.records.manifest import Key, Record, Sha256


class Score(Record):
    """The evaluation score of a checkpoint."""

    metric: str
    value: float = Field(allow_inf_nan=False, description="higher is better: a loss is negated")


class Commit(Record):
    """A committed checkpoint, as HEAD names it."""

    step: int = Field(ge=0)
    epoch: int = Field(ge=1)
    manifest: Key
    sha256: Sha256
    size_bytes: int = Field(ge=0)
    committed_at: AwareDatetime
    pinned: bool = Field(default=False, description="a user wants to keep it")
    score: Score | None = Field(default=None, description="from its evaluation")


class Retention(Record):
    """Which checkpoints HEAD keeps, besides the pinned ones."""

    newest: int = Field(ge=1)
    every_steps: int | None = Field(default=None, description="also those at multiples of this many steps")
    best: bool = Field(default=False, description="also the one with the highest score")

    def kept(self, commits: Sequence[Commit]) -> tuple[Commit, ...]:
        """Those of `commits` to keep, newest first."""
        best = best_of(commits) if self.best else None
        return tuple(
            commit
            for age, commit in enumerate(commits)
            if age < self.newest
            or commit.pinned
            or commit is best
            or (self.every_steps is not None and commit.step % self.every_steps == 0)
        )


def best_of(commits: Sequence[Commit]) -> Commit | None:
    """The checkpoint with the highest score, the newest if several are equal; None if there are no scores.

    Uses the most recent metric: values of different metrics can't be compared.
    """
    scored = [(commit.score, commit) for commit in commits if commit.score is not None]
    if not scored:
        return None
    metric = max(scored, key=lambda pair: pair[1].step)[0].metric
    comparable = [pair for pair in scored if pair[0].metric == metric]
    return max(comparable, key=lambda pair: (pair[0].value, pair[1].step))[1]

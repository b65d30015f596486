"""The attempt's folder on the local disk, through which the supervisor, the ranks and a local launcher communicate.

attempt.json    from the supervisor: HEAD as this attempt claimed it
progress.json   from rank 0, each step
outcome-rR.json from rank R, once, at its end
result.json     from the supervisor, last: the outcome of the attempt
stop            from the supervisor: a request to save and stop
log.txt         the output of torchrun and the ranks
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from checkpoints.commit.head import Head
from checkpoints.records.manifest import parse
from checkpoints.run_log.causes import AttemptOutcome
from checkpoints.run_log.event_kinds import AnyLimit

Phase = Literal[
    "starting",
    "importing",
    "compiling",
    "preparing data",
    "loading the model",
    "reference log-probs",
    "restoring",
    "training",
    "saving",
    "evaluating",
    "exporting",
]
BEFORE_TRAINING: frozenset[Phase] = frozenset(
    ("starting", "importing", "compiling", "preparing data", "loading the model", "reference log-probs", "restoring")
)
"""Phases in which an attempt has nothing of its own to save yet."""


class Progress(BaseModel):
    """The progress of rank 0."""

    model_config = ConfigDict(frozen=True)

    phase: Phase
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    done: int = 0
    """The phase's progress, see `trainer.runtime.startup_phases`."""
    of: int = 0
    """Its total; 0 = not known."""
    moved: int = 0
    """Changes while a phase before training makes progress; the number itself means nothing."""
    save_s: float | None = None
    """Duration of a save, as measured on rank 0; for the supervisor, not for the heartbeat."""


class Outcome(BaseModel):
    """How a rank ended, as it reports itself: torchrun's exit code is 1 for nearly everything."""

    model_config = ConfigDict(frozen=True)

    kind: AttemptOutcome
    step: int = 0
    message: str = ""
    hint: str = ""
    progressed: bool = False
    """Has the attempt committed anything?"""
    gave_up: bool = False
    """For a failure: it was one failed start too many, and the run ends (`trainer.supervisor.restart_policy`)."""
    limit: AnyLimit | None = None
    """For a stop: the limit that the run has reached."""


class Scratch:
    """Typed access to an attempt's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def stop(self) -> Path:
        return self.folder / "stop"

    @property
    def tensorboard(self) -> Path:
        return self.folder / "tensorboard"

    @property
    def work(self) -> Path:
        """Folder for base models, engine files and exports of this attempt."""
        return self.folder / "work"

    def write_head(self, head: Head) -> None:
        replace_file(self.folder / "attempt.json", head.to_json())

    def read_head(self) -> Head | None:
        """The claim of this attempt, or None before there is one."""
        try:
            return parse(Head, (self.folder / "attempt.json").read_bytes(), "attempt.json")
        except FileNotFoundError:
            return None

    def write_progress(self, progress: Progress) -> None:
        replace_file(self.folder / "progress.json", progress.model_dump_json().encode())

    def read_progress(self) -> Progress:
        try:
            return Progress.model_validate_json((self.folder / "progress.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return Progress(phase="starting")

    def write_outcome(self, rank: int, outcome: Outcome) -> None:
        replace_file(self.folder / f"outcome-r{rank}.json", outcome.model_dump_json().encode())

    def write_result(self, outcome: Outcome) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(self.folder / "result.json", outcome.model_dump_json().encode())

    def read_result(self) -> Outcome | None:
        """How the attempt ended; None if it was killed."""
        try:
            return Outcome.model_validate_json((self.folder / "result.json").read_bytes())
        except FileNotFoundError:
            return None

    def read_outcomes(self) -> dict[int, Outcome]:
        """The outcomes of all ranks that have one, by rank."""
        paths = {int(path.stem.removeprefix("outcome-r")): path for path in self.folder.glob("outcome-r*.json")}
        return {rank: Outcome.model_validate_json(paths[rank].read_bytes()) for rank in sorted(paths)}


def replace_file(path: Path, data: bytes) -> None:
    """Replace a small file atomically, so that a reader never sees a partial one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(path)

"""The attempt's folder on the local disk: how the supervisor, the ranks and the launcher of one machine talk.

attempt.json    from the supervisor: HEAD as this attempt claimed it
progress.json   from rank 0, each step
outcome-rR.json from rank R, once, at its end
result.json     from the supervisor, last: the outcome of the attempt
stop            from the supervisor: please save and stop
log.txt         what torchrun and the ranks print
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
"""An attempt has nothing of its own to save yet."""


class Progress(BaseModel):
    """Where rank 0 is."""

    model_config = ConfigDict(frozen=True)

    phase: Phase
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    done: int = 0
    """What the phase counts, see `trainer.runtime.startup_phases`; of how many, where that is known."""
    of: int = 0
    moved: int = 0
    """Changes while anything of a phase before the training moves; the number itself says nothing."""
    save_s: float | None = None
    """A whole save takes, as measured on rank 0; for the supervisor, not for the heartbeat."""


class Outcome(BaseModel):
    """How a rank ended, in its own words: torchrun's exit code is 1 for nearly everything."""

    model_config = ConfigDict(frozen=True)

    kind: AttemptOutcome
    step: int = 0
    message: str = ""
    hint: str = ""
    progressed: bool = False
    """Has the attempt committed anything?"""
    gave_up: bool = False
    """Of a failure: it was one failed start too many, and the run ends (`trainer.supervisor.restart_policy`)."""
    limit: AnyLimit | None = None
    """Of a stop: the limit that the run has reached."""


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
        """For base models, engine files and exports of this attempt."""
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
        """The outcomes of all ranks that had one, by rank."""
        paths = {int(path.stem.removeprefix("outcome-r")): path for path in self.folder.glob("outcome-r*.json")}
        return {rank: Outcome.model_validate_json(paths[rank].read_bytes()) for rank in sorted(paths)}


def replace_file(path: Path, data: bytes) -> None:
    """Replace a small file in one step, so that a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(path)

"""A W&B for tests, put on PYTHONPATH: what was logged goes to a file, which is also what its server remembers.

Away if FAKE_WANDB_AWAY is set. Each line has the call and what the run's diary knew of evaluations at that moment.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

run: Run | None = None


class CommError(Exception):
    """As W&B's own, no OSError."""


class Run:
    """One attempt's end of a run."""

    def __init__(self, calls: Path) -> None:
        self._calls = calls
        self.url = "https://wandb.test/run"
        before = [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []
        self.step = max((call["step"] + 1 for call in before if call["what"] == "log"), default=0)
        self._tell("init", id=os.environ["WANDB_RUN_ID"], resume=os.environ["WANDB_RESUME"])

    def define_metric(self, name: str, **options: Any) -> None:
        self._tell("define_metric", name=name, **options)

    def log(self, row: dict[str, Any], *, step: int, commit: bool) -> None:
        self._tell("log", step=step, commit=commit, row=row, evaluations=self._evaluations())
        self.step = step + 1

    def finish(self) -> None:
        self._tell("finish")

    def _evaluations(self) -> list[int]:
        folder = Path(os.environ["NOTUS_BUCKET"].removeprefix("file://")) / os.environ["NOTUS_RUN"] / "events"
        events = [json.loads(path.read_text()) for path in folder.glob("*.json")]
        return sorted(event["data"]["step"] for event in events if event["kind"] == "evaluated")

    def _tell(self, what: str, **more: Any) -> None:
        with self._calls.open("a") as file:
            file.write(json.dumps({"what": what, **more}) + "\n")


def init(**options: Any) -> Run:
    global run
    if os.environ.get("FAKE_WANDB_AWAY"):
        raise CommError("Run initialization has timed out after 90.0 sec.")
    run = Run(Path(os.environ["FAKE_WANDB_CALLS"]))
    return run

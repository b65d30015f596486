"""What the NOTUS strategy answers where SkyPilot asks whether a job that failed shall go on."""

from __future__ import annotations

from pathlib import Path

from checkpoints.run_log.event_kinds import AttemptEnded, AttemptStarted
from checkpoints.run_log.event_log import Diary
from checkpoints.run_log.run_record import open_run
from tests.support.sky_process import run

ASK = """
import json, sys
import sky
from launcher.sky.plugin import NotusStrategy

strategy = object.__new__(NotusStrategy)
strategy._task = sky.Task(envs={"NOTUS_BUCKET": "HERE", "NOTUS_RUN": "night", "NOTUS_RECIPE": "tiny-dpo"})
asked = {"killed": [137], "preempted": [75], "failed": [1], "your error": [2], "no code": None}
print(json.dumps({what: strategy.should_restart_on_failure(exit_codes=codes) for what, codes in asked.items()}))
"""


def test_only_the_trainers_own_last_word_ends_a_job(tmp_path: Path, sky_environment: dict[str, str]) -> None:
    bucket = str(tmp_path)
    store = open_run(bucket, "night")
    Diary(store, 1).write(AttemptStarted())
    ask = ASK.replace("HERE", bucket)
    assert run(ask, sky_environment) == {
        "killed": True,
        "preempted": True,
        "failed": True,
        "your error": False,
        "no code": True,
    }
    Diary(store, 1).write(AttemptEnded(outcome="failed", step=9000))
    assert not run(ask, sky_environment)["failed"], "it has had its last word"

"""How the NOTUS strategy has SkyPilot terminate a machine, also one that never gets ready."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path

from tests.support.sky_process import run

RELEASE = """
import asyncio, json
from sky import core, exceptions
from launcher.sky.plugin import NotusStrategy

strategy = object.__new__(NotusStrategy)
strategy.cluster_name, strategy.pool = "run-1", None

def release(error):
    asked = []
    def down(name, **how):
        asked.append(name)
        if error is not None:
            raise error
    core.down = down
    try:
        asyncio.run(strategy.release())
    except RuntimeError as failed:
        return [asked, str(failed)]
    return [asked, None]

print(json.dumps({
    "terminated": release(None),
    "gone already": release(exceptions.ClusterDoesNotExist("run-1")),
    "refused": release(RuntimeError("Failed to terminate instances:\\n403 forbidden")),
}))
"""


def test_a_refused_release_is_told_at_once_in_the_clouds_words(sky_environment: dict[str, str]) -> None:
    told = run(RELEASE, sky_environment)
    assert told["terminated"] == [["run-1"], None]
    assert told["gone already"] == [["run-1"], None]
    assert told["refused"] == [["run-1"], "Failed to terminate instances: 403 forbidden"]


PROVISIONING = """
import asyncio, json
from types import SimpleNamespace
import sky
from sky import global_user_state
from sky.jobs import recovery_strategy
from launcher.sky import plugin
from launcher.sky.plugin import NotusStrategy, LaunchParams, expand

plugin.PROVISION_S, plugin.ASK_S = 0.2, 0.0
plugin.time = SimpleNamespace(monotonic=lambda: 0.0)  # what is left is left, however slow this machine is
known = expand([sky.Resources(infra="gcp/us-central1", accelerators="A100:8", use_spot=True)])[0]

async def for_hours(self, **how):
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        cancelled.append(True)
        raise

recovery_strategy.StrategyExecutor._launch = for_hours

def launched(machine, most_s=3600.0):
    strategy = object.__new__(NotusStrategy)
    strategy.cluster_name, strategy.job_id, strategy._recovering, strategy._opened = "run-1", 1, False, None
    strategy._task, strategy._resources = sky.Task(run="true"), known
    strategy._machine = lambda: machine

    async def release():
        released.append(True)

    strategy.release = release
    return asyncio.run(strategy.launch_in(list(known)[:1], LaunchParams(3.0, most_s=most_s)))

cancelled, released = [], []
from datetime import UTC, datetime
lost = launched((list(known)[0], datetime.now(UTC)))
refused = launched(None)
plugin.PROVISION_S = 3600.0
cut = launched((list(known)[0], datetime.now(UTC)), most_s=0.2)
print(json.dumps({
    "lost": [type(lost).__name__, lost.message, lost.taken],
    "refused": [type(refused).__name__, refused.refused[0].message],
    "cut": [type(cut).__name__, cut.message],
    "cancelled": len(cancelled), "released": len(released),
}))
"""

BUCKET = """
import asyncio, json
from sky import exceptions
from checkpoints.errors import StoreError
from launcher.sky import plugin
from launcher.sky.plugin import NotusStrategy

plugin.BUCKET_RETRY_S, plugin.RELEASE_AFTER, plugin.BUCKET_TRIES = 0.0, 3, 7

class Conductor:
    closed = []
    async def close(self, why):
        self.closed.append(tries)

    async def recover(self):
        global tries
        tries += 1
        raise StoreError("no route to the bucket")

tries = 0
strategy = object.__new__(NotusStrategy)
strategy._opened, strategy._recovering = Conductor(), True
strategy._controller = lambda: strategy._opened
try:
    asyncio.run(strategy._within_limits(lambda conductor: conductor.recover()))
except exceptions.ManagedJobReachedMaxRetriesError as error:
    print(json.dumps({"tries": tries, "closed": Conductor.closed, "said": str(error)}))
"""


def test_a_machine_that_never_gets_ready_is_cancelled_and_given_back(sky_environment: dict[str, str]) -> None:
    home = Path(sky_environment["HOME"])
    shutil.copytree(files("launcher") / "data/catalogs", home / ".sky/catalogs")  # type: ignore[arg-type]
    told = run(PROVISIONING, sky_environment)
    assert told["lost"][0] == "Lost", "it is booked, and the conductor gives it back"
    assert told["lost"][1].startswith("SkyPilot had no machine ready within")
    assert told["lost"][2] is False, "its cloud did not take it"
    assert told["refused"][0] == "Refused"
    assert told["cut"][0] == "Lost", "what the run can pay, or wait for, is less than SkyPilot may take"
    assert (told["cancelled"], told["released"]) == (3, 1), "what nobody knows of is terminated, too"


def test_a_recovery_without_the_bucket_gives_the_machine_back_and_ends(sky_environment: dict[str, str]) -> None:
    told = run(BUCKET, sky_environment)
    assert told["closed"] == [3, 6], "again and again"
    assert told["tries"] == 7
    assert "bucket" in told["said"]

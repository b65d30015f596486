"""How the NOTUS strategy asks SkyPilot for machines: what is asked, who refused, and what went wrong."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path

from tests.support.sky_process import run

SEARCH = """
import asyncio, json, time
from types import SimpleNamespace
import sky
from sky import exceptions, global_user_state
from sky.client import sdk
from sky.jobs import recovery_strategy, state
from sky.utils import status_lib
from launcher.sky import plugin
from launcher.sky.plugin import NotusStrategy, LaunchParams, expand

KIND = global_user_state.ClusterEventType.STATUS_CHANGE
WARNING = "W 11-26 03:50:40.971 PID=1 instance_utils.py:155] Got return code 'ZONE_RESOURCE_POOL_EXHAUSTED'"
state.set_job_infra = lambda *args, **kwargs: None
known = expand([sky.Resources(infra="gcp/us-central1", accelerators="A100:8", use_spot=True)])[0]
zones = list(known)
log = []

def event(reason):
    global_user_state.add_cluster_event("run-1", status_lib.ClusterStatus.INIT, reason, KIND)

def ask(place, has):
    handle = SimpleNamespace(launched_resources=known[place], cached_cluster_info=None)
    global_user_state.add_or_update_cluster("run-1", handle, None, ready=False)
    event("Provisioning on gcp in us-central1")
    log.append(f"Launching on GCP us-central1 ({place.zone}).")
    time.sleep(1)  # SkyPilot's events have whole seconds
    if has:
        event("Instances launched on gcp in us-central1")
    else:
        log.append(WARNING)

def search(*has, fails=None, starts=True):
    strategy = object.__new__(NotusStrategy)
    strategy.cluster_name, strategy.job_id, strategy._recovering = "run-1", 1, True
    strategy._task = sky.Task(run="true")
    strategy._resources = known
    log.clear()

    async def stream(self, request_id, task):
        for place, there in zip(zones, has):
            ask(place, there)
        if fails is not None:
            raise fails

    async def launch(self, **how):
        try:
            await self._await_launch_request("r", None)
        except Exception:
            pass
        else:
            if starts:
                return 7.0
        global_user_state.remove_cluster("run-1", terminate=True)
        raise exceptions.ManagedJobReachedMaxRetriesError("no")

    recovery_strategy.StrategyExecutor._await_launch_request = stream
    recovery_strategy.StrategyExecutor._launch = launch
    sdk.stream_and_get = lambda request_id, output_stream: output_stream.write(chr(10).join(log))
    answer = asyncio.run(strategy.launch_in(zones, LaunchParams(3.0, "w7")))
    told = {"NOTUS_HOURS_TO_PREEMPTION": "3", "NOTUS_PREDECESSOR_GONE": "w7"}
    assert dict(strategy._task.envs) == told | {"NOTUS_SPENT_USD": "0.0000", "NOTUS_PRICE_USD_H": "0.0000"}
    return [
        type(answer).__name__,
        answer.place.zone if hasattr(answer, "place") else None,
        [[place.zone, said] for place, said in answer.refused],
        getattr(answer, "message", None),
    ]

out = exceptions.ResourcesUnavailableError("x", failover_history=[exceptions.ResourcesUnavailableError("all zones")])
print(json.dumps({
    "zones": [place.zone for place in zones],
    "up": search(False, True),
    "not started": search(False, True, starts=False),
    "died in its set-up": search(True, fails=RuntimeError("connection reset")),
    "broken": search(fails=RuntimeError("no wheel")),
    "sold out": search(False, False, fails=out),
}))
"""

SUBMISSION = """
import asyncio, contextlib, json
import sky
from sky.client import sdk
from sky.jobs import scheduler
from launcher.sky.plugin import NotusStrategy, LaunchParams, expand

known = expand([sky.Resources(infra="gcp/us-central1", accelerators="A100:8", use_spot=True)])[0]

@contextlib.asynccontextmanager
async def slot(*args):
    yield

scheduler.scheduled_launch = slot
sdk.api_start = lambda: None

def strategy(cluster):
    made = object.__new__(NotusStrategy)
    made.cluster_name, made.job_id, made._recovering = cluster, 1, False
    made.starting = made.starting_lock = made.starting_signal = made.pool = made.file_mounts_blob_id = None
    made._task = sky.Task(run="true")
    made.dag = made._task
    made._resources = known
    made._cleanup_cluster = lambda: None
    return made

def launch(dag, *, cluster_name, **how):
    raise errors[cluster_name]

sdk.launch = launch
errors = {
    "a-1": RuntimeError("the API server\\nis not healthy"),
    "b-1": ConnectionError(),
    "c-1": OSError(28, "No space left on device"),
}

async def both():
    return await asyncio.gather(*(strategy(name).launch_in(list(known), LaunchParams(3.0)) for name in errors))

answers = asyncio.run(both())
print(json.dumps({
    "zones": [place.zone for place in known],
    **{name: [[place.zone, said] for place, said in answer.refused] for name, answer in zip(errors, answers)},
}))
"""

REGIONS = """
import asyncio, json
import sky
from sky import exceptions
from sky.jobs import recovery_strategy
from launcher.sky.plugin import NotusStrategy, LaunchParams, expand

def asked(*wanted):
    strategy = object.__new__(NotusStrategy)
    strategy.cluster_name, strategy.job_id, strategy._recovering = "run-1", 1, True
    strategy._task = sky.Task(run="true")
    strategy._resources = expand([sky.Resources(infra=i, accelerators="A100:8", use_spot=spot) for i, spot in wanted])[0]
    requests = []

    async def launch(self, **how):
        requests.append([[str(one.cloud).lower(), one.region, one.zone] for one in self._task.resources])
        raise exceptions.ManagedJobReachedMaxRetriesError("no")

    recovery_strategy.StrategyExecutor._launch = launch
    as_the_policy = sorted(strategy._resources, key=lambda place: (place.price_usd_per_hour, place.where))
    asyncio.run(strategy.launch_in(as_the_policy, LaunchParams(3.0)))
    return requests

print(json.dumps({
    "a region": asked(("gcp/us-central1", True), ("lambda", False)),
    "a zone": asked(("gcp/us-central1/us-central1-b", True)),
    "anywhere": asked(("gcp", True), ("lambda", False)),
}))
"""


def test_a_search_tells_who_was_asked_who_refused_and_what_was_lost(sky_environment: dict[str, str]) -> None:
    home = Path(sky_environment["HOME"])
    shutil.copytree(files("launcher") / "data/catalogs", home / ".sky/catalogs")  # type: ignore[arg-type]
    told = run(SEARCH, sky_environment)
    first, second = told["zones"][:2]
    said = "Got return code 'ZONE_RESOURCE_POOL_EXHAUSTED'"
    assert told["up"] == ["Up", second, [[first, said]], None]
    assert told["not started"] == ["Lost", second, [[first, said]], ""]
    assert told["died in its set-up"] == ["Lost", first, [], "SkyPilot: connection reset"]
    assert told["broken"] == ["Refused", None, [[zone, "SkyPilot: no wheel"] for zone in told["zones"]], None]
    assert told["sold out"][2] == [[zone, said] for zone in told["zones"]], "of a region that was asked in vain"


def test_what_ends_a_request_at_its_submission_is_told(sky_environment: dict[str, str]) -> None:
    """With SkyPilot's own `_launch`, which only logs such an error. Three jobs of one controller at once."""
    home = Path(sky_environment["HOME"])
    shutil.copytree(files("launcher") / "data/catalogs", home / ".sky/catalogs")  # type: ignore[arg-type]
    told = run(SUBMISSION, sky_environment)
    for job, said in {
        "a-1": "SkyPilot: the API server is not healthy",
        "b-1": "SkyPilot: ConnectionError",
        "c-1": "SkyPilot: [Errno 28] No space left on device",
    }.items():
        assert told[job] == [[zone, said] for zone in told["zones"]]


def test_a_task_of_one_region_is_asked_for_in_no_other(sky_environment: dict[str, str]) -> None:
    home = Path(sky_environment["HOME"])
    shutil.copytree(files("launcher") / "data/catalogs", home / ".sky/catalogs")  # type: ignore[arg-type]
    told = run(REGIONS, sky_environment)
    assert told["a region"] == [[["gcp", "us-central1", None], ["lambda", None, None]]]
    assert told["a zone"] == [[["gcp", "us-central1", "us-central1-b"]]]
    assert told["anywhere"] == [[["gcp", None, None], ["lambda", None, None]]]

"""SkyPilot itself parses our tasks. In a process of its own: importing it writes below HOME."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path

import pytest

from launcher.sky.example_tasks import LADDER, shipped_tasks
from launcher.sky.setup.doctor import fix
from tests.support.sky_process import run
from trainer.config.clouds import CLOUDS

PARSE = """
import json, sys
import sky, yaml
config = yaml.safe_load(open(sys.argv[1]))
secrets = list(config["secrets"])
task = sky.Task.from_yaml_config(
    config,
    env_overrides=[("NOTUS_BUCKET", "gs://b")],
    secrets_overrides=[(name, "x") for name in secrets],
)
print(json.dumps({
    "resources": [
        [str(r.cloud).lower(), r.use_spot, r.accelerators, r.job_recovery, r.disk_size] for r in task.resources
    ],
    "ordered": isinstance(task.resources, list),
    "envs": dict(task.envs),
    "secrets": sorted(task.secrets),
    "declared": sorted(secrets),
    "run": task.run,
    "setup": task.setup,
}))
"""


@pytest.mark.parametrize("name", sorted(shipped_tasks()))
def test_skypilot_reads_what_we_mean(name: str, sky_environment: dict[str, str]) -> None:
    path = Path(__file__).parents[2] / "sky_tasks" / name
    done = subprocess.run(
        [sys.executable, "-c", PARSE, str(path)], env=sky_environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    task = json.loads(done.stdout.splitlines()[-1])
    recovery = {"strategy": "EAGER_NEXT_REGION", "max_restarts_on_errors": 0, "recover_on_exit_codes": [75]}
    wanted = []
    for candidate in LADDER:
        gpu, count = candidate.gpus.split(":")
        wanted.append([candidate.cloud, candidate.spot, {gpu: int(count)}, recovery, 512])
    assert task["ordered"]
    assert task["resources"] == wanted
    assert task["secrets"] == task["declared"]
    assert task["envs"]["NOTUS_BUCKET"] == "gs://b"
    assert 'notus-train "$NOTUS_RECIPE" --run "$NOTUS_RUN" --bucket "$NOTUS_BUCKET"' in task["run"]
    assert "constraints.txt" in task["setup"]


EVENTS = """
import asyncio, json, time
from types import SimpleNamespace
from datetime import UTC, datetime, timedelta
from sky import global_user_state
from sky.utils import status_lib
from launcher.policy.model import Place
from launcher.sky import plugin
from launcher.sky.strategy.provision_log import requested_at
from launcher.sky.plugin import NotusStrategy, Search, cluster_events

began = datetime.now(UTC)
kind = global_user_state.ClusterEventType.STATUS_CHANGE
for when, status, reason in [
    (0, "INIT", "Provisioning on gcp in us-central1"),
    (149, "INIT", "Provisioning on lambda in us-east-1"),
    (200, "UP", "Cluster successfully provisioned with 1 nodes"),
]:
    handle = SimpleNamespace(launched_resources=None)
    global_user_state.add_or_update_cluster("run-1", handle, None, ready=status == "UP")
    global_user_state.add_cluster_event(
        "run-1", status_lib.ClusterStatus(status), reason, kind, transitioned_at=int(began.timestamp()) + when
    )

restarted = object.__new__(NotusStrategy)  # an hour later
restarted.cluster_name, restarted._resources, restarted._search = "run-1", {}, Search(began=began + timedelta(hours=1))
plugin.place_of = lambda resources: Place("lambda", "us-east-1", None, "A100:8", False, 16.0)
print(json.dumps({
    "found_s": (asyncio.run(restarted.machine())[1] - began).total_seconds(),
    "later_s": (requested_at(cluster_events("run-1"), began) - began).total_seconds(),
    "unknown": cluster_events("run-2"),
}))
"""

GONE = """
import asyncio, json
from sky import exceptions
from sky.backends import backend_utils
from sky.utils.status_lib import ClusterStatus
from launcher.sky.plugin import NotusStrategy

strategy = object.__new__(NotusStrategy)
strategy.cluster_name = "run-1"

def told(status):
    def refresh(name, **how):
        if isinstance(status, Exception):
            raise status
        return status, None
    backend_utils.refresh_cluster_status_handle = refresh
    return asyncio.run(strategy.cloud_says_gone())

print(json.dumps({
    "terminated": told(None),
    "unreachable": told(exceptions.ClusterStatusFetchingError("503")),
    **{status.value: told(status) for status in ClusterStatus},
}))
"""

WATCHERS = """
import asyncio, json
from launcher.sky import plugin
from launcher.sky.plugin import NotusStrategy

class Watched(NotusStrategy):
    def __init__(self, job_id):
        self.job_id, self.ended = job_id, None

    async def _watch(self):
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.ended = "cancelled"
            raise

async def main():
    first, again, other = Watched(1), Watched(1), Watched(2)
    for strategy in (first, other, again):
        assert await strategy.monitor_task() is None
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    told = [first.ended, again.ended, other.ended, sorted(plugin.WATCHING)]
    for task in list(plugin.WATCHING.values()):
        task.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return [*told, sorted(plugin.WATCHING)]

print(json.dumps({"told": asyncio.run(main())}))
"""

TRAITS = """
import json
import sky
from sky import clouds
from sky.clouds.cloud import CloudImplementationFeatures as F
found = {}
for name in ("GCP", "Lambda", "AWS", "RunPod", "Nebius", "Vast", "OCI"):
    cloud = getattr(clouds, name)()
    lacks = cloud._unsupported_features_for_resources(sky.Resources(cloud=cloud))
    found[name] = [F.SPOT_INSTANCE not in lacks, F.AUTODOWN not in lacks, F.HOST_CONTROLLERS not in lacks]
print(json.dumps(found))
"""

PLUGIN = """
import json
from sky.server import plugins
from sky.utils import registry
plugins.load_plugins(plugins.ExtensionContext(plugins.PluginContext.CONTROLLER))
plugins.load_plugins(plugins.ExtensionContext(plugins.PluginContext.CONTROLLER))
import sky
from checkpoints.errors import UserError
from launcher.sky.plugin import expand, limits_of

def refused(environment):
    try:
        limits_of(environment)
    except UserError as error:
        return error.hint

spot = sky.Resources(infra="gcp", accelerators="A100:8", use_spot=True)
places = expand([spot, sky.Resources(infra="lambda", accelerators="A100:8")])[0]
flagged = [sky.Resources(infra="gcp", accelerators="A100-80GB:8", use_spot=False)]
areas = lambda trust: sorted(place.zone for place in expand(flagged, trust_prices=trust)[0])
print(json.dumps({
    "strategy": registry.JOBS_RECOVERY_STRATEGY_REGISTRY.from_str("NOTUS").__name__,
    "places": [[p.cloud, p.region, p.zone, p.gpus, p.spot, p.price_usd_per_hour] for p in places],
    "trusted": areas(False),
    "trusting": areas(True),
    "launchable": all(r.is_launchable() for r in places.values()),
    "refused": refused({"NOTUS_HOURS": "3", "NOTUS_DEADLINE": "tomorrow"}),
    "deadline": limits_of({"NOTUS_HOURS": "3", "NOTUS_DEADLINE": "2026-11-25T08:00"}).deadline.isoformat(),
    "budget": limits_of({"NOTUS_HOURS": "3", "NOTUS_BUDGET_USD": "7.5", "NOTUS_DEADLINE": ""}).budget_usd,
}))
"""


def test_what_each_cloud_can_do_is_what_skypilot_says(sky_environment: dict[str, str]) -> None:
    told = run(TRAITS, sky_environment)
    assert {cloud.label for cloud in CLOUDS.values()} == told.keys()
    for label, (spot, ends_itself, controller) in told.items():
        cloud = next(one for one in CLOUDS.values() if one.label == label)
        assert not cloud.has_spot or spot, label
        assert cloud.hosts_controller == controller, label
        assert ends_itself, "what a machine does whose controller is gone, see docs/concepts/without-a-controller.md"


def test_skypilot_loads_the_strategy_and_knows_every_zone(sky_environment: dict[str, str]) -> None:
    home = Path(sky_environment["HOME"])
    fix(home, {})
    shutil.copytree(files("launcher") / "data/catalogs", home / ".sky/catalogs")  # type: ignore[arg-type]
    found = run(PLUGIN, sky_environment)
    assert found["strategy"] == "NotusStrategy"
    assert found["launchable"]
    assert found["budget"] == 7.5
    assert found["deadline"] == "2026-11-25T08:00:00+00:00"
    assert "ISO time" in found["refused"]
    zones = {(cloud, spot): [] for cloud, _, _, _, spot, _ in found["places"]}
    for cloud, region, zone, gpus, spot, price in found["places"]:
        zones[cloud, spot].append(zone or region)
        assert gpus == "A100:8"
        assert price > 1
    assert len(zones["gcp", True]) == len(set(zones["gcp", True])) > 5
    assert "us-east-1" in zones["lambda", False]
    wrong = ["europe-west4-a", "us-central1-a", "us-central1-c"]  # cards on demand below their own spot price
    assert found["trusted"] == ["asia-southeast1-c", "us-east4-c", "us-east5-a", "us-east5-b"]
    assert found["trusting"] == sorted([*found["trusted"], *wrong])


REFUSED = """
import asyncio, json
import sky
from sky import exceptions
from launcher.sky.plugin import NotusStrategy

def launched(num_nodes=1, **more):
    envs = {"NOTUS_BUCKET": "/nowhere", "NOTUS_RUN": "r", "NOTUS_RECIPE": "tiny-dpo"} | more
    strategy = object.__new__(NotusStrategy)
    strategy._opened, strategy._recovering = None, False
    strategy._task = sky.Task(run="true", envs=envs, num_nodes=num_nodes)
    try:
        asyncio.run(strategy.launch())
    except exceptions.ProvisionPrechecksError as error:
        return [one.message for one in error.reasons]

print(json.dumps([launched(2), launched(NOTUS_DEADLINE="2999-01-01"), launched(NOTUS_BUDGET_USD="-1")]))
"""


def test_the_strategy_refuses_a_task_before_it_asks_for_a_machine(sky_environment: dict[str, str]) -> None:
    """SkyPilot then ends the job as FAILED_PRECHECKS, with these words."""
    (nodes,), (deadline,), (budget,) = run(REFUSED, sky_environment)
    assert "asks for 2 nodes, and a run has one" in nodes
    assert "NOTUS_DEADLINE is '2999-01-01', more than a year from now" in deadline
    assert "NOTUS_BUDGET_USD" in budget


LISTS = """
import asyncio, json, os, pathlib
import sky
from launcher.sky import catalog
from launcher.sky.plugin import NotusStrategy, expand
from launcher.sky.strategy.places import Hourly
from checkpoints.util.clock import FakeClock

path = pathlib.Path(os.environ["HOME"]) / ".sky/catalogs/v8/gcp/vms.csv"
wanted = [sky.Resources(infra="gcp/us-central1", accelerators="A100:8", use_spot=False)]

def written(*changes, twice=False):
    lines = path.read_text().splitlines(keepends=True)
    for number, line in enumerate(lines):
        if "us-central1-a," in line and (line.startswith("a2-highgpu-8g") or ",A100,8" in line):
            cells = line.rstrip().split(",")
            lines[number] = ",".join([*cells[:-2], changes[0], cells[-1]]) + chr(10)
            if twice:
                lines[number] += line
    path.write_text("".join(lines))

def prices():
    return {place.zone: round(place.price_usd_per_hour, 2) for place in expand(wanted)[0]}

out = {"before": prices()}
original = path.read_text()
for name, change, twice in (("zero", "0", False), ("none", "", False), ("negative", "-5", False), ("twice", "20.0", True)):
    path.write_text(original)
    written(change, twice=twice)
    catalog.invalidate_cache()
    sky.catalog.gcp_catalog._df._df = None
    out[name] = prices()

path.write_text(original)
strategy = object.__new__(NotusStrategy)
strategy._wanted, strategy._resources = wanted, {}
strategy._task = sky.Task(run="true", envs={"NOTUS_HOURS": "3"})
clock = FakeClock()
strategy._prices = Hourly(strategy._read_prices, clock)
asked = lambda: {place.zone: round(place.price_usd_per_hour, 2) for place in asyncio.run(strategy.places())}
sky.catalog.gcp_catalog._df._df = None
out["first"] = asked()
written("30.0")
out["at once"] = asked()
clock.sleep(3600)
out["an hour later"] = asked()
print(json.dumps(out))
"""


def test_a_zone_whose_price_is_no_price_is_not_asked_and_a_price_that_rises_is_seen(
    sky_environment: dict[str, str],
) -> None:
    home = Path(sky_environment["HOME"])
    shutil.copytree(files("launcher") / "data/catalogs", home / ".sky/catalogs")  # type: ignore[arg-type]
    found = run(LISTS, sky_environment)
    others = {f"us-central1-{zone}": 29.39 for zone in "bcf"}
    assert found["before"] == {**others, "us-central1-a": 29.39}
    for wrong in ("zero", "negative", "twice"):
        assert found[wrong] == others, wrong
    assert found["none"].items() <= others.items(), "SkyPilot itself may leave out the region"
    assert found["first"] == found["at once"] == found["before"]
    assert found["an hour later"] == {**others, "us-central1-a": 60.0}


def test_skypilot_remembers_when_the_last_zone_was_asked(sky_environment: dict[str, str]) -> None:
    told = run(EVENTS, sky_environment)
    assert 148 <= told["later_s"] <= 149
    assert 148 <= told["found_s"] <= 149, "by a process that did not ask for it, too"
    assert told["unknown"] == []


def test_only_a_cloud_that_says_so_has_taken_the_machine_away(sky_environment: dict[str, str]) -> None:
    told = run(GONE, sky_environment)
    assert {what for what, gone in told.items() if gone} == {"terminated", "STOPPED", "AUTOSTOPPING"}


def test_a_job_is_watched_once_also_after_skypilots_emergency_recovery(sky_environment: dict[str, str]) -> None:
    assert run(WATCHERS, sky_environment)["told"] == ["cancelled", None, None, [1, 2], []]


def test_skypilot_refuses_to_launch_without_a_bucket(sky_environment: dict[str, str]) -> None:
    path = Path(__file__).parents[2] / "sky_tasks/notus-7b-dpo.yaml"
    code = "import sys, sky; sky.Task.from_yaml(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], env=sky_environment, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "NOTUS_BUCKET" in done.stderr


REFRESH = """
import json, sys
from launcher.sky import catalog
from sky.skylet import constants
constants.HOSTED_CATALOG_DIR_URL = sys.argv[1]
said = []
print(json.dumps([catalog.refresh(["lambda", "nebius", "aws"], said.append), said]))
"""


def test_skypilot_fetches_its_price_lists_and_keeps_what_was_edited(tmp_path: Path) -> None:
    served = tmp_path / "served/v8"
    for cloud in ("lambda", "aws"):
        shutil.copytree(str(files("launcher").joinpath("data/catalogs/v8", cloud)), served / cloud)
    edited = tmp_path / "home/.sky/catalogs/v8/aws/vms.csv"
    edited.parent.mkdir(parents=True)
    edited.write_text("InstanceType\nmine\n")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {**os.environ, "HOME": str(tmp_path / "home"), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
        url = f"http://127.0.0.1:{server.server_address[1]}"
        done = subprocess.run(
            [sys.executable, "-c", REFRESH, url], env=environment, capture_output=True, text=True, check=False
        )
        server.shutdown()
    assert done.returncode == 0, done.stderr
    outcome, said = json.loads(done.stdout.splitlines()[-1])
    assert outcome["lambda"] == "fetched"
    assert outcome["nebius"].startswith("could not be fetched")
    assert outcome["aws"].startswith("kept")
    assert edited.read_text() == "InstanceType\nmine\n"
    assert len(said) == 3
    fetched = tmp_path / "home/.sky/catalogs/v8/lambda/vms.csv"
    assert fetched.read_text() == (served / "lambda/vms.csv").read_text()
    assert "sky-payload" not in done.stdout

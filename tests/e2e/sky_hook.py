"""Sends SkyPilot to the loopback clouds. Test only: imported at Python's start, here and on the clouds' machines.

LOOPBACK_CLOUDS is the URL of `tests.e2e.cloud.server`, which a machine has in a file; without it nothing is changed.
On a machine it also lets a scenario hold the training where it wants, see `tests.e2e.holds`. What closing a run is assumed
to take is cut here and there.
"""

import importlib.abc
import importlib.util
import json
import os
import sys
import time
from pathlib import Path

ON_A_MACHINE = Path("/etc/loopback-clouds")
BROKEN = Path("/etc/broken-gpus")
HOLDS = Path("/run/holds")
URL = os.environ.get("LOOPBACK_CLOUDS") or (ON_A_MACHINE.read_text().strip() if ON_A_MACHINE.exists() else "")


def _lambda(module):
    module.API_ENDPOINT = f"{URL}/api/v1"


def _network_check(module):
    module._TEST_IP_LIST = [f"{URL}/control/state"]


def _gcp(module):
    build = module.build

    def redirected(service, version, *args, **kwargs):
        path = "/compute/v1/" if service == "compute" else "/"
        kwargs.setdefault("client_options", {"api_endpoint": f"{URL}{path}"})
        return build(service, version, *args, **kwargs)

    module.build = redirected


def _scratch(module):
    """Rank 0 waits after it has said where it is, and the others wait for rank 0 in their next collective call.

    Only its main thread: a stopped process would also stop the snapshot that is being copied, and then the save never
    comes that a scenario waits for.
    """
    said = module.Scratch.write_progress

    def write_progress(self, progress):
        said(self, progress)
        hold = HOLDS / os.environ["NOTUS_RUN"]
        if not _is_for(hold, progress):
            return
        try:
            hold.with_name(f"{hold.name}.held").touch(exist_ok=False)
        except FileExistsError:  # an attempt before this one
            return
        while _is_for(hold, progress):
            time.sleep(0.05)

    module.Scratch.write_progress = write_progress


def _is_for(hold, progress):
    try:
        wanted = json.loads(hold.read_text())
    except FileNotFoundError:
        return False
    return progress.phase == wanted["phase"] and progress.step >= wanted["step"]


def _observe(module):
    """A tiny model is saved, and a namespace is gone, much sooner than the policy assumes: else no budget of a scenario of
    minutes would do."""
    module.SAVE_H = module.LEAST_SAVE_H = 15 / 3600
    module.TEARDOWN_H = 20 / 3600


def _switch(module):
    """The same for the trainer, a little later than the policy, as in the product."""
    module.BILLED_BEFORE_BOOT_S = 5.0
    module.TEARDOWN_S = 10.0
    module.save_limit_s = lambda save_s, planned_s=None: 10.0


def _recipe(module):
    """A machine with broken GPUs: the recipe of the tests needs none, so here it says that it does."""
    load = module.load_recipe

    def load_recipe(*args, **kwargs):
        recipe = load(*args, **kwargs)
        hardware = recipe.hardware.model_copy(update={"gpus": "A100:8"})
        return recipe.model_copy(update={"hardware": hardware})

    module.load_recipe = load_recipe


PATCHES = {
    "sky.provision.lambda_cloud.lambda_utils": _lambda,
    "sky.backends.backend_utils": _network_check,
    "sky.adaptors.gcp": _gcp,
    "launcher.policy.observe": _observe,
}
if ON_A_MACHINE.exists():
    PATCHES |= {"trainer.runtime.attempt_dir": _scratch, "trainer.supervisor.dead_mans_switch": _switch}
if BROKEN.exists():
    PATCHES["trainer.config.recipe"] = _recipe


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in PATCHES:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            PATCHES[name](module)

        spec.loader.exec_module = exec_module
        return spec


if URL:
    sys.meta_path.insert(0, _Finder())

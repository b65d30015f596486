"""Sends SkyPilot to the loopback clouds. Test only: imported at Python's start, here and on the clouds' machines.

LOOPBACK_CLOUDS is the URL of `tests.e2e.cloud.server`, which a machine has in a file; without it nothing is changed.
"""

import importlib.abc
import importlib.util
import os
import sys
from pathlib import Path

ON_A_MACHINE = Path("/etc/loopback-clouds")
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


PATCHES = {
    "sky.provision.lambda_cloud.lambda_utils": _lambda,
    "sky.backends.backend_utils": _network_check,
    "sky.adaptors.gcp": _gcp,
}


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

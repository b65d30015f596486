"""How the NOTUS strategy has SkyPilot terminate a machine."""

from __future__ import annotations

from tests.integration.sky_process import run

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

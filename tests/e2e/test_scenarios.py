"""Real SkyPilot on the loopback clouds. Each run has to end bit for bit as one that nobody disturbed."""

from __future__ import annotations

import pytest

from checkpoints.storage.base import Store
from launcher.sky.render import NOTUS, SKYPILOTS_OWN
from tests.e2e.clouds import Clouds
from tests.e2e.figures import MEASURED, measure
from tests.e2e.runs import GCP_SPOT, LAMBDA, QUICK, CloudRun, lost_steps, of, places
from tests.integration.conftest import assert_bit_exact
from tests.support.seaweed import S3Server


def test_lambda_on_demand_from_nothing_to_done(clouds: Clouds, bucket: S3Server, reference: Store) -> None:
    """Its machines take their time, and its API is asked too often now and then."""
    clouds.control("weather", boot_s=10, throttled=3)
    run = CloudRun(clouds, bucket, "lambda-run")
    run.submit([LAMBDA])
    run.wait_until_done()
    assert_bit_exact(run.store, reference)


def test_spot_with_a_notice_saves_and_moves_on(clouds: Clouds, bucket: S3Server, reference: Store) -> None:
    run = CloudRun(clouds, bucket, "noticed")
    run.submit([GCP_SPOT, LAMBDA], NOTUS, **QUICK)
    run.freeze_in("training", step=3)
    first = run.machine()
    clouds.control("preempt", id=first["id"], notice=True)
    run.wait("the notice", lambda: bool(of(run, "notice")))
    run.thaw()
    run.wait_until_done(600)
    assert of(run, "notice")[0].data["source"] == "gcp"
    assert [event.data["outcome"] for event in of(run, "attempt_ended")] == ["preempted", "finished"]
    saved = [event for event in of(run, "saved") if event.attempt == 1]
    assert saved[-1].data["reason"] == "stop"
    assert lost_steps(run) == 0, "nothing that was done before the notice is lost"
    assert places(run)[1]["zone"] != first["place"]
    assert_bit_exact(run.store, reference)


@pytest.mark.parametrize("strategy", [SKYPILOTS_OWN, NOTUS])
def test_spot_killed_without_a_word(clouds: Clouds, bucket: S3Server, reference: Store, strategy: str) -> None:
    """Under SkyPilot's own strategy and under ours, with the same task: the figures of both are printed."""
    run = CloudRun(clouds, bucket, f"killed-{strategy.lower().replace('_', '-')}")
    run.submit([GCP_SPOT, LAMBDA], strategy)
    run.freeze_after_save()
    run.preempt_for_good()
    run.wait_until_done(600)
    run.wait_for_the_end_of_its_machines()
    ours = measure(clouds, run)
    assert run.status()[1] == 1, "one recovery"
    assert [event.data["step"] >= 5 for event in of(run, "resumed")] == [True]
    assert_bit_exact(run.store, reference)
    theirs = MEASURED.get(f"killed-{SKYPILOTS_OWN.lower().replace('_', '-')}", ours)
    asked = "places asked until one had a machine"
    assert strategy == SKYPILOTS_OWN or ours[asked] <= theirs[asked]

"""Real SkyPilot on the loopback clouds. Each run has to end bit for bit as one that nobody disturbed."""

from __future__ import annotations

from checkpoints.store import Store
from launcher.plan import Rung
from tests.e2e.clouds import Clouds
from tests.e2e.figures import measure
from tests.e2e.runs import CloudRun
from tests.integration.conftest import assert_bit_exact, wait_for
from tests.seaweed import S3Server

LAMBDA = Rung(cloud="lambda", gpus="A100:8", spot=False)
GCP_SPOT = Rung(cloud="gcp", gpus="A100:8", spot=True)


def test_lambda_on_demand_from_nothing_to_done(clouds: Clouds, bucket: S3Server, reference: Store) -> None:
    run = CloudRun(clouds, bucket, "lambda-run")
    run.submit([LAMBDA])
    run.wait_until_done()
    assert_bit_exact(run.store, reference)


def test_spot_with_a_notice_saves_and_moves_on(clouds: Clouds, bucket: S3Server, reference: Store) -> None:
    run = CloudRun(clouds, bucket, "noticed")
    run.submit([GCP_SPOT, LAMBDA])
    run.wait("step 3", lambda: run.step() >= 3)
    first = run.machine()
    clouds.control("preempt", id=first["id"], notice=True)
    run.wait_until_done(600)
    events = run.events()
    notices = [event for event in events if event.kind == "notice"]
    assert notices[0].data["source"] == "gcp"
    ended = [event.data["outcome"] for event in events if event.kind == "attempt_ended"]
    assert ended == ["preempted", "finished"]
    saved = [event.data["step"] for event in events if event.kind == "saved" and event.attempt == 1]
    resumed = [event.data["step"] for event in events if event.kind == "resumed"]
    assert resumed == saved[-1:], "nothing that was done before the notice is lost"
    assert_bit_exact(run.store, reference)


def test_spot_killed_without_a_word(clouds: Clouds, bucket: S3Server, reference: Store) -> None:
    run = CloudRun(clouds, bucket, "killed")
    run.submit([GCP_SPOT, LAMBDA])
    run.wait("step 8", lambda: run.step() >= 8)
    run.preempt_for_good()
    run.wait_until_done(600)
    wait_for(lambda: not clouds.running(), "the machine's end", timeout_s=120)
    measure(clouds, run)
    assert run.status()[1] == 1, "one recovery"
    assert [event.data["step"] >= 5 for event in run.events() if event.kind == "resumed"] == [True]
    assert_bit_exact(run.store, reference)

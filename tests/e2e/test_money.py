"""Money can't run away: what a run does where its clouds, its bucket or its machines fail it."""

from __future__ import annotations

from checkpoints.run_log.stop_request import ask
from checkpoints.storage.base import Store
from launcher.local.backend import committed_step
from launcher.policy.machine_work import SPOT_IN_A_ROW
from launcher.policy.run_history import machines
from launcher.sky.render import NOTUS
from tests.e2e.clouds import Clouds
from tests.e2e.gate import Gate
from tests.e2e.runs import BUDGET_USD, GCP_SPOT, LAMBDA, QUICK, CloudRun, later, of, places
from tests.integration.conftest import assert_bit_exact
from tests.support.seaweed import S3Server

CLOSING_USD = 0.2
ENOUGH_USD = 2 * BUDGET_USD
"""For the first steps on a machine that does other things beside."""
"""A minute of a machine: a look, the tries to reach the bucket, and the end of the machine."""


def test_a_machine_that_cant_be_given_back_is_booked_until_it_is(
    clouds: Clouds, bucket: S3Server, reference: Store
) -> None:
    """The cloud refuses to end it once. It is billed until it ends, so it is booked until then, and there is no second
    machine beside it."""
    run = CloudRun(clouds, bucket, "kept")
    run.submit([GCP_SPOT, LAMBDA], NOTUS, **QUICK)
    run.freeze_in("training", step=3)
    clouds.control("weather", kept=[run.name])
    ask(run.store, "move", 1, "the scenario's wish")
    run.wait("the wish heard", lambda: bool(of(run, "notice")))
    run.thaw()
    run.wait_until_done(900)
    first, second = run.every_machine()
    assert first["ended_at"] <= second["started_at"]
    booked = machines(run.events())[0]
    assert booked.since.timestamp() <= first["started_at"]
    assert booked.until is not None
    assert booked.until.timestamp() >= first["ended_at"], "in the books as long as on the cloud's bill"
    (failed,) = of(run, "release_failed")
    assert "can't be ended now" in failed.data["message"], "the cloud's words are in the diary"
    assert_bit_exact(run.store, reference)


def test_spot_that_flaps_before_the_first_step_is_left(clouds: Clouds, bucket: S3Server, reference: Store) -> None:
    """Each spot machine is taken away while it loads the model, and there always is another."""
    run = CloudRun(clouds, bucket, "flapping")
    run.submit([GCP_SPOT, LAMBDA], NOTUS, **QUICK)
    spot = 0
    while True:
        run.freeze_in("loading the model")
        if (machine := run.machine())["kind"] != "SPOT":
            break
        spot += 1
        assert spot <= SPOT_IN_A_ROW, "it would go on for ever"
        clouds.control("preempt", id=machine["id"], notice=False)
    run.thaw()
    run.wait_until_done()
    assert spot == SPOT_IN_A_ROW
    assert_bit_exact(run.store, reference)


def test_the_bucket_is_away_for_the_controller_only(
    clouds: Clouds, bucket: S3Server, gate: Gate, reference: Store
) -> None:
    """The machines reach it. One run trains on and is done; the other stands still, and ends before its budget does: that
    takes eight minutes, so meanwhile the next scenario begins."""
    going, standing = CloudRun(clouds, gate.server, "unheard"), CloudRun(clouds, gate.server, "spending")
    standing.submit([GCP_SPOT], NOTUS, NOTUS_BUDGET_USD=f"{ENOUGH_USD}", NOTUS_HOURS="0.01", **QUICK)
    going.submit([GCP_SPOT], NOTUS, **QUICK)
    standing.freeze_in("training", step=6)
    going.freeze_in("training", step=6)
    gate.close_it()
    assert not of(standing, "decided")[1:], "it would have ended anyway"
    going.wait("looks of the controllers", lambda: gate.turned_away > 20)
    going.thaw()
    going.wait_until_done()
    going.wait("SkyPilot's own end", lambda: going.status()[0] == "SUCCEEDED", 180)
    assert_bit_exact(going.store, reference)

    def ends() -> None:
        try:
            standing.wait_for_the_end_of_its_machines(800)
        finally:
            gate.open_it()
        (machine,) = standing.every_machine()
        price = float(str(places(standing)[0]["price_usd_per_hour"]))
        (end,) = of(standing, "attempt_ended")  # how long its cloud and SkyPilot then take is this machine's affair
        assert (end.time.timestamp() - machine["started_at"]) / 3600 * price < ENOUGH_USD + CLOSING_USD
        standing.wait_for_status("FAILED", "FAILED_NO_RESOURCE")
        assert {event.data["limit"] for event in of(standing, "stopped")} == {"budget"}, "whoever was first"
        assert committed_step(standing.store) == 5, "what it had saved is there"

    later(ends)


def test_a_killed_supervisor_and_then_a_machine_with_broken_gpus_end_no_run(
    clouds: Clouds, bucket: S3Server, reference: Store
) -> None:
    """The kernel kills the first, the preflight fails on the second. A run that has trained doesn't end for either."""
    run = CloudRun(clouds, bucket, "broken")
    run.submit([GCP_SPOT, LAMBDA], NOTUS, **QUICK)
    run.freeze_after_save()
    clouds.control("weather", broken=[run.name])
    run.kill_supervisor()
    run.wait_until_done(900)
    assert [machine["broken"] for machine in run.every_machine()] == [False, True, False]
    assert "GPUs" in str([event.data for event in run.events()]), "the preflight's words are in the diary"
    assert_bit_exact(run.store, reference)

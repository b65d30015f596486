"""The NOTUS strategy on the loopback clouds: where it goes, when it waits, and that it comes back to spot."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta

import pytest

from checkpoints.run_log.stop_request import read_request
from checkpoints.storage.base import Store
from launcher.local.backend import committed_step
from launcher.planning.plan import Candidate
from launcher.sky.render import NOTUS
from tests.e2e.clouds import Clouds
from tests.e2e.figures import measure, places_asked
from tests.e2e.runs import BUDGET_USD, GCP_SPOT, LAMBDA, NEAR, QUICK, CloudRun, later, lost_steps, of, places
from tests.integration.conftest import assert_bit_exact, wait_for
from tests.support.seaweed import S3Server

NO_SPOT = {"*/SPOT": 0}
NOTHING = {"*/SPOT": 0, "*/STANDARD": 0, "*/gpu_8x_a100": 0}


@pytest.mark.every_change
def test_notus_launch_goes_on_in_another_zone(clouds: Clouds, bucket: S3Server, reference: Store) -> None:
    run = CloudRun(clouds, bucket, "launched")
    launcher = run.launch("--cloud", "gcp", "--cloud", "lambda", "--gpus", "A100:8")
    run.freeze_in("training", step=8)
    first = run.machine()
    assert first["kind"] == "SPOT"
    clouds.control("preempt", id=first["id"], notice=False)  # and the zone has another machine at once
    assert launcher.wait(600) == 0, run.story()
    run.wait_for_the_end_of_its_machines()
    killed_at = next(m["ended_at"] for m in clouds.state()["machines"] if m["id"] == first["id"])
    measure(clouds, run)
    assert places(run)[1]["spot"]
    asked = places_asked(clouds, run, since=killed_at)
    assert f"{first['place']}/SPOT" not in asked, (
        "the zone that was just preempted is not tried while others are untried"
    )
    assert [event.data["why"] for event in of(run, "machine_gone")] == ["preempted"]
    assert_bit_exact(run.store, reference)
    told = run.output.read_text()
    assert "first step done" in told
    assert "goodput" in told
    again = run.notus("--recipe", "tiny-dpo", "--name", run.name, "--cloud", "gcp", "--yes")
    assert "is already finished" in again, "launching a finished run again starts nothing"


def test_on_demand_while_spot_is_out_then_back_to_spot(clouds: Clouds, bucket: S3Server, reference: Store) -> None:
    clouds.control("capacity", **NO_SPOT)
    run = CloudRun(clouds, bucket, "back")
    near = Candidate(cloud="gcp/us-central1", gpus="A100:8", spot=False)
    # Of 12 hours: for the dollars of a tiny run's 72 s nobody moves, now that starts are measured.
    run.submit([NEAR, near, LAMBDA], NOTUS, NOTUS_RETURN_MIN="1", NOTUS_HOURS="12", **QUICK)
    run.freeze_in("training", step=3)
    assert places(run)[0]["cloud"] == "lambda", "the cheapest on-demand machine"
    clouds.control("capacity")
    run.wait("the wish to move", lambda: (asked := read_request(run.store)) is not None and asked.action == "move")
    run.thaw()
    run.wait("the way back", lambda: len(places(run)) > 1, 600)
    assert places(run)[1]["spot"]
    assert places(run)[1]["region"] == "us-central1", "the task names no other"
    run.wait_until_done(600)
    assert next(event.data["why"] for event in of(run, "machine_gone")) == "moved"
    assert lost_steps(run) == 0
    assert_bit_exact(run.store, reference)


def test_stock_outs_everywhere_then_capacity(clouds: Clouds, bucket: S3Server, reference: Store) -> None:
    """Nothing in two clouds, each with its own words; then there is. It is asked again a minute later: meanwhile the next
    scenario begins, which has to leave the market alone."""
    clouds.control("capacity", **NOTHING)
    run = CloudRun(clouds, bucket, "sold-out")
    run.submit([NEAR, LAMBDA], NOTUS, **QUICK)
    run.wait("the news that there is nothing", lambda: bool(of(run, "no_capacity")))
    said = str(of(run, "no_capacity")[0].data["reasons"])
    assert "insufficient-capacity" in said
    assert "ZONE_RESOURCE_POOL_EXHAUSTED" in said
    clouds.control("capacity")

    def goes_on() -> None:
        run.wait_until_done(600)
        assert_bit_exact(run.store, reference)

    later(goes_on)


def test_the_users_errors_end_the_job_at_once(clouds: Clouds, bucket: S3Server) -> None:
    setup, recipe = CloudRun(clouds, bucket, "bad-setup"), CloudRun(clouds, bucket, "bad-recipe")
    setup.submit([LAMBDA], NOTUS, setup="echo the driver is too old >&2; exit 3")
    recipe.submit([GCP_SPOT], NOTUS, NOTUS_RECIPE="tiny-dop")
    setup.wait_for_status("FAILED_SETUP")
    recipe.wait_for_status("FAILED_SETUP")  # the preflight reads it
    for run in (setup, recipe):
        assert run.status()[1] == 0, "no recovery"
        assert len(places(run)) == 1
    assert "tiny-dop" in str([event.data for event in recipe.events()]), "the preflight's words are in the diary"


def test_a_quota_of_zero_is_named_and_the_run_can_be_stopped(clouds: Clouds, bucket: S3Server) -> None:
    """The strategy sees the stop when it would ask again, a minute later: meanwhile the next scenario begins."""
    message = "Quota 'PREEMPTIBLE_NVIDIA_A100_GPUS' exceeded.  Limit: 0.0 in region us-central1."
    clouds.control("quota", **{"*/SPOT": message})
    run = CloudRun(clouds, bucket, "no-quota")
    run.submit([NEAR], NOTUS)
    run.wait("the reason", lambda: bool(of(run, "no_capacity")))
    assert "Limit: 0.0" in str(of(run, "no_capacity")[0].data["reasons"])
    stop = contextlib.ExitStack()
    stop.enter_context(run.beside("stop", run.name))
    run.wait("the wish to stop", lambda: read_request(run.store) is not None)

    def stops() -> None:
        stop.close()
        # by `stop` itself, or by the strategy that sees it first
        run.wait_for_status("CANCELLED", "FAILED_NO_RESOURCE")
        assert not [one for one in clouds.state()["machines"] if one["name"].startswith(f"{run.name}-")]

    later(stops)


def test_a_zombie_is_fenced(clouds: Clouds, bucket: S3Server, reference: Store) -> None:
    """A machine vanishes from its cloud and its network, a successor starts, and then the old one is back."""
    run = CloudRun(clouds, bucket, "zombie")
    run.submit([GCP_SPOT, LAMBDA], NOTUS, **QUICK)
    run.freeze_in("training", step=5)
    clouds.control("lose", id=run.machine()["id"])
    run.thaw()
    run.wait("a successor", lambda: any(event.attempt == 2 for event in of(run, "attempt_started")), 600)
    clouds.control("find")
    run.wait_until_done(600)
    wait_for(
        lambda: any(event.attempt == 1 and event.data["outcome"] == "fenced" for event in of(run, "attempt_ended")),
        "the zombie's end",
        timeout_s=120,
    )
    assert_bit_exact(run.store, reference)


def test_the_api_server_restarts_in_mid_run(clouds: Clouds, bucket: S3Server, reference: Store) -> None:
    run = CloudRun(clouds, bucket, "restarted")
    run.submit([GCP_SPOT, LAMBDA], NOTUS, **QUICK)
    run.freeze_in("training", step=3)
    clouds.skypilot.sky("api", "stop")
    clouds.skypilot.start()
    run.thaw()
    run.wait_until_done(600)
    assert run.status()[1] == 0, "the job went on"
    assert_bit_exact(run.store, reference)


def test_the_budget_ends_the_run_before_it_is_gone(clouds: Clouds, bucket: S3Server) -> None:
    """On spot, with nothing on demand to spend the rest on. The controller asks it to stop, or, where that one is slow,
    the machine itself."""
    run = CloudRun(clouds, bucket, "budget")
    budget_usd = 2 * BUDGET_USD  # eight minutes: beside other work the first step alone takes more than four
    run.submit([GCP_SPOT], NOTUS, NOTUS_BUDGET_USD=f"{budget_usd}", NOTUS_HOURS="0.01", **QUICK)
    run.freeze_in("training", step=2)  # else it is done before they are over
    run.wait("the wish to stop", lambda: bool(of(run, "notice")), 600)
    run.thaw()
    run.wait_for_status("FAILED", "FAILED_NO_RESOURCE")
    (stopped,) = of(run, "stopped")
    assert stopped.data["limit"] == "budget"
    assert len(places(run)) == 1
    run.wait_for_the_end_of_its_machines()
    asked = of(run, "notice")[0]
    (machine,) = [one for one in clouds.state()["machines"] if one["name"].startswith(run.name)]
    price = float(str(places(run)[0]["price_usd_per_hour"]))
    assert (asked.time.timestamp() - machine["started_at"]) / 3600 * price < budget_usd, (
        "asked to stop while there was some left"
    )


def test_near_the_deadline_it_goes_on_demand_in_time(clouds: Clouds, bucket: S3Server, reference: Store) -> None:
    """Loose enough for spot at the launch, and too tight when the machine is lost: spot elsewhere isn't asked.

    A restart of 4 min makes the need (work + three restarts) almost free of how fast this machine trains.
    """
    run = CloudRun(clouds, bucket, "deadline")
    deadline = (datetime.now(UTC) + timedelta(minutes=13.6)).isoformat()
    settings = {"NOTUS_CHECK_MIN": "0.1", "NOTUS_RESTART_MIN": "4", "NOTUS_HOURS": "0.01"}
    run.submit([GCP_SPOT, LAMBDA], NOTUS, NOTUS_DEADLINE=deadline, **settings)
    run.freeze_in("training", step=2)
    run.preempt_for_good()
    run.wait_until_done(600)
    assert [place["spot"] for place in places(run)] == [True, False]
    assert "slack" in of(run, "decided")[-1].data["reason"]
    assert_bit_exact(run.store, reference)


def test_stop_saves_and_the_same_name_goes_on(clouds: Clouds, bucket: S3Server, reference: Store) -> None:
    run = CloudRun(clouds, bucket, "stopped")
    run.launch("--cloud", "gcp", "--gpus", "A100:8", "--detach").wait(300)
    run.freeze_in("training", step=5)
    with run.beside("stop", run.name) as stop:
        run.wait("the wish to stop", lambda: read_request(run.store) is not None)
        run.thaw()
    assert "is complete" in stop.said
    run.wait_for_the_end_of_its_machines()
    run.wait_for_status("FAILED", "CANCELLED")
    assert run.launch("--cloud", "lambda", "--gpus", "A100:8").wait(600) == 0, run.story()
    run.wait_until_done()
    assert lost_steps(run) == 0
    assert_bit_exact(run.store, reference)


def test_machines_that_go_in_the_set_up_in_an_evaluation_and_in_the_export(
    clouds: Clouds, bucket: S3Server, reference: Store
) -> None:
    """Three machines of one run, one after the other. The state was saved before the evaluation and before the export:
    no step is done again, and the next attempt does what was not finished."""
    run = CloudRun(clouds, bucket, "unlucky")
    run.submit([GCP_SPOT, LAMBDA], NOTUS, **QUICK)
    run.wait("a machine that runs", lambda: any(machine["state"] == "running" for machine in run.machines()))
    first = run.machine()["place"]
    run.preempt_for_good()
    run.freeze_in("evaluating")
    run.wait("the save before it", lambda: committed_step(run.store) == 12)  # uploaded by a process that goes on
    run.preempt_for_good()
    run.freeze_in("exporting")
    run.wait("the save before it", lambda: committed_step(run.store) == 24)
    assert not of(run, "exported"), "the ranks were faster"
    run.preempt_for_good()
    run.wait_until_done(600)
    assert [event.attempt for event in of(run, "attempt_started")] == [1, 2, 3], "none on the first machine"
    assert [event.data["step"] for event in of(run, "resumed")] == [12, 24]
    assert [event.attempt for event in of(run, "exported")] == [3]
    # The state of the end was saved before its evaluation, which the attempt that exports makes again.
    assert [event.data["step"] for event in of(run, "evaluated")] == [12, 24, 24]
    assert first not in [place["zone"] for place in places(run)[-3:]]
    assert_bit_exact(run.store, reference)

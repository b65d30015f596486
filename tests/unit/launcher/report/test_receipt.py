"""Receipts, states and comparisons: worked out from the bucket alone."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from checkpoints.commit.head import Lease, Writer
from checkpoints.commit.retention import Retention
from checkpoints.errors import UserError
from checkpoints.records.manifest import Manifest
from checkpoints.run_log.event_log import Diary, Event, read_events
from checkpoints.run_log.log_mirror import Journal, read_journal
from checkpoints.run_log.metrics import StepMetrics, read_metrics, write_metrics
from checkpoints.run_log.run_record import Heartbeat, RunRecord, list_runs, open_run, read_run, register_run
from checkpoints.save.shard_upload import upload_shard
from checkpoints.snapshot.snapshot import HostBuffer, Snapshot
from checkpoints.storage.object_store import ObjectStore
from checkpoints.util.clock import FakeClock
from launcher.catalog.offers import Offer
from launcher.errors import UnknownRun
from launcher.local.backend import preemption_points
from launcher.local.presence import dead_holder
from launcher.policy.model import Place
from launcher.policy.run_history import place_data
from launcher.report.bit_exact import compare_runs
from launcher.report.event_lines import line_of
from launcher.report.receipt import make_receipt
from launcher.report.run_tables import receipt_panel, seconds
from launcher.report.status import derive_status, read_status

START = datetime(2026, 11, 24, 20, tzinfo=UTC)
OFFER = Offer(
    cloud="lambda",
    region="us",
    zone=None,
    instance_type="gpu_8x_a100",
    gpus="A100:8",
    spot=False,
    price_usd_per_hour=18.0,
)


def event(at_s: float, kind: Any, attempt: int, **data: Any) -> Event:
    return Event(time=START + timedelta(seconds=at_s), id=f"{at_s:08.1f}", kind=kind, attempt=attempt, data=data)


def metrics(attempt: int, steps: range, pace: float = 2.0) -> list[StepMetrics]:
    return [
        StepMetrics(
            attempt,
            rank,
            step,
            {
                "step": step,
                "seconds": pace,
                "stalled_s": 0.5 if step in (6, 9) else 0.0,
                "losses_hex": [float(step).hex()],
            },
        )
        for step in steps
        for rank in (0, 1)
    ]


PREEMPTED_RUN = [
    event(0, "attempt_started", 1),
    event(20, "training", 1, step=1),
    event(30, "saved", 1, step=5),
    event(40, "preempted", 1, step=9),
    event(60, "attempt_started", 2),
    event(65, "resumed", 2, step=5),
    event(75, "training", 2, step=6),
    event(90, "saved", 2, step=12),
    event(95, "attempt_ended", 2, outcome="finished", step=12),
    event(95.5, "finished", 2, step=12),
]
PREEMPTED_METRICS = metrics(1, range(1, 6)) + metrics(2, range(6, 13))


def test_a_preempted_run_in_figures() -> None:
    receipt = make_receipt("r", PREEMPTED_RUN, PREEMPTED_METRICS, [OFFER], START)
    assert (receipt.state, receipt.preemptions, receipt.failures) == ("finished", 1, 0)
    assert [(line.from_step, line.to_step, line.redone_steps) for line in receipt.attempts] == [(0, 9, 4), (5, 12, 0)]
    assert (receipt.steps, receipt.steps_redone, receipt.saves) == (12, 4, 2)
    assert receipt.wall_s == 95
    assert receipt.startup_s == 20 + 15
    assert receipt.waiting_s == 20
    # 4 kept steps of attempt 1 and 6 of attempt 2 after each one's first, 2 s each
    assert receipt.useful_s == pytest.approx(10 * 2.0)
    assert receipt.saving_s == pytest.approx(2 * 0.5)
    assert receipt.redone_s == pytest.approx(4 * 2.0)
    assert receipt.lost_to_preemptions_s == pytest.approx(8 + 20 + 15)
    assert receipt.goodput == pytest.approx(20 / 95)
    assert receipt.costs[0].cost_usd == pytest.approx(75 / 3600 * 18.0)
    parts = (
        receipt.useful_s,
        receipt.saving_s,
        receipt.startup_s,
        receipt.redone_s,
        receipt.waiting_s,
        receipt.other_s,
    )
    assert sum(parts) == pytest.approx(receipt.wall_s)


def test_an_attempt_that_dies_before_its_first_step_loses_no_steps_of_its_predecessor() -> None:
    shifted = [e.model_copy(update={"attempt": 3}) if e.attempt == 2 else e for e in PREEMPTED_RUN]
    died = [event(45, "attempt_started", 2), event(50, "attempt_ended", 2, outcome="failed", step=0)]
    events = sorted([*shifted, *died], key=lambda e: e.time)
    receipt = make_receipt("r", events, PREEMPTED_METRICS, [], START)
    assert [line.redone_steps for line in receipt.attempts] == [4, 0, 0]


def test_a_damaged_checkpoint_is_not_a_step_that_was_done() -> None:
    events = sorted([*PREEMPTED_RUN, event(64, "damaged", 2, step=99)], key=lambda e: e.time)
    receipt = make_receipt("r", events, PREEMPTED_METRICS, [], START)
    assert receipt.attempts[-1].to_step == 12
    assert receipt.damaged_checkpoints == 1


def test_a_pause_of_the_user_is_not_lost_to_preemptions() -> None:
    stopped = [
        event(0, "attempt_started", 1),
        event(20, "training", 1, step=1),
        event(40, "attempt_ended", 1, outcome="preempted", step=5),
        event(41, "stopped", 1, step=5),
    ]
    later = [e.model_copy(update={"time": e.time + timedelta(days=2)}) for e in PREEMPTED_RUN if e.attempt == 2]
    receipt = make_receipt("r", [*stopped, *later], PREEMPTED_METRICS, [], START)
    assert receipt.waiting_s > 100_000
    assert receipt.lost_to_preemptions_s < 100


def test_an_uninterrupted_run_loses_nothing() -> None:
    events = [e for e in PREEMPTED_RUN if e.attempt == 2 and e.kind != "resumed"]
    receipt = make_receipt("r", events, metrics(2, range(1, 13)), [], START)
    assert (receipt.steps_redone, receipt.preemptions, receipt.lost_to_preemptions_s) == (0, 0, 0.0)
    assert receipt.bit_exact is None


def test_a_machine_that_vanished_without_a_word_counts_as_preempted() -> None:
    events = [e for e in PREEMPTED_RUN if e.kind != "preempted"]
    receipt = make_receipt("r", events, PREEMPTED_METRICS, [], START)
    assert receipt.preemptions == 1
    assert receipt.attempts[0].to_step == 5


@pytest.mark.parametrize(
    ("last", "state"),
    [
        (event(99, "failed", 2, message="x"), "failed"),
        (event(99, "stopped", 2, step=12), "stopped"),
        (event(99, "attempt_started", 3), "running"),
    ],
)
def test_states(last: Event, state: str) -> None:
    assert make_receipt("r", [*PREEMPTED_RUN, last], [], [], START + timedelta(seconds=120)).state == state
    assert make_receipt("r", [], [], [], START).state == "empty"


def test_the_verdict_is_on_the_receipt() -> None:
    compared = event(99, "compared", 0, equal=False, steps=12, tensors=3, differences=["loss of rank 0 at step 7"])
    receipt = make_receipt("r", [*PREEMPTED_RUN, compared], PREEMPTED_METRICS, [OFFER], START)
    assert receipt.bit_exact is False
    output = io.StringIO()
    Console(width=100, file=output).print(receipt_panel(receipt))
    text = output.getvalue()
    assert "NO: first difference: loss of rank 0 at step 7" in text
    assert "lambda on demand A100:8" in text


def test_durations_for_people() -> None:
    assert [seconds(value) for value in (1.234, 600, 7200)] == ["1.2 s", "10.0 min", "2.0 h"]


# --- status -----------------------------------------------------------------------------------------------------


def heartbeat(at_s: float, attempt: int, step: int) -> Heartbeat:
    return Heartbeat(
        attempt=attempt, time=START + timedelta(seconds=at_s), phase="training", step=step, total_steps=24, loss=0.5
    )


@pytest.mark.parametrize(
    ("until", "beat", "now_s", "state"),
    [
        (0, None, 0, "waiting"),
        (1, None, 10, "starting"),
        (1, None, 500, "silent"),
        (3, heartbeat(30, 1, 5), 35, "running"),
        (3, heartbeat(30, 1, 5), 500, "silent"),
        (4, heartbeat(39, 1, 9), 45, "recovering"),
        (5, heartbeat(39, 1, 9), 61, "starting"),
        (4, heartbeat(39, 1, 9), 5000, "waiting for a launcher"),
        (10, heartbeat(94, 2, 12), 1000, "finished"),
    ],
)
def test_where_a_run_is(until: int, beat: Heartbeat | None, now_s: float, state: str) -> None:
    status = derive_status("r", "tiny-dpo", None, beat, PREEMPTED_RUN[:until], START + timedelta(seconds=now_s))
    assert status.state == state


# --- the run's folder -------------------------------------------------------------------------------------------


def record(**identity: Any) -> RunRecord:
    return RunRecord(
        name="r", created_at=START, recipe_name="tiny-dpo", recipe={"x": 1}, identity={"dpo": identity}, versions={}
    )


def test_launching_the_same_name_again_goes_on_with_the_run() -> None:
    store = ObjectStore.memory()
    first = register_run(store, record(beta=0.1))
    assert register_run(store, record(beta=0.1)) == first == read_run(store)
    with pytest.raises(UserError, match=r"another recipe: dpo.beta was 0.1, is 0.2"):
        register_run(store, record(beta=0.2))


def test_runs_are_listed_and_unknown_ones_named(tmp_path: Any) -> None:
    for name in ("b", "a"):
        register_run(open_run(str(tmp_path), name), record())
    (tmp_path / "notes").mkdir()
    (tmp_path / "other" / "c").mkdir(parents=True)
    (tmp_path / "other" / "c" / "run.json").write_text("{}")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "run.json").write_text('{"mine": 1}')
    assert list_runs(str(tmp_path)) == ["a", "b"]
    with pytest.raises(UnknownRun, match="there is no run 'c'"):
        read_status(open_run(str(tmp_path), "c"), "c", START)


def test_the_diary_is_read_in_order_of_time() -> None:
    store, clock = ObjectStore.memory(), FakeClock()
    for kind in ("attempt_started", "training", "saved"):
        Diary(store, 1, clock).write(kind, step=1)  # type: ignore[arg-type]
        clock.sleep(0.001)
    assert [e.kind for e in read_events(store)] == ["attempt_started", "training", "saved"]


def test_metrics_of_all_attempts_are_kept() -> None:
    store = ObjectStore.memory()
    write_metrics(store, 1, 0, [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4}])
    write_metrics(store, 2, 0, [{"step": 2, "loss": 0.4}])
    write_metrics(store, 2, 1, [])
    assert [(m.attempt, m.rank, m.step) for m in read_metrics(store)] == [(1, 0, 1), (1, 0, 2), (2, 0, 2)]


def test_a_log_is_mirrored_once_whoever_sends_it(tmp_path: Any) -> None:
    store, path = ObjectStore.memory(), tmp_path / "log.txt"
    path.write_bytes(b"one\ntw")
    first = Journal(store, "logs/a0001", path)
    first.sync()
    assert b"".join(read_journal(store, "logs/a0001")) == b"one\n"
    with path.open("ab") as file:
        file.write(b"o\nthree")
    Journal(store, "logs/a0001", path).sync(whole=True)  # another process, after the first one's death
    first.sync()
    assert b"".join(read_journal(store, "logs/a0001")) == b"one\ntwo\nthree"
    assert b"".join(read_journal(store, "logs/a0001", 5)) == b"wo\nthree"


def make_run(store: ObjectStore, loss: float, weight: float) -> None:
    lease = Lease.claim(store, Writer(id="w", host="h", pid=1))
    import torch

    snapshot = Snapshot.take(
        {"model": {"w": torch.tensor([weight])}, "rng": {"s": 1}, "trainer": {"t": loss}}, HostBuffer()
    )
    ref = upload_shard(store, "data/x", 0, snapshot)
    lease.commit(
        Manifest(
            run="r", step=1, epoch=1, world_size=1, created_at=START, reason="final", fingerprint={}, shards=(ref,)
        ),
        Retention(newest=2),
    )
    write_metrics(store, 1, 0, [{"step": 1, "losses_hex": [loss.hex()], "seconds": 1.0}])


def test_equal_runs_are_equal_and_one_bit_is_seen() -> None:
    stores = [ObjectStore.memory() for _ in range(3)]
    make_run(stores[0], 0.5, 1.0)
    make_run(stores[1], 0.5, 1.0)
    make_run(stores[2], 0.5000000000000001, 1.0000001)
    same = compare_runs(stores[0], stores[1])
    assert (same.equal, same.steps, same.tensors) == (True, 1, 1)
    different = compare_runs(stores[0], stores[2])
    assert not different.equal
    assert different.differences == ("loss of rank 0 at step 1", "model/w of rank 0")


# --- the local backend's decisions ------------------------------------------------------------------------------


def test_preemptions_are_spread_over_the_run() -> None:
    points = preemption_points(3, seed=5)
    assert points == preemption_points(3, seed=5) != preemption_points(3, seed=6)
    assert [int(point * 3) for point in points] == [0, 1, 2]


def test_only_a_dead_process_of_this_boot_is_known_to_be_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.local.presence.pid_scope", lambda: "this-boot")
    monkeypatch.setattr("launcher.local.presence.is_alive", lambda pid: pid == 1)

    def head(pid: int, boot: str) -> Any:
        store = ObjectStore.memory()
        return Lease.claim(store, Writer(id="w", host="h", pid=pid, pid_scope=boot)).head

    assert dead_holder(None) == ""
    assert dead_holder(head(1, "this-boot")) == ""
    assert dead_holder(head(2, "this-boot")) == "w"
    assert dead_holder(head(2, "other-boot")) == ""
    assert dead_holder(head(2, "")) == ""


SPOT = Place("gcp", "us", "us-a", "A100:8", True, 36.0)
LAMBDA = Place("lambda", "us-east-1", None, "A100:8", False, 72.0)


def up(seconds: float, place: Place) -> Event:
    since = START + timedelta(seconds=seconds)
    return event(seconds, "machine_up", 0, place=place_data(place), since=since.isoformat())


def test_the_machines_of_a_cloud_run_are_what_it_costs() -> None:
    events = [
        up(-100, SPOT),
        *PREEMPTED_RUN[:5],
        event(58, "machine_gone", 0, place=place_data(SPOT), why="preempted"),
        up(59, LAMBDA),
        *PREEMPTED_RUN[5:],
    ]
    events = sorted(events, key=lambda e: e.time)
    receipt = make_receipt("r", events, PREEMPTED_METRICS, [OFFER], START)
    assert [(line.ended, round(line.hours * 3600, 1)) for line in receipt.machines] == [
        ("preempted", 158.0),
        ("finished", 36.5),
    ]
    assert receipt.cost_usd == pytest.approx(158 * 0.01 + 36.5 * 0.02)
    assert receipt.costs == (), "no guess beside the real bill"


@pytest.mark.parametrize(
    ("source", "ended", "preemptions"), [("gcp", "preempted", 1), ("move", "moved", 0), ("SIGTERM", "stopped", 0)]
)
def test_who_told_an_attempt_to_stop_decides_how_it_is_called(source: str, ended: str, preemptions: int) -> None:
    events = [
        event(0, "attempt_started", 1),
        event(20, "training", 1, step=1),
        event(30, "notice", 1, source=source),
        event(40, "attempt_ended", 1, outcome="preempted", step=5),
        event(60, "attempt_started", 2),
        event(80, "training", 2, step=6),
    ]
    receipt = make_receipt("r", events, [], [], START + timedelta(seconds=90))
    assert receipt.attempts[0].ended == ended
    assert receipt.preemptions == preemptions


@pytest.mark.parametrize(
    ("why", "state"), [("failed_setup", "failed"), ("cancelled", "stopped"), ("moved", "recovering")]
)
def test_skypilots_last_word_on_a_job_is_not_taken_for_a_recovery(why: str, state: str) -> None:
    events = [up(0, SPOT), event(50, "machine_gone", 0, place=place_data(SPOT), why=why)]
    status = derive_status("r", "tiny-dpo", None, None, events, START + timedelta(seconds=60))
    assert (status.state, status.where) == (state, None)


def test_a_refusal_names_zones_prices_and_why() -> None:
    prices = {"us-d": 9, "us-x": 8, "us-b": 7, "us-c": 6}
    zones = [Place("gcp", "us", zone, "A100:8", True, price) for zone, price in prices.items()]
    told = {
        **dict.fromkeys(zones, "Got return code 'ZONE_RESOURCE_POOL_EXHAUSTED': does not have enough resources"),
        SPOT: "Got return code 'QUOTA_EXCEEDED' in us-a: \"Quota 'A100_GPUS' exceeded. Limit: 0.0 in region us\"",
        LAMBDA: "instance-operations/launch/insufficient-capacity: Not enough capacity to fulfill launch request",
    }
    data = {"places": [place_data(place) for place in told], "answers": list(told.values()), "reasons": []}
    assert line_of(event(0, "no_capacity", 0, **data)) == (
        "no machine in 6 places: sold out: gcp/us-c (spot, $6.00/h), gcp/us-b (spot, $7.00/h), gcp/us-x (spot, $8.00/h)"
        f" and 2 more; over quota (Quota 'A100_GPUS' exceeded. Limit: 0.0): gcp/us-a (spot, "
        f"${SPOT.price_usd_per_hour:.2f}/h)"
    )
    odd = {"places": [place_data(LAMBDA)] * 2, "answers": ["the key is not valid", ""], "reasons": []}
    assert str(line_of(event(0, "no_capacity", 0, **odd))).startswith(
        f"no machine in 2 places: the key is not valid: {LAMBDA.where} ($"
    )
    assert "no reason given" in str(line_of(event(0, "no_capacity", 0, **odd)))


def test_a_price_that_changed_is_paid_from_then_on() -> None:
    dearer = replace(SPOT, price_usd_per_hour=72.0)
    events = [
        up(0, SPOT),
        event(1800, "price_changed", 0, place=place_data(dearer)),
        event(3600, "machine_gone", 0, place=place_data(SPOT), why="preempted"),
    ]
    receipt = make_receipt("r", events, [], [], START + timedelta(hours=9))
    assert receipt.cost_usd == pytest.approx(18 + 36)
    assert receipt.machines[0].price_usd_per_hour == 72.0, "the newest"


@pytest.mark.parametrize("launch", [0, 3])
def test_a_run_that_is_done_stays_done_when_its_machine_is_noted_as_gone(launch: int) -> None:
    """Else the same launch again would rent a machine for a run that is done."""
    events = [
        event(0, "planned", 0),
        up(1, SPOT),
        event(60, "attempt_started", 1),
        event(95, "attempt_ended", 1, outcome="finished", step=12),
        event(95.5, "finished", 1, step=12),
        event(120, "machine_gone", 0, place=place_data(SPOT), why="closed", job_status="succeeded"),
    ]
    told = [one.model_copy(update={"launch": launch}) for one in events]
    assert derive_status("r", "tiny-dpo", None, None, told, START + timedelta(seconds=130)).state == "finished"


def test_a_set_up_that_failed_says_why_everywhere() -> None:
    told = {"message": "the driver shows 7 GPUs", "hint": "launch again", "exit_code": 2}
    events = [event(0, "planned", 0), up(1, SPOT), event(60, "failed", 0, **told)]
    status = derive_status("r", "tiny-dpo", None, None, events, START + timedelta(seconds=600))
    assert (status.state, status.note) == ("failed", "failed: the driver shows 7 GPUs (launch again)")
    receipt = make_receipt("r", events, [], [], START + timedelta(seconds=600))
    assert (receipt.state, receipt.failure) == ("failed", "the driver shows 7 GPUs")
    assert [line.ended for line in receipt.machines] == ["failed"]
    console = Console(file=io.StringIO(), width=120)
    console.print(receipt_panel(receipt))
    assert "failed: the driver shows 7 GPUs" in console.file.getvalue()  # type: ignore[attr-defined]
    again = [*events, event(700, "planned", 0)]
    assert make_receipt("r", again, [], [], START).failure == ""


def test_a_machine_that_is_set_up_is_no_wait_for_one() -> None:
    refused = event(5, "no_capacity", 0, places=[place_data(SPOT)], reasons=[], answers=["sold out"])
    now = START + timedelta(seconds=70)
    assert derive_status("r", "tiny-dpo", None, None, [refused, up(60, LAMBDA)], now).state == "starting"


def test_status_says_where_it_is_what_it_costs_and_what_is_wrong() -> None:
    refused = event(5, "no_capacity", 0, places=[place_data(SPOT)], reasons=["sold out"])
    now = START + timedelta(seconds=10)
    waiting = derive_status("r", "tiny-dpo", None, None, [refused], now)
    assert waiting.note == "no machine in 1 places: sold out"
    assert waiting.state == "waiting for a machine"
    again = [event(0, "stopped", 1, step=3), event(5, "planned", 0)]
    assert derive_status("r", "tiny-dpo", None, None, again, now).state == "waiting", "launched again"
    events = [refused, up(6, SPOT), event(7, "attempt_started", 1)]
    running = derive_status("r", "tiny-dpo", None, None, events, START + timedelta(seconds=106))
    assert running.note is None
    assert running.where == "spot A100:8 in gcp/us-a"
    assert running.cost_usd == pytest.approx(1.0)

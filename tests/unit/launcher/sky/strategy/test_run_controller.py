"""The conductor with a fake SkyPilot: what it asks for, what it notes, and that a restart of it forgets nothing."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from checkpoints.commit.head import Lease, Writer
from checkpoints.errors import StoreError
from checkpoints.run_log.event_kinds import Alarm, FalseRecovery
from checkpoints.run_log.event_log import Diary, Event, read_events
from checkpoints.run_log.stop_request import ask, read_request
from checkpoints.storage.object_store import ObjectStore
from checkpoints.util.clock import FakeClock
from launcher.policy.model import Place
from launcher.policy.run_history import machines, place_data, spent_usd
from launcher.policy.settings import Settings
from launcher.policy.spot.preemption_rates import ON_DEMAND_H
from launcher.sky.strategy.life_signs import ALARM_S
from launcher.sky.strategy.patience import UNRESPONSIVE_S
from launcher.sky.strategy.run_controller import LaunchParams, LimitReached, Up
from tests.support.conducted import LAMBDA, SPOT_A, SPOT_B, Run, beating


def test_the_trainer_is_told_how_long_its_machine_lives() -> None:
    run = Run({SPOT_A: 3, LAMBDA: 1})
    run.place()
    for attempt in (1, 2):
        run.train(attempt, minutes=6)
        run.sky.up = False
        run.recover()
    first, second, third = run.sky.lives_h
    assert 2 < first < 4, "of one zone, as the table says"
    assert third < second < first, "each early preemption tells of a rougher market"
    told = Run({SPOT_A: 1, LAMBDA: 1}, hazard_h=5.0)
    told.place()
    assert told.sky.lives_h == [pytest.approx(5.0)]
    bought = Run({LAMBDA: 1})
    bought.place()
    assert bought.sky.lives_h == [ON_DEMAND_H]


def test_a_launch_says_where_and_since_when_it_is_paid() -> None:
    run = Run({SPOT_A: 0, SPOT_B: 1, LAMBDA: 1})
    before = run.clock.now()
    run.place()
    assert run.sky.asked == [(SPOT_A, SPOT_B, LAMBDA)]
    (up,) = run.events("machine_up")
    assert up.data["place"]["zone"] == "us-b"
    assert up.data["since"] == (before + timedelta(seconds=4)).isoformat(), "not since the search in us-a"
    (refusal,) = run.events("no_capacity")
    assert [place["zone"] for place in refusal.data["places"]] == ["us-a"], "Lambda was never asked"
    assert refusal.data["answers"] == refusal.data["reasons"] == ["ZONE_RESOURCE_POOL_EXHAUSTED"]
    assert refusal.time < up.time


def test_a_machine_that_is_lost_before_the_job_starts_was_paid_and_counts_as_preempted() -> None:
    run = Run({SPOT_A: 2, SPOT_B: 0, LAMBDA: 1})
    run.sky.lost, run.sky.taken = 1, True
    run.place()
    assert [event.data["place"]["zone"] for event in run.events("machine_up")] == ["us-a", "us-a"]
    (gone,) = run.events("machine_gone")
    assert (gone.data["why"], gone.data["said"]) == ("preempted", "SkyPilot: connection reset")
    assert run.sky.asked[1] == (SPOT_B, SPOT_A, LAMBDA), "the others were never asked, so they had not refused"
    assert run.sky.waits == []
    first, second = machines(read_events(run.store))
    assert first.ended == "preempted"
    assert spent_usd([first], second.since) == pytest.approx(10.0 * 94 / 3600)


def test_a_start_that_fails_again_and_again_is_not_paid_without_end() -> None:
    run = Run({SPOT_A: 9})
    run.sky.lost = 3
    run.place()
    assert run.sky.waits == [60.0, 60.0]


def test_after_a_preemption_another_zone_comes_first_also_after_a_restart_of_the_controller() -> None:
    run = Run({SPOT_A: 1, SPOT_B: 1, LAMBDA: 1})
    run.place()
    run.train(1, minutes=30)
    run.sky.up = False
    run.clock.sleep(15)
    run.restarted()
    run.recover()
    assert run.sky.asked[1][0] == SPOT_B
    assert [event.data["why"] for event in run.events("machine_gone")] == ["preempted"]
    assert run.sky.released == 1


def test_nobody_waits_for_the_lease_of_a_machine_that_is_terminated() -> None:
    run = Run({SPOT_A: 1, SPOT_B: 2, LAMBDA: 1})
    run.place()
    run.train(1, minutes=30)
    run.sky.up = False
    run.recover()
    assert run.sky.dead_writers == ["", "w1"]
    run.sky.up = False
    run.recover()
    assert run.sky.dead_writers[2:] == [""], "no attempt began on the second machine"
    run.train(2, minutes=30, ended="preempted", notice="gcp")
    run.recover()
    assert run.sky.dead_writers[3:] == [""], "it has given its lease back"


def test_the_lease_of_somebody_else_is_waited_for() -> None:
    run = Run({SPOT_A: 1, SPOT_B: 1, LAMBDA: 1})
    run.place()
    run.train(1, minutes=30)
    Lease.claim(run.store, Writer(id="laptop", host="h", pid=1, pid_scope="x"), clock=run.clock)
    run.sky.up = False
    run.recover()
    assert run.sky.dead_writers == ["", ""]


def test_stock_outs_everywhere_are_waited_for_with_a_reason() -> None:
    run = Run({SPOT_A: 0, LAMBDA: 0})
    run.sky.after_wait = {LAMBDA: 1}
    run.place()
    assert run.sky.waits == [60.0]
    assert run.events("no_capacity")[0].data["reasons"] == ["ZONE_RESOURCE_POOL_EXHAUSTED"]
    assert len(run.events("machine_up")) == 1


def test_a_machine_that_trains_on_is_not_restarted() -> None:
    run = Run({SPOT_A: 1, LAMBDA: 1})
    run.place()
    run.train(1, minutes=5)
    with beating(run, 1):
        run.recover()
    assert run.sky.asked == [(SPOT_A, LAMBDA)]
    assert run.sky.released == 0
    assert len(run.events("false_recovery")) == 1
    run.recover()
    assert len(run.events("machine_gone")) == 1, "silent now: it is dead"


def test_the_end_of_another_machines_attempt_does_not_end_this_one() -> None:
    """A zombie notices that it was fenced when its successor trains already."""
    run = Run({SPOT_A: 2, LAMBDA: 1})
    run.place()
    run.train(1, minutes=5)
    run.sky.up = False
    run.recover()
    run.train(2, minutes=5)
    Diary(run.store, 1, run.clock).write("attempt_ended", outcome="fenced", step=10)
    with beating(run, 2):
        run.recover()
    assert run.sky.released == 1, "only the first machine"
    assert len(run.events("false_recovery")) == 1


def test_a_zombies_heartbeat_is_none_of_its_successors() -> None:
    """The successor is in its set-up, and SkyPilot lost it."""
    run = Run({SPOT_A: 3, LAMBDA: 1})
    run.place()
    run.train(1, minutes=5)
    run.sky.up = False
    run.recover()
    with beating(run, 1):
        run.recover()
    assert run.events("false_recovery") == []
    assert run.sky.released == 2


def test_a_machine_that_its_cloud_has_forgotten_is_no_machine() -> None:
    run = Run({SPOT_A: 2, LAMBDA: 1})
    run.place()
    run.train(1, minutes=5)
    run.sky.up = False
    with beating(run, 1):
        run.recover()
    assert run.events("false_recovery") == []
    assert [event.data["why"] for event in run.events("machine_gone")] == ["preempted"]


def test_back_to_spot_through_the_bucket() -> None:
    run = Run({SPOT_A: 0, LAMBDA: 1}, settings=Settings(return_h=0.5))
    run.place()
    run.train(1, minutes=10)
    assert run.look()
    assert read_request(run.store) is None
    run.clock.sleep(1800)
    run.beat(1, 10)
    assert run.look()
    request = read_request(run.store)
    assert request is not None
    assert (request.action, request.attempt) == ("move", 1)
    assert run.look()
    assert len(run.events("decided")) == 2, "asked once"
    run.sky.stock[SPOT_A] = 1
    Diary(run.store, 1, run.clock).write("notice", source="move")
    Diary(run.store, 1, run.clock).write("attempt_ended", outcome="preempted", step=11)
    run.recover()
    assert run.sky.asked[-1][0] == SPOT_A
    assert [event.data["why"] for event in run.events("machine_gone")] == ["moved"]


def test_the_budget_ends_the_run() -> None:
    run = Run({SPOT_A: 1, LAMBDA: 1}, budget_usd=100.0)
    run.place()
    run.train(1, minutes=595)
    assert run.look()
    request = read_request(run.store)
    assert request is not None
    assert request.action == "stop"
    assert (request.limit, "budget" in request.reason) == ("budget", True)
    Diary(run.store, 1, run.clock).write("attempt_ended", outcome="preempted", step=11)
    with pytest.raises(LimitReached, match="budget"):
        run.recover()
    (stopped,), (*_, asked) = run.events("stopped"), run.events("decided")
    assert (stopped.data["limit"], asked.data["action"], asked.data["cause"]) == ("budget", "stop", "budget")
    assert not run.look()


def test_what_cannot_be_paid_is_never_asked_for() -> None:
    run = Run({SPOT_A: 1, LAMBDA: 1}, budget_usd=50.0)
    with pytest.raises(LimitReached, match=r"\$50.00 left"):
        run.place()
    assert run.sky.asked == []


def test_a_run_without_progress_raises_an_alarm_once_in_a_while() -> None:
    run = Run({SPOT_A: 1})
    run.place()
    run.train(1, minutes=1)
    for _ in range(int(ALARM_S // 60) + 3):
        run.beat(1, 10)
        run.look()
        run.clock.sleep(60)
    (alarm,) = run.events("alarm")
    assert alarm.data["step"] == 10


def test_a_stop_is_never_replaced_by_a_move() -> None:
    store, clock = ObjectStore.memory(), FakeClock()
    ask(store, "stop", 1, "by the user", clock)
    assert ask(store, "move", 1, "cheaper", clock).action == "stop"


def test_a_launch_after_a_job_that_nobody_closed_starts_afresh() -> None:
    """A set-up that failed writes no end; three days later the same name is launched again."""
    run = Run({SPOT_A: 2, LAMBDA: 1}, budget_usd=200.0)
    run.place()
    run.clock.sleep(3 * 86400)
    Diary(run.store, 0, run.clock).write("planned")
    run.clock.sleep(1)
    run.restarted()
    run.place()
    assert len(run.events("machine_up")) == 2
    run.train(1, minutes=1)
    assert run.look()
    assert read_request(run.store) is None, "three days without a machine cost nothing"


@pytest.mark.parametrize("end", ["finished", "stopped"])
def test_nothing_is_recovered_of_a_run_that_is_over(end: Any) -> None:
    """The controller slept through the end of the job, and finds no cluster."""
    run = Run({SPOT_A: 2})
    run.place()
    run.train(1, minutes=5)
    run.clock.sleep(1)
    Diary(run.store, 1, run.clock).write(end, step=10)
    with pytest.raises(LimitReached, match=f"the run is {end}"):
        run.recover()
    assert len(run.sky.asked) == 1


def test_a_stop_that_stands_is_obeyed_before_another_machine_is_paid() -> None:
    run = Run({SPOT_A: 1})
    ask(run.store, "stop", 0, "by the user", run.clock)
    with pytest.raises(LimitReached, match="by the user"):
        run.place()
    assert run.sky.asked == []
    assert read_request(run.store) is None
    assert run.events("stopped")


def test_a_machine_that_obeys_nobody_is_given_back_when_the_budget_is_gone() -> None:
    """Its set-up hangs: there is no trainer that could hear of a stop."""
    run = Run({SPOT_A: 1}, budget_usd=100.0)
    run.place()
    run.clock.sleep(597 * 60)
    run.look()
    assert run.sky.released == 1, "it has nothing to save, so nothing is waited for"
    assert [event.data["why"] for event in run.events("machine_gone")] == ["budget"]
    assert run.events("alarm"), "nor did it make any progress"


def test_a_machine_that_obeys_nobody_is_given_back_for_the_deadline() -> None:
    """The trainer hangs in a step: it beats, and does not look for requests."""
    run = Run({SPOT_A: 1, LAMBDA: 1}, deadline=FakeClock().now() + timedelta(hours=9.2))
    run.place()
    run.train(1, minutes=40)
    for _ in range(30):  # each minute, as SkyPilot has it
        run.beat(1, 10)
        run.look()
        if run.sky.released:
            break
        run.clock.sleep(60)
    causes = [(event.data["action"], event.data["cause"]) for event in run.events("decided")]
    assert causes == [("launch", "slack_enough"), ("move", "deadline")]
    (gone,) = run.events("machine_gone")
    assert gone.data["why"] == "hung"
    waited_s = (gone.time - run.events("decided")[1].time).total_seconds()
    assert 300 <= waited_s <= 420, "two thirds of what a start takes, as measured"
    run.recover()
    assert run.sky.asked[-1][0] == LAMBDA, "which meets the deadline"


def test_a_wish_to_go_back_to_spot_is_no_reason_to_lose_steps() -> None:
    run = Run({SPOT_A: 0, LAMBDA: 1}, settings=Settings(return_h=0.5))
    run.place()
    run.train(1, minutes=40)
    assert run.look()
    assert read_request(run.store) is not None
    run.clock.sleep(UNRESPONSIVE_S + 1)
    run.beat(1, 10)
    run.look()
    assert run.sky.released == 0


@pytest.mark.parametrize("end", ["finished", "stopped"])
def test_the_end_of_an_earlier_job_does_not_end_this_one(end: Any) -> None:
    """Launched by plain `sky jobs launch`; the API server restarts before the machine is noted."""
    run = Run({SPOT_A: 2})
    Diary(run.store, 1, run.clock).write(end, step=10)
    run.clock.sleep(60)
    launch_in = run.sky.launch_in

    async def killed(places: Sequence[Place], told: LaunchParams) -> Up:
        raise KeyboardInterrupt

    run.sky.launch_in = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run.launch()
    run.restarted()
    run.sky.launch_in = launch_in  # type: ignore[method-assign]
    run.recover()
    assert run.sky.up


def test_a_launch_is_noted_once() -> None:
    run = Run({SPOT_A: 1})
    Diary(run.store, 0, run.clock).write("planned", strategy="NOTUS", order=[])
    run.clock.sleep(1)
    run.launch()
    assert len(run.events("planned")) == 1


def test_a_diary_that_cannot_be_written_now_is_written_later(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run({SPOT_A: 1})
    append = Diary.append

    def away(self: Diary, event: Event) -> None:
        raise StoreError("away")

    monkeypatch.setattr(Diary, "append", away)
    run.place()
    assert run.events("machine_up") == []
    monkeypatch.setattr(Diary, "append", append)
    run.train(1, minutes=1)
    assert run.look()
    assert len(run.events("machine_up")) == 1


def test_two_notes_at_once_are_both_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer's look and a recovery note at the same time; each has a thread."""
    run = Run({SPOT_A: 1})
    append = Diary.append
    both = threading.Barrier(2)

    def slow(self: Diary, event: Event) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):  # broken where the second one waits for the first
            both.wait(timeout=0.1)
        append(self, event)

    async def note_twice() -> None:
        diary = run.conductor._diary
        await asyncio.gather(diary.note(Alarm()), diary.note(FalseRecovery(place=place_data(SPOT_A))))

    monkeypatch.setattr(Diary, "append", slow)
    asyncio.run(note_twice())
    assert len(run.events("alarm")) == len(run.events("false_recovery")) == 1

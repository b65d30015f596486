"""Which failed jobs end their run, and which are their machine's fault."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest

from checkpoints.errors import StoreError
from checkpoints.run_log.event_kinds import AttemptEnded, AttemptStarted, Failed, MachineUp, Payload
from checkpoints.run_log.event_log import Diary, Event
from checkpoints.storage.object_store import ObjectStore
from checkpoints.util.clock import FakeClock
from launcher.policy.model import Place
from launcher.policy.run_history import place_data
from launcher.sky.strategy import last_word
from launcher.sky.strategy.last_word import ends_the_run

CLOCK = FakeClock()
PLACE = Place("gcp", "us-central1", "us-central1-a", "A100:8", spot=True, price_usd_per_hour=9.0)
UP = MachineUp(place=place_data(PLACE), since=CLOCK.now() - timedelta(minutes=9), after_attempt=0)
SECOND = UP.model_copy(update={"after_attempt": 1})
FAILED = AttemptEnded(outcome="failed", step=0, message="CUDA error")


def story(*told: Payload) -> list[Event]:
    events = []
    for payload in told:
        CLOCK.sleep(60)
        events.append(Diary(ObjectStore.memory(), 1, CLOCK).compose(payload))
    return events


def never() -> list[Event]:
    raise AssertionError("the code says it")


@pytest.mark.parametrize("codes", [[75], [137], [139], [0, 137]])
def test_a_preemption_and_a_supervisor_that_the_kernel_killed_end_nothing(codes: list[int]) -> None:
    """At step 9,000 neither is a reason to lose the night."""
    assert not ends_the_run(codes, never)


@pytest.mark.parametrize("codes", [[127], [3], [], None])
def test_what_a_machine_got_past_before_is_no_end(codes: list[int] | None) -> None:
    """A driver out of memory has no exit code at all."""
    assert not ends_the_run(codes, lambda: story(UP, AttemptStarted(), UP))
    assert ends_the_run(codes, lambda: story(UP)), "maybe a set-up that can't work"


@pytest.mark.parametrize("code", [2, 76])
def test_a_wrong_recipe_and_a_stop_are_final(code: int) -> None:
    assert ends_the_run([code], never)


def test_code_1_is_final_where_the_trainer_noted_its_end() -> None:
    assert ends_the_run([1], lambda: story(UP, AttemptStarted(), FAILED, Failed(message="gave up", exit_code=1)))
    fenced = AttemptEnded(outcome="fenced", step=5)
    assert ends_the_run([1], lambda: story(UP, AttemptStarted(), fenced)), "to go on would be to fight for the run"


def test_code_1_of_a_machine_that_noted_nothing_is_its_own() -> None:
    """A broken environment: the interpreter falls over the first import, and the machine before had ended well."""
    assert not ends_the_run([1], lambda: story(UP, AttemptStarted(), FAILED, SECOND))
    assert not ends_the_run([1], lambda: story(UP, AttemptStarted())), "nor does it end what it began"
    assert ends_the_run([1], lambda: story(UP)), "no machine has got past it"


def test_a_bucket_that_is_away_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> list[Event]:
        raise StoreError("connection refused")

    assert not ends_the_run([1], away)
    monkeypatch.setattr(last_word, "READ_S", 0.01)
    answer = threading.Event()

    def late() -> list[Event]:
        answer.wait(60)
        return story(UP, FAILED)

    assert not ends_the_run([1], late)
    answer.set()


def test_the_machines_are_told_by_their_attempts_and_not_by_their_clocks() -> None:
    """The first one's clock is ahead: its last line is dated after the second machine came."""
    told = story(UP, AttemptStarted(), SECOND, FAILED)
    assert not ends_the_run([1], lambda: told)

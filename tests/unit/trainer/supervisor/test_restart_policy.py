"""When a failure is worth another machine."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from checkpoints.errors import AccessDenied, RunHeld, StoreError, UserError
from checkpoints.run_log.event_log import Diary, Event
from checkpoints.storage.object_store import ObjectStore
from checkpoints.util.clock import FakeClock
from trainer.errors import DataError, HardwareError, MachineFault, TaskError
from trainer.supervisor.restart_policy import MAX_FAILED_STARTS, failed_starts, gives_up, of_this_machine, passed_before


class Story:
    """Events as they happen, a minute apart."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.events: list[Event] = []

    def tell(self, attempt: int, kind: Any, /, **data: Any) -> Story:
        self.clock.sleep(60)
        self.events.append(Diary(ObjectStore.memory(), attempt, self.clock).write(kind, **data))
        return self

    def attempt(self, number: int, *, saved: int = 0, ended: str = "", inputs: str = "same", step: int = 0) -> Story:
        self.tell(number, "attempt_started", inputs=inputs)
        if saved:
            self.tell(number, "training", step=1).tell(number, "saved", step=saved)
        if ended:
            self.tell(number, "attempt_ended", outcome=ended, step=max(step, saved))
        return self


def test_three_failed_starts_in_a_row_end_the_run_and_not_two() -> None:
    story = Story().attempt(1, saved=9000, ended="preempted")
    for number in (2, 3):
        story.attempt(number, ended="failed")
        assert not gives_up(story.events)
    story.attempt(4, ended="failed")
    assert failed_starts(story.events) == MAX_FAILED_STARTS
    assert gives_up(story.events)


def test_progress_begins_the_count_anew_also_that_of_the_attempt_which_crashed() -> None:
    story = Story().attempt(1, ended="failed").attempt(2, ended="failed").attempt(3, saved=10, ended="failed")
    assert failed_starts(story.events) == 0
    assert failed_starts(story.attempt(4, ended="failed").events) == 1


@pytest.mark.parametrize("ended", ["", "preempted", "fenced"])
def test_a_machine_that_is_taken_away_is_no_failed_start(ended: str) -> None:
    story = Story()
    for number in range(1, 20):
        story.attempt(number, ended=ended)
    assert failed_starts(story.attempt(20, ended="failed").events) == 1


def test_set_ups_and_attempts_count_together() -> None:
    story = Story().attempt(1, saved=5, ended="preempted").tell(0, "setup_failed", message="pip", after=1)
    story.attempt(2, ended="failed").tell(0, "setup_failed", message="pip", after=2)
    assert gives_up(story.events)


def test_launching_again_begins_the_count_anew() -> None:
    for kind, attempt in (("planned", 0), ("failed", 3), ("stopped", 3)):
        story = Story().attempt(1, ended="failed").attempt(2, ended="failed").attempt(3, ended="failed")
        assert failed_starts(story.tell(attempt, kind).events) == 0
        assert failed_starts(story.attempt(4, ended="failed").events) == 1


def test_clocks_of_the_machines_do_not_order_the_launches() -> None:
    """The machine that saved is an hour fast: its save sorts after the failures that came later."""
    fast = Story().attempt(1, saved=100, ended="preempted").events
    fast = [event.model_copy(update={"time": event.time + timedelta(hours=1)}) for event in fast]
    later = Story().attempt(2, ended="failed").tell(0, "setup_failed", message="x", after=2).attempt(3, ended="failed")
    events = sorted([*fast, *later.events], key=lambda event: event.time)
    assert events[-1].kind == "attempt_ended"
    assert events[-1].attempt == 1
    assert failed_starts(events) == 3


def test_what_an_earlier_attempt_got_past_is_this_machines_trouble() -> None:
    trained = Story().attempt(1, saved=100, ended="preempted").events
    started_only = Story().attempt(1, ended="failed").events
    for error in (DataError("x"), AccessDenied("403"), RunHeld("held"), HardwareError("small"), UserError("x")):
        assert of_this_machine(error, trained, "same")
        assert not of_this_machine(error, trained, "changed"), "launched again with another recipe, data or code"
        assert not of_this_machine(error, started_only, "same")
        assert not of_this_machine(error, [], "same"), "the first machine"
        assert not of_this_machine(error, trained, ""), "a recipe that can't be read"
    assert of_this_machine(MachineFault("a card is missing"), [], "same")
    assert not of_this_machine(TaskError("2 nodes"), trained, "same"), "the inputs are the same, and the task is not"
    assert of_this_machine(StoreError("away"), [], "same")
    assert of_this_machine(RunHeld("held"), [], "", rented=True), "the holder may be a zombie that dies meanwhile"
    for error in (DataError("x"), AccessDenied("403"), HardwareError("small"), UserError("x"), TaskError("2 nodes")):
        assert not of_this_machine(error, [], "same", rented=True)


def test_during_training_the_point_is_a_step() -> None:
    """A loss that is no number at step 121: it comes back on every machine, unless one got past it."""
    events = Story().attempt(1, saved=100, ended="preempted", step=110).attempt(2, ended="failed").events
    assert not passed_before(events, "same", attempt=3, phase="training", step=120)
    assert passed_before(events, "same", attempt=3, phase="training", step=105), "it was computed, if not saved"
    assert passed_before(events, "same", attempt=3, phase="restoring", step=0)
    own = Story().attempt(1, ended="user_error", step=120).events
    assert not passed_before(own, "same", attempt=1, phase="training", step=120)

"""One curve over all attempts, and trackers that fail."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from checkpoints.run_log.event_log import Event
from checkpoints.run_log.metrics import StepMetrics
from trainer.metrics import trackers
from trainer.metrics.past_rows import Row, past_rows
from trainer.metrics.trackers import Curves, WandbCurve, first_step_shown


def line(attempt: int, step: int, loss: float) -> StepMetrics:
    return StepMetrics(attempt, 0, step, {"loss": loss, "logged": {"loss": loss, "attempt": float(attempt)}})


def evaluation(attempt: int, step: int) -> Event:
    data = {"step": step, "metrics": {"eval_loss": 0.5, "eval_model": "x"}}
    return Event(time=datetime(2026, 1, attempt, tzinfo=UTC), id="e", kind="evaluated", attempt=attempt, data=data)


def test_each_step_is_shown_once_and_by_the_attempt_that_counts() -> None:
    metrics = [line(1, 1, 0.9), line(1, 2, 0.8), line(1, 3, 0.7), line(2, 2, 0.8), line(2, 4, 0.6)]
    metrics.append(StepMetrics(2, 0, 3, {"loss": 0.7}))  # a step that no tracker was shown
    rows = past_rows(metrics, [evaluation(1, 2)], 3, evaluation_due=False)
    assert [(row.step, row.evaluation) for row in rows] == [(1, False), (2, False), (2, True), (3, False)]
    assert [row.values.get("attempt") for row in rows] == [1, 2, None, 1]
    assert rows[2].values == {"eval_loss": 0.5}


def test_an_evaluation_that_comes_again_is_not_shown_before() -> None:
    rows = past_rows([line(1, 2, 0.8)], [evaluation(1, 1), evaluation(1, 2)], 2, evaluation_due=True)
    assert [(row.step, row.evaluation) for row in rows] == [(1, True), (2, False)]


def test_without_a_record_of_before_tensorboard_keeps_the_old_curve_up_to_the_resumed_step() -> None:
    assert first_step_shown([], 10) == 11
    assert first_step_shown([Row(1, False, {})], 10) == 1


class Failing:
    def __init__(self, after: int) -> None:
        self.after = after
        self.rows: list[Row] = []

    def show(self, row: Row) -> None:
        if len(self.rows) == self.after:
            raise ConnectionError("gone")
        self.rows.append(row)

    def close(self) -> None:
        raise ConnectionError("still gone")


def test_a_tracker_that_fails_is_left_out_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    def away() -> Failing:
        raise RuntimeError("away")

    good, bad = Failing(after=99), Failing(after=1)
    shown = Curves({"away": away, "bad": lambda: bad, "good": lambda: good})
    for step in (1, 2, 3):
        shown.show([Row(step, False, {})])
    shown.close()
    assert [row.step for row in good.rows] == [1, 2, 3]
    assert len(bad.rows) == 1
    assert [record.message.split(" (")[0] for record in caplog.records] == [
        "continuing without away: RuntimeError: away",
        "continuing without bad: ConnectionError: gone",
        "continuing without good: ConnectionError: still gone",
    ]


def test_a_tracker_that_does_not_answer_gets_what_it_has_missed(caplog: pytest.LogCaptureFixture) -> None:
    answers, late = threading.Event(), Kept()

    def open_late() -> Kept:
        assert answers.wait(30)
        return late

    shown = Curves({"late": open_late}, open_s=0.01)
    assert "late does not respond: training starts without it" in caplog.text
    shown.show([Row(1, False, {})])
    shown.show([Row(2, False, {})])
    assert late.rows == []
    answers.set()
    shown.show([Row(3, False, {})])
    shown.close()
    assert [row.step for row in late.rows] == [1, 2, 3]
    assert late.closed


def test_all_rows_of_a_long_run_are_shown_again_after_a_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than may wait for a tracker during training."""
    monkeypatch.setattr(trackers, "MOST_ROWS", 3)
    late, opens = Kept(), threading.Event()

    def open_late() -> Kept:
        assert opens.wait(30)
        return late

    shown = Curves({"late": open_late}, open_s=0.0)
    shown.show([Row(step, False, {}) for step in range(1, 21)])
    shown.show([Row(21, False, {})])
    opens.set()
    shown.close()
    assert [row.step for row in late.rows] == list(range(1, 22))


class Kept(Failing):
    """One that works."""

    closed = False

    def __init__(self) -> None:
        super().__init__(after=99)

    def close(self) -> None:
        self.closed = True


def test_a_tracker_that_never_answers_ends_with_a_word(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trackers, "CLOSE_S", 0.01)
    shown = Curves({"away": threading.Event().wait}, open_s=0.01)  # type: ignore[dict-item]
    shown.show([Row(1, False, {})])
    shown.close()
    assert "away never responded" in caplog.text


def test_a_tracker_that_freezes_in_mid_run_keeps_no_training_waiting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """W&B's client waits for a process of its own, which may be stopped."""
    thaws = threading.Event()

    class Frozen(Kept):
        def show(self, row: Row) -> None:
            assert thaws.wait(30)

    monkeypatch.setattr(trackers, "CLOSE_S", 0.01)
    monkeypatch.setattr(trackers, "MOST_ROWS", 3)
    good = Kept()
    shown = Curves({"frozen": Frozen, "good": lambda: good})
    for step in range(1, 9):
        shown.show([Row(step, False, {})])
        wait_for(lambda rows=step: len(good.rows) == rows)  # type: ignore[misc]
    assert "continuing without frozen: TimeoutError: it has not accepted the last 3 rows" in caplog.text
    shown.close()
    thaws.set()
    assert [row.step for row in good.rows] == list(range(1, 9))


def wait_for(happened: Callable[[], bool]) -> None:
    """Another thread does it within microseconds; the limit is for a machine that is busy."""
    for _ in range(10**7):
        if happened():
            return
    raise AssertionError("it never happened")


class FakeRun:
    step = 7
    """W&B has the rows of steps 1 to 3."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, Any]]] = []

    def define_metric(self, *args: str, **options: Any) -> None: ...

    def log(self, row: dict[str, Any], *, step: int, commit: bool) -> None:
        assert commit, "a row that waits for more is lost with the machine"
        self.rows.append((step, row))
        self.step = step + 1

    def finish(self) -> None: ...


def test_wandb_gets_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **options: run))
    curve = WandbCurve("run", {})
    for row in (Row(3, False, {"loss": 1.0}), Row(3, True, {"eval_loss": 2.0}), Row(4, False, {"loss": 0.5})):
        curve.show(row)
    assert run.rows == [
        (7, {"eval/loss": 2.0, "train/global_step": 3}),
        (8, {"train/loss": 0.5, "train/global_step": 4}),
    ]


def test_a_wandb_that_never_ends_does_not_keep_the_machine(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run, ends = FakeRun(), threading.Event()
    run.finish = ends.wait  # type: ignore[method-assign,assignment]
    monkeypatch.setattr(trackers, "CLOSE_S", 0.01)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **options: run))
    Curves({"wandb": lambda: WandbCurve("run", {})}).close()
    ends.set()
    assert "wandb doesn't accept its last rows" in caplog.text

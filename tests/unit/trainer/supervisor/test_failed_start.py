"""Machines that failed before they could begin an attempt."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from checkpoints.commit.head import Lease, Writer
from checkpoints.errors import AccessDenied, NotusError, RunHeld, StoreError, UserError
from checkpoints.run_log.event_log import Diary, read_events
from checkpoints.run_log.run_record import open_run
from checkpoints.storage.base import Store
from trainer import main
from trainer.config.recipe import load_recipe
from trainer.data.input_hash import inputs_digest
from trainer.errors import SET_UP_GAVE_UP, MachineFault
from trainer.main import exit_code, judge_refusal
from trainer.runtime.attempt_dir import Outcome
from trainer.supervisor import failed_start


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    (tmp_path / "bucket").mkdir()
    monkeypatch.setenv("NOTUS_BUCKET", str(tmp_path / "bucket"))
    monkeypatch.setenv("NOTUS_RUN", "r")
    for name in ("NOTUS_PRICE_USD_H", "NOTUS_SPENT_USD", "SKYPILOT_CLUSTER_INFO"):
        monkeypatch.delenv(name, raising=False)
    return open_run(str(tmp_path / "bucket"), "r")


def trained(store: Store) -> None:
    """An attempt that saved, with the input of this machine."""
    Lease.claim(store, Writer(id="w1", host="h", pid=1)).release()
    diary = Diary(store, 1)
    diary.write("attempt_started", inputs=inputs_digest(load_recipe("tiny-dpo")))
    diary.write("training", step=1, total_steps=24)
    diary.write("saved", step=9)


def judged(store: Store, error: NotusError) -> int:
    kind = "user_error" if isinstance(error, UserError) else "failed"
    refused = Outcome(kind=kind, message=error.message)  # type: ignore[arg-type]
    bucket = store.url.removeprefix("file://").removesuffix("/r")
    return exit_code(judge_refusal(error, refused, "tiny-dpo", "r", bucket))


def report(monkeypatch: pytest.MonkeyPatch, log: Path) -> int:
    monkeypatch.setattr(sys, "argv", ["failed_start", "pip install torch", str(log)])
    return failed_start.main()


def test_a_set_up_that_fails_is_in_the_diary_with_its_command_and_last_words(
    run: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {number}\n\n" for number in range(100)) + "ERROR: no matching distribution\n")
    assert report(monkeypatch, log) == 0
    (event,) = read_events(run)
    assert (event.kind, event.attempt) == ("setup_failed", 0)
    assert event.data["command"] == "pip install torch"
    assert event.data["message"].endswith("ERROR: no matching distribution")
    assert "line 80" not in event.data["message"], "the last lines"


def test_the_third_in_a_row_gives_up_and_says_why(run: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trained(run)
    codes = [report(monkeypatch, tmp_path / "nothing") for _ in range(3)]
    assert codes == [0, 0, SET_UP_GAVE_UP]
    last = read_events(run)[-1]
    assert (last.kind, last.data["exit_code"]) == ("failed", 1)
    assert "3 failed starts in a row" in last.data["message"]
    assert "pip install torch" in last.data["message"]
    assert report(monkeypatch, tmp_path / "nothing") == 0, "launched again: the count begins anew"


@pytest.mark.parametrize(
    "error",
    [AccessDenied("403"), RunHeld("held"), UserError("no such file"), StoreError("503"), MachineFault("no GPU")],
)
def test_a_recovered_machine_asks_for_another_and_three_of_them_give_up(run: Store, error: NotusError) -> None:
    trained(run)
    assert [judged(run, error) for _ in range(3)] == [75, 75, 1]


@pytest.mark.parametrize("error", [AccessDenied("403"), RunHeld("held"), UserError("no such file")])
def test_the_first_machine_says_at_once_what_every_other_would(run: Store, error: NotusError) -> None:
    with pytest.raises(type(error)):
        judged(run, error)
    assert read_events(run) == []


def test_a_run_that_is_held_asks_for_another_try_on_a_rented_machine(
    run: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on the first machine of a job, of which nobody has got past anything: exit code 2 would end the job."""
    monkeypatch.setenv("SKYPILOT_CLUSTER_INFO", '{"cloud": "gcp"}')
    assert [judged(run, RunHeld("held")) for _ in range(3)] == [75, 75, 1]
    assert [event.kind for event in read_events(run)] == [*["setup_failed"] * 3, "failed"]
    with pytest.raises(UserError):
        judged(run, UserError("no such file"))


@pytest.mark.parametrize(("price", "code"), [({}, 1), ({"NOTUS_PRICE_USD_H": "16"}, 75)])
def test_a_run_that_is_held_never_ends_a_job_as_the_users_error_also_without_the_diary(
    run: Store, monkeypatch: pytest.MonkeyPatch, price: dict[str, str], code: int
) -> None:
    def away(*arguments: object) -> Store:
        raise StoreError("away")

    for name, value in {"SKYPILOT_CLUSTER_INFO": "{}", **price}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(main, "open_run", away)
    assert judged(run, RunHeld("held")) == code


def test_no_wait_for_the_bucket_breaks_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "machine_age_s", lambda: 600.0)
    for name, value in (("NOTUS_PRICE_USD_H", "16"), ("NOTUS_BUDGET_USD", "50"), ("NOTUS_SPENT_USD", "49")):
        monkeypatch.setenv(name, value)
    assert not main._may_pass(StoreError("away"))
    monkeypatch.setenv("NOTUS_SPENT_USD", "20")
    assert main._may_pass(StoreError("away"))
    assert not main._may_pass(UserError("another recipe"))


def test_a_recipe_that_cannot_be_read_is_no_machines_fault(run: Store) -> None:
    trained(run)
    error = UserError("no recipe of that name")
    with pytest.raises(UserError):
        judge_refusal(error, Outcome(kind="user_error"), "tiny-dop", "r", "/nowhere")


@pytest.mark.parametrize(
    ("error", "environment", "code"),
    [
        (StoreError("away"), {}, 1),  # SkyPilot's own strategies would ask for machines without end
        (StoreError("away"), {"NOTUS_PRICE_USD_H": "16"}, 75),
        (AccessDenied("403"), {"NOTUS_PRICE_USD_H": "16", "NOTUS_SPENT_USD": "31.5"}, 75),
        (AccessDenied("403"), {"NOTUS_PRICE_USD_H": "16", "NOTUS_SPENT_USD": "0"}, 2),
        (AccessDenied("403"), {}, 2),
        (MachineFault("no GPU"), {"NOTUS_PRICE_USD_H": "16"}, 75),
    ],
)
def test_without_the_diary_only_who_counts_elsewhere_asks_for_another_machine(
    run: Store, monkeypatch: pytest.MonkeyPatch, error: NotusError, environment: dict[str, str], code: int
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def away(*arguments: object) -> Store:
        raise error if isinstance(error, AccessDenied) else StoreError("away")

    monkeypatch.setattr(main, "open_run", away)
    if code == 2:
        with pytest.raises(UserError):
            judged(run, error)
    else:
        assert judged(run, error) == code

"""A launch in a cloud with a fake SkyPilot client: everything that is refused for nothing, and the submission."""

from __future__ import annotations

import contextlib
import json
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from checkpoints.commit.head import Lease, Writer
from checkpoints.errors import BucketUnusable, UserError
from checkpoints.run_log.event_log import Diary, read_events
from checkpoints.run_log.launches import newest_launch, take_launch_number
from checkpoints.run_log.run_record import HEARTBEAT_KEY, Heartbeat, register_run, write_controller_beat
from checkpoints.run_log.stop_request import ask, read_request
from checkpoints.storage.object_store import ObjectStore
from checkpoints.util.clock import FakeClock
from launcher import cli
from launcher.commands import follow_run, inspect_runs, launch_cloud, stop_run
from launcher.errors import RequestError, RunFailed, SkyFailed, UnclearJob
from launcher.planning.plan import Candidate
from launcher.policy.model import Place
from launcher.policy.run_history import place_data
from launcher.run_identity import RunIdentity, run_identity
from launcher.sky import client
from launcher.sky.client import Job
from launcher.sky.job_secrets import collect_secrets
from launcher.sky.jobs import origin_of
from launcher.sky.setup.doctor import fix
from launcher.sky.submission import EVERY_S, SETTLE_S, settle
from launcher.sky.workdir import prepare_workdir
from tests.support.paths import ROOT
from trainer.config.recipe import load_recipe
from trainer.main import new_record

GCP, LAMBDA = Candidate(cloud="gcp", gpus="A100:8", spot=True), Candidate(cloud="lambda", gpus="A100:8", spot=False)
LAUNCH = ("--recipe", "tiny-dpo", "--cloud", "gcp", "--gpus", "A100:8", "--name", "r", "--yes", "--detach")


class FakeSky:
    """Remembers what was submitted."""

    def __init__(self) -> None:
        self.submitted: list[tuple[Mapping[str, Any], Mapping[str, str]]] = []
        self.cancelled: list[int] = []
        self.job: Job | None = None
        """That of the run that is asked for, unless it says otherwise."""
        self.tells = True
        self.interruption: BaseException | None = None
        """What cuts the next submission off, after SkyPilot has the job."""
        self.late: list[bool] = []
        """Whether its server is still at work on a submission, look by look."""

    def submit(self, config: Mapping[str, Any], secrets: Mapping[str, str]) -> int:
        self.submitted.append((config, secrets))
        told = origin_of(yaml.safe_dump(dict(config)), "notus-launch --name r")
        self.job = Job(7, config["name"], "STARTING", 0, "", None, told.run, told.submission)
        error, self.interruption = self.interruption, None
        if error is not None:
            raise error
        return 7

    def find_job(self, run: RunIdentity, job_id: int | None = None) -> Job | None:
        return self.job._replace(run=run) if self.job and self.tells and self.job.run is None else self.job

    def cancel(self, job_id: int) -> None:
        self.cancelled.append(job_id)


@pytest.fixture
def sky(monkeypatch: pytest.MonkeyPatch) -> FakeSky:
    fake = FakeSky()
    for name in ("submit", "find_job", "cancel"):
        monkeypatch.setattr(client, name, getattr(fake, name))
    monkeypatch.setattr(client, "dashboard", lambda job_id: f"http://sky/{job_id}")
    monkeypatch.setattr(client, "is_launching", lambda: bool(fake.late) and fake.late.pop(0))
    return fake


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """Behind every bucket URL."""
    made = ObjectStore.memory()
    for module in (launch_cloud, stop_run):
        monkeypatch.setattr(module, "open_run", lambda bucket, name: made, raising=False)
    monkeypatch.setattr("checkpoints.run_log.run_record.open_run", lambda bucket, name: made)
    monkeypatch.setattr(launch_cloud, "SystemClock", FakeClock)
    return made


Launch = Callable[..., int]


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Launch:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NOTUS_HOME", str(tmp_path / "notus"))
    (tmp_path / "notus/bucket").mkdir(parents=True)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret")
    for name in ("HF_TOKEN", "AWS_SESSION_TOKEN", "NOTUS_BUCKET", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["notus-launch", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code if isinstance(caught.value.code, int) else 0

    return run


def test_a_launch_submits_the_task_with_secrets_apart(
    launch: Launch, sky: FakeSky, store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fix(tmp_path, {})
    assert launch(*LAUNCH, "--bucket", "s3://b/notus", "--budget", "500", "--deadline", "48h", "-o", "json") == 0
    ((config, secrets),) = sky.submitted
    assert secrets == {"AWS_ACCESS_KEY_ID": "the-key", "AWS_SECRET_ACCESS_KEY": "the-secret"}
    assert "the-secret" not in json.dumps(config)
    assert config["resources"]["job_recovery"]["strategy"] == "NOTUS"
    assert config["envs"]["NOTUS_BUDGET_USD"] == "500"
    assert config["envs"]["NOTUS_DEADLINE"]
    sent = Path(config["workdir"])
    assert (sent / "trainer/main.py").exists()
    assert not (sent / "tests").exists()
    captured = capsys.readouterr()
    assert json.loads(captured.out)["job"] == 7
    assert "about $" in captured.err
    assert "the-secret" not in captured.err
    assert [event.kind for event in read_events(store)] == ["planned"]


def test_the_same_name_again_starts_nothing_twice(launch: Launch, sky: FakeSky, store: ObjectStore) -> None:
    for _ in range(2):
        assert launch(*LAUNCH, "--bucket", "s3://b") == 0
    assert len(sky.submitted) == 1
    sky.job = Job(7, "r", "CANCELLED", 0, "")
    ask(store, "stop", 1, "by the user")
    assert launch(*LAUNCH, "--bucket", "s3://b") == 0
    assert len(sky.submitted) == 2
    assert read_request(store) is None, "a stop of yesterday is not meant for this launch"
    Diary(store, 1).write("finished", step=3)
    assert launch(*LAUNCH, "--bucket", "s3://b") == 0
    assert len(sky.submitted) == 2


# --- which run a job is for ---------------------------------------------------------------------------


ELSEWHERE = Job(7, "r", "RUNNING", 0, "", None, run_identity("s3://a", "r"))


def test_a_launch_never_follows_the_job_of_another_bucket(launch: Launch, sky: FakeSky, store: ObjectStore) -> None:
    sky.job = ELSEWHERE
    assert launch(*LAUNCH, "--bucket", "s3://b") == 0
    ((config, _),) = sky.submitted
    assert config["envs"]["NOTUS_BUCKET"] == "s3://b"


@pytest.mark.parametrize("now", [(), ("--now",)])
def test_a_stop_never_cancels_the_job_of_another_bucket(
    launch: Launch, sky: FakeSky, store: ObjectStore, quick: None, now: tuple[str, ...]
) -> None:
    registered(store)
    sky.job = ELSEWHERE
    assert launch("stop", "r", "--bucket", "s3://b", *now) == RunFailed.exit_code
    assert sky.cancelled == []


def test_a_job_that_does_not_tell_is_left_alone(
    launch: Launch, sky: FakeSky, store: ObjectStore, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    sky.job, sky.tells = Job(7, "r", "RUNNING", 0, ""), False
    assert launch(*LAUNCH, "--bucket", "s3://b") == UnclearJob.exit_code
    assert "doesn't show its bucket and run" in capsys.readouterr().err
    registered(store)
    assert launch("stop", "r", "--bucket", "s3://b", "--now") == RunFailed.exit_code
    assert "sky jobs cancel 7" in capsys.readouterr().err
    assert (sky.submitted, sky.cancelled) == ([], [])


@pytest.mark.parametrize(("name", "better"), [("2026-11-28", "run-2026-11-28"), ("7B DPO", "run-7b-dpo")])
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_name_that_skypilot_refuses_is_refused_here_first(
    launch: Launch, sky: FakeSky, capsys: pytest.CaptureFixture[str], name: str, better: str, dry: tuple[str, ...]
) -> None:
    words = [word if word != "r" else name for word in LAUNCH]
    assert launch(*words, "--bucket", "s3://b", *dry) == 2
    assert f"--name {better}" in capsys.readouterr().err
    assert sky.submitted == []


# --- submissions --------------------------------------------------------------------------------------


def turns(store: ObjectStore) -> list[tuple[str, int]]:
    return [(event.kind, event.launch) for event in read_events(store)]


def test_a_submission_is_written_down_before_it_is_made(launch: Launch, sky: FakeSky, store: ObjectStore) -> None:
    assert launch(*LAUNCH, "--bucket", "s3://b") == 0
    ((config, _),) = sky.submitted
    (planned,) = read_events(store)
    assert config["envs"]["NOTUS_SUBMISSION"] == planned.data["submission"]
    assert (config["envs"]["NOTUS_LAUNCH"], planned.launch) == ("1", 1)
    made = newest_launch(store)
    assert made is not None
    assert (made.number, made.submission) == (1, planned.data["submission"])


def test_ctrl_c_at_the_submission_cancels_what_skypilot_took(launch: Launch, sky: FakeSky, store: ObjectStore) -> None:
    sky.interruption = KeyboardInterrupt()
    assert launch(*LAUNCH, "--bucket", "s3://b") != 0
    assert sky.cancelled == [7]
    assert turns(store) == [("planned", 1), ("stopped", 1)]


def test_a_connection_that_is_lost_after_the_submission_finds_the_job(
    launch: Launch, sky: FakeSky, store: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    sky.interruption = SkyFailed("SkyPilot: connection reset")
    assert launch(*LAUNCH, "--bucket", "s3://b", "-o", "json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["job"] == 7
    assert "has accepted the job despite the error" in captured.err
    assert (sky.cancelled, turns(store)) == ([], [("planned", 1)])


def test_a_submission_of_which_nothing_is_known_is_not_called_stopped(
    launch: Launch,
    sky: FakeSky,
    store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And the next launch of the name follows the job that came of it."""

    def away(run: RunIdentity, job_id: int | None = None) -> Job | None:
        if sky.submitted:
            raise SkyFailed("SkyPilot: no answer")
        return None

    sky.interruption = KeyboardInterrupt()
    monkeypatch.setattr(client, "find_job", away)
    assert launch(*LAUNCH, "--bucket", "s3://b") == SkyFailed.exit_code
    assert "it is unknown if it has the job" in capsys.readouterr().err
    assert turns(store) == [("planned", 1)]
    monkeypatch.setattr(client, "find_job", sky.find_job)
    assert launch(*LAUNCH, "--bucket", "s3://b") == 0
    assert "running as SkyPilot's job 7" in capsys.readouterr().err
    assert len(sky.submitted) == 1


def test_a_launch_that_was_killed_before_its_submission_can_be_made_again_at_once(
    launch: Launch, sky: FakeSky, store: ObjectStore
) -> None:
    Diary(store, 0, launch=take_launch_number(store, "abc")).write("planned", strategy="NOTUS", submission="abc")
    assert launch(*LAUNCH, "--bucket", "s3://b") == 0
    assert turns(store) == [("planned", 1), ("planned", 2)]


def test_a_job_that_failed_before_its_first_word_was_not_cut_off(
    launch: Launch, sky: FakeSky, store: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch(*LAUNCH, "--bucket", "s3://b") == 0
    assert sky.job is not None
    sky.job = sky.job._replace(status="FAILED_PRECHECKS")
    assert launch(*LAUNCH, "--bucket", "s3://b") == 0
    assert "cut off" not in capsys.readouterr().err
    assert turns(store) == [("planned", 1), ("planned", 2)]


def test_a_launch_of_another_computer_of_the_same_name_was_not_cut_off_here(
    launch: Launch, sky: FakeSky, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(uuid, "getnode", lambda: 1)
        number = take_launch_number(store, "abc")
    Diary(store, 0, launch=number).write("planned", strategy="NOTUS", submission="abc")
    assert launch(*LAUNCH, "--bucket", "s3://b") == 2, "launched somewhere else"
    assert sky.submitted == []


def test_a_launch_whose_controller_has_begun_was_not_cut_off_though_its_clock_is_behind(
    launch: Launch, sky: FakeSky, store: ObjectStore
) -> None:
    number = take_launch_number(store, "abc")
    behind = FakeClock(datetime.now(UTC) - timedelta(minutes=10))
    Diary(store, 0, behind, number).write("decided", action="launch", reason="cheapest first")
    Diary(store, 0, launch=number).write("planned", strategy="NOTUS", submission="abc")
    assert launch(*LAUNCH, "--bucket", "s3://b") == 2, "the job is another server's by now"
    assert sky.submitted == []


def test_a_job_that_comes_late_of_a_launch_that_was_killed_is_followed(
    launch: Launch,
    sky: FakeSky,
    store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """SkyPilot makes the controller's VM for minutes before there is a job."""
    Diary(store, 0, launch=take_launch_number(store, "abc")).write("planned", strategy="NOTUS", submission="abc")
    sky.late = [True, True, True]
    job = Job(9, "r", "STARTING", 0, "", None, run_identity("s3://b", "r"), "abc")
    monkeypatch.setattr(client, "find_job", lambda run, job_id=None: None if len(sky.late) > 1 else job)
    assert launch(*LAUNCH, "--bucket", "s3://b") == 0
    assert "running as SkyPilot's job 9" in capsys.readouterr().err
    assert sky.submitted == []


@pytest.mark.parametrize(
    ("error", "state", "outcome"),
    [
        (client.NotSubmitted("reset", "", "request"), "over", "refused"),
        (client.NotSubmitted("reset", "", "request"), "under way", "unknown"),
        (client.NotSubmitted("reset", "", "request"), "unknown", "unknown"),
        (client.NotSubmitted("reset", "", ""), "over", "unknown"),
        (SkyFailed("no such GPU"), "over", "refused"),
        (KeyboardInterrupt(), "over", "refused"),
        (SystemExit(1), "over", "refused"),
    ],
)
def test_what_is_known_of_a_submission_without_a_number(
    sky: FakeSky, monkeypatch: pytest.MonkeyPatch, error: BaseException, state: str, outcome: str
) -> None:
    monkeypatch.setattr(client, "request_state", lambda request: state)
    clock, run = FakeClock(), run_identity("s3://b", "r")
    assert settle(run, "abc", error, clock).state == outcome
    assert clock.monotonic() <= SETTLE_S + EVERY_S
    sky.job = Job(7, "r", "RUNNING", 0, "", None, run, "another")
    assert settle(run, "abc", error, clock).state == outcome, "a job of another submission is not this one"
    sky.job = sky.job._replace(submission="abc")
    assert settle(run, "abc", error, clock).job == sky.job


def test_an_old_job_is_told_from_the_newest_launch_by_its_submission_not_by_clocks(
    launch: Launch, sky: FakeSky, store: ObjectStore
) -> None:
    """The launch elsewhere has a clock that is an hour behind."""
    assert launch(*LAUNCH, "--bucket", "s3://b") == 0
    assert sky.job is not None
    sky.job = sky.job._replace(status="CANCELLED", ended_at=datetime.now(UTC) - timedelta(minutes=1))
    number = take_launch_number(store, "elsewhere")
    up_since(store, FakeClock(datetime.now(UTC) - timedelta(hours=1)), number)
    with lives_elsewhere(store, "trainer"):
        assert launch(*LAUNCH, "--bucket", "s3://b") == 2, "launched somewhere else"
    assert len(sky.submitted) == 1


# --- limits -------------------------------------------------------------------------------------------


class Now(datetime):
    """In the place of `datetime`, for modules that ask the system's clock."""

    time = datetime(2026, 11, 28, 12, tzinfo=UTC)

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return cls.time


@pytest.mark.parametrize(
    ("deadline", "expected"),
    [("2026-11-30T12:00:00+00:00", "2026-11-30T12:00:00+00:00"), ("48h", "2026-11-30T13:00:00+00:00")],
)
def test_an_absolute_deadline_stays_while_the_question_is_open(
    launch: Launch,
    sky: FakeSky,
    store: ObjectStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    deadline: str,
    expected: str,
) -> None:
    fix(tmp_path, {})
    start = datetime(2026, 11, 28, 12, tzinfo=UTC)
    monkeypatch.setattr(Now, "time", start)
    monkeypatch.setattr(launch_cloud, "datetime", Now)
    monkeypatch.setattr(cli, "datetime", Now)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    asked: list[str] = []

    def lunch(text: str, **_: Any) -> None:
        asked.append(text)
        Now.time = start + timedelta(hours=1)

    monkeypatch.setattr("typer.confirm", lunch)
    words = [word for word in LAUNCH if word != "--yes"]
    assert launch(*words, "--bucket", "s3://b", "--deadline", deadline) == 0
    ((config, _),) = sky.submitted
    assert config["envs"]["NOTUS_DEADLINE"] == expected
    assert ("from your confirmation" in capsys.readouterr().err) == (deadline == "48h")


def test_a_plan_that_changed_while_the_question_was_open_is_asked_again(
    launch: Launch, sky: FakeSky, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    fix(tmp_path, {})
    start = datetime(2026, 11, 28, 12, tzinfo=UTC)
    monkeypatch.setattr(Now, "time", start)
    monkeypatch.setattr(launch_cloud, "datetime", Now)
    monkeypatch.setattr(cli, "datetime", Now)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    asked: list[str] = []

    def long(text: str, **_: Any) -> None:
        asked.append(text)
        Now.time += timedelta(hours=40)

    monkeypatch.setattr("typer.confirm", long)
    words = [word for word in LAUNCH if word != "--yes"]
    arguments = ("--bucket", "s3://b", "--hours", "6", "--deadline", "2026-11-30T12:00:00+00:00")
    assert launch(*words, *arguments) == 2, "80 h later it has passed"
    said = capsys.readouterr().err
    assert "the plan has changed in the meantime" in said
    assert "has passed" in said
    assert (len(asked), sky.submitted) == (2, [])


def test_going_on_is_planned_from_where_the_run_is(
    launch: Launch, sky: FakeSky, store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 12 h, 0.6 h are left, and $32 of a budget of $80 are spent: 3 h and $48 are enough."""
    fix(tmp_path, {})
    clock = FakeClock(datetime.now(UTC) - timedelta(hours=4))
    register_run(store, new_record("r", load_recipe("tiny-dpo")))
    Diary(store, 0, clock).write("planned", strategy="NOTUS")
    clock.sleep(1)
    place = Place("lambda", "us-east-1", None, "A100:8", False, 16.0)
    Diary(store, 0, clock).write("machine_up", place=place_data(place), since=clock.now().isoformat())
    trainer = Diary(store, 1, clock)
    trainer.write("training", step=1, total_steps=1000)
    clock.sleep(2 * 3600)
    trainer.write("saved", step=950)
    trainer.write("stopped", step=950, reason="by the user")
    request = ("--hours", "12", "--deadline", "3h", "--budget", "80")
    assert launch(*LAUNCH, *request, "--on-demand", "--bucket", "s3://b") == 0
    said = capsys.readouterr().err
    assert "0.6 h of 12.0 h of work are left, spent so far $32.02 of the budget of $80.00" in said, "the store, too"
    ((config, _),) = sky.submitted
    assert (config["envs"]["NOTUS_HOURS"], config["envs"]["NOTUS_BUDGET_USD"]) == ("12", "80"), "of the whole run"
    assert launch(*LAUNCH, *request[:4], "--budget", "33", "--on-demand", "--dry-run", "--bucket", "s3://b") == 3
    assert "a budget of $33.00 (of which $32.02 is spent)" in capsys.readouterr().err


def up_since(store: ObjectStore, clock: FakeClock, launch: int = 0) -> None:
    place = Place("gcp", "us", "us-a", "A100:8", True, 10.0)
    Diary(store, 0, clock, launch).write("machine_up", place=place_data(place), since=clock.now().isoformat())


@contextlib.contextmanager
def lives_elsewhere(store: ObjectStore, who: str, every_s: float = 5.0, skew_s: float = 0.0) -> Iterator[None]:
    """While somebody here looks, another machine goes on, with a clock that is its own affair."""

    class Clock(FakeClock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            if self.monotonic() // every_s == (self.monotonic() - seconds) // every_s:
                return
            time = datetime.now(UTC) + timedelta(seconds=skew_s + self.monotonic())
            if who == "trainer":
                store.put(HEARTBEAT_KEY, Heartbeat(attempt=1, time=time, phase="training").to_json())
            elif who == "controller":
                write_controller_beat(store, time)
            else:
                held.renew()

    held = Lease.claim(store, Writer(id=uuid.uuid4().hex, host="h", pid=1), clock=FakeClock())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch_cloud, "SystemClock", Clock)
        yield


SKEWS_S = (0.0, -3600.0, 3600.0, -86400.0, 86400.0)


@pytest.mark.parametrize("skew_s", SKEWS_S)
@pytest.mark.parametrize(("who", "every_s"), [("trainer", 5.0), ("controller", 60.0), ("holder", 20.0)])
def test_a_run_that_lives_elsewhere_gets_no_second_job(
    launch: Launch, sky: FakeSky, store: ObjectStore, capsys: pytest.CaptureFixture[str],
    who: str, every_s: float, skew_s: float,
) -> None:  # fmt: skip
    register_run(store, new_record("r", load_recipe("tiny-dpo")))
    clock = FakeClock(datetime.now(UTC) + timedelta(seconds=skew_s))
    Diary(store, 0, clock).write("planned")
    clock.sleep(1)
    up_since(store, clock)
    with lives_elsewhere(store, who, every_s, skew_s):
        assert launch(*LAUNCH, "--bucket", "s3://b") == 2
        said = capsys.readouterr().err
        assert "launched elsewhere" in said
        assert "notus-launch stop r" in said
        sky.job = Job(6, "r", "CANCELLED", 0, "", ended_at=datetime.now(UTC) - timedelta(days=3))
        assert launch(*LAUNCH, "--bucket", "s3://b") == 2, "a job of long ago is not the one that lives"
    assert sky.submitted == []
    assert [event.kind for event in read_events(store)] == ["planned", "machine_up"]


@pytest.mark.parametrize("skew_s", SKEWS_S)
def test_a_run_that_died_elsewhere_can_be_launched_here(
    launch: Launch, sky: FakeSky, store: ObjectStore, skew_s: float
) -> None:
    """Its last words are an hour old by a clock that was right."""
    register_run(store, new_record("r", load_recipe("tiny-dpo")))
    clock = FakeClock(datetime.now(UTC) + timedelta(seconds=skew_s, hours=-1))
    Diary(store, 0, clock).write("planned")
    clock.sleep(1)
    up_since(store, clock)
    store.put(HEARTBEAT_KEY, Heartbeat(attempt=1, time=clock.now(), phase="training").to_json())
    assert launch(*LAUNCH, "--bucket", "s3://b") == 0
    assert len(sky.submitted) == 1


@pytest.mark.parametrize(("ago_min", "code"), [(1, 2), (29, 2), (31, 0), (-10, 0), (-600, 0)])
def test_a_search_elsewhere_makes_a_launch_wait_for_half_an_hour_at_most(
    launch: Launch, sky: FakeSky, store: ObjectStore, ago_min: float, code: int
) -> None:
    """It shows no life while SkyPilot looks for a machine; the time of its last word may be wrong, and costs no more."""
    register_run(store, new_record("r", load_recipe("tiny-dpo")))
    Diary(store, 0, FakeClock(datetime.now(UTC) - timedelta(minutes=ago_min))).write("planned")
    assert launch(*LAUNCH, "--bucket", "s3://b") == code


def test_a_launch_that_skypilot_refused_can_be_tried_again_at_once(
    launch: Launch, sky: FakeSky, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(config: Mapping[str, Any], secrets: Mapping[str, str]) -> int:
        raise SkyFailed("SkyPilot: connection refused", "sky api info")

    monkeypatch.setattr(client, "submit", away)
    assert launch(*LAUNCH, "--bucket", "s3://b") == SkyFailed.exit_code
    monkeypatch.setattr(client, "submit", sky.submit)
    assert launch(*LAUNCH, "--bucket", "s3://b") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "needs a bucket"),
        (("--bucket", "/tmp"), "needs a bucket"),
        (("--bucket", "s3://b", "--budget", "500"), "need the NOTUS strategy"),
        (("--bucket", "gs://b", "--cloud", "lambda", "--on-demand"), "service account's key"),
    ],
)
def test_what_is_refused_before_anything_starts(
    launch: Launch,
    sky: FakeSky,
    store: ObjectStore,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    assert launch(*LAUNCH, *arguments) == 2
    assert message in capsys.readouterr().err
    assert sky.submitted == []


def test_without_the_plugin_it_says_what_is_missing(
    launch: Launch, sky: FakeSky, store: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch(*LAUNCH, "--bucket", "s3://b") == 0
    assert "never returns to spot" in capsys.readouterr().err
    assert sky.submitted[0][0]["resources"]["job_recovery"]["strategy"] == "EAGER_NEXT_REGION"


def test_a_launch_says_what_a_sleeping_laptop_means(
    launch: Launch, sky: FakeSky, store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fix(tmp_path, {})
    assert launch(*LAUNCH, "--bucket", "s3://b/notus") == 0
    assert "while this machine sleeps or is off, deadline and budget are not enforced" in capsys.readouterr().err


def test_a_controller_that_would_be_paid_and_not_know_the_strategy_is_refused(
    launch: Launch, sky: FakeSky, store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fix(tmp_path, {})
    (tmp_path / ".sky/config.yaml").unlink()
    assert launch(*LAUNCH, "--bucket", "s3://b") == 2
    said = capsys.readouterr().err
    assert "would rent a VM" in said
    assert "notus-launch doctor --fix" in said
    (tmp_path / ".sky/config.yaml").write_text("jobs: {controller: {consolidation_mode: false}}\n")
    assert launch(*LAUNCH, "--bucket", "s3://b") == 2
    assert "it won't have the NOTUS strategy" in capsys.readouterr().err
    assert sky.submitted == []
    (tmp_path / ".sky/config.yaml").write_text("jobs: {controller: {consolidation_mode: true}}\n")
    assert launch(*LAUNCH, "--bucket", "s3://b") == 0


def test_nobody_there_to_say_yes(
    launch: Launch, sky: FakeSky, store: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch(*(one for one in LAUNCH if one != "--yes"), "--bucket", "s3://b") == 2
    assert "add --yes" in capsys.readouterr().err


def test_secrets_that_would_fail_later_are_refused_now(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe = load_recipe("notus-7b-dpo")
    with pytest.raises(RequestError, match="WANDB_API_KEY"):
        collect_secrets(recipe, "gs://b", [GCP], {"HF_TOKEN": "t"})
    assert collect_secrets(recipe, "gs://b", [GCP], {"HF_TOKEN": "t", "WANDB_API_KEY": "w"}) == {
        "HF_TOKEN": "t",
        "WANDB_API_KEY": "w",
    }
    key = tmp_path / "key.json"
    key.write_text('{"type": "service_account"}')
    environment = {"HF_TOKEN": "t", "WANDB_API_KEY": "w", "GOOGLE_APPLICATION_CREDENTIALS": str(key)}
    assert (
        collect_secrets(recipe, "gs://b", [GCP, LAMBDA], environment)["GOOGLE_SERVICE_ACCOUNT_KEY"] == key.read_text()
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "x")
    with pytest.raises(UserError, match="temporary"):
        collect_secrets(load_recipe("tiny-dpo"), "s3://b", [GCP], {})


def test_a_recipe_travels_with_its_data(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    (mine / "data").mkdir(parents=True)
    text = (ROOT / "trainer/recipes/tiny-dpo.yaml").read_text()
    (mine / "data/pairs.jsonl").write_text('{"prompt": "p", "chosen": "c", "rejected": "r"}\n')
    (mine / "r.yaml").write_text(text.replace("builtin:tiny-preferences", "data/pairs.jsonl"))
    sent = prepare_workdir(str(mine / "r.yaml"), tmp_path / "sent")
    assert sent.recipe == "recipe.yaml"
    assert load_recipe(str(sent.folder / sent.recipe)).dataset.name == str(sent.folder / "data/pairs.jsonl")
    (mine / "r.yaml").write_text(text.replace("builtin:tiny-preferences", str(mine / "data/pairs.jsonl")))
    with pytest.raises(RequestError, match="can't be sent"):
        prepare_workdir(str(mine / "r.yaml"), tmp_path / "sent")


# --- following and stopping ---------------------------------------------------------------------------


def registered(store: ObjectStore) -> None:
    register_run(store, new_record("r", load_recipe("tiny-dpo")))
    Diary(store, 0).write("planned")


@pytest.mark.parametrize(
    ("kind", "data", "code"),
    [
        ("finished", {"step": 3}, 0),
        ("stopped", {"step": 3, "reason": "by the user"}, 75),
        ("stopped", {"step": 3, "reason": "by the user: the budget is used up"}, 75),
        ("stopped", {"step": 3, "reason": "it can no longer be paid", "limit": "budget"}, 3),
        ("stopped", {"step": 3, "reason": "107 machines and no new step", "limit": "progress"}, 3),
        ("stopped", {"step": 3, "reason": "of a later version", "limit": "carbon"}, 3),
        ("attempt_ended", {"step": 0, "outcome": "user_error", "message": "no such column"}, 2),
        ("failed", {"message": "the driver shows 7 GPUs", "hint": "launch again", "exit_code": 2}, 2),
    ],
)
def test_following_ends_with_the_run(
    store: ObjectStore, kind: Any, data: dict[str, Any], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    registered(store)
    clock = FakeClock()
    sleeps: list[float] = []

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        if len(sleeps) == 3:
            Diary(store, 1).write(kind, **data)

    clock.sleep = sleep  # type: ignore[method-assign]
    assert follow_run.follow(store, "r", lambda: Job(7, "r", "RUNNING", 0, ""), clock).code == code
    said = capsys.readouterr().err
    assert "SkyPilot: RUNNING" in said
    assert data.get("message", "") in said


def test_a_job_that_skypilot_gave_up_ends_it_too(store: ObjectStore, capsys: pytest.CaptureFixture[str]) -> None:
    registered(store)
    job = Job(7, "r", "FAILED_SETUP", 0, "flash-attn does not build")
    assert follow_run.follow(store, "r", lambda: job, FakeClock()).code == 2
    assert "flash-attn does not build" in capsys.readouterr().err
    crashed = Job(7, "r", "FAILED_CONTROLLER", 0, "out of memory")
    assert follow_run.follow(store, "r", lambda: crashed, FakeClock()).code == 1
    no_key = Job(7, "r", "FAILED_PRECHECKS", 0, "the credentials are not valid")
    assert follow_run.follow(store, "r", lambda: no_key, FakeClock()).code == 2
    done = Job(7, "r", "SUCCEEDED", 0, "")
    assert follow_run.follow(store, "r", lambda: done, FakeClock()) == follow_run.End(0, receipt=True)
    gone = Job(7, "r", "FAILED_NO_RESOURCE", 0, "quota 0")
    assert follow_run.follow(store, "r", lambda: gone, FakeClock()).code == 3


def test_a_run_of_plain_skypilot_can_be_stopped_before_its_trainer_started(
    launch: Launch, sky: FakeSky, store: ObjectStore, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch("stop", "r") == 2
    assert "there is no run 'r'" in capsys.readouterr().err
    Diary(store, 0).write("decided", action="launch", reason="cheapest first")
    sky.job = Job(7, "r", "PENDING", 0, "")
    assert launch("stop", "r") == 0
    assert sky.cancelled == [7]


def local_run(store: ObjectStore, beat: datetime) -> None:
    register_run(store, new_record("r", load_recipe("tiny-dpo")))
    Diary(store, 1, FakeClock(beat)).write("attempt_started")
    store.put(HEARTBEAT_KEY, Heartbeat(attempt=1, time=beat, phase="training", step=3, total_steps=9).to_json())


@pytest.mark.parametrize("skew_s", [-3600.0, -600.0, 0.0, 600.0])
def test_a_stop_waits_for_a_local_run_that_lives_whatever_its_clock_says(
    launch: Launch, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    skew_s: float,
) -> None:  # fmt: skip
    def now() -> datetime:
        return datetime.now(UTC) + timedelta(seconds=skew_s)

    class Clock(FakeClock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            store.put(HEARTBEAT_KEY, Heartbeat(attempt=1, time=now(), phase="saving", step=4, total_steps=9).to_json())
            if self.monotonic() > 300:
                Diary(store, 1).write("stopped", step=4, reason="by the user")

    local_run(store, now())
    monkeypatch.setattr(stop_run, "SystemClock", Clock)
    assert launch("stop", "r") == 0
    assert "run r: stopped at step 4" in capsys.readouterr().err


@pytest.mark.parametrize("skew_s", [-3600.0, -600.0, 0.0, 600.0])
def test_a_stop_does_not_wait_for_long_for_a_run_that_is_dead(
    launch: Launch, store: ObjectStore, quick: None, capsys: pytest.CaptureFixture[str], skew_s: float
) -> None:
    local_run(store, datetime.now(UTC) + timedelta(seconds=skew_s))
    assert launch("stop", "r") == 0
    assert "no trainer responds" in capsys.readouterr().err
    assert read_request(store) is not None, "it stands, if a launcher still tries"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No real time."""
    monkeypatch.setattr(stop_run, "SystemClock", FakeClock)


def test_a_stop_that_reaches_nobody_stands_and_is_not_called_done(
    launch: Launch, sky: FakeSky, store: ObjectStore, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another machine, another SkyPilot: it knows no such job, and must not say that it has ended."""
    registered(store)
    assert launch("stop", "r") == 1
    assert "can't end the job" in capsys.readouterr().err
    assert read_request(store) is not None
    assert "stopped" not in [event.kind for event in read_events(store)]


def test_an_old_job_is_not_the_end_of_another_computers_run(
    launch: Launch, sky: FakeSky, store: ObjectStore, quick: None
) -> None:
    registered(store)
    now = datetime.now(UTC)
    sky.job = Job(6, "r", "CANCELLED", 0, "", ended_at=now - timedelta(hours=1))
    up_since(store, FakeClock(now))
    assert launch("stop", "r") == 1
    assert read_request(store) is not None, "the strategy elsewhere obeys it"
    assert "stopped" not in [event.kind for event in read_events(store)]
    sky.job = Job(7, "r", "CANCELLED", 0, "", ended_at=now + timedelta(minutes=1))
    assert launch("stop", "r") == 0, "this one had that machine"
    assert read_request(store) is None


def test_stop_without_a_trainer_cancels_the_job(launch: Launch, sky: FakeSky, store: ObjectStore, quick: None) -> None:
    registered(store)
    sky.job = Job(7, "r", "STARTING", 0, "")
    assert launch("stop", "r") == 0
    assert sky.cancelled == [7]
    assert [event.kind for event in read_events(store)][-1] == "stopped"
    assert launch("stop", "r") == 0, "twice is harmless"


def test_stop_of_a_running_one_asks_the_trainer(
    launch: Launch, sky: FakeSky, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered(store)
    Diary(store, 1).write("attempt_started")
    lease = Lease.claim(store, Writer(id="w", host="h", pid=1, pid_scope="x"))
    beat = Heartbeat(attempt=lease.head.epoch, time=lease.head.lease_until, phase="training", step=3, total_steps=9)
    store.put(HEARTBEAT_KEY, beat.to_json())
    asked: list[str] = []

    class Clock(FakeClock):
        def sleep(self, seconds: float) -> None:
            request = read_request(store)
            assert request is not None
            asked.append(request.action)
            Diary(store, 1).write("stopped", step=4, reason=request.reason)

    monkeypatch.setattr(stop_run, "SystemClock", Clock)
    assert launch("stop", "r") == 0
    assert asked == ["stop"]


def test_status_of_a_cloud_run_also_asks_skypilot(
    launch: Launch,
    sky: FakeSky,
    store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    registered(store)
    monkeypatch.setattr(inspect_runs, "open_run", lambda bucket, name: store)
    monkeypatch.setattr(client, "peek", lambda run: Job(7, run.run, "PENDING", 0, "asking again in 60 s"))
    assert launch("status", "r", "-o", "json") == 0
    (status,) = json.loads(capsys.readouterr().out)
    assert (status["job"], status["job_says"]) == ("7 PENDING", "asking again in 60 s")
    Diary(store, 1).write("finished", step=3)
    monkeypatch.setattr(client, "peek", lambda name: pytest.fail("a run that is over has no job to ask about"))
    assert launch("status", "r") == 0


def test_a_dry_run_of_a_run_whose_bucket_cannot_be_read_says_so(
    launch: Launch,
    sky: FakeSky,
    store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def away(bucket: str, name: str) -> ObjectStore:
        raise BucketUnusable("no credentials for s3://b")

    monkeypatch.setattr("checkpoints.run_log.run_record.open_run", away)
    assert launch(*LAUNCH, "--bucket", "s3://b", "--dry-run", "-o", "json") == 0
    (said, *_) = [line for line in json.loads(capsys.readouterr().out)["advice"] if "can't be read" in line]
    assert said == "planned as a new run because s3://b can't be read: no credentials for s3://b"

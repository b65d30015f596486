"""A launch in a cloud with a fake SkyPilot client: everything that is refused for nothing, and the submission."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from checkpoints.clock import FakeClock
from checkpoints.events import Diary, read_events
from checkpoints.head import Lease, Writer
from checkpoints.object_store import ObjectStore
from checkpoints.requests import ask, read_request
from checkpoints.run import HEARTBEAT_KEY, Heartbeat, register_run
from launcher import cli, cloud, follow, look, stop
from launcher.errors import RequestError, SkyFailed
from launcher.plan import Rung
from launcher.policy.history import place_data
from launcher.policy.model import Place
from launcher.sky import client
from launcher.sky.client import Job
from launcher.sky.doctor import fix
from launcher.sky.secrets import collect
from launcher.sky.sent import gather
from trainer.main import new_record
from trainer.recipe import load_recipe

GCP, LAMBDA = Rung(cloud="gcp", gpus="A100:8", spot=True), Rung(cloud="lambda", gpus="A100:8", spot=False)
LAUNCH = ("--recipe", "tiny-dpo", "--cloud", "gcp", "--gpus", "A100:8", "--name", "r", "--yes", "--detach")


class FakeSky:
    """Remembers what was submitted."""

    def __init__(self) -> None:
        self.submitted: list[tuple[Mapping[str, Any], Mapping[str, str]]] = []
        self.cancelled: list[int] = []
        self.job: Job | None = None

    def submit(self, config: Mapping[str, Any], secrets: Mapping[str, str]) -> int:
        self.submitted.append((config, secrets))
        self.job = Job(7, config["name"], "STARTING", 0, "")
        return 7

    def find_job(self, name: str, job_id: int | None = None) -> Job | None:
        return self.job

    def cancel(self, job_id: int) -> None:
        self.cancelled.append(job_id)


@pytest.fixture
def sky(monkeypatch: pytest.MonkeyPatch) -> FakeSky:
    fake = FakeSky()
    for name in ("submit", "find_job", "cancel"):
        monkeypatch.setattr(client, name, getattr(fake, name))
    monkeypatch.setattr(client, "dashboard", lambda job_id: f"http://sky/{job_id}")
    return fake


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """Behind every bucket URL."""
    made = ObjectStore.memory()
    for module in (cloud, stop):
        monkeypatch.setattr(module, "open_run", lambda bucket, name: made, raising=False)
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


def up_since(store: ObjectStore, clock: FakeClock) -> None:
    place = Place("gcp", "us", "us-a", "A100:8", True, 10.0)
    Diary(store, 0, clock).write("machine_up", place=place_data(place), since=clock.now().isoformat())


def test_a_run_that_lives_elsewhere_gets_no_second_job(
    launch: Launch, sky: FakeSky, store: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    registered(store)
    up_since(store, FakeClock(datetime.now(UTC)))
    assert launch(*LAUNCH, "--bucket", "s3://b") == 2
    said = capsys.readouterr().err
    assert "launched somewhere else" in said
    assert "notus-launch stop r" in said
    sky.job = Job(6, "r", "CANCELLED", 0, "", ended_at=datetime.now(UTC) - timedelta(days=1))
    assert launch(*LAUNCH, "--bucket", "s3://b") == 2, "a job of yesterday is not the one that lives"
    assert sky.submitted == []
    assert [event.kind for event in read_events(store)] == ["planned", "machine_up"]


def test_a_run_that_died_elsewhere_can_be_launched_here(launch: Launch, sky: FakeSky, store: ObjectStore) -> None:
    register_run(store, new_record("r", load_recipe("tiny-dpo")))
    clock = FakeClock(datetime.now(UTC) - timedelta(hours=1))
    Diary(store, 0, clock).write("planned")
    up_since(store, clock)
    assert launch(*LAUNCH, "--bucket", "s3://b") == 0
    assert len(sky.submitted) == 1


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
    assert "no way back to spot" in capsys.readouterr().err
    assert sky.submitted[0][0]["resources"]["job_recovery"]["strategy"] == "EAGER_NEXT_REGION"


def test_a_launch_says_what_a_sleeping_laptop_means(
    launch: Launch, sky: FakeSky, store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fix(tmp_path, {})
    assert launch(*LAUNCH, "--bucket", "s3://b/notus") == 0
    assert "while this machine sleeps or is off, no deadline and no budget is kept" in capsys.readouterr().err


def test_a_controller_that_would_be_paid_and_not_know_the_strategy_is_refused(
    launch: Launch, sky: FakeSky, store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fix(tmp_path, {})
    (tmp_path / ".sky/config.yaml").unlink()
    assert launch(*LAUNCH, "--bucket", "s3://b") == 2
    said = capsys.readouterr().err
    assert "would pay a VM" in said
    assert "notus-launch doctor --fix" in said
    (tmp_path / ".sky/config.yaml").write_text("jobs: {controller: {consolidation_mode: false}}\n")
    assert launch(*LAUNCH, "--bucket", "s3://b") == 2
    assert "the NOTUS strategy won't be there" in capsys.readouterr().err
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
        collect(recipe, "gs://b", [GCP], {"HF_TOKEN": "t"})
    assert collect(recipe, "gs://b", [GCP], {"HF_TOKEN": "t", "WANDB_API_KEY": "w"}) == {
        "HF_TOKEN": "t",
        "WANDB_API_KEY": "w",
    }
    key = tmp_path / "key.json"
    key.write_text('{"type": "service_account"}')
    environment = {"HF_TOKEN": "t", "WANDB_API_KEY": "w", "GOOGLE_APPLICATION_CREDENTIALS": str(key)}
    assert collect(recipe, "gs://b", [GCP, LAMBDA], environment)["GOOGLE_SERVICE_ACCOUNT_KEY"] == key.read_text()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "x")
    with pytest.raises(RequestError, match="temporary"):
        collect(load_recipe("tiny-dpo"), "s3://b", [GCP], {})


def test_a_recipe_travels_with_its_data(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    (mine / "data").mkdir(parents=True)
    text = (Path(__file__).parents[2] / "trainer/recipes/tiny-dpo.yaml").read_text()
    (mine / "data/pairs.jsonl").write_text('{"prompt": "p", "chosen": "c", "rejected": "r"}\n')
    (mine / "r.yaml").write_text(text.replace("builtin:tiny-preferences", "data/pairs.jsonl"))
    sent = gather(str(mine / "r.yaml"), tmp_path / "sent")
    assert sent.recipe == "recipe.yaml"
    assert load_recipe(str(sent.folder / sent.recipe)).dataset.name == str(sent.folder / "data/pairs.jsonl")
    (mine / "r.yaml").write_text(text.replace("builtin:tiny-preferences", str(mine / "data/pairs.jsonl")))
    with pytest.raises(RequestError, match="can't be sent"):
        gather(str(mine / "r.yaml"), tmp_path / "sent")


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
    assert follow.follow(store, "r", lambda: Job(7, "r", "RUNNING", 0, ""), clock).code == code
    said = capsys.readouterr().err
    assert "SkyPilot: RUNNING" in said
    assert data.get("message", "") in said


def test_a_job_that_skypilot_gave_up_ends_it_too(store: ObjectStore, capsys: pytest.CaptureFixture[str]) -> None:
    registered(store)
    job = Job(7, "r", "FAILED_SETUP", 0, "flash-attn does not build")
    assert follow.follow(store, "r", lambda: job, FakeClock()).code == 2
    assert "flash-attn does not build" in capsys.readouterr().err
    crashed = Job(7, "r", "FAILED_CONTROLLER", 0, "out of memory")
    assert follow.follow(store, "r", lambda: crashed, FakeClock()).code == 1
    no_key = Job(7, "r", "FAILED_PRECHECKS", 0, "the credentials are not valid")
    assert follow.follow(store, "r", lambda: no_key, FakeClock()).code == 2
    done = Job(7, "r", "SUCCEEDED", 0, "")
    assert follow.follow(store, "r", lambda: done, FakeClock()) == follow.End(0, receipt=True)
    gone = Job(7, "r", "FAILED_NO_RESOURCE", 0, "quota 0")
    assert follow.follow(store, "r", lambda: gone, FakeClock()).code == 3


def test_a_run_of_plain_skypilot_can_be_stopped_before_its_trainer_started(
    launch: Launch, sky: FakeSky, store: ObjectStore, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch("stop", "r") == 2
    assert "there is no run 'r'" in capsys.readouterr().err
    Diary(store, 0).write("decided", action="launch", reason="cheapest first")
    sky.job = Job(7, "r", "PENDING", 0, "")
    assert launch("stop", "r") == 0
    assert sky.cancelled == [7]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No real time."""
    monkeypatch.setattr(stop, "SystemClock", FakeClock)


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

    monkeypatch.setattr(stop, "SystemClock", Clock)
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
    monkeypatch.setattr(look, "open_run", lambda bucket, name: store)
    monkeypatch.setattr(client, "peek", lambda name: Job(7, name, "PENDING", 0, "asking again in 60 s"))
    assert launch("status", "r", "-o", "json") == 0
    (status,) = json.loads(capsys.readouterr().out)
    assert (status["job"], status["job_says"]) == ("7 PENDING", "asking again in 60 s")
    Diary(store, 1).write("finished", step=3)
    monkeypatch.setattr(client, "peek", lambda name: pytest.fail("a run that is over has no job to ask about"))
    assert launch("status", "r") == 0

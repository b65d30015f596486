"""The diary's events: typed in the code, unchanged in the bucket, whatever version wrote them."""

from __future__ import annotations

import ast
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from checkpoints.errors import CorruptCheckpoint
from checkpoints.records.manifest import CHECK, checksum, parse
from checkpoints.run_log.causes import Limit
from checkpoints.run_log.event_kinds import (
    KINDS,
    Alarm,
    AtStep,
    AttemptEnded,
    Damaged,
    DataPrepared,
    Decided,
    Finished,
    LeftOutRows,
    MachineGone,
    MachineUp,
    Payload,
    PlaceRecord,
    PriceChanged,
    ReleaseFailed,
    RunEnd,
    Saved,
    SetupFailed,
    Stopped,
    UnderWay,
    UnknownPayload,
)
from checkpoints.run_log.event_log import RUN_ENDS, Diary, Event, of_kind, read_events
from checkpoints.run_log.event_order import end_of_run
from checkpoints.run_log.run_record import list_runs, open_run, read_run, register_run
from checkpoints.run_log.stop_request import REQUEST_KEY, Request, ask, read_request
from checkpoints.storage.object_store import ObjectStore
from checkpoints.util.clock import FakeClock
from launcher.commands.follow_run import end_of
from launcher.policy.observe import observe
from launcher.policy.run_history import place_data
from launcher.report.event_lines import line_of
from launcher.report.receipt import make_receipt
from launcher.report.status import derive_status, read_status
from tests.support.paths import ROOT
from tests.support.places import ALL, LAMBDA
from trainer.config.recipe import load_recipe
from trainer.main import new_record
from trainer.runtime.attempt_dir import Scratch
from trainer.supervisor.supervisor import Supervisor

NOW = datetime(2026, 11, 28, tzinfo=UTC)
OLD = [line.encode() for line in (Path(__file__).parent / "old_diary.jsonl").read_text().splitlines()]
"""Written by the version before the models (ffc2ebe): every kind, and every set of keys that it wrote."""
NEW: list[Payload] = [
    SetupFailed(message="no GPU", command="nvidia-smi"),
    ReleaseFailed(place=place_data(LAMBDA), message="HTTP 500", tries=3),
    UnderWay(hours=0.21),
    PriceChanged(place=place_data(LAMBDA)),
    Alarm(about="bucket", message="no answer for 20 min", stuck_s=1200),
    Alarm(step=7, phase="training", stuck_s=1800),
    Decided(action="move", cause="cheaper", reason="it would save $3"),
    Stopped(reason="107 machines and no new step", limit="progress"),
    MachineGone(why="closed", place=place_data(LAMBDA), job_status="failed_controller"),
    MachineGone(why="never_ran", place=place_data(LAMBDA)),
    DataPrepared(rows=9, train=6, left_out=(LeftOutRows(reason="chosen is empty", rows=3, where=("p.jsonl:2",)),)),
]


def raw(kind: str, data: Any) -> bytes:
    """As another version may have written it."""
    content = {"version": 1, "time": NOW.isoformat(), "id": "abc", "kind": kind, "attempt": 1, "data": data}
    return json.dumps({**content, CHECK: checksum(content)}).encode()


def read(kind: str, data: Any) -> Event:
    return parse(Event, raw(kind, data), "events/abc")


def samples() -> dict[str, dict[str, Any]]:
    """The fullest data of each kind."""
    found: dict[str, dict[str, Any]] = {}
    told = [(event["kind"], event["data"]) for event in map(json.loads, OLD)] + [(p.kind, p.wire()) for p in NEW]
    for kind, data in told:
        found[kind] = max(found.get(kind, {}), data, key=len)
    return found


@pytest.mark.parametrize("line", OLD, ids=lambda line: json.loads(line)["kind"])
def test_an_event_of_an_earlier_version_is_read_and_would_be_written_as_it_was(line: bytes) -> None:
    event = parse(Event, line, "events/x")
    assert type(event.payload) is KINDS[event.kind]
    assert json.loads(event.to_json()) == json.loads(line)
    assert event.data == json.loads(line)["data"]


def test_every_kind_has_a_model_and_a_sample() -> None:
    def below(model: type[Payload]) -> set[type[Payload]]:
        return {model}.union(*(below(one) for one in model.__subclasses__()))

    assert below(Payload) - {Payload, UnknownPayload, Damaged, AtStep, RunEnd} == set(KINDS.values())
    assert samples().keys() == KINDS.keys()
    assert {"finished", "failed", "stopped"} == RUN_ENDS


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_trip_keeps_everything_also_what_a_newer_version_adds(kind: str) -> None:
    store = ObjectStore.memory()
    data = {**samples()[kind], "of_2027": {"x": [1, None]}}
    written = Diary(store, 1, FakeClock(NOW)).write(kind, **data)
    (event,) = read_events(store)
    assert event == written
    assert type(event.payload) is KINDS[kind]
    assert event.data == data
    line_of(event)


@pytest.mark.parametrize("payload", NEW, ids=lambda payload: payload.kind)
def test_what_is_written_is_read_back_as_the_same_model(payload: Payload) -> None:
    store = ObjectStore.memory()
    Diary(store, 1, FakeClock(NOW)).write(payload)
    (event,) = read_events(store)
    assert type(event.payload) is type(payload)
    assert event.payload.model_dump() == payload.model_dump()


REQUIRED = [(kind, name) for kind, model in KINDS.items() for name, f in model.model_fields.items() if f.is_required()]


@pytest.mark.parametrize(("kind", "missing"), REQUIRED)
def test_a_damaged_payload_is_named_with_its_key_and_its_field(kind: str, missing: str) -> None:
    store = ObjectStore.memory()
    data = {name: value for name, value in samples()[kind].items() if name != missing}
    store.put("events/20261128T000000.000000Z-abc.json", raw(kind, data))
    Diary(store, 1, FakeClock(NOW)).write(Finished(step=9))
    (damaged,) = [event for event in read_events(store) if event.kind == "damaged"]
    assert isinstance(damaged.payload, Damaged)
    assert re.search(rf"events/20261128T000000\.000000Z-abc\.json .*data\.{missing}", damaged.payload.message)
    assert damaged.key == "events/20261128T000000.000000Z-abc.json", "it is read once, as any other"
    assert end_of_run(read_events(store)) is not None, "the others are there"


@pytest.mark.parametrize("place", [0, 30, -2])
def test_a_flipped_byte_is_a_line_that_steers_nothing(place: int) -> None:
    store = ObjectStore.memory()
    event = Diary(store, 1, FakeClock(NOW)).write(Stopped(reason="x"))
    data = bytearray(store.get(event.key).data)
    data[place] ^= 1
    store.put(event.key, bytes(data))
    store.put("events/notes.txt", b"not ours")
    (read_back,) = read_events(store)
    assert isinstance(read_back.payload, Damaged)
    assert end_of_run([read_back]) is None
    assert event.key in str(line_of(read_back))
    status = derive_status("r", "", None, None, [read_back], NOW)
    assert event.key in str(status.note)


def test_a_damaged_run_json_hides_no_run(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/run.json").write_text("somebody else's")
    store = open_run(str(tmp_path), "mine")
    store.put("run.json", b"{")
    Diary(store, 1, FakeClock(NOW)).write(Stopped(reason="x"))
    assert list_runs(str(tmp_path)) == ["mine"]
    assert read_status(store, "mine", NOW).state == "stopped"
    recipe = load_recipe("tiny-dpo")
    register_run(store, new_record("mine", recipe))
    assert read_run(store) is not None


@pytest.mark.parametrize(
    ("kind", "data", "field"),
    [
        ("saved", {"step": "soon"}, "data.step"),
        ("saved", {"step": -1}, "data.step"),
        ("saved", [1], "data"),
        ("machine_up", {"place": {"cloud": "gcp"}, "since": NOW.isoformat()}, "data.place.region"),
        ("machine_up", {"place": place_data(LAMBDA).model_dump(), "since": "2026-11-28T00:00:00"}, "data.since"),
        ("machine_gone", {"why": 5}, "data.why"),
        ("no_capacity", {"places": [], "answers": ["sold out"]}, "0 places and 1 answers"),
    ],
)
def test_a_value_that_means_nothing_is_named(kind: str, data: Any, field: str) -> None:
    with pytest.raises(CorruptCheckpoint, match=field):
        read(kind, data)


def test_a_kind_of_a_newer_version_is_kept_and_steers_nothing() -> None:
    data = {"step": 10**9, "reason": "the budget is used up", "limit": "budget", "kind": "finished"}
    event = read("halted", data)
    assert isinstance(event.payload, UnknownPayload)
    assert json.loads(event.to_json()) == json.loads(parse(Event, event.to_json(), "x").to_json())
    assert event.data == data
    assert end_of(event) is None
    assert line_of(event) is None
    from launcher.policy.limits import Limits

    seen = [observe(events, None, ALL, Limits(hours=8.0), NOW) for events in ([], [event])]
    assert seen[0] == seen[1]
    assert derive_status("r", "", None, None, [event], NOW).state == "waiting"
    assert make_receipt("r", [event], [], [], NOW).state == "empty"


@pytest.mark.parametrize("data", [[1, {"x": None}], "text", 5, None, True, []])
def test_a_kind_of_a_newer_version_is_kept_whatever_its_data_is(data: Any) -> None:
    event = read("halted", data)
    assert isinstance(event.payload, UnknownPayload)
    assert json.loads(event.to_json())["data"] == data
    assert (end_of(event), line_of(event)) == (None, None)


WORDS = [
    (kind, name)
    for kind, model in KINDS.items()
    for name, field in model.model_fields.items()
    if any("Literal" in str(part) for part in (field.annotation, *field.metadata))
]


@pytest.mark.parametrize(("kind", "name"), WORDS)
def test_a_word_of_a_newer_version_is_kept_in_every_field_of_words(kind: str, name: str) -> None:
    """One line that can't be read makes the whole diary unreadable."""
    store = ObjectStore.memory()
    data = {**samples()[kind], name: "of_2027"}
    store.put("events/20261128T000000.000000Z-abc.json", raw(kind, data))
    (event,) = read_events(store)
    assert getattr(event.payload, name) in ("other", "unknown", "closed")
    assert json.loads(event.to_json())["data"] == data
    line_of(event)


def test_the_fields_of_words_are_found() -> None:
    assert {("decided", "action"), ("machine_gone", "why"), ("release_failed", "why")} <= set(WORDS)
    assert {("attempt_ended", "outcome"), ("stopped", "limit"), ("alarm", "about"), ("decided", "cause")} <= set(WORDS)


def test_an_end_without_a_cause_is_an_unknown_one() -> None:
    gone = read("machine_gone", {"place": place_data(LAMBDA).model_dump()})
    assert isinstance(gone.payload, MachineGone)
    assert gone.payload.why == "unknown"
    assert "why" not in gone.data


def test_a_wish_of_a_newer_version_is_for_no_attempt() -> None:
    store = ObjectStore.memory()
    request = ask(store, "move", 3, "cheaper", FakeClock(NOW))
    content = {**json.loads(request.to_json()), "action": "hibernate"}
    del content[CHECK]
    store.put(REQUEST_KEY, json.dumps({**content, CHECK: checksum(content)}).encode())
    found = read_request(store)
    assert found is not None
    assert not found.is_for(3)
    assert ask(store, "stop", 0, "by the user", FakeClock(NOW)).is_for(3), "and a stop replaces it"


def test_words_of_a_newer_version_are_read_as_some_word() -> None:
    stopped = read("stopped", {"step": 1, "limit": "carbon"}).payload
    assert isinstance(stopped, Stopped)
    assert stopped.limit == "other"
    decided = read("decided", {"action": "move", "cause": "greener", "reason": "it is windy"}).payload
    assert isinstance(decided, Decided)
    assert decided.cause == "other"
    ended = read("attempt_ended", {"outcome": "evicted", "step": 3}).payload
    assert isinstance(ended, AttemptEnded)
    assert ended.outcome == "other"
    gone = read("machine_gone", {"why": "evicted"}).payload
    assert isinstance(gone, MachineGone)
    assert (gone.why, gone.cause_or_status) == ("closed", "evicted")


def test_the_jobs_last_status_stands_where_older_readers_look_for_it() -> None:
    assert MachineGone(why="closed", job_status="failed_setup").wire() == {"why": "failed_setup"}
    assert MachineGone(why="closed").wire() == {"why": "closed"}
    assert MachineGone(why="hung", job_status="").wire() == {"why": "hung"}


@pytest.mark.parametrize("limit", ["budget", "deadline", "places", "progress"])
def test_only_the_limit_decides_the_exit_code(limit: Limit) -> None:
    at_a_limit = end_of(read("stopped", {"step": 3, "reason": "by the user", "limit": limit}))
    by_a_person = end_of(read("stopped", {"step": 3, "reason": f"the {limit} is my business", "limit": None}))
    assert (at_a_limit, by_a_person) == ((3, False), (75, False))


def test_a_typed_way_in_refuses_what_is_not_an_event() -> None:
    diary = Diary(ObjectStore.memory(), 1)
    with pytest.raises(ValueError, match="no kind 'savd'; it has planned"):
        diary.write("savd", step=3)
    with pytest.raises(ValidationError, match="step"):
        diary.write("saved", stp=3)
    with pytest.raises(ValidationError, match="instance of Saved"):
        Event(time=NOW, id="x", kind="saved", attempt=1, data=Stopped())


def test_the_untyped_way_in_makes_the_same_event() -> None:
    place = PlaceRecord(
        cloud="gcp", region="us", zone=None, gpus="A100:8", spot=True, price_usd_per_hour=10.0, restore_usd=0.0
    )
    store = ObjectStore.memory()
    diary = Diary(store, 0, FakeClock(NOW))
    typed = diary.write(MachineUp(place=place, since=NOW))
    untyped = diary.write("machine_up", place=place.model_dump(), since=NOW.isoformat())
    assert typed.data == untyped.data
    assert untyped.data["place"]["zone"] is None, "an older reader looks for it"
    diary.write("saved", step=950)
    assert [(event.attempt, saved.step) for event, saved in of_kind(read_events(store), Saved)] == [(0, 950)]


# --- the limit on its way from the policy to the exit code --------------------------------------------------


def test_a_request_carries_the_limit_and_is_read_with_or_without_it() -> None:
    store = ObjectStore.memory()
    ask(store, "stop", 1, "it can no longer be paid", FakeClock(NOW), "budget")
    request = read_request(store)
    assert request is not None
    assert request.limit == "budget"
    old = {name: value for name, value in json.loads(request.to_json()).items() if name not in ("limit", CHECK)}
    for content in (old, {**old, "of_2027": 1}):
        store.put(REQUEST_KEY, json.dumps({**content, CHECK: checksum(content)}).encode())
        found = read_request(store)
        assert isinstance(found, Request)
        assert found.limit is None


@pytest.mark.parametrize(("limit", "code"), [("budget", 3), (None, 75)])
def test_the_trainers_last_event_has_the_limit_of_the_request_that_it_obeyed(
    tmp_path: Path, limit: Limit | None, code: int
) -> None:
    store = ObjectStore.memory()
    ask(store, "stop", 1, "the budget of my patience is used up", limit=limit)
    supervisor = Supervisor(
        load_recipe("tiny-dpo"), "tiny-dpo", run="r", bucket="", store=store, scratch=Scratch(tmp_path), processes=1
    )
    assert supervisor.run().kind == "stopped"
    ends = [end for event in read_events(store) if (end := end_of(event)) is not None]
    assert [end.code for end in ends] == [code]


# --- so that it can't come back ------------------------------------------------------------------------------


def data_by_key(source: str) -> list[int]:
    """Lines that read `.data` by a string key."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Subscript)
            and isinstance(node.slice, ast.Constant)
            and isinstance(node.slice.value, str)
        ):
            of = node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            of = node.func.value
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In) and isinstance(node.left, ast.Constant):
            of = node.comparators[0]
        else:
            continue
        if isinstance(of, ast.Attribute) and of.attr == "data":
            found.append(node.lineno)
    return found


def test_nothing_in_the_packages_reads_an_event_by_string_keys() -> None:
    """mypy refuses `Event.data` there; this finds it also where a value's type is not known."""
    assert data_by_key('a = e.data["x"]\nb = e.data.get("x")\nc = "x" in e.data\nd = e.data[0]') == [1, 2, 3]
    paths = [path for room in ("launcher", "trainer", "checkpoints", "docs") for path in (ROOT / room).rglob("*.py")]
    paths.remove(ROOT / "checkpoints/run_log/event_log.py")  # pydantic's `info.data`
    assert len(paths) > 150
    found = {str(path.relative_to(ROOT)): lines for path in paths if (lines := data_by_key(path.read_text()))}
    assert found == {}


def test_a_name_with_a_time_that_is_none_is_a_damaged_line() -> None:
    """A month of 19: it stopped the status of every run of the bucket."""
    store = ObjectStore.memory()
    Diary(store, 1).write("attempt_started", host="h", processes=2)
    store.put("events/20261931T110308.140512Z-2c9159f43502.json", b"{}")
    assert [event.kind for event in read_events(store)] == ["damaged", "attempt_started"]

"""The policy on recorded traces: what it costs, that nothing is late, and where the shipped rates come from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from checkpoints.errors import UserError
from launcher.commands.replay_trace import simulate
from launcher.policy.spot.market import PRIOR_DOWN, PRIOR_UP
from launcher.replay.player import play
from launcher.replay.replayed import Job
from launcher.replay.trace import Trace, fit, read_traces

ALWAYS = Trace(0.1, ("a",), ((True,),) * 400)
NEVER = Trace(0.1, ("a",), ((False,),) * 400)


def write(path: Path, counts: list[int], gap: float = 360) -> Path:
    path.write_text(json.dumps({"metadata": {"gap_seconds": gap}, "data": counts}))
    return path


def test_where_spot_never_goes_away_it_costs_the_spot_price() -> None:
    played = play(ALWAYS, Job(work_h=5, deadline_h=10, restart_h=0.2, spot_price=0.3, start_h=20))
    assert (played.starts, played.preemptions, played.on_demand_h) == (1, 0, 0)
    assert played.cost == pytest.approx(0.3 * 5.2)
    assert [stretch.where for stretch in played.stretches] == ["a"]


def test_where_there_is_no_spot_it_waits_and_then_makes_the_deadline_on_demand() -> None:
    played = play(NEVER, Job(work_h=5, deadline_h=10, restart_h=0.2, spot_price=0.3, start_h=20))
    assert played.cost == pytest.approx(5.2)
    assert played.finish_h is not None
    assert played.finish_h <= 10
    assert [stretch.where for stretch in played.stretches] == ["waiting", "on demand"]


@pytest.mark.parametrize("spare", [0.0, 0.5])
def test_no_real_trace_makes_it_late(shared: Path, spare: float) -> None:
    for path in sorted((shared / "data" / "spot-traces").rglob("*.json")):
        trace = read_traces([path])
        job = Job(work_h=3, deadline_h=3.3 + 3 * spare, restart_h=0.2, spot_price=0.35, start_h=80)
        played = play(trace, job)
        assert played.finish_h is not None, path
        assert played.finish_h <= job.deadline_h + 1e-6, path
        assert sum(s.to_h - s.from_h for s in played.stretches) == pytest.approx(played.finish_h)


def test_the_shipped_rates_are_the_fit_of_the_development_traces(shared: Path) -> None:
    found = fit(read_traces([path]) for path in (shared / "data" / "spot-traces").rglob("*.json"))
    assert found.up_ends == pytest.approx(PRIOR_UP, rel=0.02)
    assert found.down_ends == pytest.approx(PRIOR_DOWN, rel=0.02)
    assert found.up_count > 800


def test_the_zones_of_a_market_are_read_together(tmp_path: Path) -> None:
    trace = read_traces([write(tmp_path / "a.json", [4, 3, 4]), write(tmp_path / "b.json", [1, 1, 0, 1])])
    assert trace == Trace(0.1, ("a", "b"), ((True, True), (False, True), (True, False)))


def test_a_bad_trace_is_named_with_what_it_needs(tmp_path: Path) -> None:
    broken, empty = tmp_path / "broken.json", write(tmp_path / "empty.json", [0, 0])
    broken.write_text('{"data": [1]}')
    for paths, words in (
        ([tmp_path / "none.json"], "can't read"),
        ([broken], "not a spot trace"),
        ([empty], "no tick"),
        ([write(tmp_path / "a.json", [1]), write(tmp_path / "b.json", [1], gap=60)], "different ticks"),
    ):
        with pytest.raises(UserError, match=words):
            read_traces(paths)


def test_a_job_that_cannot_be_played_is_refused() -> None:
    with pytest.raises(UserError, match="cannot finish in"):
        play(ALWAYS, Job(5, 5, 0.2, 0.3, 0))
    with pytest.raises(UserError, match="the trace has 40 h"):
        play(ALWAYS, Job(5, 10, 0.2, 0.3, 35))


def test_the_picture_and_the_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "zone-a.json", [1] * 30 + [0] * 100)
    job = Job(work_h=5, deadline_h=8, restart_h=0.2, spot_price=0.3, start_h=0)
    assert simulate([path], job, "text") == 0
    assert "on demand" in capsys.readouterr().out
    assert simulate([path], job, "json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["preemptions"] == 1
    assert told["spot_h"] + told["on_demand_h"] == pytest.approx(5.4)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_replay_is_drawn(tmp_path: Path, suffix: str) -> None:
    trace = write(tmp_path / "zone.json", ([1] * 30 + [0] * 20) * 20)
    job = Job(work_h=5, deadline_h=10, restart_h=0.2, spot_price=0.3, start_h=20)
    first, second = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    for path in (first, second):
        assert simulate([trace], job, "json", path) == 0
    assert first.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml")
    assert first.read_bytes() == second.read_bytes(), "the same replay makes the same file"


def test_a_picture_of_another_kind_is_the_users_error(tmp_path: Path) -> None:
    job = Job(work_h=5, deadline_h=10, restart_h=0.2, spot_price=0.3, start_h=20)
    with pytest.raises(UserError, match="is not an image file"):
        simulate([tmp_path / "missing.json"], job, "text", tmp_path / "x.pdf")
    with pytest.raises(UserError, match="there is no folder"):
        simulate([tmp_path / "missing.json"], job, "text", tmp_path / "no" / "x.png")


@pytest.mark.parametrize(
    "text",
    [
        '{"metadata": {"gap_seconds": NaN}, "data": [1]}',
        '{"metadata": {"gap_seconds": Infinity}, "data": [1]}',
        '{"metadata": {"gap_seconds": 360}, "data": [1e400]}',
        '{"metadata": {"gap_seconds": 360}, "data": [NaN]}',
    ],
)
def test_numbers_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(UserError, match="is not a spot trace"):
        read_traces([tmp_path / "t.json"])


def test_one_trace_is_not_two_zones(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [1])
    with pytest.raises(UserError, match="one trace is given twice"):
        read_traces([path, tmp_path / "." / "a.json"])


@pytest.mark.parametrize(
    ("job", "hint"),
    [
        (Job(12, 12, 0.25, 0.3, 0), "give --deadline 12.25h or more"),
        (Job(5, 50, 0.2, 0.3, 0), "give --deadline 40h or less"),
        (Job(5, 50, 0.2, 0.3, 38), "give a longer trace, or fewer --hours and a shorter --deadline"),
        (Job(5, 10, 0.2, 0.3, 33), "give --start 30 or less or --deadline 7h or less"),
    ],
)
def test_the_hint_of_a_refused_job_works(job: Job, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        play(ALWAYS, job)
    assert caught.value.hint == hint


def test_a_picture_that_cannot_be_written_is_the_users_error(tmp_path: Path) -> None:
    trace = write(tmp_path / "a.json", [1] * 400)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        simulate([trace], Job(5, 10, 0.2, 0.3, 20), "json", tmp_path / "folder.png")


def test_the_summary_reads_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = write(tmp_path / "a.json", [1] * 400)
    job = Job(5, 10, 0.2, 0.3, 20)
    assert simulate([trace], job, "text", tmp_path / "p.svg") == 0
    told = capsys.readouterr()
    assert "0 preemptions, 1 start\n" in told.out
    assert "70% less than on demand alone" in told.out
    assert f"plotted to {tmp_path / 'p.svg'}" in told.err
    even = play(NEVER, job)
    assert even.saved == "as much as"
    assert replace(even, cost=even.on_demand_cost * 1.1).saved == "10% more than"


def test_a_device_is_no_trace() -> None:
    with pytest.raises(UserError, match="/dev/zero is not a file"):
        read_traces([Path("/dev/zero")])

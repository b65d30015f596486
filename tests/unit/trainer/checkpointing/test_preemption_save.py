"""Notices, the last seconds, and how often to save: the decisions."""

from __future__ import annotations

import http.client
import math
import random
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.checkpointing.preemption_save import Needed, Unknown, choose, needed
from trainer.checkpointing.save_interval import auto_interval_minutes, best_interval_s
from trainer.runtime.preemption_notice import SILENT_POLLS, FileNotice, Notice, NoticePoller
from trainer.supervisor.supervisor import notice_sources

GB = 1e9


def rank(*, size: float = 7 * GB, busy: bool = False, left: float = 0.0, rate: float = GB) -> Needed:
    return needed(copy_s=0.5, snapshot_bytes=size, busy=busy, in_flight_bytes=left, bytes_per_second=rate)


UPLOADING = rank(busy=True, left=7 * GB)


@pytest.mark.parametrize(
    ("seconds", "ranks", "choice"),
    [
        (None, [UPLOADING], "finish, then save"),
        (25.0, [rank()], "finish, then save"),  # nothing in flight: 0.5 + 8.4 + 1.5 s
        (25.0, [UPLOADING], "finish, then save"),
        (15.0, [UPLOADING], "save now"),
        (10.0, [rank(busy=True, left=2 * GB)], "finish"),
        (3.0, [UPLOADING], "leave"),
        (3.0, [rank()], "leave"),
        (3.0, [Unknown(busy=False), rank()], "save now"),
        # the first save of an attempt: giving up what is nearly there would lose all of it
        (20.0, [Unknown(busy=True), UPLOADING], "finish, then see"),
        (3.0, [rank(size=0.2 * GB)], "finish, then save"),  # LoRA always fits
        # late by its estimate, nothing left to send, not yet committed: it must not be given up
        (5.0, [rank(busy=True, left=0.0)], "finish"),
        (-1.0, [rank(busy=True, left=0.0)], "leave"),
        # LoRA under DDP: rank 1 has 16 kB, and its bandwidth is latency
        (25.0, [rank(size=0.2 * GB, rate=0.1 * GB), rank(size=16e3, rate=16e3 / 0.15)], "finish, then save"),
    ],
)
def test_the_last_seconds(seconds: float | None, ranks: list[Needed | Unknown], choice: str) -> None:
    assert choose(seconds, ranks) == choice


costs = st.builds(
    needed,
    copy_s=st.floats(0, 5),
    snapshot_bytes=st.floats(1e6, 1e11),
    busy=st.booleans(),
    in_flight_bytes=st.floats(0, 1e11),
    bytes_per_second=st.floats(1e7, 1e10),
)


@given(st.floats(0, 60), st.lists(costs, min_size=1, max_size=4))
def test_what_is_chosen_fits_on_every_rank(seconds: float, ranks: list[Needed]) -> None:
    choice = choose(seconds, ranks)
    save_s = max(rank.save_s for rank in ranks)
    finish_s = max((rank.finish_s for rank in ranks if rank.finish_s is not None), default=0.0)
    give_up_s = max(rank.give_up_s for rank in ranks)
    takes = {"finish, then save": finish_s + save_s, "save now": give_up_s + save_s, "finish": finish_s, "leave": 0.0}
    assert takes[choice] <= seconds + 1e-6
    if choice == "leave":
        assert give_up_s + save_s > seconds


def lost_share(interval_s: float, stall_s: float, mean_s: float, generator: random.Random) -> float:
    """Simulate: share of the time that saving and redoing take, with exponential failures."""
    useful = wall = 0.0
    while useful < 200 * mean_s:
        until = generator.expovariate(1 / mean_s)
        cycles = math.floor(until / (interval_s + stall_s))
        useful += cycles * interval_s
        wall += until
    return 1 - useful / wall


@pytest.mark.parametrize(("stall_s", "hours"), [(0.5, 6.0), (5.0, 2.0), (60.0, 1.0)])
def test_the_interval_is_within_two_percent_of_the_best_in_hindsight(stall_s: float, hours: float) -> None:
    mean_s = hours * 3600
    chosen = best_interval_s(stall_s=stall_s, mean_time_to_preemption_s=mean_s)

    def useful_share(interval_s: float) -> float:
        return 1 - lost_share(interval_s, stall_s, mean_s, random.Random(7))

    best = max(useful_share(chosen * factor) for factor in (0.25, 0.5, 0.7, 0.85, 1.0, 1.2, 1.4, 2.0, 4.0))
    assert useful_share(chosen) >= best * 0.98


def test_daly_s_formula_in_its_limits() -> None:
    assert best_interval_s(stall_s=1e-4, mean_time_to_preemption_s=1e4) == pytest.approx(math.sqrt(2), rel=1e-2)
    assert best_interval_s(stall_s=100, mean_time_to_preemption_s=10) == 10


def test_auto_keeps_the_network_half_idle_and_saves_neither_madly_nor_never() -> None:
    mean_s = 6 * 3600.0
    assert auto_interval_minutes(stall_s=0.5, upload_s=300, mean_time_to_preemption_s=mean_s) == 10
    assert auto_interval_minutes(stall_s=0.0, upload_s=0.1, mean_time_to_preemption_s=mean_s) == 0.5
    assert auto_interval_minutes(stall_s=600, upload_s=1, mean_time_to_preemption_s=1e9) == 60


def test_a_file_is_a_notice(tmp_path: Path) -> None:
    source = FileNotice(tmp_path / "notice")
    assert source.poll() is None
    (tmp_path / "notice").write_text("")
    assert source.poll() == Notice("file", None)
    for odd in ("30", '{"seconds": "soon"}', "[]", "not json", '{"seconds": null}', '{"seconds": 1e400}'):
        (tmp_path / "notice").write_text(odd)
        assert source.poll() == Notice("file", None)
    (tmp_path / "notice").write_text('{"seconds": 30}')
    notice = source.poll()
    assert notice is not None
    assert notice.deadline is not None
    assert 25 < (notice.deadline - datetime.now(UTC)).total_seconds() <= 30


class Odd:
    """Fails in its own way for a while, then announces."""

    name = "odd"

    def __init__(self, error: Exception) -> None:
        self.answers: list[Exception | None] = [*[error] * (2 * SILENT_POLLS), None]

    def poll(self) -> Notice | None:
        if (answer := self.answers.pop(0)) is not None:
            raise answer
        return Notice("odd", None)


@pytest.mark.parametrize("error", [OSError("no route to host"), http.client.BadStatusLine("?"), KeyError("time")])
def test_a_source_that_was_silent_for_long_is_heard(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    poller = NoticePoller([Odd(error)], lambda notice: None)
    rounds = [poller.poll_all() for _ in range(2 * SILENT_POLLS + 1)]
    assert rounds == [None] * (2 * SILENT_POLLS) + [Notice("odd", None)]
    assert caplog.text.count("can't query odd for preemption notices") == 1


@pytest.mark.parametrize(
    ("info", "names"),
    [
        ('{"cloud": "GCP", "region": "us-central1"}', ["file", "gcp"]),
        ('{"cloud": "AWS"}', ["file", "aws"]),
        ('{"cloud": "Lambda"}', ["file"]),
        ("not json", ["file"]),
        ("", ["file"]),
    ],
)
def test_only_the_cloud_that_we_are_in_is_asked(info: str, names: list[str], tmp_path: Path) -> None:
    environment = {"SKYPILOT_CLUSTER_INFO": info} if info else {}
    assert [source.name for source in notice_sources(environment, tmp_path)] == names

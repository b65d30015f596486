"""Where the time went, and what an interruption cost, by hand."""

from __future__ import annotations

import pytest

from launcher.report.goodput import goodput_parts, interruptions
from launcher.report.receipt import make_receipt
from tests.support import recorded_run as night

RECEIPT = make_receipt("night", night.events(), night.metrics(), [], night.END)


def test_the_parts_add_up_to_the_wall_time() -> None:
    parts = goodput_parts(RECEIPT)
    assert sum(part.seconds for part in parts) == pytest.approx(RECEIPT.wall_s)
    assert sum(part.share for part in parts) == pytest.approx(1)
    assert [part.name for part in parts if part.productive] == ["productive training"]
    by_name = {part.name: part.seconds for part in parts}
    assert by_name["startup of the first attempt"] == pytest.approx(0.2 * 3600)
    assert by_name["startup after interruptions"] == pytest.approx(0.1 * 3600)
    assert by_name["wasted progress from disruption"] == pytest.approx(5 * night.PACE_S)
    assert by_name["infrastructure recovery"] == pytest.approx(0.2 * 3600)


def test_an_interruption_costs_its_redone_steps_and_the_next_start() -> None:
    (one,) = interruptions(RECEIPT)
    assert (one.attempt, one.ended, one.at_step, one.redone_steps) == (1, "preempted", 20, 5)
    assert one.waiting_s == pytest.approx(0.2 * 3600)
    assert one.cost_usd == pytest.approx(5 * night.PACE_S / 3600 * 9.0 + 0.1 * 30.0)


def test_without_machines_an_interruption_has_no_price() -> None:
    unpaid = [event for event in night.events() if "machine" not in event.kind]
    (one,) = interruptions(make_receipt("night", unpaid, night.metrics(), [], night.END))
    assert one.cost_usd is None


def test_an_empty_run_has_parts_of_nothing() -> None:
    empty = make_receipt("night", [], [], [], night.END)
    assert {part.seconds for part in goodput_parts(empty)} == {0.0}
    assert interruptions(empty) == []

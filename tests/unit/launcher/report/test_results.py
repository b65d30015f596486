"""What a training came to, by hand on a small night."""

from __future__ import annotations

import pytest

from checkpoints.run_log.metrics import StepMetrics
from launcher.report.results import kept_rows, make_results
from tests.support import recorded_run as night


def test_the_last_steps_are_averaged_over_all_ranks() -> None:
    results = make_results(night.events(), kept_rows(night.metrics()))
    last = [row for row in night.metrics() if row.step > night.STEPS - 3]  # 5 % of 60 steps
    assert results.last_steps == 3
    assert results.loss == pytest.approx(sum(row.values["loss"] for row in last) / len(last))
    assert results.rewards["rewards/margins"] == pytest.approx((58 + 59 + 60) / 3 / 50)
    assert results.tokens_per_second == pytest.approx(40_030.5)


def test_an_evaluation_is_shown_without_the_machines_speed() -> None:
    results = make_results(night.events(), kept_rows(night.metrics()))
    assert results.evaluated_at_step == 30
    assert results.evaluation == {"eval_loss": 0.61, "eval_rewards/accuracies": 0.7}


def test_a_redone_step_counts_as_its_last_attempt_did_it() -> None:
    rows = [
        StepMetrics(1, 0, 7, {"loss": 3.0}),
        StepMetrics(2, 0, 7, {"loss": 1.0}),
        StepMetrics(2, 1, 7, {"loss": 2.0}),
    ]
    assert kept_rows(rows) == {7: {"loss": 1.5}}


def test_a_run_that_has_not_trained_has_no_results() -> None:
    results = make_results([], {})
    assert results.loss is None
    assert (results.rewards, results.evaluation, results.last_steps) == ({}, {}, 0)

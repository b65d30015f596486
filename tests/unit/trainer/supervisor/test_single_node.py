"""A run has one node: what a task with more is told."""

from __future__ import annotations

import pytest

from checkpoints.errors import UserError
from trainer.errors import TaskError
from trainer.supervisor.single_node import check_nodes, check_nodes_here


@pytest.mark.parametrize("count", [None, 0, 1])
def test_one_node_is_fine(count: int | None) -> None:
    check_nodes(count)


@pytest.mark.parametrize("count", [2, 16, 10**8])
def test_more_are_refused_with_a_way_out(count: int) -> None:
    with pytest.raises(TaskError, match=f"asks for {count} nodes, and a run has one") as caught:
        check_nodes(count)
    assert isinstance(caught.value, UserError)
    assert caught.value.exit_code == 2
    assert "num_nodes" in caught.value.hint


@pytest.mark.parametrize("text", ["2", " 8 ", "\u0663"])
def test_every_node_of_a_task_with_more_refuses(text: str) -> None:
    """SkyPilot runs the set-up and the job on each of them."""
    with pytest.raises(TaskError):
        check_nodes_here({"SKYPILOT_NUM_NODES": text, "SKYPILOT_NODE_RANK": "0"})


@pytest.mark.parametrize("text", ["", "1", "01", "two", "-2", "9" * 5000])
def test_what_says_nothing_of_more_nodes_refuses_nothing(text: str) -> None:
    check_nodes_here({"SKYPILOT_NUM_NODES": text})


def test_a_variable_of_the_users_own_is_not_skypilots() -> None:
    """A run on the login node of a cluster is not a task with more nodes."""
    check_nodes_here({"NUM_NODES": "4"})

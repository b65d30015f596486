"""A run has one node. A task with more is refused: its second node would find the run held, and end the job."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.errors import TaskError

NODES = "SKYPILOT_NUM_NODES"
"""Environment variable of SkyPilot in the set-up and the job: the number of nodes."""


def check_nodes(count: int | None) -> None:
    """Raises `TaskError` for more than one node."""
    if count is not None and count > 1:
        raise TaskError(
            f"the task asks for {count} nodes, and a run has one: its GPUs have to be in one machine",
            "leave num_nodes out of the task, and request a larger node: accelerators: A100:8",
        )


def check_nodes_here(environment: Mapping[str, str]) -> None:
    """`check_nodes` with the number in this machine's environment; on every node, before anything else."""
    text = environment.get(NODES, "").strip()
    if text.isdecimal() and len(text) < 10:
        check_nodes(int(text))

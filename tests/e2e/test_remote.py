"""A jobs controller on a VM of its own: what `notus-launch doctor --fix` prepares is enough for the NOTUS strategy there."""

from __future__ import annotations

from tests.e2e.remote import Remote


def test_the_strategy_acts_on_a_controllers_vm(remote: Remote) -> None:
    """It has begun with the session, see `tests.e2e.remote`."""
    try:
        remote.result(1500)
    finally:
        remote.stop()

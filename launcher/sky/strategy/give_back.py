"""Give a machine back: release, verify, then record. It is billed as long as its cloud reports it."""

from __future__ import annotations

import logging

from checkpoints.errors import NotusError
from checkpoints.run_log.causes import GoneCause
from checkpoints.run_log.event_kinds import MachineGone, ReleaseFailed
from checkpoints.run_log.event_log import of_kind
from launcher.policy.run_history import machines, place_data
from launcher.sky.strategy.cloud_api import CloudApi, LimitReached
from launcher.sky.strategy.newest_launch import is_noted_as_gone, since_machine
from launcher.sky.strategy.run_events import RunDiary

logger = logging.getLogger("sky.notus")

RETRY_S = (60.0, 600.0)
"""Pauses between tries, growing from the first to the second."""
TRY_FOR_S = 24 * 3600.0
"""After this long of failed tries the job ends with an error, because only a person can help."""


async def release_machine(
    cloud_api: CloudApi, diary: RunDiary, why: GoneCause, *, message: str = "", job_status: str = ""
) -> bool:
    """Try once. A failure is recorded, and the machine stays booked; False = try again."""
    spells = machines(diary.known())
    spell = spells[-1] if spells else None
    failed = await _released(cloud_api)
    if failed and spell is not None:
        tries = 1 + len(of_kind(since_machine(diary.known()), ReleaseFailed))
        await diary.note(ReleaseFailed(place=place_data(spell.place), message=failed, tries=tries, why=why))
    elif failed:
        logger.warning("notus: no machine is recorded, and the release failed: %s", failed)
    elif spell is not None and not is_noted_as_gone(diary.known()):
        await diary.note(MachineGone(why=why, place=place_data(spell.place), said=message, job_status=job_status))
    return not failed


async def release_until_gone(cloud_api: CloudApi, diary: RunDiary, why: GoneCause, message: str = "") -> None:
    """Retry until the machine is released. Raises `LimitReached` after a day."""
    pause_s, waited_s = RETRY_S[0], 0.0
    while not await release_machine(cloud_api, diary, why, message=message):
        if waited_s >= TRY_FOR_S:
            raise LimitReached(
                "the machine could not be released for a day and is still billed",
                "terminate it in its cloud's console, or with `sky down`; then launch the same --name again",
            )
        await cloud_api.wait(pause_s, "the machine could not be released yet, and is billed")
        waited_s += pause_s
        pause_s = min(pause_s * 1.6, RETRY_S[1])


async def _released(cloud_api: CloudApi) -> str:
    """Release the machine; returns why it is not confirmed as gone, '' if it is."""
    try:
        await cloud_api.release()
        if await cloud_api.cloud_says_gone():
            return ""
    except NotusError as error:
        return error.message
    except Exception as error:  # SkyPilot raises many kinds; in any case the machine is still billed
        logger.warning("notus: the machine could not be released", exc_info=True)
        return str(error) or type(error).__name__
    return "it was released, but its cloud still reports it or does not answer"

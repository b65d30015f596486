"""Giving a machine back: release, verify, then note. Until its cloud doesn't know it any more it is billed."""

from __future__ import annotations

import logging

from checkpoints.errors import NotusError
from checkpoints.run_log.causes import GoneCause
from checkpoints.run_log.event_kinds import MachineGone, ReleaseFailed
from checkpoints.run_log.event_log import of_kind
from launcher.policy.run_history import machines, place_data
from launcher.sky.strategy.cloud_api import Hands, LimitReached
from launcher.sky.strategy.newest_launch import is_noted_as_gone, since_machine
from launcher.sky.strategy.run_events import RunDiary

logger = logging.getLogger("sky.notus")

RETRY_S = (60.0, 600.0)
"""Between tries, growing from the first to the second."""
TRY_FOR_S = 24 * 3600.0
"""After that long of failing tries the job ends, and says so: only a person can help."""


async def give_back(hands: Hands, diary: RunDiary, why: GoneCause, *, said: str = "", job_status: str = "") -> bool:
    """One try. What fails is noted, and the machine booked on; False = to be tried again."""
    spells = machines(diary.known())
    spell = spells[-1] if spells else None
    failed = await _released(hands)
    if failed and spell is not None:
        tries = 1 + len(of_kind(since_machine(diary.known()), ReleaseFailed))
        await diary.note(ReleaseFailed(place=place_data(spell.place), message=failed, tries=tries, why=why))
    elif failed:
        logger.warning("notus: no machine is known, and releasing it failed: %s", failed)
    elif spell is not None and not is_noted_as_gone(diary.known()):
        await diary.note(MachineGone(why=why, place=place_data(spell.place), said=said, job_status=job_status))
    return not failed


async def give_back_surely(hands: Hands, diary: RunDiary, why: GoneCause, said: str = "") -> None:
    """Before anything else may happen. Raises `LimitReached` after a day of trying."""
    pause_s, waited_s = RETRY_S[0], 0.0
    while not await give_back(hands, diary, why, said=said):
        if waited_s >= TRY_FOR_S:
            raise LimitReached(
                "the machine could not be given back for a day: it is billed until somebody terminates it",
                "terminate it in the console of its cloud, or with `sky down`; then launch the same --name again",
            )
        await hands.wait(pause_s, "the machine could not be given back yet, and is billed")
        waited_s += pause_s
        pause_s = min(pause_s * 1.6, RETRY_S[1])


async def _released(hands: Hands) -> str:
    """Why the machine is not known to be gone; '' = it is."""
    try:
        await hands.release()
        if await hands.cloud_says_gone():
            return ""
    except NotusError as error:
        return error.message
    except Exception as error:  # SkyPilot raises many kinds; whichever it is, the machine is billed on
        logger.warning("notus: the machine could not be given back", exc_info=True)
        return str(error) or type(error).__name__
    return "it was released, and its cloud still shows it, or does not answer"

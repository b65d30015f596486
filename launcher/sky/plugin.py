"""The NOTUS recovery strategy, as a plugin of SkyPilot 0.14.1's API server and jobs controllers.

~/.sky/plugins.yaml names `launcher.sky.plugin.NotusPlugin` (`notus-launch doctor --fix` writes it). SkyPilot then hands
every job with `job_recovery: {strategy: NOTUS}` to `NotusStrategy`. Imports sky: only SkyPilot loads this module.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import math
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import sky
from sky import exceptions, global_user_state
from sky.backends import backend_utils
from sky.client import sdk
from sky.clouds.cloud import CloudCapability
from sky.jobs import recovery_strategy, state
from sky.jobs import utils as managed_job_utils
from sky.server import plugins
from sky.utils import common_utils, registry, resources_utils, status_lib

from checkpoints.errors import NotusError, StoreError, UserError
from checkpoints.run_log.event_log import read_events
from checkpoints.run_log.run_record import open_run
from checkpoints.storage.base import Store
from checkpoints.util.clock import LONG_AGO, SystemClock
from launcher.catalog.offers import find_catalog
from launcher.policy.limits import Limits, limits_of
from launcher.policy.model import Place
from launcher.sky import catalog
from launcher.sky.strategy.last_word import ends_the_run
from launcher.sky.strategy.places import Candidate, Hourly, booked, is_price, judge, offers_for, report
from launcher.sky.strategy.provision_log import (
    Tried,
    all_refused,
    answers,
    asked_at,
    count_asked,
    one_line,
    tries_in,
    was_given,
)
from launcher.sky.strategy.resource_entries import Entry, requests
from launcher.sky.strategy.run_controller import Conductor, LimitReached, Lost, Refused, Told, Up
from trainer.checkpointing.save_interval import HOURS_TO_PREEMPTION
from trainer.supervisor.single_node import check_nodes
from trainer.supervisor.supervisor import PREDECESSOR_GONE

logger = logging.getLogger("sky.notus")

STRATEGY = "NOTUS"
PRICES_S = 180.0
"""For reading all prices: seconds, minutes where SkyPilot downloads its lists first."""
BUCKET_RETRY_S = 30.0
RELEASE_AFTER = 20
"""Tries in a row without the bucket, until the old machine is given back anyway."""
BUCKET_TRIES = 2880
"""A day without the bucket ends the job: it costs nothing, but no wait is without an end."""
PROVISION_S, ASK_S = 2700.0, 60.0
"""What SkyPilot may take for one request: to get a machine ready, and for each zone that it asks on the way. A cloud
bills from the first minute, and SkyPilot itself waits for hours."""
EVENTS = 500
"""Of a cluster that are read: a launch writes one a zone and eight more."""
WATCHING: dict[int, asyncio.Task[None]] = {}
"""By job, each watched once: SkyPilot makes a job's strategy anew after an error of its own, in the same process."""


@dataclass
class Search:
    """What the requests of one search have met so far."""

    tries: list[Tried] = field(default_factory=list)
    otherwise: str = ""
    """What SkyPilot said last, for places of which no log tells."""
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    """The newest request."""
    machine: tuple[Place, datetime] | None = None
    """What came of it: a machine, and since when it is paid. The job may not run there."""
    taken: bool = False
    """Its cloud took that machine away before the job ran."""

    def begin(self) -> None:
        """Another request."""
        self.began, self.machine, self.otherwise, self.taken = datetime.now(UTC), None, "", False

    def hear(self, error: BaseException) -> None:
        """An error of SkyPilot's own, which is no refusal of a cloud's. The first of a request is why it failed."""
        self.otherwise = self.otherwise or f"SkyPilot: {str(error) or type(error).__name__}"


SEARCHING: ContextVar[Search | None] = ContextVar("SEARCHING", default=None)
"""Of the job whose code runs: a controller has many in one process, which share SkyPilot's logger."""


class Ear(logging.Handler):
    """Hears the errors that SkyPilot's `_launch` only logs, as where its server doesn't take the request at all."""

    def __init__(self, search: Search) -> None:
        super().__init__(logging.INFO)
        self._search = search

    def emit(self, record: logging.LogRecord) -> None:
        """Called where the line is logged, so that the error itself is still at hand."""
        error = sys.exc_info()[1]
        if error is not None and SEARCHING.get() is self._search:
            self._search.hear(error)


@contextlib.contextmanager
def listening(search: Search) -> Iterator[None]:
    """While a search goes on."""
    ear, token = Ear(search), SEARCHING.set(search)
    recovery_strategy.logger.addHandler(ear)
    try:
        yield
    finally:
        recovery_strategy.logger.removeHandler(ear)
        SEARCHING.reset(token)


class NotusPlugin(plugins.BasePlugin):  # type: ignore[misc]  # sky has no types
    """Registers the strategy. Takes no parameters: each job brings its own limits in its environment."""

    def install(self, extension_context: plugins.ExtensionContext) -> None:
        """Called once in the API server, in its executors and in each jobs controller."""
        if STRATEGY.lower() not in registry.JOBS_RECOVERY_STRATEGY_REGISTRY:
            registry.JOBS_RECOVERY_STRATEGY_REGISTRY.type_register(name=STRATEGY)(NotusStrategy)


class NotusStrategy(recovery_strategy.StrategyExecutor):  # type: ignore[misc]
    """Asks the policy where to run, at the launch, after a preemption, and every minute while the job runs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._task: sky.Task = self.dag.tasks[0]
        self._wanted: list[sky.Resources] = list(self._task.resources)
        self._resources: dict[Place, sky.Resources] = {}
        self._prices = Hourly(self._read_prices, SystemClock())
        self._listed: dict[Place, float] = {}
        self._recovering = False
        self._search = Search()
        self._opened: Conductor | None = None

    # --- what SkyPilot calls ----------------------------------------------------------------------

    async def launch(self) -> float:
        """The first machine."""
        return await self._within_limits(lambda conductor: conductor.launch())

    async def recover(self) -> float:
        """The next one, unless the old one turns out to be alive."""
        self._recovering = True
        return await self._within_limits(lambda conductor: conductor.recover())

    def should_restart_on_failure(self, exit_codes: list[int] | None = None) -> bool:
        """SkyPilot's own ends the job for every code that the task doesn't list."""
        return not ends_the_run(exit_codes, lambda: read_events(self._store()))

    async def monitor_task(self, **_: Any) -> bool | None:
        """Looks after the running job beside SkyPilot's own loop, which goes on as ever."""
        if (old := WATCHING.get(self.job_id)) is not None:  # of the executor before SkyPilot's emergency recovery
            old.cancel()
        task = WATCHING[self.job_id] = asyncio.create_task(self._watch())
        task.add_done_callback(self._forget)
        return None

    def _forget(self, task: asyncio.Task[None]) -> None:
        if WATCHING.get(self.job_id) is task:
            del WATCHING[self.job_id]

    async def _within_limits(self, find: Callable[[Conductor], Awaitable[float]]) -> float:
        """Translates what ends the run into SkyPilot's words, and waits for a bucket that doesn't answer."""
        failures = 0
        while True:
            try:
                return await find(await asyncio.to_thread(self._conductor))
            except LimitReached as error:  # SkyPilot ends the job: FAILED_NO_RESOURCE, with this text
                raise exceptions.ManagedJobReachedMaxRetriesError(f"{error.message}. {error.hint}") from error
            except NotusError as error:
                if not self._recovering and not isinstance(error, StoreError):
                    raise exceptions.ProvisionPrechecksError([error]) from error  # FAILED_PRECHECKS
                # A run of hours doesn't end because the bucket, or a right to it, is away for a while.
                failures += 1
                trouble = error.message
                logger.warning("notus: %s; trying again in %.0f s", trouble, BUCKET_RETRY_S)
            if failures % RELEASE_AFTER == 0 and self._recovering:
                await self._give_back_blindly()  # not every cloud gives an idle machine back by itself
            if failures >= BUCKET_TRIES:
                raise exceptions.ManagedJobReachedMaxRetriesError(f"tried for a day: {trouble}")
            await asyncio.sleep(BUCKET_RETRY_S)

    async def _give_back_blindly(self) -> None:
        """Without the bucket: the conductor notes it as soon as it can."""
        if self._opened is not None:
            await self._opened.close("unknown")
            return
        try:
            await self.release()
        except Exception:  # tried again when the bucket is back
            logger.exception("notus: the machine could not be given back")

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._limits().settings.check_h * 3600)
            try:
                status = await asyncio.to_thread(state.get_status, self.job_id)
                conductor = await asyncio.to_thread(self._conductor)
                if status is None or status.is_terminal():
                    job_status = status.value.lower() if status else ""
                    if await conductor.close("closed" if status else "unknown", job_status):
                        return
                    continue  # it is billed on: tried again at the next look
                await conductor.look()
            except NotusError as error:  # the bucket doesn't answer: the next look may be luckier
                logger.warning("notus: %s", error.message)
            except Exception:  # the job must not go unwatched because of one bad look
                logger.exception("notus: a look at the job failed")

    def _conductor(self) -> Conductor:
        """Opens the bucket; raises `UserError` for a task that isn't one of ours, or can't."""
        if self._opened is None:
            environment = job_environment(self._task)
            store = self._store()
            check_nodes(self._task.num_nodes)
            launch = environment.get("NOTUS_LAUNCH", "")
            number = int(launch) if launch.isdigit() else 0
            limits = limits_of(environment, datetime.now(UTC))
            job = f"{common_utils.get_user_hash()}/{self.job_id}"
            self._opened = Conductor(store, limits, self, SystemClock(), number, job)
        return self._opened

    def _store(self) -> Store:
        """The run's; raises `UserError` for a task that isn't one of ours."""
        environment = job_environment(self._task)
        for name in ("NOTUS_BUCKET", "NOTUS_RUN", "NOTUS_RECIPE"):
            if not environment.get(name):
                raise UserError(f"the task has no {name}", "the NOTUS strategy is for tasks of notus-launch")
        return open_run(environment["NOTUS_BUCKET"], environment["NOTUS_RUN"], environment)

    def _limits(self) -> Limits:
        return limits_of(job_environment(self._task))

    # --- Hands ------------------------------------------------------------------------------------

    async def places(self) -> list[Place]:
        """Every zone of the task's resources whose price can be trusted; the prices are read again every hour."""
        try:
            found = await asyncio.wait_for(asyncio.to_thread(self._prices.value), PRICES_S)
        except TimeoutError:  # SkyPilot downloads its lists without a limit
            if self._prices.last is None:
                raise UserError(f"SkyPilot gave no prices within {PRICES_S:.0f} s", "is its catalog away?") from None
            found = self._prices.last
        # Places of an earlier hour stay known: a launch that is under way may still ask them.
        self._resources = {place: one for place, one in self._resources.items() if place not in found} | found
        return list(found)

    def _read_prices(self) -> dict[Place, sky.Resources]:
        catalog.read_again()
        found, self._listed = expand(self._wanted, trust_prices=self._limits().trust_prices)
        return found

    def listed_usd(self, place: Place) -> float | None:
        """Of the last reading."""
        return self._listed.get(place)

    async def launch_in(self, places: Sequence[Place], told: Told) -> Up | Lost | Refused:
        """Requests of SkyPilot's with exactly these places in this order, each bounded in time."""
        self._task.update_envs(environment_of(told))
        whole = self._task.resources
        search = self._search = Search()
        asked, cut, prechecks = False, False, None
        until_s = time.monotonic() + told.most_s
        everything = await asyncio.to_thread(everywhere, self._resources.values())
        try:
            for entries in requests(places, everything):
                self._task.set_resources([self._entry(entry) for entry in entries])
                search.begin()
                limit_s = min(PROVISION_S + ASK_S * len(places), until_s - time.monotonic())
                if cut := limit_s <= 0:
                    break
                try:
                    with listening(search):
                        submitted_at = await self._launch_within(limit_s)
                    await asyncio.to_thread(self._tell_where)
                    if (machine := search.machine or await asyncio.to_thread(self._machine)) is None:
                        # It is gone, and its place is unknown. It was billed anyway, so book the dearest candidate.
                        dearest = max(places, key=lambda place: place.price_usd_per_hour)
                        said = "it was gone before SkyPilot could tell where it was"
                        return Lost(dearest, search.began, answers(search.tries, places), said, taken=True)
                    return Up(*machine, submitted_at, answers(search.tries, places))
                except exceptions.ManagedJobReachedMaxRetriesError:
                    if search.machine is not None:
                        said = one_line(search.otherwise)
                        return Lost(*search.machine, answers(search.tries, places), said, taken=search.taken)
                    asked = True
                except TimeoutError:
                    search.otherwise = f"SkyPilot had no machine ready within {limit_s / 60:.0f} min: given up"
                    if (machine := search.machine or await asyncio.to_thread(self._machine)) is not None:
                        return Lost(*machine, answers(search.tries, places), search.otherwise)
                    await self._give_back_blindly()  # what the cancelled request has left is nowhere in the books
                    asked = True
                except exceptions.ProvisionPrechecksError as error:  # of these entries: others may be good
                    search.otherwise = "; ".join(str(reason) for reason in error.reasons)
                    prechecks = error
        finally:
            self._task.set_resources(whole)
        if prechecks is not None and not asked and not self._recovering:
            raise prechecks
        heard = answers(search.tries, places)
        return Refused(heard if cut and heard else all_refused(heard, places, search.otherwise))

    async def _launch_within(self, limit_s: float) -> float:
        """SkyPilot's own launch. Raises `TimeoutError`; the request is cancelled then."""
        submitted_at: float = await asyncio.wait_for(self._launch(max_retry=1, recovery=self._recovering), limit_s)
        return submitted_at

    def _entry(self, entry: Entry) -> sky.Resources:
        return self._resources[entry.example].copy(region=entry.region, zone=entry.zone)

    def _machine(self, *, of_any_search: bool = False) -> tuple[Place, datetime] | None:
        """The one that the search has found, and since when it is paid; None if it is gone already."""
        handle = global_user_state.get_handle_from_cluster_name(self.cluster_name)
        if handle is None:
            return None
        place = booked(place_of(handle.launched_resources), self._resources)
        events = cluster_events(self.cluster_name)
        if of_any_search and (since := asked_at(events, LONG_AGO)) > LONG_AGO:
            return place, since
        return place, asked_at(events, self._search.began)

    async def machine(self) -> tuple[Place, datetime] | None:
        """From SkyPilot's own database, whichever process asked for it."""
        return await asyncio.to_thread(self._machine, of_any_search=True)

    async def release(self) -> None:
        """Terminate what is left of the cluster. One try: SkyPilot's own six take four minutes, and note nothing."""
        if self.cluster_name is None or self.pool is not None:
            return
        try:
            await asyncio.to_thread(managed_job_utils.terminate_cluster, self.cluster_name, max_retry=1)
        except RuntimeError as error:  # the cloud's own words are in its cause
            raise RuntimeError(one_line(str(error.__cause__ or error))) from error

    async def cloud_says_gone(self) -> bool:
        """Asks the cloud's API. INIT says nothing: that is also a node that is up and failed one probe."""
        try:
            status, _ = await asyncio.to_thread(
                backend_utils.refresh_cluster_status_handle,
                self.cluster_name,
                force_refresh_statuses=set(status_lib.ClusterStatus),
            )
        except Exception as error:  # SkyPilot raises many kinds; not knowing is not "gone"
            logger.info("notus: the cloud did not say whether the machine is there: %s", error)
            return False
        return status in (None, status_lib.ClusterStatus.STOPPED, status_lib.ClusterStatus.AUTOSTOPPING)

    async def wait(self, seconds: float, reason: str) -> None:
        """As SkyPilot's own back-off: PENDING, with the reason in `sky jobs queue`."""
        text = f"notus: {reason}; asking again in {seconds:.0f} s"
        logger.info(text)
        await state.set_backoff_pending_async(self.job_id, self.task_id, reason=text)
        await asyncio.sleep(seconds)
        await state.set_restarting_async(self.job_id, self.task_id, self._recovering)

    # --- inside SkyPilot --------------------------------------------------------------------------

    async def _await_launch_request(self, request_id: str, stream_task: Any) -> None:
        """Keeps what each zone answered, and which machine came: `_launch` only logs it."""
        search = self._search
        try:
            await super()._await_launch_request(request_id, stream_task)
        except recovery_strategy._LaunchRequestParked:
            raise
        except exceptions.ResourcesUnavailableError as error:
            search.tries += await asyncio.to_thread(tries_of, request_id)
            search.otherwise = "; ".join(str(one) for one in error.failover_history) or str(error)
            raise
        except Exception as error:  # no refusal of a cloud's, but SkyPilot tries again all the same: so it is told
            search.hear(error)
            if was_given(await asyncio.to_thread(cluster_events, self.cluster_name), search.began):
                search.machine = await asyncio.to_thread(self._machine)  # it was lost while it was set up
                search.taken = await self.cloud_says_gone()  # asked before SkyPilot itself terminates what is left
            raise
        search.machine = await asyncio.to_thread(self._machine)
        if count_asked(await asyncio.to_thread(cluster_events, self.cluster_name), search.began) > 1:
            search.tries += (await asyncio.to_thread(tries_of, request_id))[:-1]  # the last one is this machine

    def _tell_where(self) -> None:
        """`sky jobs queue` shows cloud, region and zone of a job."""
        handle = global_user_state.get_handle_from_cluster_name(self.cluster_name)
        if handle is None:
            return
        launched = handle.launched_resources
        names = handle.cached_cluster_info.get_node_names() if handle.cached_cluster_info is not None else None
        state.set_job_infra(
            self.job_id,
            cloud=str(launched.cloud),
            region=launched.region,
            zone=launched.zone,
            current_node_names=names,
        )


def environment_of(told: Told) -> dict[str, str]:
    """What the trainer on the next machine is told."""
    return {
        HOURS_TO_PREEMPTION: f"{told.hours_to_preemption:.3g}",
        PREDECESSOR_GONE: told.dead_writer,
        "NOTUS_SPENT_USD": f"{told.spent_usd:.4f}",
        "NOTUS_PRICE_USD_H": f"{told.price_usd_per_hour:.4f}",
    }


def cluster_events(cluster: str) -> list[dict[str, Any]]:
    """What became of the cluster, newest first; nothing where SkyPilot doesn't say."""
    kinds = [global_user_state.ClusterEventType.STATUS_CHANGE]
    try:
        return list(global_user_state.get_cluster_events_by_name(cluster, kinds, limit=EVENTS))
    except Exception as error:  # of its database, of any kind: a machine that is up isn't given up for that
        logger.warning("notus: SkyPilot does not say since when the machine is paid: %s", error)
        return []


def expand(
    resources: Sequence[sky.Resources], *, trust_prices: bool = False
) -> tuple[dict[Place, sky.Resources], dict[Place, float]]:
    """Return every zone where an entry can be had at a reliable price, and SkyPilot's list prices.

    The first mapping has the cheapest machine type of each zone. The second has the price that SkyPilot's list asks in
    every zone, reliable or not.

    Raises `UserError` where there are zones and none has such a price.
    """
    zoned = [
        one
        for entry in resources
        for launchable in _launchable(entry)
        for one in resources_utils.make_launchables_for_valid_region_zones(launchable, override_optimize_by_zone=True)
    ]
    candidates = {Candidate(place_of(one), one.instance_type): one for one in zoned}
    offers = offers_for(find_catalog(), (candidate.place for candidate in candidates))
    found, dropped = judge(candidates, offers, trust_prices=trust_prices)
    report(dropped, len(found))
    listed: dict[Place, float] = {}
    for place, _ in candidates:
        if is_price(usd := place.price_usd_per_hour):
            listed[place] = min(usd, listed.get(place, usd))
    return found, listed


def everywhere(launchables: Iterable[sky.Resources]) -> list[Place]:
    """Every zone that SkyPilot would try for these without their regions: more than the task has, if it names one."""
    kinds = {(str(one.cloud), one.instance_type, str(one.accelerators), one.use_spot): one for one in launchables}
    anywhere = [one.copy(region=None, zone=None) for one in kinds.values()]
    found = [resources_utils.make_launchables_for_valid_region_zones(one, True) for one in anywhere]
    return list({_last_without_price(place_of(zoned)): None for some in found for zoned in some})


def _last_without_price(place: Place) -> Place:
    """SkyPilot can't compare a zone without a price, so no entry that has it is ever in its order."""
    return place if is_price(place.price_usd_per_hour) else replace(place, price_usd_per_hour=math.inf)


def _launchable(entry: sky.Resources) -> list[sky.Resources]:
    """The entry with a machine type, in its cloud or in every enabled one."""
    clouds = [entry.cloud]
    if entry.cloud is None:
        clouds = sky.check.get_cached_enabled_clouds_or_refresh(CloudCapability.COMPUTE)
    found = [cloud.get_feasible_launchable_resources(entry.copy(cloud=cloud), 1).resources_list for cloud in clouds]
    return [one for some in found for one in some]


def place_of(resources: sky.Resources) -> Place:
    """The market that launchable resources belong to, with SkyPilot's price."""
    ((name, count),) = resources.accelerators.items()
    return Place(
        cloud=str(resources.cloud).lower(),
        region=resources.region,
        zone=resources.zone,
        gpus=f"{name}:{count:g}",
        spot=resources.use_spot,
        price_usd_per_hour=_price_of(resources),
    )


def _price_of(resources: sky.Resources) -> float:
    """By SkyPilot's catalog; not a number where it has none, or two: it raises then, by `assert` or `ValueError`."""
    try:
        return float(resources.get_cost(3600))
    except (AssertionError, ValueError, KeyError) as error:
        logger.debug("notus: SkyPilot has no price for %s: %s", resources, error)
        return math.nan


def tries_of(request_id: str) -> list[Tried]:
    """The tries of a launch request that has ended, from its log."""
    log = io.StringIO()
    with contextlib.suppress(Exception):  # it raises the request's own error again
        sdk.stream_and_get(request_id, output_stream=log)
    return tries_in(log.getvalue())


def job_environment(task: sky.Task) -> dict[str, str]:
    """The job's environment and secrets. Stays in this process: it is how the bucket is opened."""
    plain = {name: str(value) for name, value in task.envs.items()}
    return plain | {name: value.get_secret_value() for name, value in task.secrets.items()}

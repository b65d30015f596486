"""The NOTUS recovery strategy, as a plugin of SkyPilot 0.14.1's API server and jobs controllers.

~/.sky/plugins.yaml names `launcher.sky.plugin.NotusPlugin` (`notus-launch doctor --fix` writes it). SkyPilot then
passes every job with `job_recovery: {strategy: NOTUS}` to `NotusStrategy`. Imports sky: only SkyPilot loads this
module.
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
from launcher.sky.strategy.places import Hourly, MachineOption, booked, is_price, judge, offers_for, report
from launcher.sky.strategy.provision_log import (
    ZoneTry,
    all_refused,
    answers,
    count_requests,
    one_line,
    requested_at,
    tries_in,
    was_provided,
)
from launcher.sky.strategy.resource_entries import Entry, requests
from launcher.sky.strategy.run_controller import LaunchParams, LimitReached, Lost, Refused, RunController, Up
from trainer.checkpointing.save_interval import HOURS_TO_PREEMPTION
from trainer.supervisor.single_node import check_nodes
from trainer.supervisor.supervisor import PREDECESSOR_GONE

logger = logging.getLogger("sky.notus")

STRATEGY = "NOTUS"
PRICES_S = 180.0
"""Timeout for reading all prices: it takes seconds, or minutes if SkyPilot downloads its lists first."""
BUCKET_RETRY_S = 30.0
RELEASE_AFTER = 20
"""Failed tries in a row to reach the bucket after which the old machine is released anyway."""
BUCKET_TRIES = 2880
"""A day without the bucket ends the job: waiting costs nothing, but every wait has a bound."""
PROVISION_S, ASK_S = 2700.0, 60.0
"""Time that SkyPilot may take for one request: to get a machine ready, and for each zone that it tries on the way. A
cloud bills from the first minute, and SkyPilot itself waits for hours."""
EVENTS = 500
"""Cluster events that are read: a launch writes one per zone and eight more."""
WATCHING: dict[int, asyncio.Task[None]] = {}
"""Watchers by job, one each: after an internal error SkyPilot recreates a job's strategy in the same process."""


@dataclass
class Search:
    """The results so far of one search's requests."""

    tries: list[ZoneTry] = field(default_factory=list)
    error_text: str = ""
    """SkyPilot's error, for places that no log mentions."""
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    """Time of the newest request."""
    machine: tuple[Place, datetime] | None = None
    """The resulting machine, and since when it is billed. The job may not run there."""
    taken: bool = False
    """Whether its cloud preempted that machine before the job ran."""

    def begin(self) -> None:
        """Start another request."""
        self.began, self.machine, self.error_text, self.taken = datetime.now(UTC), None, "", False

    def record_error(self, error: BaseException) -> None:
        """Record an error of SkyPilot's own, not a cloud's refusal. The first one of a request is why it failed."""
        self.error_text = self.error_text or f"SkyPilot: {str(error) or type(error).__name__}"


SEARCHING: ContextVar[Search | None] = ContextVar("SEARCHING", default=None)
"""The search of the current job: a controller has many jobs in one process, which share SkyPilot's logger."""


class LogCapture(logging.Handler):
    """Captures errors that SkyPilot's `_launch` only logs, for example if its server doesn't accept the request."""

    def __init__(self, search: Search) -> None:
        super().__init__(logging.INFO)
        self._search = search

    def emit(self, record: logging.LogRecord) -> None:
        """Record the exception being handled: this is called where the line is logged."""
        error = sys.exc_info()[1]
        if error is not None and SEARCHING.get() is self._search:
            self._search.record_error(error)


@contextlib.contextmanager
def capturing_errors(search: Search) -> Iterator[None]:
    """Capture SkyPilot's logged errors during a search."""
    handler, token = LogCapture(search), SEARCHING.set(search)
    recovery_strategy.logger.addHandler(handler)
    try:
        yield
    finally:
        recovery_strategy.logger.removeHandler(handler)
        SEARCHING.reset(token)


class NotusPlugin(plugins.BasePlugin):  # type: ignore[misc]  # sky has no types
    """Registers the strategy. Takes no parameters: each job has its own limits in its environment."""

    def install(self, extension_context: plugins.ExtensionContext) -> None:
        """Called once in the API server, in its executors and in each jobs controller."""
        if STRATEGY.lower() not in registry.JOBS_RECOVERY_STRATEGY_REGISTRY:
            registry.JOBS_RECOVERY_STRATEGY_REGISTRY.type_register(name=STRATEGY)(NotusStrategy)


class NotusStrategy(recovery_strategy.StrategyExecutor):  # type: ignore[misc]
    """Consults the policy on where to run: at the launch, after a preemption, and every minute while the job runs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._task: sky.Task = self.dag.tasks[0]
        self._wanted: list[sky.Resources] = list(self._task.resources)
        self._resources: dict[Place, sky.Resources] = {}
        self._prices = Hourly(self._read_prices, SystemClock())
        self._listed: dict[Place, float] = {}
        self._recovering = False
        self._search = Search()
        self._opened: RunController | None = None

    # --- called by SkyPilot -----------------------------------------------------------------------

    async def launch(self) -> float:
        """Find the first machine."""
        return await self._within_limits(lambda controller: controller.launch())

    async def recover(self) -> float:
        """Find the next machine, unless the old one turns out to be alive."""
        self._recovering = True
        return await self._within_limits(lambda controller: controller.recover())

    def should_restart_on_failure(self, exit_codes: list[int] | None = None) -> bool:
        """Should the job get another machine? SkyPilot's default ends it for every code that the task doesn't list."""
        return not ends_the_run(exit_codes, lambda: read_events(self._store()))

    async def monitor_task(self, **_: Any) -> bool | None:
        """Watch the running job alongside SkyPilot's own loop, which is unchanged."""
        if (old := WATCHING.get(self.job_id)) is not None:  # left from before SkyPilot's emergency recovery
            old.cancel()
        task = WATCHING[self.job_id] = asyncio.create_task(self._watch())
        task.add_done_callback(self._forget)
        return None

    def _forget(self, task: asyncio.Task[None]) -> None:
        if WATCHING.get(self.job_id) is task:
            del WATCHING[self.job_id]

    async def _within_limits(self, find: Callable[[RunController], Awaitable[float]]) -> float:
        """Translate errors that end the run to SkyPilot's, and wait while the bucket doesn't answer."""
        failures = 0
        while True:
            try:
                return await find(await asyncio.to_thread(self._controller))
            except LimitReached as error:  # SkyPilot ends the job: FAILED_NO_RESOURCE, with this text
                raise exceptions.ManagedJobReachedMaxRetriesError(f"{error.message}. {error.hint}") from error
            except NotusError as error:
                if not self._recovering and not isinstance(error, StoreError):
                    raise exceptions.ProvisionPrechecksError([error]) from error  # FAILED_PRECHECKS
                # A run of hours must not end because the bucket, or access to it, is unavailable for a while.
                failures += 1
                trouble = error.message
                logger.warning("notus: %s; trying again in %.0f s", trouble, BUCKET_RETRY_S)
            if failures % RELEASE_AFTER == 0 and self._recovering:
                await self._release_without_diary()  # not every cloud releases an idle machine by itself
            if failures >= BUCKET_TRIES:
                raise exceptions.ManagedJobReachedMaxRetriesError(f"tried for a day: {trouble}")
            await asyncio.sleep(BUCKET_RETRY_S)

    async def _release_without_diary(self) -> None:
        """Release the machine while the bucket is unavailable; the controller records it as soon as it can."""
        if self._opened is not None:
            await self._opened.close("unknown")
            return
        try:
            await self.release()
        except Exception:  # retried when the bucket is back
            logger.exception("notus: the machine could not be released")

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._limits().settings.check_h * 3600)
            try:
                status = await asyncio.to_thread(state.get_status, self.job_id)
                controller = await asyncio.to_thread(self._controller)
                if status is None or status.is_terminal():
                    job_status = status.value.lower() if status else ""
                    if await controller.close("closed" if status else "unknown", job_status):
                        return
                    continue  # still billed: retried at the next check
                await controller.look()
            except NotusError as error:  # the bucket doesn't answer: the next check may succeed
                logger.warning("notus: %s", error.message)
            except Exception:  # the job must not go unwatched because of one failed check
                logger.exception("notus: a check of the job failed")

    def _controller(self) -> RunController:
        """The run's controller, with its bucket open; raises `UserError` for a task that isn't ours or isn't valid."""
        if self._opened is None:
            environment = job_environment(self._task)
            store = self._store()
            check_nodes(self._task.num_nodes)
            launch = environment.get("NOTUS_LAUNCH", "")
            number = int(launch) if launch.isdigit() else 0
            limits = limits_of(environment, datetime.now(UTC))
            job = f"{common_utils.get_user_hash()}/{self.job_id}"
            self._opened = RunController(store, limits, self, SystemClock(), number, job)
        return self._opened

    def _store(self) -> Store:
        """The run's store; raises `UserError` for a task that isn't one of ours."""
        environment = job_environment(self._task)
        for name in ("NOTUS_BUCKET", "NOTUS_RUN", "NOTUS_RECIPE"):
            if not environment.get(name):
                raise UserError(f"the task has no {name}", "the NOTUS strategy is for tasks of notus-launch")
        return open_run(environment["NOTUS_BUCKET"], environment["NOTUS_RUN"], environment)

    def _limits(self) -> Limits:
        return limits_of(job_environment(self._task))

    # --- CloudApi ---------------------------------------------------------------------------------

    async def places(self) -> list[Place]:
        """Every zone of the task's resources whose price can be trusted; prices are reread every hour."""
        try:
            priced = await asyncio.wait_for(asyncio.to_thread(self._prices.value), PRICES_S)
        except TimeoutError:  # SkyPilot downloads its lists without a limit
            if self._prices.last is None:
                raise UserError(
                    f"SkyPilot returned no prices within {PRICES_S:.0f} s", "is its catalog reachable?"
                ) from None
            priced = self._prices.last
        # Keep the places of earlier hours: a launch in progress may still try them.
        self._resources = {place: one for place, one in self._resources.items() if place not in priced} | priced
        return list(priced)

    def _read_prices(self) -> dict[Place, sky.Resources]:
        catalog.invalidate_cache()
        priced, self._listed = expand(self._wanted, trust_prices=self._limits().trust_prices)
        return priced

    def listed_usd(self, place: Place) -> float | None:
        """The list price at the last reading."""
        return self._listed.get(place)

    async def launch_in(self, places: Sequence[Place], params: LaunchParams) -> Up | Lost | Refused:
        """Request a machine from SkyPilot at exactly these places, in this order, each request bounded in time."""
        self._task.update_envs(environment_of(params))
        whole = self._task.resources
        search = self._search = Search()
        tried, cut, prechecks = False, False, None
        until_s = time.monotonic() + params.most_s
        everything = await asyncio.to_thread(all_zones, self._resources.values())
        try:
            for entries in requests(places, everything):
                self._task.set_resources([self._entry(entry) for entry in entries])
                search.begin()
                limit_s = min(PROVISION_S + ASK_S * len(places), until_s - time.monotonic())
                if cut := limit_s <= 0:
                    break
                try:
                    with capturing_errors(search):
                        submitted_at = await self._launch_within(limit_s)
                    await asyncio.to_thread(self._report_location)
                    if (machine := search.machine or await asyncio.to_thread(self._machine)) is None:
                        # It is gone, and its place is unknown. It was billed anyway, so book the dearest place.
                        dearest = max(places, key=lambda place: place.price_usd_per_hour)
                        message = "it was gone before SkyPilot could report its location"
                        return Lost(dearest, search.began, answers(search.tries, places), message, taken=True)
                    return Up(*machine, submitted_at, answers(search.tries, places))
                except exceptions.ManagedJobReachedMaxRetriesError:
                    if search.machine is not None:
                        message = one_line(search.error_text)
                        return Lost(*search.machine, answers(search.tries, places), message, taken=search.taken)
                    tried = True
                except TimeoutError:
                    search.error_text = f"SkyPilot had no machine ready within {limit_s / 60:.0f} min: given up"
                    if (machine := search.machine or await asyncio.to_thread(self._machine)) is not None:
                        return Lost(*machine, answers(search.tries, places), search.error_text)
                    await self._release_without_diary()  # anything left by the cancelled request is not recorded
                    tried = True
                except exceptions.ProvisionPrechecksError as error:  # for these entries; others may be valid
                    search.error_text = "; ".join(str(reason) for reason in error.reasons)
                    prechecks = error
        finally:
            self._task.set_resources(whole)
        if prechecks is not None and not tried and not self._recovering:
            raise prechecks
        replies = answers(search.tries, places)
        return Refused(replies if cut and replies else all_refused(replies, places, search.error_text))

    async def _launch_within(self, limit_s: float) -> float:
        """SkyPilot's own launch. Raises `TimeoutError`, in which case the request is cancelled."""
        submitted_at: float = await asyncio.wait_for(self._launch(max_retry=1, recovery=self._recovering), limit_s)
        return submitted_at

    def _entry(self, entry: Entry) -> sky.Resources:
        return self._resources[entry.example].copy(region=entry.region, zone=entry.zone)

    def _machine(self, *, of_any_search: bool = False) -> tuple[Place, datetime] | None:
        """The machine that the search has found, and since when it is billed; None if it is already gone."""
        handle = global_user_state.get_handle_from_cluster_name(self.cluster_name)
        if handle is None:
            return None
        place = booked(place_of(handle.launched_resources), self._resources)
        events = cluster_events(self.cluster_name)
        if of_any_search and (since := requested_at(events, LONG_AGO)) > LONG_AGO:
            return place, since
        return place, requested_at(events, self._search.began)

    async def machine(self) -> tuple[Place, datetime] | None:
        """The job's machine from SkyPilot's database, whichever process requested it."""
        return await asyncio.to_thread(self._machine, of_any_search=True)

    async def release(self) -> None:
        """Terminate what is left of the cluster. One try: SkyPilot's own six take four minutes and record nothing."""
        if self.cluster_name is None or self.pool is not None:
            return
        try:
            await asyncio.to_thread(managed_job_utils.terminate_cluster, self.cluster_name, max_retry=1)
        except RuntimeError as error:  # the cloud's message is in its cause
            raise RuntimeError(one_line(str(error.__cause__ or error))) from error

    async def cloud_says_gone(self) -> bool:
        """Query the cloud's API. INIT is not conclusive: a node that is up and failed one probe has it too."""
        try:
            status, _ = await asyncio.to_thread(
                backend_utils.refresh_cluster_status_handle,
                self.cluster_name,
                force_refresh_statuses=set(status_lib.ClusterStatus),
            )
        except Exception as error:  # SkyPilot raises many kinds; "unknown" is not "gone"
            logger.info("notus: the cloud did not report whether the machine exists: %s", error)
            return False
        return status in (None, status_lib.ClusterStatus.STOPPED, status_lib.ClusterStatus.AUTOSTOPPING)

    async def wait(self, seconds: float, reason: str) -> None:
        """Wait like SkyPilot's own back-off: PENDING, with the reason in `sky jobs queue`."""
        text = f"notus: {reason}; trying again in {seconds:.0f} s"
        logger.info(text)
        await state.set_backoff_pending_async(self.job_id, self.task_id, reason=text)
        await asyncio.sleep(seconds)
        await state.set_restarting_async(self.job_id, self.task_id, self._recovering)

    # --- inside SkyPilot --------------------------------------------------------------------------

    async def _await_launch_request(self, request_id: str, stream_task: Any) -> None:
        """Record each zone's answer and the resulting machine, which `_launch` only logs."""
        search = self._search
        try:
            await super()._await_launch_request(request_id, stream_task)
        except recovery_strategy._LaunchRequestParked:
            raise
        except exceptions.ResourcesUnavailableError as error:
            search.tries += await asyncio.to_thread(tries_of, request_id)
            search.error_text = "; ".join(str(one) for one in error.failover_history) or str(error)
            raise
        except Exception as error:  # not a cloud's refusal, but SkyPilot retries anyway, so record it
            search.record_error(error)
            if was_provided(await asyncio.to_thread(cluster_events, self.cluster_name), search.began):
                search.machine = await asyncio.to_thread(self._machine)  # it was lost while it was set up
                search.taken = await self.cloud_says_gone()  # before SkyPilot itself terminates what is left
            raise
        search.machine = await asyncio.to_thread(self._machine)
        if count_requests(await asyncio.to_thread(cluster_events, self.cluster_name), search.began) > 1:
            search.tries += (await asyncio.to_thread(tries_of, request_id))[:-1]  # the last one is this machine

    def _report_location(self) -> None:
        """Report cloud, region and zone for `sky jobs queue`."""
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


def environment_of(params: LaunchParams) -> dict[str, str]:
    """Environment variables for the trainer on the next machine."""
    return {
        HOURS_TO_PREEMPTION: f"{params.hours_to_preemption:.3g}",
        PREDECESSOR_GONE: params.dead_writer,
        "NOTUS_SPENT_USD": f"{params.spent_usd:.4f}",
        "NOTUS_PRICE_USD_H": f"{params.price_usd_per_hour:.4f}",
    }


def cluster_events(cluster: str) -> list[dict[str, Any]]:
    """Status changes of the cluster, newest first; empty if SkyPilot doesn't return them."""
    kinds = [global_user_state.ClusterEventType.STATUS_CHANGE]
    try:
        return list(global_user_state.get_cluster_events_by_name(cluster, kinds, limit=EVENTS))
    except Exception as error:  # any database error: a machine that is up must not be given up for that
        logger.warning("notus: SkyPilot does not report since when the machine is billed: %s", error)
        return []


def expand(
    resources: Sequence[sky.Resources], *, trust_prices: bool = False
) -> tuple[dict[Place, sky.Resources], dict[Place, float]]:
    """Return every zone where an entry is offered at a reliable price, and SkyPilot's list prices.

    The first mapping has the cheapest machine type of each zone. The second has SkyPilot's list price in every zone,
    reliable or not.

    Raises `UserError` if there are zones but none has such a price.
    """
    zoned = [
        one
        for entry in resources
        for launchable in _launchable(entry)
        for one in resources_utils.make_launchables_for_valid_region_zones(launchable, override_optimize_by_zone=True)
    ]
    candidates = {MachineOption(place_of(one), one.instance_type): one for one in zoned}
    offers = offers_for(find_catalog(), (candidate.place for candidate in candidates))
    found, dropped = judge(candidates, offers, trust_prices=trust_prices)
    report(dropped, len(found))
    listed: dict[Place, float] = {}
    for place, _ in candidates:
        if is_price(usd := place.price_usd_per_hour):
            listed[place] = min(usd, listed.get(place, usd))
    return found, listed


def all_zones(launchables: Iterable[sky.Resources]) -> list[Place]:
    """Every zone that SkyPilot would try without the task's regions and zones."""
    kinds = {(str(one.cloud), one.instance_type, str(one.accelerators), one.use_spot): one for one in launchables}
    anywhere = [one.copy(region=None, zone=None) for one in kinds.values()]
    groups = [resources_utils.make_launchables_for_valid_region_zones(one, True) for one in anywhere]
    return list({_unpriced_last(place_of(zoned)): None for group in groups for zoned in group})


def _unpriced_last(place: Place) -> Place:
    """Give a zone without a price an infinite one: SkyPilot can't compare it, so no entry with it is in its order."""
    return place if is_price(place.price_usd_per_hour) else replace(place, price_usd_per_hour=math.inf)


def _launchable(entry: sky.Resources) -> list[sky.Resources]:
    """The entry with a machine type, in its cloud or in every enabled one."""
    clouds = [entry.cloud]
    if entry.cloud is None:
        clouds = sky.check.get_cached_enabled_clouds_or_refresh(CloudCapability.COMPUTE)
    groups = [cloud.get_feasible_launchable_resources(entry.copy(cloud=cloud), 1).resources_list for cloud in clouds]
    return [one for group in groups for one in group]


def place_of(resources: sky.Resources) -> Place:
    """The place of launchable resources, with SkyPilot's price."""
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
    """Price in SkyPilot's catalog; NaN if it has none, or two, for which it raises `AssertionError` or `ValueError`."""
    try:
        return float(resources.get_cost(3600))
    except (AssertionError, ValueError, KeyError) as error:
        logger.debug("notus: SkyPilot has no price for %s: %s", resources, error)
        return math.nan


def tries_of(request_id: str) -> list[ZoneTry]:
    """The zones tried by a finished launch request, from its log."""
    log = io.StringIO()
    with contextlib.suppress(Exception):  # it raises the request's own error again
        sdk.stream_and_get(request_id, output_stream=log)
    return tries_in(log.getvalue())


def job_environment(task: sky.Task) -> dict[str, str]:
    """The job's environment and secrets, which stay in this process: the bucket is opened with them."""
    plain = {name: str(value) for name, value in task.envs.items()}
    return plain | {name: value.get_secret_value() for name, value in task.secrets.items()}

"""The story of a launch in a cloud: check everything that can be checked for nothing, submit, and follow the run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import typer

from checkpoints.clock import SystemClock
from checkpoints.environment import user_home
from checkpoints.event_kinds import Planned, Stopped
from checkpoints.events import Diary, read_events
from checkpoints.names import check_run_name
from checkpoints.requests import withdraw
from checkpoints.run import open_run, read_heartbeat, register_run
from checkpoints.store import Store, probe
from launcher.dry_run import limits_of_plan, planner_for, price_warnings, rungs_of, strategy_here
from launcher.errors import RequestError
from launcher.follow import follow
from launcher.launch import new_name, read_receipt, say, show_receipt
from launcher.options import home, writable
from launcher.plan import Plan, Rung, require_plan
from launcher.policy.history import began_since
from launcher.policy.limits import Limits
from launcher.report.status import ABANDONED_S, OVER, RunStatus, read_status
from launcher.request import LaunchRequest, check_cloud_bucket
from launcher.sky import client
from launcher.sky.client import Job
from launcher.sky.controller import ASLEEP, KEEP_AWAKE, find_controller, sleeps_with_this_machine
from launcher.sky.render import NOTUS, task_config
from launcher.sky.secrets import collect
from launcher.sky.sent import gather
from trainer.main import new_record
from trainer.pairs import check_local
from trainer.recipe import Recipe, load_recipe

MISSING_WITHOUT_PLUGIN = (
    "without the NOTUS strategy SkyPilot chooses where to go on: no way back to spot, no deadline or budget kept while "
    "it runs, and the zone that was just preempted may be tried first"
)


class CloudOptions(NamedTuple):
    """What only a launch in a cloud knows."""

    detach: bool
    yes: bool


def launch_cloud(request: LaunchRequest, options: CloudOptions, output: str) -> int:
    """Launch, or go on with the run of this name; returns the exit code.

    The same name again: a run that is done shows its receipt, one that is under way is followed, one that has ended is
    started again from its last checkpoint.
    """
    recipe = load_recipe(request.recipe)
    check_local(recipe.dataset)
    result = planner_for(request, recipe).compare()
    plan = require_plan(result, request)
    for warning in price_warnings(request):
        say(f"warning: {warning}")
    name = check_run_name(request.name or new_name(recipe))
    bucket = check_cloud_bucket(request.bucket)
    if strategy_here() != NOTUS:
        _say_what_is_missing(request)
    _check_controller()
    writable(home() / "sent")
    rungs = rungs_of(request, plan, result)
    secrets = collect(recipe, bucket, rungs, os.environ)
    store = open_run(bucket, name)
    probe(store)
    register_run(store, new_record(name, recipe))
    status = read_status(store, name, datetime.now(UTC))
    if status.state == "finished":
        say(f"run {name} is done already")
        show_receipt(read_receipt(store, name, recipe), output)
        return 0
    job = client.find_job(name)
    if job is not None and not job.over:
        say(f"run {name} is under way as SkyPilot's job {job.id}")
        return _after_submission(store, name, job.id, recipe, options, output)
    _check_that_nobody_else_runs_it(store, status, job, datetime.now(UTC))
    _confirm(name, plan, result.reason, options)
    limits = limits_of_plan(request, plan, datetime.now(UTC))
    job_id = _submit(request.model_copy(update={"name": name}), recipe, rungs, limits, store, secrets)
    return _after_submission(store, name, job_id, recipe, options, output)


def _check_that_nobody_else_runs_it(store: Store, status: RunStatus, job: Job | None, now: datetime) -> None:
    """A run that lives without a job here was launched elsewhere, and a second job would be paid too.

    One that has given no sign for long is taken for dead, as by `status`. Raises `RequestError`.
    """
    events = read_events(store)
    if job is not None and (job.ended_at is None or not began_since(events, job.ended_at)):
        return  # its last job was ours, and it is over
    if not status.in_cloud or status.state in (*OVER, "failed"):
        return
    heartbeat = read_heartbeat(store)
    last_sign = max([event.time for event in events] + ([heartbeat.time] if heartbeat else []))
    if (now - last_sign).total_seconds() < ABANDONED_S:
        raise RequestError(
            f"run {status.run} is {status.state}, and SkyPilot here has no such job: it was launched somewhere else",
            f"watch it: notus-launch status {status.run}; to launch it from here, end it first: notus-launch stop "
            f"{status.run}; a run without a sign of life for {ABANDONED_S / 60:.0f} min can be launched again",
        )


def _submit(
    request: LaunchRequest,
    recipe: Recipe,
    rungs: Sequence[Rung],
    limits: Limits,
    store: Store,
    secrets: Mapping[str, str],
) -> int:
    """Send the code and the task; returns SkyPilot's number of the job."""
    name = str(request.name)
    withdraw(store)  # a stop of yesterday is not meant for this launch
    sent = gather(request.recipe, home() / "sent" / name)
    strategy = strategy_here()
    config = task_config(
        recipe,
        rungs,
        run=name,
        bucket=request.bucket,
        recipe_argument=sent.recipe,
        strategy=strategy,
        limits=limits,
        workdir=str(sent.folder),
        release=sent.release,
        environment=os.environ,
    )
    Diary(store, 0).write(Planned(strategy=strategy, order=tuple(rung.model_dump() for rung in rungs)))
    try:
        job_id = client.submit(config, secrets)
    except BaseException:  # Ctrl-C too: else the run would seem to be under way somewhere
        Diary(store, 0).try_write(Stopped(step=0, reason="it could not be submitted"))
        raise
    say(f"run {name}: SkyPilot's job {job_id}, dashboard {client.dashboard(job_id)}")
    return job_id


def _after_submission(store: Store, name: str, job_id: int, recipe: Recipe, options: CloudOptions, output: str) -> int:
    if options.detach:
        if output == "json":
            sys.stdout.write(json.dumps({"run": name, "job": job_id, "bucket": store.url}) + "\n")
        say(f"watch it: notus-launch status {name}; end it: notus-launch stop {name}")
        return 0
    end = follow(store, name, lambda: client.find_job(name, job_id), SystemClock())
    if end.receipt:
        show_receipt(read_receipt(store, name, recipe), output)
        say(f"the model is in {store.url}/final")
    return end.code


def _say_what_is_missing(request: LaunchRequest) -> None:
    if request.deadline_h is not None or request.budget_usd is not None:
        raise RequestError(
            "--deadline and --budget need the NOTUS strategy, which is not in SkyPilot's plugin configuration",
            "run: notus-launch doctor --fix, then: sky api stop (running jobs survive it)",
        )
    say(MISSING_WITHOUT_PLUGIN)
    say("to have it: notus-launch doctor --fix, then: sky api stop")


def _check_controller() -> None:
    """A VM for the controller costs, and without our plugin on it a job of ours fails. Raises `RequestError`."""
    found = find_controller(user_home(), os.environ)
    if sleeps_with_this_machine(user_home(), os.environ):
        say(f"{ASLEEP}; {KEEP_AWAKE}")
    if found.state != "missing":
        return
    if strategy_here() == NOTUS:
        raise RequestError(found.detail, f"{found.fix}, then: sky api stop (running jobs survive it)")
    say(f"{found.detail}; to save it: {found.fix}, then: sky api stop")


def _confirm(name: str, plan: Plan, reason: str, options: CloudOptions) -> None:
    say(
        f"run {name}: {plan.name}, about ${plan.expected_cost_usd:,.2f} (95 %: ${plan.cost_p95_usd:,.2f}), "
        f"done in about {plan.expected_finish_h:.1f} h; {reason}"
    )
    if options.yes:
        return
    if not sys.stdin.isatty():
        raise RequestError("nobody is there to say yes before money is spent", "add --yes")
    typer.confirm("launch it?", abort=True, err=True)

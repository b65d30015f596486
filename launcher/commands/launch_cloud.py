"""Launch in a cloud: check everything that can be checked free of charge, submit the job, and follow the run."""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import typer

from checkpoints.commit.head import read_head
from checkpoints.errors import NotusError
from checkpoints.run_log.event_kinds import Planned, Stopped
from checkpoints.run_log.event_log import Diary, read_events
from checkpoints.run_log.launches import newest_launch, take_launch_number, this_host
from checkpoints.run_log.run_record import open_run, read_controller_beat, read_heartbeat, register_run
from checkpoints.run_log.stop_request import withdraw
from checkpoints.storage.base import Store
from checkpoints.storage.probe import probe
from checkpoints.util.clock import Clock, SystemClock, looks
from checkpoints.util.environment import user_home
from launcher.check.check import Where, check_before_launch
from launcher.cli_options import writable
from launcher.commands.dry_run import candidates_of, limits_of_plan, planner_for, price_warnings, strategy_here
from launcher.commands.follow_run import follow
from launcher.commands.launch_local import new_name
from launcher.commands.receipts import keep_page, print_report, read_report
from launcher.console import echo
from launcher.errors import RequestError, SkyFailed
from launcher.paths import home
from launcher.planning.plan import Candidate, DryRun, Plan, require_plan
from launcher.planning.work_left import run_progress
from launcher.policy.limits import Limits
from launcher.policy.run_history import machine_now, machines
from launcher.report.status import ABANDONED_S, OVER, RunStatus, read_status
from launcher.request import LaunchRequest, check_cloud_bucket, check_cloud_run_name, cloud_run_name
from launcher.run_identity import RunIdentity, identity_here
from launcher.sky import client
from launcher.sky.client import Job
from launcher.sky.job_secrets import collect_secrets
from launcher.sky.render import NOTUS, task_config
from launcher.sky.setup import credentials
from launcher.sky.setup.controller import ASLEEP, KEEP_AWAKE, find_controller, sleeps_with_this_machine
from launcher.sky.submission import late_job, ran_last, settle
from launcher.sky.workdir import prepare_workdir
from trainer.config.recipe import Recipe, load_recipe
from trainer.data.preference_pairs import check_local
from trainer.main import new_record
from trainer.model.base_files import check_local_base

STALE_S = 300.0
"""A plan older than this when the user confirms it is remade before the launch."""
BEGINNINGS = frozenset({"planned", "decided", "machine_up", "attempt_started"})
LOOK_EVERY_S, LIFE_S = 3.0, 90.0
"""A live trainer writes a heartbeat every 5 s, and a controller with a machine writes its own every minute."""
MISSING_WITHOUT_PLUGIN = (
    "without the NOTUS strategy SkyPilot chooses where to resume: it never returns to spot, ignores deadline and "
    "budget while it runs, and may first retry the zone that was just preempted"
)


class CloudOptions(NamedTuple):
    """Options of cloud launches only."""

    detach: bool
    yes: bool


def launch_cloud(request: LaunchRequest, options: CloudOptions, output: str) -> int:
    """Launch a run, or resume the one of this name; returns the exit code.

    If the name exists: a finished run shows its receipt, an active one is followed, and one that has ended is planned
    and started again from its last checkpoint, counting what it has spent.
    """
    recipe = load_recipe(request.recipe)
    check_local(recipe.dataset)
    check_local_base(recipe)
    name = check_cloud_run_name(request.name or cloud_run_name(new_name(recipe)))
    bucket = check_cloud_bucket(request.bucket)
    request = request.model_copy(update={"name": name})
    if strategy_here() != NOTUS:
        _check_plugin(request)
    _check_controller()
    writable(home() / "sent")
    store, run = open_run(bucket, name), identity_here(bucket, name)
    probe(store)
    is_new = not read_events(store)
    if not is_new and (code := _handle_existing_run(store, run, recipe, options, output)) is not None:
        return code
    check_before_launch(recipe, Where(gpus=request.gpus[0] if request.gpus else None, local=False))
    for warning in price_warnings(request):
        echo(f"warning: {warning}")
    choice = _plan(request, recipe, store)
    secrets = collect_secrets(recipe, bucket, choice.candidates, os.environ)
    if is_new and (code := _handle_existing_run(store, run, recipe, options, output)) is not None:
        return code
    if text := credentials.copied_files_note(user_home(), os.environ):
        echo(text)
    choice = _confirmed_choice(choice, request, recipe, store, options)
    register_run(store, new_record(name, recipe))
    job_id = _submit(choice.request, recipe, choice.candidates, choice.limits(datetime.now(UTC)), store, secrets)
    return _after_submission(store, run, job_id, recipe, options, output)


def _handle_existing_run(
    store: Store, run: RunIdentity, recipe: Recipe, options: CloudOptions, output: str
) -> int | None:
    """Show a finished run or follow an active one; returns its exit code, or None if a launch is needed."""
    name = run.run
    status = None
    if read_events(store):
        register_run(store, new_record(name, recipe))  # a resumed run must have the same recipe
        status = read_status(store, name, datetime.now(UTC))
        if status.state == "finished":
            echo(f"run {name} is already finished")
            print_report(read_report(store, name, recipe), output)
            return 0
    job = client.own_job(run)
    ended_here = job is not None and job.over and ran_last(store, job, read_events(store))
    if status is not None and (job is None or job.over) and not ended_here:
        if _was_interrupted_here(store):
            echo(f"the last launch of run {name} from here was interrupted: checking whether SkyPilot has its job")
            job = late_job(run, SystemClock())
        else:
            _check_not_running_elsewhere(store, status, datetime.now(UTC))
    if job is not None and not job.over:
        echo(f"run {name} is running as SkyPilot's job {job.id}")
        return _after_submission(store, run, job.id, recipe, options, output)
    return None


class _Choice(NamedTuple):
    """The plan to launch."""

    request: LaunchRequest
    """The request as of `planned_at`."""
    plan: Plan
    result: DryRun
    candidates: tuple[Candidate, ...]
    planned_at: datetime

    def limits(self, launched: datetime) -> Limits:
        """The limits of a launch at this time."""
        return limits_of_plan(self.request, self.plan, launched)

    @property
    def terms(self) -> tuple[object, ...]:
        """What the user confirms."""
        return self.plan.name, round(self.plan.expected_cost_usd, 1), self.candidates


def _plan(request: LaunchRequest, recipe: Recipe, store: Store) -> _Choice:
    """Plan from the run's current state. Raises `NothingFits`, and `RequestError` if the deadline has passed."""
    now = datetime.now(UTC)
    dated = request.at(now)
    result = planner_for(dated, recipe, run_progress(store, now)).compare()
    plan = require_plan(result, dated)
    return _Choice(dated, plan, result, candidates_of(dated, plan, result), now)


def _confirmed_choice(
    choice: _Choice, request: LaunchRequest, recipe: Recipe, store: Store, options: CloudOptions
) -> _Choice:
    """Ask for confirmation; if the answer took long, check that it still applies to the same plan.

    Prices may change and a deadline comes nearer meanwhile. Raises `NothingFits` if no plan meets the limits any more.
    """
    while True:
        _confirm(choice, options)
        if (datetime.now(UTC) - choice.planned_at).total_seconds() < STALE_S:
            return choice
        again = _plan(request, recipe, store)
        if again.terms == choice.terms:
            return again
        echo("the plan has changed in the meantime:")
        choice = again


def _check_not_running_elsewhere(store: Store, status: RunStatus, now: datetime) -> None:
    """Refuse a run that is alive elsewhere, because a second job would be paid for too. Raises `RequestError`.

    Whether it is alive is judged by its activity while we watch, never by times that another machine has written. A job
    that is missed anyway ends as soon as it sees that there is a newer launch.
    """
    if not status.in_cloud or status.state in (*OVER, "failed"):
        return
    if not _may_be_searching(store, now):
        echo(f"run {status.run} was launched elsewhere: checking for up to {LIFE_S:.0f} s whether it is alive")
        if not _shows_life(store, SystemClock()):
            return
    raise RequestError(
        f"run {status.run} is {status.state}, and SkyPilot here has no such job: it was launched elsewhere",
        f"watch it: notus-launch status {status.run}; to launch it from here, end it first: notus-launch stop "
        f"{status.run}; once it is inactive it can be launched again, at the latest in {ABANDONED_S / 60:.0f} min",
    )


def _may_be_searching(store: Store, now: datetime) -> bool:
    """Is the run without a machine and was its last event recent? A search may write nothing for `ABANDONED_S`.

    This is the only place that uses another machine's time. It can only make the user wait, and no longer than that. A
    time in the future is ignored.
    """
    events = read_events(store)
    if machine_now(machines(events)) is not None or not events:
        return False
    age_s = (now - max(event.time for event in events)).total_seconds()
    return 0 <= age_s < ABANDONED_S


def _shows_life(store: Store, clock: Clock) -> bool:
    """Does anything in the run change?"""
    before = _signs(store)
    return any(_signs(store) != before for _ in looks(clock, LOOK_EVERY_S, LIFE_S))


def _signs(store: Store) -> tuple[object, ...]:
    head = read_head(store)
    news = frozenset(entry.key for entry in store.list("events"))
    return read_heartbeat(store), read_controller_beat(store), head.nonce if head else "", news


def _was_interrupted_here(store: Store) -> bool:
    """Was the newest launch made on this machine, without any result? Then its job can only be here."""
    newest = newest_launch(store)
    if newest is None or newest.host != this_host() or not newest.submission:
        return False
    events = read_events(store)
    if any(event.launch == newest.number and event.kind != "planned" for event in events):
        return False  # by launch number, independent of the controller's clock
    turns = [event for event in events if event.kind in BEGINNINGS]
    return not turns or (turns[-1].kind, turns[-1].launch) == ("planned", newest.number)


def _submit(
    request: LaunchRequest,
    recipe: Recipe,
    candidates: Sequence[Candidate],
    limits: Limits,
    store: Store,
    secrets: Mapping[str, str],
) -> int:
    """Send the code and the task; returns SkyPilot's job number.

    The launch is recorded first, with an id that is part of the job, so that an interrupted launch can be found again
    by this process or by the next launch of the same name.
    """
    name = str(request.name)
    withdraw(store)  # an old stop request is not meant for this launch
    sent = prepare_workdir(request.recipe, home() / "sent" / name)
    strategy = strategy_here()
    submission = uuid.uuid4().hex
    launch = take_launch_number(store, submission)
    config = task_config(
        recipe,
        candidates,
        run=name,
        bucket=request.bucket,
        recipe_argument=sent.recipe,
        strategy=strategy,
        limits=limits,
        workdir=str(sent.folder),
        release=sent.release,
        environment=os.environ,
        submission=submission,
        launch=launch,
    )
    diary = Diary(store, 0, launch=launch)
    order = tuple(candidate.model_dump() for candidate in candidates)
    diary.write(Planned(strategy=strategy, order=order, submission=submission))
    try:
        job_id = client.submit(config, secrets)
    except BaseException as error:  # Ctrl-C too: else the run would seem to be active somewhere
        job_id = _after_interruption(error, identity_here(str(request.bucket), name), submission, diary)
    echo(f"run {name}: SkyPilot's job {job_id}, dashboard {client.dashboard(job_id)}")
    return job_id


def _after_interruption(error: BaseException, run: RunIdentity, submission: str, diary: Diary) -> int:
    """The job's number if SkyPilot has it and the user still wants it; else raises `error`, or a more specific one.

    The diary records "stopped" only if it is certain that no job is left.
    """
    if not isinstance(error, Exception):
        echo("interrupted: checking whether SkyPilot has accepted the job (Ctrl-C leaves at once)")
    settled = settle(run, submission, error, SystemClock())
    if settled.state == "refused":
        diary.try_write(Stopped(step=0, reason="it could not be submitted"))
        raise error
    if settled.job is not None and isinstance(error, Exception):
        echo(f"SkyPilot has accepted the job despite the error ({error})")
        return settled.job.id
    if settled.job is not None and _cancelled(settled.job):
        echo(f"cancelled SkyPilot's job {settled.job.id}: nothing is running")
        diary.try_write(Stopped(step=0, reason="by the user, at its launch"))
        raise error
    which = f"its job {settled.job.id} could not be cancelled" if settled.job else "it is unknown if it has the job"
    raise SkyFailed(
        f"run {run.run} was submitted to SkyPilot, and {which}",
        "a job may be running and costing money. Once `sky api info` answers, launch the same --name again to follow "
        f"it, or end it: notus-launch stop {run.run}",
    ) from error


def _cancelled(job: Job) -> bool:
    try:
        if not job.over:
            client.cancel(job.id)
    except NotusError as error:
        echo(error.message)
        return False
    return True


def _after_submission(
    store: Store, run: RunIdentity, job_id: int, recipe: Recipe, options: CloudOptions, output: str
) -> int:
    name = run.run
    if options.detach:
        if output == "json":
            sys.stdout.write(json.dumps({"run": name, "job": job_id, "bucket": store.url}) + "\n")
        echo(f"watch it: notus-launch status {name}; end it: notus-launch stop {name}")
        return 0
    end = follow(store, name, lambda: client.own_job(run, job_id), SystemClock())
    if end.receipt:
        report = read_report(store, name, recipe)
        print_report(report, output)
        keep_page(store, report)
        echo(f"the model is in {store.url}/final")
    return end.code


def _check_plugin(request: LaunchRequest) -> None:
    if request.deadline_h is not None or request.budget_usd is not None:
        raise RequestError(
            "--deadline and --budget need the NOTUS strategy, which is not in SkyPilot's plugin configuration",
            "run: notus-launch doctor --fix, then: sky api stop (running jobs survive it)",
        )
    echo(MISSING_WITHOUT_PLUGIN)
    echo("to install it: notus-launch doctor --fix, then: sky api stop")


def _check_controller() -> None:
    """Check the controller: a VM costs money, and our jobs fail on one without our plugin. Raises `RequestError`."""
    finding = find_controller(user_home(), os.environ)
    if sleeps_with_this_machine(user_home(), os.environ):
        echo(f"{ASLEEP}; {KEEP_AWAKE}")
    if finding.state != "missing":
        return
    if strategy_here() == NOTUS:
        raise RequestError(finding.detail, f"{finding.fix}, then: sky api stop (running jobs survive it)")
    echo(f"{finding.detail}; to save its cost: {finding.fix}, then: sky api stop")


def _confirm(choice: _Choice, options: CloudOptions) -> None:
    plan, result, request = choice.plan, choice.result, choice.request
    echo(
        f"run {request.name}: {plan.name}, about ${plan.expected_cost_usd:,.2f} (95 %: ${plan.cost_p95_usd:,.2f}), "
        f"done in about {plan.expected_finish_h:.1f} h; {result.reason}"
    )
    if result.resumed:
        of = f" of the budget of ${request.budget_usd:,.2f}" if request.budget_usd is not None else ""
        echo(
            f"it resumes: {result.work_h:.1f} h of {result.whole_work_h:.1f} h of work are left, "
            f"spent so far ${result.spent_usd:,.2f}{of}"
        )
    if (deadline := request.deadline_from(datetime.now(UTC))) is not None:
        echo(f"deadline: {deadline:%Y-%m-%d %H:%M} UTC" + ("" if request.deadline else ", from your confirmation"))
    if options.yes:
        return
    if not sys.stdin.isatty():
        raise RequestError("cannot ask for confirmation: stdin is not a terminal", "add --yes")
    typer.confirm("launch it?", abort=True, err=True)

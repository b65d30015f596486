"""Inspect runs: status, logs and receipts, from the bucket alone."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from checkpoints.errors import CorruptCheckpoint
from checkpoints.run_log.log_mirror import read_journal
from checkpoints.run_log.run_record import is_run, list_runs, open_run, read_run_if_valid
from checkpoints.storage.base import Store
from checkpoints.util.clock import Clock, SystemClock
from checkpoints.util.command_line import console
from checkpoints.util.environment import user_home
from launcher.cli_options import bucket_or_default
from launcher.commands.receipts import Report, check_page, print_report, read_report, write_page
from launcher.console import echo
from launcher.errors import UnknownRun
from launcher.report.run_tables import comparison_table, findings_table, status_table
from launcher.report.status import OVER, RunStatus, read_status
from launcher.run_identity import identity_here
from launcher.sky import client
from launcher.sky.setup import doctor
from launcher.sky.setup.credentials import ask_skypilot
from trainer.config.recipe import Recipe

FOLLOW_EVERY_S = 2.0


def show_status(bucket: str | None, names: list[str] | None, output: str) -> None:
    """Print the status of some or all runs."""
    url = bucket_or_default(bucket)
    now = datetime.now(UTC)
    if names is None:
        statuses = [_status_or_damage(url, name, now) for name in list_runs(url)]
    else:
        statuses = [_with_skypilot(read_status(open_run(url, name), name, now), url) for name in names]
    if output == "json":
        sys.stdout.write(json.dumps([status.model_dump(mode="json") for status in statuses], indent=2) + "\n")
    elif statuses:
        console().print(status_table(statuses))
    else:
        sys.stderr.write(f"notus-launch: no runs in {url}\n")


def _with_skypilot(status: RunStatus, bucket: str) -> RunStatus:
    """Add SkyPilot's job status for a cloud run that isn't over: the bucket doesn't show a VM's set-up."""
    if not status.in_cloud or status.state in OVER:
        return status
    job = client.peek(identity_here(bucket, status.run))
    return (
        status if job is None else status.model_copy(update={"job": f"{job.id} {job.status}", "job_says": job.reason})
    )


def _status_or_damage(url: str, name: str, now: datetime) -> RunStatus:
    """The status of a run; a damaged one is marked, so that it doesn't hide the others."""
    try:
        return read_status(open_run(url, name), name, now)
    except CorruptCheckpoint as error:
        sys.stderr.write(f"notus-launch: {name}: {error.message}\n")
        return RunStatus.damaged(name)


def show_report(
    bucket: str | None, name: str, output: str, *, html: Path | None = None, compared_with: str | None = None
) -> None:
    """Print the report of a run, or of two side by side; `html` is where a page of it goes."""
    if html is not None:
        check_page(html)
    reports = [_report(bucket, one) for one in ([compared_with] if compared_with else []) + [name]]
    if html is not None:
        write_page(reports[-1], html)
        echo(f"the report is in {html}")
    if len(reports) == 1:
        print_report(reports[0], output)
    elif output == "json":
        sys.stdout.write(json.dumps([report.as_json() for report in reports], indent=2) + "\n")
    else:
        console().print(comparison_table([(report.receipt, report.results) for report in reports]))


def _report(bucket: str | None, name: str) -> Report:
    store = existing_run(bucket, name)
    record = read_run_if_valid(store)
    recipe = None
    if record is not None:
        with contextlib.suppress(ValidationError):  # damaged, or of another version; the report is complete without it
            recipe = Recipe.model_validate(record.recipe)
    return read_report(store, name, recipe)


def show_doctor(*, fix: bool, output: str) -> int:
    """Print what a cloud launch needs, after applying the possible fixes; returns the exit code."""
    mounted = ask_skypilot()
    for line in doctor.fix(user_home(), os.environ, mounted) if fix else []:
        sys.stderr.write(f"notus-launch: {line}\n")
    findings = doctor.examine(user_home(), os.environ, mounted)
    if output == "json":
        sys.stdout.write(json.dumps([finding._asdict() for finding in findings], indent=2) + "\n")
    else:
        console().print(findings_table(findings))
    return 1 if any(finding.state == "missing" for finding in findings) else 0


def print_logs(bucket: str | None, name: str, attempt: int | None, *, follow: bool) -> None:
    """Print the mirrored logs."""
    store = existing_run(bucket, name)
    printed = False
    for data in log_stream(store, name, attempt, follow=follow, clock=SystemClock()):
        printed = True
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    if not printed:
        which = f"attempt {attempt} of run {name!r}" if attempt else f"run {name!r}"
        hint = f"see `notus-launch report` for its attempts; during a machine's set-up: sky jobs logs -n {name}"
        raise UnknownRun(f"{which} has no log", hint)


def log_stream(store: Store, name: str, attempt: int | None, *, follow: bool, clock: Clock) -> Iterator[bytes]:
    """Yield log bytes; with `follow`, until the run is over."""
    printed: dict[str, int] = {}
    while True:
        over = read_status(store, name, clock.now()).state in OVER
        for folder in sorted({entry.key.rsplit("/", 1)[0] for entry in store.list("logs")}):
            if attempt is not None and folder != f"logs/a{attempt:04d}":
                continue
            if folder not in printed and attempt is None:
                yield f"=== attempt {int(folder[-4:])}\n".encode()
            for data in read_journal(store, folder, printed.setdefault(folder, 0)):
                printed[folder] += len(data)
                yield data
        if not follow or over:
            return
        clock.sleep(FOLLOW_EVERY_S)


def existing_run(bucket: str | None, name: str) -> Store:
    """The store of an existing run; raises `UnknownRun`."""
    store = open_run(bucket_or_default(bucket), name)
    if not is_run(store):
        raise UnknownRun(f"there is no run {name!r} in {bucket_or_default(bucket)}", "list them: notus-launch runs")
    return store

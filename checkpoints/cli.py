"""`notus-ckpt`: inspect the checkpoints of a run. Needs no torch and no GPU."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from checkpoints.commit.garbage_collection import collect, collect_damaged, collect_orphans, data_prefix, saves_of
from checkpoints.commit.head import BURIED_S, LEASE_S, PATIENCE_S, Head, Lease, SetAside, Writer, pin, read_head
from checkpoints.commit.head_recovery import find_remains
from checkpoints.commit.load import load_index, load_manifest
from checkpoints.commit.reader_leases import FOLDER, reading
from checkpoints.commit.retention import Commit, best_of
from checkpoints.commit.run_verification import Finding, check_rest
from checkpoints.errors import CorruptCheckpoint, ObjectMissing, RunHeld, UserError
from checkpoints.records.manifest import Manifest
from checkpoints.records.verified_reads import reread_slowly
from checkpoints.restore.download import pull
from checkpoints.restore.shard_restore import restore_shard, verify
from checkpoints.snapshot.shared_memory import SharedBuffer
from checkpoints.storage.backend import EXAMPLES, SHORT, open_store
from checkpoints.storage.base import Store
from checkpoints.util.atomic_folder import whole_folder, work_folder
from checkpoints.util.clock import Clock, SystemClock, looks
from checkpoints.util.command_line import console, run_app

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=f"Inspect the checkpoints of a run. URL is the run's folder in a bucket ({SHORT}), or a path.",
    epilog="Exit codes: 0 all is well; 1 a checkpoint is damaged; 2 usage or configuration error.",
)

STEP_DIGITS = 12
"""No run has that many steps; Python refuses to parse a number with thousands of digits."""

UrlArgument = Annotated[str, typer.Argument(help="The run's folder in the bucket.")]
FolderArgument = Annotated[Path, typer.Argument(help="Local folder to create.")]
StepOption = Annotated[
    str | None, typer.Option("--step", help="Which checkpoint: its step, or `best`. Default: the newest.")
]
Output = Literal["text", "json"]
ModelDtype = Literal["bfloat16", "float32"]
OutputOption = Annotated[Output, typer.Option("--output", "-o", help="Output format.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


@app.command("ls")
def list_checkpoints(url: UrlArgument, output: OutputOption = "text", debug: DebugOption = False) -> None:
    """List the committed checkpoints, newest first."""
    store = open_store(url)
    head = _head(store)
    best = best_of(head.commits)
    rows = [_row(store, commit) | {"best": commit is best} for commit in head.commits]
    if _as_json(output, rows):
        return
    _table(("step", "attempt", "size", "saved at (UTC)", "reason", "ranks"), [_cells(row) for row in rows])
    for bad in head.set_aside:
        sys.stderr.write(f"step {bad.step} of attempt {bad.epoch} was {_set_aside(bad)}\n")


@app.command()
def show(
    url: UrlArgument,
    step: StepOption = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor of every rank.")] = False,
    output: OutputOption = "text",
    debug: DebugOption = False,
) -> None:
    """Show what a checkpoint contains."""
    store = open_store(url)
    commit = _choose(_head(store), step)
    manifest = load_manifest(store, commit)
    data = manifest.model_dump(mode="json") | {"manifest": commit.manifest}
    if tensors:
        data["tensors"] = [
            {"rank": ref.rank, **record.model_dump(mode="json")}
            for ref in manifest.shards
            for record in load_index(store, ref).tensors
        ]
    if _as_json(output, data):
        return
    _show(manifest, commit)
    if tensors:
        columns = ("rank", "name", "dtype", "shape", "bytes")
        rows = [
            (str(t["rank"]), t["name"], t["dtype"], str(tuple(t["shape"])), str(t["size_bytes"]))
            for t in data["tensors"]
        ]
        _table(columns, rows)


@app.command("verify")
def verify_checkpoints(
    url: UrlArgument,
    step: StepOption = None,
    newest: Annotated[bool, typer.Option("--newest", help="Only the newest one.")] = False,
    output: OutputOption = "text",
    debug: DebugOption = False,
) -> None:
    """Read every byte of a run and compare it with its checksums: checkpoints, model files, records, metrics.

    What is not checked is listed with the reason, never as good. With --step or --newest only that checkpoint is read.
    """
    store = open_store(url)
    head = _head(store)
    one = step is not None or newest
    chosen = [_choose(head, step)] if one else list(head.commits)
    listing = [] if one else list(store.list(""))  # before our own reader lease is in it
    with reading(store, chosen):
        results = _verify_all(store, chosen)
        findings = [_finding(commit, results[commit]) for commit in chosen]
        if not one:
            findings += _of_set_aside(head)
            findings += check_rest(store, head, listing, _covered(store, head))
    rows = [finding._asdict() | {"good": finding.good} for finding in findings]
    if not _as_json(output, rows):
        for line in _summary(findings):
            sys.stdout.write(f"{line}\n")
    if any(finding.fault for finding in findings):
        raise typer.Exit(1)


@app.command("pull")
def pull_checkpoint(
    url: UrlArgument,
    folder: FolderArgument,
    step: StepOption = None,
    debug: DebugOption = False,
) -> None:
    """Download a checkpoint and verify it. The folder can be read like the bucket."""
    store = open_store(url)
    head = _head(store)
    commit = _choose(head, step)
    with reading(store, [commit]), _bar(f"step {commit.step}", commit.size_bytes) as advance:
        pull(store, head, commit, folder, advance)
    sys.stdout.write(f"step {commit.step} is in {folder}\n")


@app.command("export")
def export_checkpoint(
    url: UrlArgument,
    folder: FolderArgument,
    step: StepOption = None,
    dtype: Annotated[ModelDtype, typer.Option(help="Dtype of the exported weights.")] = "bfloat16",
    debug: DebugOption = False,
) -> None:
    """Convert a full (ZeRO-3) checkpoint to a Hugging Face folder. Needs no GPU, but disk space for a copy."""
    from checkpoints.restore.consolidate import Zero3State
    from checkpoints.restore.hf_export import export

    store = open_store(url)
    commit = _choose(_head(store), step)
    manifest = load_manifest(store, commit)
    if manifest.fingerprint.get("recipe", {}).get("method") == "lora":
        raise UserError(
            "this is a LoRA run: its checkpoints hold the adapter's state, not a model",
            f"the trainer exports the adapter at the end, into {store.url}/final",
        )
    made = {"run": store.url, "manifest": commit.manifest, "dtype": dtype}
    with reading(store, [commit]), whole_folder(folder.absolute(), made) as partial, work_folder(partial) as temporary:
        shards = []
        with _bar("reading", manifest.size_bytes) as advance:
            for ref in manifest.shards:  # into files: the kernel may evict their pages, unlike anonymous memory
                shards.append(restore_shard(store, commit, ref.rank, SharedBuffer(temporary / f"r{ref.rank}")))
                advance(ref.size_bytes)
        state = Zero3State(shards)
        total = sum(part.numel for part in state.partitions) * (2 if dtype == "bfloat16" else 4)
        with _bar("writing", total) as advance:
            export(store, state, partial, dtype=dtype, progress=advance)
    sys.stdout.write(f"the model of step {commit.step} is in {folder}\n")


@app.command("gc")
def collect_garbage(
    url: UrlArgument,
    damaged: Annotated[
        bool, typer.Option("--damaged", help="Also delete checkpoints that were set aside as damaged.")
    ] = False,
    abandoned: Annotated[
        bool, typer.Option("--abandoned", help="Confirm that the last attempt, which never ended, is gone for good.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Delete expired checkpoints and leftovers of crashed attempts. Only while no attempt is running.

    Refuses if the last attempt died without releasing the run: it may be alive but cut off from the network, and would
    lose the run to this command. Override with --abandoned, which still waits for a minute without a sign of life.
    Expired checkpoints are kept for two more minutes for readers that have just started.
    """
    store, clock = open_store(url), SystemClock()
    head = _head(store)
    if not head.released and not abandoned:
        raise RunHeld(
            f"the run is held by attempt {head.epoch} on {head.writer.host} (pid {head.writer.pid}), "
            "which never released it: it may be alive, and would lose the run",
            "launch the run again, which also cleans up; or use --abandoned if you know that its machine is gone",
        )
    writer = Writer(id=uuid.uuid4().hex, host=socket.gethostname(), pid=os.getpid())
    lease = Lease.claim(store, writer, wait_s=PATIENCE_S, patient=False, clock=clock)
    try:
        _let_readers_begin(lease, clock)
        expired = collect(store, lease)
        orphans = collect_orphans(store, lease)
        bad = collect_damaged(store, lease) if damaged else 0
    finally:
        lease.release()
    sys.stdout.write(f"deleted {expired} expired checkpoints and {orphans} orphaned objects\n")
    if damaged:
        sys.stdout.write(f"deleted {bad} damaged checkpoints\n")
    for each in lease.head.set_aside:
        sys.stdout.write(f"kept step {each.step} of attempt {each.epoch}, {_set_aside(each)}\n")
    if kept := len(lease.head.tombstones):
        sys.stdout.write(
            f"kept {kept} expired checkpoints: they have a reader, or one that died within the last hour, "
            f"see {url}/{FOLDER}\n"
        )


def _let_readers_begin(lease: Lease, clock: Clock) -> None:
    """Wait until tombstones expire. Their times are by another machine's clock, so they count from now."""
    if lease.head.tombstones:
        sys.stderr.write(f"notus-ckpt: waiting {BURIED_S:.0f} s for readers that have just started\n")
        for _ in looks(clock, LEASE_S / 3, BURIED_S):
            lease.renew()


@app.command("pin")
def pin_checkpoint(
    url: UrlArgument,
    step: Annotated[str, typer.Option("--step", help="Which checkpoint: its step, or `best`.")],
    remove: Annotated[bool, typer.Option("--remove", help="Unpin it.")] = False,
    debug: DebugOption = False,
) -> None:
    """Pin a checkpoint, so that it is kept while the run continues."""
    store = open_store(url)
    commit = _choose(_head(store), step)
    pin(store, commit.step, pinned=not remove)
    sys.stdout.write(f"step {commit.step} is {'no longer pinned' if remove else 'pinned'}\n")


@app.command()
def lifecycle(
    url: Annotated[str, typer.Argument(help=f"The bucket, or a folder in it: {EXAMPLES}.")],
    apply: Annotated[bool, typer.Option("--apply", help="Add them to the bucket's existing rules (S3).")] = False,
    debug: DebugOption = False,
) -> None:
    """Suggest lifecycle rules that expire aborted uploads and old versions after some days. Optional."""
    from checkpoints.storage import lifecycle_rules as rules

    if apply:
        names = rules.apply(url)
        sys.stdout.write(f"the rules of the bucket now: {', '.join(names)}\n")
        return
    sys.stdout.write(rules.describe(url) + "\n")
    sys.stderr.write(f"to apply them: {rules.how_to_apply(url)}\n")


@contextlib.contextmanager
def _bar(label: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr, if that is a terminal."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(label, total=total_bytes)
        yield lambda size_bytes: progress.advance(task, size_bytes)


REPLACED = "not checked: the run has replaced it meanwhile"


def _verify_all(store: Store, commits: Sequence[Commit]) -> dict[Commit, str]:
    """Commit -> fault, '' = good; with a progress bar on a terminal. `REPLACED`: it was not read completely."""
    results: dict[Commit, str] = {}
    for commit in commits:
        with _bar(f"step {commit.step}", commit.size_bytes) as advance:
            try:
                reread_slowly(store, lambda store: verify(store, commit, advance))  # noqa: B023  # called at once
                results[commit] = ""
            except CorruptCheckpoint as error:
                results[commit] = REPLACED if _superseded(store, commit) else error.message
    return results


def _finding(commit: Commit, fault: str) -> Finding:
    name = f"step {commit.step}"
    if fault == REPLACED:
        return Finding(name, commit.size_bytes, unread=fault, step=commit.step)
    return Finding(name, commit.size_bytes, fault=fault, step=commit.step)


def _of_set_aside(head: Head) -> list[Finding]:
    return [
        Finding(f"step {bad.step} of attempt {bad.epoch}", bad.size_bytes, unread=_set_aside(bad), step=bad.step)
        for bad in head.set_aside
    ]


def _set_aside(bad: SetAside) -> str:
    return f"set aside by attempt {bad.found_by} as damaged ({bad.fault}); `notus-ckpt gc --damaged` deletes it"


def _covered(store: Store, head: Head) -> set[str]:
    """Key prefixes that belong to the checkpoints in HEAD and to those that were set aside."""
    covered = {commit.manifest for commit in head.commits}
    covered |= {begin for bad in head.set_aside for begin in (bad.manifest, saves_of(bad))}
    for commit in head.commits:
        try:
            covered |= {f"{data_prefix(ref.index)}/" for ref in load_manifest(store, commit).shards}
        except CorruptCheckpoint:  # already reported as damaged
            covered.add(saves_of(commit))
    return covered


def _summary(findings: Sequence[Finding]) -> Iterator[str]:
    """A line per checkpoint and fault, one for everything else that is good, and one per unchecked item."""
    good = [finding for finding in findings if finding.good and finding.step is None]
    for finding in findings:
        if finding.step is not None or finding.fault:
            state = finding.fault or finding.unread or "good"
            yield f"{finding.name}: {state} ({_size(finding.size_bytes)})"
    if good:
        yield f"{len(good)} other files and records: good ({_size(sum(each.size_bytes for each in good))})"
    for finding in findings:
        if finding.unread and finding.step is None:
            yield f"{finding.name}: {finding.unread} ({_size(finding.size_bytes)})"


def _superseded(store: Store, commit: Commit) -> bool:
    """Has the run, which continues while we read, replaced this checkpoint?"""
    head = read_head(store)
    return head is not None and commit.manifest not in {known.manifest for known in head.commits}


def _head(store: Store) -> Head:
    try:
        head = read_head(store)
    except ObjectMissing:
        head = None
    if head is None:
        if remains := find_remains(store):
            raise UserError(
                f"the HEAD of {store.url} is gone, but {len(remains.manifests)} checkpoints are there",
                "start the run again: its next attempt rebuilds HEAD from them, and resumes",
            )
        raise UserError(
            f"{store.url} is not a run: it has no HEAD", "give the run's own folder, for example s3://bucket/my-run"
        )
    return head


def _choose(head: Head, wanted: str | None) -> Commit:
    if not head.commits:
        raise UserError("the run has no checkpoint yet", "it saves after the first steps, see `notus-launch status`")
    if wanted is None:
        return head.commits[0]
    if wanted == "best":
        best = best_of(head.commits)
        if best is None:
            raise UserError("no checkpoint has a score", "set saves.keep_best in the recipe: it needs evaluations")
        return best
    if not wanted.isdecimal() or len(wanted) > STEP_DIGITS:
        raise UserError(f"--step {wanted[:40]!r} is not a step", "give a number, or best")
    step = int(wanted)
    steps = [commit.step for commit in head.commits]
    if step in steps:
        return head.commits[steps.index(step)]
    nearest = min(steps, key=lambda known: abs(known - step))
    raise UserError(f"there is no checkpoint of step {step}; the nearest is {nearest}", f"there are: {steps}")


def _row(store: Store, commit: Commit) -> dict[str, Any]:
    row: dict[str, Any] = commit.model_dump(mode="json")
    try:
        manifest = load_manifest(store, commit)
        return row | {"reason": manifest.reason, "world_size": manifest.world_size}
    except CorruptCheckpoint as error:
        return row | {"reason": f"DAMAGED: {error.message}", "world_size": None}


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    saved_at = str(row["committed_at"])[:19].replace("T", " ")
    ranks = str(row["world_size"] or "?")
    return (
        f"{row['step']}{' (pinned)' if row['pinned'] else ''}{' (best)' if row['best'] else ''}",
        str(row["epoch"]),
        _size(row["size_bytes"]),
        saved_at,
        row["reason"],
        ranks,
    )


def _show(manifest: Manifest, commit: Commit) -> None:
    lines = {
        "run": manifest.run,
        "step": manifest.step,
        "saved by attempt": manifest.epoch,
        "saved at": f"{manifest.created_at:%Y-%m-%d %H:%M:%S} UTC",
        "reason": manifest.reason,
        "size": f"{_size(manifest.size_bytes)} in {manifest.world_size} shards",
        "manifest": commit.manifest,
        "sha256": commit.sha256,
        **{f"fingerprint.{key}": value for key, value in manifest.fingerprint.items() if key != "recipe"},
    }
    width = max(map(len, lines))
    for key, value in lines.items():
        sys.stdout.write(f"{key:<{width}}  {value}\n")


def _as_json(output: Output, data: Any) -> bool:
    if output == "json":
        sys.stdout.write(json.dumps(data, indent=2) + "\n")
    return output == "json"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console().print(table)


def _size(size_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"


def main() -> None:
    """Entry point."""
    run_app(app, "notus-ckpt")


if __name__ == "__main__":
    main()

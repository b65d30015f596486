"""Options shared by several commands, with their help texts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from checkpoints.errors import UserError
from checkpoints.storage.backend import SHORT
from launcher.bounds import MAX_HOURS, MAX_PROCESSES, MAX_SEED, MAX_USD, MIN_HOURS, MIN_USD
from launcher.errors import RequestError
from launcher.paths import default_bucket

RecipeOption = Annotated[str, typer.Option("--recipe", help="Recipe name, or the path of a .yaml file.")]
RecipeArgument = Annotated[str, typer.Argument(help="Recipe name, or the path of a .yaml file.")]
CloudOption = Annotated[
    list[str] | None,
    typer.Option("--cloud", help="gcp, lambda, aws, runpod, nebius, vast, or local for this machine. Repeatable."),
]
GpusOption = Annotated[
    list[str] | None, typer.Option("--gpus", help="GPU type and count per node, for example A100:8. Repeatable.")
]
SpotOption = Annotated[bool, typer.Option("--spot", help="Spot machines only.")]
OnDemandOption = Annotated[bool, typer.Option("--on-demand", help="On-demand machines only.")]
AutoOption = Annotated[
    bool, typer.Option("--auto", help="Spot or on demand, whichever is expected to cost less (the default).")
]
DeadlineOption = Annotated[
    str | None,
    typer.Option(help="Time limit: a duration from the launch (24h, 90m, 1d) or a point in time (2026-11-25T08:00)."),
]
BudgetOption = Annotated[
    float | None,
    typer.Option(
        help="Limit in US dollars for the whole run, including what it spent before a resume.", min=MIN_USD, max=MAX_USD
    ),
]
BucketOption = Annotated[
    str | None,
    typer.Option(
        "--bucket",
        envvar="NOTUS_BUCKET",
        help=f"Where runs are stored: {SHORT} or a folder. Default for local runs: ~/.notus/bucket.",
    ),
]
NameOption = Annotated[str | None, typer.Option("--name", help="Name of the run. Reuse a name to resume that run.")]
HoursOption = Annotated[
    float | None,
    typer.Option(
        help="Training hours, overriding the recipe's. Measured on --gpus if exactly one is given, else on the GPUs "
        "that the recipe was written for.",
        min=MIN_HOURS,
        max=MAX_HOURS,
    ),
]
HazardOption = Annotated[
    str | None,
    typer.Option("--hazard", help="Mean time between preemptions of a spot machine (6h, 90m), overriding the table."),
]
TrustOption = Annotated[bool, typer.Option("--trust-prices", help="Also recommend offers whose price looks wrong.")]
ExplainOption = Annotated[
    bool,
    typer.Option("--explain", help="Dry run that also shows assumptions, the policy's rules and cost by deadline."),
]
ShowTaskOption = Annotated[bool, typer.Option("--show-task", help="Dry run that prints only the SkyPilot task.")]
DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", help="Show what it costs where and when it is done, without starting anything."),
]
YesOption = Annotated[
    bool,
    typer.Option("--yes", "-y", help="Don't ask for confirmation before spending money."),
]
DetachOption = Annotated[bool, typer.Option("--detach", "-d", help="Clouds only: return once the job is submitted.")]
NowOption = Annotated[
    bool, typer.Option("--now", help="Clouds only: stop immediately, losing the steps since the last checkpoint.")
]
FixOption = Annotated[
    bool,
    typer.Option(
        "--fix",
        help="Write the plugin and consolidation mode into SkyPilot's configuration, and build the wheel for a jobs "
        "controller on a VM.",
    ),
]
PreemptOption = Annotated[
    int,
    typer.Option(help="Local only: kill the run this many times without warning, at random steps.", min=0, max=20),
]
CompareOption = Annotated[
    bool | None,
    typer.Option(
        "--compare/--no-compare",
        help="Local only: also train without interruption and compare bit for bit. Default: on with --preempt.",
    ),
]
SeedOption = Annotated[
    int | None, typer.Option(help="Local only: seed for the random steps of --preempt.", min=0, max=MAX_SEED)
]
ProcessesOption = Annotated[
    int | None,
    typer.Option(
        help="Local only: number of ranks. Default: one per GPU, else the recipe's cpu_processes.",
        min=1,
        max=MAX_PROCESSES,
    ),
]
PricesAction = Literal["show", "refresh", "diff"]
PricesArgument = Annotated[PricesAction, typer.Argument(help="What to do with the price lists.")]
TraceOption = Annotated[
    list[Path], typer.Option("--trace", help="JSON file with recorded spot availability. Repeatable.")
]
SimulatedHoursOption = Annotated[float, typer.Option("--hours", help="Training hours.", min=0.1, max=1000)]
RestartOption = Annotated[float, typer.Option(help="Minutes from a new machine to its first step.", min=0, max=600)]
PriceOption = Annotated[float, typer.Option(help="Spot price as a fraction of the on-demand price.", min=0.01, max=1)]
PlotOption = Annotated[Path | None, typer.Option("--plot", help="Also plot the replay to this .png or .svg file.")]
StartOption = Annotated[
    float,
    typer.Option(help="Start this many hours into the trace; the policy sees the 72 h before.", min=0, max=1e6),
]
Output = Literal["text", "json"]
OutputOption = Annotated[Output, typer.Option("--output", "-o", help="Output format.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks and log messages on stderr.")]
RunArgument = Annotated[str, typer.Argument(help="Name of the run.")]
OptionalRunArgument = Annotated[str | None, typer.Argument(help="Name of the run. Default: all.")]
AttemptOption = Annotated[int | None, typer.Option("--attempt", help="Show this attempt only.", min=1, max=10**6)]
RecipesAction = Literal["list", "show", "copy"]
RecipesArgument = Annotated[RecipesAction, typer.Argument(help="What to do.")]
RecipeNameArgument = Annotated[str | None, typer.Argument(metavar="[NAME]", help="Name of a recipe, to show or copy.")]
RecipeCopyArgument = Annotated[Path | None, typer.Argument(metavar="[FILE]", help="Where to copy it to.")]
NewRecipeArgument = Annotated[Path, typer.Argument(metavar="[FILE]", help="The recipe to write.")]
DataOption = Annotated[
    str | None, typer.Option("--data", help="Preference pairs: a .jsonl or .parquet file, or a name on the Hub.")
]
ModelOption = Annotated[str | None, typer.Option("--model", help="Base model: a name on the Hub, or a folder.")]
MethodOption = Annotated[Literal["full", "lora"] | None, typer.Option("--method", help="All weights, or adapters.")]
NodeOption = Annotated[str, typer.Option("--gpus", help="The node that the hours are about.")]
ColumnsOption = Annotated[
    str | None,
    typer.Option("--columns", metavar="OURS=YOURS,...", help="The data's columns, such as prompt=question."),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite the file if it exists.")]
KillsOption = Annotated[int, typer.Option("--kills", help="Kill it this many times.", min=1, max=20)]
DrillSeedOption = Annotated[
    int | None, typer.Option("--seed", help="Seed for the random steps of the kills.", min=0, max=MAX_SEED)
]
DrillProcessesOption = Annotated[
    int | None,
    typer.Option("--processes", help="Number of ranks. Default: one per GPU, else 2.", min=1, max=MAX_PROCESSES),
]
KeepOption = Annotated[bool, typer.Option("--keep", help="Keep the drill's runs in the bucket.")]
HtmlOption = Annotated[Path | None, typer.Option("--html", help="Also write the report as a page to this .html file.")]
OtherRunOption = Annotated[
    str | None, typer.Option("--compare", metavar="OTHER", help="Show this run of the same bucket beside it.")
]
FollowOption = Annotated[bool, typer.Option("--follow", "-f", help="Keep printing until the run ends.")]


def given_on_command_line(ctx: typer.Context) -> list[str]:
    """Long names of this command's options given on the command line, except --debug, which is accepted anywhere."""
    given = [
        parameter
        for parameter in ctx.command.params
        if parameter.name not in (None, "debug") and _source(ctx, str(parameter.name)) == "COMMANDLINE"
    ]
    return [max(parameter.opts, key=len) for parameter in given]


def of_subcommand(ctx: typer.Context) -> frozenset[str]:
    """Long names of the options of the subcommand that is about to run."""
    subcommand = getattr(ctx.command, "commands", {}).get(ctx.invoked_subcommand)
    return frozenset(max(one.opts, key=len) for one in subcommand.params) if subcommand else frozenset()


def _source(ctx: typer.Context, name: str) -> str:
    source = ctx.get_parameter_source(name)
    return source.name if source is not None else ""


def writable(folder: Path) -> Path:
    """Create a folder below `home()` if needed. Raises `UserError` naming NOTUS_HOME if it isn't writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(folder, os.W_OK | os.X_OK) else "no permission to write, or a read-only file system"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise UserError(f"{folder} can't be used: {reason}", "set NOTUS_HOME to a writable folder")
    return folder


def bucket_or_default(bucket: str | None) -> str:
    """The named bucket, or the default for None only: a blank name is refused when it is opened."""
    return default_bucket() if bucket is None else bucket


def check_recipes_arguments(action: RecipesAction, name: str | None, file: Path | None) -> None:
    """Raises `RequestError` for arguments that don't go with the action."""
    if action == "list" and name is not None:
        raise RequestError(f"recipes list takes no name ({name!r})", f"to see it: notus-launch recipes show {name}")
    if action != "list" and name is None:
        raise RequestError(f"recipes {action} needs the name of a recipe", "list them: notus-launch recipes")
    if action == "show" and file is not None:
        raise RequestError(f"recipes show takes no file ({file})", f"copy it: notus-launch recipes copy {name} {file}")

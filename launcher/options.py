"""The options that several commands share, with their help texts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

RecipeOption = Annotated[str, typer.Option("--recipe", help="Recipe name, or the path of a .yaml file.")]
CloudOption = Annotated[
    list[str] | None,
    typer.Option("--cloud", help="gcp, lambda, aws, runpod, nebius, vast, or local = this machine. Repeatable."),
]
GpusOption = Annotated[list[str] | None, typer.Option("--gpus", help="KIND:COUNT, for example A100:8. Repeatable.")]
SpotOption = Annotated[bool, typer.Option("--spot", help="Spot machines only.")]
OnDemandOption = Annotated[bool, typer.Option("--on-demand", help="On-demand machines only.")]
AutoOption = Annotated[bool, typer.Option("--auto", help="Both, by expected cost (the default).")]
DeadlineOption = Annotated[
    str | None,
    typer.Option(help="A duration from the launch (24h, 90m, 1d), or a moment (2026-11-25T08:00)."),
]
BudgetOption = Annotated[
    float | None,
    typer.Option(help="US dollars for the whole run, including what it has spent before a resume.", min=0.01),
]
BucketOption = Annotated[
    str | None,
    typer.Option(
        "--bucket",
        envvar="NOTUS_BUCKET",
        help="s3://..., gs://... or a folder. Default here: ~/.notus/bucket.",
    ),
]
NameOption = Annotated[str | None, typer.Option("--name", help="Name of the run. The same name goes on with it.")]
HoursOption = Annotated[
    float | None,
    typer.Option(
        help="Hours of work, instead of the recipe's figure: on the node of --gpus where one is named, else on the "
        "GPUs that the recipe was made for.",
        min=0.001,
    ),
]
HazardOption = Annotated[
    str | None,
    typer.Option("--hazard", help="Mean time between preemptions of a spot machine (6h, 90m), instead of the table's."),
]
TrustOption = Annotated[
    bool, typer.Option("--trust-prices", help="Also recommend offers whose price looks wrong (see the remarks).")
]
ExplainOption = Annotated[
    bool, typer.Option("--explain", help="A dry run that also shows the policy's decisions and the cost by deadline.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Compare plans and show the task. Starts nothing.")]
YesOption = Annotated[
    bool,
    typer.Option("--yes", "-y", help="Don't ask before money is spent."),
]
DetachOption = Annotated[bool, typer.Option("--detach", "-d", help="Return after submission (clouds).")]
NowOption = Annotated[bool, typer.Option("--now", help="In a cloud: lose the steps since the last checkpoint.")]
FixOption = Annotated[
    bool,
    typer.Option(
        "--fix",
        help="Write plugin and consolidation mode into SkyPilot's files; for a controller on a VM, build its wheel.",
    ),
]
PreemptOption = Annotated[
    int,
    typer.Option(help="Local only: kill it without warning so many times, at random steps.", min=0, max=20),
]
CompareOption = Annotated[
    bool | None,
    typer.Option(
        "--compare/--no-compare",
        help="Local only: also make the uninterrupted run and compare bit for bit. Default: with --preempt.",
    ),
]
SeedOption = Annotated[int | None, typer.Option(help="Local only: seed of the random steps of --preempt.")]
ProcessesOption = Annotated[
    int | None, typer.Option(help="Local only: ranks. Default: one a GPU, else the recipe's.", min=1)
]
PricesArgument = Annotated[str, typer.Argument(help="show, refresh or diff.")]
TraceOption = Annotated[list[Path], typer.Option("--trace", help="JSON file of availability. Repeatable.")]
SimulatedHoursOption = Annotated[float, typer.Option("--hours", help="Hours of work.", min=0.1, max=1000)]
RestartOption = Annotated[float, typer.Option(help="Minutes from a new machine to its first step.", min=0, max=600)]
PriceOption = Annotated[float, typer.Option(help="Price of spot as a share of on demand.", min=0.01, max=1)]
PlotOption = Annotated[Path | None, typer.Option("--plot", help="Also draw it to this .png or .svg file.")]
StartOption = Annotated[float, typer.Option(help="Hours into the trace; 72 h before it are known.", min=0)]
OutputOption = Annotated[str, typer.Option("--output", "-o", help="text or json.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks and the log on stderr.")]
RunArgument = Annotated[str, typer.Argument(help="Name of the run.")]
OptionalRunArgument = Annotated[str | None, typer.Argument(help="Name of the run. Default: all.")]
AttemptOption = Annotated[int | None, typer.Option("--attempt", help="Only this attempt.", min=1)]
FollowOption = Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")]


def home() -> Path:
    """Our folder in the user's home: the default bucket and scratch space. NOTUS_HOME moves it."""
    return Path(os.environ.get("NOTUS_HOME") or "~/.notus").expanduser()


def experience_path() -> Path:
    """What the user's runs have met of spot markets (experience.py)."""
    return home() / "experience.json"


def default_bucket() -> str:
    """The embedded default: a folder, created on first use."""
    bucket = home() / "bucket"
    bucket.mkdir(parents=True, exist_ok=True)
    return f"file://{bucket}"

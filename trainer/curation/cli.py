"""`notus-data`: make preference data. A thin command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from checkpoints.errors import UserError
from checkpoints.util.command_line import run_app
from trainer.config.bounds import MAX_SEED

app = typer.Typer(
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def data() -> None:
    """Preference data for DPO."""


@app.command()
def curate(
    inputs: Annotated[
        list[Path], typer.Argument(help="UltraFeedback's .jsonl or .parquet files, or a folder of them.")
    ],
    out: Annotated[
        Path, typer.Option("--out", help="New folder for data/*.parquet, README.md, report.json, histograms.")
    ],
    rejected: Annotated[str, typer.Option(help="random (a seeded one of the lower answers) or lowest.")] = "random",
    seed: Annotated[int, typer.Option(help="Seed of the random choice.", min=0, max=MAX_SEED)] = 42,
    contamination: Annotated[
        Path | None, typer.Option(help="Instructions to leave out: a text file with one per line, or .jsonl.")
    ] = None,
    drop_source: Annotated[
        list[str] | None, typer.Option(help="Leave out a source, e.g. truthful_qa. Repeatable.")
    ] = None,
    ratings: Annotated[
        str, typer.Option(help="any: the mean of the rated aspects; all: leave out answers that lack a rating.")
    ] = "any",
    shard_rows: Annotated[int, typer.Option(help="Maximum rows per parquet file.", min=1, max=10**9)] = 50_000,
    push: Annotated[
        str | None, typer.Option(help="Also push to this data set on the Hub: OWNER/NAME. Needs HF_TOKEN.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Push as public; the default is private.")] = False,
    output: Annotated[str, typer.Option("--output", "-o", help="text or json.")] = "text",
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Make preference pairs by the mean of the aspect ratings. The same input gives the same output."""
    from trainer.curation.pipeline import Destination, as_text, curate_files

    if rejected not in ("random", "lowest"):
        raise UserError(f"--rejected {rejected!r} is not known", "use random or lowest")
    if ratings not in ("any", "all"):
        raise UserError(f"--ratings {ratings!r} is not known", "use any or all")
    if output not in ("text", "json"):
        raise UserError(f"--output {output!r} is not known", "use text or json")
    where = Destination(out, shard_rows, push, private=not public)
    report = curate_files(
        inputs,
        where,
        rejected="lowest" if rejected == "lowest" else "random",
        seed=seed,
        contamination=contamination,
        drop_sources=drop_source or [],
        ratings="all" if ratings == "all" else "any",
    )
    sys.stdout.write(
        json.dumps(report, indent=2, ensure_ascii=False) + "\n" if output == "json" else as_text(report, out)
    )


def main() -> None:
    """Entry point."""
    run_app(app, "notus-data")


if __name__ == "__main__":
    main()

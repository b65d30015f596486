"""`notus-launch`: launch and inspect runs. Thin: each command checks its options and calls one function.

Heavy modules are imported inside the commands, so that `--help` and option errors are fast.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import typer

from checkpoints.util.command_line import run_app
from launcher import cli_options as o

app = typer.Typer(
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

EXIT_CODES_TEXT = (
    "Exit codes: 0 done; 1 failed; 2 usage or configuration error; 3 no capacity, or over budget or deadline; "
    "75 stopped, state saved."
)


@app.callback(epilog=EXIT_CODES_TEXT)
def launch(
    ctx: typer.Context,
    recipe: o.RecipeOption = "notus-7b-dpo",
    cloud: o.CloudOption = None,
    gpus: o.GpusOption = None,
    spot: o.SpotOption = False,
    on_demand: o.OnDemandOption = False,
    auto: o.AutoOption = False,
    deadline: o.DeadlineOption = None,
    budget: o.BudgetOption = None,
    bucket: o.BucketOption = None,
    name: o.NameOption = None,
    hours: o.HoursOption = None,
    hazard: o.HazardOption = None,
    trust_prices: o.TrustOption = False,
    dry_run: o.DryRunOption = False,
    explain: o.ExplainOption = False,
    show_task: o.ShowTaskOption = False,
    yes: o.YesOption = False,
    detach: o.DetachOption = False,
    preempt: o.PreemptOption = 0,
    compare: o.CompareOption = None,
    seed: o.SeedOption = None,
    processes: o.ProcessesOption = None,
    output: o.OutputOption = "text",
    debug: o.DebugOption = False,
) -> None:
    """Train a recipe to completion on machines that may be preempted.

    Without a subcommand: launch. Reuse a --name to resume that run.
    """
    from launcher import request as req

    if ctx.invoked_subcommand is not None:
        req.refuse_before_subcommand(o.given_on_command_line(ctx), ctx.invoked_subcommand, o.of_subcommand(ctx))
        return

    request = req.launch_request(
        recipe=recipe,
        clouds=cloud or [],
        gpus=gpus or [],
        market=req.choose_market(spot=spot, on_demand=on_demand, auto=auto),
        deadline=deadline,
        budget_usd=budget,
        hours=hours,
        hazard=hazard,
        trust_prices=trust_prices,
        bucket=bucket,
        name=name,
    )
    if request.is_local:
        from launcher.commands import launch_local as command

        req.refuse_cloud_options(request, dry_run=dry_run, explain=explain, show_task=show_task)
        local = command.LocalOptions(preempt, preempt > 0 if compare is None else compare, seed, processes)
        raise typer.Exit(command.launch_local(request, local, output))
    req.refuse_local_options(preempt, compare, seed, processes)
    if dry_run or explain or show_task:
        from launcher.commands import dry_run as dry

        raise typer.Exit(dry.plan_only(request, dry.Shown(output, explained=explain, task_only=show_task)))
    from launcher.commands import launch_cloud as cloud_command

    raise typer.Exit(cloud_command.launch_cloud(request, cloud_command.CloudOptions(detach, yes), output))


@app.command()
def status(
    run: o.OptionalRunArgument = None,
    bucket: o.BucketOption = None,
    output: o.OutputOption = "text",
    debug: o.DebugOption = False,
) -> None:
    """Show a run's state, its cost and what it is waiting for. Without a name: all runs in the bucket.

    Reads the bucket. For a single cloud run it also queries SkyPilot, if its API server is running.
    """
    from launcher.commands import inspect_runs
    from launcher.commands.find_runs import check_default_bucket

    check_default_bucket(bucket, run)
    inspect_runs.show_status(bucket, None if run is None else [run], output)


@app.command()
def runs(bucket: o.BucketOption = None, output: o.OutputOption = "text", debug: o.DebugOption = False) -> None:
    """List all runs in the bucket."""
    from launcher.commands import inspect_runs

    inspect_runs.show_status(bucket, None, output)


@app.command()
def logs(
    run: o.RunArgument,
    attempt: o.AttemptOption = None,
    follow: o.FollowOption = False,
    bucket: o.BucketOption = None,
    debug: o.DebugOption = False,
) -> None:
    """Print the log of all attempts, or of one. Reads the bucket only."""
    from launcher.commands import inspect_runs
    from launcher.commands.find_runs import check_default_bucket

    check_default_bucket(bucket, run)
    inspect_runs.print_logs(bucket, run, attempt, follow=follow)


@app.command()
def report(
    run: o.RunArgument,
    html: o.HtmlOption = None,
    compare: o.OtherRunOption = None,
    bucket: o.BucketOption = None,
    output: o.OutputOption = "text",
    debug: o.DebugOption = False,
) -> None:
    """Show a run's receipt (attempts, time lost, goodput, cost) and its results (loss, evaluation, rewards, speed).

    --html writes them as one self-contained page, with the timeline and all curves.
    """
    from launcher.commands import inspect_runs
    from launcher.commands.find_runs import check_default_bucket

    check_default_bucket(bucket, run)
    inspect_runs.show_report(bucket, run, output, html=html, compared_with=compare)


@app.command()
def stop(
    run: o.RunArgument,
    now: o.NowOption = False,
    bucket: o.BucketOption = None,
    debug: o.DebugOption = False,
) -> None:
    """Save, verify the checkpoint, end the run and terminate its machine. Reuse the --name to resume it later."""
    from launcher.commands import stop_run as command
    from launcher.commands.find_runs import check_default_bucket

    check_default_bucket(bucket, run)
    raise typer.Exit(command.stop_run(bucket, run, at_once=now))


@app.command()
def prices(
    action: o.PricesArgument = "show",
    cloud: o.CloudOption = None,
    gpus: o.GpusOption = None,
    spot: o.SpotOption = False,
    on_demand: o.OnDemandOption = False,
    output: o.OutputOption = "text",
    debug: o.DebugOption = False,
) -> None:
    """Show node prices. refresh: fetch SkyPilot's price lists. diff: compare them with the shipped snapshot."""
    from launcher import request as req
    from launcher.catalog.gpu_nodes import LOCAL, parse_gpus
    from launcher.commands import prices as command
    from launcher.errors import RequestError

    clouds = req.parse_clouds(cloud or [])
    if LOCAL in clouds:
        raise RequestError("this machine has no price", "name a cloud, or omit --cloud for all of them")
    wanted = tuple(parse_gpus(text) for text in gpus or [])
    market = req.choose_market(spot=spot, on_demand=on_demand, auto=False)
    req.check_market(clouds, market)
    request = req.LaunchRequest(recipe="", clouds=clouds, gpus=wanted, market=market)
    raise typer.Exit(command.prices(action, request, output))


@app.command()
def simulate(
    trace: o.TraceOption,
    hours: o.SimulatedHoursOption = 12.0,
    deadline: o.DeadlineOption = "24h",
    restart: o.RestartOption = 15.0,
    price: o.PriceOption = 0.35,
    start: o.StartOption = 72.0,
    plot: o.PlotOption = None,
    output: o.OutputOption = "text",
    debug: o.DebugOption = False,
) -> None:
    """Replay the policy over a recorded spot trace. Several --trace options are zones of one market."""
    from launcher import request as req
    from launcher.commands import replay_trace as command
    from launcher.replay.replayed import Job

    deadline_h = req.parse_deadline("24h" if deadline is None else deadline, datetime.now(UTC))
    job = Job(hours, deadline_h, restart / 60, price, start)
    raise typer.Exit(command.simulate(trace, job, output, plot))


@app.command()
def doctor(
    fix: o.FixOption = False,
    output: o.OutputOption = "text",
    debug: o.DebugOption = False,
) -> None:
    """Check what a cloud launch needs on this machine, and report what is missing."""
    from launcher.commands import inspect_runs

    raise typer.Exit(inspect_runs.show_doctor(fix=fix, output=output))


@app.command()
def check(
    recipe: o.RecipeArgument,
    gpus: o.GpusOption = None,
    output: o.OutputOption = "text",
    debug: o.DebugOption = False,
) -> None:
    """Check a recipe before paying for a machine: every row of its data, its model, the Hub, W&B.

    Every launch runs the same check. It is free, and needs an account only if the model or the data do.
    """
    from launcher.catalog.gpu_nodes import parse_gpus
    from launcher.check import check as command

    nodes = [parse_gpus(text) for text in gpus or []]
    raise typer.Exit(command.show_check(recipe, nodes, output))


@app.command()
def recipes(
    action: o.RecipesArgument = "list",
    name: o.RecipeNameArgument = None,
    file: o.RecipeCopyArgument = None,
    output: o.OutputOption = "text",
    debug: o.DebugOption = False,
) -> None:
    """List the recipes that come with the package. show NAME: print one. copy NAME [FILE]: copy one to edit it."""
    from launcher.commands import list_recipes as story

    o.check_recipes_arguments(action, name, file)
    if action == "list":
        story.list_recipes(output)
    elif action == "show":
        story.show_recipe(str(name))
    else:
        story.copy_recipe(str(name), file)


@app.command()
def init(
    file: o.NewRecipeArgument = Path("recipe.yaml"),
    data: o.DataOption = None,
    model: o.ModelOption = None,
    method: o.MethodOption = None,
    gpus: o.NodeOption = "A100:8",
    columns: o.ColumnsOption = None,
    force: o.ForceOption = False,
    debug: o.DebugOption = False,
) -> None:
    """Write a recipe for your data: asks for data, model and method, fills in the columns, estimates the hours."""
    from launcher.commands import init_recipe as story

    raise typer.Exit(story.init(file, story.InitOptions(data, model, method, gpus, columns, force)))


@app.command()
def drill(
    recipe: o.RecipeOption = "notus-7b-dpo",
    kills: o.KillsOption = 3,
    bucket: o.BucketOption = None,
    keep: o.KeepOption = False,
    seed: o.DrillSeedOption = None,
    processes: o.DrillProcessesOption = None,
    output: o.OutputOption = "text",
    debug: o.DebugOption = False,
) -> None:
    """Rehearse preemption of a recipe on this machine: kill it, resume it, compare it bit for bit.

    The model is made small, with random weights; method, data and bucket are the recipe's own. Takes minutes.
    """
    from launcher.commands import drill as story

    raise typer.Exit(story.drill(recipe, bucket, story.DrillOptions(kills, seed, processes, keep), output))


def main() -> None:
    """Entry point."""
    run_app(app, "notus-launch")


if __name__ == "__main__":
    main()

"""The commands that train: search, resume, extend."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from tunelab.commands.studies import draw_plot, find_study, print_best
from tunelab.locations import parse
from tunelab.shared_options import (
    ADDRESS,
    CONCURRENT,
    CONFIG,
    DASHBOARD,
    DEADLINE,
    FOLDER,
    JSON,
    MEMORY,
    NUMBER_OR_ALL,
    RUNS_DIR,
    STORAGE,
    STUDY,
    SUPERVISE,
    TRIAL_TIMEOUT,
    CommandLine,
    FiniteRange,
    data_options,
    names_given,
    shared,
    take_data,
)


@click.command()
@click.argument("space")
@click.option(
    "--trials",
    type=click.IntRange(min=1, max=1_000_000),
    help="Configurations to try  [default: 100, or those of --grid]",
)
@click.option(
    "--epochs", type=click.IntRange(min=1, max=1_000_000), default=30, show_default=True, help="Full length of a trial."
)
@data_options
@click.option("--study", type=FOLDER, help="Folder to make  [default: RUNS_DIR/SPACE-TIME]")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Everything random derives from it."
)
@click.option("--cpus-per-trial", type=click.IntRange(min=1), help="Threads of a trial  [default: as measured]")
@click.option("--gpus-per-trial", type=FiniteRange(min=0, min_open=True), help="Share of a GPU  [default: as measured]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--sampler",
    type=click.Choice(["model", "tpe", "gp", "random"]),
    default="model",
    show_default=True,
    help="Proposes by a model of all trials, by Optuna's TPE or GP, or draws anywhere.",
)
@click.option(
    "--scheduler",
    type=click.Choice(["asha", "promote", "none"]),
    help="How trials are stopped early; without it, those of --grid never are  [default: asha]",
)
@click.option(
    "--race",
    type=FiniteRange(min=0, max=0.9),
    help="Share of the time in which the finalists are trained again with other seeds  [default: 0.2; 0 with --grid]",
)
@click.option(
    "--grid",
    type=click.Path(),
    help="Trials by hand: a grid of SPACE by its name, or a YAML or JSON file of mappings, or of lists to combine.",
)
@click.option(
    "--objective",
    multiple=True,
    type=click.Choice(["val_accuracy", "params", "mflops", "seconds"]),
    default=("val_accuracy",),
    show_default=True,
    help="What is to be good, accuracy first, then costs; may be given several times.",
)
@click.option(
    "--repeat", type=click.IntRange(min=1), default=1, show_default=True, help="Trainings of each trial of --grid."
)
@click.option(
    "--warm-start",
    multiple=True,
    type=FOLDER,
    help="Begin with what an earlier study found best, on other data too; may be given several times.",
)
@click.option(
    "--from",
    "from_study",
    type=FOLDER,
    metavar="STUDY",
    help="The study whose best network the space begins with, on its data; for spaces such as recipe.",
)
@click.option("--from-trial", type=click.IntRange(min=0), help="Another trial of --from  [default: the best]")
@click.option(
    "--max-params",
    type=click.IntRange(min=1),
    help="Refuse networks with more weights  [default: 1000000, 12000000 on a GPU]",
)
@click.option(
    "--max-mflops",
    type=FiniteRange(min=0, min_open=True),
    help="Refuse networks with more million multiply-adds per image  [default: 40, 1200 on a GPU]",
)
@click.option(
    "--telemetry",
    type=click.Choice(["off", "scalars", "full"]),
    default="scalars",
    show_default=True,
    help="What trials write for TensorBoard: numbers of epochs, or also histograms, pictures and graphs",
)
@click.option("--no-health", is_flag=True, help="End no trial early for its health; what is wrong is still told.")
@click.option(
    "--health-grace",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Epochs before a hopeless trial is ended.",
)
@click.option(
    "--keep-weights",
    type=NUMBER_OR_ALL,
    default="10",
    show_default=True,
    help="Of how many ended trials the checkpoints are kept, the best ones: a number, or all.",
)
@click.option("--dry-run", is_flag=True, help="Say how long it would take and what fits until the deadline; no search.")
@shared(DEADLINE, TRIAL_TIMEOUT, SUPERVISE, CONCURRENT, MEMORY, ADDRESS, DASHBOARD, STORAGE, RUNS_DIR, CONFIG, JSON)
def search(
    space: str,
    as_json: bool,
    study: Path | None,
    runs_dir: Path,
    deadline: str | None,
    dry_run: bool,
    supervise: bool,
    grid: str | None,
    from_study: Path | None,
    from_trial: int | None,
    address: str | None,
    dashboard: bool,
    storage: str | None,
    **options: Any,
) -> None:
    """Search SPACE: a name (see `tunelab spaces`), an entry point, or a path to a Python file, which is run.

    \b
    tunelab search arch --trials 16
    tunelab search arch --data folder:photos --image-size 32 --deadline 07:30
    tunelab search arch --trials 200 --deadline 8h --dry-run
    tunelab search arch --grid rates.yaml --repeat 3
    tunelab search lenet --grid strategies --epochs 8
    tunelab search recipe --from arch-20261121-2330
    tunelab search arch --storage s3://bucket/prefix
    """
    stored = None if storage is None else parse(storage)  # refused before another process is started with it
    if supervise and not dry_run:
        _supervise(deadline)
    from tunelab.config import DataConfig, from_json
    from tunelab.tuning.grid_files import options_of_templates
    from tunelab.tuning.memory import choose_data, find_base, find_studies
    from tunelab.tuning.options import SearchOptions, fill_in, timeout_of
    from tunelab.tuning.prospect import forecast_search
    from tunelab.tuning.runner import start_search
    from tunelab.tuning.site import Site

    site = Site(address, dashboard)
    data, given = take_data(options), names_given(click.get_current_context())
    name = data["name"] if "name" in given else None
    if grid is not None:
        options, data, taken = options_of_templates(grid, options, data, given)
        name = data["name"] if name is None and data["name"] != DataConfig().name else name
        if taken:
            click.echo(f"note: {', '.join(taken)}, as {grid} has it", err=True)
    base = find_base(from_study, from_trial, runs_dir)
    chosen = choose_data(name, {field: value for field, value in data.items() if field != "name"}, base)
    options["trial_timeout"] = timeout_of(options["trial_timeout"])
    options["health"] = not options.pop("no_health")
    options["warm_start"] = find_studies(options["warm_start"], runs_dir)
    options, request = fill_in(options, grid)
    checked = from_json(SearchOptions, {**options, "data": chosen, "base": base})
    site = Site(address, dashboard)
    if dry_run:
        from tunelab.stores.copies import require_new
        from tunelab.tuning.survey import survey

        if isinstance(stored, str):
            require_new(stored, None if study is None else study.name)
        lines, forecast = forecast_search(space, checked, deadline, request, survey(site).fleet)
        click.echo(json.dumps(forecast) if as_json else "\n".join(lines))
        return
    with _plotted():
        where: dict[str, Any] = {"site": site, "storage": storage}
        found = start_search(space, checked, study, runs_dir, deadline, grid=request, **where)
    print_best(found, 5, as_json)


@click.command()
@STUDY
@shared(DEADLINE, TRIAL_TIMEOUT, SUPERVISE, CONCURRENT, ADDRESS, DASHBOARD, RUNS_DIR, JSON)
def resume(
    study: Path | str | None,
    as_json: bool,
    runs_dir: Path,
    deadline: str | None,
    trial_timeout: str | None,
    supervise: bool,
    concurrent: int | None,
    address: str | None,
    dashboard: bool,
) -> None:
    """Go on with STUDY (by default the newest) after an interrupt, a crash or a deadline.

    \b
    tunelab resume
    tunelab resume runs/arch-20261121-2330 --deadline 8h
    tunelab resume s3://bucket/prefix/arch-20261121-2330
    """
    if supervise:
        _supervise(deadline)
    from tunelab.tuning.runner import resume as go_on

    with _plotted():
        opened = find_study(study, runs_dir, to_change=True)
        where: dict[str, Any] = {"address": address, "dashboard": dashboard}
        found = go_on(opened, deadline=deadline, concurrent=concurrent, trial_timeout=trial_timeout, **where)
    print_best(found, 5, as_json)


@click.command()
@STUDY
@click.option(
    "--trials", type=click.IntRange(min=1, max=1_000_000), help="How many there are to be, or of the new length."
)
@click.option("--epochs", type=click.IntRange(min=1, max=1_000_000), help="Full length of a trial from now on.")
@click.option("--grid", type=click.Path(), help="Trials to add: the name of a grid, or a file; see `tunelab search`.")
@shared(DEADLINE, SUPERVISE, CONCURRENT, ADDRESS, DASHBOARD, RUNS_DIR, JSON)
def extend(
    study: Path | str | None,
    trials: int | None,
    epochs: int | None,
    grid: str | None,
    deadline: str | None,
    supervise: bool,
    concurrent: int | None,
    address: str | None,
    dashboard: bool,
    runs_dir: Path,
    as_json: bool,
) -> None:
    """Ask for more trials or more epochs on STUDY (by default the newest), and go on with it.

    With more epochs, earlier trials are kept but not compared with new ones; the best of them are trained first.

    \b
    tunelab extend --trials 200
    tunelab extend runs/arch-20261121-2330 --epochs 90 --trials 30 --deadline 8h
    """
    if supervise:
        _supervise(deadline)
    from tunelab.tuning.extend import extend as more

    opened = find_study(study, runs_dir, to_change=True)
    with _plotted():
        asked: dict[str, Any] = {"trials": trials, "epochs": epochs, "grid": grid, "deadline": deadline}
        found = more(opened, **asked, concurrent=concurrent, address=address, dashboard=dashboard)
    print_best(found, 5, as_json)


def _supervise(deadline: str | None) -> None:
    """Has the command run in a process that this one watches; returns in that process alone."""
    from tunelab import supervision

    if supervision.is_supervised():
        return
    context = click.get_current_context()
    called: CommandLine = context.find_root().obj
    named = "concurrent", "trial-timeout", "address"
    kept = [f"--{name}={value}" for name in named if (value := _given(context, name))]
    flags = ("--json", "as_json"), ("--dashboard", "dashboard")
    kept += [flag for flag, name in flags if context.params.get(name)]
    raise click.exceptions.Exit(supervision.supervise(called.run, called.arguments, deadline, kept))


def _given(context: click.Context, name: str) -> Any:
    """The value of an option of a command, None where there is no such option or value."""
    return context.params.get(name.replace("-", "_"))


@contextlib.contextmanager
def _plotted() -> Iterator[None]:
    """Around a search: one that is stopped before its end leaves the plot of what there is of it, too."""
    from tunelab.tuning.execute import PausedError

    try:
        yield
    except PausedError as paused:
        draw_plot(paused.study)
        raise

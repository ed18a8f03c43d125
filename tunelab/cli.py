"""The command line: reads options, calls one function, prints; errors become one line and an exit status here alone."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from tunelab.errors import InputError, TunelabError
from tunelab.shared_options import CONCURRENT, CONFIG, DEADLINE, JSON, RUNS_DIR, STUDY, shared

if TYPE_CHECKING:
    from tunelab.records import Trial
    from tunelab.study import Study


def main() -> None:
    """The console script: runs a command and leaves with its exit status.

    0 done; 1 the work failed; 2 the input was wrong; 3 stopped before the end and can be resumed; 130 interrupted.
    """
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs one command line and returns its exit status."""
    debug = "--debug" in arguments
    try:
        tunelab.main(args=[word for word in arguments if word != "--debug"], prog_name="tunelab", standalone_mode=False)
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except click.ClickException as error:
        return _complain(error.format_message(), 2, debug)
    except TunelabError as error:
        return _complain(str(error), error.exit_status, debug)
    except (KeyboardInterrupt, click.Abort):
        return _complain("interrupted", 130, debug)
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception as error:
        return _complain(f"unexpected {type(error).__name__}: {error} (--debug shows where)", 1, debug)
    return 0


def _complain(message: str, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    click.echo(f"tunelab: {' '.join(message.split())}", err=True)
    return status


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, invoke_without_command=True
)
@click.version_option(package_name="tunelab")
@click.option("--debug", is_flag=True, help="Show tracebacks (also after a command).")
@click.pass_context
def tunelab(context: click.Context, debug: bool) -> None:
    """Search network architectures and training recipes for small images, with numbers you can believe.

    \b
    tunelab search arch --trials 16          a search on scikit-learn's digits
    tunelab best                             its ranking
    tunelab best --retrain --epochs 150      the winner in full, tested once
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@tunelab.command()
@click.argument("space")
@click.option("--trials", type=click.IntRange(min=1), help="Configurations to try  [default: 100, or those of --grid]")
@click.option("--epochs", type=click.IntRange(min=1), default=30, show_default=True, help="Full length of a trial.")
@click.option("--data", default="digits", show_default=True, help="A data set, folder:PATH or npz:PATH.")
@click.option("--data-dir", type=click.Path(), help="Where torchvision's data sets lie.")
@click.option("--download", is_flag=True, help="Allow a download of the data.")
@click.option("--skip-unreadable", is_flag=True, help="Go on when a file of a folder is not an image.")
@click.option("--image-size", type=click.IntRange(min=4, max=1024), help="Resize images to N x N pixels.")
@click.option("--limit-train", type=click.IntRange(min=2), help="Use this many training images.")
@click.option(
    "--val-fraction",
    type=click.FloatRange(min=0, max=1, min_open=True, max_open=True),
    default=0.15,
    show_default=True,
    help="Share of images held out to compare trials by, where the data has no such split.",
)
@click.option("--study", type=click.Path(path_type=Path), help="Folder to make  [default: RUNS_DIR/SPACE-TIME]")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Everything random derives from it."
)
@click.option("--cpus-per-trial", type=click.IntRange(min=1), help="Threads of a trial  [default: as measured]")
@click.option(
    "--gpus-per-trial", type=click.FloatRange(min=0, min_open=True), help="Share of a GPU  [default: as measured]"
)
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
    type=click.FloatRange(min=0, max=0.9),
    help="Share of the time in which the finalists are trained again with other seeds  [default: 0.2; 0 with --grid]",
)
@click.option("--grid", type=click.Path(), help="YAML or JSON file of trials: a list of mappings, or lists to combine.")
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
    type=click.Path(path_type=Path),
    help="Begin with what an earlier study found best, on other data too; may be given several times.",
)
@click.option(
    "--max-params",
    type=click.IntRange(min=1),
    help="Refuse networks with more weights  [default: 1000000, 12000000 on a GPU]",
)
@click.option(
    "--max-mflops",
    type=click.FloatRange(min=0, min_open=True),
    help="Refuse networks with more million multiply-adds per image  [default: 40, 1200 on a GPU]",
)
@click.option("--telemetry", type=click.Choice(["off", "scalars"]), default="scalars", show_default=True)
@click.option("--dry-run", is_flag=True, help="Say how long it would take and what fits until the deadline; no search.")
@shared(DEADLINE, CONCURRENT, RUNS_DIR, CONFIG, JSON)
def search(
    space: str,
    as_json: bool,
    study: Path | None,
    runs_dir: Path,
    deadline: str | None,
    dry_run: bool,
    grid: str | None,
    **options: Any,
) -> None:
    """Search SPACE: a name (see `tunelab spaces`), an entry point, or a path to a Python file, which is run.

    \b
    tunelab search arch --trials 16
    tunelab search arch --data folder:photos --image-size 32 --deadline 07:30
    tunelab search arch --trials 200 --deadline 8h --dry-run
    tunelab search arch --grid rates.yaml --repeat 3
    """
    from tunelab.config import from_json
    from tunelab.tuning.memory import find_studies
    from tunelab.tuning.options import SearchOptions, fill_in
    from tunelab.tuning.prospect import forecast_search
    from tunelab.tuning.runner import start_search

    data = {"name": options.pop("data")}
    for name in ("data_dir", "download", "skip_unreadable", "image_size", "limit_train", "val_fraction"):
        data[name] = options.pop(name)
    options["warm_start"] = find_studies(options["warm_start"], runs_dir)
    options, request = fill_in(options, grid)
    checked = from_json(SearchOptions, {**options, "data": data})
    if dry_run:
        lines, forecast = forecast_search(space, checked, deadline, request)
        click.echo(json.dumps(forecast) if as_json else "\n".join(lines))
        return
    with _plotted():
        found = start_search(space, checked, study, runs_dir, deadline, grid=request)
    _print_best(found, 5, as_json)


@tunelab.command()
@STUDY
@shared(DEADLINE, CONCURRENT, RUNS_DIR, JSON)
def resume(study: Path | None, as_json: bool, runs_dir: Path, deadline: str | None, concurrent: int | None) -> None:
    """Go on with STUDY (by default the newest) after an interrupt, a crash or a deadline.

    \b
    tunelab resume
    tunelab resume runs/arch-20261121-2330 --deadline 8h
    """
    from tunelab.tuning.runner import resume as go_on

    with _plotted():
        found = go_on(_find(study, runs_dir), deadline=deadline, concurrent=concurrent)
    _print_best(found, 5, as_json)


@tunelab.command()
@STUDY
@click.option("--trials", type=click.IntRange(min=1), help="How many there are to be, or of the new length.")
@click.option("--epochs", type=click.IntRange(min=1), help="Full length of a trial from now on.")
@click.option("--grid", type=click.Path(), help="YAML or JSON file of trials to add; see `tunelab search`.")
@shared(DEADLINE, CONCURRENT, RUNS_DIR, JSON)
def extend(
    study: Path | None,
    trials: int | None,
    epochs: int | None,
    grid: str | None,
    deadline: str | None,
    concurrent: int | None,
    runs_dir: Path,
    as_json: bool,
) -> None:
    """Ask for more trials or more epochs on STUDY (by default the newest), and go on with it.

    With more epochs, earlier trials are kept but not compared with new ones; the best of them are trained first.

    \b
    tunelab extend --trials 200
    tunelab extend runs/arch-20261121-2330 --epochs 90 --trials 30 --deadline 8h
    """
    from tunelab.tuning.extend import extend as more

    opened = _find(study, runs_dir)
    with _plotted():
        found = more(opened, trials=trials, epochs=epochs, grid=grid, deadline=deadline, concurrent=concurrent)
    _print_best(found, 5, as_json)


@tunelab.command()
@STUDY
@click.option("--top", type=click.IntRange(min=1), default=10, show_default=True, help="Rows of the ranking.")
@click.option("--retrain", is_flag=True, help="Train the best configuration in full and test it.")
@click.option("--epochs", type=click.IntRange(min=1), default=150, show_default=True, help="Epochs of --retrain.")
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Trainings of --retrain.")
@click.option("--trial", type=click.IntRange(min=0), help="Retrain this trial instead of the best one.")
@click.option("--keep-val", is_flag=True, help="Retrain without the validation images.")
@shared(RUNS_DIR, JSON)
def best(
    study: Path | None,
    runs_dir: Path,
    as_json: bool,
    top: int,
    retrain: bool,
    epochs: int,
    seeds: int,
    trial: int | None,
    keep_val: bool,
) -> None:
    """Rank the trials of STUDY (by default the newest); with --retrain, train the winner in full.

    \b
    tunelab best --top 5
    tunelab best --retrain --epochs 150 --seeds 3
    """
    found = _find(study, runs_dir)
    if not retrain:
        source = click.get_current_context().get_parameter_source
        words = {"epochs": "--epochs", "seeds": "--seeds", "trial": "--trial", "keep_val": "--keep-val"}
        given = [word for name, word in words.items() if source(name) is ParameterSource.COMMANDLINE]
        if given:
            raise InputError(f"{' and '.join(given)} can only be used with --retrain")
        _print_best(found, top, as_json)
        return
    train_in_full = importlib.import_module("tunelab.analysis.retrain").retrain
    metrics = train_in_full(found, epochs=epochs, seeds=seeds, keep_val=keep_val, trial=trial)
    if as_json:
        click.echo(json.dumps(metrics))
    else:
        importlib.import_module("tunelab.analysis.text").print_retrained(metrics)


@tunelab.command("list")
@shared(RUNS_DIR, JSON)
def list_command(runs_dir: Path, as_json: bool) -> None:
    """List the studies, newest first.

    \b
    tunelab list --runs-dir runs
    """
    from tunelab.study import list_studies

    text = importlib.import_module("tunelab.analysis.text")
    left_out: list[str] = []
    rows = text.study_rows(list_studies(runs_dir, left_out))
    for reason in left_out:
        click.echo(f"tunelab: left out: {reason}", err=True)
    if as_json:
        click.echo(json.dumps(rows))
    elif rows:
        text.print_rows(rows)
    else:
        click.echo(f"there are no studies in {runs_dir}; `tunelab search arch` makes one")


@tunelab.command()
@STUDY
@click.argument("trial", type=click.IntRange(min=0), required=False)
@shared(RUNS_DIR, JSON)
def show(study: Path | None, trial: int | None, runs_dir: Path, as_json: bool) -> None:
    """Show STUDY (by default the newest), or one TRIAL of it: what it was, how it went, why it ended.

    \b
    tunelab show
    tunelab show runs/arch-20261121-2330 7
    """
    if study is not None and trial is None and study.name.isdecimal() and not study.exists():
        found, trial = _find(None, runs_dir), int(study.name)
    else:
        found = _find(study, runs_dir)
    text = importlib.import_module("tunelab.analysis.text")
    if trial is None:
        shown = text.study_summary(found)
        click.echo(json.dumps(shown)) if as_json else text.print_study(found, shown)
    else:
        one: Trial = found.trial(trial)
        from tunelab.study import trial_to_json

        click.echo(json.dumps(trial_to_json(one))) if as_json else text.print_trial(found, one)


@tunelab.command()
@shared(JSON)
def spaces(as_json: bool) -> None:
    """List the search spaces.

    \b
    tunelab spaces
    """
    from tunelab.space import load_space, space_names

    rows = []
    for name in space_names():
        space = load_space(name)
        rows.append({"name": space.name, "version": space.version, "summary": space.summary})
    if as_json:
        click.echo(json.dumps(rows))
    else:
        importlib.import_module("tunelab.analysis.text").print_rows(rows)


def _find(path: Path | None, runs_dir: Path) -> Study:
    """The study at `path`, or of that name inside the folder of studies, or the newest one."""
    from tunelab.study import load, newest_study

    if path is None:
        return newest_study(runs_dir)
    inside = runs_dir / path
    if path.exists() or inside.exists():
        return load(path if path.exists() else inside)
    raise InputError(
        f"there is no study {path}, neither here nor in {runs_dir}; `tunelab list` names those that there are"
    )


@contextlib.contextmanager
def _plotted() -> Iterator[None]:
    """Around a search: one that is stopped before its end leaves the plot of what there is of it, too."""
    from tunelab.tuning.execute import PausedError

    try:
        yield
    except PausedError as paused:
        _plot(paused.study)
        raise


def _plot(study: Study) -> None:
    """Draws the plot of a study with several objectives; where it cannot be written, that is said, and is no error."""
    try:
        importlib.import_module("tunelab.analysis.front").write_plot(study)
    except OSError as error:
        click.echo(f"tunelab: the plot of {study.path} cannot be written: {error.strerror or error}", err=True)


def _print_best(study: Study, top: int, as_json: bool) -> None:
    """The ranking, with a plot where there are several objectives."""
    _plot(study)
    rank = importlib.import_module("tunelab.analysis.rank")
    shown = rank.summary(study, top)
    if as_json:
        click.echo(json.dumps(shown))
    else:
        importlib.import_module("tunelab.analysis.text").print_best(shown)


if __name__ == "__main__":
    main()

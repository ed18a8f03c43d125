"""The command for the winner: best."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any, Literal

import click

from tunelab.commands.studies import find_study, mirrored_after, print_best
from tunelab.errors import InputError
from tunelab.shared_options import ADDRESS, JSON, RUNS_DIR, STUDY, shared, words_given
from tunelab.yaml_files import load

_OF_RETRAINING = (
    "epochs",
    "seeds",
    "trial",
    "keep_val",
    "average",
    "recipe",
    "compile",
    "telemetry",
    "gpus",
    "processes",
    "address",
)
_MAX_BYTES = 100_000


@click.command()
@STUDY
@click.option("--top", type=click.IntRange(min=1), default=10, show_default=True, help="Rows of the ranking.")
@click.option("--retrain", is_flag=True, help="Train the best configuration in full and test it.")
@click.option(
    "--epochs", type=click.IntRange(min=1, max=1_000_000), default=150, show_default=True, help="Epochs of --retrain."
)
@click.option(
    "--seeds", type=click.IntRange(min=1, max=1000), default=1, show_default=True, help="Trainings of --retrain."
)
@click.option("--trial", type=click.IntRange(min=0), help="Retrain this trial instead of the best one.")
@click.option("--keep-val", is_flag=True, help="Retrain without the validation images.")
@click.option(
    "--average",
    type=click.Choice(["none", "ema", "swa"]),
    help="Average of weights that --retrain keeps  [default: as the recipe says]",
)
@click.option(
    "--recipe",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="YAML file of what --retrain changes in the recipe.",
)
@click.option(
    "--compile",
    type=click.Choice(["auto", "off"]),
    default="auto",
    show_default=True,
    help="torch.compile in a --retrain of over 10 minutes, where measured to be faster.",
)
@click.option(
    "--telemetry",
    type=click.Choice(["off", "scalars", "full"]),
    help="What --retrain writes for TensorBoard  [default: as the study's trials]",
)
@click.option(
    "--gpus", type=click.IntRange(min=1), help="Share each batch of --retrain among so many GPUs  [default: one]"
)
@click.option(
    "--processes", type=click.IntRange(min=1), help="The same without GPUs: among so many processes on processors."
)
@shared(ADDRESS, RUNS_DIR, JSON)
def best(
    study: Path | str | None,
    runs_dir: Path,
    as_json: bool,
    top: int,
    retrain: bool,
    epochs: int,
    seeds: int,
    trial: int | None,
    keep_val: bool,
    average: Literal["none", "ema", "swa"] | None,
    recipe: Path | None,
    compile: Literal["auto", "off"],
    telemetry: Literal["off", "scalars", "full"] | None,
    address: str | None,
    gpus: int | None,
    processes: int | None,
) -> None:
    """Rank the trials of STUDY (by default the newest); with --retrain, train the winner in full.

    \b
    tunelab best --top 5
    tunelab best --retrain --epochs 150 --seeds 3
    """
    found = find_study(study, runs_dir, to_change=retrain)
    if not retrain:
        given = words_given(click.get_current_context(), _OF_RETRAINING)
        if given:
            raise InputError(f"{' and '.join(given)} can only be used with --retrain")
        print_best(found, top, as_json)
        return
    train_in_full = importlib.import_module("tunelab.analysis.retrain").retrain
    changes = None if recipe is None else _read_recipe(recipe)
    with mirrored_after(found):
        metrics = train_in_full(
            found,
            epochs=epochs,
            seeds=seeds,
            keep_val=keep_val,
            trial=trial,
            average=average,
            changes=changes,
            compile=compile,
            telemetry=telemetry,
            address=address,
            gpus=gpus,
            processes=processes,
        )
    if as_json:
        click.echo(json.dumps(metrics))
    else:
        importlib.import_module("tunelab.analysis.retrain_text").print_retrained(metrics)


def _read_recipe(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        found = load(path, _MAX_BYTES, "not YAML")
    except InputError as error:
        raise InputError(f"--recipe {error}") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise InputError(f"--recipe {path} must hold lines such as `lr: 0.05`")
    return found

"""The command for the winner: best."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Literal

import click

from tunelab.commands.studies import find_study, print_best
from tunelab.errors import InputError
from tunelab.shared_options import JSON, RUNS_DIR, STUDY, shared, words_given


@click.command()
@STUDY
@click.option("--top", type=click.IntRange(min=1), default=10, show_default=True, help="Rows of the ranking.")
@click.option("--retrain", is_flag=True, help="Train the best configuration in full and test it.")
@click.option("--epochs", type=click.IntRange(min=1), default=150, show_default=True, help="Epochs of --retrain.")
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Trainings of --retrain.")
@click.option("--trial", type=click.IntRange(min=0), help="Retrain this trial instead of the best one.")
@click.option("--keep-val", is_flag=True, help="Retrain without the validation images.")
@click.option(
    "--compile",
    type=click.Choice(["auto", "off"]),
    default="auto",
    show_default=True,
    help="torch.compile in a --retrain of over 10 minutes, where measured to be faster.",
)
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
    compile: Literal["auto", "off"],
) -> None:
    """Rank the trials of STUDY (by default the newest); with --retrain, train the winner in full.

    \b
    tunelab best --top 5
    tunelab best --retrain --epochs 150 --seeds 3
    """
    found = find_study(study, runs_dir)
    if not retrain:
        given = words_given(click.get_current_context(), ("epochs", "seeds", "trial", "keep_val", "compile"))
        if given:
            raise InputError(f"{' and '.join(given)} can only be used with --retrain")
        print_best(found, top, as_json)
        return
    train_in_full = importlib.import_module("tunelab.analysis.retrain").retrain
    metrics = train_in_full(found, epochs=epochs, seeds=seeds, keep_val=keep_val, trial=trial, compile=compile)
    if as_json:
        click.echo(json.dumps(metrics))
    else:
        importlib.import_module("tunelab.analysis.text").print_retrained(metrics)

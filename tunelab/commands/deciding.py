"""The commands that tell what a search has shown: importance, compare."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import click

from tunelab.commands.studies import find_study
from tunelab.shared_options import JSON, PLACE, RUNS_DIR, STUDY, shared


@click.command()
@STUDY
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    help="Compare trials after so many epochs  [default: the most that half of them have had]",
)
@shared(RUNS_DIR, JSON)
def importance(study: Path | str | None, runs_dir: Path, as_json: bool, epochs: int | None) -> None:
    """Tell what mattered in STUDY (by default the newest): each parameter, and answers with their intervals.

    \b
    tunelab importance
    tunelab importance runs/arch-20261121-2330 --epochs 18
    """
    found = find_study(study, runs_dir)
    shown = importlib.import_module("tunelab.analysis.importance").importance(found, epochs)
    if as_json:
        click.echo(json.dumps(shown))
    else:
        importlib.import_module("tunelab.analysis.importance_text").print_importance(shown)


@click.command()
@click.argument("studies", type=PLACE, nargs=-1, required=True, metavar="STUDY STUDY...")
@shared(RUNS_DIR, JSON)
def compare(studies: tuple[Path | str, ...], runs_dir: Path, as_json: bool) -> None:
    """Compare two or more STUDIES of the same data: at equal epochs, at equal time, and their winners.

    \b
    tunelab compare arch-20261121-2330 arch-20261122-2330
    tunelab compare runs/tpe runs/model --json
    """
    found = [find_study(path, runs_dir) for path in studies]
    shown = importlib.import_module("tunelab.analysis.compare").compare(found)
    if as_json:
        click.echo(json.dumps(shown))
    else:
        importlib.import_module("tunelab.analysis.compare_text").print_comparison(shown)

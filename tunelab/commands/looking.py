"""The commands that look at what there is: list, show, spaces."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tunelab.commands.studies import find_trial
from tunelab.errors import InputError
from tunelab.shared_options import JSON, RUNS_DIR, STORAGE, STUDY, shared

if TYPE_CHECKING:
    from tunelab.liveness import Sign
    from tunelab.records import Trial


@click.command("list")
@shared(STORAGE, RUNS_DIR, JSON)
def list_command(storage: str | None, runs_dir: Path, as_json: bool) -> None:
    """List the studies, newest first.

    \b
    tunelab list --runs-dir runs
    tunelab list --storage s3://bucket/prefix
    """
    from tunelab.locations import parse
    from tunelab.study import list_studies, newest_first

    text = importlib.import_module("tunelab.analysis.text")
    left_out: list[str] = []
    place = runs_dir if storage is None else parse(storage)
    if isinstance(place, str):
        from tunelab.stores.copies import studies_in

        found = newest_first(studies_in(place, left_out))
    else:
        found = list_studies(place, left_out)
    rows = text.study_rows(found)
    for reason in left_out:
        click.echo(f"tunelab: left out: {reason}", err=True)
    if as_json:
        click.echo(json.dumps([{**row, "sign": _plain(row["sign"])} for row in rows]))
    elif rows:
        text.print_studies(rows)
    else:
        click.echo(f"there are no studies in {place}; `tunelab search arch` makes one")


@click.command()
@STUDY
@click.argument("trial", type=click.IntRange(min=0), required=False)
@shared(RUNS_DIR, JSON)
def show(study: Path | str | None, trial: int | None, runs_dir: Path, as_json: bool) -> None:
    """Show STUDY (by default the newest), or one TRIAL of it: what it was, how it went, why it ended.

    \b
    tunelab show
    tunelab show runs/arch-20261121-2330 7
    """
    found, trial = find_trial(study, trial, runs_dir)
    text = importlib.import_module("tunelab.analysis.text")
    if trial is None:
        shown = text.study_summary(found)
        if as_json:
            click.echo(json.dumps({**shown, "sign": _plain(shown["sign"])}))
        else:
            text.print_study(found, shown)
    else:
        one: Trial = found.trial(trial)
        if not as_json:
            text.print_trial(found, one)
            return
        epochs = [{**metrics.to_json(), "effective_lr": metrics.effective_lr} for metrics in one.epochs]
        ending = importlib.import_module("tunelab.analysis.effective_plots").ending(one)
        click.echo(json.dumps({**one.to_json(), "epochs": epochs, "ending": ending}))


def _plain(sign: Sign | None) -> dict[str, Any] | None:
    return None if sign is None else sign.to_json()


@click.command()
@shared(JSON)
def spaces(as_json: bool) -> None:
    """List the search spaces.

    \b
    tunelab spaces
    """
    from tunelab.space import load_space, space_names

    rows = []
    for name in space_names():
        try:
            space = load_space(name)
        except InputError as error:  # one package that is broken does not hide the others
            click.echo(f"tunelab: left out: {error}", err=True)
            continue
        grids = list(space.grids) if as_json else ", ".join(space.grids)
        rows.append({"name": space.name, "version": space.version, "summary": space.summary, "grids": grids})
    if as_json:
        click.echo(json.dumps(rows))
    else:
        importlib.import_module("tunelab.analysis.text").print_rows(rows)

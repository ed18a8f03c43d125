"""The command that trains a trial again: reproduce."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import click

from tunelab.commands.studies import find_trial, mirrored_after
from tunelab.errors import InputError
from tunelab.shared_options import ADDRESS, JSON, RUNS_DIR, STUDY, shared


@click.command()
@STUDY
@click.argument("trial", type=click.IntRange(min=0), required=False)
@shared(ADDRESS, RUNS_DIR, JSON)
def reproduce(study: Path | str | None, trial: int | None, address: str | None, runs_dir: Path, as_json: bool) -> None:
    """Train a TRIAL of STUDY (by default the newest) again from its record, and say how equal the result is.

    It is trained with its own seed for as many epochs as it had. Each epoch is then identical to the bit, within the
    noise of runs, or different beyond it; what is not the same of versions, hardware, threads and precision is named.

    \b
    tunelab reproduce 7
    tunelab reproduce runs/arch-20261121-2330 7 --json
    """
    found, number = find_trial(study, trial, runs_dir, to_change=True)
    if number is None:
        raise InputError(
            f"which trial of {found.place} is to be trained again? `tunelab best {found.place}` lists them"
        )
    module = importlib.import_module("tunelab.analysis.reproduce")
    with mirrored_after(found):
        content = module.reproduce(found, number, address=address)
    click.echo(json.dumps(content)) if as_json else module.print_reproduced(content)
